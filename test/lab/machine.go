// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// nf_conntrack_max is the machine's, and so a limit hits the labs of every process: test binaries of several
// packages run at once. One process at a time may limit; it waits a while for a moment in which no other
// process has a lab open, and while it limits no other opens one.
//
// Both locks are open file description locks on bytes of one file in /run, which stays: were it removed, two
// could hold it. The file's text is conntrackRecord's.
const (
	machineFile = "/run/untracked-lab-conntrack.lock"

	turnByte  = 1 << 20 // held by who limits, or is about to
	tableByte = turnByte + 1

	patience = 2 * time.Minute
	// courtesy is how long a limiter waits for labs of other processes. Longer would be to wait for the end
	// of a package whose tests run in parallel.
	courtesy = 10 * time.Second
	// roomy is a limit that labs hardly reach, and so needs no courtesy.
	roomy = 20000
)

var machine struct {
	sync.Mutex
	file     *os.File // one description for the process; watchdogs inherit it
	labs     int
	limiting bool
}

// shareTable is called by a lab before it does anything, and its counterpart at the end.
func shareTable() error {
	machine.Lock()
	defer machine.Unlock()
	if machine.labs > 0 || machine.limiting {
		machine.labs++
		return nil
	}
	if err := openMachine(); err != nil {
		return err
	}
	// Not past a limiter who waits already.
	if err := lockByte(machine.file, turnByte, unix.F_RDLCK, patience); err != nil {
		return err
	}
	err := lockByte(machine.file, tableByte, unix.F_RDLCK, patience)
	unlockByte(machine.file, turnByte)
	if err == nil {
		machine.labs++
	}
	return err
}

func unshareTable() {
	machine.Lock()
	defer machine.Unlock()
	machine.labs--
	if machine.labs == 0 && !machine.limiting {
		unlockByte(machine.file, tableByte)
	}
}

// takeTable begins a limit of n, giveTable ends it. This process's own labs stay: it limits for them.
func takeTable(n int) (*os.File, error) {
	machine.Lock()
	defer machine.Unlock()
	for deadline := time.Now().Add(patience); machine.limiting; {
		if time.Now().After(deadline) {
			return nil, errors.New("this process has a limit in force already")
		}
		machine.Unlock()
		time.Sleep(10 * time.Millisecond)
		machine.Lock()
	}
	if err := openMachine(); err != nil {
		return nil, err
	}
	// Two who share and wait for each other's turn would wait for ever.
	unlockByte(machine.file, tableByte)
	err := lockByte(machine.file, turnByte, unix.F_WRLCK, patience)
	if err == nil && n < roomy {
		lockByte(machine.file, tableByte, unix.F_WRLCK, courtesy)
	}
	if machine.labs > 0 {
		lockByte(machine.file, tableByte, unix.F_RDLCK, 0) // nobody has the whole without the turn
	}
	machine.limiting = err == nil
	return machine.file, err
}

func giveTable() {
	machine.Lock()
	defer machine.Unlock()
	machine.limiting = false
	if machine.labs == 0 {
		unlockByte(machine.file, tableByte)
	}
	unlockByte(machine.file, turnByte)
}

func openMachine() (err error) {
	if machine.file == nil {
		machine.file, err = os.OpenFile(machineFile, os.O_CREATE|os.O_RDWR, 0o600)
	}
	return err
}

func lockByte(f *os.File, at int64, kind int16, patience time.Duration) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: at, Len: 1})
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) || time.Now().After(deadline) {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

func unlockByte(f *os.File, at int64) {
	unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Start: at, Len: 1})
}
