// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

// history is what a series was like, minute by minute, up to now.
type history func(minute int) float64

const minutes = 120

func always(v float64) history { return func(int) float64 { return v } }

// rises by a number each minute, up to some minutes ago.
func rises(by float64, until int) history {
	return func(minute int) float64 { return by * float64(min(minute, minutes-until)) }
}

// ends is a counter that rose by a number each minute, and is not there any more since some minutes ago.
func ends(by float64, since int) history {
	return func(minute int) float64 {
		if minute > minutes-since {
			return math.Float64frombits(value.StaleNaN)
		}
		return by * float64(minute)
	}
}

// alarm are the alerts whose expressions are true at the end of a history, of a healthy node but for what is said. For how
// long they are is left to Prometheus.
func alarm(t *testing.T, alerts map[string]string, said map[string]history) []string {
	t.Helper()
	now := time.Unix(1_800_000_000, 0)
	all := map[string]history{
		`untracked_policy_in_force{}`:                                                                 always(1),
		`untracked_policy_generation{}`:                                                               always(3),
		`untracked_last_apply_success{}`:                                                              always(1),
		`untracked_last_successful_apply_timestamp_seconds{}`:                                         always(float64(now.Add(-90 * 24 * time.Hour).Unix())),
		`untracked_apply_failures_total{}`:                                                            always(4),
		`untracked_interface_attached{interface="eth0",mode="native"}`:                                always(1),
		`untracked_interface_packets_total{interface="eth0",direction="ingress",verdict="untracked"}`: rises(6000, 0),
		`untracked_interface_packets_total{interface="eth0",direction="ingress",verdict="tracked"}`:   rises(60, 0),
		`untracked_interface_handover_failures_total{interface="eth0"}`:                               always(9),
		`untracked_conntrack_entries{}`:                                                               always(100),
		`untracked_conntrack_limit{}`:                                                                 always(1000),
		`untracked_problem{code="drift"}`:                                                             always(0),
		`untracked_scrape_errors{part="ingress"}`:                                                     always(0),
	}
	for series := range said {
		if all[series] == nil {
			t.Fatalf("a healthy node has no series %s", series)
		}
	}
	maps.Copy(all, said)
	var data []storage.Series
	for series, at := range all {
		parsed, err := parser.ParseMetric(series)
		if err != nil {
			t.Fatal(err)
		}
		parsed = labels.NewBuilder(parsed).Set("instance", "n").Labels()
		var points []promql.FPoint
		for m := range minutes + 1 {
			points = append(points, promql.FPoint{T: now.Add(time.Duration(m-minutes) * time.Minute).UnixMilli(), F: at(m)})
		}
		data = append(data, promql.NewStorageSeries(promql.Series{Metric: parsed, Floats: points}))
	}
	source := &storage.MockQueryable{MockQuerier: &storage.MockQuerier{
		SelectMockFunction: func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
			var found []storage.Series
			for _, s := range data {
				if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.Labels().Get(m.Name)) }) {
					found = append(found, s)
				}
			}
			return &seriesSet{series: found}
		},
	}}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, LookbackDelta: 5 * time.Minute})
	var out []string
	for name, expr := range alerts {
		query, err := engine.NewInstantQuery(t.Context(), source, nil, expr, now)
		if err != nil {
			t.Fatal(err)
		}
		result := query.Exec(t.Context())
		vector, err := result.Vector()
		if err != nil || len(result.Warnings) > 0 {
			t.Fatalf("%s: %v, %v", name, err, result.Warnings)
		}
		for _, s := range vector {
			if s.Metric.Get("instance") != "n" {
				t.Errorf("%s: %v names no node", name, s.Metric)
			}
			out = append(out, strings.TrimPrefix(name, "Untracked"))
		}
		query.Close()
	}
	slices.Sort(out)
	return out
}

// seriesSet goes through series that are in memory.
type seriesSet struct {
	series []storage.Series
	at     storage.Series
}

func (s *seriesSet) Next() bool {
	if len(s.series) == 0 {
		return false
	}
	s.at, s.series = s.series[0], s.series[1:]
	return true
}

func (s *seriesSet) At() storage.Series { return s.at }
func (s *seriesSet) Err() error         { return nil }

func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// Each alert is raised by what it is for, and by nothing that is well.
func TestAlertsFire(t *testing.T) {
	text, err := os.ReadFile("../../conf/prometheus-alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	groups, errs := rulefmt.Parse(text, false, model.LegacyValidation)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	alerts := map[string]string{}
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			alerts[r.Alert] = r.Expr
		}
	}
	const untracked = `untracked_interface_packets_total{interface="eth0",direction="ingress",verdict="untracked"}`
	raised := map[string]bool{}
	for what, c := range map[string]struct {
		said map[string]history
		want []string
	}{
		"all is well":                                     {nil, nil},
		"the table fills by something else":               {map[string]history{"untracked_conntrack_entries{}": always(800)}, nil},
		"untracked traffic has ended, the table has room": {map[string]history{untracked: rises(6000, 8)}, nil},
		"there never was any untracked traffic":           {map[string]history{"untracked_conntrack_entries{}": always(800), untracked: always(0)}, nil},
		"the table fills and untracked traffic stalls":    {map[string]history{"untracked_conntrack_entries{}": always(800), untracked: rises(6000, 8)}, []string{"ConntrackFilling"}},
		"the table fills and the counters are gone":       {map[string]history{"untracked_conntrack_entries{}": always(800), untracked: ends(6000, 8)}, []string{"ConntrackFilling"}},
		"the table is full":                               {map[string]history{"untracked_conntrack_entries{}": always(950)}, []string{"ConntrackNearlyFull"}},
		"a program is off": {
			map[string]history{`untracked_interface_attached{interface="eth0",mode="native"}`: always(0), "untracked_policy_in_force{}": always(0), `untracked_problem{code="drift"}`: always(1)},
			[]string{"PolicyNotInForce", "Problem", "ProgramOff"},
		},
		"no policy":                             {map[string]history{"untracked_policy_generation{}": always(0), "untracked_policy_in_force{}": always(0)}, []string{"NoPolicy"}},
		"an apply failed, and then one did not": {map[string]history{"untracked_apply_failures_total{}": rises(1, 5)}, nil},
		"applies fail": {
			map[string]history{
				"untracked_apply_failures_total{}": rises(1, 0), "untracked_last_apply_success{}": always(0),
				"untracked_last_successful_apply_timestamp_seconds{}": always(1_800_000_000 - 1800),
			},
			[]string{"ApplyFailing", "PolicyOld"},
		},
		"one failed an hour ago": {
			map[string]history{
				"untracked_apply_failures_total{}": rises(1, 60), "untracked_last_apply_success{}": always(0),
				"untracked_last_successful_apply_timestamp_seconds{}": always(1_800_000_000 - 7200),
			},
			[]string{"PolicyOld"},
		},
		"the driver drops metadata": {map[string]history{`untracked_interface_handover_failures_total{interface="eth0"}`: rises(1, 0)}, []string{"StaysTracked"}},
		"counters cannot be read":   {map[string]history{`untracked_scrape_errors{part="ingress"}`: always(1)}, []string{"ScrapeErrors"}},
	} {
		got := alarm(t, alerts, c.said)
		if !cmp.Equal(got, c.want) {
			t.Errorf("%s: alerts %q, want %q", what, got, c.want)
		}
		for _, name := range got {
			raised["Untracked"+name] = true
		}
	}
	for name := range alerts {
		if !raised[name] {
			t.Errorf("nothing here raises %s", name)
		}
	}
}
