// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/untracked-cni/untracked/pkg/nft"
)

// present reports whether there is anything of ours on the node.
func (n *Node) present() bool {
	for _, path := range []string{n.pins().Dir(), filepath.Join(n.RunDir, recordFile)} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	if n.pods().Exist() {
		return true
	}
	_, err := nft.InForce()
	_, podsErr := nft.PodsInForce()
	return !errors.Is(err, nft.ErrNoTable) || !errors.Is(podsErr, nft.ErrNoTable)
}

// remove takes the record first, so that a killed remove is seen as nothing applied, and then the table with both
// ways' notrack before the programs: whatever is left halfway, no flow is untracked in one direction only.
func (n *Node) remove() error {
	record, err := readRecord(n.RunDir)
	if err != nil {
		return err
	}
	if err := n.removeFiles(recordFile); err != nil {
		return err
	}
	if err = nft.Remove(); errors.Is(err, nft.ErrNotSupported) {
		err = nil
	}
	if podsErr := nft.RemovePods(); podsErr == nil {
		err = errors.Join(err, n.pods().RemoveAll())
	} else {
		err = errors.Join(err, podsErr)
	}
	if moved := n.movedPins(record); moved != nil { // pinned where the conf list said, whatever --bpffs says
		err = errors.Join(err, moved.Remove())
	}
	err = errors.Join(err, n.pins().Remove())
	if err != nil {
		return err
	}
	// The lock goes last; who waits for it finds that out and starts over. The directory may be somebody else's
	// too, so it goes only if nothing is left in it.
	if err := n.removeFiles(rulesFile, appliesFile, recordFile+".tmp", rulesFile+".tmp", appliesFile+".tmp", lockFile); err != nil {
		return err
	}
	_ = os.Remove(n.RunDir)
	return nil
}

func (n *Node) removeFiles(names ...string) error {
	for _, name := range names {
		if err := os.Remove(filepath.Join(n.RunDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove record: %w", err)
		}
	}
	return nil
}
