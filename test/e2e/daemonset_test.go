// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/test/e2e/cluster"
	"github.com/untracked-cni/untracked/test/lab"
)

const (
	binary      = cluster.CNIBin + "/untracked"
	namespace   = "untracked-system"
	manifests   = "/root/kubernetes" // conf/kubernetes on the machine
	metricsPort = 10417
)

// clusterNode is a node of a one-node cluster whose DaemonSet, as conf/kubernetes has it, installs untracked.
type clusterNode struct {
	*e2eNode
	control *cluster.ControlPlane
	// before is what was on the node.
	before map[string]string
}

// newCluster makes a cluster whose node has a main plugin, and the image of this source.
func newCluster(t *testing.T) *clusterNode {
	t.Helper()
	image := makeImage(t)
	n := &clusterNode{e2eNode: bareNode(t, cluster.Containerd24, nil)}
	n.Remove(binary) // which only the image shall bring
	n.containerd = n.StartContainerd(n.runtime)
	n.containerd.Import(image)
	n.control = n.StartControlPlane()
	// Kubelet brings edits of a ConfigMap when it next looks at the pod, which is once a minute otherwise.
	n.kubelet = n.StartKubelet(n.control, map[string]any{"syncFrequency": "1s"})
	n.control.AwaitNodeReady()
	n.copyManifests()
	n.before = n.contents()
	return n
}

// makeImage is what `make image` writes, of this machine's architecture.
func makeImage(t *testing.T) []byte {
	t.Helper()
	root := must(lab.ModuleRoot())(t)
	file := filepath.Join(t.TempDir(), "image.tar")
	make := exec.Command("make", "-s", "image", "ARCHITECTURES="+runtime.GOARCH, "IMAGE="+file)
	make.Dir = root
	if out, err := make.CombinedOutput(); err != nil {
		t.Fatalf("make image: %v\n%s", err, out)
	}
	return must(os.ReadFile(file))(t)
}

// copyManifests puts conf/kubernetes where kubectl on the machine finds it.
func (n *clusterNode) copyManifests() {
	n.Helper()
	from := filepath.Join(must(lab.ModuleRoot())(n), "conf/kubernetes")
	check(n, filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		n.WriteFile(manifests+strings.TrimPrefix(path, from), content, 0o644)
		return nil
	}))
}

// contents is all that untracked could leave on a node: files by their content, pins, tables.
func (n *clusterNode) contents() map[string]string {
	n.Helper()
	contents := map[string]string{}
	for _, dir := range []string{cluster.CNIBin, cluster.CNIConf, "/var/lib/untracked", "/run/untracked", "/sys/fs/bpf"} {
		check(n, filepath.WalkDir(n.Path(dir), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			// An empty directory of a volume, which kubelet made, stays as kubelet leaves it.
			if err != nil || d.IsDir() || strings.HasSuffix(path, ".debug") {
				return err
			}
			content := []byte("a pin")
			if dir != "/sys/fs/bpf" {
				if content, err = os.ReadFile(path); err != nil {
					return err
				}
			}
			contents[strings.TrimPrefix(path, n.Path("/"))] = string(content)
			return nil
		}))
	}
	contents["tables"] = strings.Join(must(lab.Tables(n.Lab.Node))(n), ", ")
	hooks := must(lab.ReadHooks(n.Lab.Node, "eth0"))(n)
	contents["hooks of eth0"] = fmt.Sprintf("%+v", hooks)
	return contents
}

// kustomization is an overlay of ours on the base, as a user would write one.
func (n *clusterNode) kustomization(annotations map[string]string, resources map[string]string) (dir string) {
	n.Helper()
	dir = manifests + "/overlays/e2e"
	files := []string{"annotations.yaml"}
	n.WriteFile(dir+"/annotations.yaml", yamlOf(annotations), 0o644)
	for name, text := range resources {
		n.WriteFile(dir+"/"+name, []byte(text), 0o644)
		files = append(files, name)
	}
	slices.Sort(files)
	n.WriteFile(dir+"/kustomization.yaml", must(json.Marshal(map[string]any{
		"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
		"namespace": namespace, "resources": []string{"../../base"},
		"configMapGenerator": []map[string]any{{"name": "untracked", "behavior": "replace", "files": files}},
	}))(n), 0o644)
	return dir
}

func yamlOf(annotations map[string]string) []byte {
	var text bytes.Buffer
	for key, value := range annotations {
		fmt.Fprintf(&text, "%s%s: %q\n", lab.AnnotationPrefix, key, value)
	}
	return text.Bytes()
}

// apply is kubectl apply -k, and waits until the rollout is over.
func (n *clusterNode) apply(dir string) {
	n.Helper()
	n.control.Kubectl("apply", "-k", dir)
	n.rollout()
}

func (n *clusterNode) rollout() {
	n.Helper()
	n.control.Kubectl("-n", namespace, "rollout", "status", "daemonset/untracked", "--timeout=120s")
}

// awaitInForce waits until status says that no more is wrong and the policy is another than the former.
func (n *clusterNode) awaitPolicy(former string) (hash string) {
	n.Helper()
	n.Await("another policy than "+cmp.Or(former, "none")+" is in force", func() error {
		s := n.status()
		if hash = s.Policy.Hash; hash == former || len(s.Problems) > 0 {
			return fmt.Errorf("policy %s, problems %+v", hash, s.Problems)
		}
		return nil
	})
	return hash
}

// The whole life of an installation: one kubectl apply, pods, a main plugin that rewrites its conf list, an edited policy, a typo,
// an upgrade, and away again.
func TestDaemonSet(t *testing.T) {
	t.Parallel()
	n := newCluster(t)
	n.wantTracked()

	begin := time.Now()
	overlay := n.kustomization(policy("pods", "allow"), nil)
	n.apply(overlay)
	t.Logf("kubectl apply to rolled out and ready: %.1f s", time.Since(begin).Seconds())
	n.wantInForce()
	first := n.status().Policy

	t.Log("a pod with ports of its own")
	const podPort = 7000
	n.control.Apply(must(json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": "server", "namespace": "default", "annotations": map[string]string{lab.AnnotationPrefix + "ports": fmt.Sprintf("tcp/%d", podPort)}},
		"spec": map[string]any{
			"automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
			"containers": []map[string]any{{"name": "server", "image": cluster.PodImage, "imagePullPolicy": "Never", "args": []string{"serve", fmt.Sprint(podPort), fmt.Sprint(podPort + 1)}}},
		},
	}))(t))
	server := n.kubelet.AwaitRunning("server")
	n.wantPodUntracked(server.IPs, podPort, true)
	n.wantPodUntracked(server.IPs, podPort+1, false)

	t.Log("the main plugin writes its conf list again")
	n.write(nil)
	n.awaitEntry()
	n.wantInForce()

	t.Log("the ConfigMap is edited")
	begin = time.Now()
	n.kustomization(policy("pods", "allow", "deny", "192.0.2.0/24"), map[string]string{"deny.yaml": denyPolicy})
	n.control.Kubectl("apply", "-k", overlay)
	second := n.awaitPolicy(first.Hash)
	t.Logf("kubectl apply of an edited ConfigMap to in force: %.1f s, of which kubelet takes up to a second or two", time.Since(begin).Seconds())
	if rules := string(must(n.untracked("rules"))(t)); !strings.Contains(rules, "192.0.2.0/24") || !strings.Contains(rules, "198.51.100.0/24") {
		t.Errorf("rules lack the networks that the edit denies:\n%s", rules)
	}
	n.wantInForce()

	t.Log("the ConfigMap gets a typo: the policy stays, pods start, the log says where")
	n.kustomization(policy("pods", "allow"), map[string]string{"deny.yaml": strings.Replace(denyPolicy, "action: Deny", "action: Dney", 1)})
	n.control.Kubectl("apply", "-k", overlay)
	n.Await("the installer says what is wrong", func() error {
		log := n.control.Kubectl("-n", namespace, "logs", "-l", "app.kubernetes.io/name=untracked", "-c", "install")
		if !strings.Contains(log, "deny.yaml:") || !strings.Contains(log, "Dney") {
			return fmt.Errorf("log:\n%s", log)
		}
		return nil
	})
	n.control.Apply([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"during","namespace":"default"},"spec":{"automountServiceAccountToken":false,
		"terminationGracePeriodSeconds":1,"containers":[{"name":"pod","image":"` + cluster.PodImage + `","imagePullPolicy":"Never","args":["pause"]}]}}`))
	n.kubelet.AwaitRunning("during")
	if got := n.status().Policy.Hash; got != second {
		t.Errorf("policy %s is in force after a typo, want %s as before", got, second)
	}
	n.kustomization(policy("pods", "allow", "deny", "192.0.2.0/24"), map[string]string{"deny.yaml": denyPolicy})
	n.control.Kubectl("apply", "-k", overlay)

	t.Log("metrics")
	n.wantMetrics()

	t.Log("an upgrade: another pod takes over, and the programs stay attached")
	program := n.program()
	n.control.Kubectl("-n", namespace, "rollout", "restart", "daemonset/untracked")
	n.rollout()
	n.awaitPods(1)
	if got := n.program(); got != program {
		t.Errorf("program %d is attached after a rollout, was %d", got, program)
	}
	n.wantInForce()
	n.awaitEntry()

	t.Log("away again")
	begin = time.Now()
	n.control.Kubectl("delete", "-k", overlay, "--timeout=120s")
	n.awaitPods(0)
	t.Logf("kubectl delete to gone: %.1f s", time.Since(begin).Seconds())
	if diff := gocmp.Diff(n.before, n.contents()); diff != "" {
		t.Errorf("the node is not as it was before (-before +after):\n%s", diff)
	}
	n.wantTracked()
	n.control.Kubectl("delete", "pod", "server", "during", "--timeout=60s")
	n.kubelet.AwaitRemoved(n.containerd, "server", "during")
}

// denyPolicy is a policy with a HostEndpoint that takes the node's name from the pod's specification.
const denyPolicy = `apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: deny}
spec:
  doNotTrack: true
  applyOnForward: true
  order: 1
  ingress:
    - action: Deny
      source: {nets: [198.51.100.0/24]}
`

// wantPodUntracked wants connections from outside to a port of the pod to leave entries, or none.
func (n *clusterNode) wantPodUntracked(ips []netip.Addr, port uint16, untracked bool) {
	n.Helper()
	u := n.Lab.Uplinks[0]
	for _, ip := range ips {
		via := u.Node4
		if ip.Is6() {
			via = u.Node6
		}
		err := lab.AddRoute(n.Lab.Client, netip.PrefixFrom(ip, ip.BitLen()), via)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			n.Fatal(err)
		}
	}
	switch entries := n.connect(n.Lab.Client, lab.LoadTCP, port, ips...); {
	case untracked && entries > 0:
		n.Errorf("connections to port %d of a pod, which it wants untracked, have left %d entries", port, entries)
	case !untracked && entries == 0:
		n.Errorf("connections to port %d of a pod, which it does not name, are not tracked", port)
	}
}

// awaitEntry waits until the conf list has our entry again.
func (n *clusterNode) awaitEntry() {
	n.Helper()
	n.Await("the conf list has the entry", func() error {
		text, err := n.ReadFile(cluster.ConflistFile)
		if err == nil && !bytes.Contains(text, []byte(`"untracked"`)) {
			err = errNotYet
		}
		return err
	})
}

// awaitPods waits until the DaemonSet has so many pods, those that end included.
func (n *clusterNode) awaitPods(count int) {
	n.Helper()
	n.Await(fmt.Sprintf("the DaemonSet has %d pods", count), func() error {
		pods, err := n.kubelet.Pods()
		if err != nil {
			return err
		}
		for name := range pods {
			if !strings.HasPrefix(name, "untracked-") {
				delete(pods, name)
			}
		}
		if len(pods) != count {
			return fmt.Errorf("it has %v", pods)
		}
		return nil
	})
}

// wantMetrics wants a scraper outside to get what status says.
func (n *clusterNode) wantMetrics() {
	n.Helper()
	var text string
	n.Await("metrics are served", func() (err error) {
		text, err = n.scrape()
		return err
	})
	for _, want := range []string{
		`untracked_interface_packets_total{interface="eth0",direction="ingress",verdict="untracked"}`,
		"untracked_conntrack_entries ",
		fmt.Sprintf("untracked_policy_generation %d", n.status().Policy.Generation),
	} {
		if !strings.Contains(text, want) {
			n.Errorf("metrics lack %s:\n%s", want, text)
		}
	}
}

// scrape gets the metrics, from outside.
func (n *clusterNode) scrape() (string, error) {
	address := netip.AddrPortFrom(n.Lab.Uplinks[0].Node4, metricsPort)
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return lab.Dial(n.Lab.Client, "tcp", netip.Addr{}, address, 5*time.Second)
		},
	}}
	answer, err := client.Get("http://" + address.String() + "/metrics")
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, text)
	}
	return string(text), err
}
