// SPDX-License-Identifier: Apache-2.0

package hostif

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Describe fills in the driver's name. An interface whose driver has none keeps it empty; one that is gone
// is an error that wraps [unix.ENODEV].
func Describe(i *Interface) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket to ask for the driver of %s: %w", i.Name, err)
	}
	defer unix.Close(fd)
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, i.Name)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		i.Driver = ""
		return nil
	case err != nil:
		return fmt.Errorf("ask for the driver of %s: %w", i.Name, err)
	}
	i.Driver = unix.ByteSliceToString(info.Driver[:])
	return nil
}
