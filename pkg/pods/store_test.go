// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

var opts = cmpopts.EquateComparable(netip.Addr{})

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// a record of a container whose network namespace is a file.
func newRecord(t *testing.T, container string, addrs ...string) *Record {
	t.Helper()
	netns := filepath.Join(t.TempDir(), "netns")
	must(t, os.WriteFile(netns, nil, 0o600))
	r := &Record{
		ID: ID{container, "eth0"}, Network: "net", Namespace: "ns", Pod: container, Netns: netns, Sandbox: Sandbox(netns),
		Ports: []string{"tcp/6379"}, Since: time.Unix(1, 0).UTC(),
	}
	for _, a := range addrs {
		r.Addresses = append(r.Addresses, netip.MustParseAddr(a))
	}
	return r
}

func TestID(t *testing.T) {
	long := strings.Repeat("c", 81)
	for _, test := range []struct {
		id   ID
		want string
	}{
		{ID{"abc", "eth0"}, "abc/eth0"},
		{ID{strings.Repeat("c", 80), "eth0"}, strings.Repeat("c", 80) + "/eth0"},
		{ID{"a.b_c-d", "e@h"}, "a.b_c-d/e@h"},
	} {
		if got := test.id.String(); got != test.want || test.id.file() != strings.Replace(test.want, "/", "@", 1) {
			t.Errorf("%+v: %q and %q, want %q", test.id, got, test.id.file(), test.want)
		}
	}
	a, b := ID{long, "eth0"}, ID{long + "c", "eth0"}
	if a.String() == b.String() || len(a.String()) > 100 || !strings.HasSuffix(a.String(), "/eth0") {
		t.Errorf("long IDs become %s and %s", a, b)
	}
}

func TestRequest(t *testing.T) {
	var r Record
	ports := []policy.Port{
		{Protocol: policy.TCP, Range: policy.PortRange{First: 7000, Last: 7100}}, {Protocol: policy.SCTP, Range: policy.PortRange{First: 9, Last: 9}},
	}
	sources := netset.Of(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::1/128"))
	r.SetPorts(ports, sources)
	if diff := cmp.Diff(Record{Ports: []string{"tcp/7000-7100", "sctp/9"}, Sources: []string{"10.0.0.0/8", "2001:db8::1/128"}}, r, opts); diff != "" {
		t.Errorf("written down (-want +got):\n%s", diff)
	}
	gotPorts, gotSources, err := r.Request()
	if err != nil || !cmp.Equal(ports, gotPorts) || !gotSources.Equal(sources) {
		t.Errorf("read: %v %v %v", gotPorts, gotSources, err)
	}
	r.SetPorts(ports, nil)
	if _, gotSources, err := r.Request(); err != nil || gotSources != nil {
		t.Errorf("without sources: %v %v", gotSources, err)
	}
	for _, bad := range []Record{{Ports: []string{"x"}}, {Ports: []string{"tcp/1"}, Sources: []string{"x"}}} {
		if _, _, err := bad.Request(); err == nil {
			t.Errorf("%+v: understood", bad)
		}
	}
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	s := At(dir)
	a := newRecord(t, "aaa", "10.0.0.1", "fd00::1")
	none, err := s.Read(a.ID)
	if all, listErr := s.List(); s.Exist() || s.Has(a.ID) || none != nil || err != nil || all != nil || listErr != nil {
		t.Errorf("an empty store: %v %v %v %v", none, err, all, listErr)
	}
	must(t, s.Remove(a.ID, a))
	must(t, s.Write(a))
	got, err := s.Read(a.ID)
	if diff := cmp.Diff(a, got, opts); err != nil || diff != "" || !s.Has(a.ID) {
		t.Errorf("read: %v (-want +got):\n%s", err, diff)
	}

	// The address moves on. Its first owner keeps the other one, also when it is asked to be forgotten.
	b := newRecord(t, "bbb", "10.0.0.1")
	must(t, s.Write(b))
	if owner, err := s.Owner(b.Addresses[0]); err != nil || owner == nil || owner.Container != "bbb" {
		t.Errorf("the owner is %+v, %v", owner, err)
	}
	if own := s.Own(*a); len(own.Addresses) != 1 || own.Addresses[0] != a.Addresses[1] {
		t.Errorf("a owns %v", own.Addresses)
	}
	all, err := s.List()
	if err != nil || len(all) != 2 || all[0].Container != "aaa" || all[1].Container != "bbb" {
		t.Errorf("list: %+v, %v", all, err)
	}
	must(t, s.Remove(a.ID, a))
	if owner, _ := s.Owner(b.Addresses[0]); owner == nil || owner.Container != "bbb" {
		t.Errorf("with a gone, the owner is %+v", owner)
	}
	if owner, err := s.Owner(a.Addresses[1]); owner != nil || err != nil {
		t.Errorf("of a's own address the owner is %+v, %v", owner, err)
	}
	must(t, s.Release(b.Addresses[0]))
	if own := s.Own(*b); len(own.Addresses) != 0 {
		t.Errorf("b owns %v", own.Addresses)
	}
	must(t, s.Remove(b.ID, b))
	for _, sub := range []string{"records", "sandboxes", "addresses"} {
		if left, _ := os.ReadDir(filepath.Join(dir, "pods", sub)); len(left) > 0 {
			t.Errorf("left in %s: %v", sub, left)
		}
	}
	must(t, s.RemoveAll())
	if s.Exist() {
		t.Error("there is something left")
	}
}

// A record that cannot be understood can be forgotten still.
func TestStoreBadRecord(t *testing.T) {
	dir := t.TempDir()
	s := At(dir)
	a := newRecord(t, "aaa", "10.0.0.1")
	must(t, s.Write(a))
	for _, content := range []string{"", "{", "[]", `{"container":"other","interface":"eth0"}`} {
		must(t, os.WriteFile(filepath.Join(dir, "pods/records/aaa@eth0"), []byte(content), 0o600))
		if r, err := s.Read(a.ID); r != nil || err != nil || !s.Has(a.ID) {
			t.Errorf("%q: %+v, %v", content, r, err)
		}
		if all, err := s.List(); len(all) != 0 || err != nil {
			t.Errorf("%q: list %+v, %v", content, all, err)
		}
	}
	must(t, s.Remove(a.ID, nil))
	if s.Has(a.ID) {
		t.Error("still there")
	}
}

func TestVanished(t *testing.T) {
	s := At(t.TempDir())
	if gone, err := s.Vanished(10); gone != nil || err != nil {
		t.Errorf("an empty store: %v, %v", gone, err)
	}
	healthy, gone, replaced, unseen := newRecord(t, "healthy"), newRecord(t, "gone"), newRecord(t, "replaced"), newRecord(t, "unseen")
	unseen.Sandbox = ""
	for _, r := range []*Record{healthy, gone, replaced, unseen} {
		must(t, s.Write(r))
	}
	must(t, os.Remove(gone.Netns))
	must(t, os.Remove(unseen.Netns))
	other := filepath.Join(filepath.Dir(replaced.Netns), "other")
	must(t, os.WriteFile(other, nil, 0o600))
	must(t, os.Rename(other, replaced.Netns))
	found, err := s.Vanished(10)
	must(t, err)
	names := map[string]bool{}
	for _, r := range found {
		names[r.Container] = true
	}
	if diff := cmp.Diff(map[string]bool{"gone": true, "replaced": true}, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Where there are more than are looked at, all are found in time.
func TestVanishedByTurns(t *testing.T) {
	s := At(t.TempDir())
	const n, window = 40, 10
	for i := range n {
		r := newRecord(t, fmt.Sprintf("c%d", i))
		must(t, s.Write(r))
		must(t, os.Remove(r.Netns))
	}
	seen := map[string]bool{}
	for range 10_000 {
		found, err := s.Vanished(window)
		must(t, err)
		if len(found) != window {
			t.Fatalf("%d found, want %d", len(found), window)
		}
		for _, r := range found {
			seen[r.Container] = true
		}
		if len(seen) == n {
			return
		}
	}
	t.Errorf("%d of %d were ever looked at", len(seen), n)
}
