// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/nft"
)

// Status is the state of the node.
type Status struct {
	Policy     PolicyStatus      `json:"policy"`
	Interfaces []InterfaceStatus `json:"interfaces"`
	Pods       PodsStatus        `json:"pods"`
	Conntrack  Conntrack         `json:"conntrack"`
	Problems   []ProblemStatus   `json:"problems"`

	// Broken says that some problem is more than advice.
	Broken bool `json:"-"`
}

// PolicyStatus names the policy in force. A zero Generation means that there is none.
type PolicyStatus struct {
	Hash       string `json:"hash"`
	Generation uint64 `json:"generation"`
	Rules      int    `json:"rules"`
	Network    string `json:"network"`
}

// InterfaceStatus is an interface that the policy covers.
type InterfaceStatus struct {
	Name         string `json:"name"`
	Index        int    `json:"ifindex"`
	Mode         string `json:"mode"`
	Attached     bool   `json:"attached"`
	ProgramID    uint32 `json:"programID"`
	HostEndpoint string `json:"hostEndpoint"`
	// Tables are those for arriving packets.
	Tables  compiler.Method `json:"tables"`
	Packets Packets         `json:"packets"`

	// counts are all that Packets are a part of, unless there is countsErr.
	counts    datapath.Counts
	countsErr error
}

// Packets counts arriving packets by what became of them; each is counted once.
type Packets struct {
	Untracked uint64 `json:"untracked"`
	Denied    uint64 `json:"denied"`
	Tracked   uint64 `json:"tracked"`
	Failsafe  uint64 `json:"failsafe"`
	Malformed uint64 `json:"malformed"`
	Fragment  uint64 `json:"fragment"`
}

// PodsStatus counts the pods that have ports of their own untracked, and those ports, each address's.
type PodsStatus struct {
	Mode  config.Pods `json:"mode"`
	Count int         `json:"count"`
	Ports int         `json:"ports"`
}

// Conntrack is how full the table of this network namespace is. Both are 0 where the kernel has no conntrack.
type Conntrack struct {
	Entries uint64 `json:"entries"`
	Max     uint64 `json:"max"`
}

// ProblemStatus is a Problem as listed.
type ProblemStatus struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
}

// fillWarning is the share of the conntrack table from which on status says so.
const fillWarning = 0.9

// Status reads the state of the node. It changes nothing and takes no lock.
func (n *Node) Status() (*Status, error) {
	s := &Status{Interfaces: []InterfaceStatus{}, Problems: []ProblemStatus{}, Conntrack: readConntrack()}
	record, err := readRecord(n.RunDir)
	if err == nil {
		err = s.addPods(n, record)
	}
	if err != nil {
		return nil, err
	}
	if p := runDirProblem(n.RunDir); p != nil {
		s.add(*p)
	}
	if record == nil && n.present() {
		s.add(Problem{
			Code: ProblemNotApplied, Message: "programs or a table of untracked are on this node without a record of what was applied", Broken: true,
			Remedy: "run `untracked apply CONFLIST`, or `untracked remove`",
		})
		s.addFill()
		return s, nil
	}
	if record == nil {
		s.add(Problem{
			Code: ProblemNotApplied, Message: "no policy has been applied to this node", Broken: true,
			Remedy: "run `untracked apply CONFLIST`, or start a pod on a network whose conf list has an untracked entry",
		})
		s.addFill()
		return s, nil
	}
	s.Policy = PolicyStatus{record.Policy, record.Generation, record.Rules, record.Network}
	for _, i := range record.Interfaces {
		s.Interfaces = append(s.Interfaces, n.interfaceStatus(&i))
	}
	for _, p := range record.problems() {
		s.add(p)
	}
	if p := n.unreadable(record); p != nil {
		s.add(*p)
	}
	for _, d := range n.statusDrift(record) {
		s.add(Problem{
			Code: ProblemDrift, Message: d, Broken: true,
			Remedy: "the next pod that starts puts it right; `untracked apply CONFLIST` does so now",
		})
	}
	s.addFill()
	return s, nil
}

// addPods counts the pods that have ports untracked, and finds those ports that are not reached for it.
func (s *Status) addPods(n *Node, r *Record) error {
	s.Pods.Mode = config.PodsIgnore
	if r != nil {
		s.Pods.Mode = config.Pods(cmp.Or(r.Annotations[config.Prefix+"pods"], string(s.Pods.Mode)))
	}
	all, err := n.Pods()
	failsafes := n.failsafes()
	for _, p := range tabled(all, failsafes) {
		s.Pods.Count++
		for _, port := range p.Ports {
			s.Pods.Ports += len(p.Addresses) * (int(port.Range.Last) - int(port.Range.First) + 1)
		}
	}
	if lost := n.lostPorts(); len(lost) > 0 {
		message := fmt.Sprintf("%s of a pod is not in table inet %s", lost[0], nft.PodsTable)
		if more := len(lost) - 1; more > 0 {
			message += fmt.Sprintf(", nor are %d others", more)
		}
		s.add(Problem{Code: ProblemDrift, Message: message, Remedy: "`untracked apply CONFLIST` writes the table anew", Broken: true})
	}
	problems, natErr := n.translated(context.Background(), all, failsafes)
	for _, p := range problems {
		s.add(p)
	}
	if natErr != nil {
		s.add(Problem{
			Code: ProblemTranslated, Message: fmt.Sprintf("whether ports of pods are reached by translation is not known: %v", natErr),
			Remedy: "look for them with `nft list ruleset` and `kubectl get endpointslices -A`",
		})
	}
	return err
}

// unreadable says what the next pod would fail with, if the files of the policy were changed into something wrong.
func (n *Node) unreadable(r *Record) *Problem {
	c, err := r.config()
	if err != nil || len(fileDrift(c, r.Files)) == 0 {
		return nil
	}
	if _, err := Read(c); err != nil {
		return &Problem{
			Code: ProblemBadPolicy, Message: fmt.Sprintf("the files of the policy were changed, and pods cannot start with them: %v", err), Broken: true,
			Remedy: "mend them; `untracked lint` says more; the policy in force stays in force until then",
		}
	}
	return nil
}

// statusDrift is the drift from what was applied. What the last apply could not do is told as its problems.
func (n *Node) statusDrift(r *Record) []string {
	c, err := r.config()
	if err != nil {
		return []string{err.Error()}
	}
	same := *r
	same.Broken, same.Config, same.Version = false, configHash(c), n.Version
	same.Networks = map[string]string{c.Network: same.Config}
	return n.drift(c, &same).words()
}

func (n *Node) interfaceStatus(i *InterfaceRecord) InterfaceStatus {
	s := InterfaceStatus{
		Name: i.Name, Index: i.Index, Mode: string(i.Attached.Mode), HostEndpoint: i.HostEndpoint, Tables: i.Tables,
	}
	if !i.installed() {
		return s
	}
	s.ProgramID = i.Attached.Program()
	pins := n.pins()
	s.Attached = pins.Verify(i.Index, i.Attached) == nil
	s.counts, s.countsErr = pins.Counts(i.Index)
	if c := s.counts; s.countsErr == nil {
		s.Packets = Packets{
			Untracked: c.Untracked.Packets, Denied: c.Denied.Packets, Tracked: c.Tracked.Packets,
			Failsafe: c.Failsafe.Packets, Malformed: c.Malformed.Packets, Fragment: c.Fragment.Packets,
		}
	}
	return s
}

func (s *Status) add(p Problem) {
	s.Problems = append(s.Problems, p.Status())
	s.Broken = s.Broken || p.Broken
}

func (s *Status) addFill() {
	if c := s.Conntrack; c.Max > 0 && float64(c.Entries) > fillWarning*float64(c.Max) {
		s.add(Problem{
			Code:    ProblemConntrackFull,
			Message: fmt.Sprintf("the conntrack table holds %d of %d entries; when it is full, new connections fail", c.Entries, c.Max),
			Remedy:  "see which ports fill it (`conntrack -L`), and name those that need no tracking in " + config.Prefix + "ports",
		})
	}
}

func readConntrack() Conntrack {
	return Conntrack{readNumber("/proc/sys/net/netfilter/nf_conntrack_count"), readNumber("/proc/sys/net/netfilter/nf_conntrack_max")}
}

// bridgeNetfilter reports whether bridged packets pass the hooks of either IP family in this namespace.
func bridgeNetfilter() bool {
	return readNumber("/proc/sys/net/bridge/bridge-nf-call-iptables") == 1 || readNumber("/proc/sys/net/bridge/bridge-nf-call-ip6tables") == 1
}

func readNumber(path string) uint64 {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return n
}
