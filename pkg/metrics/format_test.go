// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
)

var sample = []Family{
	{"x_info", Gauge, `Says "who" it is: a \ b.`, []Sample{one(1, "a", "q\"b\\s\nn\xffx", "b", "")}},
	{"x_packets", Counter, "Packets.", []Sample{one(0, "i", "eth0"), one(1<<52, "i", "eth1")}},
	{"x_seconds", Summary, "Time.", []Sample{{Suffix: "_sum", Value: 0.25}, {Suffix: "_count", Value: 3}}},
	{"x_nothing", Gauge, "Nothing.", nil},
}

func TestWrite(t *testing.T) {
	for format, want := range map[Format]string{
		OpenMetrics: `# HELP x_info Says \"who\" it is: a \\ b.
# TYPE x_info gauge
x_info{a="q\"b\\s\nn�x",b=""} 1
# HELP x_packets Packets.
# TYPE x_packets counter
x_packets_total{i="eth0"} 0
x_packets_total{i="eth1"} 4503599627370496
# HELP x_seconds Time.
# TYPE x_seconds summary
x_seconds_sum 0.25
x_seconds_count 3
# HELP x_nothing Nothing.
# TYPE x_nothing gauge
# EOF
`,
		Text: `# HELP x_info Says "who" it is: a \\ b.
# TYPE x_info gauge
x_info{a="q\"b\\s\nn�x",b=""} 1
# HELP x_packets_total Packets.
# TYPE x_packets_total counter
x_packets_total{i="eth0"} 0
x_packets_total{i="eth1"} 4503599627370496
# HELP x_seconds Time.
# TYPE x_seconds summary
x_seconds_sum 0.25
x_seconds_count 3
# HELP x_nothing Nothing.
# TYPE x_nothing gauge
`,
	} {
		var out strings.Builder
		if err := Write(&out, format, sample); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", format, diff)
		}
		if series := parse(t, format, out.String()); series[`x_info{a="q\"b\\s\nn�x"}`] != 1 {
			t.Errorf("%s: Prometheus reads %v", format, series)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestWriteFails(t *testing.T) {
	if err := Write(full{}, Text, sample); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("error %v", err)
	}
}

// parse reads text as Prometheus does, and returns the series.
func parse(t *testing.T, format Format, text string) map[string]float64 {
	t.Helper()
	symbols := labels.NewSymbolTable()
	var p textparse.Parser = textparse.NewPromParser([]byte(text), symbols, false)
	if format == OpenMetrics {
		p = textparse.NewOpenMetricsParser([]byte(text), symbols)
	}
	series := map[string]float64{}
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return series
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", format, err, text)
		}
		if entry != textparse.EntrySeries {
			continue
		}
		_, _, value := p.Series()
		var l labels.Labels
		p.Labels(&l)
		name := l.Get(model.MetricNameLabel)
		key := name + strings.Replace(labels.NewBuilder(l).Del(model.MetricNameLabel).Labels().String(), ", ", ",", -1)
		if key = strings.TrimSuffix(key, "{}"); series[key] != 0 {
			t.Errorf("%s: %s is there twice", format, key)
		}
		series[key] = value
	}
}

// lint has promtool's linter look at families: names, types, units, help.
func lint(t *testing.T, families []Family) {
	t.Helper()
	var out strings.Builder
	if err := Write(&out, Text, families); err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(strings.NewReader(out.String())).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("promlint: %s: %s", p.Metric, p.Text)
	}
}
