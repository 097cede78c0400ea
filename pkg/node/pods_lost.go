// SPDX-License-Identifier: Apache-2.0

package node

import (
	"slices"
	"time"

	"github.com/untracked-cni/untracked/pkg/nft"
)

// betweenLooks is more than an ADD or DEL takes from the record of a pod to the table, or back.
const betweenLooks = 200 * time.Millisecond

// lostPorts lists what pods have on record and not in the table: somebody else took it out, which ADD, whose time is every
// pod's, does not look for. It takes no lock, so that what is amiss is looked at twice: a pod may be on its way. Of a table
// that cannot be read it says nothing.
func (n *Node) lostPorts() []string {
	lost := n.lostNow()
	if len(lost) == 0 {
		return nil
	}
	time.Sleep(betweenLooks)
	again := n.lostNow()
	return slices.DeleteFunc(lost, func(port string) bool { return !slices.Contains(again, port) })
}

func (n *Node) lostNow() []string {
	all, err := n.Pods()
	if err != nil || len(all) == 0 {
		return nil
	}
	missing, err := nft.MissingPods(tabled(all, n.failsafes())...)
	if err != nil {
		return nil // that the table is not there is drift of its own
	}
	return missing
}
