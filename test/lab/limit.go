// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
)

const conntrackMax = "/proc/sys/net/netfilter/nf_conntrack_max"

// LimitConntrack sets nf_conntrack_max, which is one number for the whole machine, and returns the function
// that restores it. It is restored whatever becomes of this process, SIGKILL included, by a watchdog. One
// process at a time limits; a small limit waits some seconds for other processes to close their labs, and
// none is opened while a limit is in force. Labs of this process are hit: not beside parallel tests.
func LimitConntrack(n int) (restore func() error, err error) {
	if n <= 0 {
		return nil, fmt.Errorf("limit nf_conntrack_max to %d: to the kernel that is no limit", n)
	}
	lock, err := takeTable(n)
	if err != nil {
		return nil, fmt.Errorf("limit nf_conntrack_max: %w", err)
	}
	record := &conntrackRecord{}
	var dog *watchdog
	if err = record.take(); err == nil {
		// It holds the lock as well, so that after a kill nobody comes in before the value is restored.
		dog, err = startWatchdog(watchdogJob{Conntrack: record}, []*os.File{lock})
	}
	if err != nil {
		giveTable()
		return nil, fmt.Errorf("limit nf_conntrack_max: %w", err)
	}
	restore = sync.OnceValue(func() error {
		defer unregisterForSignal(dog)
		defer giveTable()
		if err := dog.release(); err != nil {
			return fmt.Errorf("restore nf_conntrack_max to %d: %w", record.Original, err)
		}
		return nil
	})
	registerForSignal(dog, restore)
	if err := writeConntrackMax(n); err != nil {
		return nil, errors.Join(err, restore())
	}
	return restore, nil
}

// ConntrackMax is the limit in force, for the whole machine.
func ConntrackMax() (int, error) {
	text, err := os.ReadFile(conntrackMax)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func writeConntrackMax(n int) error {
	return writeSysctl("net/netfilter/nf_conntrack_max", strconv.Itoa(n))
}

// conntrackRecord is the value to go back to. While a limit is in force the lock file holds it as well, so
// that even if limiter and watchdog both died, the next limiter does not take the limit for the original.
type conntrackRecord struct {
	Original int
}

func (r *conntrackRecord) take() error {
	recorded, err := os.ReadFile(machineFile)
	if err != nil {
		return err
	}
	if r.Original, err = strconv.Atoi(strings.TrimSpace(string(recorded))); err == nil && r.Original > 0 {
		return nil
	}
	if r.Original, err = ConntrackMax(); err != nil {
		return err
	}
	return os.WriteFile(machineFile, []byte(strconv.Itoa(r.Original)+"\n"), 0o600)
}

func (r *conntrackRecord) restore() error {
	if err := writeConntrackMax(r.Original); err != nil {
		return err
	}
	return os.Truncate(machineFile, 0)
}
