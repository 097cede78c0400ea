// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/files"
	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/nft"
)

// drift is where the node does not match a config, kind by kind.
type drift struct {
	// config: another policy is asked for, or another version asks.
	config []string
	// network: the same policy is asked for by a network that the record does not have.
	network []string
	// broken: the last apply could not do it all.
	broken []string
	// files: a file that the policy was read from changed.
	files []string
	// addresses: an interface has others than those that the policy was made with.
	addresses []string
	// datapath: what was set up is no longer as it was.
	datapath []string
}

func (d *drift) words() []string {
	return slices.Concat(d.config, d.network, d.broken, d.files, d.addresses, d.datapath)
}

func (d *drift) onlyNetwork() bool { return len(d.network) == len(d.words()) }

// retryAfter is how long a node that could not do it all is left alone, when nothing changed meanwhile: an attempt
// is a whole apply, and a hundred pods may be starting.
const retryAfter = 30 * time.Second

// settled reports whether a caller that began at start has nothing to do. Where the policy is required, it makes an
// attempt of its own, or takes the result of one that was made while it waited for the lock.
func (d *drift) settled(c *config.Config, r *Record, start time.Time) bool {
	if len(d.words()) > len(d.broken) {
		return false
	}
	return len(d.broken) == 0 || r.Applied.After(start) || !c.Required && time.Since(r.Applied) < retryAfter
}

// drift compares by reading only. It is on the path of every pod start.
func (n *Node) drift(c *config.Config, r *Record) *drift {
	if r == nil {
		return &drift{config: []string{"no policy has been applied"}}
	}
	d := &drift{}
	d.datapath, d.addresses = n.datapathDrift(c, r)
	hash := configHash(c)
	switch {
	case r.Version != n.Version:
		d.config = []string{fmt.Sprintf("applied by version %s, this is %s", r.Version, n.Version)}
	case r.Config != hash && r.Broken && r.Tried == hash:
		d.broken = []string{"the last attempt at this policy failed"}
	case r.Config != hash:
		d.config = []string{"the annotations changed"}
	case r.Networks[c.Network] != hash:
		d.network = []string{fmt.Sprintf("network %s has not been seen with this policy", c.Network)}
	}
	if c.HearsPods && r.met(ProblemPodsUnheard) {
		d.config = append(d.config, "the runtime is asked for the annotations of pods now")
	}
	if r.Broken {
		d.broken = append(d.broken, "the last apply met problems")
		mended := func(p Problem) bool { return p.Code == ProblemBPFFS && datapath.IsBPFFS(n.BPFFS) }
		if slices.ContainsFunc(r.Problems, mended) {
			d.datapath = append(d.datapath, "there is a BPF file system now")
		}
	}
	d.files = fileDrift(c, r.Files)
	if r.Broken && len(d.files) > 0 && r.TriedFiles != nil && len(fileDrift(c, r.TriedFiles)) == 0 {
		d.broken, d.files = append(d.broken, "the last attempt with these files failed"), nil
	}
	return d
}

// fileDrift compares the files that the policy was read from, and which there are now.
func fileDrift(c *config.Config, read []files.Stamp) []string {
	var out []string
	known := make(map[string]bool, len(read))
	for _, f := range read {
		known[f.Path] = true
		switch now, err := files.StampOf(f.Path); {
		case errors.Is(err, fs.ErrNotExist):
			out = append(out, f.Path+" is gone")
		case err != nil || now != f:
			out = append(out, f.Path+" changed")
		}
	}
	found, _ := files.Find(c.PolicyFiles) // one that is gone has changed
	for _, path := range found {
		if !known[path] {
			out = append(out, path+" is new")
		}
	}
	return out
}

// datapathDrift is the part of drift that does not depend on what the annotations say, only on what was done.
func (n *Node) datapathDrift(c *config.Config, r *Record) (out, addresses []string) {
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	selectors := r.Selectors
	const key = config.Prefix + "interfaces"
	if r.Annotations[key] != c.Annotations[key] {
		selectors = c.Interfaces
	}
	found, err := resolve(selectors, r)
	if err == nil && r.UsesAddresses {
		err = hostif.AddAddresses(found)
	}
	if err != nil {
		add("%v", err)
		return out, nil
	}
	pins := n.pins()
	installed := slices.ContainsFunc(r.Interfaces, func(i InterfaceRecord) bool { return i.installed() })
	if installed && !pins.Exist() {
		add("%v", n.notPinned())
		return out, nil
	}
	now := make(map[string]hostif.Interface, len(found))
	for _, f := range found {
		now[f.Name] = f
	}
	covered := make(map[int]uint64, len(r.Interfaces))
	for _, was := range r.Interfaces {
		covered[was.Index] = was.Generation
		is, ok := now[was.Name]
		delete(now, was.Name)
		switch {
		case !ok:
			add("interface %s is gone or no longer selected", was.Name)
			continue
		case is.Index != was.Index:
			add("interface %s was re-created", was.Name)
			continue
		case !slices.Equal(is.Addresses, was.Addresses):
			addresses = append(addresses, fmt.Sprintf("interface %s has other addresses", was.Name))
		}
		if was.ForeignXDP != 0 && is.XDP.ProgID != was.ForeignXDP {
			add("interface %s: the other XDP program is gone", was.Name)
		}
		if !was.installed() {
			continue
		}
		if err := pins.Verify(was.Index, was.Attached); err != nil {
			add("interface %s lost its program: %v", was.Name, err)
			continue
		}
		if was.Attached.Mode != datapath.Classifier && c.Mode == config.ModeAuto {
			if lacks, err := pins.LacksMetadata(was.Index, was.Generation); err != nil {
				add("interface %s lost its counters: %v", was.Name, err)
			} else if lacks {
				add("interface %s: the driver carries no metadata from XDP to tc", was.Name)
			}
		}
	}
	for name := range now {
		add("interface %s is new", name)
	}
	if installed {
		if err := pins.VerifyGenerations(covered); err != nil {
			add("%v", err)
		}
	}
	for _, table := range []struct {
		name, applied string
		read          func() (string, error)
	}{{nft.TableName, r.Table, nft.InForce}, {nft.PodsTable, r.PodsTable, nft.PodsInForce}} {
		if table.applied == "" {
			continue
		}
		switch digest, err := table.read(); {
		case errors.Is(err, nft.ErrNoTable):
			add("table inet %s is missing", table.name)
		case err != nil:
			add("%v", err)
		case digest != table.applied:
			add("table inet %s was changed", table.name)
		}
	}
	return out, addresses
}

// config is the one that was applied.
func (r *Record) config() (*config.Config, error) {
	fields := map[string]any{"name": r.Network, "type": config.PluginType, "annotations": r.Annotations}
	if r.Resources != nil {
		fields["resources"] = r.Resources
	}
	entry, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	c, err := config.Parse(entry)
	if err != nil {
		return nil, fmt.Errorf("the record's annotations: %w", err)
	}
	c.HearsPods = !r.met(ProblemPodsUnheard)
	return c, nil
}

// problems are those the record tells of: what apply met, and networks at odds.
func (r *Record) problems() []Problem {
	out := slices.Clone(r.Problems)
	var odd []string
	for network, hash := range r.Networks {
		if hash != r.Config {
			odd = append(odd, network)
		}
	}
	slices.Sort(odd)
	if len(odd) > 0 {
		out = append(out, Problem{
			Code:    ProblemConflict,
			Message: fmt.Sprintf("networks %s and %s carry different policies; that of %s is in force, as its caller was the last", r.Network, strings.Join(odd, ", "), r.Network),
			Remedy:  "give the entries of all conf lists the same annotations, then run `untracked apply`",
		})
	}
	return out
}
