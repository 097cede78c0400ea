// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"maps"

	"github.com/untracked-cni/untracked/test/lab"
)

// What is where on the machine. The conflist has the name that conf/untracked.service expects.
const (
	ConflistFile = CNIConf + "/10-bridge-untracked.conflist"
	// LogFile is where the plugin logs, at level debug.
	LogFile = "/var/log/untracked.log"
	// Network is the conflist's name.
	Network = "mynet"
)

// Conflist says what chain to write: bridge with host-local, then untracked.
type Conflist struct {
	// CNIVersion of the list: the runtime's.
	CNIVersion string
	// Annotations of the untracked entry, by their keys without "untracked.cni/". nil leaves the entry out.
	Annotations map[string]string
	// Entry holds further keys of the untracked entry, such as capabilities.
	Entry map[string]any
}

// JSON is the file's content.
func (c Conflist) JSON() []byte {
	type object = map[string]any
	plugins := []object{{
		"type": "bridge", "bridge": "cni0", "isGateway": true,
		"ipam": object{
			"type":   "host-local",
			"ranges": [][]object{{{"subnet": "10.88.0.0/16"}}, {{"subnet": "fd00:88::/64"}}},
			"routes": []object{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}},
		},
	}}
	if c.Annotations != nil {
		annotations := map[string]string{lab.AnnotationPrefix + "log-file": LogFile, lab.AnnotationPrefix + "log-level": "debug"}
		for key, value := range c.Annotations {
			annotations[lab.AnnotationPrefix+key] = value
		}
		entry := object{"type": "untracked", "annotations": annotations}
		maps.Copy(entry, c.Entry)
		plugins = append(plugins, entry)
	}
	text, err := json.MarshalIndent(object{"cniVersion": c.CNIVersion, "name": Network, "plugins": plugins}, "", "  ")
	if err != nil {
		panic(err) // only Entry can hold what JSON cannot
	}
	return append(text, '\n')
}

// WriteConflist writes ConflistFile.
func (m *Machine) WriteConflist(c Conflist) {
	m.t.Helper()
	m.WriteFile(ConflistFile, c.JSON(), 0o644)
}
