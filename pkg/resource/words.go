// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

const kindWords = "HostEndpoint, GlobalNetworkPolicy, GlobalNetworkSet or Tier"

// refusedKinds has, by group, kinds that users keep next to those that are read, and what to do about them.
var refusedKinds = map[string]map[string]string{
	"projectcalico.org": {
		"NetworkPolicy":                 "a namespaced policy is for the tracked traffic of pods; keep it in Calico and out of these files",
		"StagedGlobalNetworkPolicy":     "a staged policy is not enforced; make it a GlobalNetworkPolicy if it should be, or keep it out of these files",
		"StagedNetworkPolicy":           "a staged policy is not enforced, and a namespaced one is for pods; keep it in Calico and out of these files",
		"StagedKubernetesNetworkPolicy": "a staged policy is not enforced, and a namespaced one is for pods; keep it in Calico and out of these files",
		"NetworkSet":                    "a namespaced set is for the policy of pods; make it a GlobalNetworkSet if rules here select it, or keep it out of these files",
		"Profile":                       "no profile is consulted for untracked traffic, in Calico neither; keep it in Calico and out of these files",
		"FelixConfiguration":            "nothing here is configured by it; failsafe ports are in untracked.cni/failsafe-inbound and untracked.cni/failsafe-outbound; keep it in Calico and out of these files",
		"KubeControllersConfiguration":  "host endpoints are not made by a controller here: the labels of untracked.cni/interfaces are in untracked.cni/labels; keep it in Calico and out of these files",
		"WorkloadEndpoint":              "untracked policy is for host interfaces; keep it in Calico and out of these files",
	},
	"networking.k8s.io": {
		"NetworkPolicy": "a namespaced policy is for the tracked traffic of pods; keep it in Kubernetes and out of these files",
	},
}

func refusedKind(kind, version string) string {
	group, _, _ := strings.Cut(version, "/")
	// The storage format has the same kinds.
	if why := refusedKinds[strings.TrimPrefix(group, "crd.")][kind]; why != "" {
		return why
	}
	if guess := closest(kind, slices.Sorted(maps.Keys(kinds))); guess != "" {
		return fmt.Sprintf("unknown kind; did you mean %s?", guess)
	}
	return fmt.Sprintf("nothing here is done with this kind; want %s, or a List of them", kindWords)
}

func refusedVersion(version string) string {
	switch {
	case version == "":
		return "missing; want " + apiVersion
	case strings.HasPrefix(version, "crd.projectcalico.org/"):
		return "this is the format that Calico stores; want " + apiVersion +
			", as `calicoctl get -o yaml` prints it, or `kubectl get globalnetworkpolicies.projectcalico.org -o yaml`"
	}
	return "unknown version; want " + apiVersion
}

// instead says what could be meant by a name that is not known.
func instead(name string, known []string) string {
	if guess := closest(name, known); guess != "" {
		return fmt.Sprintf("did you mean %s?", guess)
	}
	return "want " + alternatives(known)
}

func alternatives(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// closest is the known name that differs in case only, or begins with this one, or else differs in at most one letter of
// three. It is "" if there is none.
func closest(name string, known []string) string {
	if len(name) > 40 { // no name is that long
		return ""
	}
	name = strings.ToLower(name)
	best, fewest := "", len(name)/3+1
	for _, k := range known {
		d := distance(name, strings.ToLower(k))
		if len(name) >= 4 && strings.HasPrefix(strings.ToLower(k), name) {
			d = min(d, 1)
		}
		if d < fewest {
			best, fewest = k, d
		}
	}
	return best
}

// distance is how many letters must be added, removed, replaced or swapped with the next to turn a into b.
func distance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		for j := range d[i] {
			switch {
			case i == 0:
				d[i][j] = j
			case j == 0:
				d[i][j] = i
			default:
				replace := d[i-1][j-1]
				if a[i-1] != b[j-1] {
					replace++
				}
				d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, replace)
				if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
					d[i][j] = min(d[i][j], d[i-2][j-2]+1)
				}
			}
		}
	}
	return d[len(a)][len(b)]
}
