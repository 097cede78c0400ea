// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// replaced is a conf list that ours took the place of. Who had opened it for writing, in place and not by rename, goes on
// writing into a file without a name; what comes of that is the list that was meant.
type replaced struct {
	path string // where it was
	file *os.File
	// data is its content as far as it is known, wrote what took its place.
	data, wrote []byte
	until       time.Time
}

// keepFor is how long somebody may take to write a conf list.
const keepFor = time.Minute

// keepReplaced keeps the file that was just replaced.
func (i *Installer) keepReplaced(t *target, wrote []byte) {
	i.forgetReplaced()
	fd, err := unix.FcntlInt(t.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return
	}
	i.replaced = &replaced{
		path: t.real, file: os.NewFile(uintptr(fd), t.real), data: t.data, wrote: wrote, until: time.Now().Add(keepFor),
	}
}

func (i *Installer) forgetReplaced() {
	if i.replaced != nil {
		i.replaced.file.Close()
		i.replaced = nil
	}
}

// lateContent is what has been written to the file that the target took the place of, nil if nothing was. It may be half
// of it for now.
func (i *Installer) lateContent(t *target) []byte {
	r := i.replaced
	if r == nil {
		return nil
	}
	if r.path != t.real || !bytes.Equal(r.wrote, t.data) || time.Now().After(r.until) {
		i.forgetReplaced()
		return nil
	}
	data, err := readAll(r.file)
	if err != nil || bytes.Equal(data, r.data) {
		return nil
	}
	return data
}
