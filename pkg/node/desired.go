// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
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
	fmt.Fprintf(h, "node=%q\n", c.Node)
	return shortHash(h.Sum(nil))
}

func shortHash(sum []byte) string { return hex.EncodeToString(sum[:8]) }

// policyHash identifies rules by all they match and do.
func policyHash(rules policy.Rules) string {
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
			}
			fmt.Fprintln(h)
		}
	}
	return shortHash(h.Sum(nil))
}

// Expand turns a config into the ordered rules of an interface, and says by which files. Its errors are
// config errors that name the annotation.
func Expand(c *config.Config) (policy.Rules, []FileStamp, error) {
	s := policy.Shorthand{
		Deny: c.Deny, Ports: c.Ports, Sources: c.Sources, RemotePorts: c.RemotePorts, Destinations: c.Destinations,
	}
	var stamps []FileStamp
	var errs []error
	for _, path := range c.DenyFiles {
		set, stamp, err := readList(path) // whose errors begin with the path
		if err != nil {
			errs = append(errs, &config.Error{Key: config.Prefix + "deny-files", Problem: err.Error()})
			continue
		}
		stamps = append(stamps, stamp)
		s.DenyFiles = append(s.DenyFiles, policy.NamedSet{Name: path, Set: set})
	}
	if len(errs) > 0 {
		return policy.Rules{}, nil, errors.Join(errs...)
	}
	rules := policy.Join(
		policy.FailsafeRules(c.FailsafeInbound, c.FailsafeOutbound),
		s.Denies(),
		s.Allows(),
	)
	if c.AutoReturn {
		rules.AddReturns()
	}
	return rules, stamps, nil
}

func readList(path string) (*netset.Set, FileStamp, error) {
	// The stamp is taken first: a file that changes while it is read will be seen to have changed.
	stamp, err := stampOf(path)
	if err != nil {
		return nil, FileStamp{}, listError(err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, FileStamp{}, listError(err)
	}
	defer f.Close()
	set, err := netset.ReadList(f, path)
	return set, stamp, err
}

// listError names the path once, in front.
func listError(err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return fmt.Errorf("%s: %w; want the path of a list with an address or CIDR a line", pathError.Path, pathError.Err)
	}
	return err
}

// adviceOn names what is valid in a config and still not what anybody wants.
func adviceOn(c *config.Config) []Problem {
	var out []Problem
	if c.Ports == nil && c.RemotePorts == nil && c.Deny == nil && c.DenyFiles == nil {
		out = append(out, Problem{
			Code:    ProblemEmptyPolicy,
			Message: "nothing is untracked or denied: the entry has no policy",
			Remedy:  fmt.Sprintf("name what this host serves in %sports, as in tcp/6379,udp/53", config.Prefix),
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
