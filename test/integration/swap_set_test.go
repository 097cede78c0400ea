// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/test/lab"
)

// swapSets are the handles of the table's sets, by name: the kernel gives a new one to each set that is written anew.
func (n *trafficNode) swapSets() map[string]uint64 {
	n.Helper()
	var list struct {
		Nftables []struct {
			Set *struct {
				Name   string
				Handle uint64
			}
		}
	}
	out := must(lab.Command(n.Node, "nft", "--json", "--handle", "--terse", "list", "table", "inet", "untracked").Output())(n)
	check(n, json.Unmarshal(out, &list))
	sets := map[string]uint64{}
	for _, o := range list.Nftables {
		if o.Set != nil {
			sets[o.Set.Name] = o.Set.Handle
		}
	}
	return sets
}

// swapHas reports whether one of the sets has an address.
func (n *trafficNode) swapHas(sets map[string]uint64, a netip.Addr) bool {
	n.Helper()
	for name := range sets {
		if lab.Command(n.Node, "nft", "get", "element", "inet", "untracked", name, "{", a.String(), "}").Run() == nil {
			return true
		}
	}
	return false
}

// A large set of the way out that gets another network stays, with its name and handle, and is given that network; it is
// written anew only where what is in force is not on record.
func TestSwapChangesLargeSet(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	const size = 5000 // more than the least that is changed in place
	var nets []string
	for i := range size {
		nets = append(nets, fmt.Sprintf("10.%d.%d.0/25", 100+i>>8, i&255))
	}
	more := func(net string) map[string]uint64 {
		t.Helper()
		nets = append(nets, net)
		n.applyPolicy(fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: bad, labels: {reputation: bad}}
spec: {nets: [%s]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: leaving}
spec:
  selector: all()
  doNotTrack: true
  applyOnForward: true
  types: [Egress]
  egress:
  - {action: Deny, destination: {selector: reputation == "bad"}}
`, strings.Join(nets, ", ")), nil)
		sets := n.swapSets()
		if got := netip.MustParsePrefix(net).Addr(); !n.swapHas(sets, got) {
			t.Errorf("no set has %s", got)
		}
		return sets
	}
	first := more("192.0.2.0/25")
	if len(first) == 0 {
		t.Fatal("the table has no set with a name")
	}
	second := more("198.51.100.0/25")
	if !maps.Equal(first, second) {
		t.Errorf("sets %v became %v, want them to stay", first, second)
	}
	if there := netip.MustParseAddr("10.100.0.1"); !n.swapHas(second, there) {
		t.Errorf("no set has %s any more", there)
	}
	n.healthy()

	check(t, os.Remove(filepath.Join(n.lab.RunDir, "rules.json")))
	if third := more("203.0.113.0/25"); maps.Equal(second, third) {
		t.Errorf("sets %v have stayed, though nothing says what is in them", third)
	}
	n.healthy()
}
