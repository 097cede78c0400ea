// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"path"
)

// archive is an initramfs: a cpio archive in the kernel's "newc" format (Documentation/driver-api/early-userspace/
// buffer-format.rst), uncompressed, as an emulated processor would take longer to uncompress it than to read it.
type archive struct {
	bytes.Buffer
	inode uint32
	names map[string]bool
}

const (
	directory  = 0o040755
	executable = 0o100755
)

func newArchive() *archive { return &archive{names: map[string]bool{".": true}} }

func (a *archive) has(name string) bool { return a.names[name] }

// add appends a file, after the directories it is in.
func (a *archive) add(name string, data []byte) {
	a.mkdir(path.Dir(name))
	a.entry(name, executable, data)
}

func (a *archive) mkdir(name string) {
	if !a.has(name) {
		a.mkdir(path.Dir(name))
		a.entry(name, directory, nil)
	}
}

func (a *archive) entry(name string, mode uint32, data []byte) {
	a.names[name] = true
	a.inode++
	// inode, mode, uid, gid, links, mtime, size, device and device node's numbers, size of the name with its 0, checksum
	header := []uint32{a.inode, mode, 0, 0, 1, 0, uint32(len(data)), 0, 0, 0, 0, uint32(len(name)) + 1, 0}
	a.WriteString("070701")
	for _, field := range header {
		fmt.Fprintf(a, "%08x", field)
	}
	a.WriteString(name + "\x00")
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}

// close ends the archive and returns it.
func (a *archive) close() []byte {
	a.entry("TRAILER!!!", 0, nil)
	return a.Bytes()
}
