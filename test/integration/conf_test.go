// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// confDir is where the ready configurations are.
const confDir = "../../conf"

// confLists are the conf lists in confDir with what matters in them.
var confLists = []struct {
	file, network, mainPlugin string
	ingress                   []string // rules that arriving packets meet, but for failsafes
}{
	{"10-bridge-untracked.conflist", "mynet", "bridge", []string{"ports[0] Allow"}},
	{"10-flannel.conflist", "cbr0", "flannel", []string{"ports[0] Allow", "remote-ports[0] Allow"}},
	{"10-calico.conflist", "k8s-pod-network", "calico", []string{"deny[0] Deny", "ports[0] Allow", "ports[1] Allow", "ports[2] Allow"}},
}

func TestConfListsAreComplete(t *testing.T) {
	found, err := filepath.Glob(filepath.Join(confDir, "*.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, c := range confLists {
		want = append(want, filepath.Join(confDir, c.file))
	}
	slices.Sort(want)
	if !slices.Equal(found, want) {
		t.Errorf("conf/ has %v, the tests know %v", found, want)
	}
}

func TestConfListsParse(t *testing.T) {
	for _, c := range confLists {
		t.Run(c.file, func(t *testing.T) {
			path := filepath.Join(confDir, c.file)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := config.ParseConflist(data, path)
			if err != nil {
				t.Fatal(err)
			}
			if parsed.Network != c.network {
				t.Errorf("network %q, want %q", parsed.Network, c.network)
			}
			plugins := confPlugins(t, confRead(t, path))
			if first, last := plugins[0]["type"], plugins[len(plugins)-1]["type"]; first != c.mainPlugin || last != config.PluginType {
				t.Errorf("the chain begins with %v and ends with %v; want %s and %s", first, last, c.mainPlugin, config.PluginType)
			}
		})
	}
}

// Each list as it is in a lab, but for the places that must be the lab's own.
func TestConfListsApply(t *testing.T) {
	for _, c := range confLists {
		t.Run(c.file, func(t *testing.T) {
			l := lab.New(t, lab.Config{})
			path := confInLab(t, l, filepath.Join(confDir, c.file))
			confCommand(t, l, "apply", path, "--dry-run")
			confCommand(t, l, "apply", path)

			out, err := l.Untracked("rules", "-o", "json")
			if err != nil {
				t.Fatal(err)
			}
			var rules []node.RuleStatus
			if err := json.Unmarshal(out.Stdout, &rules); err != nil {
				t.Fatalf("rules -o json: %v: %s%s", err, out.Stdout, out.Stderr)
			}
			var got []string
			for _, r := range rules {
				if r.Direction == "ingress" && r.Action != "Failsafe" {
					got = append(got, fmt.Sprintf("%s[%d] %s", r.Policy, r.Index, r.Action))
				}
			}
			if !slices.Equal(got, c.ingress) {
				t.Errorf("ingress rules %q, want %q", got, c.ingress)
			}
			for _, verb := range []string{"status", "remove"} {
				if out, err := l.Untracked(verb); err != nil || out.ExitCode != 0 {
					t.Errorf("%s: exit code %d, %v\n%s%s", verb, out.ExitCode, err, out.Stdout, out.Stderr)
				}
			}
		})
	}
}

// The bridge list through the real chain.
func TestConfBridgeChain(t *testing.T) {
	if !confInstalled("iptables") && !confInstalled("nft") {
		t.Skip("ipMasq of the bridge plugin needs iptables or nft")
	}
	l, chain, pod := cniChain(t, map[string]string{})
	list := confRead(t, filepath.Join(confDir, "10-bridge-untracked.conflist"))
	confLocalise(t, l, list)
	list["name"] = chain.Network
	confPlugins(t, list)[0]["ipam"].(map[string]any)["dataDir"] = filepath.Join(l.Dir, "ipam")
	if err := chain.WriteFile(confText(t, list)); err != nil {
		t.Fatal(err)
	}
	if _, err := chain.Add(pod); err != nil {
		t.Fatal(err)
	}
	if _, err := chain.Check(pod); err != nil {
		t.Error(err)
	}
	if out, err := l.Untracked("status"); err != nil || out.ExitCode != 0 {
		t.Errorf("status: exit code %d, %v\n%s%s", out.ExitCode, err, out.Stdout, out.Stderr)
	}
	if _, err := chain.Del(pod); err != nil {
		t.Error(err)
	}
}

// The flannel list takes the tunnel's outer packets out, both ways, and leaves the inner flows in.
func TestConfFlannelTunnel(t *testing.T) {
	const vxlanPort = 8472
	l := lab.New(t, lab.Config{})
	if _, err := lab.AddStateful(l.Node, true); err != nil {
		t.Fatal(err)
	}
	u := l.Uplinks[0]
	inner := confTunnel(t, l.Node, u.Node4, u.Client4[0], vxlanPort, "10.244.0.1/16")
	peer := confTunnel(t, l.Client, u.Client4[0], u.Node4, vxlanPort, "10.244.1.1/16")
	if _, err := lab.ServeTCP(l.Client, 80); err != nil {
		t.Fatal(err)
	}
	talk := func() {
		t.Helper()
		conn, err := lab.Dial(l.Node, "tcp", inner, netip.AddrPortFrom(peer, 80), 5*time.Second)
		if err != nil {
			t.Fatalf("dial through the tunnel: %v", err)
		}
		conn.Close()
	}
	outer := func() int {
		t.Helper()
		n, err := lab.CountFlows(l.Node, lab.Protocol(unix.IPPROTO_UDP), lab.Port(vxlanPort))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	talk()
	if n := outer(); n < 2 {
		t.Fatalf("%d entries for the tunnel before the policy, want one each way", n)
	}
	confCommand(t, l, "apply", confInLab(t, l, filepath.Join(confDir, "10-flannel.conflist")))
	if n := outer(); n != 0 {
		t.Errorf("%d entries for the tunnel are left by apply", n)
	}
	talk()
	if n := outer(); n != 0 {
		t.Errorf("%d entries for the tunnel with the policy", n)
	}
	if n, err := lab.CountFlows(l.Node, lab.Protocol(unix.IPPROTO_TCP), lab.Port(80)); err != nil || n == 0 {
		t.Errorf("%d entries for the inner flow (%v), want some", n, err)
	}
}

// confTunnel makes a VXLAN interface to a peer, with an address, and returns that.
func confTunnel(t *testing.T, ns *lab.NS, local, remote netip.Addr, port int, address string) netip.Addr {
	t.Helper()
	prefix := netip.MustParsePrefix(address)
	err := lab.In(ns, func() error {
		underlay, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "flannel.1"
		return netlink.LinkAdd(&netlink.Vxlan{
			LinkAttrs: attrs, VxlanId: 1, VtepDevIndex: underlay.Attrs().Index, Port: port,
			SrcAddr: local.AsSlice(), Group: remote.AsSlice(),
		})
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("the kernel has no VXLAN")
	}
	if err != nil {
		t.Fatal(err)
	}
	// One network for both ends: flannel's own neighbour entries are beside the point here.
	if err := lab.AddAddrs(ns, "flannel.1", prefix); err != nil {
		t.Fatal(err)
	}
	if err := lab.SetLinkUp(ns, "flannel.1", true); err != nil {
		t.Fatal(err)
	}
	return prefix.Addr()
}

// What KNOWN_ISSUES says of a host address on a bridge, with bridge-nf-call-iptables as Kubernetes wants it.
func TestConfBridgePortsNamed(t *testing.T) {
	l := lab.New(t, lab.Config{})
	u := l.Uplinks[0]
	if err := lab.SetSysctl(l.Node, "net/bridge/bridge-nf-call-iptables", "1"); err != nil {
		t.Skipf("the kernel has no bridge netfilter: %v", err)
	}
	fw, err := lab.AddStateful(l.Node, true)
	if err != nil {
		t.Fatal(err)
	}
	err = lab.In(l.Node, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		br := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		port, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		address := &netlink.Addr{IPNet: confIPNet(u.Prefix4, u.Node4)}
		return errors.Join(
			netlink.LinkSetMaster(port, br), netlink.LinkSetUp(br),
			netlink.AddrDel(port, address), netlink.AddrAdd(br, &netlink.Addr{IPNet: address.IPNet}),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.ServeTCP(l.Node, 6379); err != nil {
		t.Fatal(err)
	}
	chain, err := l.Chain(lab.ChainConfig{Annotations: map[string]string{"interfaces": "br0,eth0", "ports": "tcp/6379"}})
	if err != nil {
		t.Fatal(err)
	}
	confCommand(t, l, "apply", chain.File)
	conn, err := lab.Dial(l.Client, "tcp", netip.Addr{}, netip.AddrPortFrom(u.Node4, 6379), 5*time.Second)
	if err != nil {
		t.Fatalf("dial through the bridge: %v", err)
	}
	conn.Close()
	if n, err := lab.CountFlows(l.Node, lab.Port(6379)); err != nil || n != 0 {
		t.Errorf("%d conntrack entries (%v), want none", n, err)
	}
	if states, err := fw.States(); err != nil || states.Invalid != 0 || states.Untracked == 0 {
		t.Errorf("states %+v (%v), want untracked ones and none invalid", states, err)
	}
}

// What KNOWN_ISSUES says of libcni's drop-in directory: our entry in a file of its own.
func TestConfDropIn(t *testing.T) {
	l, chain, pod := cniChain(t, nil)
	dir := filepath.Join(chain.ConfDir, chain.Network)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Build("untracked"); err != nil {
		t.Fatal(err)
	}
	entry := fmt.Sprintf(`{"type": "untracked", "annotations": {"untracked.cni/ports": "tcp/6379", "untracked.cni/bpffs": %q, "untracked.cni/run-dir": %q}}`, l.BPFFS, l.RunDir)
	if err := os.WriteFile(filepath.Join(dir, "50-untracked.conf"), []byte(entry), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := chain.Add(pod); err != nil {
		t.Fatal(err)
	}
	if out, err := l.Untracked("status"); err != nil || out.ExitCode != 0 {
		t.Errorf("status: exit code %d, %v\n%s%s", out.ExitCode, err, out.Stdout, out.Stderr)
	}
	if _, err := chain.Del(pod); err != nil {
		t.Error(err)
	}
}

func TestConfUnit(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(confDir, "untracked.service"))
	if err != nil {
		t.Fatal(err)
	}
	unit := string(text)
	const binary = "/opt/cni/bin/untracked"
	for _, line := range []string{
		"ExecStart=" + binary + " apply ${CONFLIST}", "ExecCondition=/usr/bin/test -e ${CONFLIST}", "Type=oneshot", "RemainAfterExit=yes",
	} {
		if !strings.Contains(unit, "\n"+line+"\n") {
			t.Errorf("the unit has no line %q", line)
		}
	}
	conflist := regexp.MustCompile(`(?m)^Environment=CONFLIST=/etc/cni/net\.d/(.+)$`).FindStringSubmatch(unit)
	if conflist == nil {
		t.Error("the unit names no conf list")
	} else if _, err := os.Stat(filepath.Join(confDir, conflist[1])); err != nil {
		t.Errorf("the unit's conf list: %v", err)
	}
	if !confInstalled("systemd-analyze") {
		t.Skip("systemd-analyze is not installed")
	}
	// It insists on binaries that exist.
	local := filepath.Join(t.TempDir(), "untracked.service")
	if err := os.WriteFile(local, []byte(strings.ReplaceAll(unit, binary, "/bin/true")), 0o600); err != nil {
		t.Fatal(err)
	}
	// It complains of what it ignores, and exits with 0.
	if out, err := exec.Command("systemd-analyze", "verify", local).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestConfLogrotate(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(confDir, "untracked.logrotate"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range confLists {
		data, err := os.ReadFile(filepath.Join(confDir, c.file))
		if err != nil {
			t.Fatal(err)
		}
		if parsed, err := config.ParseConflist(data, c.file); err != nil {
			t.Error(err)
		} else if parsed.LogFile != "" && !strings.Contains(string(text), "\n"+parsed.LogFile+" {") {
			t.Errorf("%s: log file %s is not rotated", c.file, parsed.LogFile)
		}
	}
	if !confInstalled("logrotate") {
		t.Skip("logrotate is not installed")
	}
	local := filepath.Join(t.TempDir(), "untracked")
	if err := os.WriteFile(local, text, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("logrotate", "--debug", "--state", filepath.Join(t.TempDir(), "state"), local).CombinedOutput()
	if err != nil || strings.Contains(string(out), "error:") {
		t.Errorf("logrotate --debug: %v\n%s", err, out)
	}
}

func confInstalled(tool string) bool {
	_, err := exec.LookPath(tool)
	return err == nil
}

// confCommand runs the operator's command on the node and wants exit code 0.
func confCommand(t *testing.T, l *lab.Lab, args ...string) string {
	t.Helper()
	bin, err := lab.Build("untracked")
	if err != nil {
		t.Fatal(err)
	}
	out, err := lab.Command(l.Node, filepath.Join(bin, "untracked"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("untracked %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// confInLab is a copy of a conf list whose entry names the lab's places.
func confInLab(t *testing.T, l *lab.Lab, path string) string {
	t.Helper()
	list := confRead(t, path)
	confLocalise(t, l, list)
	to := filepath.Join(l.Dir, filepath.Base(path))
	if err := os.WriteFile(to, confText(t, list), 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

func confLocalise(t *testing.T, l *lab.Lab, list map[string]any) {
	t.Helper()
	for _, plugin := range confPlugins(t, list) {
		if plugin["type"] != config.PluginType {
			continue
		}
		annotations := plugin["annotations"].(map[string]any)
		annotations[config.Prefix+"bpffs"], annotations[config.Prefix+"run-dir"] = l.BPFFS, l.RunDir
		delete(annotations, config.Prefix+"log-file")
	}
}

func confRead(t *testing.T, path string) (list map[string]any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return list
}

func confText(t *testing.T, list map[string]any) []byte {
	t.Helper()
	text, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func confPlugins(t *testing.T, list map[string]any) (plugins []map[string]any) {
	t.Helper()
	entries, ok := list["plugins"].([]any)
	if !ok || len(entries) == 0 {
		t.Fatal("the list has no plugins")
	}
	for _, e := range entries {
		plugins = append(plugins, e.(map[string]any))
	}
	return plugins
}

func confIPNet(p netip.Prefix, a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(p.Bits(), a.BitLen())}
}
