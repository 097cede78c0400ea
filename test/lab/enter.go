// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"os"
	"runtime"

	"github.com/vishvananda/netns"
)

// Enter puts a test's goroutine into a new network namespace, with nothing in it, that vanishes with the test. Subtests
// run on other threads, and are not in it. Without root the test is skipped.
func Enter(t TB) netns.NsHandle {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace of its own")
	}
	runtime.LockOSThread()
	host, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A thread that cannot go back stays locked, and ends with the goroutine.
		if err := netns.Set(host); err == nil {
			runtime.UnlockOSThread()
		}
		ns.Close()
		host.Close()
	})
	return ns
}
