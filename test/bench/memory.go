// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/untracked-cni/untracked/pkg/compiler"
)

// benchMemory measures the images that the kernel gets, failsafe ports and all.
func benchMemory(e effort) ([]Row, error) {
	const typical, worst, whole = 40, 200, 96
	var perCIDR, images []subject
	add := func(name string, limit float64, lists ...[]netip.Prefix) {
		progress("compiling %s", name)
		n := 0
		for _, nets := range lists {
			n += len(nets)
		}
		image, err := compiler.Compile(deniesShape(name, lists).rules)
		if err != nil {
			perCIDR = append(perCIDR, refused(name, err))
			return
		}
		perCIDR = append(perCIDR, once(name, float64(len(image.Bytes))/float64(n), atMost(limit)))
		images = append(images, once("lookup tables of "+name, float64(len(image.Bytes))/(1<<20), atMost(whole)))
	}
	for _, n := range e.sizes(100_000, 1_000_000) {
		for _, family := range []int{4, 6} {
			add(fmt.Sprintf("%s, IPv%d, typical", count(n, "CIDR"), family), typical, randomNets(n, family))
		}
	}
	for _, family := range []int{4, 6} {
		add(fmt.Sprintf("%s, IPv%d, six lone hosts in each network", count(100_000, "CIDR"), family), worst, loneHosts(100_000, family))
	}
	if ipsum, err := readIPsum(); err == nil {
		add("the IPsum list", typical, ipsum)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	rows, err := measureOnce("B/CIDR", perCIDR)
	if err != nil {
		return nil, err
	}
	more, err := measureOnce("MiB", images)
	return append(rows, more...), err
}
