// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

func TestChartValues(t *testing.T) {
	pod := func(o objects) *corev1.PodSpec {
		return &o["DaemonSet/untracked"].(*appsv1.DaemonSet).Spec.Template.Spec
	}
	for name, test := range map[string]struct {
		values map[string]any
		got    func(objects) any
		want   any
	}{
		"image": {
			map[string]any{"image": map[string]any{"repository": "registry.example/untracked", "tag": "v1"}},
			func(o objects) any { return []string{pod(o).Containers[0].Image, pod(o).Containers[1].Image} },
			[]string{"registry.example/untracked:v1", "registry.example/untracked:v1"},
		},
		"policies": {
			map[string]any{
				"annotations": map[string]any{"untracked.cni/required": "true", "untracked.cni/interfaces": nil},
				"policies":    map[string]any{"redis.yaml": "kind: Tier\n", "blocked.txt": "192.0.2.0/24 # a: \"b\"\n"},
			},
			func(o objects) any { return o["ConfigMap/untracked"].(*corev1.ConfigMap).Data },
			map[string]string{
				"annotations.yaml": "untracked.cni/required: \"true\"\n",
				"redis.yaml":       "kind: Tier\n", "blocked.txt": "192.0.2.0/24 # a: \"b\"\n",
			},
		},
		"a drop-in": {
			map[string]any{"dropIn": true},
			func(o objects) any {
				install := pod(o).Containers[0]
				return []bool{slices.Contains(install.Args, "--drop-in"), slices.Contains(install.ReadinessProbe.Exec.Command, "--drop-in")}
			},
			[]bool{true, true},
		},
		"leaving nodes as they are": {
			map[string]any{"uninstallOnExit": false},
			func(o objects) any { return slices.Contains(pod(o).Containers[0].Args, "--uninstall-on-exit") },
			false,
		},
		"no metrics": {
			map[string]any{"metrics": map[string]any{"enabled": false}},
			func(o objects) any {
				return len(pod(o).Containers) + len(o["DaemonSet/untracked"].(*appsv1.DaemonSet).Spec.Template.Annotations)
			},
			1,
		},
		"port of metrics": {
			map[string]any{"metrics": map[string]any{"port": 9999}},
			func(o objects) any {
				return []string{pod(o).Containers[1].Args[1], o["DaemonSet/untracked"].(*appsv1.DaemonSet).Spec.Template.Annotations["prometheus.io/port"]}
			},
			[]string{"--listen=:9999", "9999"},
		},
		"placement": {
			map[string]any{"priorityClassName": "", "tolerations": []any{}, "nodeSelector": map[string]any{"role": "edge"}},
			func(o objects) any {
				return []any{pod(o).PriorityClassName, len(pod(o).Tolerations), pod(o).NodeSelector["role"]}
			},
			[]any{"", 0, "edge"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, test.got(charted(t, test.values))); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// A wrong value is refused by its name before anything is made of it.
func TestChartRefuses(t *testing.T) {
	for want, values := range map[string]map[string]any{
		"/annotations/untracked.cni~1required": {"annotations": map[string]any{"untracked.cni/required": true}},
		"ports does not match":                 {"annotations": map[string]any{"ports": "tcp/6379"}},
		"anotations":                           {"anotations": map[string]any{}},
		"/cniBinDir":                           {"cniBinDir": "opt/cni/bin"},
		"propertyName annotations.yaml":        {"policies": map[string]any{"annotations.yaml": "x"}},
		"/metrics/port":                        {"metrics": map[string]any{"port": 70000}},
		"/extraCapabilities/install/0":         {"extraCapabilities": map[string]any{"install": []any{"CAP_SYS_ADMIN"}}},
		"/image/tag":                           {"image": map[string]any{"tag": "a b"}},
	} {
		if _, err := templates(loadChart(t), values); err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "'", ""), want) {
			t.Errorf("%v: error %v, want one that names %s", values, err, want)
		}
	}
}

// What Helm says after an installation tells who has said nothing yet where to say it.
func TestChartNotes(t *testing.T) {
	const hint = "nothing is untracked"
	for _, test := range []struct {
		values map[string]any
		hinted bool
	}{
		{nil, true},
		{map[string]any{"annotations": map[string]any{"untracked.cni/ports": "tcp/6379"}}, false},
		{map[string]any{"policies": map[string]any{"redis.yaml": "kind: Tier\n"}}, false},
	} {
		files, err := templates(loadChart(t), test.values)
		if err != nil {
			t.Fatal(err)
		}
		notes, found := files["untracked/templates/NOTES.txt"]
		if !found {
			t.Fatalf("no notes among %q", slices.Sorted(maps.Keys(files)))
		}
		if strings.Contains(notes, hint) != test.hinted || !strings.Contains(notes, "-n "+namespace+" rollout status") {
			t.Errorf("with values %v the notes are:\n%s", test.values, notes)
		}
	}
}
