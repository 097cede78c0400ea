// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"
	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// cniVersions are all that the plugin supports.
var cniVersions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// cniPatience bounds every wait for something that must come.
const cniPatience = 20 * time.Second

// cniChain is a lab with a chain of the given annotations and a pod that nothing was done to yet.
func cniChain(t testing.TB, annotations map[string]string) (*lab.Lab, *lab.Chain, *lab.NS) {
	t.Helper()
	l := lab.New(t, lab.Config{})
	chain := must(l.Chain(lab.ChainConfig{Annotations: annotations}))(t)
	return l, chain, must(l.AddNS("pod"))(t)
}

// cniPolicy is a small policy, with no interfaces: the default route's is taken.
func cniPolicy(more ...string) map[string]string {
	m := map[string]string{"ports": "tcp/6379,udp/7001"}
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	return m
}

// cniPrev is a result of the main plugin in the given version of the specification.
func cniPrev(version string) string {
	family := ""
	if strings.HasPrefix(version, "0.") {
		family = `"version": "4", `
	}
	return fmt.Sprintf(`{"cniVersion": %q, "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}], `+
		`"ips": [{%s"interface": 0, "address": "10.88.0.5/16"}], "dns": {}}`, version, family)
}

// cniStdin is what a runtime writes to the plugin, with prevResult exactly as given; empty leaves it out.
func cniStdin(network, version, annotations, prevResult string) []byte {
	s := fmt.Sprintf(`{"cniVersion": %q, "name": %q, "type": "untracked", "annotations": %s`, version, network, annotations)
	if prevResult != "" {
		s += `, "prevResult": ` + prevResult
	}
	return []byte(s + "}")
}

// cniAnnotations are annotations in JSON, the lab's own places included. Keys are given without the prefix.
func cniAnnotations(l *lab.Lab, annotations map[string]string) string {
	full := map[string]string{lab.AnnotationPrefix + "bpffs": l.BPFFS, lab.AnnotationPrefix + "run-dir": l.RunDir}
	for k, v := range annotations {
		full[lab.AnnotationPrefix+k] = v
	}
	text, err := json.Marshal(full)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// cniAdd runs ADD by the plugin itself, with the chain's config, as a step that must succeed.
func cniAdd(t testing.TB, chain *lab.Chain, pod *lab.NS) *lab.Outcome {
	t.Helper()
	out, err := chain.Plugin("ADD", pod, chain.Stdin([]byte(cniPrev("1.1.0"))))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// cniRun runs the plugin's binary on the node with exactly the CNI variables given.
func cniRun(t testing.TB, l *lab.Lab, env map[string]string, stdin []byte, args ...string) *lab.Outcome {
	t.Helper()
	bin := must(lab.Build("untracked"))(t)
	ctx, cancel := context.WithTimeout(context.Background(), cniPatience)
	defer cancel()
	cmd := lab.CommandContext(ctx, l.Node, filepath.Join(bin, "untracked"), args...)
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "CNI_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	begin := time.Now()
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("untracked %v %v: still running after %v", env["CNI_COMMAND"], args, cniPatience)
	}
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return &lab.Outcome{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), ExitCode: cmd.ProcessState.ExitCode(), Elapsed: time.Since(begin)}
}

// cniEnv is the environment of a verb.
func cniEnv(chain *lab.Chain, verb string, pod *lab.NS) map[string]string {
	return map[string]string{
		"CNI_COMMAND": verb, "CNI_CONTAINERID": pod.Name, "CNI_NETNS": pod.Path, "CNI_IFNAME": "eth0", "CNI_PATH": chain.Bin,
	}
}

// cniFailure asserts that a call failed as the specification wants it: exit status 1 and one JSON error on
// stdout, nothing else, with one of the codes. It returns the error's whole text.
func cniFailure(t testing.TB, out *lab.Outcome, codes ...uint) string {
	t.Helper()
	var e lab.CNIError
	d := json.NewDecoder(bytes.NewReader(out.Stdout))
	if err := d.Decode(&e); err != nil || out.ExitCode != 1 {
		t.Errorf("exit status %d, stdout %q (%v), stderr %q: want 1 with a JSON error", out.ExitCode, out.Stdout, err, out.Stderr)
		return ""
	}
	if rest := bytes.TrimSpace(out.Stdout[d.InputOffset():]); len(rest) > 0 {
		t.Errorf("stdout goes on after the error: %q", rest)
	}
	if e.Msg == "" || !slices.Contains(codes, e.Code) {
		t.Errorf("error %+v: want code %v and a message", e, codes)
	}
	return e.Msg + ": " + e.Details
}

// cniCode is the code of a plugin's error, 0 if it is none.
func cniCode(err error) uint {
	if e := (*lab.CNIError)(nil); errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// cniState is all that the plugin may write: what it has pinned, what hangs on the interfaces, its table, its
// files.
type cniState struct {
	Pins  []string
	Hooks map[string]lab.Hooks
	Table string
	// Transactions counts changes of nftables in the namespace, whoever made them.
	Transactions uint32
	Files        []string
}

// cniRead reads the state with everything by which a write could be told: IDs, inodes, times.
func cniRead(t testing.TB, l *lab.Lab) cniState {
	t.Helper()
	s := cniState{Pins: cniPins(t, l, true), Hooks: map[string]lab.Hooks{}, Files: cniFiles(t, l, true)}
	for _, name := range must(lab.Links(l.Node))(t) {
		if name != "lo" && !strings.HasPrefix(name, "veth") {
			s.Hooks[name] = must(lab.ReadHooks(l.Node, name))(t)
		}
	}
	s.Table, s.Transactions = cniTable(t, l), cniTransactions(t, l)
	return s
}

func cniSame(t testing.TB, what string, before, after cniState) {
	t.Helper()
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("%s changed the node (-before +after):\n%s", what, diff)
	}
}

// cniSameButCount is cniSame after a policy was refused, which is counted as an apply that failed.
func cniSameButCount(t testing.TB, what string, before, after cniState) {
	t.Helper()
	for _, s := range []*cniState{&before, &after} {
		s.Files = slices.DeleteFunc(slices.Clone(s.Files), func(f string) bool { return strings.HasPrefix(f, "applies.json ") })
	}
	cniSame(t, what, before, after)
}

// cniPins lists what is in the BPF file system, with the IDs of the objects if so wanted.
func cniPins(t testing.TB, l *lab.Lab, ids bool) (out []string) {
	t.Helper()
	err := filepath.WalkDir(l.BPFFS, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path, l.BPFFS), "/")
		if name == "maps.debug" || name == "progs.debug" {
			return nil // the kernel's own, in every mount (CONFIG_BPF_PRELOAD)
		}
		if d.IsDir() {
			name += "/"
		} else if ids {
			name += " " + cniObject(path)
		}
		if name != "/" {
			out = append(out, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

func cniObject(path string) string {
	object, err := pin.Load(path, nil)
	if err != nil {
		return err.Error()
	}
	defer object.Close()
	switch o := object.(type) {
	case *ebpf.Map:
		if info, err := o.Info(); err == nil {
			id, _ := info.ID()
			return fmt.Sprintf("map %d", id)
		}
	case link.Link:
		if info, err := o.Info(); err == nil {
			return fmt.Sprintf("link %d program %d", info.ID, info.Program)
		}
	}
	return fmt.Sprintf("%T", object)
}

// cniFiles lists the run directory, with inodes and times if so wanted.
func cniFiles(t testing.TB, l *lab.Lab, stamps bool) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(l.RunDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	check(t, err)
	for _, e := range entries {
		name := e.Name()
		if stamps {
			var st unix.Stat_t
			check(t, unix.Stat(filepath.Join(l.RunDir, name), &st))
			name += fmt.Sprintf(" inode %d size %d mtime %v ctime %v", st.Ino, st.Size, st.Mtim, st.Ctim)
		}
		out = append(out, name)
	}
	return out
}

// cniTable is the digest of the table in force, empty if there is none.
func cniTable(t testing.TB, l *lab.Lab) (digest string) {
	t.Helper()
	check(t, lab.In(l.Node, func() (err error) {
		if digest, err = nft.InForce(); errors.Is(err, nft.ErrNoTable) {
			err = nil
		}
		return err
	}))
	return digest
}

// cniTransactions is the generation number of nftables in the node's namespace: each commit counts it up.
func cniTransactions(t testing.TB, l *lab.Lab) (generation uint32) {
	t.Helper()
	check(t, lab.In(l.Node, func() error {
		c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return err
		}
		defer c.Close()
		replies, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
			Data:   []byte{0, 0, 0, 0},
		})
		if err != nil {
			return err
		}
		for _, m := range replies {
			ad, err := netlink.NewAttributeDecoder(m.Data[4:])
			if err != nil {
				return err
			}
			for ad.Next() {
				if b := ad.Bytes(); ad.Type() == unix.NFTA_GEN_ID && len(b) == 4 {
					generation = uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
				}
			}
		}
		return nil
	}))
	if generation == 0 {
		t.Fatal("nftables tells no generation")
	}
	return generation
}

// cniNodeOf is the package's own view of the node, for what the command does not show. Call it inside the
// node's namespace.
func cniNodeOf(l *lab.Lab) *node.Node {
	return &node.Node{Version: "dev", BPFFS: l.BPFFS, RunDir: l.RunDir, Log: slog.New(slog.DiscardHandler)}
}

// cniRecord is the record in force.
func cniRecord(t testing.TB, l *lab.Lab) *node.Record {
	t.Helper()
	var r node.Record
	check(t, json.Unmarshal(must(os.ReadFile(filepath.Join(l.RunDir, "record.json")))(t), &r))
	return &r
}

// cniStatus is `untracked status -o json` with its exit status.
func cniStatus(t testing.TB, l *lab.Lab) (s node.Status, exit int) {
	t.Helper()
	out := must(l.Untracked("status", "-o", "json"))(t)
	if err := json.Unmarshal(out.Stdout, &s); err != nil {
		t.Fatalf("status: %v: stdout %q, stderr %q", err, out.Stdout, out.Stderr)
	}
	return s, out.ExitCode
}

// cniProblem finds a problem by its code.
func cniProblem(s node.Status, code string) *node.ProblemStatus {
	for i := range s.Problems {
		if s.Problems[i].Code == code {
			return &s.Problems[i]
		}
	}
	return nil
}

// cniHealthy asserts that the policy is in force, whole, and nothing else is left of it anywhere: status and
// CHECK agree, pins and files are exactly those of one generation.
func cniHealthy(t testing.TB, l *lab.Lab, chain *lab.Chain, pod *lab.NS) {
	t.Helper()
	if s, exit := cniStatus(t, l); exit != 0 || len(s.Problems) != 0 {
		t.Errorf("status: exit status %d, problems %+v", exit, s.Problems)
	}
	if _, err := chain.Plugin("CHECK", pod, chain.Stdin([]byte(cniPrev("1.1.0")))); err != nil {
		t.Error(err)
	}
	cniTidy(t, l)
}

// cniTidy asserts that pins and files are those of the record and no others.
func cniTidy(t testing.TB, l *lab.Lab) {
	t.Helper()
	r := cniRecord(t, l)
	want := []string{"untracked/", "untracked/interfaces/"}
	for _, i := range r.Interfaces {
		dir := fmt.Sprintf("untracked/interfaces/%d/", i.Index)
		want = append(want, dir)
		for _, what := range []string{"counters", "ledger", "note", "tables"} {
			want = append(want, fmt.Sprintf("%s%s-%d", dir, what, i.Generation))
		}
		if i.Attached.XDP != 0 {
			want = append(want, dir+"xdp")
		}
		if !i.Attached.Clsact {
			want = append(want, dir+"tc")
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, cniPins(t, l, false)); diff != "" {
		t.Errorf("pins (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"applies.json", "lock", "record.json", "rules.json"}, cniFiles(t, l, false)); diff != "" {
		t.Errorf("run directory (-want +got):\n%s", diff)
	}
}

// cniNothing asserts that there is nothing of us on the node.
func cniNothing(t testing.TB, l *lab.Lab) {
	t.Helper()
	s := cniRead(t, l)
	if len(s.Pins) > 0 || len(s.Files) > 0 || s.Table != "" {
		t.Errorf("left behind: %+v", s)
	}
	for name, h := range s.Hooks {
		if !h.None() {
			t.Errorf("left behind on %s: %+v", name, h)
		}
	}
}

// cniEventually waits for a condition.
func cniEventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(cniPatience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("%s: not within %v", what, cniPatience)
			return
		}
	}
}
