// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTopology(t *testing.T) {
	l := New(t, Config{Uplinks: 2, MTU: 1400, ClientAddrs: 3})
	if got, want := must(Links(l.Node))(t), []string{"lo", "eth0", "eth1"}; !slices.Equal(got, want) {
		t.Errorf("node has links %v, want %v", got, want)
	}
	for n, u := range l.Uplinks {
		for _, target := range []netip.Addr{u.Node4, u.Node6} {
			port := uint16(7000 + n)
			sources := u.Client4
			if target.Is6() {
				sources = u.Client6
			}
			if len(sources) != 3 {
				t.Fatalf("%s: client has %d addresses, want 3", u.Name, len(sources))
			}
			s := must(ServeTCP(l.Node, port))(t)
			for _, source := range sources {
				conn := must(Dial(l.Client, "tcp", source, netip.AddrPortFrom(target, port), 2*time.Second))(t)
				conn.SetDeadline(time.Now().Add(2 * time.Second))
				fmt.Fprint(conn, "GET\n")
				if reply, err := bufio.NewReader(conn).ReadString('\n'); err != nil || reply != Reply {
					t.Errorf("from %s: reply %q, %v", source, reply, err)
				}
				conn.Close()
			}
			if got := s.Served(); got != 3 {
				t.Errorf("served %d requests, want 3", got)
			}
			s.Close()
		}
		if node := must(linkByName(l.Node, u.Name))(t).Attrs(); node.MTU != 1400 || node.Index != u.NodeIndex {
			t.Errorf("%s: MTU %d, index %d, want 1400, %d", u.Name, node.MTU, node.Index, u.NodeIndex)
		}
	}
}

func TestLoads(t *testing.T) {
	l := New(t, Config{})
	u := l.Uplinks[0]
	tcp, udp, sink := must(ServeTCP(l.Node, 6379))(t), must(ServeUDP(l.Node, 5353))(t), must(SinkUDP(l.Node, 514))(t)
	for name, target := range map[string]struct {
		addr    netip.Addr
		sources []netip.Addr
	}{"v4": {u.Node4, u.Client4}, "v6": {u.Node6, u.Client6}} {
		t.Run(name, func(t *testing.T) {
			tcpBefore, udpBefore, sinkBefore := tcp.Served(), udp.Served(), sink.Served()
			r := must(LoadTCP(l.Client, Load{Target: netip.AddrPortFrom(target.addr, 6379), Sources: target.sources, Count: 3000, Workers: 2}))(t)
			t.Log("tcp", r)
			if r.OK != 3000 || r.Timeouts+r.Failed != 0 || tcp.Served()-tcpBefore != 3000 {
				t.Errorf("tcp: %v (%v), served %d; want 3000", r, r.FirstFailure, tcp.Served()-tcpBefore)
			}
			r = must(LoadUDP(l.Client, Load{Target: netip.AddrPortFrom(target.addr, 5353), Sources: target.sources, Count: 3000, Payload: 2000}))(t)
			t.Log("udp", r)
			if r.OK != 3000 || r.Timeouts+r.Failed != 0 || udp.Served()-udpBefore != 3000 {
				t.Errorf("udp: %v (%v), served %d; want 3000", r, r.FirstFailure, udp.Served()-udpBefore)
			}
			r = must(FloodUDP(l.Client, Load{Target: netip.AddrPortFrom(target.addr, 514), Sources: target.sources, Count: 1000}))(t)
			t.Log("flood", r)
			for range 200 {
				if sink.Served()-sinkBefore == 1000 {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if r.OK != 1000 || sink.Served()-sinkBefore != 1000 {
				t.Errorf("flood: %v, received %d; want 1000", r, sink.Served()-sinkBefore)
			}
		})
	}

	closed := netip.AddrPortFrom(u.Node4, 9)
	r := must(LoadTCP(l.Client, Load{Target: closed, Count: 20}))(t)
	if r.Failed != 20 || !errors.Is(r.FirstFailure, unix.ECONNREFUSED) {
		t.Errorf("closed port: %v, %v; want 20 connections refused", r, r.FirstFailure)
	}
	nobody := netip.AddrPortFrom(netip.MustParseAddr("198.18.0.250"), 9)
	r = must(LoadTCP(l.Client, Load{Target: nobody, Count: 20, Timeout: 200 * time.Millisecond}))(t)
	if r.Timeouts != 20 {
		t.Errorf("absent host: %v; want 20 time-outs", r)
	}
}

func TestConntrack(t *testing.T) {
	l := New(t, Config{})
	u := l.Uplinks[0]
	must(ServeTCP(l.Node, 6379))(t)
	must(ServeUDP(l.Node, 5353))(t)
	fw := must(AddStateful(l.Node, true))(t)

	tcp4 := Load{Target: netip.AddrPortFrom(u.Node4, 6379), Sources: u.Client4[:2], Count: 100}
	udp6 := Load{Target: netip.AddrPortFrom(u.Node6, 5353), Sources: u.Client6[:2], Count: 50}
	must(LoadTCP(l.Client, tcp4))(t)
	must(LoadUDP(l.Client, udp6))(t)

	for _, c := range []struct {
		name  string
		match []Match
		want  int
	}{
		{"all", nil, 150},
		{"tcp", []Match{Protocol(unix.IPPROTO_TCP)}, 100},
		{"port 5353", []Match{Port(5353)}, 50},
		{"tcp port 5353", []Match{Protocol(unix.IPPROTO_TCP), Port(5353)}, 0},
		{"one source", []Match{Host(u.Client4[0])}, 50},
		{"replied", []Match{(*Flow).Replied}, 150},
	} {
		// A source port used again takes its entry over; the whole count may hold IPv6 multicast too.
		if got := must(CountFlows(l.Node, c.match...))(t); got < c.want-5 || got > c.want && (c.match != nil || got > c.want+10) {
			t.Errorf("%s: %d entries, want %d", c.name, got, c.want)
		}
	}
	states := must(fw.States())(t)
	if states.New < 145 || states.Established < 300 || states.Invalid != 0 || states.Untracked > 20 {
		t.Errorf("states %+v: want 150 new, no invalid, no untracked but neighbour discovery", states)
	}
	if !slices.Contains(must(Tables(l.Node))(t), "inet lab-stateful") {
		t.Errorf("tables %v", must(Tables(l.Node))(t))
	}
	check(t, FlushFlows(l.Node))
	if n := must(CountFlows(l.Node, Port(6379)))(t); n != 0 {
		t.Errorf("%d entries after flush", n)
	}
	if n := must(CountFlows(l.Client, Port(6379)))(t); n != 0 {
		t.Errorf("%d entries in the client's table, which tracks nothing", n)
	}
}

func TestCommandInside(t *testing.T) {
	l := New(t, Config{})
	cmd := Command(l.Node, "/proc/self/exe", "-test.run=^TestHelperLinks$")
	cmd.Env = append(os.Environ(), "LAB_HELPER=links")
	out := must(cmd.CombinedOutput())(t)
	if !strings.Contains(string(out), "links: lo eth0") {
		t.Errorf("inside: %s", out)
	}

	// What a command pins or mounts outlives it: the mount namespace is this one.
	if mounts := must(mountsBelow(l.Dir))(t); !slices.Equal(mounts, []string{l.BPFFS}) {
		t.Errorf("mounts %v, want %s", mounts, l.BPFFS)
	}
}

// TestHelperLinks is run by TestCommandInside in another namespace.
func TestHelperLinks(t *testing.T) {
	if os.Getenv("LAB_HELPER") == "" {
		t.Skip("helper")
	}
	data := must(os.ReadFile("/proc/self/net/dev"))(t)
	var names []string
	for line := range strings.Lines(string(data)) {
		if name, _, found := strings.Cut(strings.TrimSpace(line), ":"); found {
			names = append(names, name)
		}
	}
	fmt.Println("links:", strings.Join(names, " "))
}

func TestInComesHome(t *testing.T) {
	l := New(t, Config{})
	home := must(os.Readlink("/proc/thread-self/ns/net"))(t)
	func() {
		defer func() { recover() }()
		In(l.Node, func() error {
			if there := must(os.Readlink("/proc/thread-self/ns/net"))(t); there == home {
				t.Error("not inside")
			}
			panic("out of here")
		})
	}()
	done := make(chan struct{})
	go func() { // ended from inside, as t.FailNow does
		defer close(done)
		In(l.Node, func() error { runtime.Goexit(); return nil })
	}()
	<-done
	threads := must(filepath.Glob("/proc/self/task/*/ns/net"))(t)
	for _, thread := range threads {
		if ns, err := os.Readlink(thread); err == nil && ns != home {
			t.Errorf("thread %s is in %s, not in %s", thread, ns, home)
		}
	}
}

func TestFrames(t *testing.T) {
	l := New(t, Config{})
	u := l.Uplinks[0]
	c := must(NewCapture(l.Node, "eth0"))(t)
	defer c.Close()
	frame := make([]byte, 60)
	copy(frame, u.NodeMAC)
	copy(frame[6:], u.ClientMAC)
	copy(frame[12:], []byte{0x88, 0xb5}) // local experimental ethertype
	copy(frame[14:], l.Name)
	check(t, SendFrame(l.Client, "eth0", frame))
	ours := func(f []byte, leaving bool) bool { return !leaving && string(f) == string(frame) }
	if _, _, err := c.Next(5*time.Second, ours); err != nil {
		t.Error(err)
	}
	if _, _, err := c.Next(50*time.Millisecond, ours); !errors.Is(err, ErrNoFrame) {
		t.Errorf("a second frame: %v", err)
	}
}

func TestChainWithoutUntracked(t *testing.T) {
	l := New(t, Config{})
	for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			pod := must(l.AddNS("pod-" + version))(t)
			chain := must(l.Chain(ChainConfig{CNIVersion: version}))(t)
			out := must(chain.Add(pod))(t)
			if !strings.Contains(string(out.Stdout), `"cniVersion": "`+version+`"`) || !strings.Contains(string(out.Stdout), "10.88.") {
				t.Errorf("result: %s", out.Stdout)
			}
			must(chain.Check(pod))(t)
			if links := must(Links(pod))(t); !slices.Equal(links, []string{"lo", "eth0"}) {
				t.Errorf("pod has links %v", links)
			}

			// From the client, through the node, to the pod.
			must(ServeTCP(pod, 80))(t)
			_, rest, _ := strings.Cut(string(out.Stdout), `"10.88.`)
			addr := netip.MustParsePrefix("10.88." + rest[:strings.IndexByte(rest, '"')]).Addr()
			r := must(LoadTCP(l.Client, Load{Target: netip.AddrPortFrom(addr, 80), Count: 10}))(t)
			if r.OK != 10 {
				t.Errorf("to the pod: %v (%v)", r, r.FirstFailure)
			}

			must(chain.Del(pod))(t)
			must(chain.Del(pod))(t)
			if version == "1.1.0" {
				must(chain.Status())(t)
				must(chain.GC())(t)
			}
			if links := must(Links(pod))(t); !slices.Equal(links, []string{"lo"}) {
				t.Errorf("pod has links %v after del", links)
			}
		})
	}

	chain := must(l.Chain(ChainConfig{}))(t)
	check(t, chain.WriteFile([]byte(`{"cniVersion":"1.1.0","name":"`+chain.Network+`","plugins":[{"type":"bridge","mtu":"x"}]}`)))
	out, err := chain.Add(must(l.AddNS("pod-bad"))(t))
	cniErr := (*CNIError)(nil)
	if !errors.As(err, &cniErr) || !strings.Contains(cniErr.Msg, "failed (add)") || out.ExitCode != 1 {
		t.Errorf("broken conflist: %v, exit status %d", err, out.ExitCode)
	}
}

func TestTwoLabsAtOnce(t *testing.T) {
	a, b := New(t, Config{}), New(t, Config{})
	must(ServeTCP(a.Node, 6379))(t)
	u := b.Uplinks[0]
	r := must(LoadTCP(b.Client, Load{Target: netip.AddrPortFrom(u.Node4, 6379), Count: 3}))(t)
	if r.OK != 0 || r.Failed != 3 {
		t.Errorf("the one lab's client reaches the other's server: %v", r)
	}
	check(t, a.Close())
	must(ServeTCP(b.Node, 6379))(t)
	r = must(LoadTCP(b.Client, Load{Target: netip.AddrPortFrom(u.Node4, 6379), Count: 3}))(t)
	if r.OK != 3 {
		t.Errorf("closing the one lab disturbs the other: %v (%v)", r, r.FirstFailure)
	}
}

// remains lists what there still is of a lab.
func remains(t *testing.T, name string) (left []string) {
	pins, _ := filepath.Glob(filepath.Join(netnsDir, name+"*"))
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), name+"*"))
	cached, _ := filepath.Glob("/var/lib/cni/results/" + name + "*")
	left = slices.Concat(pins, dirs, cached)
	for line := range strings.Lines(string(must(os.ReadFile("/proc/self/mountinfo"))(t))) {
		if strings.Contains(line, name) {
			left = append(left, line)
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		environ, _ := os.ReadFile(p + "/environ")
		cmdline, _ := os.ReadFile(p + "/cmdline")
		if strings.Contains(string(environ), name) || strings.Contains(string(cmdline), name) {
			left = append(left, p)
		}
	}
	return left
}

func TestCloseLeavesNothing(t *testing.T) {
	l := New(t, Config{})
	pod := must(l.AddNS("pod"))(t)
	chain := must(l.Chain(ChainConfig{}))(t)
	must(chain.Add(pod))(t) // and no del
	must(ServeTCP(l.Node, 6379))(t)
	// A daemon that a test forgot, and its child.
	daemon := Command(l.Node, "sh", "-c", "sleep 1000 & sleep 1000 # "+l.Name)
	check(t, daemon.Start())
	go daemon.Wait()
	check(t, unix.Mount("tmpfs", l.RunDir, "tmpfs", 0, ""))
	if len(remains(t, l.Name)) == 0 {
		t.Fatal("found nothing of an open lab")
	}
	for range 2 {
		check(t, l.Close())
	}
	time.Sleep(50 * time.Millisecond) // the daemon is reaped by its own goroutine
	if left := remains(t, l.Name); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestHelperOpen is a program of its own for the tests below: it opens a lab, limits conntrack and waits.
func TestHelperOpen(t *testing.T) {
	if os.Getenv("LAB_HELPER") == "" {
		t.Skip("helper")
	}
	l := must(Open(Config{}))(t)
	CloseOnSignal()
	daemon := Command(l.Node, "sleep", "1000")
	check(t, daemon.Start())
	must(LimitConntrack(54321))(t)
	fmt.Println("lab", l.Name, daemon.Process.Pid)
	if os.Getenv("LAB_HELPER") == "exit" {
		os.Exit(3)
	}
	time.Sleep(time.Minute)
}

func TestKilledLeavesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	original := originalConntrackMax(t)
	for _, end := range []struct {
		how    string
		signal unix.Signal
		status int
	}{{"killed", unix.SIGKILL, -1}, {"terminated", unix.SIGTERM, 143}, {"interrupted", unix.SIGINT, 130}, {"exit", 0, 3}} {
		t.Run(end.how, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelperOpen$")
			cmd.Env = append(os.Environ(), "LAB_HELPER="+end.how)
			cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
			stdout := must(cmd.StdoutPipe())(t)
			check(t, cmd.Start())
			defer func() { unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }()
			var name string
			var daemon int
			lines := bufio.NewScanner(stdout)
			for name == "" && lines.Scan() {
				fmt.Sscanf(lines.Text(), "lab %s %d", &name, &daemon)
			}
			if name == "" {
				t.Fatal("helper did not open a lab")
			}
			if end.signal != 0 {
				if max := must(ConntrackMax())(t); max != 54321 {
					t.Errorf("nf_conntrack_max is %d, want 54321", max)
				}
				unix.Kill(-cmd.Process.Pid, end.signal) // the whole group, as ^C does
			}
			cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != end.status {
				t.Errorf("exit status %d, want %d", got, end.status)
			}
			var left []string
			for range 500 {
				if left = remains(t, name); len(left) == 0 {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if len(left) != 0 {
				t.Errorf("left behind: %q", left)
			}
			// A zombie has no open files left, however slow its new parent is.
			if files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", daemon)); err == nil && len(files) > 0 {
				t.Errorf("process %d still runs", daemon)
			}
			if max := originalConntrackMax(t); max != original {
				t.Errorf("nf_conntrack_max is %d, want %d", max, original)
			}
		})
	}
}

// originalConntrackMax is the value when no limit is in force. Not with a lab open: it waits for limiters of
// other processes, which wait for labs.
func originalConntrackMax(t *testing.T) int {
	lock := must(os.OpenFile(machineFile, os.O_CREATE|os.O_RDWR, 0o600))(t)
	defer lock.Close()
	check(t, lockByte(lock, turnByte, unix.F_RDLCK, time.Minute))
	return must(ConntrackMax())(t)
}

func TestLimitConntrack(t *testing.T) {
	original := originalConntrackMax(t)
	l := New(t, Config{})
	u := l.Uplinks[0]
	must(ServeTCP(l.Node, 6379))(t)
	must(AddStateful(l.Node, true))(t)
	if _, err := LimitConntrack(0); err == nil {
		t.Error("a limit of 0, which is none, was accepted")
	}

	restore := must(LimitConntrack(roomy))(t)
	defer restore()
	second := make(chan int)
	go func() { // waits for the first, and must not take its limit for the original
		again, err := LimitConntrack(roomy + 2)
		if err != nil {
			t.Error(err)
			close(second)
			return
		}
		n, _ := ConntrackMax()
		if err := again(); err != nil {
			t.Error(err)
		}
		second <- n
	}()

	r := must(LoadTCP(l.Client, Load{Target: netip.AddrPortFrom(u.Node4, 6379), Sources: u.Client4, Count: roomy + 2000, InFlight: 1000}))(t)
	t.Log(r)
	// A port used again takes its entry over. On a slow machine, entries go (after 10 s) before the table is full.
	if r.Elapsed < 9*time.Second && (r.OK > roomy+roomy/20 || r.Timeouts == 0) {
		t.Errorf("with a table of %d: %v", roomy, r)
	}
	stats := must(ReadConntrackStats(l.Node))(t)
	if stats.Drop == 0 && r.Timeouts > 0 {
		t.Errorf("no packet dropped: %+v", stats)
	}
	check(t, restore())
	check(t, restore())
	if n := <-second; n != roomy+2 {
		t.Errorf("nf_conntrack_max is %d for the second, want %d", n, roomy+2)
	}
	check(t, l.Close())
	if n := originalConntrackMax(t); n != original {
		t.Errorf("nf_conntrack_max is %d, want %d", n, original)
	}

	// A limiter and a watchdog that both died leave a record.
	must(takeTable(roomy))(t)
	check(t, writeConntrackMax(roomy+1))
	check(t, os.WriteFile(machineFile, fmt.Appendln(nil, original), 0o600))
	giveTable()
	check(t, must(LimitConntrack(roomy))(t)())
	if n := originalConntrackMax(t); n != original {
		t.Errorf("nf_conntrack_max is %d after a crash, want %d", n, original)
	}
}

func TestHooks(t *testing.T) {
	l := New(t, Config{})
	if h := must(ReadHooks(l.Node, "eth0"))(t); !h.None() {
		t.Errorf("a fresh interface has %+v", h)
	}
	program := func(kind ebpf.ProgramType, verdict int32) *ebpf.Program {
		p := must(ebpf.NewProgram(&ebpf.ProgramSpec{Type: kind, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()}}))(t)
		t.Cleanup(func() { p.Close() })
		return p
	}
	xdp, tc := program(ebpf.XDP, 2), program(ebpf.SchedCLS, -1) // XDP_PASS, TCX_NEXT
	index := l.Uplinks[0].NodeIndex
	check(t, In(l.Node, func() error {
		onXDP := must(link.AttachXDP(link.XDPOptions{Program: xdp, Interface: index}))(t)
		t.Cleanup(func() { onXDP.Close() })
		onTCX, err := link.AttachTCX(link.TCXOptions{Program: tc, Interface: index, Attach: ebpf.AttachTCXIngress})
		if errors.Is(err, link.ErrNotSupported) {
			t.Skip("needs tcx, Linux 6.6")
		}
		t.Cleanup(func() { onTCX.Close() })
		return err
	}))
	h := must(ReadHooks(l.Node, "eth0"))(t)
	if h.XDP == 0 || h.Generic || len(h.TCXIngress) != 1 || len(h.TCXEgress) != 0 || h.Clsact {
		t.Errorf("hooks %+v: want native XDP and one program on tcx ingress", h)
	}
}
