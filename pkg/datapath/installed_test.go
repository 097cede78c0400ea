// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// setRule denies what a named set holds.
func setRule(set *netset.Set) policy.Rule {
	return policy.Rule{Policy: "test", Action: policy.Deny, Source: policy.Entity{Nets: set, NetsName: "list"}}
}

func setOf(nets ...string) *netset.Set {
	var b netset.Builder
	for _, n := range nets {
		b.Add(netip.MustParsePrefix(n))
	}
	return b.Build()
}

func (b *bench) identify(mark uint32, rules ...policy.Rule) Identity {
	b.Helper()
	image, err := compiler.Compile(rules)
	b.must(err)
	id, err := b.pins.Identify(mark, rules, image)
	b.must(err)
	return id
}

// What comes to the same programs has the same identity, and nothing else has.
func TestIdentify(t *testing.T) {
	b := newBench(t)
	one, two := setOf("192.0.2.0/24"), setOf("192.0.2.0/24", "2001:db8::/32")
	allow, deny := udpRule(policy.Allow, 700), udpRule(policy.Deny, 701)
	renamed := allow
	renamed.Policy, renamed.Origin = "renamed", "elsewhere.yaml:7"
	was := b.identify(testMark, setRule(one), allow, deny)
	for name, c := range map[string]struct {
		is                 Identity
		programs, counters bool // are the same
	}{
		"again":             {b.identify(testMark, setRule(one), allow, deny), true, true},
		"another name":      {b.identify(testMark, setRule(one), renamed, deny), true, true},
		"another set":       {b.identify(testMark, setRule(two), allow, deny), false, true},
		"another mark":      {b.identify(testMark<<1, setRule(one), allow, deny), false, true},
		"another order":     {b.identify(testMark, setRule(one), deny, allow), false, false},
		"another action":    {b.identify(testMark, setRule(one), udpRule(policy.Deny, 700), deny), false, false},
		"a rule more":       {b.identify(testMark, setRule(one), allow, deny, deny), false, false},
		"a rule that's out": {b.identify(testMark, setRule(one), allow), false, false},
	} {
		if got := c.is.Programs == was.Programs; got != c.programs {
			t.Errorf("%s: the same programs: %t", name, got)
		}
		if got := c.is.Counters == was.Counters; got != c.counters {
			t.Errorf("%s: the same counters: %t", name, got)
		}
	}
}

// Programs that report hold maps, and with other maps they are others.
func TestIdentifyEvents(t *testing.T) {
	b := newBench(t)
	rules := []policy.Rule{udpRule(policy.Log, 700), udpRule(policy.Allow, 700)}
	b.install(1, Native, rules...)
	was := b.identify(testMark, rules...)
	if in := b.installed(); in.Identity != was {
		t.Errorf("installed is %+v, want %+v", in.Identity, was)
	}
	b.must(os.Remove(b.pins.events()))
	b.install(2, Native, rules...)
	if is := b.identify(testMark, rules...); is.Programs == was.Programs || is.Counters != was.Counters {
		t.Errorf("with new maps for events: %+v after %+v", is, was)
	}
}

func (b *bench) installed() *Installed {
	b.Helper()
	var in *Installed
	b.in(func() (err error) {
		in, err = b.pins.Installed(b.target)
		return err
	})
	return in
}

// What is in force is known without anybody's files, and only if all of it is there.
func TestInstalled(t *testing.T) {
	for _, mode := range []Mode{Native, Generic, Classifier} {
		t.Run(string(mode), func(t *testing.T) {
			b := newBench(t)
			wantNone := func(when string) {
				t.Helper()
				b.in(func() error {
					if in, err := b.pins.Installed(b.target); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s: installed is %+v, %v", when, in, err)
					}
					return nil
				})
			}
			wantNone("before")
			rules := []policy.Rule{udpRule(policy.Allow, 700)}
			a := b.install(7, mode, rules...)
			want := Installed{a, 7, b.identify(testMark, rules...)}
			if in := b.installed(); *in != want {
				t.Errorf("installed is %+v, want %+v", *in, want)
			}

			// The next generation's caller is killed before it comes to the link: this one is in force.
			g := b.pins.NewGeneration(8, testMark)
			counters, ledger, err := NewCounters(nil)
			b.must(err)
			b.must(g.pin(b.target.Index, counters, counters, ledger))
			if in := b.installed(); *in != want {
				t.Errorf("beside unfinished pins: installed is %+v, want %+v", *in, want)
			}
			b.must(errors.Join(g.unpin(b.target.Index), counters.Close(), ledger.Close()))

			// It is killed behind the link: neither is.
			b.install(9, mode, rules...)
			b.must(os.Remove(b.pins.generation(b.target.Index, notePin, 9)))
			b.in(func() error {
				if in, err := b.pins.Installed(b.target); err == nil {
					t.Errorf("half a generation: installed is %+v", in)
				}
				return nil
			})

			b.install(10, mode, rules...)
			b.must(os.Remove(b.pins.generation(b.target.Index, countersPin, 10)))
			wantNone("without counters")
			b.install(11, mode, rules...)
			target := b.target
			b.target.Layer3 = true
			wantNone("with other frames")
			b.target = target
			if mode == Classifier {
				// On the way from tc to XDP a caller is killed between the two: the new program is there, the old one still.
				xdp, err := LoadProgram(Mark, ProgramOptions{MarkBit: testMark})
				b.must(err)
				defer xdp.Close()
				b.must(xdp.Pin(filepath.Join(b.pins.of(b.target.Index), xdpPin)))
				wantNone("with an XDP program beside it")
				b.must(xdp.Unpin())
				b.installed()
			}
			b.must(os.Remove(filepath.Join(b.pins.of(b.target.Index), tcPin)))
			wantNone("without its tc link")
		})
	}
}

// counterIDs are the maps that generations of an interface count in.
func (b *bench) counterIDs(gens ...uint64) (ids []ebpf.MapID) {
	b.Helper()
	for _, gen := range gens {
		id, err := pinnedID(b.pins.generation(b.target.Index, countersPin, gen))
		b.must(err)
		ids = append(ids, id)
	}
	return ids
}

// The same rules with another set go on counting where they did; other rules have new counters, and so do those whose
// predecessor is not complete, or had a driver without metadata.
func TestSharedCounters(t *testing.T) {
	b := newBench(t)
	allow := udpRule(policy.Allow, 700)
	list := func(net string) []policy.Rule { return []policy.Rule{setRule(setOf(net)), allow} }
	b.install(1, Native, list("192.0.2.0/24")...)
	b.send(700, 3)
	b.wantRule(1, 3)
	b.install(2, Native, list("198.51.100.0/24")...)
	if ids := b.counterIDs(1, 2); ids[0] != ids[1] {
		t.Errorf("another set: counters are maps %v, want one", ids)
	}
	for range 2 { // carried to themselves they would be twice as many
		b.must(b.pins.Carry(b.target.Index))
		b.wantRule(1, 3)
	}
	b.prune(map[int]uint64{b.target.Index: 2})
	b.send(700, 2)
	b.wantRule(1, 5)

	b.install(3, Native, append(list("192.0.2.0/24"), udpRule(policy.Allow, 701))...)
	b.install(4, Classifier, append(list("198.51.100.0/24"), udpRule(policy.Allow, 701))...)
	if ids := b.counterIDs(2, 3, 4); ids[0] == ids[1] || ids[1] != ids[2] {
		t.Errorf("another rule, then another set and mode: counters are maps %v, want two", ids)
	}
	b.wantRule(1, 5)

	b.must(os.Remove(b.pins.generation(b.target.Index, notePin, 4)))
	b.install(5, Classifier, append(list("198.51.100.0/24"), udpRule(policy.Allow, 701))...)
	if ids := b.counterIDs(4, 5); ids[0] == ids[1] {
		t.Errorf("after a generation that nobody completed: counters are map %v, want a new one", ids)
	}
	b.wantRule(1, 5)

	m, err := ebpf.LoadPinnedMap(b.pins.generation(b.target.Index, countersPin, 5), nil)
	b.must(err)
	defer m.Close()
	b.must(m.Put(uint32(counterNoMetadata), slices.Repeat([]tally{{Packets: 1}}, ebpf.MustPossibleCPU())))
	b.install(6, Native, append(list("198.51.100.0/24"), udpRule(policy.Allow, 701))...)
	if lacks, err := b.pins.LacksMetadata(b.target.Index, 6); lacks || err != nil {
		t.Errorf("the new generation lacks metadata: %t, %v; want it to have another try", lacks, err)
	}
	if got := b.counts().NoMetadata; got == 0 {
		t.Error("what was counted of the driver is lost")
	}
}

// A link on an interface that went to another namespace is not one on the interface that has its number here now.
func TestInterfaceWithANumberOfAnother(t *testing.T) {
	for _, mode := range []Mode{Native, Generic, Classifier} {
		t.Run(string(mode), func(t *testing.T) {
			b := newBench(t)
			b.install(1, mode, udpRule(policy.Allow, 700))
			elsewhere, err := b.lab.AddNS("elsewhere")
			b.must(err)
			there, err := os.Open(elsewhere.Path)
			b.must(err)
			defer there.Close()
			b.in(func() error {
				l, err := netlink.LinkByIndex(b.target.Index)
				b.must(err)
				b.must(netlink.LinkSetNsFd(l, int(there.Fd())))
				attrs := netlink.NewLinkAttrs()
				attrs.Name, attrs.Index = b.target.Name, b.target.Index
				b.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other"}))
				if i, err := b.pins.Installed(b.target); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("installed %+v, %v; want fs.ErrNotExist", i, err)
				}
				return nil
			})
			b.install(2, mode, udpRule(policy.Allow, 700))
			b.in(func() error {
				if _, err := b.pins.Installed(b.target); err != nil {
					t.Errorf("after it was installed there: %v", err)
				}
				return nil
			})
		})
	}
}
