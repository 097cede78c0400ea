// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"

	"github.com/untracked-cni/untracked/pkg/resource"
)

// setLabels reads `hep=redis-host,role=db` in Kubernetes' label syntax. No labels at all may be written down.
func setLabels(c *Config, v string) *Error {
	if strings.TrimSpace(v) == "" {
		c.Labels = nil
		return nil
	}
	list, bad := items(v, "labels such as role=db")
	if bad != nil {
		return bad
	}
	labels := make(map[string]string, len(list))
	for _, item := range list {
		key, value, found := strings.Cut(item, "=")
		_, twice := labels[key]
		switch {
		case !found:
			return problem(item, "no '='; want key=value, as in role=db")
		case !resource.IsLabelKey(key):
			return problem(item, "label key %q is %s", key, resource.NotLabelKey)
		case !resource.IsLabelValue(value):
			return problem(item, "label value %q is not valid; want %s", value, resource.LabelWords)
		case twice:
			return problem(item, "label %q is there twice; want it once", key)
		}
		labels[key] = value
	}
	c.Labels = labels
	return nil
}
