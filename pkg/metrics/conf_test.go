// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

// labelsOf are the labels of every series that there can be, by its name; instance and job are Prometheus's own.
func labelsOf(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, f := range Families(measured(), Options{Version: "v1", MaxRules: 10}) {
		for _, s := range f.Samples {
			name := f.Name + s.Suffix
			if f.Type == Counter {
				name += "_total"
			}
			known := []string{"instance", "job"}
			for _, l := range s.Labels {
				known = append(known, l.Name)
			}
			out[name] = known
		}
	}
	return out
}

// checkExpr parses an expression as Prometheus does. Each series in it must be one of ours, with labels that it has.
func checkExpr(t *testing.T, where, expr string) {
	t.Helper()
	known := labelsOf(t)
	parsed, err := parser.ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %s: %v", where, expr, err)
		return
	}
	series := 0
	parser.Inspect(parsed, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			series++
			if known[n.Name] == nil {
				t.Errorf("%s: there is no metric %q", where, n.Name)
				return nil
			}
			for _, m := range n.LabelMatchers {
				if m.Name != model.MetricNameLabel && !slices.Contains(known[n.Name], m.Name) {
					t.Errorf("%s: %s has no label %q", where, n.Name, m.Name)
				}
				if m.Name == "verdict" && !slices.Contains([]string{"untracked", "denied"}, m.Value) || m.Name == "action" && !slices.Contains([]string{"Allow", "Deny"}, m.Value) {
					t.Errorf("%s: there is no %s", where, m)
				}
			}
		case *parser.AggregateExpr:
			parser.Inspect(n.Expr, func(inner parser.Node, _ []parser.Node) error {
				if v, ok := inner.(*parser.VectorSelector); ok && !n.Without {
					for _, l := range n.Grouping {
						if !slices.Contains(known[v.Name], l) {
							t.Errorf("%s: %s has no label %q", where, v.Name, l)
						}
					}
				}
				return nil
			})
		}
		return nil
	})
	if series == 0 {
		t.Errorf("%s: no series in %s", where, expr)
	}
}

func TestAlerts(t *testing.T) {
	text, err := os.ReadFile("../../conf/prometheus-alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	groups, errs := rulefmt.Parse(text, false, model.LegacyValidation)
	for _, err := range errs {
		t.Error(err)
	}
	alerts := 0
	labelInText := regexp.MustCompile(`\$labels\.(\w+)`)
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			alerts++
			checkExpr(t, r.Alert, r.Expr)
			if !strings.HasPrefix(r.Alert, "Untracked") || r.For == 0 || !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
				t.Errorf("%s: for %s, labels %v", r.Alert, r.For, r.Labels)
			}
			if !strings.Contains(r.Annotations["summary"], "{{ $labels.instance }}") {
				t.Errorf("%s: the summary names no node: %s", r.Alert, r.Annotations["summary"])
			}
			if !strings.Contains(r.Annotations["description"], "`untracked ") && !strings.Contains(r.Annotations["description"], "`conntrack ") {
				t.Errorf("%s: the description names no command: %s", r.Alert, r.Annotations["description"])
			}
			parsed, err := parser.ParseExpr(r.Expr)
			if err != nil {
				continue
			}
			for _, m := range labelInText.FindAllStringSubmatch(r.Annotations["summary"]+r.Annotations["description"], -1) {
				if first := firstSeries(parsed); !slices.Contains(labelsOf(t)[first], m[1]) {
					t.Errorf("%s: %s has no label %s for the text", r.Alert, first, m[1])
				}
			}
		}
	}
	if alerts < 8 {
		t.Errorf("%d alerts", alerts)
	}
}

// firstSeries is that whose labels an alert has: what stands left of a binary operator.
func firstSeries(e parser.Expr) (name string) {
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		if v, ok := n.(*parser.VectorSelector); ok && name == "" {
			name = v.Name
		}
		return nil
	})
	return name
}

// variables are what Grafana puts in the place of its own.
var variables = strings.NewReplacer("$__rate_interval", "1m", "$__interval", "1m", "$__range", "1h", "$instance", "node-1")

func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../conf/grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	type source struct{ Type, UID string }
	var d struct {
		Title         string
		UID           *string
		ID            *int
		SchemaVersion int
		Annotations   struct {
			List []struct {
				Expr       string
				Datasource source
			}
		}
		Templating struct {
			List []struct {
				Name, Type string
				Query      json.RawMessage
				Definition string
				Datasource *source
			}
		}
		Panels []struct {
			ID                       int
			Type, Title, Description string
			Datasource               source
			GridPos                  struct{ X, Y, W, H int }
			Targets                  []struct {
				Expr, RefID string
				Datasource  source
			}
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if d.Title == "" || d.UID != nil || d.ID != nil || d.SchemaVersion < 39 {
		t.Errorf("title %q, uid %v, id %v, schema version %d", d.Title, d.UID, d.ID, d.SchemaVersion)
	}
	chosen := source{"prometheus", "${datasource}"}
	if v := d.Templating.List[0]; v.Name != "datasource" || v.Type != "datasource" || string(v.Query) != `"prometheus"` {
		t.Errorf("the first variable is %+v", v)
	}
	for _, v := range d.Templating.List[1:] {
		metric := regexp.MustCompile(`^label_values\((\w+), instance\)$`).FindStringSubmatch(v.Definition)
		if metric == nil || labelsOf(t)[metric[1]] == nil || *v.Datasource != chosen {
			t.Errorf("variable %+v", v)
		}
	}
	for _, a := range d.Annotations.List {
		checkExpr(t, "annotation", variables.Replace(a.Expr))
		if a.Datasource != chosen {
			t.Errorf("annotation from %v", a.Datasource)
		}
	}
	used, taken := map[int]string{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if other := used[p.ID]; other != "" || p.ID == 0 || p.Description == "" || len(p.Targets) == 0 || p.Datasource != chosen {
			t.Errorf("panel %q: id %d (as %q), description %q, %d targets, %v", p.Title, p.ID, other, p.Description, len(p.Targets), p.Datasource)
		}
		used[p.ID] = p.Title
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q overlaps %q at %d,%d", p.Title, other, x, y)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		for _, q := range p.Targets {
			checkExpr(t, p.Title, variables.Replace(q.Expr))
			if q.RefID == "" || q.Datasource != chosen || !strings.Contains(q.Expr, `instance=~"$instance"`) {
				t.Errorf("panel %q: %+v", p.Title, q)
			}
		}
	}
}
