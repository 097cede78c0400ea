// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// PortMapping is a hostPort of a pod, as a runtime tells plugins with the capability portMappings.
type PortMapping struct {
	HostPort uint16
	// Container is where it leads to.
	Container policy.Port
	// HostIP is the address of the host that it is for, empty for all.
	HostIP string
}

// PortMappings reads those of a runtimeConfig, none if it has none. What has no host port, or is of a protocol without
// ports, is left out.
func PortMappings(runtimeConfig []byte) ([]PortMapping, error) {
	var c struct {
		PortMappings []struct {
			HostPort      uint16 `json:"hostPort"`
			ContainerPort uint16 `json:"containerPort"`
			Protocol      string `json:"protocol"`
			HostIP        string `json:"hostIP"`
		} `json:"portMappings"`
	}
	if len(runtimeConfig) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(runtimeConfig, &c); err != nil {
		return nil, fmt.Errorf("portMappings of the runtimeConfig: %w", err)
	}
	protocols := map[string]uint8{"": policy.TCP, "tcp": policy.TCP, "udp": policy.UDP, "sctp": policy.SCTP}
	var out []PortMapping
	for _, m := range c.PortMappings {
		protocol, ok := protocols[strings.ToLower(m.Protocol)]
		if !ok || m.HostPort == 0 || m.ContainerPort == 0 {
			continue
		}
		out = append(out, PortMapping{
			HostPort: m.HostPort, HostIP: m.HostIP,
			Container: policy.Port{Protocol: protocol, Range: policy.PortRange{First: m.ContainerPort, Last: m.ContainerPort}},
		})
	}
	return out, nil
}

// LeadsTo reports whether the mapping leads to one of the ports.
func (m *PortMapping) LeadsTo(p policy.Port) bool {
	return m.Container.Protocol == p.Protocol && overlap(m.Container.Range, p.Range)
}

func (m *PortMapping) String() string {
	if m.HostIP != "" {
		return fmt.Sprintf("hostPort %d of %s", m.HostPort, m.HostIP)
	}
	return fmt.Sprintf("hostPort %d", m.HostPort)
}
