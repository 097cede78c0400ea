// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/hostendpoint"
	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Plan is what apply is going to do: pure data.
type Plan struct {
	Generation uint64
	// Policy identifies all rules together.
	Policy string
	// Lists are the distinct rules of the interfaces, Images their ingress half, compiled.
	Lists      []List
	Images     []*compiler.Image
	Interfaces []PlannedInterface
	// Leave are the interfaces that have our programs and shall have them no longer.
	Leave    []int
	Problems []Problem

	desired *Desired
}

// PlannedInterface is an interface to install the generation on.
type PlannedInterface struct {
	hostif.Interface
	Assignment
	Tables compiler.Method
	// Modes are tried in order. None: the interface is to be left alone.
	Modes []datapath.Mode
	// Foreign is the ID of somebody else's XDP program, ForeignName says in words which and how.
	Foreign     uint32
	ForeignName string
	// Stays is what is in force on the interface, where that is what would be installed: nothing is to be done. nil where
	// it is something else.
	Stays *datapath.Installed
}

// Target is what the datapath needs to know of the interface.
func (i *PlannedInterface) Target() datapath.Target {
	t := datapath.Target{Name: i.Name, Index: i.Index, Layer3: i.Layer3, ForeignXDP: i.Foreign != 0}
	switch i.XDP.Mode {
	case hostif.XDPNative:
		t.XDPMode = datapath.Native
	case hostif.XDPGeneric:
		t.XDPMode = datapath.Generic
	}
	return t
}

// Observed is an interface as it was found.
type Observed struct {
	hostif.Interface
	// OwnXDP is the ID of our program on its XDP hook, 0 if there is none.
	OwnXDP uint32
	// BridgeNetfilter says that it is a bridge whose traffic netfilter sees as if it were routed (br_netfilter).
	BridgeNetfilter bool
	// XDPName names the program on the hook, if it is not ours.
	XDPName string
	// LacksMetadata says that the driver has been seen to refuse metadata.
	LacksMetadata bool
}

func (o *Observed) foreignXDP() bool {
	return o.XDP.Attached && (o.OwnXDP == 0 || o.XDP.ProgID != o.OwnXDP)
}

// driversWithMetadata hand what XDP writes in front of a packet on to its skb (skb_metadata_set() in their receive
// path). Many others do not, ena, gve and hv_netvsc among them: there, packets would arrive tracked and leave
// untracked until the first refusal is noticed.
var driversWithMetadata = []string{
	"veth", "tun", "virtio_net", "bonding", "mlx5_core", "i40e", "ice", "igb", "igc", "ixgbe", "nfp", "bnxt_en",
}

// MakePlan decides what to do: pure. pinned are the interface indexes that have our programs.
func MakePlan(d *Desired, observed []Observed, pinned []int) (*Plan, error) {
	c := d.config
	p := &Plan{}
	all := make([]hostif.Interface, len(observed))
	for i := range observed {
		all[i] = observed[i].Interface
	}
	assigned, lists, err := d.Assign(all)
	if err != nil {
		return nil, err
	}
	if err := p.compile(lists); err != nil {
		return nil, err
	}
	p.Problems = append(d.adviceOn(lists), d.shadowed(assigned, all)...)
	// One that only a selector of a HostEndpoint found, and then another was the better match for, has none.
	observed = slices.DeleteFunc(slices.Clone(observed), func(o Observed) bool {
		_, has := assigned[o.Name]
		return !has
	})
	var found []hostif.Interface
	for _, o := range observed {
		found = append(found, o.Interface)
		i, problems := planInterface(c.Mode, o)
		i.Assignment = assigned[o.Name]
		i.Tables = p.Images[i.List].Method
		p.Interfaces = append(p.Interfaces, i)
		p.Problems = append(p.Problems, problems...)
	}
	p.skipBridges(observed)
	for _, o := range observed {
		above := func(p Observed) bool { return p.Index == o.Master.Index }
		if o.Master.Index != 0 && !slices.ContainsFunc(observed, above) {
			p.Problems = append(p.Problems, Problem{
				Code:    ProblemUpper,
				Message: fmt.Sprintf("%s is part of %s, which is not in the policy: what arrives there is denied but not untracked", o.Name, o.Master.Name),
				Remedy:  fmt.Sprintf("name %s, too, in %sinterfaces", o.Master.Name, config.Prefix),
			})
		}
	}
	for _, index := range pinned {
		if !slices.ContainsFunc(p.Interfaces, func(i PlannedInterface) bool { return i.Index == index && len(i.Modes) > 0 }) {
			p.Leave = append(p.Leave, index)
		}
	}
	for _, s := range hostif.Missing(d.expected(), found) {
		p.Problems = append(p.Problems, d.noInterface(s, len(found) == 0))
	}
	return p, nil
}

// noInterface says that a selector chooses nothing, and who asked for it.
func (d *Desired) noInterface(s hostif.Selector, none bool) Problem {
	p := Problem{
		Code:    ProblemNoInterface,
		Message: fmt.Sprintf("no interface matches %s", s),
		Remedy:  fmt.Sprintf("see `ip link`, `ip route show default`; correct %sinterfaces if this is no interface that will appear later", config.Prefix),
		Broken:  none,
	}
	if slices.Contains(d.config.Interfaces, s) {
		return p
	}
	for i := range d.resources.HostEndpoints {
		h := &d.resources.HostEndpoints[i]
		if slices.Contains(d.selectorsOf(h), s) {
			p.Message = fmt.Sprintf("HostEndpoint %s (%s): no interface matches %s", h.Name, h.At, s)
			p.Remedy = "see `ip address`; correct spec.interfaceName or spec.expectedIPs if this is no interface or address that will appear later"
			break
		}
	}
	return p
}

// compile makes the images of all lists.
func (p *Plan) compile(lists []List) error {
	hash := sha256.New()
	for _, l := range lists {
		image, err := compiler.Compile(l.Ingress)
		if err != nil {
			return &config.Error{Key: "policy", Problem: "it cannot be compiled: " + err.Error()}
		}
		if len(l.Egress) > compiler.MaxRules {
			return &config.Error{Key: "policy", Problem: fmt.Sprintf("it has %d egress rules on one interface, at most %d are supported", len(l.Egress), compiler.MaxRules)}
		}
		p.Images = append(p.Images, image)
		fmt.Fprintln(hash, l.Hash)
	}
	p.Lists, p.Policy = lists, shortHash(hash.Sum(nil))
	if len(lists) == 1 {
		p.Policy = lists[0].Hash
	}
	return nil
}

// logs reports whether some rule reports arriving packets.
func (p *Plan) logs() bool {
	return slices.ContainsFunc(p.Lists, func(l List) bool { return policy.Logs(l.Ingress) })
}

// Rules is the number of rules of all lists, both directions.
func (p *Plan) Rules() int {
	n := 0
	for _, l := range p.Lists {
		n += len(l.Ingress) + len(l.Egress)
	}
	return n
}

func planInterface(mode config.Mode, o Observed) (PlannedInterface, []Problem) {
	i := PlannedInterface{Interface: o.Interface}
	if o.foreignXDP() {
		i.Foreign = max(o.XDP.ProgID, 1)
		i.ForeignName = fmt.Sprintf("XDP program %s, not ours, is attached in %s mode", o.XDPName, o.XDP.Mode)
	}
	switch mode {
	case config.ModeNative:
		i.Modes = []datapath.Mode{datapath.Native}
	case config.ModeGeneric:
		i.Modes = []datapath.Mode{datapath.Generic}
	case config.ModeTC:
		i.Modes = []datapath.Mode{datapath.Classifier}
	default:
		i.Modes = []datapath.Mode{datapath.Native, datapath.Classifier}
	}
	if o.LinkType != "ether" && o.LinkType != "loopback" && !o.Layer3 {
		i.Modes = nil
		return i, []Problem{{
			Code:    ProblemNotAttached,
			Message: fmt.Sprintf("%s is without the policy: its link layer, %s, is not supported", o.Name, o.LinkType),
			Remedy:  fmt.Sprintf("leave it out of %sinterfaces", config.Prefix),
			Broken:  true,
		}}
	}
	noMetadata := o.LacksMetadata || !slices.Contains(driversWithMetadata, o.Driver) ||
		o.Driver == "mlx5_core" && o.MTU > maxPlainMTU // whose multi-buffer packets have no linear headers
	var problems []Problem
	if noMetadata && i.Modes[0] == datapath.Native && !o.Layer3 {
		problems = append(problems, Problem{
			Code:    ProblemNoMetadata,
			Message: fmt.Sprintf("%s: driver %q is not known to carry metadata from XDP to tc, so XDP could not say which packets are untracked", o.Name, o.Driver),
			Remedy:  fmt.Sprintf("none is needed with %smode auto or tc: the tc program classifies there", config.Prefix),
		})
	}
	if mode == config.ModeAuto && (noMetadata || i.Foreign != 0 || o.Layer3) {
		i.Modes = []datapath.Mode{datapath.Classifier}
	}
	if i.Foreign != 0 && mode == config.ModeAuto {
		problems = append(problems, Problem{
			Code:    ProblemForeignXDP,
			Message: fmt.Sprintf("%s: %s, so the tc program classifies", o.Name, i.ForeignName),
			Remedy:  "none is needed; to use XDP here, remove the other program and run `untracked apply`",
		})
	}
	return i, problems
}

// skipBridges leaves out a bridge without its ports where netfilter sees packets while the bridge forwards them:
// that is before the bridge's own tc hook could mark them, so only the way out would be untracked.
func (p *Plan) skipBridges(observed []Observed) {
	for n, o := range observed {
		port := func(p Observed) bool { return p.Master.Index == o.Index }
		if !o.BridgeNetfilter || slices.ContainsFunc(observed, port) {
			continue
		}
		p.Interfaces[n].Modes = nil
		p.Problems = append(p.Problems, Problem{
			Code:    ProblemBridge,
			Message: fmt.Sprintf("%s is without the policy: it is a bridge, and with net.bridge.bridge-nf-call-iptables netfilter sees packets before %s can mark them", o.Name, o.Name),
			Remedy:  fmt.Sprintf("name its uplink, too, as in %sinterfaces: %s,eth0", config.Prefix, o.Name),
			Broken:  true,
		})
	}
}

// Steps lists in words what apply is going to do.
func (p *Plan) Steps() []string {
	var out []string
	for i, l := range p.Lists {
		out = append(out, fmt.Sprintf("compile %d ingress rules%s into %d KiB of lookup tables, generation %d",
			len(l.Ingress), p.forWhom(i), (len(p.Images[i].Bytes)+1023)/1024, p.Generation))
	}
	egress := 0
	for _, i := range p.Interfaces {
		if len(i.Modes) == 0 {
			continue
		}
		modes := string(i.Modes[0])
		for _, m := range i.Modes[1:] {
			modes += ", else " + string(m)
		}
		egress += len(p.Lists[i.List].Egress)
		if i.Stays != nil {
			out = append(out, fmt.Sprintf("leave %s (ifindex %d) as it is since generation %d: %s", i.Name, i.Index, i.Stays.Generation, i.Stays.Mode))
			continue
		}
		where := ""
		if i.HostEndpoint != hostendpoint.Implicit {
			where = ", host endpoint " + i.HostEndpoint
		}
		out = append(out, fmt.Sprintf("attach to %s (ifindex %d)%s: %s", i.Name, i.Index, where, modes))
	}
	for _, index := range p.Leave {
		out = append(out, fmt.Sprintf("detach from %s", interfaceName(index)))
	}
	return append(out,
		fmt.Sprintf("write table inet %s: %d egress rules", nft.TableName, egress),
		"evict the conntrack entries of flows that become untracked")
}

// forWhom names the interfaces of a list where there are several lists.
func (p *Plan) forWhom(list int) string {
	var names []string
	for _, i := range p.Interfaces {
		if i.List == list {
			names = append(names, i.Name)
		}
	}
	if len(p.Lists) == 1 || len(names) == 0 {
		return ""
	}
	return " for " + strings.Join(names, ", ")
}

// interfaceName is for people: an interface that is gone has a number only.
func interfaceName(index int) string {
	if i, err := net.InterfaceByIndex(index); err == nil {
		return fmt.Sprintf("%s (ifindex %d)", i.Name, index)
	}
	return fmt.Sprintf("ifindex %d, which is gone", index)
}

// plan observes the node and makes the plan. r is the record, nil where there is none; forget says that interfaces
// which it has and the config does not select are to go.
func (n *Node) plan(c *config.Config, r *Record, forget bool) (*Plan, error) {
	d, err := read(c, n.progress)
	if err != nil {
		return nil, err
	}
	pins := n.pins()
	pinned, err := pins.Interfaces()
	if err != nil {
		return nil, err
	}
	selected := r
	if forget {
		selected = nil
	}
	found, err := resolve(d.selectors(), selected)
	if err != nil {
		return nil, err
	}
	if d.needsAddresses() {
		if err := hostif.AddAddresses(found); err != nil {
			return nil, err
		}
	}
	moved := n.movedPins(r)
	observed := make([]Observed, len(found))
	for i, f := range found {
		observed[i] = Observed{
			Interface: f, OwnXDP: pins.OwnXDP(f.Index), BridgeNetfilter: f.Kind == "bridge" && bridgeNetfilter(),
		}
		if moved != nil && observed[i].OwnXDP == 0 {
			observed[i].OwnXDP = moved.OwnXDP(f.Index)
		}
		if err := hostif.Describe(&observed[i].Interface); err != nil {
			n.Log.Debug("no driver name", "interface", f.Name, "error", err)
		}
		if observed[i].foreignXDP() {
			observed[i].XDPName = datapath.ProgramName(f.XDP.ProgID)
		}
		if was := r.on(f); was != nil {
			observed[i].LacksMetadata, _ = pins.LacksMetadata(f.Index, was.Generation)
		}
	}
	n.progress("compiling")
	p, err := MakePlan(d, observed, pinned)
	if err != nil {
		return nil, err
	}
	p.desired = d
	if err := p.find(pins); err != nil {
		return nil, err
	}
	pinnedLast, err := pins.LastGeneration()
	if err != nil {
		return nil, err
	}
	p.Generation = max(r.generation(), pinnedLast) + 1
	return p, nil
}

// find finds out where what is in force may stay: where it is complete, of the same programs and tables, and in the mode
// that is tried first. In another mode, the first may be had by now.
func (p *Plan) find(pins *datapath.Pins) error {
	identities := map[int]datapath.Identity{}
	for n := range p.Interfaces {
		i := &p.Interfaces[n]
		if len(i.Modes) == 0 {
			continue
		}
		was, err := pins.Installed(i.Target())
		if err != nil || was.Mode != i.Modes[0] {
			continue
		}
		identity, known := identities[i.List]
		if !known {
			if identity, err = pins.Identify(p.desired.config.Mark, p.Lists[i.List].Ingress, p.Images[i.List]); err != nil {
				return err
			}
			identities[i.List] = identity
		}
		if was.Identity == identity {
			i.Stays = was
		}
	}
	return nil
}

// movedPins are those of a policy that was applied with another BPF file system, nil if there are none: its programs
// are ours, and still attached.
func (n *Node) movedPins(r *Record) *datapath.Pins {
	if r == nil || r.bpffs() == n.BPFFS {
		return nil
	}
	if pins := datapath.PinsAt(r.bpffs()); pins.Exist() {
		return pins
	}
	return nil
}

// resolve returns the interfaces that the selectors choose now, and those that they chose when they were applied, as
// long as they exist. A default route goes away with a link that is down for a moment, and a listing may have
// been interrupted while pods start; neither is a reason to take a policy off an interface. An operator's apply,
// which has no record here, is.
func resolve(selectors []hostif.Selector, r *Record) ([]hostif.Interface, error) {
	found, err := hostif.Resolve(selectors)
	if err != nil || r == nil || !slices.Equal(r.Selectors, selectors) {
		return found, err
	}
	has := func(index int) bool {
		return slices.ContainsFunc(found, func(f hostif.Interface) bool { return f.Index == index })
	}
	for _, was := range r.Interfaces {
		if has(was.Index) {
			continue
		}
		still, err := hostif.Resolve([]hostif.Selector{{Kind: hostif.ByName, Pattern: was.Name}})
		if err != nil {
			return nil, err
		}
		if len(still) == 1 && still[0].Index == was.Index {
			still[0].SelectedBy = was.SelectedBy
			found = append(found, still[0])
		}
	}
	slices.SortFunc(found, func(a, b hostif.Interface) int { return strings.Compare(a.Name, b.Name) })
	return found, nil
}

// PlanFor says what Apply would do now, and why; no reasons mean that it would do nothing. It only reads.
func (n *Node) PlanFor(c *config.Config) (reasons []string, p *Plan, err error) {
	record, err := readRecord(n.RunDir)
	if err != nil {
		return nil, nil, err
	}
	p, err = n.plan(c, record, true)
	if err != nil {
		return nil, nil, err
	}
	if !datapath.IsBPFFS(n.BPFFS) {
		if err := datapath.CanMountBPFFS(n.BPFFS); err != nil {
			p.Problems = append(p.Problems, bpffsProblem(err))
		}
	}
	return n.drift(c, record).words(), p, nil
}

// IsConfigError reports whether err is about what the operator wrote.
func IsConfigError(err error) bool { return errors.As(err, new(*config.Error)) }
