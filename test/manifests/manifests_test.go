// SPDX-License-Identifier: Apache-2.0

// Package manifests tests conf/kubernetes with the libraries of those who will read it: kustomize, Helm and the types of
// Kubernetes' API. It is a module of its own, so that none of them reaches the project's.
package manifests

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// root is the project's.
const root = "../.."

// kubernetes is the directory that is tested, in root.
const kubernetes = "conf/kubernetes"

// namespace is where all of it goes.
const namespace = "untracked-system"

// distributions have an overlay and values of the same name. The empty one is the base, and the chart's own values.
var distributions = []string{"", "k3s", "rke2", "openshift", "gke", "microk8s"}

func nameOf(distribution string) string {
	if distribution == "" {
		return "base"
	}
	return distribution
}

// kustomized renders a directory of conf/kubernetes as `kubectl apply -k` would.
func kustomized(t *testing.T, dir string) objects {
	t.Helper()
	return kustomizedWith(t, nil, path.Join(kubernetes, dir))
}

// kustomizedWith does so in a copy of the project with more files in it.
func kustomizedWith(t *testing.T, more map[string]string, dir string) objects {
	t.Helper()
	const project = "/project"
	disk := filesys.MakeFsInMemory()
	err := filepath.WalkDir(filepath.Join(root, kubernetes), func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		name, err = filepath.Rel(root, name)
		if err != nil {
			return err
		}
		return disk.WriteFile(path.Join(project, name), content)
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range more {
		if err := disk.WriteFile(path.Join(project, name), []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	rendered, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(disk, path.Join(project, dir))
	if err != nil {
		t.Fatalf("%s: %v", dir, err)
	}
	text, err := rendered.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return read(t, string(text))
}

func loadChart(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(filepath.Join(root, kubernetes, "chart"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// templates renders the chart as `helm install -n untracked-system` would, every file by its name.
func templates(c *chart.Chart, values map[string]any) (map[string]string, error) {
	all, err := util.ToRenderValues(c, values, common.ReleaseOptions{Name: "untracked", Namespace: namespace, Revision: 1, IsInstall: true}, nil)
	if err != nil {
		return nil, err
	}
	return engine.Engine{Strict: true}.RenderWithContext(context.Background(), c, all)
}

func charted(t *testing.T, values map[string]any) objects {
	t.Helper()
	files, err := templates(loadChart(t), values)
	if err != nil {
		t.Fatal(err)
	}
	all := objects{}
	for name, text := range files {
		if path.Ext(name) != ".yaml" {
			continue
		}
		for key, object := range read(t, text) {
			if all[key] != nil {
				t.Errorf("%s is there twice", key)
			}
			all[key] = object
		}
	}
	return all
}

// valuesOf are a distribution's values, as `helm -f` reads them.
func valuesOf(t *testing.T, distribution string) map[string]any {
	t.Helper()
	if distribution == "" {
		return nil
	}
	values, err := common.ReadValuesFile(filepath.Join(root, kubernetes, "chart/values", distribution+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return values
}

// objects are Kubernetes objects of the API's own types, by kind and name.
type objects map[string]any

func (o objects) daemonSet(t *testing.T) *appsv1.DaemonSet {
	t.Helper()
	d, ok := o["DaemonSet/untracked"].(*appsv1.DaemonSet)
	if !ok {
		t.Fatal("there is no DaemonSet untracked")
	}
	return d
}

func (o objects) configMap(t *testing.T) *corev1.ConfigMap {
	t.Helper()
	c, ok := o["ConfigMap/untracked"].(*corev1.ConfigMap)
	if !ok {
		t.Fatal("there is no ConfigMap untracked")
	}
	return c
}

// kinds are all that may be there: nothing that gives a right to anything in the API but to be admitted.
var kinds = map[string]func() any{
	"v1 Namespace":      func() any { return &corev1.Namespace{} },
	"v1 ServiceAccount": func() any { return &corev1.ServiceAccount{} },
	"v1 ConfigMap":      func() any { return &corev1.ConfigMap{} },
	"v1 ResourceQuota":  func() any { return &corev1.ResourceQuota{} },
	"apps/v1 DaemonSet": func() any { return &appsv1.DaemonSet{} },
	"rbac.authorization.k8s.io/v1 RoleBinding": func() any { return &rbacv1.RoleBinding{} },
}

// read decodes YAML documents strictly: an unknown or repeated field is an error.
func read(t *testing.T, text string) objects {
	t.Helper()
	all := objects{}
	for _, document := range strings.Split("\n"+text, "\n---") {
		var head struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Metadata   struct{ Name, Namespace string }
		}
		if err := yaml.Unmarshal([]byte(document), &head); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if head.Kind == "" {
			if rest := strings.TrimSpace(document); rest != "" {
				t.Errorf("a document without a kind:\n%s", rest)
			}
			continue
		}
		made := kinds[head.APIVersion+" "+head.Kind]
		if made == nil {
			t.Errorf("a %s %s, which should not be there", head.APIVersion, head.Kind)
			continue
		}
		object := made()
		if err := yaml.UnmarshalStrict([]byte(document), object); err != nil {
			t.Errorf("%s %s: %v", head.Kind, head.Metadata.Name, err)
		}
		if head.Kind != "Namespace" && head.Metadata.Namespace != namespace {
			t.Errorf("%s %s is in namespace %q, want %s", head.Kind, head.Metadata.Name, head.Metadata.Namespace, namespace)
		}
		all[fmt.Sprintf("%s/%s", head.Kind, head.Metadata.Name)] = object
	}
	return all
}
