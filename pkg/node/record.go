// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/files"
	"github.com/untracked-cni/untracked/pkg/hostif"
)

// Record is what the last complete apply did: by it, the next call can tell whether anything changed without
// compiling a policy or reading a list. It lives in the run directory, a tmpfs, and so dies with the programs.
type Record struct {
	// Version is the plugin's: another version applies anew.
	Version string    `json:"version"`
	Applied time.Time `json:"applied"`
	// Config identifies the policy annotations, Policy the rules they gave.
	Config string `json:"config"`
	// Tried is the Config of the last attempt, which is another where that got nowhere.
	Tried      string `json:"tried"`
	Policy     string `json:"policy"`
	Generation uint64 `json:"generation"`
	// Network is the last caller's, whose policy is in force; Networks has the Config of every network seen.
	Network     string            `json:"network"`
	Networks    map[string]string `json:"networks"`
	Annotations map[string]string `json:"annotations"`
	Resources   json.RawMessage   `json:"resources,omitempty"`
	// Files are those the policy was read from.
	Files []files.Stamp `json:"files,omitempty"`
	// TriedFiles are those of the last attempt, where that got nowhere.
	TriedFiles []files.Stamp `json:"triedFiles,omitempty"`
	// Selectors chose the interfaces.
	Selectors  []hostif.Selector `json:"selectors"`
	Interfaces []InterfaceRecord `json:"interfaces"`
	// UsesAddresses says that the policy depends on the interfaces' addresses.
	UsesAddresses bool `json:"usesAddresses,omitempty"`
	// Table is the digest of table inet untracked.
	Table string `json:"table"`
	// PodsTable is that of table inet untracked-pods, empty where there is none.
	PodsTable string `json:"podsTable,omitempty"`
	Rules     int    `json:"rules"`
	// Problems are those that apply met; Broken if one of them is.
	Problems []Problem `json:"problems,omitempty"`
	Broken   bool      `json:"broken,omitempty"`
}

// InterfaceRecord is an interface that the policy covers.
type InterfaceRecord struct {
	Name         string `json:"name"`
	Index        int    `json:"ifindex"`
	HostEndpoint string `json:"hostEndpoint"`
	// SelectedBy are the selectors that chose it, Addresses those it had if the policy depends on them.
	SelectedBy []hostif.Selector `json:"selectedBy,omitempty"`
	Addresses  []netip.Prefix    `json:"addresses,omitempty"`
	// List is the index of its rules in the snapshot, Policy their hash.
	List   int    `json:"list"`
	Policy string `json:"policy"`
	// Tables are those for arriving packets.
	Tables compiler.Method `json:"tables"`
	// Attached is zero where the datapath could not be set up.
	Attached datapath.Attached `json:"attached"`
	// Generation is the one in force here: the record's, but on an interface that could not be changed over.
	Generation uint64 `json:"generation,omitempty"`
	// ForeignXDP is the ID of somebody else's program on the XDP hook, 0 if there is none.
	ForeignXDP uint32 `json:"foreignXDP,omitempty"`
}

func (i *InterfaceRecord) installed() bool { return i.Attached.Mode != "" }

// record is what the plan says of an interface, with nothing installed there.
func (i *PlannedInterface) record() InterfaceRecord {
	return InterfaceRecord{
		Name: i.Name, Index: i.Index, HostEndpoint: i.HostEndpoint, SelectedBy: i.SelectedBy, Addresses: i.Addresses,
		List: i.List, Policy: i.Policy, Tables: i.Tables,
	}
}

// on is what the record has of an interface that is still the same, nil if it has nothing.
func (r *Record) on(i hostif.Interface) *InterfaceRecord {
	if r == nil {
		return nil
	}
	for n := range r.Interfaces {
		if was := &r.Interfaces[n]; was.Index == i.Index && was.Name == i.Name {
			return was
		}
	}
	return nil
}

// met reports whether apply met a problem with this code.
func (r *Record) met(code string) bool {
	return slices.ContainsFunc(r.Problems, func(p Problem) bool { return p.Code == code })
}

// bpffs is where the programs were pinned.
func (r *Record) bpffs() string {
	if path := r.Annotations[config.Prefix+"bpffs"]; path != "" {
		return filepath.Clean(path)
	}
	return config.DefaultBPFFS
}

// BPFFSOf returns where the policy that is recorded in a run directory was pinned, empty if none is.
func BPFFSOf(runDir string) string {
	if r, err := readRecord(runDir); err == nil && r != nil {
		return r.bpffs()
	}
	return ""
}

// generation is the one in force, 0 if there is none.
func (r *Record) generation() uint64 {
	if r == nil {
		return 0
	}
	return r.Generation
}

const (
	recordFile = "record.json"
	rulesFile  = "rules.json"
)

// readRecord returns nil without an error where nothing was ever applied. A record that cannot be understood is
// as good as none.
func readRecord(runDir string) (*Record, error) {
	data, err := os.ReadFile(filepath.Join(runDir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	r := &Record{}
	if json.Unmarshal(data, r) != nil {
		return nil, nil
	}
	return r, nil
}

// writeFile replaces a file of the run directory in one step.
func writeFile(runDir, name string, content any) error {
	data, err := json.Marshal(content)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	// Only the holder of the lock writes, so the temporary name needs no randomness: a killed caller's is reused.
	tmp := filepath.Join(runDir, name+".tmp")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		_, err = f.Write(data)
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(runDir, name))
	}
	if err != nil {
		return runDirError(runDir, "write "+name, err)
	}
	return nil
}
