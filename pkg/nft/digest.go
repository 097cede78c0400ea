// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Digest identifies what Apply would write: chains, rules in their order, the content of their sets and the
// mark. It is pure, and the same for two tables that differ in nothing but the order of their endpoints.
func (t *Table) Digest() string {
	return t.ruleset().digest()
}

func (rs *ruleset) digest() string {
	placed := make([]placedRule, len(rs.rules))
	for i, r := range rs.rules {
		placed[i] = placedRule{r.chain, r.digest(), true}
	}
	return digest(0, baseChains, placed)
}

// placedRule is what a rule in the kernel tells about itself.
type placedRule struct {
	chain  string
	digest uint64
	// ours is false for a rule without our digest.
	ours bool
}

// digest hashes the state of a table, whether desired or read back. Chains are compared in the order of their
// names, rules of one chain in their own order.
func digest(tableFlags uint32, base []baseChain, rules []placedRule) string {
	rules = slices.Clone(rules)
	slices.SortStableFunc(rules, func(a, b placedRule) int { return strings.Compare(a.chain, b.chain) })
	h := fnv.New64a()
	fmt.Fprintf(h, "%d|", tableFlags)
	for _, c := range base {
		fmt.Fprintf(h, "%+v|", c)
	}
	for _, r := range rules {
		fmt.Fprintf(h, "%s %x %t|", r.chain, r.digest, r.ours)
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

// digest covers the rule's bytes on the wire, so that a version of this package that writes a policy in
// another way is seen as a change. Sets stand for their contents: their names and numbers may differ. A report is
// part of it even where the kernel cannot have it, so that the table in force is the one that is wanted.
func (r *rule) digest() uint64 {
	h := fnv.New64a()
	for _, s := range r.all() {
		if s.set != nil {
			fmt.Fprintf(h, "%s %d %x %t %t %q|", s.set.datatype.Name, s.set.count, s.set.hash, s.set.counters != nil, s.invert, s.set.comment)
			continue
		}
		b, err := expr.Marshal(unix.NFPROTO_INET, s.expr)
		if err != nil {
			panic(fmt.Sprintf("nft: marshal %T: %v", s.expr, err)) // no expression of ours can fail
		}
		fmt.Fprintf(h, "%d ", len(b))
		h.Write(b)
	}
	fmt.Fprintf(h, "|%s", r.comment)
	return h.Sum64()
}
