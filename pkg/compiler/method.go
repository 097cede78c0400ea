// SPDX-License-Identifier: Apache-2.0

package compiler

// Method says how an image leads from a packet to the first rule that matches.
type Method struct {
	Name string `json:"name"`
	// Reason is why it is not Combined. (optional)
	Reason string `json:"reason,omitempty"`
	// Loads is how many reads from the tables a packet takes, at most.
	Loads int `json:"loads"`
	// Bytes is what the tables take.
	Bytes int `json:"bytes"`
}

// The names of methods.
const (
	// Combined tables cost the same for any number of rules.
	Combined = "combined"
	// BitVectors cost a step for every 64 rules, and for each Log and Pass rule that matches.
	BitVectors = "bit-vectors"
)

// loads counts the reads of one packet at worst.
func (l *Layout) loads() int {
	tree := func(t *Tree) int {
		if t.Root == 0 {
			return 0
		}
		return 1 + int(t.Steps+t.Deeper)
	}
	n := max(tree(&l.Src4), tree(&l.Src6)) + max(tree(&l.Dst4), tree(&l.Dst6))
	dims := 0
	for d := range numDims {
		if l.Uses>>d&1 != 0 {
			dims++
			if d == dimSport || d == dimL4 {
				n += 2
			}
		}
	}
	if l.Words > 0 {
		return n + dims*int(l.Words+l.Hops)
	}
	if l.First > 0 {
		n++
	}
	for kind, k := range l.Kinds {
		if k.Used == 0 {
			continue
		}
		minds := 0
		for d := range dimL4 {
			minds += (kind + 1) >> d & 1
		}
		n += 2*(minds-1) + int(k.Used)
	}
	return n
}
