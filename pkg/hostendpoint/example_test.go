// SPDX-License-Identifier: Apache-2.0

package hostendpoint_test

import (
	"fmt"
	"net/netip"

	"github.com/untracked-cni/untracked/pkg/hostendpoint"
	"github.com/untracked-cni/untracked/pkg/resource"
)

const redis = `
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: redis1-eth0, labels: {hep: redis-host}}
spec:
  node: redis1
  interfaceName: eth0
  ports: [{name: redis, protocol: TCP, port: 6379}]
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: clients, labels: {role: redis-client}}
spec:
  nets: [192.0.2.0/24, 2001:db8::/64]
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: redis}
spec:
  doNotTrack: true
  applyOnForward: true
  selector: has(hep) && hep == "redis-host"
  ingress:
  - action: Allow
    protocol: TCP
    source: {selector: role == "redis-client"}
    destination: {ports: [redis]}
  egress:
  - action: Allow
    protocol: TCP
    source: {ports: [redis]}
    destination: {selector: role == "redis-client"}
`

// From resources to the rules of an interface.
func Example() {
	var reader resource.Reader
	reader.Add([]byte(redis), resource.Position{File: "redis.yaml"})
	set, err := reader.Result()
	if err != nil {
		fmt.Println(err)
		return
	}

	fmt.Println("interfaces to look for:", hostendpoint.Selectors(set, "redis1"))
	endpoints := hostendpoint.Assign(set, hostendpoint.Node{Name: "redis1", Interfaces: []hostendpoint.Interface{
		{Name: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.7")}, Host: true},
	}})
	expander := hostendpoint.NewExpander(set, endpoints)
	for _, e := range endpoints {
		rules, err := expander.Rules(e.Labels)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(e.Name, e.Interfaces, e.Addresses)
		fmt.Println("in: ", rules.Ingress[0].Name(), rules.Ingress[0].Action, rules.Ingress[0].Match(), "·", rules.Ingress[0].Origin)
		fmt.Println("out:", rules.Egress[0].Name(), rules.Egress[0].Action, rules.Egress[0].Match(), "·", rules.Egress[0].Origin)
	}
	// Output:
	// interfaces to look for: [eth0]
	// redis1-eth0 [eth0] [203.0.113.7]
	// in:  default/redis[0] Allow tcp from selector role == "redis-client" (2 CIDRs) to endpoints with port redis (1 CIDR) port 6379 · redis.yaml:24
	// out: default/redis[0] Allow tcp from endpoints with port redis (1 CIDR) port 6379 to selector role == "redis-client" (2 CIDRs) · redis.yaml:29
}
