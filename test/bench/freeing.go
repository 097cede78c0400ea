// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/untracked-cni/untracked/test/lab"
)

// benchFreeing measures what the kernel's own threads do when a large policy goes: they free it, behind everybody's back.
func benchFreeing(e effort) ([]Row, error) {
	sizes := e.sizes(100_000, 1_000_000)
	n := sizes[len(sizes)-1]
	l, err := lab.Open(lab.Config{})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	large := filepath.Join(l.Dir, "deny.txt")
	if err := os.WriteFile(large, plainList(n, 0), 0o600); err != nil {
		return nil, err
	}
	chain, err := l.Chain(lab.ChainConfig{Annotations: map[string]string{"ports": "tcp/6379"}})
	if err != nil {
		return nil, err
	}
	apply := func(annotations map[string]string) error {
		if err := chain.Rewrite(lab.ChainConfig{Annotations: annotations}); err != nil {
			return err
		}
		out, err := lab.Command(l.Node, filepath.Join(chain.Bin, "untracked"), "apply", chain.File).CombinedOutput()
		if err != nil {
			return fmt.Errorf("apply: %w: %s", err, out)
		}
		return nil
	}
	one := func() error { return apply(map[string]string{"ports": "tcp/6379"}) }
	other := func() error { return apply(map[string]string{"ports": "tcp/6380"}) }
	many := func() error { return apply(map[string]string{"deny-files": large}) }
	trie := func() (func() error, error) {
		s := denyShape("", randomNets(n, 4))
		_, maps, err := lpmPeer.spec(s)
		return func() error { closeMaps(maps); return nil }, err
	}

	// busiest is the most that one kernel thread works while what prepare returns is done, and in the time after it.
	busiest := func(prepare func() (func() error, error)) func() (float64, error) {
		return func() (float64, error) {
			act, err := prepare()
			if err != nil {
				return 0, err
			}
			time.Sleep(time.Second)
			before, err := kernelThreads()
			if err != nil {
				return 0, err
			}
			if err := act(); err != nil {
				return 0, err
			}
			time.Sleep(2 * time.Second)
			after, err := kernelThreads()
			if err != nil {
				return 0, err
			}
			most := time.Duration(0)
			for id, t := range after {
				most = max(most, t-before[id])
			}
			return milliseconds(most), nil
		}
	}
	what := count(n, "CIDR")
	return interleave([]subject{
		{
			name:   "busiest kernel thread, from one rule to another",
			sample: busiest(func() (func() error, error) { return other, one() }),
		},
		{
			name:   "busiest kernel thread, from " + what + " to one rule",
			sample: busiest(func() (func() error, error) { return one, many() }),
			goals:  []Goal{atMost(50)},
		},
		{name: "busiest kernel thread, freeing an LPM trie of " + what, sample: busiest(trie)},
	}, min(e.rounds, 3), "ms", "")
}

// kernelThreads is the CPU time that each of them has used so far, by thread ID.
func kernelThreads() (map[int]time.Duration, error) {
	const isKernelThread = 0x00200000 // PF_KTHREAD
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	times := map[int]time.Duration{}
	for _, dir := range dirs {
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue // it has ended
		}
		// The name, in parentheses, may hold anything.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		flags, err := strconv.ParseUint(fields[6], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read %s/stat: %w", dir, err)
		}
		if flags&isKernelThread == 0 {
			continue
		}
		schedstat, err := os.ReadFile(filepath.Join(dir, "schedstat"))
		if errors.Is(err, os.ErrNotExist) || len(schedstat) == 0 {
			continue
		}
		ns, err := strconv.ParseInt(strings.Fields(string(schedstat))[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read %s/schedstat: %w", dir, err)
		}
		id, _ := strconv.Atoi(filepath.Base(dir))
		times[id] = time.Duration(ns)
	}
	if len(times) == 0 {
		return nil, errors.New("no kernel thread tells its CPU time in /proc: a kernel with CONFIG_SCHED_INFO is needed, and no PID namespace")
	}
	return times, nil
}
