// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
)

// TestSpecialiseCopies: all programs come from one parsed object, which stays as it is.
func TestSpecialiseCopies(t *testing.T) {
	// describe has all of a program that specialising it changes.
	describe := func(spec *ebpf.CollectionSpec, kind Kind) string {
		var maps []string
		for name := range spec.Maps {
			maps = append(maps, name)
		}
		slices.Sort(maps)
		return fmt.Sprintf("maps %v mark %x\n%v", maps, spec.Variables["mark"].Value, spec.Programs[string(kind)].Instructions)
	}
	for _, kind := range []Kind{XDP, XDPFrags, Mark, TC} {
		before, err := programSpec(kind)
		if err != nil {
			t.Fatal(err)
		}
		want := describe(before, kind)
		special, _, err := Specialise(kind, ProgramOptions{MarkBit: 0x1234})
		if err != nil {
			t.Fatal(err)
		}
		if describe(special, kind) == want {
			t.Errorf("%s: specialised, it is as it was", kind)
		}
		after, err := programSpec(kind)
		if err != nil {
			t.Fatal(err)
		}
		if describe(after, kind) != want {
			t.Errorf("%s: specialising a copy has changed the object", kind)
		}
	}
}
