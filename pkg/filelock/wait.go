// SPDX-License-Identifier: Apache-2.0

package filelock

import (
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// wait is for the lock on a file. It is one in the kernel, and in a goroutine of its own because there is no deadline
// there: a hundred callers that asked again and again would leave the one that works no processor.
type wait struct {
	path string
	file *os.File
	got  chan error
	// givenUp says that nobody is to have the lock when it comes.
	givenUp bool
}

// Those who gave up leave their wait behind, which takes a thread, as nothing ends it but the lock. The next caller takes
// it over: a process that runs for months would run out of threads beside a holder that hangs.
var (
	mu   sync.Mutex
	left = map[string]*wait{} // by path
)

// begin begins a wait, or goes on with one that was left.
func begin(path string) (*wait, error) {
	mu.Lock()
	defer mu.Unlock()
	if w := left[path]; w != nil && IsStillAt(w.file, path) {
		delete(left, path)
		w.givenUp = false
		return w, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	w := &wait{path: path, file: f, got: make(chan error, 1)}
	fd := int(f.Fd())
	go func() {
		for {
			if err := unix.Flock(fd, unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
				w.done(err)
				return
			}
		}
	}()
	return w, nil
}

// done hands over the lock, or drops it if nobody wants it any more.
func (w *wait) done(err error) {
	mu.Lock()
	defer mu.Unlock()
	if !w.givenUp {
		w.got <- err
		return
	}
	w.file.Close()
	if left[w.path] == w {
		delete(left, w.path)
	}
}

// end waits until there is the lock, or returns ErrLocked.
func (w *wait) end(ctx context.Context) error {
	select {
	case err := <-w.got:
		return err
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	select {
	case err := <-w.got:
		return err // at the last moment
	default:
	}
	w.givenUp = true
	left[w.path] = w
	return ErrLocked
}
