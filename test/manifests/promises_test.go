// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// What the README promises, of every distribution.
func TestPromises(t *testing.T) {
	for _, d := range distributions {
		t.Run(nameOf(d), func(t *testing.T) {
			dir := "base"
			if d != "" {
				dir = path.Join("overlays", d)
			}
			all := kustomized(t, dir)
			set := all.daemonSet(t)
			pod := &set.Spec.Template.Spec

			for _, o := range all {
				if b, ok := o.(*rbacv1.RoleBinding); ok && (d != "openshift" || b.RoleRef.Name != "system:openshift:scc:privileged") {
					t.Errorf("a right is given: %+v", b.RoleRef)
				}
				if a, ok := o.(*corev1.ServiceAccount); ok && (a.AutomountServiceAccountToken == nil || *a.AutomountServiceAccountToken) {
					t.Error("the service account has a token")
				}
			}
			if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken || pod.ServiceAccountName != "untracked" {
				t.Error("the pod has a token, or another service account")
			}
			update := set.Spec.UpdateStrategy.RollingUpdate
			if update == nil || update.MaxSurge.IntValue() != 1 || update.MaxUnavailable.IntValue() != 0 {
				t.Errorf("update strategy %+v, want a surge of one", update)
			}
			if !pod.HostNetwork || pod.PriorityClassName != "system-node-critical" || len(pod.Tolerations) != 1 ||
				pod.Tolerations[0] != (corev1.Toleration{Operator: corev1.TolerationOpExists}) {
				t.Error("it is not on the host's network, or not on every node")
			}
			for i := range pod.Containers {
				container(t, pod, &pod.Containers[i])
			}
			want := map[string][]corev1.Capability{"install": {"BPF", "NET_ADMIN", "PERFMON"}, "metrics": {"BPF", "NET_ADMIN"}}
			got := map[string][]corev1.Capability{}
			for _, c := range pod.Containers {
				got[c.Name] = c.SecurityContext.Capabilities.Add
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("capabilities (-want +got):\n%s", diff)
			}
		})
	}
}

func container(t *testing.T, pod *corev1.PodSpec, c *corev1.Container) {
	t.Helper()
	s := c.SecurityContext
	if s.Privileged != nil && *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem ||
		!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("%s may do more than it must: %+v", c.Name, s)
	}
	if len(c.Ports) > 0 {
		t.Errorf("%s declares ports, which the pod of a rollout would wait for: %v", c.Name, c.Ports)
	}
	hosts := map[string]string{}
	for _, v := range pod.Volumes {
		if v.HostPath != nil {
			hosts[v.Name] = v.HostPath.Path
		} else {
			hosts[v.Name] = ""
		}
	}
	mounted := map[string]bool{}
	for _, m := range c.VolumeMounts {
		mounted[m.MountPath] = true
		switch host, found := hosts[m.Name]; {
		case !found:
			t.Errorf("%s mounts %s, which is no volume", c.Name, m.Name)
		case host != "" && host != m.MountPath:
			t.Errorf("%s has the host's %s at %s; want the same path", c.Name, host, m.MountPath)
		case c.Name == "metrics" && !m.ReadOnly:
			t.Errorf("metrics may write to %s", m.MountPath)
		}
	}
	// Every directory that a flag names is there.
	for _, arg := range c.Args {
		_, value, _ := strings.Cut(arg, "=")
		if value = expand(c, value); path.IsAbs(value) && !mounted[value] {
			t.Errorf("%s has no %s, which %s names", c.Name, value, arg)
		}
	}
	if c.Name != "install" {
		// What tells whether the policy is in force looks at the files that it was read from.
		for _, arg := range pod.Containers[0].Args {
			if dir, found := strings.CutPrefix(arg, "--state-dir="); found && !mounted[dir] {
				t.Errorf("%s has no %s, where the policy is", c.Name, dir)
			}
		}
		return
	}
	// The check is of what install does.
	for _, arg := range c.ReadinessProbe.Exec.Command[3:] {
		if !slices.Contains(c.Args, arg) {
			t.Errorf("the check has %s, install has not", arg)
		}
	}
	for _, arg := range c.Args {
		if strings.Contains(arg, "=") && !slices.Contains(c.ReadinessProbe.Exec.Command, arg) {
			t.Errorf("install has %s, the check has not", arg)
		}
	}
}

// expand is what kubelet does with $(NAME), in commands and in those of probes.
func expand(c *corev1.Container, s string) string {
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			s = strings.ReplaceAll(s, "$("+e.Name+")", e.Value)
		}
	}
	return s
}
