// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const netnsDir = "/run/netns"

// NS is a named network namespace.
type NS struct {
	Name string
	// Path is where the namespace is pinned, for cnitool and CNI_NETNS.
	Path string

	lab *Lab // nil when it belongs to none
}

// sysctls make a namespace that behaves the same on every machine and answers at once.
var sysctls = map[string]string{
	"net/ipv6/conf/all/disable_ipv6":     "0",
	"net/ipv6/conf/default/disable_ipv6": "0",
	// An address is usable the moment it is set.
	"net/ipv6/conf/all/accept_dad":     "0",
	"net/ipv6/conf/default/accept_dad": "0",
	"net/ipv6/conf/default/accept_ra":  "0",
	// Tests send from made-up sources.
	"net/ipv4/conf/all/rp_filter":     "0",
	"net/ipv4/conf/default/rp_filter": "0",
	// Path-MTU tests count on every error being sent.
	"net/ipv4/icmp_ratelimit": "0",
	// Many source ports, and none of them a default failsafe port (the highest is 10250), which would keep
	// a flow tracked now and then.
	"net/ipv4/ip_local_port_range": "11000 65535",
}

// newNS makes a namespace and pins it under /run/netns.
func newNS(name string) (ns *NS, err error) {
	ns = &NS{Name: name, Path: filepath.Join(netnsDir, name)}
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return nil, fmt.Errorf("make netns %s: %w", name, err)
	}
	pin, err := os.OpenFile(ns.Path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, fmt.Errorf("make netns %s: %w", name, err)
	}
	pin.Close()
	err = away(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", ns.Path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin: %w", err)
		}
		for key, value := range sysctls {
			if err := writeSysctl(key, value); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		unix.Unmount(ns.Path, unix.MNT_DETACH)
		os.Remove(ns.Path)
		return nil, fmt.Errorf("make netns %s: %w", name, err)
	}
	return ns, nil
}

// In calls fn on a thread that is inside ns; the thread is back home when In returns, also when fn panics or
// ends its goroutine. Goroutines that fn starts are not inside. Sockets belong for good to the namespace they
// were made in, so only their making needs In.
func In(ns *NS, fn func() error) error {
	return away(func() error {
		fd, err := unix.Open(ns.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("enter netns %s: %w", ns.Name, err)
		}
		err = unix.Setns(fd, unix.CLONE_NEWNET)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("enter netns %s: %w", ns.Name, err)
		}
		return fn()
	})
}

// away calls fn, which may change the thread's network namespace, and goes back to the one it came from.
func away(fn func() error) (err error) {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open this thread's netns: %w", err)
	}
	defer func() {
		back := unix.Setns(home, unix.CLONE_NEWNET)
		unix.Close(home)
		if back != nil {
			// Still locked: the runtime ends the thread with its goroutine, and nobody else runs on it.
			err = errors.Join(err, fmt.Errorf("go back to the netns this thread came from: %w", back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return fn()
}

// SetSysctl sets a key below /proc/sys, such as net/ipv4/ip_forward, in ns.
func SetSysctl(ns *NS, key, value string) error {
	return In(ns, func() error { return writeSysctl(key, value) })
}

func writeSysctl(key, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s: %w", key, err)
	}
	return nil
}
