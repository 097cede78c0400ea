// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// A node of a real control plane runs a DaemonSet.
func TestControlPlane(t *testing.T) {
	r := Containerd24
	m := New(t)
	m.InstallCNI(r)
	m.WriteConflist(Conflist{CNIVersion: r.CNIVersion})
	m.StartContainerd(r)
	p := m.StartControlPlane()
	m.StartKubelet(p)
	p.AwaitNodeReady()
	p.Apply([]byte(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: a, namespace: default}
spec:
  selector: {matchLabels: {app: a}}
  template:
    metadata: {labels: {app: a}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: pod, image: "` + PodImage + `", imagePullPolicy: Never}]
`))
	p.Kubectl("rollout", "status", "daemonset/a", "--timeout=60s")
	if ip := p.Kubectl("get", "pods", "-l", "app=a", "-o", "jsonpath={.items[*].status.podIP}"); !strings.HasPrefix(ip, "10.88.") {
		t.Errorf("the pod of the DaemonSet has address %q", ip)
	}
}

// A machine that ran pods leaves the host as it was: also the one whose test was killed, as soon as another is made.
func TestLeavesNothing(t *testing.T) {
	if _, killed := os.LookupEnv(killedEnv); killed {
		runPod(t)
		os.Stdout.WriteString("\n" + podRuns + "\n")
		select {} // until it is killed
	}
	components(t)
	groups, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	sweepCgroups(groups)
	before := hostState(t)
	t.Run("ended", runPod)
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Errorf("the host has changed (-before +after):\n%s", diff)
	}

	cmd := exec.Command("/proc/self/exe", "-test.run=^TestLeavesNothing$", "-e2e")
	cmd.Env = append(os.Environ(), killedEnv+"=1")
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != podRuns; {
		said = append(said, lines.Text())
	}
	cmd.Process.Kill()
	cmd.Wait()
	if cmp.Equal(before, hostState(t)) {
		t.Fatalf("the machine of a killed test has left no cgroups, so it was none:\n%s", strings.Join(said, "\n"))
	}
	// The lab's watchdog has the rest done in a moment.
	var diff string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		sweepCgroups(groups)
		if diff = cmp.Diff(before, hostState(t)); diff == "" {
			return
		}
	}
	t.Errorf("the host has changed (-before +after):\n%s", diff)
}

const (
	killedEnv = "UNTRACKED_E2E_KILLED"
	podRuns   = "a pod runs"
)

func runPod(t *testing.T) {
	m := New(t)
	m.InstallCNI(Containerd24)
	m.WriteConflist(Conflist{CNIVersion: Containerd24.CNIVersion})
	m.StartContainerd(Containerd24)
	k := m.StartKubelet(nil)
	k.WritePod(Pod{Name: "a"})
	k.AwaitRunning("a")
}

// hostState is what a machine could change on its host and other tests that run meanwhile do not: mounts and directories
// of runtime and kubelet, cgroups, sysctls, processes of components.
func hostState(t *testing.T) map[string]string {
	t.Helper()
	state := map[string]string{}
	for _, path := range []string{"/var/lib/kubelet", "/var/lib/containerd", "/var/lib/etcd", "/var/log/containers", "/var/log/pods", "/run/containerd", "/etc/kubernetes", CNIConf, CNIBin, "/run/apiserver", binDir} {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		state[path] = info.ModTime().String()
	}
	for _, key := range maskedSysctls {
		value, _ := os.ReadFile(filepath.Join("/proc/sys", key))
		state[key] = string(value)
	}
	groups, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range groups {
		dirs, _ := filepath.Glob(filepath.Join(h.Path, "*"))
		for _, dir := range dirs {
			if info, err := os.Stat(dir); err == nil && info.IsDir() && !elsewhere(dir) {
				state[dir] = "cgroup"
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); !elsewhere(fields[1]) {
			state["mount "+fields[1]] = fields[0]
		}
	}
	return state
}

var labName = regexp.MustCompile(labPrefix + `(\d+)-[0-9a-f]{8}`)

// elsewhere reports whether a path is of a lab of another process that lives.
func elsewhere(path string) bool {
	name := labName.FindStringSubmatch(path)
	if name == nil {
		return false
	}
	pid, err := strconv.Atoi(name[1])
	return err == nil && pid != os.Getpid() && unix.Kill(pid, 0) == nil
}
