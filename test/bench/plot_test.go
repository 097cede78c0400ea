// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// label is a text of a plot and the place it takes, roughly.
type label struct {
	text                     string
	left, right, top, bottom float64
}

func (l label) overlaps(o label) bool {
	return l.left < o.right && o.left < l.right && l.top < o.bottom && o.top < l.bottom
}

// TestPlots draws lines that end close together, low and high, and looks for labels that cover each other or stick out.
func TestPlots(t *testing.T) {
	report := Report{
		Machine: Machine{Kernel: "6.18.44-some-long-flavour", CPU: "Some(R) Processor With A Long Name @ 2.50GHz", CPUs: 64, Governor: "performance"},
		Commit:  "v1.2.3-45-gabcdef012345-dirty",
		Rows:    []Row{{Case: emptyCase, Unit: "ns", Median: 5.9}},
	}
	for _, p := range plots {
		for i, s := range p.styles {
			for x := 1.0; x <= 1e6; x *= 10 {
				y := 20 + float64(i)
				if i == 0 {
					y = x / 10
				}
				report.Rows = append(report.Rows, Row{Case: s.series, Unit: "ns", Median: y, Series: s.series, X: x})
			}
		}
	}
	dir := t.TempDir()
	if err := drawPlots(&report, dir); err != nil {
		t.Fatal(err)
	}
	for _, p := range plots {
		svg, err := os.Open(filepath.Join(dir, p.file))
		if err != nil {
			t.Fatal(err)
		}
		labels := labelsOf(t, svg)
		svg.Close()
		var all []string
		for i, l := range labels {
			all = append(all, l.text)
			if l.left < 0 || l.right > plotWidth || l.top < 0 || l.bottom > plotHeight {
				t.Errorf("%s: %q sticks out: %+v", p.file, l.text, l)
			}
			for _, o := range labels[:i] {
				if l.overlaps(o) {
					t.Errorf("%s: %q covers %q", p.file, l.text, o.text)
				}
			}
		}
		for _, want := range []string{p.x, p.title, emptyCase, p.styles[0].series, "100,000 ns", "1,000,000"} {
			if !strings.Contains(strings.Join(all, "\n"), want) {
				t.Errorf("%s: no label %q in %q", p.file, want, all)
			}
		}
	}
}

// labelsOf reads the texts that are not turned.
func labelsOf(t *testing.T, svg io.Reader) (labels []label) {
	t.Helper()
	type textElement struct {
		X         float64 `xml:"x,attr"`
		Y         float64 `xml:"y,attr"`
		Anchor    string  `xml:"text-anchor,attr"`
		Size      float64 `xml:"font-size,attr"`
		Transform string  `xml:"transform,attr"`
		Text      string  `xml:",chardata"`
	}
	d := xml.NewDecoder(svg)
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return labels
		}
		if err != nil {
			t.Fatal(err)
		}
		start, ok := token.(xml.StartElement)
		if !ok || start.Name.Local != "text" {
			continue
		}
		var e textElement
		if err := d.DecodeElement(&e, &start); err != nil {
			t.Fatal(err)
		}
		if e.Transform != "" {
			continue
		}
		if e.Size == 0 {
			e.Size = fontSize
		}
		width := 0.58 * e.Size * float64(utf8.RuneCountInString(e.Text))
		left := e.X
		switch e.Anchor {
		case "middle":
			left -= width / 2
		case "end":
			left -= width
		}
		labels = append(labels, label{e.Text, left, left + width, e.Y - 0.75*e.Size, e.Y + 0.2*e.Size})
	}
}

func TestPlotsNeedRows(t *testing.T) {
	if err := drawPlots(&Report{Rows: []Row{{Case: emptyCase, Median: 6}}}, t.TempDir()); err == nil {
		t.Error("plots of nothing were drawn")
	}
}
