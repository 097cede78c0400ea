// SPDX-License-Identifier: Apache-2.0

// The demo shows on this machine's kernel what untracked does: a node serves short-lived connections before
// and after one entry in its conflist, with the same traffic. It needs root, touches nothing outside network
// namespaces of its own but nf_conntrack_max for a few seconds, and cleans up however it ends.
//
// Whatever it claims is checked: the exit status is not 0 if something shown turned out false.
package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/untracked-cni/untracked/test/lab"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "usage: make demo    (or, as root: go run ./test/demo)\n\nThe demo takes no arguments.")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: run it as root, `sudo make demo`; it works in namespaces of its own and cleans up", lab.ErrNotRoot)
	}
	lab.CloseOnSignal()
	p := newPage(os.Stdout)

	p.say("untracked demo: one service leaves connection tracking, by one conflist entry.")
	building := p.progress("building untracked, cnitool, bridge and host-local", nil)
	begin := time.Now()
	_, err = lab.Build("untracked", "cnitool", "bridge", "host-local")
	building()
	if err != nil {
		return err
	}
	p.say("Built untracked, cnitool, bridge and host-local in %.1f s.", time.Since(begin).Seconds())

	l, err := lab.Open(lab.Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	d := &demo{page: p, lab: l, begin: time.Now()}
	for _, step := range []func() error{
		d.stage, d.before, d.fillBefore, d.switchOn, d.after, d.race, d.fillAfter, d.deny, d.look, d.leave,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if err := l.Close(); err != nil {
		return err
	}
	return d.conclude()
}
