// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Names of the series in the plots.
const (
	seriesFixed   = "untracked, the same packet"
	seriesRot     = "untracked, another source each packet"
	seriesLPM     = "kernel LPM trie and hash, another source each packet"
	seriesLinear  = "linear scan, the last rule matches"
	seriesSet4    = "untracked, IPv4"
	seriesSet6    = "untracked, IPv6"
	seriesSetLPM4 = "kernel LPM trie, IPv4"
	seriesSetLPM6 = "kernel LPM trie, IPv6"
)

// plot is lines over two logarithmic axes.
type plot struct {
	file, title, x, y string
	styles            []style
	// floor is what a program costs that does nothing.
	floor float64
	// footer are small lines below.
	footer []string
}

// style is how a series is drawn. The colours are Okabe and Ito's, which the colour-blind can tell apart.
type style struct{ series, colour, dash string }

var plots = []plot{
	{
		file: "cost-of-rules.svg", title: "Cost of a packet against the number of rules (IPv4)",
		x: "rules in the policy", y: "ns a packet",
		styles: []style{
			{seriesLinear, "#D55E00", ""}, {seriesLPM, "#E69F00", ""}, {seriesRot, "#0072B2", ""}, {seriesFixed, "#0072B2", "6 4"},
		},
	},
	{
		file: "cost-of-cidrs.svg", title: "Cost of a packet against the length of a deny list, another source each packet",
		x: "CIDRs in the list", y: "ns a packet",
		styles: []style{
			{seriesSetLPM4, "#E69F00", ""}, {seriesSetLPM6, "#E69F00", "6 4"}, {seriesSet4, "#0072B2", ""}, {seriesSet6, "#0072B2", "6 4"},
		},
	},
}

// drawPlots writes the plots of a report into a directory.
func drawPlots(r *Report, dir string) error {
	for _, p := range plots {
		for _, row := range r.Rows {
			if row.Case == emptyCase {
				p.floor = row.Median
			}
		}
		p.footer = []string{
			r.Machine.String(),
			fmt.Sprintf("medians by BPF_PROG_TEST_RUN; parser, counters and hand-over are in all of them; %s, %s", r.Commit, r.Date.Format(time.DateOnly)),
		}
		svg, err := p.draw(r.Rows)
		if err != nil {
			return fmt.Errorf("draw %s: %w", p.file, err)
		}
		if err := os.WriteFile(filepath.Join(dir, p.file), svg, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Lengths in pixels. GitHub shows a README about 900 wide.
const (
	plotWidth, plotHeight                    = 880, 516
	plotLeft, plotRight, plotTop, plotBottom = 80, 96, 96, 100
	fontSize                                 = 13
	lineHeight                               = 16
)

// canvas maps values to pixels and collects SVG elements.
type canvas struct {
	bytes.Buffer
	minX, maxX, minY, maxY float64
}

func (c *canvas) x(v float64) float64 {
	return plotLeft + (plotWidth-plotLeft-plotRight)*math.Log(v/c.minX)/math.Log(c.maxX/c.minX)
}

func (c *canvas) y(v float64) float64 {
	return plotHeight - plotBottom - (plotHeight-plotTop-plotBottom)*math.Log(v/c.minY)/math.Log(c.maxY/c.minY)
}

func (c *canvas) line(x1, y1, x2, y2 float64, colour, dash string, width float64) {
	fmt.Fprintf(c, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-dasharray="%s" stroke-width="%.1f"/>`+"\n",
		x1, y1, x2, y2, colour, cmp.Or(dash, "none"), width)
}

// text writes a label; anchor is start, middle or end.
func (c *canvas) text(x, y float64, anchor, attributes, label string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" text-anchor="%s" %s>`, x, y, anchor, attributes)
	_ = xml.EscapeText(c, []byte(label)) // a Buffer takes all
	fmt.Fprintln(c, "</text>")
}

func (p *plot) draw(rows []Row) ([]byte, error) {
	c := canvas{minX: math.Inf(1), minY: p.floor}
	points := make([][]Row, len(p.styles))
	for i, s := range p.styles {
		for _, r := range rows {
			if r.Series == s.series && r.Median > 0 {
				points[i] = append(points[i], r)
				c.minX, c.maxX = min(c.minX, r.X), max(c.maxX, r.X)
				c.minY, c.maxY = min(c.minY, r.Median), max(c.maxY, r.Median)
			}
		}
		slices.SortFunc(points[i], func(a, b Row) int { return cmp.Compare(a.X, b.X) })
	}
	if c.maxX <= c.minX || c.minY <= 0 {
		return nil, fmt.Errorf("the report has no rows of section packets for it")
	}
	// Whole decades upwards, and a little room below the lowest line.
	c.maxY = math.Pow(10, math.Ceil(math.Log10(c.maxY)))
	c.minY /= 1.8

	fmt.Fprintf(&c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="Helvetica, Arial, 'DejaVu Sans', sans-serif" font-size="%d" fill="#222">`+"\n",
		plotWidth, plotHeight, plotWidth, plotHeight, fontSize)
	// A ground of its own: it is looked at on white and on black.
	fmt.Fprintf(&c, `<rect width="100%%" height="100%%" rx="6" fill="#fff"/>`+"\n")
	c.text(plotLeft, 28, "start", `font-size="16" font-weight="bold"`, p.title)
	c.axes(p)
	c.line(plotLeft, c.y(p.floor), plotWidth-plotRight, c.y(p.floor), "#888", "2 3", 1.5)
	c.text(plotWidth-plotRight-6, c.y(p.floor)+fontSize, "end", `font-size="11" fill="#666"`, emptyCase)
	var ends []end
	for i, s := range p.styles {
		c.legend(i, s)
		if len(points[i]) > 0 {
			ends = append(ends, c.curve(points[i], s))
		}
	}
	for _, e := range apart(ends, lineHeight) {
		c.text(plotWidth-plotRight+9, e.y+fontSize/3, "start", fmt.Sprintf(`fill="%s"`, e.colour), e.label)
	}
	for i, line := range p.footer {
		c.text(plotLeft, float64(plotHeight-28+i*lineHeight), "start", `font-size="11" fill="#666"`, line)
	}
	fmt.Fprintln(&c, "</svg>")
	return c.Bytes(), nil
}

func (c *canvas) axes(p *plot) {
	bottom, right := float64(plotHeight-plotBottom), float64(plotWidth-plotRight)
	for v := math.Pow(10, math.Ceil(math.Log10(c.minY))); v <= c.maxY*1.001; v *= 10 {
		c.line(plotLeft, c.y(v), right, c.y(v), "#ddd", "", 1)
		c.text(plotLeft-8, c.y(v)+fontSize/3, "end", "", thousands(v))
	}
	for v := math.Pow(10, math.Ceil(math.Log10(c.minX))); v <= c.maxX*1.001; v *= 10 {
		c.line(c.x(v), plotTop, c.x(v), bottom, "#ddd", "", 1)
		c.text(c.x(v), bottom+20, "middle", "", thousands(v))
	}
	c.line(plotLeft, bottom, right, bottom, "#222", "", 1)
	c.line(plotLeft, plotTop, plotLeft, bottom, "#222", "", 1)
	c.text((plotLeft+right)/2, bottom+42, "middle", "", p.x)
	c.text(0, 0, "middle", fmt.Sprintf(`transform="translate(22 %.1f) rotate(-90)"`, (plotTop+bottom)/2), p.y)
}

// legend names a series above the plot: two columns.
func (c *canvas) legend(i int, s style) {
	x, y := float64(plotLeft+i%2*350), float64(52+i/2*20)
	c.line(x, y, x+34, y, s.colour, s.dash, 2.5)
	c.text(x+42, y+fontSize/3, "start", "", s.series)
}

// curve draws a series and returns the label of its last point.
func (c *canvas) curve(points []Row, s style) end {
	fmt.Fprintf(c, `<polyline fill="none" stroke="%s" stroke-width="2.5" stroke-dasharray="%s" points="`, s.colour, cmp.Or(s.dash, "none"))
	for _, r := range points {
		fmt.Fprintf(c, "%.1f,%.1f ", c.x(r.X), c.y(r.Median))
	}
	fmt.Fprintln(c, `"/>`)
	for _, r := range points {
		fmt.Fprintf(c, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", c.x(r.X), c.y(r.Median), s.colour)
	}
	last := points[len(points)-1]
	return end{c.y(last.Median), s.colour, thousands(math.Round(last.Median)) + " ns"}
}

// end is a label to the right of the plot.
type end struct {
	y             float64
	colour, label string
}

// apart moves labels so that each is at least distance below the one above it, as little as it takes.
func apart(ends []end, distance float64) []end {
	slices.SortFunc(ends, func(a, b end) int { return cmp.Compare(b.y, a.y) }) // the lowest first
	for i := 1; i < len(ends); i++ {
		ends[i].y = min(ends[i].y, ends[i-1].y-distance)
	}
	return ends
}

// thousands is 16384 as 16,384.
func thousands(v float64) string {
	text := fmt.Sprintf("%.0f", v)
	for at := len(text) - 3; at > 0; at -= 3 {
		text = text[:at] + "," + text[at:]
	}
	return text
}
