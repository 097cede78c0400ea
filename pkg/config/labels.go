// SPDX-License-Identifier: Apache-2.0

package config

import "strings"

// The lengths are Kubernetes' (k8s.io/apimachinery/pkg/util/validation).
const (
	maxLabelPart   = 63
	maxLabelPrefix = 253
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
		case !isLabelKey(key):
			return problem(item, "label key %q is not of the form name or domain/name; want letters, digits, '-', '_' and '.' in a name, at most %d, a letter or digit first and last", key, maxLabelPart)
		case value != "" && !isLabelPart(value):
			return problem(item, "label value %q is not valid; want letters, digits, '-', '_' and '.', at most %d, a letter or digit first and last", value, maxLabelPart)
		case twice:
			return problem(item, "label %q is there twice; want it once", key)
		}
		labels[key] = value
	}
	c.Labels = labels
	return nil
}

func isLabelKey(s string) bool {
	domain, name, found := strings.Cut(s, "/")
	if !found {
		return isLabelPart(s)
	}
	return isDomain(domain) && isLabelPart(name)
}

func isLabelPart(s string) bool {
	if s == "" || len(s) > maxLabelPart || !isAlphanumeric(s[0]) || !isAlphanumeric(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if !isAlphanumeric(s[i]) && s[i] != '-' && s[i] != '_' && s[i] != '.' {
			return false
		}
	}
	return true
}

// isDomain is a DNS subdomain of RFC 1123 in lower case.
func isDomain(s string) bool {
	if len(s) > maxLabelPrefix || s != strings.ToLower(s) {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !isLabelPart(part) || strings.Contains(part, "_") {
			return false
		}
	}
	return true
}

func isAlphanumeric(b byte) bool {
	return '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z'
}
