// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"
	"github.com/google/nftables"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/test/e2e/cluster"
	"github.com/untracked-cni/untracked/test/lab"
)

// remains counts what pods could leave on a node.
type remains struct {
	// Ours. Maps and Programs are those that pins and hooks lead to; Records are files of the run directory.
	Pins, Maps, Programs, Records int
	// Of the tables whose names begin with untracked.
	Rules, Sets, Elements, Objects int
	// The main plugin's and the runtime's.
	Namespaces, Veths, Addresses, Results int
}

func (r remains) String() string {
	return fmt.Sprintf("pins %d, maps %d, programs %d, records %d; nft rules %d, sets %d, elements %d, objects %d; netns %d, veths %d, addresses %d, results %d",
		r.Pins, r.Maps, r.Programs, r.Records, r.Rules, r.Sets, r.Elements, r.Objects, r.Namespaces, r.Veths, r.Addresses, r.Results)
}

// remains counts them now.
func (n *e2eNode) remains() (r remains) {
	n.Helper()
	maps, programs := map[ebpf.MapID]bool{}, map[ebpf.ProgramID]bool{}
	hooks := must(lab.ReadHooks(n.Lab.Node, "eth0"))(n)
	for _, id := range append(append(hooks.TCXIngress, hooks.TCXEgress...), hooks.XDP) {
		if id != 0 {
			programs[ebpf.ProgramID(id)] = true
		}
	}
	bpffs := n.Path(config.DefaultBPFFS)
	check(n, filepath.WalkDir(bpffs, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(d.Name(), ".debug") { // the kernel's own (CONFIG_BPF_PRELOAD)
			return err
		}
		r.Pins++
		return pinned(path, maps, programs)
	}))
	for id := range programs {
		check(n, mapsOf(id, maps))
	}
	check(n, lab.In(n.Lab.Node, r.countTables))
	r.Maps, r.Programs = len(maps), len(programs)
	for _, name := range must(lab.Links(n.Lab.Node))(n) {
		if strings.HasPrefix(name, "veth") {
			r.Veths++
		}
	}
	r.Records = len(n.files(config.DefaultRunDir))
	r.Namespaces = len(n.files("/run/netns"))
	r.Results = len(n.files("/var/lib/cni/results"))
	for _, name := range n.files("/var/lib/cni/networks/" + cluster.Network) {
		if _, err := netip.ParseAddr(name); err == nil {
			r.Addresses++
		}
	}
	return r
}

// files names the files in a directory of the machine and below.
func (n *e2eNode) files(dir string) (names []string) {
	n.Helper()
	check(n, filepath.WalkDir(n.Path(dir), func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !d.IsDir() {
			names = append(names, d.Name())
		}
		return err
	}))
	return names
}

// mapsOf adds the maps of a program.
func mapsOf(id ebpf.ProgramID, maps map[ebpf.MapID]bool) error {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return err
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		maps[id] = true
	}
	return nil
}

// pinned adds what a pin holds.
func pinned(path string, maps map[ebpf.MapID]bool, programs map[ebpf.ProgramID]bool) error {
	object, err := pin.Load(path, nil)
	if err != nil {
		return fmt.Errorf("load pin %s: %w", path, err)
	}
	defer object.Close()
	switch o := object.(type) {
	case *ebpf.Map:
		info, err := o.Info()
		if err != nil {
			return err
		}
		id, _ := info.ID()
		maps[id] = true
	case *ebpf.Program:
		info, err := o.Info()
		if err != nil {
			return err
		}
		id, _ := info.ID()
		programs[id] = true
	case link.Link:
		info, err := o.Info()
		if err != nil {
			return err
		}
		programs[info.Program] = true
	}
	return nil
}

// tables are those of ours in the thread's network namespace.
func tables(c *nftables.Conn) (ours []*nftables.Table, err error) {
	all, err := c.ListTables()
	for _, table := range all {
		if strings.HasPrefix(table.Name, "untracked") {
			ours = append(ours, table)
		}
	}
	return ours, err
}

// countTables counts what is in our tables, in the thread's network namespace.
func (r *remains) countTables() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	ours, err := tables(c)
	if err != nil {
		return err
	}
	for _, table := range ours {
		chains, err := c.ListChainsOfTableFamily(table.Family)
		if err != nil {
			return err
		}
		for _, chain := range chains {
			if chain.Table.Name != table.Name {
				continue
			}
			rules, err := c.GetRules(table, chain)
			if err != nil {
				return err
			}
			r.Rules += len(rules)
		}
		sets, err := c.GetSets(table)
		if err != nil {
			return err
		}
		r.Sets += len(sets)
		for _, set := range sets {
			elements, err := c.GetSetElements(set)
			if err != nil {
				return err
			}
			r.Elements += len(elements)
		}
		objects, err := c.GetObjects(table)
		if err != nil {
			return err
		}
		r.Objects += len(objects)
	}
	return nil
}
