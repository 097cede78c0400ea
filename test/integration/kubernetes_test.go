// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/test/lab"
)

// What conf/kubernetes says of the binary is tried with the binary. What it says to Kubernetes is test/manifests' business.
const kubernetesDir = "../../conf/kubernetes"

// kubernetesContainer is what is tested here of a container of the DaemonSet.
type kubernetesContainer struct {
	Name            string
	Args            []string
	ReadinessProbe  struct{ Exec struct{ Command []string } } `yaml:"readinessProbe"`
	SecurityContext struct {
		Capabilities             struct{ Drop, Add []string }
		AllowPrivilegeEscalation bool `yaml:"allowPrivilegeEscalation"`
	} `yaml:"securityContext"`
}

func kubernetesContainers(t *testing.T) map[string]kubernetesContainer {
	t.Helper()
	var set struct {
		Spec struct {
			Template struct {
				Spec struct{ Containers []kubernetesContainer }
			}
		}
	}
	text, err := os.ReadFile(filepath.Join(kubernetesDir, "base/daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &set); err != nil {
		t.Fatal(err)
	}
	all := map[string]kubernetesContainer{}
	for _, c := range set.Spec.Template.Spec.Containers {
		all[c.Name] = c
	}
	return all
}

// kubernetesCapabilities are those that a container has.
func kubernetesCapabilities(t *testing.T, container string) []string {
	t.Helper()
	s := kubernetesContainers(t)[container].SecurityContext
	if s.AllowPrivilegeEscalation || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) || len(s.Capabilities.Add) == 0 {
		t.Fatalf("%s: %+v, want no escalation, and all capabilities dropped but some", container, s)
	}
	return s.Capabilities.Add
}

// The binary does in a container what it is there for, and not without any one of its capabilities.
func TestKubernetesPrivileges(t *testing.T) {
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("needs setpriv (Debian: util-linux)")
	}
	bin, err := lab.Build("untracked")
	if err != nil {
		t.Fatal(err)
	}
	const policy = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: logged}
spec:
  doNotTrack: true
  applyOnForward: true
  selector: all()
  types: [Ingress]
  ingress:
    - {action: Log, protocol: TCP, destination: {ports: [7000]}}
    - {action: Allow, protocol: TCP, destination: {ports: [7000]}}
`
	forInstall, forMetrics := kubernetesCapabilities(t, "install"), kubernetesCapabilities(t, "metrics")
	for _, mode := range []string{"native", "tc"} {
		t.Run(mode, func(t *testing.T) {
			l := lab.New(t, lab.Config{})
			list := func(name, ports string) string {
				path := filepath.Join(l.Dir, name)
				text := confText(t, map[string]any{
					"cniVersion": "1.0.0", "name": "mynet", "plugins": []any{
						map[string]any{"type": "bridge"},
						map[string]any{"type": config.PluginType, "annotations": map[string]string{
							"untracked.cni/mode": mode, "untracked.cni/ports": ports, "untracked.cni/deny": "192.0.2.0/24", "untracked.cni/policy": policy,
							"untracked.cni/bpffs": l.BPFFS, "untracked.cni/run-dir": l.RunDir,
						}},
					},
				})
				if err := os.WriteFile(path, text, 0o600); err != nil {
					t.Fatal(err)
				}
				return path
			}
			first, second := list("first.conflist", "tcp/6379"), list("second.conflist", "tcp/6379,udp/53")
			// with runs commands as root with nothing but some capabilities, and returns the first that fails.
			with := func(capabilities []string, commands ...[]string) (failed, output string) {
				t.Helper()
				bounds := "-all"
				for _, c := range capabilities {
					bounds += ",+" + strings.ToLower(c)
				}
				for _, args := range commands {
					if args[0] != "apply" {
						args = append(args, "--bpffs", l.BPFFS, "--run-dir", l.RunDir)
					}
					args = append([]string{"--no-new-privs", "--inh-caps=-all", "--bounding-set=" + bounds, filepath.Join(bin, "untracked")}, args...)
					if out, err := lab.Command(l.Node, "setpriv", args...).CombinedOutput(); err != nil {
						return strings.Join(args, " "), string(out)
					}
				}
				return "", ""
			}
			without := func(t *testing.T, all []string, commands ...[]string) {
				t.Helper()
				for _, c := range all {
					fewer := slices.DeleteFunc(slices.Clone(all), func(other string) bool { return other == c })
					if failed, _ := with(fewer, commands...); failed == "" {
						t.Errorf("%s is not needed", c)
					}
				}
			}
			install := [][]string{{"apply", first}, {"apply", second}, {"apply", second}, {"status"}, {"rules"}, {"remove"}}
			metrics := [][]string{{"metrics"}}

			if failed, out := with(forInstall, install...); failed != "" {
				t.Fatalf("install cannot do its work: %s:\n%s", failed, out)
			}
			without(t, forInstall, install...)
			confCommand(t, l, "apply", first)
			if failed, out := with(forMetrics, metrics...); failed != "" {
				t.Fatalf("metrics cannot do its work: %s:\n%s", failed, out)
			}
			without(t, forMetrics, metrics...)
		})
	}
}

// The annotations that come with the base are valid, and so are the examples in their comments.
func TestKubernetesAnnotations(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(kubernetesDir, "base/annotations.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	asShipped := parsedAnnotations(t, string(text))
	if asShipped.Deny != nil || asShipped.Ports != nil || asShipped.RemotePorts != nil {
		t.Errorf("as shipped, there are rules, %v; want a policy that does nothing", asShipped.Annotations)
	}
	withExamples := parsedAnnotations(t, strings.ReplaceAll(string(text), "\n#untracked.cni/", "\nuntracked.cni/"))
	if withExamples.Deny == nil || withExamples.Ports == nil {
		t.Error("there are no examples in the comments")
	}
}

func parsedAnnotations(t *testing.T, text string) *config.Config {
	t.Helper()
	var annotations map[string]string
	if err := yaml.Unmarshal([]byte(text), &annotations); err != nil {
		t.Fatal(err)
	}
	entry, err := json.Marshal(map[string]any{"type": config.PluginType, "annotations": annotations})
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.ParseConflist([]byte(`{"cniVersion":"1.0.0","name":"mynet","plugins":[{"type":"bridge"},`+string(entry)+`]}`), "annotations.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The commands that the DaemonSet runs are the binary's, with flags that it has.
func TestKubernetesCommands(t *testing.T) {
	l := lab.New(t, lab.Config{})
	for name, c := range kubernetesContainers(t) {
		commands := [][]string{c.Args}
		if probe := c.ReadinessProbe.Exec.Command; len(probe) > 0 {
			if probe[0] != "/untracked" {
				t.Errorf("the probe of %s runs %s, which the image has not", name, probe[0])
			}
			commands = append(commands, probe[1:])
		}
		for _, command := range commands {
			help := confCommand(t, l, command[0], "--help")
			if !strings.Contains(help, "untracked "+command[0]+" ") {
				t.Errorf("%s runs %s, which is no command", name, command[0])
			}
			for _, arg := range command[1:] {
				flag, _, _ := strings.Cut(arg, "=")
				if !regexp.MustCompile(`(?m)^ +(-., )?` + regexp.QuoteMeta(flag) + `\b`).MatchString(help) {
					t.Errorf("%s has %s, which %s does not know", name, arg, command[0])
				}
			}
		}
	}
}
