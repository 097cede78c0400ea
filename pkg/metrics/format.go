// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bufio"
	"io"
	"strconv"
	"strings"
)

// Format is a text format that scrapers understand.
type Format string

// The formats, by the content types that name them.
const (
	// OpenMetrics is https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md.
	OpenMetrics Format = "application/openmetrics-text; version=1.0.0; charset=utf-8"
	// Text is https://prometheus.io/docs/instrumenting/exposition_formats, which node_exporter reads from files.
	Text Format = "text/plain; version=0.0.4; charset=utf-8"
)

// Write writes families in a format, in their order. One without samples is written, too: it says what there could be.
func Write(w io.Writer, format Format, families []Family) error {
	out := bufio.NewWriter(w)
	for i := range families {
		writeFamily(out, format, &families[i])
	}
	if format == OpenMetrics {
		out.WriteString("# EOF\n")
	}
	return out.Flush()
}

// The two formats differ in what a counter's family is called, and in whether a help text may have a quote as it is.
var (
	escapeText = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	escapeAll  = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

func writeFamily(out *bufio.Writer, format Format, f *Family) {
	suffix, named, help := "", f.Name, escapeAll.Replace(f.Help)
	if f.Type == Counter {
		suffix = "_total"
	}
	if format == Text {
		named, help = f.Name+suffix, escapeText.Replace(f.Help)
	}
	out.WriteString("# HELP " + named + " " + help + "\n")
	out.WriteString("# TYPE " + named + " " + string(f.Type) + "\n")
	for i := range f.Samples {
		s := &f.Samples[i]
		out.WriteString(f.Name)
		out.WriteString(suffix)
		out.WriteString(s.Suffix)
		before := byte('{')
		for _, l := range s.Labels {
			out.WriteByte(before)
			out.WriteString(l.Name + `="`)
			// An interface may be called anything, but what is not UTF-8 would make the whole text invalid.
			out.WriteString(escapeAll.Replace(strings.ToValidUTF8(l.Value, "\uFFFD")))
			out.WriteByte('"')
			before = ','
		}
		if len(s.Labels) > 0 {
			out.WriteByte('}')
		}
		out.WriteByte(' ')
		out.WriteString(strconv.FormatFloat(s.Value, 'f', -1, 64))
		out.WriteByte('\n')
	}
}
