// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"strings"
)

var (
	witnessKeys   = []string{"role", "env", "example.com/zone"}
	witnessValues = []string{"db", "web", "web-1", "dbx", ""}
)

func (g *witnessRandom) labels() map[string]string {
	labels := map[string]string{}
	for _, key := range witnessKeys {
		if g.chance(55) {
			labels[key] = witnessPick(g, witnessValues...)
		}
	}
	return labels
}

// selector makes up an expression and remembers what it means.
func (g *witnessRandom) selector(depth int) string {
	text, means := g.expression(depth)
	g.selectors[text] = means
	return text
}

func (g *witnessRandom) expression(depth int) (string, witnessPredicate) {
	if depth > 0 && g.chance(50) {
		a, meansA := g.expression(depth - 1)
		b, meansB := g.expression(depth - 1)
		c, meansC := g.expression(0)
		switch g.IntN(4) {
		case 0:
			return "!(" + a + ")", func(l map[string]string) bool { return !meansA(l) }
		case 1: // && binds closer than ||
			return fmt.Sprintf("%s || (%s) && %s", c, a, c), func(l map[string]string) bool { return meansC(l) || meansA(l) && meansC(l) }
		case 2:
			return fmt.Sprintf("(%s) && !%s", a, c), func(l map[string]string) bool { return meansA(l) && !meansC(l) }
		default:
			return fmt.Sprintf("(%s) || (%s)", a, b), func(l map[string]string) bool { return meansA(l) || meansB(l) }
		}
	}
	key, value, other := witnessPick(g, witnessKeys...), witnessPick(g, witnessValues...), witnessPick(g, witnessValues...)
	test := func(absent bool, fn func(string) bool) witnessPredicate {
		return func(l map[string]string) bool {
			v, ok := l[key]
			if !ok {
				return absent
			}
			return fn(v)
		}
	}
	quote := witnessPick(g, "'", `"`)
	quoted := quote + value + quote
	switch g.IntN(9) {
	case 0:
		return "all()", func(map[string]string) bool { return true }
	case 1:
		return key + " != " + quoted, test(true, func(v string) bool { return v != value })
	case 2:
		return key + " in {" + quoted + ", '" + other + "'}", test(false, func(v string) bool { return v == value || v == other })
	case 3:
		return key + " not in {" + quoted + ", '" + other + "'}", test(true, func(v string) bool { return v != value && v != other })
	case 4:
		return key + " contains " + quoted, test(false, func(v string) bool { return strings.Contains(v, value) })
	case 5:
		return key + " starts with " + quoted, test(false, func(v string) bool { return strings.HasPrefix(v, value) })
	case 6:
		return key + " ends with " + quoted, test(false, func(v string) bool { return strings.HasSuffix(v, value) })
	case 7:
		return "has(" + key + ")", test(false, func(string) bool { return true })
	default:
		return key + " == " + quoted, test(false, func(v string) bool { return v == value })
	}
}
