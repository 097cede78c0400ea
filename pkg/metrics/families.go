// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// prefix begins the name of every family.
const prefix = "untracked_"

// Options say what Families should make of a measurement.
type Options struct {
	Version string
	// MaxRules is the highest number of rules that are told one by one; each is two series on each of its interfaces and
	// directions, and a policy may have 16,384. Where there are more, those that never matched are left out, and then the
	// last ones: an interface's packets, which are counted apart, have them all. How many are left out is told.
	MaxRules int
	// Took is how long it took to measure.
	Took time.Duration
}

// Families are a measurement's. Every family is there at all times, if need be without a sample.
func Families(m *node.Measurement, o Options) []Family {
	var b builder
	b.add(Gauge, "build_info", "Version of untracked, by whose labels others can be grouped.",
		one(1, "version", o.Version, "goversion", runtime.Version()))
	b.policy(m.Status)
	b.applies(m.Applies)
	b.interfaces(m)
	b.rules(m.Rules, o.MaxRules)
	b.pods(m.Status)
	b.conntrack(m.Status)
	b.problems(m.Status)
	b.scrape(m, o.Took)
	return b.families
}

// builder collects families, a method for each subject.
type builder struct{ families []Family }

func (b *builder) add(t Type, name, help string, samples ...Sample) {
	b.families = append(b.families, Family{prefix + name, t, help, samples})
}

// one is a sample with pairs of a label's name and value.
func one(value float64, labels ...string) Sample {
	s := Sample{Value: value}
	for pair := range slices.Chunk(labels, 2) {
		s.Labels = append(s.Labels, Label{pair[0], pair[1]})
	}
	return s
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

func unixTime(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func (b *builder) policy(s *node.Status) {
	var inForce, generation, rules, info []Sample
	if s != nil {
		inForce = append(inForce, one(truth(!s.Broken)))
		generation = append(generation, one(float64(s.Policy.Generation)))
		rules = append(rules, one(float64(s.Policy.Rules)))
		if s.Policy.Generation > 0 {
			info = append(info, one(1, "hash", s.Policy.Hash, "network", s.Policy.Network))
		}
	}
	b.add(Gauge, "policy_in_force", "Whether a policy is in force everywhere, as the exit code of untracked status says: 1 if it is.", inForce...)
	b.add(Gauge, "policy_generation", "Generation of the policy in force, which each change raises; 0 if there is none.", generation...)
	b.add(Gauge, "policy_rules", "Rules of the policy in force, of both directions; those of interfaces with the same rules are counted once.", rules...)
	b.add(Gauge, "policy_info", "Hash of the rules in force, and the CNI network whose conf list has them.", info...)
}

func (b *builder) applies(a *node.Applies) {
	var duration, failures, last, took, success, succeeded []Sample
	if a != nil {
		duration = append(duration, Sample{Suffix: "_sum", Value: a.Seconds}, Sample{Suffix: "_count", Value: float64(a.Total)})
		failures = append(failures, one(float64(a.Failures)))
		if a.Total > 0 {
			last, took = append(last, one(unixTime(a.Last))), append(took, one(a.LastSeconds))
			success = append(success, one(truth(!a.LastFailed)))
		}
		if !a.LastSuccess.IsZero() {
			succeeded = append(succeeded, one(unixTime(a.LastSuccess)))
		}
	}
	b.add(Summary, "apply_duration_seconds", "Time that applies of a policy took, failed ones included, since boot.", duration...)
	b.add(Counter, "apply_failures", "Applies since boot that did not put all of the policy in force.", failures...)
	b.add(Gauge, "last_apply_duration_seconds", "Time that the last apply took.", took...)
	b.add(Gauge, "last_apply_success", "Whether the last apply put all of the policy in force: 1 if it did.", success...)
	b.add(Gauge, "last_apply_timestamp_seconds", "When the last apply ended. Nothing is applied where nothing has changed.", last...)
	b.add(Gauge, "last_successful_apply_timestamp_seconds", "When the last apply ended that put all of the policy in force.", succeeded...)
}

func (b *builder) interfaces(m *node.Measurement) {
	var attached, packets, bytes, handover []Sample
	if m.Status != nil {
		for _, i := range m.Status.Interfaces {
			mode := i.Mode
			if mode == "" {
				mode = "none"
			}
			attached = append(attached, one(truth(i.Attached), "interface", i.Name, "mode", mode))
		}
	}
	for i := range m.Traffic {
		t := &m.Traffic[i]
		for _, v := range []struct {
			verdict string
			datapath.Counter
		}{
			{"untracked", t.Untracked}, {"denied", t.Denied}, {"tracked", t.Tracked},
			{"failsafe", t.Failsafe}, {"malformed", t.Malformed}, {"fragment", t.Fragment},
		} {
			labels := []string{"interface", t.Interface, "direction", string(policy.Ingress), "verdict", v.verdict}
			packets = append(packets, one(float64(v.Packets), labels...))
			bytes = append(bytes, one(float64(v.Bytes), labels...))
		}
		handover = append(handover, one(float64(t.NoMetadata), "interface", t.Interface))
	}
	b.add(Gauge, "interface_attached", "Whether the program is where it was attached: 1 if it is. The mode is none where it could not be.", attached...)
	b.add(Counter, "interface_packets", "Packets that arrived, by what became of them; each is counted once. Leaving ones are counted by rule only.", packets...)
	b.add(Counter, "interface_bytes", "Bytes of these packets, IP headers included; those of malformed ones are not counted.", bytes...)
	b.add(Counter, "interface_handover_failures", "Packets that stayed tracked against the policy, because the driver carries no metadata from XDP to tc.", handover...)
}

// rules are told with zeroes, too: without its first value, a counter's first increase cannot be seen.
func (b *builder) rules(all []node.RuleTraffic, most int) {
	rules := merged(all)
	kept := rules
	if len(kept) > most {
		kept = slices.DeleteFunc(slices.Clone(kept), func(r node.RuleTraffic) bool { return r.Packets == 0 })
		kept = kept[:min(len(kept), most)]
	}
	packets, bytes := make([]Sample, len(kept)), make([]Sample, len(kept))
	for i, r := range kept {
		labels := []string{
			"interface", r.Interface, "direction", string(r.Direction), "tier", r.Tier, "policy", r.Policy,
			"index", strconv.Itoa(r.Index), "action", r.Action.String(),
		}
		packets[i], bytes[i] = one(float64(r.Packets), labels...), one(float64(r.Bytes), labels...)
	}
	b.add(Counter, "rule_packets", "Packets that a rule of the policy in force has matched. It goes on when the policy changes and the rule does not.", packets...)
	b.add(Counter, "rule_bytes", "Bytes of these packets, IP headers included.", bytes...)
	b.add(Gauge, "rules_omitted", "Rules left out of the two above because there are too many, those that never matched first. See untracked metrics --max-rules.",
		one(float64(len(rules)-len(kept))))
}

// merged are rules of which no two have the same labels: a scraper would refuse everything. One rule of a resource may
// have become several.
func merged(rules []node.RuleTraffic) []node.RuleTraffic {
	out := make([]node.RuleTraffic, 0, len(rules))
	at := make(map[node.RuleTraffic]int, len(rules))
	for _, r := range rules {
		name := r
		name.Packets, name.Bytes = 0, 0
		i, ok := at[name]
		if !ok {
			i = len(out)
			at[name], out = i, append(out, name)
		}
		out[i].Packets += r.Packets
		out[i].Bytes += r.Bytes
	}
	return out
}

func (b *builder) pods(s *node.Status) {
	var pods, ports []Sample
	if s != nil {
		pods, ports = append(pods, one(float64(s.Pods.Count))), append(ports, one(float64(s.Pods.Ports)))
	}
	b.add(Gauge, "pods", "Pods that have ports of their own untracked, by their annotations.", pods...)
	b.add(Gauge, "pod_ports", "Ports that pods have untracked, each address's.", ports...)
}

func (b *builder) conntrack(s *node.Status) {
	var entries, limit []Sample
	if s != nil && s.Conntrack.Max > 0 {
		entries, limit = append(entries, one(float64(s.Conntrack.Entries))), append(limit, one(float64(s.Conntrack.Max)))
	}
	b.add(Gauge, "conntrack_entries", "Entries in the connection tracking table of this network namespace.", entries...)
	b.add(Gauge, "conntrack_limit", "Entries from which on new connections fail (nf_conntrack_max).", limit...)
}

func (b *builder) problems(s *node.Status) {
	var samples []Sample
	if s != nil {
		codes := slices.Clone(node.ProblemCodes)
		met := map[string]bool{}
		for _, p := range s.Problems {
			met[p.Code] = true
			if !slices.Contains(codes, p.Code) {
				codes = append(codes, p.Code)
			}
		}
		for _, code := range codes {
			samples = append(samples, one(truth(met[code]), "code", code))
		}
	}
	b.add(Gauge, "problem", "Whether untracked status lists a problem with this code, and the remedy: 1 if it does.", samples...)
}

func (b *builder) scrape(m *node.Measurement, took time.Duration) {
	var errs []Sample
	for _, part := range node.MeasuredParts {
		errs = append(errs, one(float64(len(m.Errors[part])), "part", string(part)))
	}
	b.add(Gauge, "scrape_errors", "Errors while this was read; what could not be read is left out.", errs...)
	b.add(Gauge, "scrape_duration_seconds", "Time that it took to read this.", one(took.Seconds()))
}
