// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/untracked-cni/untracked/test/lab"
)

// trafficObjects are the kernel objects that the pins of a lab keep alive. Other labs have objects of the same
// names, so those of one lab are told by their IDs.
type trafficObjects struct {
	programs []ebpf.ProgramID
	maps     []ebpf.MapID
	links    []link.ID
}

func (n *trafficNode) objects() (o trafficObjects) {
	n.Helper()
	root := filepath.Join(n.lab.BPFFS, "untracked")
	addProgram := func(id ebpf.ProgramID) {
		o.programs = append(o.programs, id)
		p := must(ebpf.NewProgramFromID(id))(n)
		defer p.Close()
		info := must(p.Info())(n)
		if !strings.HasPrefix(info.Name, "untracked") {
			n.Errorf("program %d is named %q, want untracked…", id, info.Name)
		}
		ids, _ := info.MapIDs()
		o.maps = append(o.maps, ids...)
	}
	check(n, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if l, err := link.LoadPinnedLink(path, nil); err == nil {
			defer l.Close()
			info, err := l.Info()
			if err != nil {
				return err
			}
			o.links = append(o.links, info.ID)
			addProgram(info.Program)
			return nil
		}
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return err
		}
		defer m.Close()
		info, err := m.Info()
		if err != nil {
			return err
		}
		id, _ := info.ID()
		o.maps = append(o.maps, id)
		return nil
	}))
	return o
}

// alive returns those that still exist.
func (o trafficObjects) alive() (left trafficObjects) {
	for _, id := range o.programs {
		if p, err := ebpf.NewProgramFromID(id); err == nil {
			p.Close()
			left.programs = append(left.programs, id)
		}
	}
	for _, id := range o.maps {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			m.Close()
			left.maps = append(left.maps, id)
		}
	}
	for _, id := range o.links {
		if l, err := link.NewFromID(id); err == nil {
			l.Close()
			left.links = append(left.links, id)
		}
	}
	return left
}

func (o trafficObjects) none() bool { return len(o.programs)+len(o.maps)+len(o.links) == 0 }

// remove leaves no program, link, map, pin, table, qdisc or record, and traffic is tracked as ever.
func TestTrafficRemove(t *testing.T) {
	for _, mode := range trafficModes {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{Uplinks: 2})
			must(lab.ServeTCP(n.Node, 6379))(t)
			load := lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 6379), Sources: n.u.Client4, Count: 10}
			tables := must(lab.Tables(n.Node))(t)
			annotations := map[string]string{"mode": mode, "interfaces": "eth*", "ports": "tcp/6379", "deny": "192.0.2.1"}
			n.apply(annotations)
			early := n.objects()
			n.wantTCP(n.Client, load)
			// A second generation must leave nothing of the first either.
			annotations["deny"] = "192.0.2.2"
			n.apply(annotations)
			o := n.objects()
			wantLinks := 4
			if mode == "tc" {
				wantLinks = 2
			}
			if len(o.links) != wantLinks || len(o.programs) != wantLinks || len(o.maps) < 5 {
				t.Errorf("pins hold %+v, want %d links and the maps of a generation", o, wantLinks)
			}
			trafficUntil(t, "the first generation's objects are freed", func() bool {
				left := early.alive()
				left.links = nil // they are the same, updated in place
				return left.none()
			})
			if !slices.Equal(early.links, o.links) {
				t.Errorf("links %v became %v, want them updated in place", early.links, o.links)
			}
			if !slices.Contains(must(lab.Tables(n.Node))(t), "inet untracked") {
				t.Errorf("there is no table inet untracked")
			}

			for range 2 { // removing nothing is no error
				if out := must(n.lab.Untracked("remove"))(t); out.ExitCode != 0 {
					t.Fatalf("remove: exit code %d: %s", out.ExitCode, out.Stderr)
				}
			}
			trafficUntil(t, "all objects are freed", func() bool { return o.alive().none() })
			for _, u := range n.lab.Uplinks {
				if h := must(lab.ReadHooks(n.Node, u.Name))(t); !h.None() {
					t.Errorf("%s still has %+v", u.Name, h)
				}
			}
			if got := must(lab.Tables(n.Node))(t); !slices.Equal(got, tables) {
				t.Errorf("tables %v, want %v as before", got, tables)
			}
			for _, left := range must(os.ReadDir(n.lab.BPFFS))(t) {
				if !strings.HasSuffix(left.Name(), ".debug") { // the kernel's own
					t.Errorf("%s is left of the pins", left.Name())
				}
			}
			if left, err := os.ReadDir(n.lab.RunDir); !errors.Is(err, fs.ErrNotExist) && len(left) != 0 {
				t.Errorf("the run directory still has %v", left)
			}
			if s, code := n.status(); code != 1 || len(s.Problems) != 1 || s.Problems[0].Code != "not-applied" {
				t.Errorf("status: exit code %d, %+v; want that nothing was applied", code, s)
			}
			n.wantTCP(n.Client, load)
			n.wantFlows(10, lab.Port(6379))
		})
	}
}
