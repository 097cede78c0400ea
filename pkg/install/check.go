// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"context"
	"fmt"
	"os"
)

// Check returns what Install would change, in words, or what would keep it from doing so. It changes nothing.
func (i *Installer) Check(ctx context.Context) []string {
	w, err := i.wanted()
	if err != nil {
		return []string{err.Error()}
	}
	c, err := w.config()
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	if reason, err := i.binaryDiffers(); err != nil {
		out = append(out, err.Error())
	} else if reason != "" {
		out = append(out, fmt.Sprintf("%s is not this binary: %s", i.binary(), reason))
	}
	if i.copyInForce() != copyPrefix+w.hash || !isCopy(i.copyDir(), w) {
		out = append(out, fmt.Sprintf("%s is not a copy of %s: the policy was not taken over yet, or it is bad and the log of the installer says why", i.copyDir(), i.ConfigDir))
	}
	t, err := i.choose()
	if err != nil {
		return append(out, err.Error())
	}
	defer t.close()
	out = append(out, i.entryMissing(t, w)...)
	c.Network, c.CNIVersion = t.list.Network, t.list.CNIVersion
	drift, err := i.nodeOf(c).Check(ctx, c)
	if err != nil {
		drift = []string{err.Error()}
	}
	return append(out, drift...)
}

func (i *Installer) entryMissing(t *target, w *wanted) []string {
	if i.DropIn {
		path := i.dropIn(t)
		if err := i.fits(t); err != nil {
			return []string{err.Error()}
		}
		if data, err := os.ReadFile(path); err != nil || !bytes.Equal(bytes.TrimSpace(data), w.entry) {
			return []string{fmt.Sprintf("%s does not have the entry", path)}
		}
		return nil
	}
	if t.single || !t.list.Has(w.entry) {
		return []string{fmt.Sprintf("%s does not have the entry", t.path)}
	}
	return nil
}
