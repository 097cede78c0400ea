// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
)

const (
	kubeconfig = "/etc/kubernetes/admin.json"
	apiserver  = "https://127.0.0.1:6443"
	tokens     = "/etc/kubernetes/tokens.csv"
	signingKey = "/etc/kubernetes/sa.key"
	token      = "untracked-e2e"
)

// ControlPlane is a cluster whose only node is this machine, once its kubelet was started. Everybody is admin.
type ControlPlane struct {
	m *Machine
	// The servers, for tests that end one.
	Etcd, APIServer, ControllerManager, Scheduler *Process
}

// StartControlPlane starts it and returns when the API answers.
func (m *Machine) StartControlPlane() *ControlPlane {
	m.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		m.t.Fatal(err)
	}
	m.WriteFile(signingKey, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600)
	m.WriteFile(tokens, []byte(token+",admin,admin,system:masters\n"), 0o600)
	type object = map[string]any
	config, err := json.Marshal(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "e2e",
		"clusters": []object{{"name": "e2e", "cluster": object{"server": apiserver, "insecure-skip-tls-verify": true}}},
		"users":    []object{{"name": "admin", "user": object{"token": token}}},
		"contexts": []object{{"name": "e2e", "context": object{"cluster": "e2e", "user": "admin"}}},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.WriteFile(kubeconfig, config, 0o600)

	start := func(name string, args ...string) *Process {
		m.t.Helper()
		return m.startProcess(strings.TrimPrefix(name, "/usr/bin/"), func() *Cmd { return m.Command(name, args...) })
	}
	p := &ControlPlane{m: m}
	p.Etcd = start("/usr/bin/etcd", "--data-dir=/var/lib/etcd/data", "--unsafe-no-fsync", "--logger=zap",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380")
	p.APIServer = start("kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--cert-dir=/run/apiserver",
		"--bind-address=127.0.0.1", "--secure-port=6443", "--service-cluster-ip-range=10.96.0.0/16",
		"--token-auth-file="+tokens, "--authorization-mode=AlwaysAllow", "--allow-privileged=true",
		"--kubelet-preferred-address-types=InternalIP", // for kubectl logs and exec: nothing resolves the host name
		"--disable-admission-plugins=ServiceAccount",
		"--service-account-issuer="+apiserver, "--service-account-key-file="+signingKey, "--service-account-signing-key-file="+signingKey)
	m.Await("the API answers", func() error {
		if _, err := p.kubectl("get", "--raw=/readyz"); err != nil {
			return p.Etcd.orEnded(p.APIServer.orEnded(err))
		}
		return nil
	})
	p.ControllerManager = start("kube-controller-manager", "--kubeconfig="+kubeconfig, "--leader-elect=false", "--cert-dir=/run/controller-manager")
	p.Scheduler = start("kube-scheduler", "--kubeconfig="+kubeconfig, "--leader-elect=false", "--cert-dir=/run/scheduler")
	return p
}

// Kubectl runs kubectl, which must succeed, and returns what it prints.
func (p *ControlPlane) Kubectl(args ...string) string {
	p.m.t.Helper()
	out, err := p.kubectl(args...)
	if err != nil {
		p.m.t.Fatal(err)
	}
	return string(out)
}

// Apply has the API make the objects of a manifest, YAML or JSON, that it lacks, and change those it has.
func (p *ControlPlane) Apply(manifest []byte) {
	p.m.t.Helper()
	const file = "/tmp/manifest.yaml"
	p.m.WriteFile(file, manifest, 0o600)
	p.Kubectl("apply", "--server-side", "--force-conflicts", "-f", file)
}

func (p *ControlPlane) kubectl(args ...string) ([]byte, error) {
	return p.m.Command("kubectl", append([]string{"--kubeconfig=" + kubeconfig}, args...)...).Output()
}

// NodeReady returns the node's Ready condition, with kubelet's message where it is not.
func (p *ControlPlane) NodeReady() (ready bool, message string) {
	out, err := p.kubectl("get", "node", nodeName, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.conditions[?(@.type=="Ready")].message}`)
	if err != nil {
		return false, err.Error()
	}
	status, message, _ := strings.Cut(string(out), " ")
	return status == "True", message
}

// AwaitNodeReady waits until pods can be scheduled.
func (p *ControlPlane) AwaitNodeReady() {
	p.m.t.Helper()
	p.m.Await("the node is ready", func() error {
		if ready, message := p.NodeReady(); !ready {
			return fmt.Errorf("it is not: %s", message)
		}
		// The taint that a new node has is taken off a little later.
		taints, err := p.kubectl("get", "node", nodeName, "-o", "jsonpath={.spec.taints[*].key}")
		if err == nil && len(taints) > 0 {
			err = fmt.Errorf("it is tainted: %s", taints)
		}
		return err
	})
}
