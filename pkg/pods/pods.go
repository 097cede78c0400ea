// SPDX-License-Identifier: Apache-2.0

// Package pods remembers which attachments of pods have ports of their own untracked: by container, because
// that is all that a runtime is sure to say when a pod goes away.
//
// A [Store] is a directory in the run directory:
//
//	pods/records/<container>@<interface>     what the attachment asked for and was given
//	pods/sandboxes/<container>@<interface>   a link that says which network namespace it lives in
//	pods/addresses/<address>                 a link to the record whose address it is
//
// The links are there to be read without opening a file: at every ADD the sandboxes are looked at, and whose
// an address was. A record is written before anything is done for it and removed after all is undone, so that whoever
// is killed in between leaves what the next one needs. An address belongs to the last who came with it.
//
// The package knows nothing of nftables and takes no lock: its callers hold the node's where they write.
package pods

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// ID identifies an attachment: a container's interface, as CNI_CONTAINERID and CNI_IFNAME name it.
type ID struct {
	Container string `json:"container"`
	Interface string `json:"interface"`
}

// maxContainer is the longest container ID that is used as it is. Runtimes' have 64 bytes.
const maxContainer = 80

// String is the ID in one word, which is short enough for a file's name and for a comment in nftables.
func (id ID) String() string { return id.join("/") }

// join is one to one: a container ID holds neither separator, and an interface name no slash.
func (id ID) join(separator string) string {
	container := id.Container
	if len(container) > maxContainer {
		sum := sha256.Sum256([]byte(container))
		container = "sha256." + hex.EncodeToString(sum[:])
	}
	return container + separator + id.Interface
}

func (id ID) file() string { return id.join("@") }

// Record is an attachment with what it has untracked.
type Record struct {
	ID
	// Network is the name of the conf list.
	Network string `json:"network"`
	// Namespace and Pod are as CNI_ARGS gave them, empty outside of Kubernetes.
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	// Netns is the path of the network namespace, and Sandbox identifies what was there (see [Sandbox]): empty if that
	// could not be told.
	Netns   string `json:"netns"`
	Sandbox string `json:"sandbox,omitempty"`
	// Addresses are the attachment's own.
	Addresses []netip.Addr `json:"addresses"`
	// Ports and Sources are as in the annotations, an item each. No sources stand for any.
	Ports   []string `json:"ports"`
	Sources []string `json:"sources,omitempty"`
	// Since is when the ports were taken out of connection tracking.
	Since time.Time `json:"since"`
}

// Name is namespace/pod, or the container where there is no such name.
func (r *Record) Name() string { return Name(r.Namespace, r.Pod, r.Container) }

// Name is what a pod is called.
func Name(namespace, pod, container string) string {
	if pod == "" {
		return container
	}
	return namespace + "/" + pod
}

// SetPorts writes ports and sources down.
func (r *Record) SetPorts(ports []policy.Port, sources *netset.Set) {
	r.Ports, r.Sources = nil, nil
	for _, p := range ports {
		r.Ports = append(r.Ports, p.String())
	}
	if sources != nil {
		for _, p := range sources.Prefixes() {
			r.Sources = append(r.Sources, p.String())
		}
	}
}

// Request reads what SetPorts wrote.
func (r *Record) Request() ([]policy.Port, *netset.Set, error) {
	ports, err := policy.ParsePorts(strings.Join(r.Ports, ","))
	if err != nil || r.Sources == nil {
		return ports, nil, err
	}
	var b netset.Builder
	for _, s := range r.Sources {
		if err := b.AddText([]byte(s)); err != nil {
			return nil, nil, err
		}
	}
	return ports, b.Build(), nil
}

// Same reports whether two records give the same: all but since when.
func (r *Record) Same(o *Record) bool {
	return r.ID == o.ID && r.Network == o.Network && r.Name() == o.Name() && r.Netns == o.Netns && r.Sandbox == o.Sandbox &&
		slices.Equal(r.Addresses, o.Addresses) && slices.Equal(r.Ports, o.Ports) && slices.Equal(r.Sources, o.Sources)
}
