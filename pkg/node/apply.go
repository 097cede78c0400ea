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
	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// apply carries a plan out, under the lock, and returns the new record. Each step may be repeated; the record,
// which says that all are done, is the last.
//
// Arriving packets change over before leaving ones: the reply to an untracked packet that is still tracked for
// a moment is harmless, a tracked connection whose replies conntrack never sees is not.
func (n *Node) apply(c *config.Config, p *Plan, old *Record, forced bool, t *attempt) (*Record, error) {
	a := &applier{
		Node: n, config: c, plan: p, old: old, forced: forced, attempt: t, result: newRecord(n.Version, c, p, old), keep: map[int]uint64{},
	}
	defer a.close()
	a.writePods()
	if !a.prepare() {
		return a.gotNowhere()
	}
	if !a.install() {
		return a.gotNowhere()
	}
	a.writeTable()
	a.tidy()
	a.number()
	return n.record(a.result, p, t)
}

// applier is one apply under way.
type applier struct {
	*Node
	config *config.Config
	plan   *Plan
	// old is the record of what is in force, nil if nothing is.
	old *Record
	// forced says that an operator asked for it.
	forced  bool
	attempt *attempt
	// result is the record to be, filled step by step.
	result     *Record
	generation *datapath.Generation
	// tables are those of the plan's lists.
	tables []*datapath.Tables
	// keep has the interfaces that have a policy, and the generation in force there.
	keep map[int]uint64
	// changed says that something is in force now that was not.
	changed bool
}

// fail notes a problem that leaves some of the policy out of force.
func (a *applier) fail(code, remedy string, err error) {
	a.Log.Error("apply", "problem", code, "error", err)
	a.result.Problems = append(a.result.Problems, Problem{Code: code, Message: err.Error(), Remedy: remedy, Broken: true})
}

// prepare makes everything that can be made without changing what is in force.
func (a *applier) prepare() bool {
	a.progress("file system")
	err := datapath.EnsureBPFFS(a.BPFFS)
	if err == nil {
		err = a.pins().Create()
	}
	if err != nil {
		problem := bpffsProblem(err)
		a.fail(problem.Code, problem.Remedy, err)
		if a.movedPins(a.old) != nil {
			return false // what is pinned in the former file system stays in force
		}
		// Programs of ours, if there were any, went away with their pins; the way out must not stay untracked alone.
		if err := nft.Remove(); err != nil && !errors.Is(err, nft.ErrNotSupported) {
			a.fail(ProblemTable, "delete it: `nft delete table inet "+nft.TableName+"`", err)
		}
		a.old = nil
		return false
	}

	a.progress("tables of generation %d", a.plan.Generation)
	a.generation = a.pins().NewGeneration(a.plan.Generation, a.config.Mark)
	for i, l := range a.plan.Lists {
		if !slices.ContainsFunc(a.plan.Interfaces, func(p PlannedInterface) bool { return p.List == i && p.Stays == nil }) {
			a.tables = append(a.tables, nil)
			continue
		}
		tables, err := a.generation.Tables(l.Ingress, a.plan.Images[i])
		if err != nil {
			a.fail(ProblemNotAttached, staysRemedy, err)
			return false
		}
		a.tables = append(a.tables, tables)
	}
	return true
}

func (a *applier) close() {
	if a.generation != nil {
		a.generation.Close()
	}
}

const staysRemedy = "see the message; the policy in force stays in force"

// install changes the interfaces over, one by one. It returns false, with nothing changed, where the kernel refuses
// the program as such, or the file system its pins.
func (a *applier) install() bool {
	if moved := a.movedPins(a.old); moved != nil {
		// Two links cannot hold one hook: what was pinned elsewhere goes first, for a moment without policy.
		a.progress("pins at %s", moved.Dir())
		if err := moved.Remove(); err != nil {
			a.fail(ProblemNotAttached, "remove them by hand", fmt.Errorf("remove the pins of the former bpffs: %w", err))
		}
	}
	for _, planned := range a.plan.Interfaces {
		i := planned.record()
		i.ForeignXDP = planned.Foreign
		if planned.Stays != nil {
			i.Attached, i.Generation = planned.Stays.Attached, planned.Stays.Generation
		} else if len(planned.Modes) > 0 {
			a.progress("programs of %s", planned.Name)
			a.changed = true
			err := a.installOn(planned, &i)
			if a.hopeless(err) {
				a.fail(ProblemNotAttached, staysRemedy, err)
				a.result.Interfaces = nil
				return false
			}
			if err != nil {
				a.failInterface(planned, &i, err)
			}
		}
		if i.installed() {
			a.keep[i.Index] = i.Generation
		}
		a.result.Interfaces = append(a.result.Interfaces, i)
	}
	return true
}

// hopeless reports whether what went wrong on one interface, the first that was tried, would on all others, too.
func (a *applier) hopeless(err error) bool {
	everywhere := errors.Is(err, datapath.ErrNotPinned) || errors.Is(err, datapath.ErrNotLoaded) && len(a.plan.Lists) == 1
	return everywhere && len(a.keep) == 0 && len(a.result.Interfaces) == 0
}

// installOn installs the generation on an interface and records what came of it; where nothing did, but the rules
// are those in force there, what was there.
func (a *applier) installOn(planned PlannedInterface, i *InterfaceRecord) error {
	attached, refused, err := a.generation.Install(planned.Target(), planned.Modes, a.tables[planned.List])
	if err != nil {
		if was, ok := a.old.stillGood(*i, a.pins()); ok {
			*i = was
		}
		return err
	}
	i.Attached, i.Generation = attached, a.plan.Generation
	for _, e := range refused {
		a.result.Problems = append(a.result.Problems, Problem{
			Code:    ProblemXDPRefused,
			Message: fmt.Sprintf("%s: no %s XDP, so the %s program classifies: %v", planned.Name, planned.Modes[0], attached.Mode, e),
			Remedy:  remedyFor(planned, e),
		})
	}
	return nil
}

func (a *applier) failInterface(planned PlannedInterface, i *InterfaceRecord, err error) {
	code, why := ProblemNotAttached, err.Error()
	if errors.Is(err, datapath.ErrForeignXDP) && !slices.Contains(planned.Modes, datapath.Classifier) {
		code, why = ProblemForeignXDP, cmp.Or(planned.ForeignName, why)
	}
	state := "is without the policy"
	if i.installed() {
		state = fmt.Sprintf("has the policy still in mode %s", i.Attached.Mode)
	}
	a.fail(code, remedyFor(planned, err), fmt.Errorf("%s %s: %s", planned.Name, state, why))
}

// writeTable writes the other half of the datapath, unless it is as it should be, and evicts what either half no longer
// tracks.
func (a *applier) writeTable() {
	desired := a.result.table(a.config.Mark, func(list int) policy.Rules { return a.plan.Lists[list].Rules })
	table, err := desired.Compile()
	if err != nil {
		a.failTable(err)
		return
	}
	before, err := nft.InForce()
	known := err == nil && a.old != nil && before == a.old.Table
	if err != nil || before != table.Digest() || a.lacksLog(table.Digest()) {
		a.changed = true
		a.progress("table inet %s", nft.TableName)
		var over *nft.Compiled
		if known && table.Updatable() {
			over = a.former()
		}
		if !a.replace(table, over) {
			return
		}
	}
	a.result.Table = table.Digest()
	a.evict(known && !a.old.met(ProblemConntrack))
}

// former is the table in force, of which large sets need not be written again; nil if it is not on record. To read it
// takes less time than to write such a set, but more than to write all else.
func (a *applier) former() *nft.Compiled {
	c, err := a.old.config()
	if err != nil {
		return nil
	}
	s, err := readSnapshot(a.RunDir)
	if err != nil || s.Generation != a.old.Generation {
		return nil
	}
	table, err := a.old.table(c.Mark, s.rules).Compile()
	if err != nil {
		return nil
	}
	return table
}

// lacksLog reports whether the table with this digest, if it is in force, may be silent about what should be logged: it
// does not tell, and who wrote it may have been killed before it was recorded.
func (a *applier) lacksLog(digest string) bool {
	if a.old != nil && a.old.Table == digest {
		return a.old.met(ProblemNoLog)
	}
	return slices.ContainsFunc(a.plan.Lists, func(l List) bool { return policy.Logs(l.Egress) })
}

// replace puts the table in the place of the one in force, which over is if it is not nil.
func (a *applier) replace(table, over *nft.Compiled) bool {
	err := table.Apply(over)
	if errors.Is(err, nft.ErrNoLog) {
		a.result.Problems = append(a.result.Problems, Problem{
			Code: ProblemNoLog, Message: "on the way out: " + err.Error(), Remedy: "load these modules, then run `untracked apply`",
		})
		err = nil
	}
	if err != nil {
		a.failTable(err)
		return false
	}
	return true
}

func (a *applier) failTable(err error) {
	a.fail(ProblemTable, "the kernel needs nf_tables with notrack, fib and counter objects (modules nft_ct, nft_fib_inet; nft_socket for "+config.Prefix+"remote-ports)", err)
}

// evict looks at the flows of those interfaces whose rules were not in force before. whole says that the table was, and
// its flows were evicted, so that where the programs have stayed nothing is tracked that should not be.
func (a *applier) evict(whole bool) {
	var changed []InterfaceRecord
	for n, i := range a.result.Interfaces {
		was := a.old.on(hostif.Interface{Name: i.Name, Index: i.Index})
		if !whole || a.plan.Interfaces[n].Stays == nil || was == nil || was.Policy != i.Policy || was.Generation != i.Generation {
			changed = append(changed, i)
		}
	}
	if !slices.ContainsFunc(changed, func(i InterfaceRecord) bool { return i.installed() }) {
		return
	}
	a.progress("conntrack")
	evicted, err := evict(a.plan.Lists, changed)
	if err == nil {
		a.Log.Info("evicted conntrack entries", "entries", evicted)
		return
	}
	a.result.Problems = append(a.result.Problems, Problem{
		Code:    ProblemConntrack,
		Message: fmt.Sprintf("evict conntrack entries of flows that are now untracked: %v", err),
		Remedy:  "they expire by themselves; the kernel module nf_conntrack_netlink lets them be deleted at once",
	})
}

// number counts the change; where there was none, the generation is the one before.
func (a *applier) number() {
	if a.changed || len(a.plan.Leave) > 0 || a.old != nil && a.old.Policy != a.plan.Policy {
		return
	}
	a.result.Generation--
}

// tidy hands the counters on and removes what the generations before have left.
func (a *applier) tidy() {
	a.progress("counters")
	if err := a.pins().Carry(slices.Collect(maps.Keys(a.keep))...); err != nil {
		a.Log.Warn("counters start anew", "error", err)
	}
	a.progress("clean")
	if err := a.pins().Prune(a.keep, a.plan.logs()); err != nil {
		a.Log.Warn("pins of an earlier generation stay", "error", err)
	}
}

// gotNowhere records an apply that changed nothing.
func (a *applier) gotNowhere() (*Record, error) {
	for _, planned := range a.plan.Interfaces {
		a.result.Interfaces = append(a.result.Interfaces, planned.record())
	}
	return a.recordKept(a.result, a.old, a.plan, a.attempt)
}

// record commits: the rules first, so that a record never stands without them.
func (n *Node) record(r *Record, p *Plan, t *attempt) (*Record, error) {
	n.progress("record")
	r.Broken = anyBroken(r.Problems)
	err := writeFile(n.RunDir, rulesFile, newSnapshot(r.Generation, p.Lists))
	t.ended(r.Broken || err != nil)
	if err == nil {
		err = writeFile(n.RunDir, recordFile, r)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotRecorded, err)
	}
	n.progress("done")
	return r, nil
}

func newRecord(version string, c *config.Config, p *Plan, old *Record) *Record {
	hash := configHash(c)
	r := &Record{
		Version: version, Applied: time.Now().UTC(), Config: hash, Tried: hash, Policy: p.Policy,
		Generation: p.Generation, Network: c.Network, Networks: map[string]string{},
		Annotations: c.Annotations, Resources: c.Resources, Files: p.desired.files, Selectors: p.desired.selectors(),
		Rules: p.Rules(), Problems: slices.Clone(p.Problems), UsesAddresses: p.desired.needsAddresses(),
	}
	if old != nil {
		maps.Copy(r.Networks, old.Networks)
	}
	r.Networks[c.Network] = r.Config
	return r
}

// recordKept records an apply that got nowhere: what was in force is, its rules too, and what is wrong is known.
func (n *Node) recordKept(failed, old *Record, p *Plan, t *attempt) (*Record, error) {
	if old == nil {
		return n.record(failed, p, t)
	}
	kept := *old
	kept.Version, kept.Tried, kept.Applied = failed.Version, failed.Tried, failed.Applied
	kept.Problems = slices.Clone(failed.Problems)
	for _, p := range old.Problems {
		// What these are about is in force and as it was: the next apply must know.
		if (p.Code == ProblemConntrack || p.Code == ProblemNoLog) && !failed.met(p.Code) {
			kept.Problems = append(kept.Problems, p)
		}
	}
	kept.Broken = anyBroken(kept.Problems)
	kept.TriedFiles, kept.PodsTable = failed.Files, failed.PodsTable
	t.ended(true)
	if err := writeFile(n.RunDir, recordFile, &kept); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotRecorded, err)
	}
	return &kept, nil
}

// stillGood finds an interface that could not be changed over, say to another mode, and has the same rules in
// force as before: there the old programs stay. With other rules they must go, because the way out, which is
// written anew for all interfaces at once, would no longer fit the way in.
func (r *Record) stillGood(i InterfaceRecord, pins *datapath.Pins) (InterfaceRecord, bool) {
	was := r.on(hostif.Interface{Name: i.Name, Index: i.Index})
	if was == nil || was.Policy != i.Policy || !was.installed() || pins.Verify(was.Index, was.Attached) != nil {
		return InterfaceRecord{}, false
	}
	i.Attached, i.Generation = was.Attached, was.Generation
	return i, true
}

// table is the way out for every interface whose way in is installed: half a flow must not be untracked. rulesOf has the
// rules of each list.
func (r *Record) table(mark uint32, rulesOf func(list int) policy.Rules) *nft.Table {
	t := &nft.Table{Mark: mark}
	for _, i := range r.Interfaces {
		if !i.installed() {
			continue
		}
		rules := rulesOf(i.List)
		e := nft.Endpoint{Interface: i.Name, Rules: rules.Egress}
		for n := range rules.Ingress {
			e.Answers = append(e.Answers, rules.Ingress[n].AsksForAnswers()...)
		}
		t.Endpoints = append(t.Endpoints, e)
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
