// SPDX-License-Identifier: Apache-2.0

package filelock

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFlockOwner(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  WRITE 700 00:19:1111 0 EOF
2: FLOCK  ADVISORY  WRITE 701 00:19:2222 0 EOF
2: -> FLOCK  ADVISORY  WRITE 702 00:19:2222 0 EOF
3: FLOCK  ADVISORY  WRITE 0 00:19:3333 0 EOF
4: OFDLCK ADVISORY  READ -1 00:19:4444 0 EOF
5: POSIX  ADVISORY  WRITE 703 00:19:5555 0 EOF
6: FLOCK  ADVISORY  READ  704 00:19:5555 0 EOF
`
	for file, want := range map[string]int{
		"00:19:1111": 0, "00:19:2222": 701, "00:19:3333": 0, "00:19:4444": 0, "00:19:5555": 704, "00:1a:2222": 0,
	} {
		if got := flockOwner(locks, file); got != want {
			t.Errorf("%s is held by %d, want %d", file, got, want)
		}
	}
}

func TestHolderUnknown(t *testing.T) {
	free := filepath.Join(t.TempDir(), "lock")
	if err := os.WriteFile(free, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{free, free + ".none"} {
		if got := holder(path); !strings.Contains(got, "`fuser -v "+path+"`") {
			t.Errorf("%s: %s", path, got)
		}
	}
}

func TestProcess(t *testing.T) {
	name, state := process(os.Getpid())
	if name == "" || name == "?" || len(state) != 1 || !strings.Contains("RSD", state) {
		t.Errorf("this process is %q in state %q", name, state)
	}
}
