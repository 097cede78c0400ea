// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/untracked-cni/untracked/test/lab"
)

// Runtime is a release of containerd with the main CNI plugin of its time.
type Runtime struct {
	Name string
	// CNIVersion is the highest that it speaks.
	CNIVersion string

	containerd, ctr, path, config string
	// plugins is where bridge and host-local come from; "" means this module's go.mod.
	plugins string
}

// The runtimes that tests loop over.
var (
	// Containerd16 is Debian 12's, with its plugins; it calls neither STATUS nor GC.
	Containerd16 = Runtime{
		Name: "containerd-1.6", CNIVersion: "1.0.0",
		containerd: "/usr/bin/containerd", ctr: "/usr/bin/ctr", path: systemPath, config: config16, plugins: "/usr/lib/cni",
	}
	// Containerd24 is built from its module; it calls STATUS every 5 s where the chain has CNI 1.1.0.
	Containerd24 = Runtime{
		Name: "containerd-2.4", CNIVersion: "1.1.0",
		containerd: "containerd", ctr: "ctr", path: binDir + ":" + systemPath, config: config24,
	}
	Runtimes = []Runtime{Containerd16, Containerd24}
)

const (
	containerdSocket = "/run/containerd/containerd.sock"
	containerdConfig = "/etc/containerd/config.toml"
	criBin           = "/run/cri"
	// CNIBin and CNIConf are where runtimes look.
	CNIBin  = "/opt/cni/bin"
	CNIConf = "/etc/cni/net.d"
)

// No CAP_SYS_RESOURCE is needed, nor a profile of AppArmor.
const (
	config16 = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "` + PauseImage + `"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "` + CNIBin + `"
conf_dir = "` + CNIConf + `"
`
	config24 = `version = 3
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "` + PauseImage + `"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["` + CNIBin + `"]
conf_dir = "` + CNIConf + `"
use_internal_loopback = true
`
)

// Containerd is a running containerd.
type Containerd struct {
	*Process
	Runtime Runtime
}

// InstallCNI copies the main plugin of the runtime's time and untracked to CNIBin.
func (m *Machine) InstallCNI(r Runtime) {
	m.t.Helper()
	built, err := lab.Build("bridge", "host-local", "untracked")
	if err != nil {
		m.t.Fatal(err)
	}
	from := map[string]string{"bridge": built, "host-local": built, "untracked": built}
	if r.plugins != "" {
		from["bridge"], from["host-local"], from["loopback"] = r.plugins, r.plugins, r.plugins
	}
	for name, dir := range from {
		binary, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			m.t.Fatal(err)
		}
		m.WriteFile(filepath.Join(CNIBin, name), binary, 0o755)
	}
}

// StartContainerd starts it, and returns when it answers and has the images.
func (m *Machine) StartContainerd(r Runtime) *Containerd {
	m.t.Helper()
	m.WriteFile(containerdConfig, []byte(r.config), 0o644)
	client, err := criClient()
	if err != nil {
		m.t.Fatal(err)
	}
	m.WriteFile(criBin, client, 0o755)
	c := &Containerd{Runtime: r}
	c.Process = m.startProcess("containerd", func() *Cmd {
		cmd := m.Command(r.containerd, "--config", containerdConfig)
		cmd.Env = []string{"PATH=" + r.path, "HOME=/root"}
		return cmd
	})
	c.AwaitReady()
	image, err := podImage()
	if err != nil {
		m.t.Fatal(err)
	}
	c.Import(image)
	return c
}

// AwaitReady waits until containerd answers.
func (c *Containerd) AwaitReady() {
	c.m.t.Helper()
	c.m.Await("containerd answers", func() error {
		if _, err := c.m.Command(criBin, "status").Output(); err != nil {
			return c.orEnded(err)
		}
		return nil
	})
}

// Import takes the images of an OCI archive in, for kubelet to use.
func (c *Containerd) Import(archive []byte) {
	c.m.t.Helper()
	const file = "/tmp/image.tar"
	c.m.WriteFile(file, archive, 0o600)
	defer c.m.Remove(file)
	c.m.Run(c.Runtime.ctr, "-n", "k8s.io", "images", "import", "--snapshotter", "overlayfs", file)
}

// Restart stops containerd and starts it again. Pods run on.
func (c *Containerd) Restart() {
	c.m.t.Helper()
	c.Stop()
	c.Start()
	c.AwaitReady()
}

// RuntimeStatus is what a runtime says of itself by CRI.
type RuntimeStatus struct {
	NetworkReady   bool   `json:"networkReady"`
	NetworkMessage string `json:"networkMessage"`
	// Chain is the CNI configuration in use, as containerd describes it.
	Chain string `json:"chain"`
}

// Status asks containerd whether its network is ready.
func (c *Containerd) Status() (s RuntimeStatus) {
	c.m.t.Helper()
	c.cri(&s, "status")
	return s
}

// Sandbox is a pod as the runtime sees it.
type Sandbox struct {
	ID string `json:"id"`
	// Name is the pod's; of a static pod, without the node's.
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
	IP    string `json:"ip"`
	// PID is its pause process's number on the machine, 0 if it has ended.
	PID int `json:"pid"`
	// NetNS is the path of its network namespace, empty for the host's.
	NetNS string `json:"netns"`
}

// Sandboxes lists them, also those that have ended and are not removed yet.
func (c *Containerd) Sandboxes() (all []Sandbox) {
	c.m.t.Helper()
	c.cri(&all, "pods")
	for i := range all {
		all[i].Name = strings.TrimSuffix(all[i].Name, "-"+nodeName)
	}
	return all
}

// Sandbox returns the sandbox of a pod that is ready.
func (c *Containerd) Sandbox(pod string) Sandbox {
	c.m.t.Helper()
	for _, s := range c.Sandboxes() {
		if s.Name == pod && s.Ready {
			return s
		}
	}
	c.m.t.Fatalf("pod %s has no sandbox", pod)
	return Sandbox{}
}

// RunSandbox has the runtime start a pod without kubelet, and returns its ID and how long RunPodSandbox took.
func (c *Containerd) RunSandbox(name string) (id string, seconds float64, err error) {
	var answer struct {
		ID      string  `json:"id"`
		Seconds float64 `json:"seconds"`
	}
	out, err := c.m.Command(criBin, "run", name).Output()
	if err == nil {
		err = json.Unmarshal(out, &answer)
	}
	return answer.ID, answer.Seconds, err
}

// RemoveSandbox stops and removes it.
func (c *Containerd) RemoveSandbox(id string) {
	c.m.t.Helper()
	c.m.Run(criBin, "remove", id)
}

// cri calls the CRI client and decodes its answer.
func (c *Containerd) cri(answer any, args ...string) {
	c.m.t.Helper()
	if err := json.Unmarshal([]byte(c.m.Run(criBin, args...)), answer); err != nil {
		c.m.t.Fatalf("cri %v: %v", args, err)
	}
}

// KillPause kills the process that holds the pod's namespaces.
func (c *Containerd) KillPause(pod string) {
	c.m.t.Helper()
	c.m.Run("/bin/sh", "-c", fmt.Sprintf("kill -9 %d", c.Sandbox(pod).PID))
}
