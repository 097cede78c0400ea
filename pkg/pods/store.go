// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Store has the records of a node.
type Store struct{ dir string }

// At is the store in a run directory. It may not be there yet.
func At(runDir string) *Store { return &Store{filepath.Join(runDir, "pods")} }

func (s *Store) record(file string) string  { return filepath.Join(s.dir, "records", file) }
func (s *Store) sandbox(file string) string { return filepath.Join(s.dir, "sandboxes", file) }
func (s *Store) address(a netip.Addr) string {
	return filepath.Join(s.dir, "addresses", a.String())
}

// Has reports whether an attachment has a record. It is all that is asked for the many that have none.
func (s *Store) Has(id ID) bool {
	_, err := os.Lstat(s.record(id.file()))
	return err == nil
}

// Exist reports whether there is anything of the store.
func (s *Store) Exist() bool {
	_, err := os.Lstat(s.dir)
	return err == nil
}

// Read returns a record, nil if there is none that can be understood.
func (s *Store) Read(id ID) (*Record, error) { return s.read(id.file()) }

func (s *Store) read(file string) (*Record, error) {
	data, err := os.ReadFile(s.record(file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record of pod: %w", err)
	}
	r := &Record{}
	if json.Unmarshal(data, r) != nil || r.file() != file {
		return nil, nil
	}
	return r, nil
}

// Write puts a record in place, and has its addresses belong to it.
func (s *Store) Write(r *Record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record of pod: %w", err)
	}
	for _, dir := range []string{"records", "sandboxes", "addresses"} {
		if err := os.MkdirAll(filepath.Join(s.dir, dir), 0o700); err != nil {
			return fmt.Errorf("write record of pod: %w", err)
		}
	}
	file := r.file()
	err = s.replace(s.record(file), func(tmp string) error { return os.WriteFile(tmp, data, 0o600) })
	if err == nil && r.Sandbox != "" {
		err = s.replace(s.sandbox(file), func(tmp string) error { return os.Symlink(r.Sandbox+" "+r.Netns, tmp) })
	}
	for _, a := range r.Addresses {
		if err == nil {
			err = s.replace(s.address(a), func(tmp string) error { return os.Symlink(file, tmp) })
		}
	}
	if err != nil {
		return fmt.Errorf("write record of pod: %w", err)
	}
	return nil
}

// replace puts what is made under another name in the place of a file. That name needs no randomness under the lock,
// and a killed caller's is used again.
func (s *Store) replace(path string, makeAt func(tmp string) error) error {
	tmp := filepath.Join(s.dir, "new")
	if err := remove(tmp); err != nil {
		return err
	}
	if err := makeAt(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Owner returns the record that an address belongs to, nil if it belongs to none.
func (s *Store) Owner(a netip.Addr) (*Record, error) {
	file, err := os.Readlink(s.address(a))
	if err != nil {
		return nil, notThere(err)
	}
	return s.read(file)
}

// Release takes an address from whomever it belongs to.
func (s *Store) Release(a netip.Addr) error { return remove(s.address(a)) }

// Remove forgets an attachment. Its addresses may belong to others by now. r is nil where the record could not be
// understood.
func (s *Store) Remove(id ID, r *Record) error {
	var errs []error
	if r != nil {
		for _, a := range r.Addresses {
			if s.owns(id.file(), a) {
				errs = append(errs, s.Release(a))
			}
		}
	}
	errs = append(errs, remove(s.sandbox(id.file())))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove record of pod: %w", err)
	}
	return remove(s.record(id.file()))
}

func (s *Store) owns(file string, a netip.Addr) bool {
	owner, err := os.Readlink(s.address(a))
	return err == nil && owner == file
}

// Own leaves a record with those addresses that still belong to it.
func (s *Store) Own(r Record) Record {
	r.Addresses = slices.DeleteFunc(slices.Clone(r.Addresses), func(a netip.Addr) bool { return !s.owns(r.file(), a) })
	return r
}

// List returns all records, by name, whether their addresses are still theirs or not.
func (s *Store) List() ([]Record, error) {
	files, err := names(s.record(""))
	if err != nil {
		return nil, err
	}
	var out []Record
	for _, file := range files {
		r, err := s.read(file)
		if err != nil {
			return nil, err
		}
		if r != nil {
			out = append(out, *r)
		}
	}
	slices.SortFunc(out, func(a, b Record) int {
		return strings.Compare(a.Name()+" "+a.ID.String(), b.Name()+" "+b.ID.String())
	})
	return out, nil
}

// RemoveAll forgets everything.
func (s *Store) RemoveAll() error {
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove records of pods: %w", err)
	}
	return nil
}

// names lists a directory, in no order. One that does not exist is empty.
func names(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, notThere(err)
	}
	defer f.Close()
	out, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list records of pods: %w", err)
	}
	return out, nil
}

func remove(path string) error { return notThere(os.Remove(path)) }

// notThere is nil for what does not exist.
func notThere(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
