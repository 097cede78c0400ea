// SPDX-License-Identifier: Apache-2.0

package install

import (
	"fmt"
	"time"
)

// contest keeps two programs that undo each other's work on a file from doing so for ever.
type contest struct {
	path, entry string
	last        time.Time
	times       int
}

// After contestTimes writes to one file, each within calm of the one before, the time between two is doubled from one to the
// next, up to longest.
const (
	contestTimes = 5
	calm         = time.Minute
	longest      = 16 * time.Minute
)

// contested says when the file may be written again.
type contested struct {
	path  string
	times int
	wait  time.Duration
}

func (e *contested) Error() string {
	return fmt.Sprintf("%s: another program took the entry away %d times, each within a minute or as soon as it was back; it is put back in %v. "+
		"Find out which program writes this file, and add the entry at its source, or use --drop-in", e.path, e.times, e.wait.Round(time.Second))
}

// permit notes that an entry is about to be written to a file, or says why it must wait. The same entry in the same file
// is one that somebody took away.
func (c *contest) permit(path, entry string, now time.Time) error {
	if c.path != path || c.entry != entry {
		*c = contest{path: path, entry: entry}
	}
	delay := c.delay()
	since := now.Sub(c.last)
	if since < delay {
		return &contested{path, c.times, delay - since}
	}
	if since > delay+calm {
		c.times = 0
	}
	c.times, c.last = c.times+1, now
	return nil
}

// delay is how long the next write must wait after the last.
func (c *contest) delay() time.Duration {
	if c.times < contestTimes {
		return 0
	}
	return min(calm<<(min(c.times, 32)-contestTimes), longest)
}
