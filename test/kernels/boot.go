// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// commandLine has the kernel not wait for hardware that is not there, not guard against anybody it shares a processor
// with, print warnings, and end the machine in case of trouble.
const commandLine = "console=ttyS0 loglevel=5 rdinit=/init panic=-1 oops=panic nokaslr mitigations=off no_timer_check tsc=reliable random.trust_cpu=on net.ifnames=0"

// machineRun is what came out of a machine's serial port, and what it took: the processor's time is less than the clock's
// where others are at work, too.
type machineRun struct {
	console   []byte
	took, cpu time.Duration
}

// boot runs a kernel with an initramfs until it powers off.
func boot(ctx context.Context, k kernel, initramfs []byte) (r machineRun, err error) {
	image, err := k.image()
	if err != nil {
		return r, err
	}
	file, err := os.CreateTemp("", "untracked-initramfs-")
	if err != nil {
		return r, err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(initramfs)
	if err = errors.Join(err, file.Close()); err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, qemu,
		"-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max,la57=off", "-smp", "1", "-m", "1024",
		"-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", image, "-initrd", file.Name(), "-append", commandLine)
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin := time.Now()
	err = cmd.Run()
	r.took = time.Since(begin)
	if cmd.ProcessState != nil {
		r.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	r.console = bytes.ReplaceAll(stdout.Bytes(), []byte("\r\n"), []byte("\n"))
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w: %s", qemu, err, &stderr)
	}
	return r, nil
}
