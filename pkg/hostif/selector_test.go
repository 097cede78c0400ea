// SPDX-License-Identifier: Apache-2.0

package hostif

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func name(s string) Selector { return Selector{Kind: ByName, Pattern: s} }
func glob(s string) Selector { return Selector{Kind: ByGlob, Pattern: s} }
func nets(s string) Selector { return Selector{Kind: ByNet, Net: netip.MustParsePrefix(s)} }

var defaultRoute = Selector{Kind: ByDefaultRoute}

func TestParseSelectors(t *testing.T) {
	for in, want := range map[string][]Selector{
		"eth0":                    {name("eth0")},
		"default-route":           {defaultRoute},
		"lo":                      {name("lo")},
		"eth*":                    {glob("eth*")},
		"en[ops]*,eth?":           {glob("en[ops]*"), glob("eth?")},
		"10.0.0.0/8":              {nets("10.0.0.0/8")},
		"10.1.2.3/8":              {nets("10.0.0.0/8")},
		"192.0.2.7":               {nets("192.0.2.7/32")},
		"2001:db8::/32":           {nets("2001:db8::/32")},
		"2001:db8::1":             {nets("2001:db8::1/128")},
		"bond0.100":               {name("bond0.100")},
		"abcdefghijklmno":         {name("abcdefghijklmno")},
		"a-very-long-glob-name-*": {glob("a-very-long-glob-name-*")},
		" eth0 ,\teth* , 10.0.0.0/8,default-route": {
			name("eth0"), glob("eth*"), nets("10.0.0.0/8"), defaultRoute,
		},
	} {
		got, err := ParseSelectors(in)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("ParseSelectors(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
}

// A list's "*" is a glob: it means pods' interfaces, too.
func TestHostSelector(t *testing.T) {
	host := Selector{Kind: ByHost}
	got, err := ParseSelectors(host.String())
	if host.String() != "*" || err != nil || !slices.Equal(got, []Selector{glob("*")}) {
		t.Errorf("ByHost is written %q, which parses to %v, %v", host, got, err)
	}
}

func TestParseSelectorsErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                       `"": an empty item`,
		"eth0,,eth1":             `"": an empty item`,
		"eth0,":                  `"": an empty item`,
		"eth0, abcdefghijklmnop": `"abcdefghijklmnop": interface names have at most 15 bytes, this has 16`,
		"eth 0":                  `"eth 0": interface names have no white space`,
		"eth\x000":               `"eth\x000": interface names have no white space or control characters`,
		"eth\u00850":             `white space`,
		"en p*":                  `white space`,
		"eth0/1":                 `"eth0/1": neither an interface name, which has no '/'`,
		"10.0.0.0/33":            `"10.0.0.0/33": neither`,
		"eth0:1":                 `"eth0:1": neither`,
		"fe80::1%eth0":           `"fe80::1%eth0": neither`,
		"eth[":                   `"eth[": not a complete glob`,
		`eth\`:                   `not a complete glob`,
		".":                      `".": not an interface name`,
		"..":                     `"..": not an interface name`,
	} {
		_, err := ParseSelectors(in)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "; want an interface name, a glob") {
			t.Errorf("ParseSelectors(%q): %v, want it to have %q and to say what is right", in, err, want)
		}
	}
}

func FuzzParseSelectors(f *testing.F) {
	for _, s := range []string{"eth0, eth*, 10.0.0.0/8, default-route", "::/0", "[a-", "1.2.3.4", "::ffff:1.2.3.4/120"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		selectors, err := ParseSelectors(s)
		if err != nil {
			return
		}
		var words []string
		for _, selector := range selectors {
			words = append(words, selector.String())
		}
		again, err := ParseSelectors(strings.Join(words, ","))
		if err != nil || !slices.Equal(again, selectors) {
			t.Fatalf("%q: parsed %v, its text parsed %v, %v", s, selectors, again, err)
		}
	})
}

func TestMissing(t *testing.T) {
	asked := []Selector{name("eth0"), glob("en*"), nets("10.0.0.0/8"), defaultRoute, name("eth9")}
	found := []Interface{
		{Name: "ens3", SelectedBy: []Selector{glob("en*"), defaultRoute}},
		{Name: "eth0", SelectedBy: []Selector{name("eth0")}},
	}
	if got, want := Missing(asked, found), []Selector{nets("10.0.0.0/8"), name("eth9")}; !slices.Equal(got, want) {
		t.Errorf("Missing = %v, want %v", got, want)
	}
	if got := Missing(asked, nil); !slices.Equal(got, asked) {
		t.Errorf("Missing of nothing found = %v, want all of %v", got, asked)
	}
	if got := Missing(nil, found); got != nil {
		t.Errorf("Missing of nothing asked = %v", got)
	}
}
