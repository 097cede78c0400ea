// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/files"
	"github.com/untracked-cni/untracked/pkg/hostendpoint"
	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// annotations that say how and where, not what: they are no part of the policy's identity.
var notPolicy = []string{"required", "log-file", "log-level", "bpffs", "run-dir"}

// configHash identifies the policy that a config asks for.
func configHash(c *config.Config) string {
	h := sha256.New()
	keys := make([]string, 0, len(c.Annotations))
	for k := range c.Annotations {
		if !slices.Contains(notPolicy, strings.TrimPrefix(k, config.Prefix)) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(h, "%q=%q\n", k, c.Annotations[k])
	}
	fmt.Fprintf(h, "resources=%q\nnode=%q\n", c.Resources, c.Node)
	return shortHash(h.Sum(nil))
}

func shortHash(sum []byte) string { return hex.EncodeToString(sum[:8]) }

// listHash identifies the rules of an endpoint by all they match and do.
func listHash(rules policy.Rules) string {
	h := sha256.New()
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		list := rules.Of(d)
		for i, id := range policy.IDs(list) {
			fmt.Fprintf(h, "%s %s %x", d, list[i].Name(), id)
			// A named set is known to the rule's identity by its name only.
			for _, e := range []*policy.Entity{&list[i].Source, &list[i].Destination} {
				if e.NetsName != "" {
					fmt.Fprintf(h, " %x", e.Nets.Hash())
				}
				if e.NotNetsName != "" {
					fmt.Fprintf(h, " not %x", e.NotNets.Hash())
				}
			}
			fmt.Fprintln(h)
		}
	}
	return shortHash(h.Sum(nil))
}

// Desired is what a config asks for, all its files read, whatever interfaces there are.
type Desired struct {
	config    *config.Config
	shorthand policy.Shorthand
	resources *resource.Set
	files     []files.Stamp
}

// Read reads the files that a config names. Its errors are config errors that name the annotation.
func Read(c *config.Config) (*Desired, error) {
	return read(c, func(string, ...any) {})
}

// read is [Read] with a function that is told each file.
func read(c *config.Config, progress func(format string, args ...any)) (*Desired, error) {
	d := &Desired{config: c, shorthand: c.Shorthand()}
	if err := errors.Join(d.readLists(progress), d.readResources(progress)); err != nil {
		return nil, err
	}
	return d, nil
}

// howFar is said behind the i-th of n.
func howFar(i, n int) string {
	if n == 1 {
		return ""
	}
	return fmt.Sprintf(" (%d of %d)", i+1, n)
}

func (d *Desired) readLists(progress func(string, ...any)) error {
	const key = config.Prefix + "deny-files"
	var errs []error
	for i, path := range d.config.DenyFiles {
		progress("reading %s%s", path, howFar(i, len(d.config.DenyFiles)))
		set, err := d.readList(path)
		if err != nil { // it begins with the path
			errs = append(errs, &config.Error{Key: key, Problem: err.Error()})
			continue
		}
		d.shorthand.DenyFiles = append(d.shorthand.DenyFiles, policy.NamedSet{Name: path, Set: set})
	}
	return errors.Join(errs...)
}

func (d *Desired) readList(path string) (*netset.Set, error) {
	data, stamp, err := files.Read(path)
	if err != nil {
		return nil, files.Problem(err, "want the path of a list with an address or CIDR a line")
	}
	d.files = append(d.files, stamp)
	return netset.ParseList(data, path)
}

func (d *Desired) readResources(progress func(string, ...any)) error {
	const key = config.Prefix + "policy-files"
	var r resource.Reader
	for _, inline := range d.config.Inline {
		r.Add(inline.Data, inline.At)
	}
	paths, err := files.Find(d.config.PolicyFiles)
	var errs []error
	if err != nil {
		errs = append(errs, &config.Error{Key: key, Problem: err.Error()})
	}
	for i, path := range paths {
		progress("reading %s%s", path, howFar(i, len(paths)))
		data, stamp, err := files.Read(path)
		if err != nil {
			err = files.Problem(err, "want a file with resources in YAML or JSON")
			errs = append(errs, &config.Error{Key: key, Problem: err.Error()})
			continue
		}
		d.files = append(d.files, stamp)
		r.Add(data, resource.Position{File: path})
	}
	d.resources, err = r.Result()
	for _, e := range resource.Errors(err) {
		problem := &config.Error{Problem: e.Error()}
		if slices.Contains(paths, e.File) {
			problem.Key = key
		}
		errs = append(errs, problem)
	}
	return errors.Join(errs...)
}

// selectors choose the interfaces that may have a host endpoint: those of the annotation, and of written ones.
func (d *Desired) selectors() []hostif.Selector {
	return slices.Concat(d.config.Interfaces, hostendpoint.Selectors(d.resources, d.config.Node))
}

// selectorsOf are the selectors of one host endpoint, none if it is another node's.
func (d *Desired) selectorsOf(h *resource.HostEndpoint) []hostif.Selector {
	return hostendpoint.Selectors(&resource.Set{HostEndpoints: []resource.HostEndpoint{*h}}, d.config.Node)
}

// shadowed names the host endpoints that are in force nowhere, because each interface that they are about by name or
// address has another. For a glob or "*" to come last is what it is for.
func (d *Desired) shadowed(assigned map[string]Assignment, interfaces []hostif.Interface) []Problem {
	var out []Problem
	for n := range d.resources.HostEndpoints {
		h := &d.resources.HostEndpoints[n]
		exact := slices.DeleteFunc(d.selectorsOf(h), func(s hostif.Selector) bool {
			return s.Kind != hostif.ByName && s.Kind != hostif.ByNet
		})
		var lost []string
		won := false
		for _, i := range interfaces {
			won = won || assigned[i.Name].HostEndpoint == h.Name
			if slices.ContainsFunc(exact, func(s hostif.Selector) bool { return slices.Contains(i.SelectedBy, s) }) {
				lost = append(lost, fmt.Sprintf("%s has %s", i.Name, assigned[i.Name].HostEndpoint))
			}
		}
		if !won && len(lost) > 0 {
			out = append(out, Problem{
				Code:    ProblemShadowed,
				Message: fmt.Sprintf("HostEndpoint %s (%s) is in force nowhere: %s, and an interface has one", h.Name, h.At, strings.Join(lost, ", ")),
				Remedy:  "keep one HostEndpoint for the interface and give it the labels of both; of several, the smallest name wins",
			})
		}
	}
	return out
}

// expected are the selectors that should choose an interface: those that were written. The default says nothing where
// there are host endpoints.
func (d *Desired) expected() []hostif.Selector {
	if _, given := d.config.Annotations[config.Prefix+"interfaces"]; given || len(d.resources.HostEndpoints) == 0 {
		return d.selectors()
	}
	return hostendpoint.Selectors(d.resources, d.config.Node)
}

// needsAddresses reports whether the policy depends on the addresses that interfaces have: to find the interface of a
// host endpoint, or as what a selector or a port's name stands for.
func (d *Desired) needsAddresses() bool {
	if slices.ContainsFunc(d.resources.HostEndpoints, func(h resource.HostEndpoint) bool {
		return h.Node == d.config.Node && h.InterfaceName == ""
	}) {
		return true
	}
	named := func(p *resource.Ports) bool { return p != nil && len(p.Names) > 0 }
	stands := func(r resource.Rule) bool {
		for _, e := range r.Sides() {
			if e.Selector != nil || e.NotSelector != nil || named(e.Ports) || named(e.NotPorts) {
				return true
			}
		}
		return false
	}
	return slices.ContainsFunc(d.resources.Policies, func(p resource.Policy) bool {
		return slices.ContainsFunc(p.RulesOf(policy.Ingress), stands) || slices.ContainsFunc(p.RulesOf(policy.Egress), stands)
	})
}

// List is the ordered rules of one or several interfaces.
type List struct {
	policy.Rules
	// Hash identifies the rules.
	Hash string
}

// Assignment is the host endpoint of an interface, with its rules.
type Assignment struct {
	HostEndpoint string
	// List is the index of the rules among all lists, Policy their hash.
	List   int
	Policy string
}

// Assign gives each interface its host endpoint and each endpoint its rules. Interfaces that have no endpoint are
// not in the map; without interfaces, the list is that of the implicit endpoint.
func (d *Desired) Assign(interfaces []hostif.Interface) (map[string]Assignment, []List, error) {
	n := hostendpoint.Node{Name: d.config.Node, Labels: d.config.Labels}
	selected := map[string]bool{}
	for i := range interfaces {
		one := d.candidate(&interfaces[i])
		selected[one.Name] = one.Selected
		n.Interfaces = append(n.Interfaces, one)
	}
	endpoints := hostendpoint.Assign(d.resources, n)
	if len(endpoints) == 0 {
		endpoints = []hostendpoint.Endpoint{{Name: hostendpoint.Implicit, Labels: d.config.Labels}}
	}
	expander := hostendpoint.NewExpander(d.resources, endpoints)
	var lists []List
	assigned := map[string]Assignment{}
	for i := range endpoints {
		e := &endpoints[i]
		written, err := expander.Rules(e.Labels)
		if err != nil {
			return nil, nil, &config.Error{Problem: err.Error()}
		}
		at := map[bool]int{} // where the list with and the one without shorthand is
		list := func(shorthand bool) int {
			place, ok := at[shorthand]
			if !ok {
				lists, place = withList(lists, d.rules(written, shorthand))
				at[shorthand] = place
			}
			return place
		}
		if len(e.Interfaces) == 0 && e.Resource == nil {
			list(true)
		}
		for _, name := range e.Interfaces {
			n := list(selected[name])
			assigned[name] = Assignment{e.Name, n, lists[n].Hash}
		}
	}
	return assigned, lists, nil
}

// withList adds a list unless an equal one is there.
func withList(lists []List, rules policy.Rules) ([]List, int) {
	l := List{rules, listHash(rules)}
	if at := slices.IndexFunc(lists, func(o List) bool { return o.Hash == l.Hash }); at >= 0 {
		return lists, at
	}
	return append(lists, l), len(lists)
}

func (d *Desired) candidate(i *hostif.Interface) hostendpoint.Interface {
	one := hostendpoint.Interface{Name: i.Name, FoundBy: i.SelectedBy}
	for _, prefix := range i.Addresses {
		one.Addresses = append(one.Addresses, prefix.Addr())
	}
	for _, s := range i.SelectedBy {
		one.Host = one.Host || s.Kind == hostif.ByHost
		one.Selected = one.Selected || slices.Contains(d.config.Interfaces, s)
	}
	return one
}

// rules is the whole list of an interface in its order: failsafe ports, the shorthand's denials, what is written, the
// shorthand's ports, and what is missing of return rules.
func (d *Desired) rules(written policy.Rules, shorthand bool) policy.Rules {
	s := &d.shorthand
	if !shorthand {
		s = &policy.Shorthand{}
	}
	rules := policy.Join(policy.FailsafeRules(d.config.FailsafeInbound, d.config.FailsafeOutbound), s.Around(written))
	if d.config.AutoReturn {
		rules.AddReturns()
	}
	return rules
}

// decides reports whether a list does more than leave failsafe ports alone.
func (l *List) decides() bool {
	acts := func(r policy.Rule) bool { return r.Action == policy.Allow || r.Action == policy.Deny }
	return slices.ContainsFunc(l.Ingress, acts) || slices.ContainsFunc(l.Egress, acts)
}

func (d *Desired) whyEmpty() string {
	if len(d.resources.Policies) > 0 {
		return "no policy with such a rule selects a host endpoint of this node"
	}
	return "the entry has no policy"
}

// adviceOnEndpoints says when the written host endpoints are all other nodes': mostly this one's name is spelt
// differently.
func (d *Desired) adviceOnEndpoints() []Problem {
	const key = config.Prefix + "node"
	var nodes []string
	for _, e := range d.resources.HostEndpoints {
		nodes = append(nodes, e.Node)
	}
	slices.Sort(nodes)
	nodes = slices.Compact(nodes)
	this := d.config.Node
	if len(nodes) == 0 || slices.Contains(nodes, this) {
		return nil
	}
	p := Problem{
		Code:    ProblemNoHostEndpoint,
		Message: fmt.Sprintf("HostEndpoints are of %s, none of this node, which is called %q", shortList(nodes), this),
		Remedy: fmt.Sprintf("set %s to the name that they have for it (the default is the host name), or correct their spec.node; "+
			"none is needed if this node is to have no HostEndpoint", key),
	}
	if this == "" {
		p.Message = fmt.Sprintf("HostEndpoints are of %s, and which of them this node is cannot be told: the host has no name", shortList(nodes))
		p.Remedy = fmt.Sprintf("set %s", key)
	}
	if alike := slices.IndexFunc(nodes, func(n string) bool { return sameHost(n, this) }); alike >= 0 {
		p.Remedy = fmt.Sprintf("if this is %s, set %s to that, or correct spec.node", nodes[alike], key)
	}
	return []Problem{p}
}

// sameHost reports whether two names may be one host's: they differ in case, or one of them has no domain.
func sameHost(a, b string) bool {
	shortA, _, _ := strings.Cut(a, ".")
	shortB, _, _ := strings.Cut(b, ".")
	return b != "" && (strings.EqualFold(a, b) || strings.EqualFold(a, shortB) || strings.EqualFold(shortA, b))
}

// shortList joins a list that may be long.
func shortList(items []string) string {
	const shown = 5
	if more := len(items) - shown; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(items[:shown], ", "), more)
	}
	return strings.Join(items, ", ")
}

// adviceOn names what is valid in a config and still not what anybody wants.
func (d *Desired) adviceOn(lists []List) []Problem {
	c := d.config
	out := d.adviceOnEndpoints()
	if !slices.ContainsFunc(lists, func(l List) bool { return l.decides() }) {
		out = append(out, Problem{
			Code:    ProblemEmptyPolicy,
			Message: "nothing is untracked or denied: " + d.whyEmpty(),
			Remedy:  fmt.Sprintf("name what this host serves in %sports, as in tcp/6379,udp/53, or policies that select it in %spolicy-files", config.Prefix, config.Prefix),
		})
	}
	if c.Pods != config.PodsIgnore && !c.HearsPods {
		out = append(out, Problem{
			Code:    ProblemPodsUnheard,
			Message: fmt.Sprintf("%spods is %s, but the entry does not ask the runtime for the annotations of pods", config.Prefix, c.Pods),
			Remedy:  fmt.Sprintf(`add "capabilities": {%q: true} to the entry of type %q`, config.PodCapability, config.PluginType),
		})
	}
	// Ports that the policy names and a failsafe takes away again.
	check := func(key string, ports []policy.Port, failsafes []policy.FailsafePort, list string) {
		for _, p := range ports {
			var taken []string
			for _, f := range failsafes {
				if f.Protocol == p.Protocol && !f.Net.IsValid() && p.Range.First <= f.Port && f.Port <= p.Range.Last {
					taken = append(taken, strconv.Itoa(int(f.Port)))
				}
			}
			if len(taken) > 0 {
				out = append(out, Problem{
					Code: ProblemFailsafePort,
					Message: fmt.Sprintf("%s%s: %s/%s stays tracked at %s, because failsafe ports do", config.Prefix, key,
						policy.ProtocolName(p.Protocol), p.Range, strings.Join(taken, ",")),
					Remedy: fmt.Sprintf("set %s%s to a list without them if you want them untracked", config.Prefix, list),
				})
			}
		}
	}
	check("ports", c.Ports, c.FailsafeInbound, policy.FailsafeInbound)
	check("remote-ports", c.RemotePorts, c.FailsafeOutbound, policy.FailsafeOutbound)
	return out
}
