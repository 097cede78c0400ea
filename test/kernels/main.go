// SPDX-License-Identifier: Apache-2.0

// kernels runs the tests of the datapath on other kernels than this machine's: `make test-kernels`. It needs no root.
//
// Debian's kernels are fetched through apt, with directories of its own, and booted by qemu without KVM from an
// initramfs that has nothing but their modules, static test binaries and the program in ./init. What the product does
// differently from kernel to kernel is thus met for real: no tcx, no fragments in XDP, small maps, older verifiers.
//
// It does not replace `make test`: an emulated machine takes ten to thirty times as long, so it does less of everything.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// options are the command line's.
type options struct {
	only, cache, mirror, run string
	allowNone, verbose       bool
	timeout                  time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.only, "only", "", "comma list of series, such as 5.10,7: no others")
	flag.StringVar(&o.cache, "cache", "", "directory for kernels (default: untracked-kernels in the user's cache directory)")
	flag.StringVar(&o.mirror, "mirror", "http://deb.debian.org", "mirror with debian/ and debian-security/")
	flag.StringVar(&o.run, "run", "", "regular expression for the names of tests, instead of those chosen for emulated machines")
	flag.BoolVar(&o.allowNone, "allow-none", false, "succeed also if no kernel could be had")
	flag.BoolVar(&o.verbose, "v", false, "print the whole console")
	flag.DurationVar(&o.timeout, "timeout", 5*time.Minute, "for one kernel, from power on to power off")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second ^C ends it the hard way
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

// atATime is the number of machines that run side by side, each on a processor of its own.
const atATime = 2

func run(ctx context.Context, o options) error {
	chosen, err := choose(o.only)
	if err != nil {
		return err
	}
	if err := requireTools(); err != nil {
		if o.allowNone {
			fmt.Println("all kernels skipped:", err)
			return nil
		}
		return err
	}
	work, err := os.MkdirTemp("", "untracked-kernels-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if o.cache == "" {
		o.cache = work // unless there is a place that stays
		if user, err := os.UserCacheDir(); err == nil {
			o.cache = filepath.Join(user, "untracked-kernels")
		}
	}
	if o.cache, err = filepath.Abs(o.cache); err != nil {
		return err
	}
	g, err := buildGuest(ctx, work, o.run)
	if err != nil {
		return err
	}

	var wait sync.WaitGroup
	slots := make(chan struct{}, atATime)
	store := &store{dir: o.cache, mirror: o.mirror}
	outcomes := make([]outcome, len(chosen))
	for i, s := range chosen {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			outcomes[i] = o.test(ctx, s, store, g)
			outcomes[i].print(os.Stdout, o.verbose)
		})
	}
	wait.Wait()
	return conclude(outcomes, o.allowNone)
}

// choose returns the series in a comma list, all for an empty one.
func choose(only string) ([]series, error) {
	if only == "" {
		return known, nil
	}
	var out []series
next:
	for name := range strings.SplitSeq(only, ",") {
		for _, s := range known {
			if s.name == name {
				out = append(out, s)
				continue next
			}
		}
		var names []string
		for _, s := range known {
			names = append(names, s.name)
		}
		return nil, fmt.Errorf("-only: no series %q, there are %s", name, strings.Join(names, ", "))
	}
	return out, nil
}

const qemu = "qemu-system-x86_64"

// requireTools returns an error that names what to install.
func requireTools() error {
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin") // where depmod and modprobe are
	var missing []string
	for _, t := range []struct{ tool, pkg string }{
		{qemu, "qemu-system-x86"}, {"apt-get", "apt"}, {"dpkg-deb", "dpkg"}, {"depmod", "kmod"}, {"modprobe", "kmod"},
	} {
		if _, err := exec.LookPath(t.tool); err != nil {
			missing = append(missing, fmt.Sprintf("%s (package %s)", t.tool, t.pkg))
		}
	}
	if missing != nil {
		return fmt.Errorf("not installed: %s", strings.Join(missing, ", "))
	}
	return nil
}

// test fetches, boots and judges one kernel.
func (o *options) test(ctx context.Context, s series, from *store, g *guest) outcome {
	out := outcome{series: s.name}
	k, err := from.fetch(ctx, s)
	if err != nil {
		out.unavailable = err
		return out
	}
	out.release = k.release
	initramfs, err := g.initramfs(k)
	if err != nil {
		out.err = err
		return out
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("still running after %s", o.timeout))
	defer cancel()
	var bootErr error
	out.machineRun, bootErr = boot(ctx, k, initramfs)
	out.tests, err = readTestLog(out.console)
	out.err = errors.Join(bootErr, err, judge(out.console, &out.tests, g.wanted))
	return out
}

func conclude(outcomes []outcome, allowNone bool) error {
	var failed, ran []string
	for _, o := range outcomes {
		if o.err != nil {
			failed = append(failed, o.series)
		}
		if o.unavailable == nil {
			ran = append(ran, o.series)
		}
	}
	switch {
	case failed != nil:
		return fmt.Errorf("failed on %s", strings.Join(failed, ", "))
	case ran == nil && !allowNone:
		return errors.New("no kernel could be had (-allow-none accepts that)")
	}
	return nil
}
