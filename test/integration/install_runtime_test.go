// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/fsnotify/fsnotify"

	"github.com/untracked-cni/untracked/pkg/config"
)

// runtimeView is the conf directory as containerd sees it: it reads it again when something in it is written, renamed or
// removed, not when it is created, and knows nothing of directories below or elsewhere.
type runtimeView struct {
	broken, chained atomic.Bool
}

func (n *installNode) runtime() *runtimeView {
	n.Helper()
	v := &runtimeView{}
	w := must(fsnotify.NewWatcher())(n)
	n.Cleanup(func() { w.Close() })
	check(n, w.Add(n.chain.ConfDir))
	go func() {
		for e := range w.Events {
			if e.Has(fsnotify.Create) || e.Has(fsnotify.Chmod) {
				continue
			}
			v.load(n.chain.ConfDir)
		}
	}()
	return v
}

// load takes the first file, as runtimes do.
func (v *runtimeView) load(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return // renamed since it was listed; that is the next event
		}
		switch filepath.Ext(e.Name()) {
		case ".conf", ".json":
			if data, err = config.ToList(data, path); err != nil {
				v.broken.Store(true)
			}
		case ".conflist":
		default:
			continue
		}
		list, err := config.ReadList(data, path)
		if err != nil {
			v.broken.Store(true)
			return
		}
		_, err = os.Stat(filepath.Join(dir, list.Network, "50-untracked.conf"))
		v.chained.Store(len(list.Entries()) > 0 || err == nil)
		return
	}
	v.broken.Store(true) // no configuration at all: the node would not be ready
}

// However the entry gets into the chain and out of it, the runtime hears of it, and never sees half of a list, or none.
func TestInstallSeenByRuntime(t *testing.T) {
	for _, c := range []struct {
		name  string
		make  func(n *installNode)
		flags []string
	}{
		{"list", func(*installNode) {}, nil},
		{"drop-in", func(*installNode) {}, []string{"--drop-in"}},
		{"link", func(n *installNode) {
			real := filepath.Join(n.lab.Dir, "elsewhere")
			check(n, errors.Join(os.Rename(n.chain.File, real), os.Symlink(real, n.chain.File)))
		}, nil},
		{"single plugin", func(n *installNode) {
			check(n, os.Remove(n.chain.File))
			n.write(filepath.Join(n.chain.ConfDir, "10-net.conf"), `{"cniVersion": "1.0.0", "name": "net", "type": "bridge"}`)
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newInstallNode(t)
			c.make(n)
			v := n.runtime()
			for range 3 {
				n.run(0, "install", c.flags...)
				cniEventually(t, "the runtime has the entry", v.chained.Load)
				n.run(0, "uninstall")
				cniEventually(t, "the runtime has no entry", func() bool { return !v.chained.Load() })
			}
			if v.broken.Load() {
				t.Error("the runtime saw a directory without a whole configuration")
			}
		})
	}
}

// From a list to a drop-in file and back: at no time twice for long, in the end once.
func TestInstallDropInAndBack(t *testing.T) {
	n := newInstallNode(t)
	before := n.read(n.chain.File)
	dropIn := filepath.Join(n.chain.ConfDir, n.chain.Network, "50-untracked.conf")
	n.run(0, "install")
	n.run(0, "install", "--drop-in")
	if data, err := os.ReadFile(dropIn); err != nil || !bytes.Contains(data, []byte("tcp/6379")) || n.read(n.chain.File) != before {
		t.Errorf("drop-in file %q, %v; list:\n%s", data, err, n.read(n.chain.File))
	}
	n.run(0, "install")
	if _, err := os.Stat(filepath.Dir(dropIn)); !errors.Is(err, fs.ErrNotExist) || n.entry() == nil {
		t.Errorf("the drop-in file is still there (%v), or the entry is not: %v", err, n.entry())
	}
}
