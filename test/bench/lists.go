// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/test/lab"
)

// Real lists, where somebody has put them beside the source tree.
const (
	ipsumFile     = "ipsum-*.txt.gz"         // an address a line, and the number of blocklists it is on
	countriesFile = "country-cidrs-*.tsv.gz" // a country and one of its CIDRs a line
)

// readIPsum reads the addresses of a threat feed.
func readIPsum() (nets []netip.Prefix, err error) {
	err = readColumns(ipsumFile, func(columns []string) error {
		p, err := netset.ParsePrefix(columns[0])
		nets = append(nets, p)
		return err
	})
	return nets, err
}

// readCountries reads the CIDRs of one family, a list for each country.
func readCountries(family int) ([][]netip.Prefix, error) {
	lists := map[string][]netip.Prefix{}
	err := readColumns(countriesFile, func(columns []string) error {
		if len(columns) != 2 {
			return fmt.Errorf("%q: want a country and a CIDR", columns)
		}
		p, err := netset.ParsePrefix(columns[1])
		if p.Addr().Is4() == (family == 4) {
			lists[columns[0]] = append(lists[columns[0]], p)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range lists {
		names = append(names, name)
	}
	slices.Sort(names)
	var sorted [][]netip.Prefix
	for _, name := range names {
		sorted = append(sorted, lists[name])
	}
	return sorted, nil
}

// readColumns calls each with the columns of each line that is no comment. Its error is an os.ErrNotExist where the
// list is not there.
func readColumns(pattern string, each func(columns []string) error) error {
	root, err := lab.ModuleRoot()
	if err != nil {
		return err
	}
	dir := filepath.Join(root, "..", "shared", "data")
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("%s in ../shared/data: %w", pattern, os.ErrNotExist)
	}
	slices.Sort(found)
	f, err := os.Open(found[len(found)-1])
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	s := bufio.NewScanner(z)
	for s.Scan() {
		if text := strings.TrimSpace(s.Text()); text != "" && text[0] != '#' {
			if err := each(strings.Fields(text)); err != nil {
				return fmt.Errorf("read %s: %w", f.Name(), err)
			}
		}
	}
	return s.Err()
}
