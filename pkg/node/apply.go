// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// apply carries a plan out, under the lock, and returns the new record. Each step may be repeated; the record,
// which says that all are done, is the last.
//
// Arriving packets change over before leaving ones: the reply to an untracked packet that is still tracked for
// a moment is harmless, a tracked connection whose replies conntrack never sees is not.
func (n *Node) apply(c *config.Config, p *Plan, old *Record) (*Record, error) {
	r := newRecord(n.Version, c, p, old)
	fail := func(code, remedy string, err error) {
		n.Log.Error("apply", "problem", code, "error", err)
		r.Problems = append(r.Problems, Problem{Code: code, Message: err.Error(), Remedy: remedy, Broken: true})
	}
	pins := n.pins()

	got := func() (*Record, error) { // nowhere
		for _, planned := range p.Interfaces {
			r.Interfaces = append(r.Interfaces, InterfaceRecord{Name: planned.Name, Index: planned.Index, HostEndpoint: ImplicitEndpoint})
		}
		return n.recordKept(r, old, p)
	}

	n.progress("file system")
	err := datapath.EnsureBPFFS(n.BPFFS)
	if err == nil {
		err = pins.Create()
	}
	if err != nil {
		problem := bpffsProblem(err)
		fail(problem.Code, problem.Remedy, err)
		if n.movedPins(old) != nil {
			return got() // what is pinned in the former file system stays in force
		}
		// Programs of ours, if there were any, went away with their pins; the way out must not stay untracked alone.
		if err := nft.Remove(); err != nil && !errors.Is(err, nft.ErrNotSupported) {
			fail(ProblemTable, "delete it: `nft delete table inet "+nft.TableName+"`", err)
		}
		old = nil
		return got()
	}

	n.progress("tables of generation %d", p.Generation)
	generation, err := pins.NewGeneration(p.Generation, p.Rules.Ingress, p.Image, c.Mark)
	if err != nil {
		fail(ProblemNotAttached, "see the message; the policy in force stays in force", err)
		return got()
	}
	defer generation.Close()

	if moved := n.movedPins(old); moved != nil {
		// Two links cannot hold one hook: what was pinned elsewhere goes first, for a moment without policy.
		n.progress("pins at %s", moved.Dir())
		if err := moved.Remove(); err != nil {
			fail(ProblemNotAttached, "remove them by hand", fmt.Errorf("remove the pins of the former bpffs: %w", err))
		}
	}

	keep := map[int]uint64{} // interface index → the generation in force there
	for _, planned := range p.Interfaces {
		n.progress("programs of %s", planned.Name)
		i := InterfaceRecord{Name: planned.Name, Index: planned.Index, HostEndpoint: ImplicitEndpoint, ForeignXDP: planned.Foreign}
		if len(planned.Modes) == 0 {
			r.Interfaces = append(r.Interfaces, i)
			continue
		}
		attached, refused, err := generation.Install(planned.Target(), planned.Modes)
		switch {
		case err == nil:
			i.Attached, i.Generation = attached, p.Generation
			for _, e := range refused {
				r.Problems = append(r.Problems, Problem{
					Code:    ProblemXDPRefused,
					Message: fmt.Sprintf("%s: no %s XDP, so the %s program classifies: %v", planned.Name, planned.Modes[0], attached.Mode, e),
					Remedy:  remedyFor(planned, e),
				})
			}
		case errors.Is(err, datapath.ErrNotLoaded) && len(keep) == 0:
			// The kernel refuses the program, and would on every interface. Nothing was changed yet.
			fail(ProblemNotAttached, "see the message; the policy in force stays in force", err)
			if err := generation.Discard(); err != nil {
				n.Log.Warn("pins stay", "error", err)
			}
			r.Interfaces = nil
			return got()
		case errors.Is(err, datapath.ErrForeignXDP) && !slices.Contains(planned.Modes, datapath.Classifier):
			fail(ProblemForeignXDP, remedyFor(planned, err), fmt.Errorf("%s is without the policy: %s", planned.Name, cmp.Or(planned.ForeignName, err.Error())))
		default:
			fail(ProblemNotAttached, remedyFor(planned, err), fmt.Errorf("%s is without the policy: %w", planned.Name, err))
		}
		if was, ok := old.stillGood(i, p.Policy, pins); !i.installed() && ok {
			i = was
		}
		if i.installed() {
			keep[i.Index] = i.Generation
		}
		r.Interfaces = append(r.Interfaces, i)
	}

	n.progress("table inet %s", nft.TableName)
	table := r.table(c.Mark, p.Rules)
	if err := table.Apply(); err != nil {
		fail(ProblemTable, "the kernel needs nf_tables with notrack, fib and counter objects (modules nft_ct, nft_fib_inet; nft_socket for "+config.Prefix+"remote-ports)", err)
	} else {
		r.Table = table.Digest()
	}

	n.progress("counters")
	for index := range keep {
		if err := pins.Carry(index); err != nil {
			n.Log.Warn("counters start anew", "error", err)
		}
	}

	n.progress("conntrack")
	if evicted, err := evict(p.Rules, r.Interfaces); err != nil {
		r.Problems = append(r.Problems, Problem{
			Code:    ProblemConntrack,
			Message: fmt.Sprintf("evict conntrack entries of flows that are now untracked: %v", err),
			Remedy:  "they expire by themselves; the kernel module nf_conntrack_netlink lets them be deleted at once",
		})
	} else {
		n.Log.Info("evicted conntrack entries", "entries", evicted)
	}

	n.progress("clean")
	if err := pins.Prune(p.Generation, keep); err != nil {
		n.Log.Warn("pins of an earlier generation stay", "error", err)
	}
	return n.record(r, p)
}

// record commits: the rules first, so that a record never stands without them.
func (n *Node) record(r *Record, p *Plan) (*Record, error) {
	n.progress("record")
	r.Broken = anyBroken(r.Problems)
	if err := writeFile(n.RunDir, rulesFile, newRuleRecords(r, p.Rules)); err != nil {
		return nil, err
	}
	if err := writeFile(n.RunDir, recordFile, r); err != nil {
		return nil, err
	}
	n.progress("done")
	return r, nil
}

func newRecord(version string, c *config.Config, p *Plan, old *Record) *Record {
	r := &Record{
		Version: version, Applied: time.Now().UTC(), Config: configHash(c), Tried: configHash(c), Policy: p.Policy,
		Generation: p.Generation, Network: c.Network, Networks: map[string]string{},
		Annotations: c.Annotations, Files: p.Files, Rules: len(p.Rules.Ingress) + len(p.Rules.Egress),
		Problems: slices.Clone(p.Problems),
	}
	if old != nil {
		maps.Copy(r.Networks, old.Networks)
	}
	r.Networks[c.Network] = r.Config
	return r
}

// recordKept records an apply that got nowhere: what was in force is, its rules too, and what is wrong is known.
func (n *Node) recordKept(failed, old *Record, p *Plan) (*Record, error) {
	if old == nil {
		return n.record(failed, p)
	}
	kept := *old
	kept.Version, kept.Tried, kept.Applied = failed.Version, failed.Tried, failed.Applied
	kept.Problems, kept.Broken = failed.Problems, anyBroken(failed.Problems)
	if err := writeFile(n.RunDir, recordFile, &kept); err != nil {
		return nil, err
	}
	return &kept, nil
}

// stillGood finds an interface that could not be changed over, say to another mode, and has the same rules in
// force as before: there the old programs stay. With other rules they must go, because the way out, which is
// written anew for all interfaces at once, would no longer fit the way in.
func (r *Record) stillGood(i InterfaceRecord, policy string, pins *datapath.Pins) (InterfaceRecord, bool) {
	if r == nil || r.Policy != policy {
		return InterfaceRecord{}, false
	}
	for _, was := range r.Interfaces {
		if was.Index == i.Index && was.Name == i.Name && was.installed() && pins.Verify(was.Index, was.Attached) == nil {
			was.ForeignXDP = i.ForeignXDP
			return was, true
		}
	}
	return InterfaceRecord{}, false
}

// table is the way out for every interface whose way in is installed: half a flow must not be untracked.
func (r *Record) table(mark uint32, rules policy.Rules) *nft.Table {
	t := &nft.Table{Mark: mark}
	var answers []policy.Rule
	for i := range rules.Ingress {
		if rules.Ingress[i].IsForAnswers() {
			answers = append(answers, rules.Ingress[i])
		}
	}
	for _, i := range r.Interfaces {
		if i.installed() {
			t.Endpoints = append(t.Endpoints, nft.Endpoint{Interface: i.Name, Rules: rules.Egress, Answers: answers})
		}
	}
	return t
}

func bpffsProblem(err error) Problem {
	return Problem{
		Code: ProblemBPFFS, Message: err.Error(), Broken: true,
		Remedy: "mount the BPF file system, or name another mount with " + config.Prefix + "bpffs",
	}
}

// remedyFor knows what commonly stands in the way of a driver's XDP.
func remedyFor(i PlannedInterface, err error) string {
	tooLarge := errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EOVERFLOW)
	switch {
	case errors.Is(err, datapath.ErrForeignXDP):
		return "remove the other program, or set " + config.Prefix + "mode to auto or tc; then run `untracked apply`"
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Sprintf("this interface has no native XDP as it is (`ethtool -k %s` shows receive offloads that drivers want off); set %smode to tc to do without", i.Name, config.Prefix)
	case tooLarge && i.MTU > maxPlainMTU:
		return fmt.Sprintf("the MTU of %d may be more than driver %q takes with XDP: try `ip link set %s mtu %d`, then `untracked apply`", i.MTU, i.Driver, i.Name, maxPlainMTU)
	case errors.Is(err, unix.ENOMEM):
		return fmt.Sprintf("driver %q needs spare queues for XDP: see `ethtool -l %s`, then run `untracked apply`", i.Driver, i.Name)
	}
	return "see the kernel's message in `dmesg`; set " + config.Prefix + "mode to tc to do without XDP"
}

// maxPlainMTU fits, with XDP's headroom, one page: what drivers without multi-buffer support ask for.
const maxPlainMTU = 3498
