// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"strconv"
	"strings"
)

// Negotiate chooses the format that an Accept header (RFC 9110, 12.5.1) likes best; of equals, the one that is named
// first. Whoever asks for nothing that we have gets Text, which every scraper and every person can read.
func Negotiate(accept string) Format {
	best, liked := Text, 0.0
	for _, part := range strings.Split(strings.ToLower(accept), ",") {
		kind, parameters, _ := strings.Cut(part, ";")
		version, q := "", 1.0
		for _, p := range strings.Split(parameters, ";") {
			name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
			switch name {
			case "version":
				version = strings.Trim(value, `"`)
			case "q":
				q, _ = strconv.ParseFloat(value, 64) // what is no number is not liked
			}
		}
		var format Format
		switch strings.TrimSpace(kind) {
		case "application/openmetrics-text":
			if version != "" && version != "1.0.0" {
				continue
			}
			format = OpenMetrics
		case "text/plain":
			if version != "" && version != "0.0.4" {
				continue
			}
			format = Text
		case "text/*", "*/*":
			format = Text
		default:
			continue
		}
		if q > liked {
			best, liked = format, q
		}
	}
	return best
}
