// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Config says what network to build. The zero value is a node with one uplink of MTU 1500.
type Config struct {
	// Uplinks is the number of wires between client and node: eth0, eth1 and so on. 0 means 1.
	Uplinks int
	// MTU of the uplinks. 0 means 1500. Native XDP without fragments needs about 3500 or less on veth.
	MTU int
	// ClientAddrs is how many addresses of each family the client has on each uplink. They multiply the
	// source ports a load can use and give tests sources to tell apart. 0 means 8, at most 250.
	ClientAddrs int
}

// Lab is one network and what runs in it.
type Lab struct {
	// Name is unique on this machine; the names of all that the lab makes begin with it.
	Name string
	// Dir is the lab's own directory; it goes away with the lab.
	Dir string
	// BPFFS is a bpf file system of the lab's own, RunDir a directory for lock and records.
	BPFFS, RunDir string
	// Node is where the plugin runs, Client where the load comes from.
	Node, Client *NS
	Uplinks      []Uplink

	watchdog *watchdog

	mu       sync.Mutex
	cleanups []func() error
	closed   bool
	closeErr error
}

// Open builds a lab. The caller must Close it. Requires root. It waits while another process has lowered
// nf_conntrack_max by LimitConntrack.
func Open(c Config) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("open lab: %w", ErrNotRoot)
	}
	if c.Uplinks == 0 {
		c.Uplinks = 1
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.ClientAddrs == 0 {
		c.ClientAddrs = 8
	}
	if c.Uplinks < 0 || c.Uplinks > 250 || c.ClientAddrs < 0 || c.ClientAddrs > 250 {
		return nil, fmt.Errorf("open lab: %d uplinks with %d client addresses: want at most 250 of each", c.Uplinks, c.ClientAddrs)
	}

	var random [4]byte
	rand.Read(random[:])
	l := &Lab{Name: fmt.Sprintf("untracked-%d-%s", os.Getpid(), hex.EncodeToString(random[:]))}
	l.Dir = filepath.Join(os.TempDir(), l.Name)
	l.BPFFS = filepath.Join(l.Dir, "bpf")
	l.RunDir = filepath.Join(l.Dir, "run")

	if err := shareTable(); err != nil {
		return nil, fmt.Errorf("open lab: %w", err)
	}
	if err := l.build(c); err != nil {
		return nil, errors.Join(fmt.Errorf("open lab: %w", err), l.Close())
	}
	return l, nil
}

// ErrNotRoot is returned where root is needed and absent.
var ErrNotRoot = errors.New("network namespaces need root")

func (l *Lab) build(c Config) error {
	if err := os.Mkdir(l.Dir, 0o700); err != nil {
		return err
	}
	registerForSignal(l, l.Close)
	var err error
	// Before there is anything to leave behind.
	if l.watchdog, err = startWatchdog(watchdogJob{Lab: &labRemains{Name: l.Name, Dir: l.Dir}}, nil); err != nil {
		return err
	}
	for _, dir := range []string{l.BPFFS, l.RunDir} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	if err := unix.Mount("bpf", l.BPFFS, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpf file system on %s: %w", l.BPFFS, err)
	}
	if l.Node, err = l.AddNS("node"); err != nil {
		return err
	}
	if l.Client, err = l.AddNS("client"); err != nil {
		return err
	}
	return l.wire(c)
}

// AddNS makes one more network namespace, empty but for its loopback: a pod for cnitool, or a router of
// one's own. role becomes part of its name.
func (l *Lab) AddNS(role string) (*NS, error) {
	ns, err := newNS(l.Name + "-" + role)
	if err != nil {
		return nil, err
	}
	ns.lab = l
	return ns, nil
}

// Defer has fn called by Close, before those that were given earlier.
func (l *Lab) Defer(fn func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cleanups = append(l.cleanups, fn)
}

// Close ends everything that runs in the lab and removes all it made. It may be called any number of times,
// also on a lab half built.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.closeErr
	}
	l.closed = true
	var errs []error
	for i := len(l.cleanups) - 1; i >= 0; i-- {
		errs = append(errs, l.cleanups[i]())
	}
	errs = append(errs, (&labRemains{Name: l.Name, Dir: l.Dir}).remove())
	if l.watchdog != nil {
		errs = append(errs, l.watchdog.dismiss())
	}
	unshareTable()
	unregisterForSignal(l)
	if err := errors.Join(errs...); err != nil {
		l.closeErr = fmt.Errorf("close lab %s: %w", l.Name, err)
	}
	return l.closeErr
}

// TB is the part of testing.TB that New needs; main programs that use this package need not link testing.
type TB interface {
	Helper()
	Cleanup(func())
	Skip(...any)
	Fatal(...any)
	Error(...any)
}

// New opens a lab for a test and closes it with the test. Without root the test is skipped.
func New(t TB, c Config) *Lab {
	t.Helper()
	l, err := Open(c)
	if errors.Is(err, ErrNotRoot) {
		t.Skip("needs root")
	}
	if err != nil {
		t.Fatal(err)
	}
	CloseOnSignal()
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}
