// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/untracked-cni/untracked/pkg/filelock"
)

// ErrLocked says that another caller held the node's lock for too long.
var ErrLocked = filelock.ErrLocked

const lockFile = "lock"

// lock serialises callers on a run directory, which it creates. It waits no longer than ctx allows.
func lock(ctx context.Context, runDir string) (unlock func(), err error) {
	unlock, err = filelock.Lock(ctx, filepath.Join(runDir, lockFile))
	if err != nil && !errors.Is(err, ErrLocked) {
		return nil, runDirError(runDir, "take the lock", err)
	}
	return unlock, err
}
