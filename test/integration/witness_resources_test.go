// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// witnessResources are Calico resources as a user writes them, all of them together with the labels annotation. They
// are this test's own types: what the pipeline under test reads is only their text.
type witnessResources struct {
	Labels        map[string]string                      `json:"labels,omitempty"`
	Tiers         []witnessResource[witnessTier]         `json:"tiers,omitempty"`
	NetworkSets   []witnessResource[witnessNetworkSet]   `json:"networkSets,omitempty"`
	HostEndpoints []witnessResource[witnessHostEndpoint] `json:"hostEndpoints,omitempty"`
	Policies      []witnessResource[witnessPolicy]       `json:"policies,omitempty"`
}

type witnessResource[Spec any] struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"`
	Metadata   witnessMeta `json:"metadata"`
	Spec       Spec        `json:"spec"`
}

type witnessMeta struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
}

func witnessNew[Spec any](kind, name string, labels map[string]string, spec Spec) witnessResource[Spec] {
	return witnessResource[Spec]{"projectcalico.org/v3", kind, witnessMeta{name, labels}, spec}
}

type witnessTier struct {
	Order *float64 `json:"order,omitempty"`
}

type witnessNetworkSet struct {
	Nets []string `json:"nets,omitempty"`
}

type witnessHostEndpoint struct {
	Node          string             `json:"node"`
	InterfaceName string             `json:"interfaceName,omitempty"`
	ExpectedIPs   []string           `json:"expectedIPs,omitempty"`
	Ports         []witnessNamedPort `json:"ports,omitempty"`
}

type witnessNamedPort struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
}

type witnessPolicy struct {
	Tier           string        `json:"tier,omitempty"`
	Order          *float64      `json:"order,omitempty"`
	Selector       string        `json:"selector,omitempty"`
	DoNotTrack     bool          `json:"doNotTrack"`
	ApplyOnForward bool          `json:"applyOnForward"`
	Types          []string      `json:"types,omitempty"`
	Ingress        []witnessRule `json:"ingress,omitempty"`
	Egress         []witnessRule `json:"egress,omitempty"`
}

type witnessRule struct {
	Action      string             `json:"action"`
	IPVersion   int                `json:"ipVersion,omitempty"`
	Protocol    witnessIntOrString `json:"protocol,omitzero"`
	NotProtocol witnessIntOrString `json:"notProtocol,omitzero"`
	ICMP        *witnessICMP       `json:"icmp,omitempty"`
	NotICMP     *witnessICMP       `json:"notICMP,omitempty"`
	Source      witnessEntity      `json:"source,omitzero"`
	Destination witnessEntity      `json:"destination,omitzero"`
}

type witnessICMP struct {
	Type uint8  `json:"type"`
	Code *uint8 `json:"code,omitempty"`
}

type witnessEntity struct {
	Nets              []string             `json:"nets,omitempty"`
	NotNets           []string             `json:"notNets,omitempty"`
	Selector          string               `json:"selector,omitempty"`
	NotSelector       string               `json:"notSelector,omitempty"`
	NamespaceSelector string               `json:"namespaceSelector,omitempty"`
	Ports             []witnessIntOrString `json:"ports,omitempty"`
	NotPorts          []witnessIntOrString `json:"notPorts,omitempty"`
}

func (e witnessEntity) IsZero() bool {
	return len(e.Nets)+len(e.NotNets)+len(e.Ports)+len(e.NotPorts) == 0 && e.Selector+e.NotSelector+e.NamespaceSelector == ""
}

// witnessIntOrString is a protocol or a port: written as a number where it is one.
type witnessIntOrString string

func (v witnessIntOrString) MarshalJSON() ([]byte, error) {
	if _, err := strconv.Atoi(string(v)); err == nil {
		return []byte(v), nil
	}
	return json.Marshal(string(v))
}

func (v *witnessIntOrString) UnmarshalJSON(b []byte) error {
	*v = witnessIntOrString(strings.Trim(string(b), `"`))
	return nil
}

// tree is the resources as nested maps and lists, fromTree its inverse. A tree is easy to cut branches from.
func (r *witnessResources) tree() map[string]any {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // nothing in the types can fail
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var tree map[string]any
	if err := d.Decode(&tree); err != nil {
		panic(err)
	}
	return tree
}

func witnessFromTree(tree any) *witnessResources {
	text, err := json.Marshal(tree)
	if err != nil {
		panic(err)
	}
	r := &witnessResources{}
	if err := json.Unmarshal(text, r); err != nil {
		panic(err)
	}
	return r
}

func (r *witnessResources) clone() *witnessResources { return witnessFromTree(r.tree()) }

// documents are the resources as YAML documents, the policies first: their order must not matter.
func (r *witnessResources) documents() (docs []string) {
	tree := r.tree()
	for _, kind := range []string{"policies", "networkSets", "hostEndpoints", "tiers"} {
		list, _ := tree[kind].([]any)
		for _, resource := range list {
			docs = append(docs, witnessYAML(resource, ""))
		}
	}
	return docs
}

func (r *witnessResources) String() string {
	labels := ""
	if len(r.Labels) > 0 {
		labels = "# untracked.cni/labels: " + r.labels() + "\n"
	}
	return labels + strings.Join(r.documents(), "---\n")
}

// labels is the value of the labels annotation.
func (r *witnessResources) labels() string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(r.Labels)) {
		out = append(out, key+"="+r.Labels[key])
	}
	return strings.Join(out, ",")
}

// write puts the documents into two files of a directory, nothing else being there.
func (r *witnessResources) write(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	docs := r.documents()
	half := len(docs) / 2
	for name, part := range map[string][]string{"a.yaml": docs[:half], "b.yaml": docs[half:]} {
		if len(part) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.Join(part, "---\n")), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Plain scalars, selectors among them, that are no number, no truth value and no null whatever version of YAML is asked.
var (
	witnessPlain   = regexp.MustCompile(`^[A-Za-z](?:[A-Za-z0-9 ./()='"&|{},!-]*[A-Za-z0-9)'"}])?$`)
	witnessKeyword = regexp.MustCompile(`^(?i:y|n|yes|no|on|off|true|false|null)$`)
)

// witnessYAML prints a value in block style, each line with the indentation in front.
func witnessYAML(v any, indent string) string {
	var b strings.Builder
	item := func(head string, v any) {
		m, isMap := v.(map[string]any)
		_, isList := v.([]any)
		switch {
		case isMap && len(m) == 0:
			fmt.Fprintf(&b, "%s%s {}\n", indent, head)
		case isMap || isList:
			fmt.Fprintf(&b, "%s%s\n%s", indent, head, witnessYAML(v, indent+"  "))
		default:
			fmt.Fprintf(&b, "%s%s %s", indent, head, witnessYAML(v, ""))
		}
	}
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			item(key+":", v[key])
		}
	case []any:
		for _, e := range v {
			if m, ok := e.(map[string]any); ok && len(m) > 0 {
				text := witnessYAML(m, indent+"  ")
				fmt.Fprintf(&b, "%s- %s", indent, text[len(indent)+2:])
				continue
			}
			item("-", e)
		}
	case string:
		if witnessPlain.MatchString(v) && !witnessKeyword.MatchString(v) {
			return v + "\n"
		}
		return strconv.Quote(v) + "\n"
	default:
		return fmt.Sprintln(v)
	}
	return b.String()
}
