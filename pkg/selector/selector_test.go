// SPDX-License-Identifier: Apache-2.0

package selector

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

type labels = map[string]string

func TestParse(t *testing.T) {
	redis := labels{"hep": "redis-host", "role": "db"}
	for _, c := range []struct {
		text, canonical string
		yes, no         []labels
	}{
		// Everything.
		{"", `all()`, []labels{nil, redis}, nil},
		{" \t ", `all()`, []labels{nil, redis}, nil},
		{"all()", `all()`, []labels{nil, redis}, nil},
		{"\t( all( \t) ) ", `all()`, []labels{nil, redis}, nil},
		{"global( )", `global()`, []labels{nil, redis}, nil},
		{"!all()", `!all()`, nil, []labels{nil, redis}},
		{"!global()", `!global()`, nil, []labels{nil, redis}},

		// One comparison. An absent label is false of all but != and not in.
		{`has(hep)`, `has(hep)`, []labels{redis, {"hep": ""}}, []labels{nil, {"Hep": "x"}}},
		{`has( hep	)`, `has(hep)`, []labels{redis}, []labels{nil}},
		{`a=="b"`, `a == "b"`, []labels{{"a": "b"}, {"a": "b", "c": "d"}}, []labels{nil, {"a": "B"}, {"a": "bb"}, {"b": "b"}}},
		{`a == ''`, `a == ""`, []labels{{"a": ""}}, []labels{nil, {"a": "b"}}},
		{`a!='b'`, `a != "b"`, []labels{nil, {"a": "c"}, {"c": "b"}}, []labels{{"a": "b"}}},
		{`a != ""`, `a != ""`, []labels{nil, {"a": "b"}}, []labels{{"a": ""}}},
		{`a contains "b"`, `a contains "b"`, []labels{{"a": "abc"}, {"a": "b"}}, []labels{nil, {"a": "ac"}, {"b": "b"}}},
		{`a contains ""`, `a contains ""`, []labels{{"a": "abc"}, {"a": ""}}, []labels{nil}},
		{`a starts with "b"`, `a starts with "b"`, []labels{{"a": "bc"}, {"a": "b"}}, []labels{nil, {"a": "ab"}}},
		{`a ends with "b"`, `a ends with "b"`, []labels{{"a": "ab"}, {"a": "b"}}, []labels{nil, {"a": "bc"}}},
		{`a in {"b", 'c'}`, `a in {"b", "c"}`, []labels{{"a": "b"}, {"a": "c"}}, []labels{nil, {"a": "d"}, {"b": "b"}}},
		{`a not in {"b", 'c'}`, `a not in {"b", "c"}`, []labels{nil, {"a": "d"}, {"b": "b"}}, []labels{{"a": "b"}, {"a": "c"}}},

		// Sets are sorted, without doubles, and may be empty or end with a comma.
		{`a in{}`, `a in {}`, nil, []labels{nil, {"a": ""}}},
		{`a notin{ }`, `a not in {}`, []labels{nil, {"a": ""}}, nil},
		{`a in {"z","x" ,"z", "y",}`, `a in {"x", "y", "z"}`, []labels{{"a": "x"}}, []labels{{"a": "w"}}},
		{`a in {''}`, `a in {""}`, []labels{{"a": ""}}, []labels{nil}},

		// Strings have no escapes, and keep what is in them.
		{`a == "it's"`, `a == "it's"`, []labels{{"a": "it's"}}, nil},
		{`a == '"'`, `a == '"'`, []labels{{"a": `"`}}, nil},
		{`a in {"'", '"', "c"}`, `a in {'"', "'", "c"}`, []labels{{"a": "'"}, {"a": `"`}}, []labels{{"a": `\`}}},
		{`a == "\n"`, `a == "\n"`, []labels{{"a": `\n`}}, []labels{{"a": "\n"}}},
		{"a == \"\n \xff\"", "a == \"\n \xff\"", []labels{{"a": "\n \xff"}}, []labels{{"a": ""}}},
		{`a == " && || ) \` + "`" + `"`, `a == " && || ) \` + "`" + `"`, nil, []labels{nil}},

		// White space is optional wherever words do not run together, and within operators of two words.
		{`a startswith"b"`, `a starts with "b"`, []labels{{"a": "bc"}}, []labels{{"a": "cb"}}},
		{`a starts	 with'b'`, `a starts with "b"`, []labels{{"a": "bc"}}, []labels{{"a": "cb"}}},
		{`a endswith "b"`, `a ends with "b"`, []labels{{"a": "cb"}}, []labels{{"a": "bc"}}},
		{`a contains"b"`, `a contains "b"`, []labels{{"a": "abc"}}, []labels{{"a": ""}}},
		{`a notin{"a"}`, `a not in {"a"}`, []labels{nil}, []labels{{"a": "a"}}},
		{`a   not   in   {"a"}`, `a not in {"a"}`, []labels{nil}, []labels{{"a": "a"}}},
		{`has(a)&&has(b)||has(c)`, `((has(a) && has(b)) || has(c))`, []labels{{"c": ""}, {"a": "", "b": ""}}, []labels{nil, {"a": ""}, {"b": ""}}},
		{`  a  ==  "b"  &&  !  has(  c  )  `, `(a == "b" && !has(c))`, []labels{{"a": "b"}}, []labels{{"a": "b", "c": ""}}},

		// Words mean what their place says.
		{`contains contains "x"`, `contains contains "x"`, []labels{{"contains": "axe"}}, []labels{{"x": "x"}}},
		{`in in {"in"}`, `in in {"in"}`, []labels{{"in": "in"}}, []labels{nil}},
		{`not not in {"not"}`, `not not in {"not"}`, []labels{nil}, []labels{{"not": "not"}}},
		{`startswith starts with "x"`, `startswith starts with "x"`, []labels{{"startswith": "xy"}}, []labels{nil}},
		{`has == "x" && all != "x" && global in {"x"}`, `(has == "x" && all != "x" && global in {"x"})`,
			[]labels{{"has": "x", "global": "x"}}, []labels{nil}},
		{`has(has)`, `has(has)`, []labels{{"has": ""}}, []labels{nil}},
		{`projectcalico.org/name_-1 == "x"`, `projectcalico.org/name_-1 == "x"`, []labels{{"projectcalico.org/name_-1": "x"}}, nil},
		{`-./_ == "x"`, `-./_ == "x"`, []labels{{"-./_": "x"}}, nil},

		// Negation binds tightest and cancels in pairs.
		{`!a == "b"`, `!a == "b"`, []labels{nil, {"a": "c"}}, []labels{{"a": "b"}}},
		{`!a != "b"`, `!a != "b"`, []labels{{"a": "b"}}, []labels{nil, {"a": "c"}}},
		{`!!has(a)`, `has(a)`, []labels{{"a": ""}}, []labels{nil}},
		{`! !! has(a)`, `!has(a)`, []labels{nil}, []labels{{"a": ""}}},
		{`!!!!has(a)`, `has(a)`, []labels{{"a": ""}}, []labels{nil}},
		{`!(!has(a))`, `has(a)`, []labels{{"a": ""}}, []labels{nil}},
		{`!(!(!has(a)))`, `!has(a)`, []labels{nil}, []labels{{"a": ""}}},
		{`!has(a) && has(b)`, `(!has(a) && has(b))`, []labels{{"b": ""}}, []labels{nil, {"a": "", "b": ""}}},
		{`!(has(a) && has(b))`, `!(has(a) && has(b))`, []labels{nil, {"a": ""}}, []labels{{"a": "", "b": ""}}},

		// && binds tighter than ||. Parentheses are kept where they group.
		{`has(a) || has(b) && has(c)`, `(has(a) || (has(b) && has(c)))`, []labels{{"a": ""}, {"b": "", "c": ""}}, []labels{nil, {"b": ""}, {"c": ""}}},
		{`(has(a) || has(b)) && has(c)`, `((has(a) || has(b)) && has(c))`, []labels{{"a": "", "c": ""}}, []labels{{"a": ""}, {"c": ""}}},
		{`(has(a) && has(b)) && ((has(c)))`, `((has(a) && has(b)) && has(c))`, []labels{{"a": "", "b": "", "c": ""}}, []labels{{"a": "", "b": ""}}},
		{`! (has( b)||! has(a ))`, `!(has(b) || !has(a))`, []labels{{"a": ""}}, []labels{nil, {"b": ""}}},
		{`has(hep) && hep == "redis-host"`, `(has(hep) && hep == "redis-host")`, []labels{redis}, []labels{nil, {"hep": "x"}}},

		// Limits, on their right side.
		{strings.Repeat("l", MaxLabel) + `=="x"`, strings.Repeat("l", MaxLabel) + ` == "x"`, []labels{{strings.Repeat("l", MaxLabel): "x"}}, nil},
		{nested("", MaxDepth, ""), `has(a)`, []labels{{"a": ""}}, []labels{nil}},
		{strings.Repeat("(has(b)&&", MaxDepth) + "has(a)" + strings.Repeat(")", MaxDepth),
			strings.Repeat("(has(b) && ", MaxDepth) + "has(a)" + strings.Repeat(")", MaxDepth), []labels{{"a": "", "b": ""}}, []labels{{"a": ""}}},
	} {
		s, err := Parse(c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if got := s.String(); got != c.canonical {
			t.Errorf("%q is printed as\n%s, want\n%s", c.text, got, c.canonical)
		}
		again, err := Parse(s.String())
		if err != nil || !reflect.DeepEqual(s, again) {
			t.Errorf("%q is not the same when printed and read again: %v, %v", c.text, again, err)
		}
		for _, l := range c.yes {
			if !s.Matches(l) {
				t.Errorf("%q does not match %v", c.text, l)
			}
		}
		for _, l := range c.no {
			if s.Matches(l) {
				t.Errorf("%q matches %v", c.text, l)
			}
		}
	}
}

// nested wraps has(a) in as many parentheses, each with something in front and behind.
func nested(before string, depth int, behind string) string {
	return strings.Repeat(before+"(", depth) + "has(a)" + strings.Repeat(")"+behind, depth)
}

func TestParseErrors(t *testing.T) {
	const (
		condition = `a condition, such as label == "value" or has(label)`
		ops       = `one of ==, !=, contains, starts with, ends with, in or not in behind the label `
		strs      = `strings in quotes with commas between them, and a }`
		lineBreak = `a line break; want spaces and tabs only (a YAML block is folded into one line by >-)`
	)
	long := strings.Repeat("l", MaxLabel+1)
	for _, c := range []struct {
		text    string
		offset  int
		problem string
	}{
		// The right-hand side.
		{`a == b`, 5, `b has no quotes, want a value: == "b"`},
		{`a contains b`, 11, `b has no quotes, want a value: contains "b"`},
		{`a starts with b`, 14, `b has no quotes, want a value: starts with "b"`},
		{`a == `, 5, `ends too early, want a value in quotes behind ==`},
		{`a != ||`, 5, `unexpected ||, want a value in quotes behind !=`},
		{`a == {"b"}`, 5, `a set behind ==, which wants one value; sets go with in and not in`},
		{`a == "b`, 5, `the string that begins here has no closing "`},
		{`a == 'b"`, 5, `the string that begins here has no closing '`},
		{`"FOO`, 0, `a value in front; want the label there, as in label == "value"`},
		{`a == "it\"s"`, 10, `unexpected s, want &&, || or the end`},

		// Sets.
		{`a in "b"`, 5, `unexpected '"', want a set behind in: in {"value", "value"}`},
		{`a notin b`, 8, `unexpected b, want a set behind not in: not in {"value", "value"}`},
		{`a in {"b"`, 5, `the set that begins here has no closing }`},
		{`a in {"b",`, 5, `the set that begins here has no closing }`},
		{`a in {"b`, 6, `the string that begins here has no closing "`},
		{`a in {b}`, 6, `unexpected b, want ` + strs},
		{`a in {,}`, 6, `unexpected ',', want ` + strs},
		{`a in {"b" "c"}`, 10, `unexpected '"', want ` + strs},
		{`a in {"b",,"c"}`, 10, `unexpected ',', want ` + strs},
		{`a in {"b", ||`, 11, `unexpected ||, want ` + strs},

		// Operators.
		{`a = "b"`, 2, `a single =, want ==`},
		{`a === "b"`, 4, `unexpected '=', want a value in quotes behind ==`},
		{`a`, 1, `ends too early, want ` + ops + `a`},
		{`a `, 2, `ends too early, want ` + ops + `a`},
		{`a b`, 2, `unexpected b, want ` + ops + `a`},
		{`a "b"`, 2, `unexpected '"', want ` + ops + `a`},
		{`a && has(b)`, 2, `unexpected &&, want ` + ops + `a`},
		{`a containsb "b"`, 2, `unexpected containsb, want ` + ops + `a`},
		{`a not-in {"b"}`, 2, `unexpected not-in, want ` + ops + `a`},
		{`a starts "b"`, 9, `unexpected '"', want with behind starts`},
		{`a ends foo "b"`, 7, `unexpected foo, want with behind ends`},
		{`a not {"b"}`, 6, `unexpected '{', want in behind not`},
		{`a not`, 5, `ends too early, want in behind not`},

		// Conditions and what joins them.
		{`'b' == a`, 0, `a value in front; want the label there, as in label == "value"`},
		{`has()`, 4, `unexpected ')', want a label's name, as in has(label)`},
		{`has("a")`, 4, `unexpected '"', want a label's name, as in has(label)`},
		{`has(a`, 3, `the parenthesis that opens here has no closing )`},
		{`has(a, b)`, 5, `unexpected ',', want )`},
		{`has (a)`, 4, `a space in front of the parenthesis, want has(`},
		{`all ()`, 4, `a space in front of the parenthesis, want all(`},
		{`all(a)`, 4, `unexpected a, want )`},
		{`global(`, 6, `the parenthesis that opens here has no closing )`},
		{`!`, 1, `ends too early, want ` + condition},
		{`!= "a"`, 0, `unexpected !=, want ` + condition},
		{`()`, 1, `unexpected ')', want ` + condition},
		{`(`, 1, `ends too early, want ` + condition},
		{`(a == "b"`, 0, `the parenthesis that opens here has no closing )`},
		{`(a == "b" c == "d")`, 10, `unexpected c, want &&, || or )`},
		{`)`, 0, `unexpected ')', want ` + condition},
		{`has(a))`, 6, `no parenthesis is open here`},
		{`has(a) &`, 7, `a single &, want &&`},
		{`has(a) | has(b)`, 7, `a single |, want ||`},
		{`(has(a) & has(b))`, 8, `a single &, want &&`},
		{`has(a) &&`, 9, `ends too early, want ` + condition},
		{`has(a) || `, 10, `ends too early, want ` + condition},
		{`&& has(a)`, 0, `unexpected &&, want ` + condition},
		{`has(a) && || has(b)`, 10, `unexpected ||, want ` + condition},
		{`has(a) has(b)`, 7, `unexpected has, want &&, || or the end`},
		{`has(a) !has(b)`, 7, `unexpected '!', want &&, || or the end`},

		// Characters.
		{`%`, 0, `unexpected '%', want ` + condition},
		{`has(a) && %`, 10, `unexpected '%', want ` + condition},
		{`ünter == "x"`, 0, `unexpected '\u00fc', want ` + condition},
		{"\xff", 0, `unexpected '\ufffd', want ` + condition},
		{"has(a)\u00a0", 6, `unexpected '\u00a0', want &&, || or the end`},
		{"has(a)\n", 6, lineBreak},
		{"\r\nhas(a)", 0, lineBreak},
		{"has(\na)", 4, lineBreak},
		{"(has(a)\n&& has(b))", 7, lineBreak},
		{"a ==\n\"b\"", 4, lineBreak},
		{"a\n== \"b\"", 1, lineBreak},
		{"a not\nin {}", 5, lineBreak},

		// Limits.
		{long + ` == "x"`, 0, "a label's name of 513 bytes, want at most 512"},
		{`has( ` + long + `)`, 5, "a label's name of 513 bytes, want at most 512"},
		{`a == ` + long, 5, long[:40] + `... has no quotes, want a value: == "` + long[:40] + `..."`},
		{nested("", MaxDepth+1, ""), MaxDepth, `more than 64 parentheses inside each other; want fewer`},
		{nested("", 1<<20, ""), MaxDepth, `more than 64 parentheses inside each other; want fewer`},
		{strings.Repeat("!(", 1<<20), 2*MaxDepth + 1, `more than 64 parentheses inside each other; want fewer`},
		// As written it is in bounds, in canonical form it is not.
		{"has(c) || " + nested(`has(b) && `, MaxDepth, ""), 0, `more than 64 parentheses inside each other; want fewer`},
		{"has(d) || has(c) && !(has(b) || " + nested(`has(a) && `, MaxDepth-1, "") + ")", 10, `more than 64 parentheses inside each other; want fewer`},
	} {
		s, err := Parse(c.text)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%.60q: %v, error %v, want one at %d: %s", c.text, s, err, c.offset, c.problem)
			continue
		}
		if e.Offset != c.offset || e.Problem != c.problem {
			t.Errorf("%.60q:\ngot  %d: %s\nwant %d: %s", c.text, e.Offset, e.Problem, c.offset, c.problem)
		}
		if want := fmt.Sprintf("byte %d: %s", c.offset, c.problem); e.Error() != want {
			t.Errorf("%.60q: says %q, want %q", c.text, e, want)
		}
	}
}

func TestProperties(t *testing.T) {
	for _, c := range []struct {
		text        string
		all, global bool
		labels      []string
	}{
		{"", true, false, nil},
		{"((all()))", true, false, nil},
		{"!!global()", true, true, nil},
		{"!all()", false, false, nil},
		{"!(has(b) && global())", false, true, []string{"b"}},
		{`global() || has(b) && !(a == "x" || b in {})`, false, true, []string{"a", "b"}},
		{`global == "all()"`, false, false, []string{"global"}},
	} {
		s, err := Parse(c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if s.IsAll() != c.all || s.UsesGlobal() != c.global || !slices.Equal(s.Labels(), c.labels) {
			t.Errorf("%q: all %v, global %v, labels %q, want %v, %v, %q",
				c.text, s.IsAll(), s.UsesGlobal(), s.Labels(), c.all, c.global, c.labels)
		}
	}
}

// Whatever the text, there is an error with a place inside it, or a selector whose canonical form says the same.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", " all() ", `has(hep) && hep == "redis-host"`, `! (has( b)||! has(a ))`, `a notin{"b",'"',}`, `a in {}`,
		`contains contains "x" || in in {"in"}`, `a startswith 'b' && b ends	with "c" && c != ""`, `!(!(!global()))`,
		`a = "b"`, `a == b`, "has(a)\n", `((has(a))`, `a in {"b" "c"}`, "\xff", `a == "`, nested("has(b)&&", 63, ""), nested("!", 65, "|| has(c)"),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Offset < 0 || e.Offset > len(text) || e.Problem == "" {
				t.Fatalf("%q: %#v", text, err)
			}
			return
		}
		canonical := s.String()
		again, err := Parse(canonical)
		if err != nil {
			t.Fatalf("%q is printed as %q: %v", text, canonical, err)
		}
		if got := again.String(); got != canonical {
			t.Fatalf("%q is printed as %q and that as %q", text, canonical, got)
		}
		if !slices.Equal(s.Labels(), again.Labels()) || s.IsAll() != again.IsAll() || s.UsesGlobal() != again.UsesGlobal() {
			t.Fatalf("%q and %q differ", text, canonical)
		}
		for _, l := range probes(s) {
			if s.Matches(l) != again.Matches(l) {
				t.Fatalf("%q and %q differ about %v", text, canonical, l)
			}
		}
	})
}

// probes are label maps that a selector has something to say about: each label absent, and with each value that the
// selector compares anything with, alone and among labels that all have the same.
func probes(s *Selector) []labels {
	values := []string{"", "other"}
	s.root.visit(func(n node) {
		if c, ok := n.(*comparison); ok {
			values = append(values, c.values...)
		}
	})
	maps := []labels{nil}
	for _, v := range values[:min(len(values), 20)] {
		all := labels{}
		for _, name := range s.Labels() {
			maps = append(maps, labels{name: v}, labels{name: "x" + v + "x"})
			all[name] = v
		}
		maps = append(maps, all)
	}
	return maps
}
