// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// metricsSeries is what a scraper gets: a value for each name with its labels, in their order.
type metricsSeries map[string]float64

// metricsText reads the format that node_exporter reads, and has promtool's linter look at it.
func metricsText(t testing.TB, text string) metricsSeries {
	t.Helper()
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families := must(parser.TextToMetricFamilies(strings.NewReader(text)))(t)
	out := metricsSeries{}
	for name, f := range families {
		for _, m := range f.Metric {
			labels := []string{}
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			series := ""
			if len(labels) > 0 {
				series = "{" + strings.Join(labels, ",") + "}"
			}
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				out[name+series] = m.GetCounter().GetValue()
			case dto.MetricType_GAUGE:
				out[name+series] = m.GetGauge().GetValue()
			case dto.MetricType_SUMMARY:
				out[name+"_sum"+series], out[name+"_count"+series] = m.GetSummary().GetSampleSum(), float64(m.GetSummary().GetSampleCount())
			default:
				t.Errorf("%s is a %s", name, f.GetType())
			}
		}
	}
	return out
}

// metrics runs `untracked metrics` into a file, and wants this exit code.
func (n *trafficNode) metrics(exit int, args ...string) metricsSeries {
	n.Helper()
	path := filepath.Join(n.TempDir(), "untracked.prom")
	out := must(n.lab.Untracked(append([]string{"metrics", "--textfile", path}, args...)...))(n)
	if out.ExitCode != exit || len(out.Stdout) > 0 || (exit == 0) != (len(out.Stderr) == 0) {
		n.Fatalf("metrics: exit code %d, %s%s", out.ExitCode, out.Stdout, out.Stderr)
	}
	return metricsText(n, string(must(os.ReadFile(path))(n)))
}

// want compares some series; those of the same names and others are wrong.
func (s metricsSeries) want(t testing.TB, want metricsSeries) {
	t.Helper()
	names := map[string]bool{}
	for series := range want {
		names[strings.Split(series, "{")[0]] = true
	}
	got := metricsSeries{}
	for series, value := range s {
		if names[strings.Split(series, "{")[0]] {
			got[series] = value
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("series (-want +got):\n%s", diff)
	}
}

// metricsOf are the series that status and rules come to.
func metricsOf(s node.Status, rules []node.RuleStatus) metricsSeries {
	out := metricsSeries{
		"untracked_policy_generation": float64(s.Policy.Generation),
		"untracked_policy_rules":      float64(s.Policy.Rules),
		"untracked_conntrack_entries": float64(s.Conntrack.Entries),
		"untracked_conntrack_limit":   float64(s.Conntrack.Max),
		"untracked_rules_omitted":     0,
		"untracked_policy_in_force":   1,
		fmt.Sprintf("untracked_policy_info{hash=%q,network=%q}", s.Policy.Hash, s.Policy.Network): 1,
	}
	for _, i := range s.Interfaces {
		out[fmt.Sprintf("untracked_interface_attached{interface=%q,mode=%q}", i.Name, i.Mode)] = 1
		for verdict, packets := range map[string]uint64{
			"untracked": i.Packets.Untracked, "denied": i.Packets.Denied, "tracked": i.Packets.Tracked,
			"failsafe": i.Packets.Failsafe, "malformed": i.Packets.Malformed, "fragment": i.Packets.Fragment,
		} {
			out[fmt.Sprintf("untracked_interface_packets_total{interface=%q,direction=%q,verdict=%q}", i.Name, "ingress", verdict)] = float64(packets)
		}
	}
	for _, r := range rules {
		labels := fmt.Sprintf("{interface=%q,direction=%q,tier=%q,policy=%q,index=%q,action=%q}", r.Interface, r.Direction, r.Tier, r.Policy, strconv.Itoa(r.Index), r.Action)
		out["untracked_rule_packets_total"+labels] = float64(r.Packets)
		out["untracked_rule_bytes_total"+labels] = float64(r.Bytes)
	}
	return out
}

// Every value is that of the packets that were sent, and of the other commands.
func TestMetricsCount(t *testing.T) {
	for _, mode := range trafficModes {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{Uplinks: 2})
			must(lab.ServeUDP(n.Node, 7001))(t)
			must(lab.ServeUDP(n.Node, 9000))(t)
			n.apply(map[string]string{"interfaces": "eth*", "mode": mode, "ports": "udp/7001", "deny": n.u.Client4[1].String()})
			const untracked, denied, tracked, payload = 10, 7, 3, 100
			n.wantUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 7001), Sources: n.u.Client4[:1], Count: untracked, Payload: payload})
			n.wantUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 9000), Sources: n.u.Client4[:1], Count: tracked, Payload: payload})
			must(lab.FloodUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 7001), Sources: n.u.Client4[1:2], Count: denied, Payload: payload}))(t)

			// Neighbours may still be finding each other.
			var before, got metricsSeries
			trafficUntil(t, "nothing is counted meanwhile", func() bool {
				s := n.healthy()
				before = metricsOf(s, n.rules())
				got = n.metrics(0)
				return cmp.Equal(before, metricsOf(n.healthy(), n.rules()))
			})
			got.want(t, before)

			const bytes = payload + 8 + 20
			rule := func(unit string, d policy.Direction, name, action string) string {
				return fmt.Sprintf(`untracked_rule_%s_total{interface="eth0",direction="%s",tier="",policy="%s",index="0",action="%s"}`, unit, d, name, action)
			}
			verdict := func(unit, verdict string) string {
				return fmt.Sprintf(`untracked_interface_%s_total{interface="eth0",direction="ingress",verdict="%s"}`, unit, verdict)
			}
			exact := metricsSeries{
				verdict("packets", "untracked"): untracked, verdict("bytes", "untracked"): untracked * bytes,
				verdict("packets", "denied"): denied, verdict("bytes", "denied"): denied * bytes,
				verdict("packets", "malformed"): 0, verdict("bytes", "fragment"): 0,
				rule("packets", policy.Ingress, "ports", "Allow"): untracked, rule("bytes", policy.Ingress, "ports", "Allow"): untracked * bytes,
				rule("packets", policy.Egress, "ports", "Allow"): untracked, rule("bytes", policy.Egress, "ports", "Allow"): untracked * bytes,
				rule("packets", policy.Ingress, "deny", "Deny"): denied, rule("bytes", policy.Ingress, "deny", "Deny"): denied * bytes,
				`untracked_interface_handover_failures_total{interface="eth0"}`: 0,
				`untracked_scrape_errors{part="ingress"}`:                       0, `untracked_scrape_errors{part="egress"}`: 0,
				`untracked_problem{code="drift"}`:        0,
				"untracked_apply_failures_total":         0,
				"untracked_apply_duration_seconds_count": 1,
				"untracked_last_apply_success":           1,
				"untracked_apply_duration_seconds_sum":   got["untracked_last_apply_duration_seconds"],
				"untracked_last_apply_timestamp_seconds": got["untracked_last_successful_apply_timestamp_seconds"],
			}
			for series, want := range exact {
				if value, ok := got[series]; !ok || value != want {
					t.Errorf("%s %v (there: %t), want %v", series, value, ok, want)
				}
			}
			if v := got[verdict("packets", "tracked")]; v < tracked || v > 100 {
				t.Errorf("%v packets tracked, want %d and a few of IPv6's own", v, tracked)
			}
			if age := time.Since(time.Unix(int64(got["untracked_last_apply_timestamp_seconds"]), 0)); age < 0 || age > trafficPatience {
				t.Errorf("applied %v ago", age)
			}
			if took := got["untracked_last_apply_duration_seconds"]; took <= 0 || took > trafficPatience.Seconds() {
				t.Errorf("apply took %v s", took)
			}

			few := n.metrics(0, "--max-rules", "2")
			packets, omitted := 0, few["untracked_rules_omitted"]
			for series := range few {
				if strings.HasPrefix(series, "untracked_rule_packets_total{") {
					packets++
				}
			}
			if all := float64(len(n.rules())); packets != 2 || omitted != all-2 {
				t.Errorf("%d rules told and %v omitted, of %v", packets, omitted, all)
			}
		})
	}
}

// What goes wrong shows, in the very metrics that alerts look at; what cannot be read is left out, and the rest told.
func TestMetricsOfABadDay(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	nothing := n.metrics(0)
	nothing.want(t, metricsSeries{
		"untracked_policy_generation": 0, "untracked_policy_in_force": 0, "untracked_apply_failures_total": 0,
		"untracked_apply_duration_seconds_sum": 0, "untracked_apply_duration_seconds_count": 0,
	})
	if nothing[`untracked_problem{code="not-applied"}`] != 1 {
		t.Errorf("nothing applied: %v", nothing)
	}

	file := filepath.Join(n.lab.Dir, "policy.yaml")
	check(t, os.WriteFile(file, []byte("kind: Nonsense\n"), 0o600))
	n.write(map[string]string{"policy-files": file})
	if code, out := n.applyFile(); code == 0 {
		t.Fatalf("nonsense was applied: %s", out)
	}
	failed := metricsSeries{
		"untracked_policy_generation": 0, "untracked_apply_failures_total": 1, "untracked_apply_duration_seconds_count": 1, "untracked_last_apply_success": 0,
	}
	n.metrics(0).want(t, failed)

	n.apply(map[string]string{"ports": "udp/7001", "mode": "tc"})
	n.apply(map[string]string{"ports": "udp/7001,tcp/80", "mode": "tc"})
	fine := metricsSeries{
		"untracked_policy_generation": 2, "untracked_policy_in_force": 1, "untracked_apply_failures_total": 1, "untracked_apply_duration_seconds_count": 3,
		"untracked_last_apply_success": 1, `untracked_interface_attached{interface="eth0",mode="tc"}`: 1,
	}
	n.metrics(0).want(t, fine)

	// The programs go, and an apply brings them back.
	dir := filepath.Join(n.lab.BPFFS, "untracked", "interfaces", strconv.Itoa(n.u.NodeIndex))
	check(t, os.Remove(filepath.Join(dir, "tc")))
	trafficUntil(t, "the program is seen to be off", func() bool {
		got := n.metrics(0)
		return got[`untracked_interface_attached{interface="eth0",mode="tc"}`] == 0 && got[`untracked_problem{code="drift"}`] == 1 && got["untracked_policy_in_force"] == 0
	})
	if code, out := n.applyFile(); code != 0 {
		t.Fatal(out)
	}
	fine["untracked_apply_duration_seconds_count"], fine["untracked_policy_generation"] = 4, 3
	n.metrics(0).want(t, fine)

	// The counters cannot be read: no series of theirs is there, all others are.
	for _, what := range []string{"counters-3", "ledger-3"} {
		check(t, os.Rename(filepath.Join(dir, what), filepath.Join(dir, "away-"+what)))
	}
	got := n.metrics(1)
	if got[`untracked_scrape_errors{part="ingress"}`] != 1 || got[`untracked_scrape_errors{part="egress"}`] != 0 || got["untracked_policy_generation"] != 3 {
		t.Errorf("without counters: %v", got)
	}
	egress := 0
	for series := range got {
		if strings.Contains(series, `direction="ingress"`) {
			t.Errorf("without counters: %s", series)
		}
		if strings.Contains(series, `direction="egress"`) {
			egress++
		}
	}
	if egress == 0 {
		t.Error("without counters: nothing of the way out")
	}
	for _, what := range []string{"counters-3", "ledger-3"} {
		check(t, os.Rename(filepath.Join(dir, "away-"+what), filepath.Join(dir, what)))
	}
	n.metrics(0).want(t, fine)

	for _, file := range []string{"applies.json", "rules.json", "record.json"} {
		path := filepath.Join(n.lab.RunDir, file)
		was := must(os.ReadFile(path))(t)
		check(t, os.Remove(path))
		check(t, os.Mkdir(path, 0o700)) // what even root cannot read
		part := map[string]string{"applies.json": "applies", "rules.json": "rules", "record.json": "status"}[file]
		if got := n.metrics(1); got[`untracked_scrape_errors{part="`+part+`"}`] != 1 {
			t.Errorf("without %s: %v", file, got)
		}
		check(t, os.Remove(path))
		check(t, os.WriteFile(path, was, 0o600))
	}
	n.metrics(0).want(t, fine)

	must(n.lab.Untracked("remove"))(t)
	n.metrics(0).want(t, metricsSeries{"untracked_policy_generation": 0, "untracked_apply_duration_seconds_count": 0, "untracked_apply_failures_total": 0})
	if files := cniFiles(t, n.lab, false); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}

// metricsPolicies are policies in which the rule for udp/7001 has another place each time. The other rules match nothing.
func metricsPolicies() (policies []map[string]string) {
	const resource = `---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: %s}
spec:
  order: %d
  doNotTrack: true
  applyOnForward: true
  types: [Ingress, Egress]
  ingress: [{action: Allow, protocol: %[3]s, destination: {ports: [%[4]d]}}]
  egress: [{action: Allow, protocol: %[3]s, source: {ports: [%[4]d]}}]
`
	for place := range 3 {
		text := fmt.Sprintf(resource, "served", place, "UDP", 7001)
		for other := range 3 {
			if other != place {
				text += fmt.Sprintf(resource, fmt.Sprintf("other-%d", other), other, "TCP", 80+10*place+other)
			}
		}
		policies = append(policies, map[string]string{"mode": "tc", "policy": text})
	}
	return policies
}

// Beside applies that come one after the other, metrics come without an error, no counter ever falls, and no rule is told
// with what another has counted.
func TestMetricsBesideApplies(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	must(lab.ServeUDP(n.Node, 7001))(t)
	policies := metricsPolicies()
	n.apply(policies[0])
	const sent = 50
	n.wantUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 7001), Sources: n.u.Client4[:1], Count: sent})

	ctx, cancel := context.WithCancel(t.Context())
	applied := make(chan int, 1)
	go func() {
		count := 0
		defer func() { applied <- count }()
		for i := 1; ctx.Err() == nil; i++ {
			if err := n.chain.Rewrite(lab.ChainConfig{Annotations: policies[i%len(policies)]}); err != nil {
				t.Error(err)
				return
			}
			if code, out := n.applyFile(); code != 0 {
				t.Errorf("apply: exit code %d: %s", code, out)
				return
			}
			count++
		}
	}()
	// In this process, so that what one keeps between two measurements is tried, too.
	var meter node.Meter
	sums := map[string]uint64{}
	rises := func(what string, value uint64) {
		if value < sums[what] {
			t.Errorf("%s fell from %d to %d", what, sums[what], value)
		}
		sums[what] = value
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		check(t, lab.In(n.Node, func() error {
			m := meter.Measure(cniNodeOf(n.lab))
			for part, errs := range m.Errors {
				// An apply that goes through all its steps while one looks may leave nothing that fits.
				if err := errors.Join(errs...); part != node.MeasuredRules || !errors.Is(err, node.ErrChanging) {
					t.Errorf("%s: %v", part, err)
				}
			}
			for _, traffic := range m.Traffic {
				for what, c := range map[string]uint64{"untracked": traffic.Untracked.Packets, "denied": traffic.Denied.Packets, "tracked": traffic.Tracked.Packets} {
					rises(what, c)
				}
			}
			for _, r := range m.Rules {
				if want := map[string]uint64{"served": sent}[r.Policy]; r.Action == policy.Allow && r.Packets != want {
					t.Errorf("rule %+v, want %d packets", r, want)
				}
			}
			rises("applies", m.Applies.Total)
			// What `untracked rules` lists, too.
			rules, err := cniNodeOf(n.lab).Rules()
			if err != nil && !errors.Is(err, node.ErrChanging) {
				t.Error(err)
			}
			for _, r := range rules {
				if want := map[string]uint64{"served": sent}[r.Policy]; r.Action == policy.Allow.String() && r.Packets != want {
					t.Errorf("listed rule %+v, want %d packets", r, want)
				}
			}
			return nil
		}))
	}
	cancel()
	if count := <-applied; count < 3 {
		t.Errorf("%d applies meanwhile", count)
	}
	if sums["untracked"] != sent || sums["applies"] < 4 {
		t.Errorf("counted %v", sums)
	}
}

// metricsServer is `untracked metrics --listen` and the lines of its log.
type metricsServer struct {
	*lab.Cmd
	log *bufio.Scanner
}

func (n *trafficNode) serveMetrics(address string) *metricsServer {
	n.Helper()
	cmd := lab.Command(n.Node, n.chain.Bin+"/untracked", "metrics", "--listen", address, "--bpffs", n.lab.BPFFS, "--run-dir", n.lab.RunDir)
	stderr := must(cmd.StderrPipe())(n)
	check(n, cmd.Start())
	n.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &metricsServer{Cmd: cmd, log: bufio.NewScanner(stderr)}
}

// says wants the next line of the log to have these words.
func (s *metricsServer) says(t testing.TB, words string) {
	t.Helper()
	if !s.log.Scan() || !strings.Contains(s.log.Text(), words) {
		t.Fatalf("the log says %q, want %q", s.log.Text(), words)
	}
}

// end ends it as a container's end does, and wants exit code 0.
func (s *metricsServer) end(t testing.TB) {
	t.Helper()
	check(t, s.Process.Signal(syscall.SIGTERM))
	s.says(t, "told to end")
	for s.log.Scan() {
		t.Errorf("the log says %q", s.log.Text())
	}
	check(t, s.Wait())
}

// A scraper on the network gets what it asks for. The next server takes over while the old one goes.
func TestMetricsServe(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	n.apply(map[string]string{"ports": "udp/7001"})
	address := netip.AddrPortFrom(n.u.Node4, 10417)
	client := &http.Client{Timeout: trafficPatience, Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return lab.Dial(n.Client, "tcp", n.u.Client4[0], address, trafficPatience)
		},
	}}
	get := func(path, accept string) (kind, text string) {
		t.Helper()
		r := must(http.NewRequest("GET", "http://"+address.String()+path, nil))(t)
		r.Header.Set("Accept", accept)
		answer := must(client.Do(r))(t)
		defer answer.Body.Close()
		if answer.StatusCode != 200 {
			t.Errorf("%s: %s", path, answer.Status)
		}
		return answer.Header.Get("Content-Type"), string(must(io.ReadAll(answer.Body))(t))
	}

	old := n.serveMetrics(address.String())
	old.says(t, "url=http://"+address.String()+"/metrics")
	kind, text := get("/metrics", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
	if kind != "application/openmetrics-text; version=1.0.0; charset=utf-8" || !strings.HasSuffix(text, "# EOF\n") {
		t.Errorf("%s: %s", kind, text)
	}
	kind, text = get("/metrics", "text/plain")
	if kind != "text/plain; version=0.0.4; charset=utf-8" {
		t.Error(kind)
	}
	now := metricsText(t, text)
	commands := n.metrics(0)
	for _, s := range []metricsSeries{now, commands} {
		maps.DeleteFunc(s, func(series string, _ float64) bool {
			return strings.Contains(series, "_scrape_duration_") || strings.Contains(series, "_conntrack_entries") || strings.Contains(series, `action="Failsafe"`) || strings.Contains(series, "_interface_")
		})
	}
	if diff := cmp.Diff(commands, now); diff != "" || len(now) < 20 {
		t.Errorf("the command and the server differ (-command +server):\n%s", diff)
	}
	if _, text := get("/healthz", ""); text != "ok\n" {
		t.Errorf("/healthz: %q", text)
	}

	// It may run for years.
	descriptors := func() int {
		return len(must(os.ReadDir(fmt.Sprintf("/proc/%d/fd", old.Process.Pid)))(t))
	}
	open := descriptors()
	for range 50 {
		get("/metrics", "")
	}
	trafficUntil(t, "no descriptor is left open", func() bool { return descriptors() <= open })

	// Errors are logged when they begin and when they are over.
	applies := filepath.Join(n.lab.RunDir, "applies.json")
	was := must(os.ReadFile(applies))(t)
	check(t, os.WriteFile(applies, []byte("{"), 0o600))
	for range 3 {
		if _, text := get("/metrics", ""); metricsText(t, text)[`untracked_scrape_errors{part="applies"}`] != 1 {
			t.Errorf("a broken file: %s", text)
		}
	}
	old.says(t, "applies.json")
	check(t, os.WriteFile(applies, was, 0o600))
	get("/metrics", "")
	get("/metrics", "")
	old.says(t, "can be read again")

	// A policy that comes later is seen.
	n.apply(map[string]string{"ports": "udp/7001,tcp/80"})
	if _, text := get("/metrics", ""); metricsText(t, text)["untracked_policy_generation"] != 2 {
		t.Errorf("after another policy: %s", text)
	}

	next := n.serveMetrics(address.String())
	next.says(t, "waiting for the address")
	old.end(t)
	next.says(t, "url=http://"+address.String()+"/metrics")
	if _, text := get("/metrics", ""); metricsText(t, text)["untracked_policy_generation"] != 2 {
		t.Errorf("the next server: %s", text)
	}
	waiting := n.serveMetrics(address.String())
	waiting.says(t, "waiting for the address")
	check(t, waiting.Process.Signal(unix.SIGTERM))
	check(t, waiting.Wait())
	next.end(t)
}

// In a container whose run directory is gone from the host, the server ends, and finds the new one when it is started again.
func TestMetricsRemovedDirectory(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	host := filepath.Join(n.lab.Dir, "host")
	check(t, os.Mkdir(host, 0o755))
	check(t, os.MkdirAll(n.lab.RunDir, 0o755))
	check(t, unix.Mount(host, n.lab.RunDir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(n.lab.RunDir, unix.MNT_DETACH) })
	address := netip.AddrPortFrom(n.u.Node4, 10417)
	server := n.serveMetrics(address.String())
	server.says(t, "serving")
	check(t, os.Remove(host))
	conn := must(lab.Dial(n.Client, "tcp", n.u.Client4[0], address, trafficPatience))(t)
	defer conn.Close()
	must(io.WriteString(conn, "GET /metrics HTTP/1.0\r\n\r\n"))(t)
	server.says(t, n.lab.RunDir+" was removed on the host")
	if err := server.Wait(); err == nil {
		t.Error("it ended with success, and is not started again")
	}
}

func TestMetricsUsage(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	for _, c := range []struct {
		args string
		exit int
		want string
	}{
		{"--listen 10417", 2, "ADDRESS:PORT"},
		{"--listen :10417 --textfile x", 2, "listen"},
		{"--max-rules -1", 2, "--max-rules"},
		{"extra", 2, "extra"},
		{"--listen 192.0.2.1:10417", 1, "192.0.2.1:10417"},
		{"--textfile /nonexistent/x.prom", 1, "/nonexistent"},
	} {
		out := must(n.lab.Untracked(append([]string{"metrics"}, strings.Fields(c.args)...)...))(t)
		if out.ExitCode != c.exit || !strings.Contains(string(out.Stderr), c.want) || len(out.Stdout) > 0 {
			t.Errorf("metrics %s: exit code %d, %s%s", c.args, out.ExitCode, out.Stdout, out.Stderr)
		}
	}
}
