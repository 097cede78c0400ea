// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// ImplicitEndpoint is the name of the host endpoint made of the interfaces annotation.
const ImplicitEndpoint = "implicit"

// Plan is what apply is going to do: pure data.
type Plan struct {
	Generation uint64
	Policy     string
	Rules      policy.Rules
	Files      []FileStamp
	Image      *compiler.Image
	Interfaces []PlannedInterface
	// Leave are the interfaces that have our programs and shall have them no longer.
	Leave    []int
	Problems []Problem
}

// PlannedInterface is an interface to install the generation on.
type PlannedInterface struct {
	hostif.Interface
	// Modes are tried in order.
	Modes []datapath.Mode
	// Foreign is the ID of somebody else's XDP program.
	Foreign uint32
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
	// XDPName names the program on the hook, if it is not ours.
	XDPName string
	// LacksMetadata says that the driver has been seen to refuse metadata.
	LacksMetadata bool
}

func (o *Observed) foreignXDP() bool {
	return o.XDP.Attached && (o.OwnXDP == 0 || o.XDP.ProgID != o.OwnXDP)
}

// driversWithoutMetadata prepare their XDP buffers without room for metadata, so the verdict cannot travel to tc.
// (Linux drivers/net/ethernet/amazon/ena: xdp_prepare_buff(…, meta_valid = false).)
var driversWithoutMetadata = []string{"ena"}

// MakePlan decides what to do: pure. pinned are the interface indexes that have our programs.
func MakePlan(c *config.Config, rules policy.Rules, observed []Observed, pinned []int) (*Plan, error) {
	p := &Plan{Rules: rules, Policy: policyHash(rules), Problems: failsafeProblems(c)}
	var err error
	if p.Image, err = compiler.Compile(rules.Ingress); err != nil {
		return nil, &config.Error{Key: "annotations", Problem: "the policy cannot be compiled: " + err.Error()}
	}
	if len(rules.Egress) > compiler.MaxRules {
		return nil, &config.Error{Key: "annotations", Problem: fmt.Sprintf("the policy has %d egress rules, at most %d are supported", len(rules.Egress), compiler.MaxRules)}
	}
	var found []hostif.Interface
	for _, o := range observed {
		found = append(found, o.Interface)
		i, problems := planInterface(c.Mode, o)
		p.Interfaces = append(p.Interfaces, i)
		p.Problems = append(p.Problems, problems...)
	}
	for _, index := range pinned {
		if !slices.ContainsFunc(found, func(f hostif.Interface) bool { return f.Index == index }) {
			p.Leave = append(p.Leave, index)
		}
	}
	for _, s := range hostif.Missing(c.Interfaces, found) {
		p.Problems = append(p.Problems, Problem{
			Code:    ProblemNoInterface,
			Message: fmt.Sprintf("no interface matches %s", s),
			Remedy:  fmt.Sprintf("see `ip link`, `ip route show default`; correct %sinterfaces if this is no interface that will appear later", config.Prefix),
			Broken:  len(found) == 0,
		})
	}
	return p, nil
}

func planInterface(mode config.Mode, o Observed) (PlannedInterface, []Problem) {
	i := PlannedInterface{Interface: o.Interface}
	if o.foreignXDP() {
		i.Foreign = max(o.XDP.ProgID, 1)
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
	noMetadata := o.LacksMetadata || slices.Contains(driversWithoutMetadata, o.Driver)
	var problems []Problem
	if noMetadata && i.Modes[0] != datapath.Classifier {
		problems = append(problems, Problem{
			Code:    ProblemNoMetadata,
			Message: fmt.Sprintf("%s: driver %q carries no metadata from XDP to tc, so XDP cannot say which packets are untracked", o.Name, o.Driver),
			Remedy:  fmt.Sprintf("none is needed with %smode auto or tc: the tc program classifies there", config.Prefix),
		})
	}
	if mode == config.ModeAuto && (noMetadata || i.Foreign != 0 || o.Layer3) {
		i.Modes = []datapath.Mode{datapath.Classifier}
	}
	if i.Foreign != 0 && mode != config.ModeTC {
		problems = append(problems, Problem{
			Code:    ProblemForeignXDP,
			Message: fmt.Sprintf("%s: XDP program %s, not ours, is attached in %s mode", o.Name, o.XDPName, o.XDP.Mode),
			Remedy:  "nothing is lost in tc mode; to use XDP, remove the other program and run `untracked apply`",
			Broken:  mode != config.ModeAuto,
		})
	}
	return i, problems
}

// Steps lists in words what apply is going to do.
func (p *Plan) Steps() []string {
	out := []string{fmt.Sprintf("compile %d ingress rules into %d KiB of lookup tables, generation %d",
		len(p.Rules.Ingress), (len(p.Image.Bytes)+1023)/1024, p.Generation)}
	for _, i := range p.Interfaces {
		modes := string(i.Modes[0])
		for _, m := range i.Modes[1:] {
			modes += ", else " + string(m)
		}
		out = append(out, fmt.Sprintf("attach to %s (ifindex %d): %s", i.Name, i.Index, modes))
	}
	for _, index := range p.Leave {
		out = append(out, fmt.Sprintf("detach from ifindex %d", index))
	}
	return append(out,
		fmt.Sprintf("write table inet %s: %d egress rules an interface, on %d", nft.TableName, len(p.Rules.Egress), len(p.Interfaces)),
		"evict the conntrack entries of flows that become untracked")
}

// plan observes the node and makes the plan.
func (n *Node) plan(c *config.Config, r *Record) (*Plan, error) {
	rules, files, err := Expand(c)
	if err != nil {
		return nil, err
	}
	pins := n.pins()
	pinned, err := pins.Interfaces()
	if err != nil {
		return nil, err
	}
	found, err := resolve(c.Interfaces, pinned)
	if err != nil {
		return nil, err
	}
	observed := make([]Observed, len(found))
	for i, f := range found {
		observed[i] = Observed{Interface: f, OwnXDP: pins.OwnXDP(f.Index)}
		if err := hostif.Describe(&observed[i].Interface); err != nil {
			n.Log.Debug("no driver name", "interface", f.Name, "error", err)
		}
		if observed[i].foreignXDP() {
			observed[i].XDPName = datapath.ProgramName(f.XDP.ProgID)
		}
		if counts, err := pins.Counts(f.Index); err == nil {
			observed[i].LacksMetadata = counts.NoMetadata > 0
		}
	}
	p, err := MakePlan(c, rules, observed, pinned)
	if err != nil {
		return nil, err
	}
	p.Files = files
	last, err := pins.LastGeneration()
	if err != nil {
		return nil, err
	}
	if r != nil {
		last = max(last, r.Generation)
	}
	p.Generation = last + 1
	return p, nil
}

// resolve looks a second time when an interface that has our programs was not found: the kernel interrupts
// listings while links come and go, as they do when pods start, and an interface that was left out of one must
// not lose its policy for it.
func resolve(selectors []hostif.Selector, pinned []int) ([]hostif.Interface, error) {
	found, err := hostif.Resolve(selectors)
	if err != nil {
		return nil, err
	}
	has := func(index int) bool {
		return slices.ContainsFunc(found, func(f hostif.Interface) bool { return f.Index == index })
	}
	if !slices.ContainsFunc(pinned, func(index int) bool { return !has(index) }) {
		return found, nil
	}
	again, err := hostif.Resolve(selectors)
	if err != nil {
		return nil, err
	}
	for _, a := range again {
		if !has(a.Index) {
			found = append(found, a)
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
	p, err = n.plan(c, record)
	return n.drift(c, record), p, err
}

// IsConfigError reports whether err is about what the operator wrote.
func IsConfigError(err error) bool { return errors.As(err, new(*config.Error)) }
