// SPDX-License-Identifier: Apache-2.0

// Package metrics says what a node measures in the words of Prometheus: families with names, units and labels
// by its conventions, as text in either of its two formats, on standard output, in a file, or over HTTP.
//
//	node.Measure ─► Families (pure) ─► Write ─► stdout, WriteFile, Server
//
// It is not a client library: nothing is counted here. The kernel and the node's records count; each time they are asked
// anew. Prometheus's own libraries, net/http among them, would cost every start of a pod more than this whole package.
package metrics

// Type is what a family's values mean.
type Type string

// The types that are in use here.
const (
	Counter Type = "counter"
	Gauge   Type = "gauge"
	Summary Type = "summary" // without quantiles: a sum and a count
)

// Family is all samples of one name.
type Family struct {
	// Name is without the suffix that its type gives the samples: _total of a counter, _sum and _count of a summary.
	Name string
	Type Type
	// Help is one sentence without a line break.
	Help    string
	Samples []Sample
}

// Sample is one value.
type Sample struct {
	// Suffix is what stands behind the family's name, but for a counter's _total.
	Suffix string
	Labels []Label
	Value  float64
}

// Label is a name and its value, which may be any text.
type Label struct{ Name, Value string }
