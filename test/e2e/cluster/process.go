// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a server on the machine. Its output goes to a file of the lab's directory.
type Process struct {
	Name string

	m       *Machine
	command func() *Cmd
	cmd     *Cmd
	log     string
	done    chan struct{} // closed when it has ended
}

// startProcess starts a server. command makes its command line, again for each Restart.
func (m *Machine) startProcess(name string, command func() *Cmd) *Process {
	m.t.Helper()
	p := &Process{Name: name, m: m, command: command, log: filepath.Join(m.Lab.Dir, name+".log")}
	m.processes = append(m.processes, p)
	p.Start()
	return p
}

// Start starts it again after Stop or Kill.
func (p *Process) Start() {
	p.m.t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.m.t.Fatal(err)
	}
	defer log.Close()
	cmd := p.command()
	cmd.Stdout, cmd.Stderr = log, log
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	if err := cmd.Start(); err != nil {
		close(done)
		p.m.t.Fatalf("start %s: %v", p.Name, err)
	}
	go func() {
		cmd.Wait()
		close(done)
	}()
}

// Stop asks it to end, as systemd would, and waits.
func (p *Process) Stop() {
	p.m.t.Helper()
	p.end(unix.SIGTERM)
}

// Kill ends it at once.
func (p *Process) Kill() {
	p.m.t.Helper()
	p.end(unix.SIGKILL)
}

func (p *Process) end(s unix.Signal) {
	p.m.t.Helper()
	p.cmd.Process.Signal(s)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.m.t.Fatalf("%s does not end within %v after %v", p.Name, patience, s)
	}
}

// errEnded is an error that no waiting cures.
var errEnded = errors.New("the server has ended")

// orEnded is err, or why it will stay.
func (p *Process) orEnded(err error) error {
	select {
	case <-p.done:
		return fmt.Errorf("%w: %s", errEnded, p.Name)
	default:
		return err
	}
}

// Log is all that it has written.
func (p *Process) Log() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// logTail is how many lines of each log are printed with a failed test.
const logTail = 10

func (m *Machine) printLogs() {
	for _, p := range m.processes {
		lines := strings.Split(strings.TrimSpace(p.Log()), "\n")
		m.t.Logf("end of the log of %s:\n%s", p.Name, strings.Join(lines[max(0, len(lines)-logTail):], "\n"))
	}
}

// patience bounds every wait for something that must come. Kubelet's slowest habit is once a minute.
const patience = 3 * time.Minute

// Await waits until ok returns nil; its last error says what is amiss.
func (m *Machine) Await(what string, ok func() error) {
	m.t.Helper()
	if err := m.await(ok); err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
}

func (m *Machine) await(ok func() error) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := ok()
		if err == nil {
			return nil
		}
		if errors.Is(err, errEnded) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("still not after %v: %w", patience, err)
		}
	}
}
