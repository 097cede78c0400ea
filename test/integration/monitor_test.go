// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/monitor"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

const monitorPolicy = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: watched}
spec:
  doNotTrack: true
  applyOnForward: true
  types: [Ingress, Egress]
  ingress:
  - {action: Log, protocol: TCP, destination: {ports: [8000]}}
  - {action: Allow, protocol: TCP, destination: {ports: [8000, 8001]}}
  - {action: Log, protocol: UDP}
  - {action: Deny, protocol: UDP, destination: {ports: [9000]}}
  egress:
  - {action: Log, protocol: TCP, source: {ports: [8000]}}
  - {action: Allow, protocol: TCP, source: {ports: [8000, 8001]}}
`

// watch runs `untracked monitor -o json` and returns what it prints, once it is listening.
func (n *trafficNode) watch(args ...string) (next func() *monitor.Event) {
	n.Helper()
	cmd := lab.Command(n.Node, n.chain.Bin+"/untracked", append([]string{"monitor", "-o", "json", "--bpffs", n.lab.BPFFS, "--run-dir", n.lab.RunDir}, args...)...)
	out := must(cmd.StdoutPipe())(n)
	check(n, cmd.Start())
	n.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	events := make(chan *monitor.Event)
	go func() {
		defer close(events)
		for lines.Scan() {
			e := &monitor.Event{}
			if err := json.Unmarshal(lines.Bytes(), e); err != nil {
				n.Errorf("monitor printed %q: %v", lines.Text(), err)
				return
			}
			events <- e
		}
	}()
	return func() *monitor.Event { return <-events }
}

// What rules log is shown live, either way, with its verdict; nothing else is.
func TestMonitor(t *testing.T) {
	for _, mode := range []string{"native", "tc"} {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			for port := uint16(8000); port < 8002; port++ {
				must(lab.ServeTCP(n.Node, port))(t)
			}
			n.applyPolicy(monitorPolicy, map[string]string{"mode": mode})
			next := n.watch("--count", "40") // more than there will be, with all that are sent at the beginning
			// It says nothing when it begins to listen, so one packet is sent until it has been seen.
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					default:
						_, _ = lab.LoadUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 9000), Sources: n.u.Client4[:1], Count: 1, Timeout: trafficShort / 10})
					}
				}
			}()
			e := next()
			close(stop)
			<-stopped
			if e == nil || e.Verdict != policy.Denied || e.Direction != policy.Ingress || e.Interface != "eth0" || e.Protocol != "udp" ||
				e.Source != n.u.Client4[0] || *e.DestinationPort != 9000 || e.Rule.String() != "default/watched[3]" || e.Log.Index != 2 {
				t.Fatalf("event %+v", e)
			}
			n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node6, 8001), Sources: n.u.Client6[:1], Count: 1})
			n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node6, 8000), Sources: n.u.Client6[:1], Count: 1})
			seen := map[policy.Direction]int{}
			for e := next(); e != nil; e = next() {
				if e.Protocol == "udp" {
					continue // the last of the beginning
				}
				seen[e.Direction]++
				local := e.DestinationPort
				if e.Direction == policy.Egress {
					local = e.SourcePort
				}
				if e.Verdict != policy.Untracked || *local != 8000 || e.Rule.String() != "default/watched[1]" || e.Log.Index != 0 {
					t.Errorf("event %s, log %v", e, e.Log)
				}
				if seen[policy.Ingress] >= 3 && seen[policy.Egress] >= 2 {
					break
				}
			}
			if seen[policy.Ingress] < 3 || seen[policy.Egress] < 2 {
				t.Errorf("events %v", seen)
			}
		})
	}
}

// terminal is a terminal for a process, as its user has it.
type terminal struct {
	user  *os.File
	lines *bufio.Scanner
	// process is the process's end.
	process *os.File
}

func openTerminal(t testing.TB) *terminal {
	t.Helper()
	fd := must(unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0))(t)
	user := os.NewFile(uintptr(fd), "/dev/ptmx")
	t.Cleanup(func() { user.Close() })
	check(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	number := must(unix.IoctlGetInt(fd, unix.TIOCGPTN))(t)
	process := must(os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0))(t)
	t.Cleanup(func() { process.Close() })
	check(t, user.SetDeadline(time.Now().Add(trafficPatience)))
	return &terminal{user, bufio.NewScanner(user), process}
}

// line is the next one on the terminal.
func (s *terminal) line(t testing.TB) string {
	t.Helper()
	if !s.lines.Scan() {
		t.Fatalf("nothing on the terminal: %v", s.lines.Err())
	}
	return s.lines.Text()
}

// watchOnTerminal runs `untracked monitor` on a terminal of its own, all but its standard output.
func (n *trafficNode) watchOnTerminal() (*terminal, *lab.Cmd, *bytes.Buffer) {
	n.Helper()
	s, out := openTerminal(n), &bytes.Buffer{}
	cmd := lab.Command(n.Node, n.chain.Bin+"/untracked", "monitor", "--bpffs", n.lab.BPFFS, "--run-dir", n.lab.RunDir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.process, out, s.process
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	check(n, cmd.Start())
	n.Cleanup(func() { cmd.Process.Kill() })
	return s, cmd, out
}

// On a terminal it says what it waits for. Ctrl-C ends it, and nothing is left behind.
func TestMonitorTerminal(t *testing.T) {
	n := newTraffic(t, lab.Config{Uplinks: 2})
	n.applyPolicy(monitorPolicy, map[string]string{"interfaces": "eth*"})
	files, pins := cniFiles(t, n.lab, true), n.objects()
	s, cmd, out := n.watchOnTerminal()
	if got, want := s.line(t), "watching 3 rules that log on eth0, eth1; Ctrl-C ends it"; got != want {
		t.Errorf("on the terminal: %q, want %q", got, want)
	}
	trafficUntil(t, "the programs are asked for events", func() bool { return n.monitorLease() != 0 })
	must(s.user.Write([]byte{3}))(t) // Ctrl-C
	check(t, cmd.Wait())
	if out.Len() > 0 {
		t.Errorf("nothing was logged, but it printed %q", out)
	}
	if until := n.monitorLease(); until != 0 {
		t.Errorf("the programs send events until %d, want no more", until)
	}
	if n.groupHasReader() {
		t.Error("the nflog group still has a reader")
	}
	if diff := cmp.Diff(files, cniFiles(t, n.lab, true)); diff != "" {
		t.Errorf("run directory (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(pins, n.objects(), cmp.AllowUnexported(pins)); diff != "" {
		t.Errorf("pins (-before +after):\n%s", diff)
	}
}

// monitorLease is until when the programs send events, 0 where nobody listens.
func (n *trafficNode) monitorLease() (jiffies uint64) {
	n.Helper()
	m := must(ebpf.LoadPinnedMap(filepath.Join(n.lab.BPFFS, "untracked", "monitor"), nil))(n)
	defer m.Close()
	check(n, m.Lookup(uint32(0), &jiffies))
	return jiffies
}

func (n *trafficNode) groupHasReader() bool {
	n.Helper()
	readers := must(lab.Command(n.Node, "cat", "/proc/net/netfilter/nfnetlink_log").Output())(n)
	return bytes.Contains(readers, []byte(strconv.Itoa(int(nft.LogGroup))))
}

func TestMonitorRefuses(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	refused := func(want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), trafficPatience) // one that is not refused goes on for ever
		defer cancel()
		cmd := lab.CommandContext(ctx, n.Node, n.chain.Bin+"/untracked", "monitor", "--bpffs", n.lab.BPFFS, "--run-dir", n.lab.RunDir)
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 1 || string(out) != "untracked: "+want+"\n" {
			t.Fatalf("%s, %s; want exit status 1, %q", cmd.ProcessState, out, want)
		}
	}
	refused("no policy is in force on this node")
	n.apply(map[string]string{"ports": "tcp/80"})
	refused("no rule of the policy in force logs: put a rule with action Log before the one to be watched")
	for _, tt := range []struct {
		types, rules string
		ingress      bool
	}{
		{"Ingress", "2 rules that log", true}, {"Egress", "1 rule that logs", false}, {"Ingress, Egress", "3 rules that log", true},
	} {
		n.applyPolicy(strings.Replace(monitorPolicy, "Ingress, Egress", tt.types, 1), nil)
		for range 2 { // also behind one that was killed
			s, cmd, _ := n.watchOnTerminal()
			if got, want := s.line(t), "watching "+tt.rules+" on eth0; Ctrl-C ends it"; got != want {
				t.Fatalf("%s: on the terminal: %q, want %q", tt.types, got, want)
			}
			if tt.ingress {
				trafficUntil(t, "the programs are asked for events", func() bool { return n.monitorLease() != 0 })
			}
			refused("another monitor is reading")
			refused("another monitor is reading")
			if tt.ingress && n.monitorLease() == 0 {
				t.Errorf("%s: the monitor that was refused has ended the lease of the one that runs", tt.types)
			}
			check(t, cmd.Process.Kill())
			_ = cmd.Wait()
		}
	}
}

// A monitor goes on when Log rules come and go, and when everything was removed meanwhile.
func TestMonitorFollowsThePolicy(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	logging := strings.Split(monitorPolicy, "  egress:")[0]
	n.applyPolicy(logging, nil)
	next := n.watch()
	denied := func() (source netip.Addr) {
		t.Helper()
		events := make(chan *monitor.Event, 1)
		go func() { events <- next() }()
		for end := time.After(trafficPatience); ; {
			_, _ = lab.LoadUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 9000), Sources: n.u.Client4[:1], Count: 1, Timeout: trafficShort / 10})
			select {
			case e := <-events:
				if e == nil {
					t.Fatal("the monitor ended")
				}
				return e.Source
			case <-end:
				t.Fatal("nothing more is shown")
			default:
			}
		}
	}
	denied()
	for name, change := range map[string]func(){
		"no rule logs for a while": func() { n.apply(map[string]string{"ports": "tcp/80"}) },
		"removed":                  func() { must(n.lab.Untracked("remove"))(t) },
		"another policy":           func() { n.applyPolicy(monitorPolicy, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			change()
			n.applyPolicy(logging, nil)
			if got := denied(); got != n.u.Client4[0] {
				t.Errorf("an event from %s", got)
			}
		})
	}
}
