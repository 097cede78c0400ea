// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// progressDelay is how long work may take in silence.
	progressDelay = time.Second
	// toStart goes back to the start of a terminal's line and erases it.
	toStart = "\r\033[K"
)

// progress is a line on a terminal that says what is being done, and for how long. It appears when work takes longer
// than a moment, and goes away at the end. A nil progress shows nothing.
type progress struct {
	terminal *os.File
	start    time.Time

	mu    sync.Mutex
	step  string
	shown bool
	tick  *time.Timer // nil once the work is done
}

// newProgress returns nil where no operator watches, or reads a log of the same steps.
func newProgress(w io.Writer, level slog.Level) *progress {
	if !isTerminal(w) || os.Getenv("TERM") == "dumb" || level <= slog.LevelDebug {
		return nil
	}
	p := &progress{terminal: w.(*os.File), start: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tick = time.AfterFunc(progressDelay, p.draw)
	return p
}

// show says what is being done from now on.
func (p *progress) show(step string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.step = step
	shown := p.shown
	p.mu.Unlock()
	if shown {
		p.draw()
	}
}

// draw writes the line anew, and once more in a second.
func (p *progress) draw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tick == nil {
		return
	}
	if p.step != "" {
		p.shown = true
		line := fmt.Sprintf("%s … %.0f s", p.step, time.Since(p.start).Seconds())
		fmt.Fprint(p.terminal, toStart+fitting(p.terminal, line))
	}
	p.tick.Reset(time.Second)
}

// end erases the line. It may be called more than once.
func (p *progress) end() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tick != nil {
		p.tick.Stop()
	}
	if p.tick != nil && p.shown {
		fmt.Fprint(p.terminal, toStart)
	}
	p.tick = nil
}

// fitting is as much of the end of a line as fits into one of the terminal: of two, only one would be erased.
func fitting(terminal *os.File, line string) string {
	columns := 80
	if size, err := unix.IoctlGetWinsize(int(terminal.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
		columns = int(size.Col)
	}
	letters := []rune(line)
	if len(letters) < columns {
		return line
	}
	return "…" + string(letters[len(letters)-max(columns-2, 0):])
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
