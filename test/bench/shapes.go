// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// shape is a policy to be measured, with packets that its own rules decide: all of it from a fixed seed.
type shape struct {
	name  string
	rules []policy.Rule
	// first is the index of the first rule behind the failsafe ports. Every key matches a rule from there on.
	first int
	// lines are the same rules, in order, as peers have them.
	lines []line
	keys  []key
	// last is a key of the last line.
	last key
}

// line is one network of one rule.
type line struct {
	net  netip.Prefix
	port uint16 // of TCP; 0: any
	deny bool
	rule int // index in shape.rules
}

// key is what changes from packet to packet. All are TCP.
type key struct {
	src          netip.Addr
	sport, dport uint16
}

const (
	// usualKeys is how many different packets rotate, manyKeys where the data that they touch should not stay in a
	// processor's own caches.
	usualKeys = 1 << 16
	manyKeys  = 1 << 20

	// Ports from here on are no failsafe ports.
	firstPort = 11000
)

// seeded is a source of numbers that gives the same ones for the same arguments.
func seeded(what uint64, n int) *rand.Rand { return rand.New(rand.NewPCG(what, uint64(n))) }

// failsafes are the rules that every node has in front.
func failsafes() []policy.Rule {
	inbound, err := policy.ParseFailsafes(policy.DefaultFailsafeInbound)
	if err != nil {
		panic(err)
	}
	outbound, err := policy.ParseFailsafes(policy.DefaultFailsafeOutbound)
	if err != nil {
		panic(err)
	}
	return policy.FailsafeRules(inbound, outbound).Ingress
}

// distinctNets is n networks, /24 or /48, none twice, scattered over the unicast addresses.
func distinctNets(r *rand.Rand, n, family int) []netip.Prefix {
	nets := make([]netip.Prefix, 0, n)
	seen := map[netip.Prefix]bool{}
	for len(nets) < n {
		p := randomPrefix(r, family, map[int]int{4: 24, 6: 48}[family])
		if !seen[p] {
			seen[p] = true
			nets = append(nets, p)
		}
	}
	return nets
}

// randomPrefix is somewhere between 1.0.0.0 and 223.255.255.255 or in 2000::/3.
func randomPrefix(r *rand.Rand, family, bits int) netip.Prefix {
	if family == 4 {
		return netip.PrefixFrom(netset.To4(1<<24+r.Uint32N(223<<24)), bits).Masked()
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], r.Uint64()>>3|1<<61)
	binary.BigEndian.PutUint64(b[8:], r.Uint64())
	return netip.PrefixFrom(netip.AddrFrom16(b), bits).Masked()
}

// within is any address of a network.
func within(r *rand.Rand, p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return netset.To4(netset.From4(p.Addr()) | uint32(uint64(r.Uint32())&(1<<(32-p.Bits())-1)))
	}
	b := p.Addr().As16()
	for i := p.Bits(); i < 128; i++ {
		b[i/8] |= byte(r.UintN(2)) << (7 - i%8)
	}
	return netip.AddrFrom16(b)
}

// rulesShape is n rules that each allow TCP from a network of its own to a port of its own. With onePlace it is the
// same network for all. The failsafe ports stand in front, and count where the list is as long as it can be.
func rulesShape(n, family int, withFailsafes, onePlace bool) *shape {
	s := &shape{name: fmt.Sprintf("IPv%d, %s", family, count(n, "rule"))}
	if withFailsafes {
		s.rules = failsafes()
	} else {
		s.name += ", no failsafe ports"
	}
	s.first = len(s.rules)
	if n+s.first > compiler.MaxRules && n <= compiler.MaxRules {
		n = compiler.MaxRules - s.first
	}
	r := seeded(1, n)
	places := n
	if onePlace {
		s.name += " that differ in the port only"
		places = 1
	}
	nets := distinctNets(r, places, family)
	tcp := uint8(policy.TCP)
	for i := range n {
		l := line{net: nets[i%places], port: uint16(firstPort + i), rule: len(s.rules)}
		s.lines = append(s.lines, l)
		s.rules = append(s.rules, policy.Rule{
			Policy: "bench", Index: i, Action: policy.Allow, Protocol: &tcp,
			Source:      policy.Entity{Nets: netset.Of(l.net)},
			Destination: policy.Entity{Ports: []policy.PortRange{{First: l.port, Last: l.port}}},
		})
	}
	s.makeKeys(r, usualKeys)
	return s
}

// denyShape is a list of networks to be dropped, between the failsafe ports and a port that is served.
func denyShape(name string, nets []netip.Prefix) *shape {
	return deniesShape(name, [][]netip.Prefix{nets})
}

// deniesShape has a rule for each of the lists.
func deniesShape(name string, lists [][]netip.Prefix) *shape {
	s := &shape{name: name, rules: failsafes()}
	s.first = len(s.rules)
	for i, nets := range lists {
		var b netset.Builder
		for _, p := range nets {
			b.Add(p)
			s.lines = append(s.lines, line{net: p, deny: true, rule: len(s.rules)})
		}
		s.rules = append(s.rules, policy.Rule{
			Policy: "bench", Index: i, Action: policy.Deny,
			Source: policy.Entity{Nets: b.Build(), NetsName: fmt.Sprintf("list %d", i)},
		})
	}
	s.rules = append(s.rules, servedPort()...)
	s.makeKeys(seeded(2, len(s.lines)), usualKeys)
	return s
}

func servedPort() []policy.Rule {
	ports, err := policy.ParsePorts("tcp/6379")
	if err != nil {
		panic(err)
	}
	return (&policy.Shorthand{Ports: ports}).Allows().Ingress
}

// makeKeys gives lines packets, n in all, in random order: those of a short list several, of a long one a random part.
func (s *shape) makeKeys(r *rand.Rand, n int) {
	order := r.Perm(len(s.lines))
	s.keys = make([]key, n)
	for i := range s.keys {
		s.keys[i] = s.lines[order[i%len(order)]].key(r)
	}
	s.last = s.lines[len(s.lines)-1].key(r)
}

// withManyKeys is the same list, hit in more places.
func (s *shape) withManyKeys() *shape {
	many := *s
	many.makeKeys(seeded(2, len(s.lines)), manyKeys)
	return &many
}

func (l line) key(r *rand.Rand) key {
	k := key{within(r, l.net), uint16(firstPort + r.UintN(65536-firstPort)), l.port}
	if l.port == 0 {
		k.dport = uint16(firstPort + r.UintN(65536-firstPort))
	}
	return k
}

// randomNets is the same for the same arguments. IPv4 as blocklists are: half of them single addresses, 40 % /24, the
// rest up to /20, all over the unicast addresses. IPv6: 20 % /48, 40 % /64 and 40 % single addresses, from as many /32
// as it takes for them not to lie in each other.
func randomNets(n, family int) []netip.Prefix {
	r := seeded(3, n)
	nets := make([]netip.Prefix, 0, n)
	if family == 4 {
		for range n {
			bits := 32
			if at := r.IntN(10); at < 4 {
				bits = 24
			} else if at == 4 {
				bits = 20 + r.IntN(4)
			}
			nets = append(nets, randomPrefix(r, 4, bits))
		}
		return nets
	}
	operators := make([]netip.Prefix, max(16, n/64))
	for i := range operators {
		operators[i] = randomPrefix(r, 6, 32)
	}
	bits := []int{48, 64, 64, 128, 128}
	for range n {
		a := within(r, operators[r.IntN(len(operators))])
		nets = append(nets, netip.PrefixFrom(a, bits[r.IntN(len(bits))]).Masked())
	}
	return nets
}

// loneHosts is what costs the tables most: in each of n/6 neighbouring networks, /24 or /56, six addresses far apart.
func loneHosts(n, family int) []netip.Prefix {
	r := seeded(4, n)
	nets := make([]netip.Prefix, 0, n)
	for i := 0; len(nets) < n; i++ {
		for _, host := range r.Perm(128)[:6] {
			if family == 4 {
				nets = append(nets, netip.PrefixFrom(netset.To4(11<<24+uint32(i)<<8+uint32(host)*2+1), 32))
				continue
			}
			var b [16]byte
			binary.BigEndian.PutUint64(b[:], 0x2001_0db8<<32+uint64(i)<<8+uint64(host)*2)
			binary.BigEndian.PutUint64(b[8:], r.Uint64())
			nets = append(nets, netip.PrefixFrom(netip.AddrFrom16(b), 128))
		}
	}
	return slices.Clip(nets[:n])
}

// count is "1 rule", "16,384 rules".
func count(n int, what string) string {
	text := thousands(float64(n))
	if n == 1_000_000 {
		text = "1M"
	} else if n >= 10_000 && n%1000 == 0 {
		text = fmt.Sprintf("%dk", n/1000)
	}
	if n != 1 {
		what += "s"
	}
	return text + " " + what
}
