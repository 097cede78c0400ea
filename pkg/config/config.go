// SPDX-License-Identifier: Apache-2.0

// Package config reads the plugin's entry of a CNI conf list: what the node's operator asks for. [List] puts an entry
// there and takes it out.
//
// All of it is in the annotations of the entry, whose keys begin with [Prefix] and whose values are strings.
// Reading is strict. A policy that is not enforced because of a typing mistake is worse than a pod that
// fails with a message, so whatever is under our prefix and not understood is an error that names the key,
// the value and what would be right. Annotations of others are none of our business.
//
// The package is pure: it opens no files, resolves no interfaces and looks at no policy. It does ask for the
// host name, when the entry does not give the node's.
package config

import (
	"encoding/json"
	"log/slog"
	"os"
	"strings"

	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// PluginType is the type of our entry in a conf list.
const PluginType = "untracked"

// Prefix begins the keys of our annotations.
const Prefix = "untracked.cni/"

// Defaults of annotations that others need to know too. The failsafe lists' are in package policy.
const (
	DefaultMark   = 0x1000
	DefaultBPFFS  = "/sys/fs/bpf"
	DefaultRunDir = "/run/untracked"
)

// Mode says how packets are classified on arrival.
type Mode string

const (
	// ModeAuto is native XDP, and tc on an interface where that cannot be had.
	ModeAuto Mode = "auto"
	// ModeNative is XDP in the driver or nothing.
	ModeNative Mode = "native"
	// ModeGeneric is XDP in the network stack: slow, never a default.
	ModeGeneric Mode = "generic"
	// ModeTC is the tc program alone.
	ModeTC Mode = "tc"
)

// Pods says whether pods may ask for ports of their own addresses, by annotations of theirs.
type Pods string

const (
	// PodsIgnore leaves them unread.
	PodsIgnore Pods = "ignore"
	// PodsAllow fails the start of a pod that asks for what it cannot have.
	PodsAllow Pods = "allow"
	// PodsAllowLenient logs and ignores such annotations.
	PodsAllowLenient Pods = "allow-lenient"
)

// PodCapability is the capability by which a runtime hands a pod's annotations to a plugin, in its runtimeConfig.
const PodCapability = "io.kubernetes.cri.pod-annotations"

// Config is a valid entry with all defaults filled in.
type Config struct {
	// Network and CNIVersion are the list's name and version. Either may be empty in an entry run by hand.
	Network, CNIVersion string
	// PrevResult is the previous plugin's result byte for byte, nil if there is none.
	PrevResult json.RawMessage

	// Annotations are ours as they were written, without defaults: with Resources, the identity of the policy. Never
	// nil.
	Annotations map[string]string

	Interfaces []hostif.Selector
	// Node is empty where it is not given and the host has no name.
	Node   string
	Labels map[string]string // nil if none

	// Ports, RemotePorts and the sets are nil when not given. Given, none is empty.
	Ports, RemotePorts          []policy.Port
	Sources, Destinations, Deny *netset.Set
	DenyFiles                   []string // absolute paths
	// Inline has the resources that are written in the entry itself, not yet parsed.
	Inline []Inline
	// PolicyFiles are absolute paths of files, directories and globs.
	PolicyFiles []string
	// Resources is the entry's key of that name as it was written, nil if there is none.
	Resources json.RawMessage

	AutoReturn       bool
	FailsafeInbound  []policy.FailsafePort
	FailsafeOutbound []policy.FailsafePort

	Pods Pods
	// HearsPods says that the runtime is asked for the annotations of pods, or has sent some.
	HearsPods bool
	// PodAnnotations are those of the pod that a call is about, as far as they are ours. (optional)
	PodAnnotations map[string]string

	Mode     Mode
	Mark     uint32 // exactly one bit
	Required bool
	LogFile  string // absolute path, empty for stderr
	LogLevel slog.Level
	BPFFS    string // absolute path
	RunDir   string // absolute path
}

// Inline is YAML or JSON within a config, with the place of its first byte. The place has no line where that says
// nothing: what is in a string has lines of its own, and a runtime puts an entry on one line.
type Inline struct {
	Data []byte
	At   resource.Position
}

// Shorthand is the policy that the annotations write by themselves. The lists of DenyFiles are for the caller to read.
func (c *Config) Shorthand() policy.Shorthand {
	return policy.Shorthand{
		Deny: c.Deny, Ports: c.Ports, Sources: c.Sources, RemotePorts: c.RemotePorts, Destinations: c.Destinations,
	}
}

// Locations is the little that every verb needs, whatever the state of the config.
type Locations struct {
	Required               bool
	BPFFS, RunDir, LogFile string
	LogLevel               slog.Level
}

// hostname is a variable for tests.
var hostname = os.Hostname

// Parse reads one entry, as a runtime passes it on stdin for any verb. Its error is an [*Error] or a join of
// several, one for each thing that is wrong, in the order of their keys.
func Parse(entry []byte) (*Config, error) {
	doc, bad := newDocument("", entry)
	if bad != nil {
		return nil, bad
	}
	c, errs := parseEntry(doc, doc.start(), nil)
	return c, join(errs)
}

// Options reads what it can of an entry that may be broken in any way, and takes defaults for the rest. It
// is for the verbs that must work with a broken config, and for logging what is wrong with one.
func Options(entry []byte) Locations {
	c := newConfig()
	if doc, bad := newDocument("", entry); bad == nil {
		readOptions(doc, &c)
	}
	return Locations{Required: c.Required, BPFFS: c.BPFFS, RunDir: c.RunDir, LogFile: c.LogFile, LogLevel: c.LogLevel}
}

func readOptions(doc *document, c *Config) {
	fields, _ := doc.members(doc.start())
	for _, field := range fields {
		if field.key != "annotations" {
			continue
		}
		annotations, _ := doc.members(field.valueAt)
		for _, a := range annotations {
			name, ours := strings.CutPrefix(a.key, Prefix)
			value, isString := doc.stringAt(a.valueAt)
			if !ours || !isString {
				continue
			}
			switch name {
			case "required", "bpffs", "run-dir", "log-file", "log-level":
				_ = setters[name](c, value) // a setter that fails changes nothing
			}
		}
	}
}

// newConfig has the defaults that cost nothing.
func newConfig() Config {
	return Config{
		Annotations: map[string]string{},
		Interfaces:  []hostif.Selector{{Kind: hostif.ByDefaultRoute}},
		AutoReturn:  true,
		Pods:        PodsIgnore,
		Mode:        ModeAuto,
		Mark:        DefaultMark,
		LogLevel:    slog.LevelInfo,
		BPFFS:       DefaultBPFFS,
		RunDir:      DefaultRunDir,
	}
}
