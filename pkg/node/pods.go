// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/pods"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// maxSwept bounds how many sandboxes one ADD looks at: some microseconds each.
const maxSwept = 512

func (n *Node) pods() *pods.Store { return pods.At(n.RunDir) }

// AddPod takes what a pod asks for out of connection tracking, and forgets what is in its way: what the same attachment
// had, whoever had its addresses before, and pods whose sandbox has vanished. For a pod that asks for nothing, where nothing
// is in the way, it only reads. pod has everything but ports and sources.
//
// It is no part of Ensure: the table of pods is apart from the policy, and works where that cannot be put in force.
func (n *Node) AddPod(ctx context.Context, c *config.Config, pod pods.Record, asked config.PodRequest) error {
	store := n.pods()
	if len(asked.Ports) > 0 {
		pod.Addresses = n.takeable(pod.Addresses)
	}
	if len(asked.Ports) == 0 || len(pod.Addresses) == 0 {
		busy, err := n.inTheWay(store, &pod)
		if err != nil || !busy {
			return err
		}
	}
	pod.SetPorts(asked.Ports, asked.Sources)
	unlock, err := n.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return n.addPod(store, c, pod)
}

// inTheWay reports whether something has to be forgotten for a pod.
func (n *Node) inTheWay(store *pods.Store, pod *pods.Record) (bool, error) {
	if store.Has(pod.ID) {
		return true, nil
	}
	for _, a := range pod.Addresses {
		if other, err := store.Owner(a); other != nil || err != nil {
			return other != nil, err
		}
	}
	gone, err := store.Vanished(maxSwept)
	return len(gone) > 0, err
}

// addPod does the work of AddPod under the lock.
func (n *Node) addPod(store *pods.Store, c *config.Config, pod pods.Record) error {
	gone, err := store.Vanished(maxSwept)
	if err != nil {
		return err
	}
	gone = slices.DeleteFunc(gone, func(r pods.Record) bool { return r.ID == pod.ID })
	for _, r := range gone {
		n.Log.Info("pod has vanished", "pod", r.Name(), "container", r.Container, "netns", r.Netns)
	}
	old, err := store.Read(pod.ID)
	if err != nil {
		return err
	}
	wanted := len(pod.Ports) > 0 && len(pod.Addresses) > 0
	var out []pods.Record
	if old != nil && wanted && old.Same(&pod) {
		pod.Since, out = old.Since, append(out, *old)
	} else if old != nil {
		gone = append(gone, *old)
	} else if store.Has(pod.ID) { // and not to be understood
		if err := store.Remove(pod.ID, nil); err != nil {
			return err
		}
	}
	if err := n.forget(store, gone...); err != nil {
		return err
	}
	// The former owners of its addresses keep those that they have besides.
	var in []pods.Record
	for _, a := range pod.Addresses {
		other, err := store.Owner(a)
		if err != nil {
			return err
		}
		if other == nil || other.ID == pod.ID {
			continue
		}
		n.Log.Warn("the address of a pod is another's now", "address", a, "was", other.Name(), "container", other.Container, "now", pod.Name())
		if !slices.ContainsFunc(out, func(r pods.Record) bool { return r.ID == other.ID }) {
			out = append(out, *other)
			rest := store.Own(*other)
			rest.Addresses = slices.DeleteFunc(rest.Addresses, func(a netip.Addr) bool { return slices.Contains(pod.Addresses, a) })
			in = append(in, rest)
		}
		if !wanted {
			if err := store.Release(a); err != nil {
				return err
			}
		}
	}
	if !wanted {
		return n.edit(store, c.FailsafeInbound, out, in)
	}
	if pod.Since.IsZero() {
		pod.Since = time.Now().UTC()
	}
	if err := store.Write(&pod); err != nil {
		return err
	}
	if err := n.edit(store, c.FailsafeInbound, out, append(in, pod)); err != nil {
		return err // the record stays: with it, DEL and whoever writes the table anew know what there may be
	}
	n.Log.Info("ports of a pod are untracked", "pod", pod.Name(), "container", pod.Container, "addresses", pod.Addresses, "ports", pod.Ports, "sources", pod.Sources)
	return nil
}

// takeable are those addresses that a pod may have ports of: not the host's own, and none that is nobody's own.
func (n *Node) takeable(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		why := ""
		switch local, err := hostif.IsLocal(a); {
		case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Is6() && a.IsLinkLocalUnicast():
			why = "it is no address by which others reach the pod"
		case err != nil:
			why = err.Error()
		case local:
			why = "it is this host's own address"
		}
		if why != "" {
			n.Log.Warn("an address of the pod stays tracked", "address", a, "reason", why)
			continue
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// RemovePod takes an attachment off. For one that has no record, this is to look for it.
func (n *Node) RemovePod(ctx context.Context, id pods.ID) error {
	if !n.pods().Has(id) {
		return nil
	}
	unlock, err := n.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	store := n.pods()
	r, err := store.Read(id)
	if err != nil {
		return err
	}
	if r == nil {
		return store.Remove(id, nil)
	}
	return n.forget(store, *r)
}

// CollectPods takes off the attachments of a network that are not among those that still exist.
func (n *Node) CollectPods(ctx context.Context, network string, valid []pods.ID) error {
	store := n.pods()
	if !store.Exist() {
		return nil
	}
	unlock, err := n.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := store.List()
	if err != nil {
		return err
	}
	keep := make(map[pods.ID]bool, len(valid))
	for _, id := range valid {
		keep[id] = true
	}
	var errs []error
	for _, r := range all {
		if r.Network == network && !keep[r.ID] {
			errs = append(errs, n.forget(store, r))
		}
	}
	return errors.Join(errs...)
}

// forget takes records off, elements first.
func (n *Node) forget(store *pods.Store, records ...pods.Record) error {
	if len(records) == 0 {
		return nil
	}
	err := nft.EditPods(tabled(records, nil), nil)
	if errors.Is(err, nft.ErrPodsTableChanged) {
		// Whatever is in it now, let it be what the others have.
		ids := make(map[pods.ID]bool)
		for _, r := range records {
			ids[r.ID] = true
		}
		err = n.rewritePods(store, n.failsafes(), func(r pods.Record) bool { return !ids[r.ID] })
	}
	if err != nil && !errors.Is(err, nft.ErrNoPodsTable) && !errors.Is(err, nft.ErrNotSupported) {
		return err
	}
	var errs []error
	for _, r := range records {
		errs = append(errs, store.Remove(r.ID, &r))
	}
	return errors.Join(errs...)
}

// edit changes the table, or writes all of it where it is not as it should be.
func (n *Node) edit(store *pods.Store, failsafes []policy.FailsafePort, out, in []pods.Record) error {
	err := nft.EditPods(tabled(out, nil), tabled(in, failsafes))
	if errors.Is(err, nft.ErrNoPodsTable) && len(in) == 0 {
		return nil
	}
	if errors.Is(err, nft.ErrNoPodsTable) || errors.Is(err, nft.ErrPodsTableChanged) {
		n.Log.Warn("writing the table of pods anew", "reason", err)
		return n.rewritePods(store, failsafes, nil)
	}
	return err
}

// rewritePods writes the table of all records, or of those that pass.
func (n *Node) rewritePods(store *pods.Store, failsafes []policy.FailsafePort, pass func(pods.Record) bool) error {
	all, err := store.List()
	if err != nil {
		return err
	}
	if pass != nil {
		all = slices.DeleteFunc(all, func(r pods.Record) bool { return !pass(r) })
	}
	for i := range all {
		all[i] = store.Own(all[i])
	}
	return nft.WritePods(tabled(all, failsafes))
}

// tabled are records as the table has them, without failsafe ports. A record that cannot be understood has nothing.
func tabled(records []pods.Record, failsafes []policy.FailsafePort) []nft.Pod {
	var out []nft.Pod
	for i := range records {
		r := &records[i]
		ports, sources, err := r.Request()
		if err != nil {
			continue
		}
		out = append(out, nft.Pod{
			Owner: r.ID.String(), Name: r.Name(), Addresses: r.Addresses, Ports: config.WithoutFailsafes(ports, failsafes), Sources: sources,
		})
	}
	return out
}

// failsafes are those of the policy in force.
func (n *Node) failsafes() []policy.FailsafePort {
	r, err := readRecord(n.RunDir)
	if err != nil || r == nil {
		return nil
	}
	c, err := r.config()
	if err != nil {
		return nil
	}
	return c.FailsafeInbound
}

// Pods lists the pods that have ports untracked, with the addresses that are theirs. It changes nothing and takes no lock.
func (n *Node) Pods() ([]pods.Record, error) {
	store := n.pods()
	all, err := store.List()
	for i := range all {
		all[i] = store.Own(all[i])
	}
	return all, err
}

// CheckPod returns what an attachment should have untracked and has not. As with [Node.Check], what its ADD let pass is no
// drift unless the config says required: a run directory that nothing can be written to, and a kernel without the table.
func (n *Node) CheckPod(c *config.Config, pod pods.Record, asked config.PodRequest) ([]string, error) {
	if len(asked.Ports) == 0 || len(n.takeable(pod.Addresses)) == 0 {
		return nil, nil
	}
	missing, err := n.missingOf(pod)
	if err == nil && len(missing) == 0 || c.Required {
		return missing, err
	}
	why := cannotRecord(n.RunDir)
	if r, err := readRecord(n.RunDir); why == nil && err == nil && r != nil && r.met(ProblemPodsTable) {
		why = errors.New("the table of pods could not be written")
	}
	if why != nil {
		n.Log.Warn("the ports of a pod are not checked", "pod", pod.Name(), "error", why)
		return nil, nil
	}
	return missing, err
}

// missingOf returns what an attachment has on record, and not in the table.
func (n *Node) missingOf(pod pods.Record) ([]string, error) {
	r, err := n.pods().Read(pod.ID)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return []string{fmt.Sprintf("pod %s: there is no record of its ports", pod.Name())}, nil
	}
	missing, err := nft.MissingPods(tabled([]pods.Record{*r}, n.failsafes())...)
	if errors.Is(err, nft.ErrNoPodsTable) {
		return []string{err.Error()}, nil
	}
	for i := range missing {
		missing[i] = fmt.Sprintf("pod %s: %s is not in table inet %s", pod.Name(), missing[i], nft.PodsTable)
	}
	return missing, err
}

// writePods makes the table of pods what the config wants, whatever becomes of the policy.
func (a *applier) writePods() {
	a.progress("pods")
	if err := a.podsTable(); err != nil {
		a.fail(ProblemPodsTable, "the kernel needs nf_tables with notrack and counter objects (module nft_ct)", err)
	}
}

func (a *applier) podsTable() error {
	store := a.pods()
	if a.config.Pods == config.PodsIgnore {
		if err := a.dismissPods(store); err != nil {
			return err
		}
		left, err := store.List()
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return errors.Join(store.RemoveAll(), nft.RemovePods())
		}
		// Those of other networks go on to need the table.
	}
	// An attempt that failed may have written it with other failsafes than those on record.
	const failsafes = config.Prefix + policy.FailsafeInbound
	same := a.old != nil && !a.old.Broken && a.old.Annotations[failsafes] == a.config.Annotations[failsafes]
	digest, err := nft.PodsInForce()
	if a.forced || !same || err != nil || digest != nft.PodsDigest() {
		if err := a.rewritePods(store, a.config.FailsafeInbound, nil); err != nil {
			return err
		}
	}
	a.result.PodsTable = nft.PodsDigest()
	return nil
}

// dismissPods takes off the pods of the network whose entry does not allow them any more; where an operator asked for it,
// all.
func (a *applier) dismissPods(store *pods.Store) error {
	all, err := store.List()
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(r pods.Record) bool { return !a.forced && r.Network != a.config.Network })
	return a.forget(store, all...)
}
