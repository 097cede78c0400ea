// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Sandbox identifies the network namespace at a path. It is empty where there is none to be seen, as for a caller
// in another mount namespace.
func Sandbox(netns string) string {
	sandbox, err := sandboxAt(netns)
	if err != nil {
		return ""
	}
	return sandbox
}

func sandboxAt(netns string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(netns, &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x:%x", st.Dev, st.Ino), nil
}

// Vanished returns the records whose network namespace is gone, or has another one in its place, among at most so many:
// where there are more, those that begin at a random one, so that each gets its turn. It opens no file of the others.
func (s *Store) Vanished(atMost int) ([]Record, error) {
	files, err := names(s.sandbox(""))
	if err != nil {
		return nil, err
	}
	if n := len(files); n > atMost {
		first := rand.IntN(n)
		files = append(files[first:], files[:first]...)[:atMost]
	}
	var out []Record
	for _, file := range files {
		link, err := os.Readlink(s.sandbox(file))
		if err != nil {
			continue // removed meanwhile
		}
		sandbox, netns, _ := strings.Cut(link, " ")
		if now, err := sandboxAt(netns); now == sandbox || err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			continue
		}
		r, err := s.read(file)
		if err != nil {
			return nil, err
		}
		if r != nil {
			out = append(out, *r)
		}
	}
	return out, nil
}
