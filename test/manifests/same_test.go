// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// The chart and the kustomizations are two ways to the same objects.
func TestChartIsTheSameAsKustomize(t *testing.T) {
	for _, d := range distributions {
		t.Run(nameOf(d), func(t *testing.T) {
			dir := "base"
			if d != "" {
				dir = filepath.Join("overlays", d)
			}
			compare(t, kustomized(t, dir), charted(t, valuesOf(t, d)))
		})
	}
}

// So are the components and the chart's values.
func TestComponentsAreTheSameAsValues(t *testing.T) {
	for component, values := range map[string]map[string]any{
		"selinux":            {"seLinuxOptions": map[string]any{"type": "spc_t"}},
		"seccomp-unconfined": {"seccompProfile": map[string]any{"type": "Unconfined"}},
		"mount-bpffs":        {"mountBPFFS": true},
		"owned-directories":  {"extraCapabilities": map[string]any{"install": []any{"DAC_OVERRIDE"}}},
		"linux-5.10": {"extraCapabilities": map[string]any{
			"install": []any{"SYS_RESOURCE"}, "metrics": []any{"SYS_RESOURCE"},
		}},
	} {
		t.Run(component, func(t *testing.T) {
			mine := map[string]string{"mine/kustomization.yaml": "resources: [../conf/kubernetes/base]\ncomponents: [../conf/kubernetes/components/" + component + "]\n"}
			with := kustomizedWith(t, mine, "mine")
			if cmp.Equal(with, kustomized(t, "base")) {
				t.Error("the component changes nothing")
			}
			compare(t, with, charted(t, values))
		})
	}
}

func TestEveryPartIsTested(t *testing.T) {
	names := func(pattern string) (found []string) {
		paths, err := filepath.Glob(filepath.Join(root, kubernetes, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			found = append(found, strings.TrimSuffix(filepath.Base(p), ".yaml"))
		}
		return found
	}
	want := slices.Sorted(slices.Values(distributions[1:]))
	if got := names("overlays/*"); !slices.Equal(got, want) {
		t.Errorf("overlays %q, the tests know %q", got, want)
	}
	if got := names("chart/values/*.yaml"); !slices.Equal(got, want) {
		t.Errorf("values %q, the tests know %q", got, want)
	}
	if got, want := names("components/*"), []string{"linux-5.10", "mount-bpffs", "owned-directories", "seccomp-unconfined", "selinux"}; !slices.Equal(got, want) {
		t.Errorf("components %q, the tests know %q", got, want)
	}
}

// The example in the README is one that works.
func TestExampleOfTheReadme(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, kubernetes, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(text), "```yaml\n")
	example, _, found := strings.Cut(example, "```\n")
	if !found {
		t.Fatal("there is no example")
	}
	const annotations, policy, list = "untracked.cni/ports: tcp/6379\n", "kind: Tier\n", "192.0.2.0/24\n"
	got := kustomizedWith(t, map[string]string{
		"kustomization.yaml": example, "annotations.yaml": annotations, "redis.yaml": policy, "blocked.txt": list,
	}, ".")
	want := kustomized(t, "base")
	want.configMap(t).Data = map[string]string{"annotations.yaml": annotations, "redis.yaml": policy, "blocked.txt": list}
	pod := &want.daemonSet(t).Spec.Template.Spec
	pod.SecurityContext.SELinuxOptions = &corev1.SELinuxOptions{Type: "spc_t"}
	for i := range pod.Containers {
		pod.Containers[i].Image = "registry.example/untracked:v1.2.3"
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the example (-want +got):\n%s", diff)
	}
}

// compare leaves out what only one of both has by convention: the namespace is made by kubectl for Helm, Helm's labels.
func compare(t *testing.T, kustomize, helm objects) {
	t.Helper()
	kustomize, helm = maps.Clone(kustomize), maps.Clone(helm)
	delete(kustomize, "Namespace/"+namespace)
	for _, all := range []objects{kustomize, helm} {
		for _, object := range all {
			plain(t, object.(metav1.Object).GetLabels())
			switch o := object.(type) {
			case *appsv1.DaemonSet:
				plain(t, o.Spec.Template.Labels)
				for _, c := range o.Spec.Template.Spec.Containers { // a patch puts first what it changes
					slices.SortFunc(c.VolumeMounts, func(a, b corev1.VolumeMount) int { return strings.Compare(a.MountPath, b.MountPath) })
				}
			case *corev1.ConfigMap:
				var annotations map[string]string
				if err := yaml.UnmarshalStrict([]byte(o.Data["annotations.yaml"]), &annotations); err != nil {
					t.Errorf("annotations.yaml: %v", err)
				}
				sorted, err := yaml.Marshal(annotations) // without the comments
				if err != nil {
					t.Fatal(err)
				}
				o.Data["annotations.yaml"] = string(sorted)
			}
		}
	}
	if diff := cmp.Diff(kustomize, helm); diff != "" {
		t.Errorf("-kustomize +helm:\n%s", diff)
	}
}

func plain(t *testing.T, labels map[string]string) {
	t.Helper()
	if labels["app.kubernetes.io/name"] != "untracked" {
		t.Errorf("labels %v, want app.kubernetes.io/name", labels)
	}
	delete(labels, "app.kubernetes.io/managed-by")
	delete(labels, "helm.sh/chart")
}
