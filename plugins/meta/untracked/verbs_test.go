// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
)

// Runtimes know what to do by the code: try again, or tell the user.
func TestErrorCodes(t *testing.T) {
	for _, test := range []struct {
		err  error
		code uint
	}{
		{&config.Error{Key: "untracked.cni/ports", Problem: "bad"}, types.ErrInvalidNetworkConfig},
		{fmt.Errorf("%w: gave up", node.ErrLocked), types.ErrTryAgainLater},
		{fmt.Errorf("%w: no space", node.ErrNotRecorded), codeNode},
		{errors.New("anything else"), codeNode},
	} {
		var e *types.Error
		if !errors.As(toCNI(test.err), &e) || e.Code != test.code || e.Details != test.err.Error() {
			t.Errorf("%v became %+v, want code %d with the same words", test.err, e, test.code)
		}
	}
}
