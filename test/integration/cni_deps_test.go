// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/test/lab"
)

// The binary is started once a pod, and each of these costs milliseconds at every start.
var cniForbidden = map[string]string{
	"k8s.io/":                                       "its packages register themselves at start-up",
	"sigs.k8s.io/":                                  "so do these",
	"github.com/prometheus/":                        "it sets up registries and collectors",
	"go.opentelemetry.io/":                          "nothing here is traced",
	"github.com/projectcalico/":                     "it brings in k8s.io",
	"github.com/containernetworking/cni/libcni":     "that is for runtimes; it brings in otel",
	"github.com/containernetworking/cni/pkg/invoke": "that is for runtimes; it brings in otel",
	"github.com/cilium/ebpf/rlimit":                 "it probes the kernel at every start",
	"net/http":                                      "it starts TLS and its tables",
	"testing":                                       "it registers flags",
}

func TestCNIDependencies(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "./plugins/meta/untracked")
	cmd.Dir = must(lab.ModuleRoot())(t)
	out := must(cmd.Output())(t)
	packages := strings.Fields(string(out))
	if len(packages) < 50 {
		t.Fatalf("go list: %s", out)
	}
	for _, p := range packages {
		for prefix, why := range cniForbidden {
			if p == strings.TrimSuffix(prefix, "/") || strings.HasPrefix(p, strings.TrimSuffix(prefix, "/")+"/") {
				t.Errorf("the plugin imports %s: %s", p, why)
			}
		}
	}
}
