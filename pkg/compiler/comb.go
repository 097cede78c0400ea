// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"cmp"
	"fmt"
	"slices"
)

// comb stores tables of two dimensions of which most is a row's usual value: only what differs from it is an entry.
// Rows are laid over each other in one array of cells so that their entries fall in each other's gaps, and every cell
// says whose it is (row displacement: Tarjan and Yao, Storing a Sparse Table, 1979). A look-up reads one row and one
// cell.
type comb struct {
	usual   []uint32 // values of the rows
	entries []entry  // by row, then by column
	columns uint32   // classes that a look-up may ask for, at most
	room    meter    // for combinations
}

type entry struct{ row, column, value uint32 }

func newComb(columns int) *comb {
	return &comb{columns: uint32(columns), room: meter{left: maxCombinations}}
}

// add appends rows with their usual values and returns the number of the first.
func (c *comb) add(usual []uint32) uint32 {
	start := uint32(len(c.usual))
	c.usual = append(c.usual, usual...)
	return start
}

// set makes an entry. Entries come in order.
func (c *comb) set(row, column, value uint32) {
	c.entries = append(c.entries, entry{row, column, value})
}

const (
	// tries is how many places are tried for a row before it goes behind all others.
	tries = 200
	// maxTried bounds the entries that are tried for all rows, maxCells what the array may come to.
	maxTried = 32 << 20
	maxCells = 4 << 20
)

// pack places the rows, those with the most entries first. A base is what to add to a column for the cell. It gives up
// where the rows do not fit into each other.
func (c *comb) pack() (bases []uint32, cells []entry, err error) {
	var rows [][]entry
	for i := 0; i < len(c.entries); {
		n := i + 1
		for n < len(c.entries) && c.entries[n].row == c.entries[i].row {
			n++
		}
		rows = append(rows, c.entries[i:n])
		i = n
	}
	slices.SortStableFunc(rows, func(a, b []entry) int { return cmp.Compare(len(b), len(a)) })

	bases = make([]uint32, len(c.usual))
	var at gaps
	for _, row := range rows {
		base := at.fit(row)
		if base+row[len(row)-1].column >= maxCells {
			return nil, nil, fmt.Errorf("their combinations of addresses and ports need a table of more than %d cells", maxCells)
		}
		bases[row[0].row] = base
		for _, e := range row {
			at.take(base + e.column)
			for uint32(len(cells)) <= base+e.column {
				cells = append(cells, entry{row: nothing})
			}
			cells[base+e.column] = e
		}
	}
	// Whatever column is looked up in whatever row, there is a cell.
	for range c.columns {
		cells = append(cells, entry{row: nothing})
	}
	return bases, cells, nil
}

// gaps are the free places in an array that grows.
type gaps struct {
	// next[i] is i if the place is free, or a place behind it, nearer to the next free one.
	next []uint32
	// Below low it is too crowded for rows of about length entries.
	low    uint32
	length int
	// tried counts entries.
	tried int
}

// from is the first free place from i on.
func (g *gaps) from(i uint32) uint32 {
	g.reach(i)
	free := i
	for free < uint32(len(g.next)) && g.next[free] != free {
		free = g.next[free]
	}
	for i < uint32(len(g.next)) && g.next[i] != i { // the next time it is nearer
		i, g.next[i] = g.next[i], free
	}
	return free
}

func (g *gaps) free(i uint32) bool { return i >= uint32(len(g.next)) || g.next[i] == i }

func (g *gaps) reach(i uint32) {
	for uint32(len(g.next)) <= i {
		g.next = append(g.next, uint32(len(g.next)))
	}
}

func (g *gaps) take(i uint32) {
	g.reach(i + 1)
	g.next[i] = i + 1
}

// fit finds a base at which all entries of a row fall on free places. Rows come with fewer and fewer entries.
func (g *gaps) fit(row []entry) uint32 {
	if len(row) <= g.length/2 {
		g.length, g.low = len(row), 0 // what was too crowded for longer rows may do for these
	}
	g.length = max(g.length, len(row))
	first := row[0].column
	place := max(first, g.low)
	for try := 0; try < tries && g.tried < maxTried; try++ {
		place = g.from(place)
		base := place - first
		n := slices.IndexFunc(row, func(e entry) bool { return !g.free(base + e.column) })
		if n < 0 {
			if try > tries/2 {
				g.low = place
			}
			return base
		}
		g.tried += n
		place++
	}
	g.low = place
	return max(uint32(len(g.next)), first) - first
}
