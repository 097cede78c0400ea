// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// page is what the viewer reads: sentences, commands, files and tables; on a terminal also a line that moves
// while something takes its time.
type page struct {
	out      io.Writer
	terminal bool
	steps    int
}

func newPage(out *os.File) *page {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &page{out: out, terminal: err == nil}
}

// step begins a numbered part.
func (p *page) step(format string, args ...any) {
	p.steps++
	fmt.Fprintf(p.out, "\n%d. %s\n", p.steps, fmt.Sprintf(format, args...))
}

func (p *page) say(format string, args ...any) {
	fmt.Fprintf(p.out, format+"\n", args...)
}

// show prints text indented, as it is.
func (p *page) show(text string) {
	fmt.Fprintln(p.out)
	for line := range strings.Lines(text) {
		fmt.Fprintln(p.out, strings.TrimRight("    "+line, " \n"))
	}
	fmt.Fprintln(p.out)
}

// command prints a command line.
func (p *page) command(line string) { fmt.Fprintln(p.out, "   $", line) }

// table prints rows under a heading, the first column to the left, the others to the right.
func (p *page) table(rows ...[]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	fmt.Fprintln(p.out)
	for n, row := range rows {
		line := "   "
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				line += cell + pad
			} else {
				line += "   " + pad + cell
			}
		}
		fmt.Fprintln(p.out, strings.TrimRight(line, " "))
		if n == 0 {
			total := 3 * (len(widths) - 1)
			for _, w := range widths {
				total += w
			}
			fmt.Fprintln(p.out, "   "+strings.Repeat("-", total))
		}
	}
	fmt.Fprintln(p.out)
}

// progress shows on a terminal what is going on, until the function it returns is called; count, if given,
// says how far it is.
func (p *page) progress(what string, count func() string) (done func()) {
	if !p.terminal {
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		begin := time.Now()
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		width := 0
		for {
			line := fmt.Sprintf("   … %s, %.1f s", what, time.Since(begin).Seconds())
			if count != nil {
				line += ", " + count()
			}
			fmt.Fprintf(p.out, "\r%-*s", width, line)
			width = utf8.RuneCountInString(line)
			select {
			case <-ticker.C:
			case <-stop:
				fmt.Fprintf(p.out, "\r%*s\r", width, "")
				return
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
	}
}

// thousands writes 1234567 as 1,234,567.
func thousands[T int | uint64 | float64](v T) string {
	digits := fmt.Sprintf("%.0f", float64(v))
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
