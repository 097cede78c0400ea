// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/nat"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/pods"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// translatedPatience bounds what the search for nat rules may add to the start of a pod. Each rule of the node costs it some
// microseconds. What an ADD does not find, [Node.Status] does.
const translatedPatience = 100 * time.Millisecond

// maxTranslated is how many ports of pods status names one by one.
const maxTranslated = 20

// WarnTranslated logs which ports of a pod others reach by translation: by its hostPorts, or by what nat rules there are
// already. An untracked packet is never translated: what the pod answers leaves with its own address, which the client
// did not call.
func (n *Node) WarnTranslated(ctx context.Context, c *config.Config, id pods.ID, mappings []nat.PortMapping) {
	pod, err := n.pods().Read(id)
	if err != nil || pod == nil {
		return // it has no ports untracked
	}
	warn := func(p Problem) { n.Log.Warn(p.Message, "problem", p.Code, "remedy", p.Remedy) }
	ctx, cancel := context.WithTimeout(ctx, translatedPatience)
	defer cancel()
	for _, of := range tabled([]pods.Record{*pod}, c.FailsafeInbound) {
		for _, port := range of.Ports {
			for _, m := range mappings {
				if m.LeadsTo(port) {
					warn(translated(of.Name, port.String(), m.String()))
				}
			}
		}
	}
	if len(mappings) > 0 {
		return // portmap's rules would say it again
	}
	found, err := n.translated(ctx, []pods.Record{*pod}, c.FailsafeInbound)
	if err != nil {
		n.Log.Debug("not all nat rules were read", "pod", pod.Name(), "error", err)
	}
	for _, p := range found {
		warn(p)
	}
}

// translated finds the ports of pods that nat rules of this node lead to: a Service's, a hostPort's. Its problems are those
// found so far where there is an error, too.
func (n *Node) translated(ctx context.Context, records []pods.Record, failsafes []policy.FailsafePort) ([]Problem, error) {
	all := tabled(records, failsafes)
	var addresses []netip.Addr
	for _, pod := range all {
		addresses = append(addresses, pod.Addresses...)
	}
	if len(addresses) == 0 {
		return nil, nil
	}
	found, err := nat.Read(ctx, addresses)
	var problems []Problem
	for _, pod := range all {
		problems = append(problems, translatedTo(pod, found)...)
	}
	if more := len(problems) - maxTranslated; more > 0 {
		problems = append(problems[:maxTranslated], Problem{
			Code: ProblemTranslated, Message: fmt.Sprintf("%d more ports of pods are reached by translation", more), Remedy: problems[0].Remedy,
		})
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("there are too many nat rules to read in the time: %w", err)
	}
	return problems, err
}

// translatedTo are the problems of one pod, each port's first translation on whichever of its addresses.
func translatedTo(pod nft.Pod, found map[netip.Addr][]nat.Translation) []Problem {
	var problems []Problem
	for _, port := range pod.Ports {
		for _, address := range pod.Addresses {
			if by := nat.To(port, found[address]); len(by) > 0 {
				problems = append(problems, translated(pod.Name, port.String()+" of "+address.String(), by[0].String()))
				break
			}
		}
	}
	return problems
}

func translated(pod, port, by string) Problem {
	return Problem{
		Code:    ProblemTranslated,
		Message: fmt.Sprintf("pod %s: %s is reached by %s, and an untracked packet is never translated: clients get no answers that way", pod, port, by),
		Remedy:  fmt.Sprintf("have clients call the pod's own address, or take the port out of %sports of the pod", config.Prefix),
	}
}
