// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/config"
)

// confExtensions are those that runtimes take for configurations.
var confExtensions = []string{".conf", ".conflist", ".json"}

const listExtension = ".conflist"

// errNoConf says that the main CNI plugin has written nothing yet.
var errNoConf = errors.New("no conf list")

// confFiles returns the files that a runtime looks at, in its order: it takes the first.
func confFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for conf lists: %w; name the runtime's directory with --conf-dir", err)
	}
	var out []string
	for _, e := range entries { // which are sorted
		if !e.IsDir() && slices.Contains(confExtensions, filepath.Ext(e.Name())) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}

// target is the file that gets the entry, as it was read.
type target struct {
	// path is the file, real where its content is: another place if it is a link, whose file is the one to change.
	path, real string
	// single says that the file has one plugin's entry and is to become a list.
	single bool
	// data is the content of file, which is the one that was there. list is what to edit, mostly the same.
	file *os.File
	data []byte
	list *config.List
}

func (t *target) close() { t.file.Close() }

// choose finds the file and reads it.
func (i *Installer) choose() (*target, error) {
	path := i.Conflist
	if path == "" {
		all, err := confFiles(i.ConfDir)
		if err != nil {
			return nil, err
		}
		if len(all) == 0 {
			return nil, unready{fmt.Errorf("%w in %s; want that of the main CNI plugin: install it first, wait for it with --watch, or name the runtime's directory with --conf-dir", errNoConf, i.ConfDir)}
		}
		path = rewritten(all[0])
	} else if path != asList(path) && !exists(path) && exists(path+keptSuffix) {
		path = asList(path) // which was made of it
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, unready{fmt.Errorf("%w; if it is a link, what it leads to must be there, for a container, too", err)}
	}
	t := &target{path: path, real: real, single: filepath.Ext(path) != listExtension}
	if t.file, err = os.Open(real); err != nil {
		return nil, unready{err}
	}
	if err := t.read(i); err != nil {
		t.close()
		return nil, unready{fmt.Errorf("%w (the file is read again until it is right, and never written before)", err)}
	}
	return t, nil
}

func (t *target) read(i *Installer) (err error) {
	if t.data, err = readAll(t.file); err != nil {
		return err
	}
	text := t.data
	if late := i.lateContent(t); late != nil {
		text = late
	}
	if t.single {
		if text, err = config.ToList(text, t.path); err != nil {
			return err
		}
	}
	t.list, err = config.ReadList(text, t.path)
	return err
}

// readAll reads a regular file from its beginning, wherever it is read meanwhile.
func readAll(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", f.Name())
	}
	const enough = 16 << 20
	if info.Size() > enough {
		return nil, fmt.Errorf("%s has %d bytes; want a conf list", f.Name(), info.Size())
	}
	data := make([]byte, info.Size())
	n, err := f.ReadAt(data, 0)
	if n < len(data) && err != nil { // it became shorter
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return data, nil
}

// fits reports whether the list can have the entry as was asked for.
func (i *Installer) fits(t *target) error {
	if !i.DropIn {
		return nil
	}
	const remedy = "; leave --drop-in out"
	switch {
	case t.single:
		return fmt.Errorf("%s is no conf list, and so has no drop-in files%s", t.path, remedy)
	case t.list.InlinedOnly:
		return fmt.Errorf(`%s says "loadOnlyInlinedPlugins", so no runtime reads drop-in files for it%s`, t.path, remedy)
	case filepath.Base(t.list.Network) != t.list.Network:
		return fmt.Errorf("%s: network %q cannot be the name of a directory%s", t.path, t.list.Network, remedy)
	}
	return nil
}

// dropIn is the file with our entry alone.
func (i *Installer) dropIn(t *target) string {
	return filepath.Join(filepath.Dir(t.path), t.list.Network, dropInName)
}

const dropInName = "50-untracked.conf"

// putEntry makes the entry part of the chain, unless it is.
func (i *Installer) putEntry(t *target, w *wanted) error {
	if i.DropIn {
		return i.putDropIn(t, w)
	}
	text, err := t.list.With(w.entry)
	if err != nil {
		return err
	}
	if !t.single && bytes.Equal(text, t.data) {
		_, err := i.removeDropIn(i.dropIn(t))
		return err
	}
	reason := "it has none of untracked"
	if len(t.list.Entries()) > 0 {
		reason = "its entry of untracked was another"
	}
	if err := i.contest.permit(t.path, string(w.entry), time.Now()); err != nil {
		return unready{err}
	}
	if t.single {
		return i.convert(t, text)
	}
	if err := i.replaceList(t, text); err != nil {
		return err
	}
	i.Log.Info("entry put on the conf list", "file", t.path, "network", t.list.Network, "reason", reason)
	i.poke(t.path, t.real)
	_, err = i.removeDropIn(i.dropIn(t))
	return err
}

func (i *Installer) putDropIn(t *target, w *wanted) error {
	path := i.dropIn(t)
	if was, err := os.ReadFile(path); err != nil || !bytes.Equal(bytes.TrimSpace(was), w.entry) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return writeProblem("write the drop-in file", i.ConfDir, "--conf-dir", err)
		}
		defer removeTemp(filepath.Dir(path))
		if err := replaceFile(path, append(bytes.Clone(w.entry), '\n'), 0o644, nil); err != nil {
			return writeProblem("write the drop-in file", filepath.Dir(path), "--conf-dir", err)
		}
		i.Log.Info("drop-in file written; libcni reads it from 1.3 on: containerd 2.1, CRI-O 1.33", "file", path, "network", t.list.Network)
		i.poke(path, "")
	}
	text := t.list.Without()
	if bytes.Equal(text, t.data) {
		return nil
	}
	if err := i.contest.permit(t.path, string(w.entry), time.Now()); err != nil {
		return unready{err}
	}
	if err := i.replaceList(t, text); err != nil {
		return err
	}
	i.Log.Info("entry taken off the conf list", "file", t.path, "reason", "it is in a drop-in file now")
	return nil
}

// removeDropIn removes a drop-in file of ours, and its directory if that is empty.
func (i *Installer) removeDropIn(path string) (found bool, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if config.TypeOf(data) != config.PluginType {
		return false, nil
	}
	if err := os.Remove(path); err != nil {
		return false, writeProblem("remove the drop-in file", filepath.Dir(path), "--conf-dir", err)
	}
	_ = os.Remove(filepath.Dir(path))
	i.Log.Info("drop-in file removed", "file", path)
	i.poke(path, "")
	return true, nil
}

// poke has the runtime read its directory again where it does not see what was changed: behind a link, or in a directory
// below. It heeds only names in the directory itself, and of those no new ones, but what is removed.
func (i *Installer) poke(path, real string) {
	dir := i.confDir()
	if filepath.Dir(cmp.Or(real, path)) == dir {
		return
	}
	tmp := filepath.Join(dir, tempName)
	if err := errors.Join(os.WriteFile(tmp, nil, 0o600), os.Remove(tmp)); err != nil {
		i.Log.Warn("the runtime may not see the change until it is restarted", "error", err)
	}
}

// confDir is the directory that has the list.
func (i *Installer) confDir() string {
	if i.Conflist != "" {
		return filepath.Dir(i.Conflist)
	}
	return i.ConfDir
}

// like is the owner of a file.
func (t *target) like() (fs.FileMode, *syscall.Stat_t) {
	info, err := t.file.Stat()
	if err != nil {
		return 0o600, nil
	}
	return info.Mode().Perm(), info.Sys().(*syscall.Stat_t)
}

// replaceList puts a text in the place of the list that was read, and only of that: who wrote another one meanwhile keeps
// it, and is read again. The two files change places, so that there is no moment between looking and writing.
func (i *Installer) replaceList(t *target, text []byte) error {
	dir := filepath.Dir(t.real)
	tmp := filepath.Join(dir, tempName)
	mode, like := t.like()
	removeTemp(dir) // a killed installer's
	if err := writeNew(tmp, text, mode, like); err != nil {
		removeTemp(dir)
		return writeProblem("write the conf list", dir, "--conf-dir", err)
	}
	defer removeTemp(dir)
	err := exchange(tmp, t.real)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return unready{fmt.Errorf("%s was removed meanwhile", t.real)}
	case err != nil:
		return writeProblem("write the conf list", dir, "--conf-dir", err)
	}
	if !t.is(tmp) {
		if err := exchange(tmp, t.real); err != nil {
			return fmt.Errorf("give %s back to who wrote it meanwhile: %w", t.real, err)
		}
		return unready{fmt.Errorf("%s was written by another program meanwhile", t.real)}
	}
	if err := syncDir(dir); err != nil {
		return writeProblem("write the conf list", dir, "--conf-dir", err)
	}
	i.keepReplaced(t, text)
	return nil
}

// asideSuffix is of the third name that an exchange may need.
const asideSuffix = ".old"

// exchange lets two files change places.
func exchange(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return exchangeByLink(a, b)
	}
	return err
}

// exchangeByLink is for file systems that cannot exchange files: b is replaced in one step all the same, but who writes it
// between the two steps loses.
func exchangeByLink(a, b string) error {
	third := a + asideSuffix
	if err := os.Link(b, third); err != nil {
		return err
	}
	if err := os.Rename(a, b); err != nil {
		return errors.Join(err, os.Remove(third))
	}
	return os.Rename(third, a)
}

// is reports whether the file at a path is the one that was read, unchanged.
func (t *target) is(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false
	}
	held, err := t.file.Stat()
	if err != nil || !os.SameFile(info, held) {
		return false
	}
	data, err := readAll(f)
	return err == nil && bytes.Equal(data, t.data)
}

// keptSuffix is added to the name of a file with a single entry while a list takes its place.
const keptSuffix = ".untracked-original"

// asList is the name of the list that takes the place of a file with a single entry.
func asList(path string) string { return strings.TrimSuffix(path, filepath.Ext(path)) + listExtension }

// rewritten is the file that a list was made of, where there is a new one of that name. A runtime may still take the list,
// as .conflist comes before .json.
func rewritten(list string) string {
	for _, original := range originals(list) {
		if exists(original) && exists(original+keptSuffix) {
			return original
		}
	}
	return list
}

// originals are the files that a list may have been made of.
func originals(list string) (out []string) {
	base, ok := strings.CutSuffix(list, listExtension)
	for _, extension := range confExtensions {
		if ok && extension != listExtension {
			out = append(out, base+extension)
		}
	}
	return out
}

// convert makes a list of a file with a single entry. The list is written first: until the original is aside, runtimes
// take that one, whose name comes first, or the list, and either is whole.
func (i *Installer) convert(t *target, text []byte) error {
	path := asList(t.path)
	if was, err := os.ReadFile(path); err == nil {
		if list, err := config.ReadList(was, path); err != nil || len(list.Entries()) == 0 {
			return fmt.Errorf("%s is to become a conf list, but %s is there, too; remove one of them", t.path, path)
		}
	}
	mode, like := t.like()
	if err := replaceFile(path, text, mode, like); err != nil {
		return writeProblem("write the conf list", i.confDir(), "--conf-dir", err)
	}
	kept := t.path + keptSuffix
	if err := os.Rename(t.path, kept); err != nil {
		return writeProblem("put aside "+t.path, i.confDir(), "--conf-dir", err)
	}
	if !t.is(kept) && t.path == t.real {
		_ = os.Rename(kept, t.path)
		return unready{fmt.Errorf("%s was written by another program meanwhile", t.path)}
	}
	i.Log.Info("conf list made of a single plugin's file, which is kept aside", "file", path, "kept", kept, "network", t.list.Network)
	return nil
}
