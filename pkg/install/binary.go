// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/files"
)

func (i *Installer) binary() string { return filepath.Join(i.BinDir, config.PluginType) }

// putBinary copies the running binary to where the runtime finds plugins. By rename: the old one may be running.
func (i *Installer) putBinary() error {
	reason, err := i.binaryDiffers()
	if err != nil || reason == "" {
		return err
	}
	data, err := os.ReadFile(i.running())
	if err != nil {
		return fmt.Errorf("read the running binary: %w", err)
	}
	err = os.MkdirAll(i.BinDir, 0o755)
	if err == nil {
		err = replaceFile(i.binary(), data, 0o755, nil)
	}
	if err != nil {
		return writeProblem("put the binary", i.BinDir, "--bin-dir", err)
	}
	i.installed, _ = files.StampOf(i.binary())
	i.Log.Info("binary installed", "file", i.binary(), "version", i.Version, "reason", reason)
	return nil
}

func (i *Installer) running() string { return cmp.Or(i.self, "/proc/self/exe") }

// binaryDiffers says why the binary has to be installed, nothing if it has not. Contents are compared once for each
// state of the file.
func (i *Installer) binaryDiffers() (reason string, err error) {
	stamp, err := files.StampOf(i.binary())
	if errors.Is(err, fs.ErrNotExist) {
		return "it was not there", nil
	}
	if err != nil {
		return "", fmt.Errorf("look at %s: %w; want a file or nothing there", i.binary(), err)
	}
	info, err := os.Stat(i.binary())
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o111 == 0 {
		return "it could not be executed", nil
	}
	if stamp == i.installed {
		return "", nil
	}
	same, err := sameContent(i.binary(), i.running())
	if err != nil {
		return "", fmt.Errorf("compare binaries: %w", err)
	}
	if !same {
		return "another version was there", nil
	}
	i.installed = stamp
	return "", nil
}

func sameContent(a, b string) (bool, error) {
	f, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer f.Close()
	g, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer g.Close()
	x, y := make([]byte, 1<<16), make([]byte, 1<<16)
	for {
		n, errX := io.ReadFull(f, x)
		m, errY := io.ReadFull(g, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if errX != nil || errY != nil {
			return ended(errX) && ended(errY), nil
		}
	}
}

func ended(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }
