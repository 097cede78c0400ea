// SPDX-License-Identifier: Apache-2.0

package metrics

import "testing"

func TestNegotiate(t *testing.T) {
	for accept, want := range map[string]Format{
		"": Text,
		// Prometheus 3, Prometheus 2.45, the OpenTelemetry collector, curl, Firefox.
		"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1": OpenMetrics,
		"application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1":                                                                               OpenMetrics,
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1":                                                                           Text,
		"*/*": Text,
		"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": Text,

		"Application/OpenMetrics-Text; Version=\"1.0.0\"":            OpenMetrics,
		"text/plain;q=0.5, application/openmetrics-text":             OpenMetrics,
		"text/plain, application/openmetrics-text":                   Text,
		"application/openmetrics-text;q=0.2,text/plain;q=0.3":        Text,
		"application/openmetrics-text;q=0":                           Text,
		"application/openmetrics-text;q=many":                        Text,
		"application/openmetrics-text;version=2.0.0":                 Text,
		"application/openmetrics-text;version=2.0.0;q=1,text/*;q=0":  Text,
		"text/plain;version=1.0.0,application/openmetrics-text;q=.1": OpenMetrics,
		";;=,,;q=1": Text,
	} {
		if got := Negotiate(accept); got != want {
			t.Errorf("Accept: %s: %s, want %s", accept, got, want)
		}
	}
}
