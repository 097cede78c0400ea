// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/files"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// Stdin is the path that stands for standard input, stdinName how findings call it.
const (
	Stdin     = "-"
	stdinName = "stdin"
)

// Input is a text with its name.
type Input struct {
	Name string
	Data []byte
}

// Linter has the options of linting.
type Linter struct {
	// Progress is called before each step with its name. (optional)
	Progress func(step string)

	// Tables are those of the lists of rules that compile, as far as they differ in the policies they have.
	Tables []Tables
}

// Tables says what the lookup tables of arriving packets come to.
type Tables struct {
	// Of is whose they are, such as "host endpoint node1-eth0".
	Of    string
	Rules int
	compiler.Method
}

func (l *Linter) progress(format string, args ...any) {
	if l.Progress != nil {
		l.Progress(fmt.Sprintf(format, args...))
	}
}

// Files is [Linter.Files] without options.
func Files(paths []string, stdin io.Reader) []Finding { return new(Linter).Files(paths, stdin) }

// Files reads files, directories and, as [Stdin], standard input, and finds what there is to find, ordered by place.
// It opens the files that conf lists name, and nothing else.
func (l *Linter) Files(paths []string, stdin io.Reader) []Finding {
	var inputs []Input
	var findings []Finding
	unreadable := func(path, format string, args ...any) {
		findings = append(findings, Finding{File: path, Severity: Error, Code: Unreadable, Message: fmt.Sprintf(format, args...)})
	}
	for _, path := range paths {
		if path == Stdin {
			l.progress("reading standard input")
			data, err := io.ReadAll(stdin)
			if err != nil {
				unreadable(stdinName, "%v", err)
			}
			inputs = append(inputs, Input{stdinName, data})
			continue
		}
		names, err := find(path)
		if err != nil {
			unreadable(path, "%s", reason(err, path))
		}
		for _, name := range names {
			l.progress("reading %s", name)
			data, err := readFile(name, name == path)
			if err != nil {
				unreadable(name, "%s", reason(err, name))
				continue
			}
			inputs = append(inputs, Input{name, data})
		}
	}
	found := l.inputs(inputs)
	if len(findings) > 0 { // what seems to be wrong may be right with what is missing
		found = slices.DeleteFunc(found, func(f Finding) bool { return f.Severity != Error })
	}
	return sorted(append(findings, found...))
}

// readFile reads what was named, if it is a pipe, too. In a directory a pipe is there by mistake, and has no end.
func readFile(path string, named bool) ([]byte, error) {
	if named {
		return os.ReadFile(path)
	}
	data, _, err := files.Read(path)
	return data, err
}

// find is a file, or the files of a directory: those of resources and conf lists.
func find(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		return []string{path}, err
	}
	out, err := files.Find([]string{path})
	for _, extension := range confExtensions {
		lists, _ := filepath.Glob(filepath.Join(path, "*"+extension)) // whose only error is a bad pattern
		out = append(out, lists...)
	}
	if err == nil && len(out) == 0 {
		err = errors.New("no file of resources or conf list in this directory; want one that ends in .yaml, .yml, .json, .conflist or .conf")
	}
	return out, err
}

var confExtensions = []string{".conflist", ".conf"}

// reason is an error without the path, which the finding has.
func reason(err error, path string) string {
	var pathError *os.PathError
	if errors.As(err, &pathError) && pathError.Path == path {
		return pathError.Err.Error()
	}
	return strings.TrimPrefix(err.Error(), path+": ")
}

// Inputs is [Files] for texts that have been read.
func Inputs(inputs []Input) []Finding { return new(Linter).inputs(inputs) }

func (l *Linter) inputs(inputs []Input) []Finding {
	together := newUnit()
	var r resource.Reader
	var findings []Finding
	var resources []Input
	for _, in := range inputs {
		if isConflist(in) {
			findings = append(findings, l.conflist(in)...)
			continue
		}
		// A file may be named twice; a resource may not.
		if slices.ContainsFunc(resources, func(o Input) bool { return o.Name == in.Name }) {
			continue
		}
		resources = append(resources, in)
		together.sources[in.Name] = &source{data: in.Data}
		l.progress("reading the resources of %s", in.Name)
		r.Add(in.Data, resource.Position{File: in.Name})
	}
	if len(resources) > 0 {
		together.resolve(&r)
		l.progress("examining all resources together")
		together.check()
	}
	l.Tables = append(l.Tables, together.tables...)
	return sorted(append(findings, together.findings...))
}

// isConflist tells a conf list, or an entry on its own, from resources: by its name or by the keys that CNI demands.
func isConflist(in Input) bool {
	if slices.Contains(confExtensions, filepath.Ext(in.Name)) {
		return true
	}
	var keys struct{ Plugins, Type json.RawMessage }
	return json.Unmarshal(in.Data, &keys) == nil && (keys.Plugins != nil || keys.Type != nil)
}

func (l *Linter) conflist(in Input) []Finding {
	u := newUnit()
	u.sources[in.Name] = &source{data: in.Data}
	c, err := config.ParseConflist(in.Data, in.Name)
	for _, e := range resource.Unjoin[*config.Error](err) {
		at := resource.Position{File: e.File, Line: e.Line, Column: e.Column}
		without := *e
		without.File, without.Line = "", 0
		u.add(at, Error, InvalidConfig, "%s", &without)
	}
	if err != nil {
		return u.findings
	}
	u.entry = &entry{Config: c, Input: in}
	if c.Pods != config.PodsIgnore && !c.HearsPods {
		u.warn(u.entry.at("pods"), PodsUnheard, `the entry does not ask the runtime for the annotations of pods; add "capabilities": {%q: true} to it`, config.PodCapability)
	}
	u.shorthand = c.Shorthand()
	u.autoReturn = c.AutoReturn
	u.failsafes = policy.FailsafeRules(c.FailsafeInbound, c.FailsafeOutbound)
	u.readLists(l)
	u.readResources(l)
	l.progress("examining the policy of %s", in.Name)
	u.check()
	l.Tables = append(l.Tables, u.tables...)
	return u.findings
}

// readLists reads the deny-files.
func (u *unit) readLists(l *Linter) {
	for _, path := range u.entry.DenyFiles {
		l.progress("reading %s", path)
		data, _, err := files.Read(path)
		if err != nil {
			u.add(u.entry.at("deny-files"), Error, Unreadable, "%s", files.Problem(err, "want the path of a list with an address or CIDR a line"))
			continue
		}
		set, err := netset.ParseList(data, path)
		if err != nil { // which begins with the place
			u.add(u.entry.at("deny-files"), Error, InvalidList, "%s", err)
			continue
		}
		u.shorthand.DenyFiles = append(u.shorthand.DenyFiles, policy.NamedSet{Name: path, Set: set})
	}
}

// readResources reads what the entry holds and what it names.
func (u *unit) readResources(l *Linter) {
	var r resource.Reader
	for _, inline := range u.entry.Inline {
		if _, known := u.sources[inline.At.File]; !known {
			u.sources[inline.At.File] = &source{data: inline.Data}
		}
		r.Add(inline.Data, inline.At)
	}
	const key = "policy-files"
	paths, err := files.Find(u.entry.PolicyFiles)
	if err != nil {
		u.add(u.entry.at(key), Error, Unreadable, "%s", oneLine(err))
	}
	for _, path := range paths {
		l.progress("reading %s", path)
		data, _, err := files.Read(path)
		if err != nil {
			u.add(u.entry.at(key), Error, Unreadable, "%s", files.Problem(err, "want a file with resources in YAML or JSON"))
			continue
		}
		u.sources[path] = &source{data: data}
		r.Add(data, resource.Position{File: path})
	}
	u.resolve(&r)
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// resolve takes the resources that were read. set stays nil if something is wrong with them.
func (u *unit) resolve(r *resource.Reader) {
	set, err := r.Result()
	for _, e := range resource.Errors(err) {
		without := *e
		without.Position = resource.Position{}
		u.add(e.Position, Error, InvalidResource, "%s", &without)
	}
	if err == nil {
		u.set = set
	}
}
