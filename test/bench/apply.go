// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/test/lab"
)

// policyFile is a policy in a file, in two versions that differ all over: to apply one after the other is a change.
type policyFile struct {
	name string
	// annotation is what reads the file.
	annotation string
	write      func(version int) []byte
	goals      []Goal
}

// failsafeRoom is how many rules the failsafe ports may take.
const failsafeRoom = 16

// benchApply times `untracked apply`, from the start of the process to its end, each time with another policy than
// the one in force. The parts are what the process itself logs. A rule that allows has, by auto-return, its mirrored one in
// nftables; one that denies arriving packets has none.
func benchApply(e effort) ([]Row, error) {
	var policies []policyFile
	limits := map[int]float64{1000: 60, 4096: 100} // ms
	for _, action := range []string{"Allow", "Deny"} {
		for _, n := range []int{1000, 4096, 16384} {
			p := policyFile{name: count(n, action+" rule"), annotation: "policy-files"}
			if limit := limits[n]; limit > 0 {
				p.goals = []Goal{atMost(limit)}
			}
			if n == compiler.MaxRules {
				n -= failsafeRoom
			}
			p.write = func(version int) []byte { return rulesYAML(n, action, version) }
			policies = append(policies, p)
		}
	}
	for _, n := range e.sizes(100_000, 1_000_000) {
		var goals []Goal
		if n == 1_000_000 {
			goals = []Goal{atMost(1500)}
		}
		policies = append(policies,
			policyFile{count(n, "CIDR") + " in a deny-file", "deny-files", func(version int) []byte { return plainList(n, version) }, goals},
			policyFile{count(n, "CIDR") + " in a GlobalNetworkSet", "policy-files", func(version int) []byte { return setYAML(n, version) }, goals})
	}
	var subjects []subject
	for _, p := range policies {
		progress("preparing %s", p.name)
		l, err := lab.Open(lab.Config{})
		if err != nil {
			return nil, err
		}
		defer l.Close()
		a, err := newApplier(l, p)
		if err != nil {
			return nil, err
		}
		whole := subject{name: "apply, " + p.name, goals: p.goals}
		var exit *exec.ExitError
		if err := a.apply(); errors.As(err, &exit) {
			subjects = append(subjects, refused(whole.name, err))
			continue
		} else if err != nil {
			return nil, err
		}
		whole.sample = func() (float64, error) {
			err := a.apply()
			return a.total, err
		}
		subjects = append(subjects, whole)
		for i, part := range applyParts {
			subjects = append(subjects, subject{
				name:   whole.name + ": " + part.name,
				sample: func() (float64, error) { return a.parts[i], nil },
			})
		}
	}
	return interleave(subjects, min(e.rounds, 5), "ms", "")
}

type applyPart struct{ name, until string }

// applyParts are told apart by the steps that `apply` logs: each lasts until the one named begins. A table that stays as it
// is makes no step, and takes no time of its own.
var applyParts = []applyPart{
	{"read, plan, compile", "file system"},
	{"tables, programs, attach", "table inet untracked"},
	{"table inet untracked", "conntrack"},
	{"the rest", ""},
}

// applier applies the two versions of a policy in turn.
type applier struct {
	chain   *lab.Chain
	node    *lab.NS
	dir     string
	version int

	total float64 // ms, of the last apply
	parts []float64
}

func newApplier(l *lab.Lab, p policyFile) (*applier, error) {
	a := &applier{node: l.Node, dir: l.Dir, parts: make([]float64, len(applyParts))}
	for version := range 2 {
		if err := os.WriteFile(a.file(version), p.write(version), 0o600); err != nil {
			return nil, err
		}
	}
	var err error
	a.chain, err = l.Chain(lab.ChainConfig{Annotations: map[string]string{
		p.annotation: filepath.Join(a.dir, "policy.yaml"), "log-level": "debug",
	}})
	return a, err
}

func (a *applier) file(version int) string {
	return filepath.Join(a.dir, fmt.Sprintf("version%d.yaml", version))
}

var stepPattern = regexp.MustCompile(`^time=(\S+) .*msg=apply step="?([^"\n]*)"?`)

// apply puts the other version in force.
func (a *applier) apply() error {
	a.version ^= 1
	path := filepath.Join(a.dir, "policy.yaml")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Link(a.file(a.version), path); err != nil {
		return err
	}
	cmd := lab.Command(a.node, filepath.Join(a.chain.Bin, "untracked"), "apply", a.chain.File)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	begin := time.Now()
	err := cmd.Run()
	end := time.Now()
	if err != nil {
		return fmt.Errorf("%w: %s", err, lastLine(stderr.String()))
	}
	a.total = milliseconds(end.Sub(begin))
	clear(a.parts)
	at, part := begin, 0
	for line := range strings.Lines(stderr.String()) {
		m := stepPattern.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		begun := slices.IndexFunc(applyParts[part:], func(p applyPart) bool { return p.until == m[2] })
		if begun < 0 {
			continue
		}
		t, err := time.Parse(time.RFC3339Nano, m[1])
		if err != nil {
			return fmt.Errorf("log of apply: %w", err)
		}
		a.parts[part] = milliseconds(t.Sub(at))
		at, part = t, part+begun+1
	}
	if part == 0 {
		return fmt.Errorf("log of apply: no step in %q", stderr.String())
	}
	part = len(applyParts) - 1
	a.parts[part] = milliseconds(end.Sub(at))
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// rulesYAML is policies about TCP from n networks to a port each. One policy has no more than 1024 rules.
func rulesYAML(n int, action string, version int) []byte {
	var b bytes.Buffer
	for i, p := range distinctNets(seeded(10+uint64(version), n), n, 4) {
		if i%1000 == 0 {
			policyHeader(&b, fmt.Sprintf("rules-%02d", i/1000))
			fmt.Fprintf(&b, "  ingress:\n")
		}
		fmt.Fprintf(&b, "  - {action: %s, protocol: TCP, source: {nets: [%s]}, destination: {ports: [%d]}}\n", action, p, firstPort+i)
	}
	return b.Bytes()
}

// setYAML is a GlobalNetworkSet of n networks with a policy that drops what comes from there.
func setYAML(n, version int) []byte {
	var b bytes.Buffer
	policyHeader(&b, "blocklist")
	fmt.Fprintf(&b, "  ingress:\n  - {action: Deny, source: {selector: list == \"bad\"}}\n---\n")
	fmt.Fprintf(&b, "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata:\n  name: bad\n  labels:\n    list: bad\nspec:\n  nets:\n")
	for _, p := range versionOf(n, version) {
		fmt.Fprintf(&b, "  - %s\n", p)
	}
	return b.Bytes()
}

func policyHeader(b *bytes.Buffer, name string) {
	fmt.Fprintf(b, "---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata:\n  name: %s\nspec:\n", name)
	fmt.Fprintf(b, "  selector: all()\n  doNotTrack: true\n  applyOnForward: true\n  types: [Ingress]\n")
}

// plainList has an address or a CIDR a line.
func plainList(n, version int) []byte {
	var b []byte
	for _, p := range versionOf(n, version) {
		if p.IsSingleIP() {
			b = p.Addr().AppendTo(b)
		} else {
			b = p.AppendTo(b)
		}
		b = append(b, '\n')
	}
	return b
}

// versionOf is n networks, all of them others in another version.
func versionOf(n, version int) []netip.Prefix { return randomNets(n+version, 4)[:n] }
