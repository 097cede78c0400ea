// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	kubeletConfig = "/etc/kubernetes/kubelet.json"
	manifests     = "/etc/kubernetes/manifests"
	kubeletPort   = "10255"
)

// Kubelet is a running kubelet.
type Kubelet struct {
	*Process
	client *http.Client
}

// StartKubelet starts kubelet, and returns when it answers: as the node of a control plane, or, without one, standalone.
// containerd must run. Settings are further fields of its configuration file.
func (m *Machine) StartKubelet(p *ControlPlane, settings ...map[string]any) *Kubelet {
	m.t.Helper()
	node := m.Lab.Uplinks[0].Node4
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"authentication":           map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":            map[string]any{"mode": "AlwaysAllow"},
		"readOnlyPort":             10255, // on which tests read
		"staticPodPath":            manifests,
		"podLogsDir":               "/var/log/pods",
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"fileCheckFrequency":       "1s",
		"resolvConf":               "",
		// No swap or quota is to be had, nor is version 2 of cgroups, on many a machine that runs tests.
		"cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": []string{}, "failCgroupV1": false,
		"failSwapOn": false, "oomScoreAdj": 0, "localStorageCapacityIsolation": false,
		"makeIPTablesUtilChains": false,
		"maxPods":                250,
		// A storm of pods is a storm.
		"kubeAPIQPS": 1000, "kubeAPIBurst": 2000, "registryPullQPS": 0, "eventRecordQPS": 0,
		"evictionHard": map[string]string{"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
	}
	for _, more := range settings {
		maps.Copy(config, more)
	}
	text, err := json.Marshal(config)
	if err != nil {
		m.t.Fatal(err)
	}
	m.WriteFile(kubeletConfig, text, 0o600)
	if err := os.MkdirAll(m.Path(manifests), 0o755); err != nil {
		m.t.Fatal(err)
	}
	k := &Kubelet{client: m.httpClient()}
	k.Process = m.startProcess("kubelet", func() *Cmd {
		args := []string{"--config=" + kubeletConfig, "--hostname-override=" + nodeName, "--node-ip=" + node.String()}
		if p != nil {
			args = append(args, "--kubeconfig="+kubeconfig)
		}
		return m.Command("kubelet", args...)
	})
	k.AwaitReady()
	return k
}

// AwaitReady waits until kubelet answers.
func (k *Kubelet) AwaitReady() {
	k.m.t.Helper()
	k.m.Await("kubelet answers", func() error {
		if _, err := k.get("/healthz"); err != nil {
			return k.orEnded(err)
		}
		return nil
	})
}

// Restart stops kubelet and starts it again.
func (k *Kubelet) Restart() {
	k.m.t.Helper()
	k.Stop()
	k.Start()
	k.AwaitReady()
}

// Metrics are kubelet's own, in the text format of Prometheus.
func (k *Kubelet) Metrics() string {
	k.m.t.Helper()
	text, err := k.get("/metrics")
	if err != nil {
		k.m.t.Fatal(err)
	}
	return string(text)
}

// httpClient connects from the machine.
func (m *Machine) httpClient() *http.Client {
	return &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true, // across restarts
			DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
				err = m.In(func() error {
					conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
					return err
				})
				return conn, err
			},
		},
	}
}

func (k *Kubelet) get(path string) ([]byte, error) {
	answer, err := k.client.Get("http://127.0.0.1:" + kubeletPort + path)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("kubelet answers %s to %s: %s", answer.Status, path, text)
	}
	return text, err
}

// Pod is a static pod, of one container of PodImage.
type Pod struct {
	Name        string
	Annotations map[string]string
	HostNetwork bool
	// Args are those of test/e2e/pod. None: pause.
	Args []string
}

func (p Pod) manifest() ([]byte, error) {
	type object = map[string]any
	args := p.Args
	if len(args) == 0 {
		args = []string{"pause"}
	}
	return json.Marshal(object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": object{"name": p.Name, "namespace": "default", "annotations": p.Annotations},
		"spec": object{
			"hostNetwork":                   p.HostNetwork,
			"terminationGracePeriodSeconds": 1,
			"automountServiceAccountToken":  false,
			"tolerations":                   []object{{"operator": "Exists"}},
			"containers":                    []object{{"name": "pod", "image": PodImage, "imagePullPolicy": "Never", "args": args}},
		},
	})
}

// WritePod writes the manifest of a static pod, as an edit where there is one.
func (k *Kubelet) WritePod(p Pod) {
	k.m.t.Helper()
	text, err := p.manifest()
	if err != nil {
		k.m.t.Fatal(err)
	}
	k.m.WriteFile(filepath.Join(manifests, p.Name+".json"), text, 0o600)
}

// RemovePods removes the manifests of static pods.
func (k *Kubelet) RemovePods(names ...string) {
	k.m.t.Helper()
	var files []string
	for _, name := range names {
		files = append(files, filepath.Join(manifests, name+".json"))
	}
	k.m.Remove(files...)
}

// PodStatus is a pod as kubelet sees it.
type PodStatus struct {
	Name, UID string
	Running   bool // its container runs, too
	IPs       []netip.Addr
	// ContainerID changes when the pod is made anew.
	ContainerID string
}

// Pods lists them, by name without the node's.
func (k *Kubelet) Pods() (pods map[string]PodStatus, err error) {
	text, err := k.get("/pods")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name, UID string }
			Status   struct {
				Phase             string
				PodIPs            []struct{ IP netip.Addr }
				ContainerStatuses []struct {
					ContainerID string
					State       struct{ Running *struct{} }
				}
			}
		}
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("kubelet's pods: %w", err)
	}
	pods = map[string]PodStatus{}
	for _, item := range list.Items {
		p := PodStatus{Name: strings.TrimSuffix(item.Metadata.Name, "-"+nodeName), UID: item.Metadata.UID}
		for _, c := range item.Status.ContainerStatuses {
			p.Running, p.ContainerID = c.State.Running != nil && item.Status.Phase == "Running", c.ContainerID
		}
		for _, ip := range item.Status.PodIPs {
			p.IPs = append(p.IPs, ip.IP)
		}
		pods[p.Name] = p
	}
	return pods, nil
}

// AwaitRunning waits until the pods run, and returns the first.
func (k *Kubelet) AwaitRunning(names ...string) (first PodStatus) {
	k.m.t.Helper()
	k.m.Await(fmt.Sprintf("pods %v run", names), func() error {
		pods, err := k.Pods()
		if err != nil {
			return err
		}
		for _, name := range names {
			if p := pods[name]; !p.Running || len(p.IPs) == 0 {
				return fmt.Errorf("pod %s: %+v", name, p)
			}
		}
		first = pods[names[0]]
		return nil
	})
	return first
}

// AwaitGone waits until kubelet has forgotten the pods and the runtime has stopped their sandboxes: DEL was called for each.
// Kubelet removes the sandboxes within a minute, which is one or two more DELs, see AwaitRemoved.
func (k *Kubelet) AwaitGone(c *Containerd, names ...string) {
	k.m.t.Helper()
	k.awaitGone(c, false, names)
}

// AwaitRemoved waits until the runtime does not know the pods' sandboxes, either: their last DEL was called.
func (k *Kubelet) AwaitRemoved(c *Containerd, names ...string) {
	k.m.t.Helper()
	k.awaitGone(c, true, names)
}

func (k *Kubelet) awaitGone(c *Containerd, removed bool, names []string) {
	k.m.t.Helper()
	k.m.Await(fmt.Sprintf("pods %v are gone", names), func() error {
		pods, err := k.Pods()
		for _, name := range names {
			if _, there := pods[name]; there {
				return fmt.Errorf("kubelet has %s", name)
			}
		}
		for _, s := range c.Sandboxes() {
			if !slices.Contains(names, s.Name) {
				continue
			}
			// The namespace is the last to go when a sandbox stops.
			_, err := k.m.Command("/bin/test", "-e", s.NetNS).Output()
			if s.Ready || removed || s.NetNS != "" && err == nil {
				return fmt.Errorf("the runtime has the sandbox of %s", s.Name)
			}
		}
		return err
	})
}
