// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// A watchdog is a child that puts things right after its parent has gone, however it went: this program once
// more, in a session of its own (so that neither ^C nor a kill of the process group reaches it), which waits
// on a pipe that only the parent holds.
type watchdog struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// watchdogJob is what there is to do. The job's parts do nothing if they were done before.
type watchdogJob struct {
	Lab       *labRemains      `json:",omitempty"`
	Conntrack *conntrackRecord `json:",omitempty"`
}

func (j watchdogJob) do() error {
	switch {
	case j.Lab != nil:
		return j.Lab.remove()
	case j.Conntrack != nil:
		return j.Conntrack.restore()
	}
	return errors.New("no job")
}

const watchdogEnv = "UNTRACKED_LAB_WATCHDOG"

// dismissal is what the parent writes if all was done already.
const dismissal = "x"

func init() {
	if encoded, ok := os.LookupEnv(watchdogEnv); ok {
		os.Exit(runWatchdog(encoded))
	}
}

func runWatchdog(encoded string) int {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	var job watchdogJob
	if err := json.Unmarshal([]byte(encoded), &job); err != nil {
		return 2
	}
	said, _ := io.ReadAll(os.Stdin)
	if string(said) == dismissal {
		return 0
	}
	// Twice, for what the dying parent still held the first time.
	if job.do() != nil {
		time.Sleep(time.Second)
		if job.do() != nil {
			return 1
		}
	}
	return 0
}

// startWatchdog returns when the watchdog watches. It inherits keep, whose locks thus outlive this process.
func startWatchdog(job watchdogJob, keep []*os.File) (*watchdog, error) {
	encoded, err := json.Marshal(job)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{watchdogEnv + "=" + string(encoded)}
	cmd.Dir = "/"
	cmd.ExtraFiles = keep
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start watchdog: %w", err)
	}
	return &watchdog{cmd: cmd, pipe: pipe}, nil
}

// dismiss ends the watchdog without its doing anything.
func (w *watchdog) dismiss() error {
	_, err := io.WriteString(w.pipe, dismissal)
	return errors.Join(err, w.release())
}

// release has the watchdog do its job now, and waits for it.
func (w *watchdog) release() error {
	w.pipe.Close()
	if err := w.cmd.Wait(); err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	return nil
}
