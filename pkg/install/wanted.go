// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// wanted is what the node shall have.
type wanted struct {
	source *source
	hash   string
	entry  json.RawMessage
}

// key identifies the policy and where it is.
func (w *wanted) key() string { return w.hash + "\n" + string(w.entry) }

// config is the entry as the plugin reads it, without a network.
func (w *wanted) config() (*config.Config, error) {
	c, err := config.Parse(w.entry)
	return c, w.source.placed(err)
}

// placed adds to errors about annotations where they are written.
func (s *source) placed(err error) error {
	for _, e := range resource.Unjoin[*config.Error](err) {
		if at, ok := s.places[e.Key]; ok && e.File == "" {
			e.File, e.Line, e.Column = at.File, at.Line, at.Column
		}
	}
	return err
}

// wanted reads the config directory.
func (i *Installer) wanted() (*wanted, error) {
	s, err := readSource(i.ConfigDir)
	if err != nil {
		return nil, invalid(err)
	}
	w := &wanted{source: s, hash: s.hash()}
	if w.entry, err = entryOf(i.annotations(s, i.copyDir())); err != nil {
		return nil, err
	}
	return w, nil
}

// annotations are those that are written, and what the plugin would not know without them. Paths below the config
// directory become those of its copy at dir: the plugin may not see the original, which may be mounted for us alone.
func (i *Installer) annotations(s *source, dir string) map[string]string {
	out := maps.Clone(s.annotations)
	if out == nil {
		out = map[string]string{}
	}
	add := func(name, value string) {
		if _, given := out[config.Prefix+name]; !given && value != "" {
			out[config.Prefix+name] = value
		}
	}
	add("node", i.NodeName)
	if i.BPFFS != "" && i.BPFFS != config.DefaultBPFFS {
		add("bpffs", i.BPFFS)
	}
	if i.RunDir != config.DefaultRunDir {
		add("run-dir", i.RunDir)
	}
	var found []string
	for _, d := range resourceDirs {
		if s.resourcesIn(d) {
			found = append(found, filepath.Join(i.ConfigDir, d))
		}
	}
	add("policy-files", strings.Join(found, ","))
	for _, name := range []string{"policy-files", "deny-files"} {
		if list, given := out[config.Prefix+name]; given {
			out[config.Prefix+name] = moved(list, i.ConfigDir, dir)
		}
	}
	return out
}

// moved replaces a directory by another in a comma list of paths.
func moved(list, from, to string) string {
	items := strings.Split(list, ",")
	for n, item := range items {
		path := filepath.Clean(strings.TrimSpace(item))
		if below, err := filepath.Rel(from, path); err == nil && filepath.IsLocal(below) {
			items[n] = filepath.Join(to, below)
		}
	}
	return strings.Join(items, ",")
}

// entryOf is the entry on the conf list.
func entryOf(annotations map[string]string) (json.RawMessage, error) {
	entry := struct {
		Type         string            `json:"type"`
		Capabilities map[string]bool   `json:"capabilities,omitempty"`
		Annotations  map[string]string `json:"annotations"`
	}{Type: config.PluginType, Annotations: annotations}
	if strings.HasPrefix(annotations[config.Prefix+"pods"], "allow") {
		// What a runtime knows of a pod, it tells only who asks.
		entry.Capabilities = map[string]bool{"io.kubernetes.cri.pod-annotations": true, "portMappings": true}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(entry); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

// ErrInvalid says that the policy is not one that could be put in force; nothing was changed.
var ErrInvalid = errors.New("the policy is not valid")

// invalidError is what is wrong with a policy, in terms of the directory that it was written in.
type invalidError struct{ text string }

func (e *invalidError) Error() string        { return e.text }
func (e *invalidError) Is(target error) bool { return target == ErrInvalid }

func invalid(err error) error { return &invalidError{err.Error()} }

// validate finds out whether the policy can be put in force, on the very copy that the plugin will read. Where it
// cannot, the copy is removed again, and nothing has changed.
func (i *Installer) validate(w *wanted) error {
	if _, err := w.config(); err != nil {
		return invalid(err)
	}
	dir, err := i.stage(w)
	if err != nil || i.good != nil && i.good.key() == w.key() {
		return err
	}
	staged := *w
	if staged.entry, err = entryOf(i.annotations(w.source, dir)); err != nil {
		return err
	}
	c, err := staged.config()
	if err == nil {
		_, _, err = i.nodeOf(c).PlanFor(c)
	}
	if err != nil {
		i.unstage(dir)
		text := strings.ReplaceAll(w.source.placed(err).Error(), dir, i.ConfigDir)
		if !node.IsConfigError(err) {
			return fmt.Errorf("find out what the policy comes to: %s", text)
		}
		return &invalidError{text}
	}
	return nil
}
