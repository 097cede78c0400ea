// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is far more than what is waited for takes.
const patience = 20 * time.Second

// terminal is a pseudoterminal of 40 columns, and collects what is written to it.
type terminal struct {
	*os.File
	mu   sync.Mutex
	text []byte
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	t.Setenv("TERM", "xterm")
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudoterminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: 40}); err != nil {
		t.Fatal(err)
	}
	s := &terminal{File: slave}
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := master.Read(buffer)
			s.mu.Lock()
			s.text = append(s.text, buffer[:n]...)
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *terminal) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.text)
}

// wait waits for a text to appear.
func (s *terminal) wait(t *testing.T, text string) {
	t.Helper()
	s.waitUntil(t, text, func(all string) bool { return strings.Contains(all, text) })
}

func (s *terminal) waitUntil(t *testing.T, what string, seen func(text string) bool) {
	t.Helper()
	for start := time.Now(); !seen(s.String()); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > patience {
			t.Errorf("not seen: %s; but %q", what, s)
			return
		}
	}
}

// left is what a reader sees in the end, when a text that is written now is there, too.
func (s *terminal) left(t *testing.T) string {
	t.Helper()
	const last = "the end"
	fmt.Fprint(s.File, last)
	s.wait(t, last)
	text := strings.TrimSuffix(s.String(), last)
	if erased := strings.LastIndex(text, toStart); erased >= 0 {
		text = text[erased+len(toStart):]
	}
	return text
}

func TestProgress(t *testing.T) {
	s := newTerminal(t)
	p := newProgress(s.File, slog.LevelInfo)
	p.show("the first step, which is over by the time")
	p.show("reading /etc/untracked/" + strings.Repeat("long/", 20) + "list")
	const long = "ong/list … " // of more than a line only the end is shown
	s.wait(t, long)
	s.waitUntil(t, "a second time", func(text string) bool { return strings.Count(text, long) > 1 })
	p.show("compiling")
	s.wait(t, toStart+"compiling … ")
	p.end()
	p.end()
	p.show("nothing")
	if left := s.left(t); left != "" || strings.Contains(s.String(), "nothing") || strings.Contains(s.String(), "first step") {
		t.Errorf("%q is left of %q", left, s)
	}
	for line := range strings.SplitSeq(s.String(), toStart) {
		if len([]rune(strings.TrimSuffix(line, "the end"))) >= 40 {
			t.Errorf("%q does not fit into a line of 40", line)
		}
	}
}

// What is over in a moment leaves no trace, and where nobody watches, there is none either.
func TestNoProgress(t *testing.T) {
	s := newTerminal(t)
	p := newProgress(s.File, slog.LevelInfo)
	p.show("compiling")
	p.end()
	if s.left(t); s.String() != "the end" {
		t.Errorf("a moment's work: %q", s)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	for name, p := range map[string]*progress{
		"a pipe":            newProgress(write, slog.LevelInfo),
		"a buffer":          newProgress(new(bytes.Buffer), slog.LevelInfo),
		"a log of it all":   newProgress(s.File, slog.LevelDebug),
		"a dumb terminal":   func() *progress { t.Setenv("TERM", "dumb"); return newProgress(s.File, slog.LevelInfo) }(),
		"no file of stderr": newProgress(nil, slog.LevelInfo),
	} {
		if p != nil {
			t.Errorf("%s: there is progress", name)
		}
	}
}

// lint waits for its standard input, apply for a caller that has the lock: as long as it takes to see that they say so.
func TestCommandsShowProgress(t *testing.T) {
	t.Run("lint", func(t *testing.T) {
		s := newTerminal(t)
		stdin, write := io.Pipe()
		go func() {
			s.wait(t, "reading standard input … ")
			io.WriteString(write, "kind: [")
			write.Close()
		}()
		root := newRoot("test")
		root.SetIn(stdin)
		root.SetOut(s.File)
		root.SetErr(s.File)
		root.SetArgs([]string{"lint", "-"})
		if err := root.Execute(); err == nil {
			t.Error("no error")
		}
		if left := s.left(t); !strings.HasPrefix(left, "stdin:1:8: error: not valid YAML") {
			t.Errorf("%q is left of %q", left, s)
		}
	})
	t.Run("apply", func(t *testing.T) {
		s := newTerminal(t)
		dir := t.TempDir()
		list := filepath.Join(dir, "list")
		if err := unix.Mkfifo(list, 0o600); err != nil {
			t.Fatal(err)
		}
		conflist := filepath.Join(dir, "x.conflist")
		text := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{"type":"untracked","annotations":{`+
			`"untracked.cni/run-dir":%q,"untracked.cni/deny-files":%q}}]}`, dir, list)
		if err := os.WriteFile(conflist, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		lock, err := os.Create(filepath.Join(dir, "lock"))
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		go func() {
			s.wait(t, "waiting for the lock … ")
			lock.Close()
		}()
		if code := Run("test", []string{"apply", conflist}, s.File, s.File); code != exitUsage {
			t.Errorf("exit code %d", code)
		}
		if left := s.left(t); !strings.HasPrefix(left, "untracked: ") || !strings.Contains(left, "is not a regular file") {
			t.Errorf("%q is left of %q", left, s)
		}
	})
}
