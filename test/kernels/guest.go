// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// testSet is a package whose tests run in the guest: those whose names begin so (or, with a $, are so), with these flags.
type testSet struct {
	pkg   string
	tests []string
	flags []string
}

// testSets ask the kernel questions. Tests that expect tcx are not among them.
var testSets = []testSet{
	{"pkg/datapath", []string{
		"TestFeatures", "TestStacks", "TestClsact$",
		"TestDifferential", "TestLargeSets", "TestLargestLists", "TestLayout", "TestFixtures", "TestActions",
		"TestMapsOfPrograms", "TestEventPackets", "TestTracerLayer3", "TestTracerFarHeaders",
	}, []string{"-datapath.percent=3", "-test.skip=^TestClsact$/^generic$"}},
	{"pkg/nft", []string{"TestDifferential", "TestApply", "TestPodsComeAndGo", "TestPodsPackets"}, []string{"-nft.lists=15"}},
}

// pattern is for -test.run.
func (s *testSet) pattern() string { return "^(" + strings.Join(s.tests, "|") + ")" }

// modules are those for veth, bonds and VLANs, tc and nftables. One that a kernel has built in, or as part of another,
// is no error here: the tests show whether it is there.
var modules = []string{
	"veth", "dummy", "bonding", "8021q", "tun",
	"sch_ingress", "cls_bpf",
	"nf_tables", "nft_counter", "nft_objref", "nft_ct", "nft_fib_inet", "nft_log", "nft_limit", "nft_socket",
	"nf_conntrack", "nf_conntrack_netlink", "nfnetlink_log",
}

// guest is what is the same for all kernels.
type guest struct {
	init  []byte
	tests []testBinary
	// wanted are the names in testSets, where they chose the tests.
	wanted []string
}

type testBinary struct {
	name string
	args []string
	data []byte
}

// buildGuest builds what runs in the guest. only, if not empty, chooses the tests by a regular expression.
func buildGuest(ctx context.Context, work, only string) (*guest, error) {
	const module = "github.com/untracked-cni/untracked/"
	build := func(name, pkg string, command ...string) ([]byte, error) {
		file := filepath.Join(work, name)
		cmd := exec.CommandContext(ctx, "go", append(command, "-buildvcs=false", "-ldflags=-s -w", "-o", file, module+pkg)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
		return os.ReadFile(file)
	}
	var g guest
	var err error
	if g.init, err = build("init", "test/kernels/init", "build"); err != nil {
		return nil, err
	}
	for _, s := range testSets {
		b := testBinary{name: path.Base(s.pkg) + ".test"}
		b.args = append([]string{"-test.v=test2json", "-test.run=" + cmp.Or(only, s.pattern())}, s.flags...)
		if b.data, err = build(b.name, s.pkg, "test", "-c"); err != nil {
			return nil, err
		}
		g.tests = append(g.tests, b)
		if only == "" {
			g.wanted = append(g.wanted, s.tests...)
		}
	}
	return &g, nil
}

// initramfs is the guest with a kernel's modules. What init is to do is in two files, as ./init tells.
func (g *guest) initramfs(k kernel) ([]byte, error) {
	a := newArchive()
	a.add("init", g.init)
	var loads, tests strings.Builder
	for _, m := range modules {
		files, err := k.dependencies(m)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			name := "modules/" + filepath.Base(file)
			if a.has(name) {
				continue
			}
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			a.add(name, data)
			fmt.Fprintln(&loads, "/"+name)
		}
	}
	for _, t := range g.tests {
		a.add(t.name, t.data)
		fmt.Fprintln(&tests, strings.Join(append([]string{"/" + t.name}, t.args...), "\t"))
	}
	a.add("modules.list", []byte(loads.String()))
	a.add("tests.list", []byte(tests.String()))
	return a.close(), nil
}

// dependencies are the files of a module and of those it needs, in the order to load them.
func (k kernel) dependencies(module string) (files []string, err error) {
	cmd := exec.Command("modprobe", "--dirname", k.dir, "--set-version", k.release, "--show-depends", module)
	out, err := cmd.Output()
	if err != nil {
		if errors.As(err, new(*exec.ExitError)) {
			return nil, nil // no such module
		}
		return nil, fmt.Errorf("find module %s: %w", module, err)
	}
	for line := range strings.Lines(string(out)) {
		// "insmod PATH [PARAMETERS]", or "builtin NAME"
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == "insmod" {
			files = append(files, fields[1])
		}
	}
	return files, nil
}
