// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// WriteFile replaces a file by the families in format Text, in one step, for node_exporter's textfile collector: it reads
// *.prom in its directory, so the name must end like that, while that of the temporary file beside it does not.
func WriteFile(path string, families []Family) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write metrics: %w", err)
		}
	}()
	// node_exporter is another user.
	if err := errors.Join(Write(f, Text, families), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
