// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/frame"
	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// ByNoPolicy is the reason of a verdict on an interface that has no policy.
const ByNoPolicy policy.Reason = "no-policy"

// ByPod is the reason of a verdict that a pod asked for.
const ByPod policy.Reason = "pod"

// Explanation is what becomes of one packet, and why.
type Explanation struct {
	Interface string           `json:"interface"`
	Direction policy.Direction `json:"direction"`
	Verdict   policy.Verdict   `json:"verdict"`
	By        policy.Reason    `json:"by"`
	// Rule decided. It is nil where none did.
	Rule *RuleText `json:"rule,omitempty"`
	// Pod is whose port it is, by which the packet is untracked.
	Pod string `json:"pod,omitempty"`
	// Via are the rules that matched before without deciding.
	Via []RuleText `json:"via,omitempty"`
	// Closest is the rule that came closest, where none decided.
	Closest *Closest `json:"closest,omitempty"`
	// Notes are what else has a say in what becomes of the packet.
	Notes []string `json:"notes,omitempty"`
}

// Closest is a rule that nearly matched, with the conditions that kept it from matching.
type Closest struct {
	RuleText
	Misses []string `json:"misses"`
}

// Explainer answers what becomes of packets on one interface, in one direction.
type Explainer struct {
	record *InterfaceRecord // nil where there is no policy
	name   string
	way    policy.Direction
	rules  []policy.Rule
	// tracer runs the program that is attached (ingress only).
	tracer *datapath.Tracer
	local  *netset.Set
	pods   *podPorts
	notes  []string
}

// Explainer opens what is in force on an interface. The caller closes it. An interface without a policy is no error;
// one that does not exist is, and so is a policy that is not in force as it was recorded.
func (n *Node) Explainer(name string, way policy.Direction) (*Explainer, error) {
	e := &Explainer{name: name, way: way}
	record, snapshot, err := readInForce(n.RunDir)
	if err != nil {
		return nil, err
	}
	if e.pods, err = n.podPorts(); err != nil {
		return nil, err
	}
	if e.record = record.named(name); e.record == nil {
		if _, err := net.InterfaceByName(name); err != nil {
			return nil, fmt.Errorf("interface %s: %w; see `ip link`", name, errors.Unwrap(err))
		}
		e.notes = append(e.notes, "no policy covers "+name)
		return e, nil
	}
	if !e.record.installed() {
		e.record = nil
		e.notes = append(e.notes, fmt.Sprintf("the policy could not be put in force on %s; see `untracked status`", name))
		return e, nil
	}
	if e.local, err = hostif.Local(); err != nil {
		return nil, err
	}
	rules := snapshot.rules(e.record.List)
	if e.rules = rules.Of(way); way == policy.Egress {
		return e, egressInForce(record)
	}
	if !n.pins().Exist() {
		return nil, n.notPinned()
	}
	e.tracer, err = n.pins().Tracer(e.record.Index, e.record.Attached)
	return e, err
}

// egressInForce: nftables cannot be asked about a packet without sending it. But the kernel tells whether the table is
// still the one that was written, and what that one does the specification says, against which it is tested.
func egressInForce(r *Record) error {
	digest, err := nft.InForce()
	switch {
	case errors.Is(err, nft.ErrNoTable):
		return fmt.Errorf("table inet %s is missing, so nothing is decided on the way out; run `untracked apply CONFLIST`", nft.TableName)
	case err != nil:
		return err
	case digest != r.Table:
		return fmt.Errorf("table inet %s was changed, so what it does is not known; run `untracked apply CONFLIST`", nft.TableName)
	}
	return nil
}

// Close releases the private copy of the program.
func (e *Explainer) Close() error {
	if e.tracer == nil {
		return nil
	}
	return e.tracer.Close()
}

// Explain says what becomes of a packet. Nothing is counted and nothing is sent.
func (e *Explainer) Explain(f *frame.Frame) (*Explanation, error) {
	x, err := e.byPolicy(f)
	if err != nil || x.Verdict != policy.Tracked {
		return x, err
	}
	// What the policy leaves tracked comes to the table of pods.
	if p, _ := packet.Parse(f.Ethernet); p != nil {
		if pod := e.pods.of(p); pod != "" {
			x.Verdict, x.By, x.Pod, x.Rule, x.Closest = policy.Untracked, ByPod, pod, nil, nil
		}
	}
	return x, nil
}

// byPolicy says what the policy makes of a packet.
func (e *Explainer) byPolicy(f *frame.Frame) (*Explanation, error) {
	x := &Explanation{Interface: e.name, Direction: e.way, Verdict: policy.Tracked, By: ByNoPolicy, Notes: slices.Clone(e.notes)}
	if e.record == nil {
		return x, nil
	}
	specified := packet.Decide(e.rules, f.Ethernet)
	d := specified
	if e.tracer != nil {
		var err error
		if d, err = e.tracer.Decide(f.Ethernet); err != nil {
			return nil, err
		}
		if d != specified {
			x.note("the loaded program decides otherwise than its specification, which says %s by %s: please report this packet", specified.Verdict, specified.By)
		}
	} else if d.By == policy.ByMalformed {
		// Only a raw socket can send it, and nothing on the way out minds.
		d.Verdict = policy.Tracked
	}
	x.Verdict, x.By = d.Verdict, d.By
	if f.Cut() {
		x.note("the capture has %d of its %d bytes, and what is not there is taken for missing", len(f.Ethernet), f.Length)
	}
	p, _ := packet.Parse(f.Ethernet)
	if p == nil {
		return x, nil
	}
	e.placeNotes(x, p)
	if d.By == policy.ByFailsafe && d.Rule == policy.NoRule {
		return x, nil // neighbour discovery is left alone before any rule is asked
	}
	_, via := policy.Walk(e.rules, p)
	for _, i := range via {
		x.Via = append(x.Via, TextOf(&e.rules[i]))
	}
	if d.Rule != policy.NoRule && d.Rule < len(e.rules) {
		text := TextOf(&e.rules[d.Rule])
		x.Rule = &text
		e.qualify(x, p, &e.rules[d.Rule])
	} else if d.By == policy.ByNoMatch || d.By == policy.ByFragment {
		if i, misses := policy.Closest(e.rules, p); i != policy.NoRule {
			x.Closest = &Closest{TextOf(&e.rules[i]), misses}
		}
	}
	return x, nil
}

func (x *Explanation) note(format string, args ...any) {
	x.Notes = append(x.Notes, fmt.Sprintf(format, args...))
}

// placeNotes says when a packet does not belong where it is asked about.
func (e *Explainer) placeNotes(x *Explanation, p *policy.Packet) {
	own := e.local.Contains(p.Src)
	switch {
	case e.way == policy.Ingress && own && !p.Src.IsLoopback():
		x.note("%s is this host's own address: if the packet leaves, ask with --egress", p.Src)
	case e.way == policy.Egress && !own:
		x.note("%s is no address of this host: only what its own sockets send is asked for on the way out, and forwarded packets stay tracked", p.Src)
	}
}

// qualify says what netfilter does with an arriving packet that the program says is untracked.
func (e *Explainer) qualify(x *Explanation, p *policy.Packet, r *policy.Rule) {
	if e.way != policy.Ingress || x.Verdict != policy.Untracked {
		return
	}
	if !e.local.Contains(p.Dst) && e.pods.of(p) != "" {
		x.Verdict = policy.Tracked // as far as the policy goes
		return
	}
	if !e.local.Contains(p.Dst) {
		x.note("%s is no address of this host, and what is not for an address of this host stays tracked", p.Dst)
		return
	}
	asked := p
	if p.Quoted != nil {
		asked = p.Quoted
	}
	asks := r.AsksForAnswers()
	switch {
	case slices.ContainsFunc(asks, func(ask policy.Rule) bool { return *ask.Protocol == asked.Protocol }):
		x.note("it is untracked only if a local socket waits for it, as it might be an answer to a pod behind this host")
	case asked.Protocol != policy.TCP && asked.Protocol != policy.UDP && r.Destination.Ports == nil:
		x.note("were it an answer to a pod that is masqueraded behind this host, the pod would not get it: the kernel cannot say whose it is")
	}
}

// named is what the record has of an interface by its name, nil if it has nothing.
func (r *Record) named(name string) *InterfaceRecord {
	if r == nil {
		return nil
	}
	for i := range r.Interfaces {
		if r.Interfaces[i].Name == name {
			return &r.Interfaces[i]
		}
	}
	return nil
}

// Covered lists the interfaces that the policy covers, by name.
func (n *Node) Covered() ([]string, error) {
	record, err := readRecord(n.RunDir)
	if err != nil || record == nil {
		return nil, err
	}
	var out []string
	for _, i := range record.Interfaces {
		out = append(out, i.Name)
	}
	return out, nil
}
