// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"math/rand/v2"
	"testing"
)

// Every look-up in a packed table gives the entry, or the row's usual value.
func TestComb(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 7))
	for _, density := range []int{1, 10, 60, 100} {
		const rows, columns = 200, 90
		c := newComb(columns)
		want := map[[2]uint32]uint32{}
		usual := make([]uint32, rows)
		for i := range usual {
			usual[i] = 1000 + uint32(i)
		}
		c.add(usual)
		for row := range uint32(rows) {
			for column := range uint32(columns) {
				if r.IntN(100) < density {
					want[[2]uint32{row, column}] = r.Uint32()
					c.set(row, column, want[[2]uint32{row, column}])
				}
			}
		}
		bases, cells, err := c.pack()
		if err != nil {
			t.Fatal(err)
		}
		for row := range uint32(rows) {
			for column := range uint32(columns) {
				got := usual[row]
				if e := cells[bases[row]+column]; e.row == row {
					got = e.value
				}
				value, ok := want[[2]uint32{row, column}]
				if !ok {
					value = usual[row]
				}
				if got != value {
					t.Fatalf("density %d: row %d, column %d is %d, want %d", density, row, column, got, value)
				}
			}
		}
		if most := len(want)*2 + 3*columns; len(cells) > most {
			t.Errorf("density %d: %d entries take %d cells", density, len(want), len(cells))
		}
	}
}

// Rows that do not fit into each other are given up, not stored with gaps of any size.
func TestCombTooWide(t *testing.T) {
	const columns = 1 << 16
	c := newComb(columns)
	for row := range uint32(300) {
		c.add([]uint32{nothing})
		for column := uint32(row % 7); column < columns; column += 97 + row%13 {
			c.set(row, column, 1)
		}
	}
	if _, cells, err := c.pack(); err == nil && len(cells) > maxCells+columns {
		t.Errorf("%d entries take %d cells", len(c.entries), len(cells))
	}
	for row := uint32(300); row < 2000; row++ {
		c.add([]uint32{nothing})
		c.set(row, 0, 1)
		c.set(row, columns-1, 1)
		for column := uint32(1); column < columns-1; column += 20 {
			c.set(row, column, 1)
		}
	}
	if _, _, err := c.pack(); err == nil {
		t.Error("a table of millions of cells was packed")
	}
}
