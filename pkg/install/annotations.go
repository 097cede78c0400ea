// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"errors"
	"io"

	"go.yaml.in/yaml/v4"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// parseAnnotations reads a YAML map of keys and values as they stand in an entry. A value without quotes is the text that
// is written: `true` and `0x1000` are strings here. Its error is a [*config.Error] or a join of several.
func parseAnnotations(data []byte, file string) (map[string]string, map[string]resource.Position, error) {
	problem := func(line, column int, key, text string) error {
		return &config.Error{File: file, Line: line, Column: column, Key: key, Problem: text}
	}
	syntax := func(err error) error {
		if load, ok := errors.AsType[*yaml.LoadError](err); ok {
			return problem(load.Mark.Line, max(load.Mark.Column, 1), "", "not valid YAML: "+load.Message)
		}
		return problem(0, 0, "", "not valid YAML: "+err.Error())
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	var document, second yaml.Node
	if err == nil {
		err = loader.Load(&document)
	}
	if err == io.EOF {
		return nil, nil, nil // nothing but comments
	}
	if err != nil {
		return nil, nil, syntax(err)
	}
	if err := loader.Load(&second); err == nil {
		return nil, nil, problem(second.Line, second.Column, "", "a second document; want one")
	} else if err != io.EOF {
		return nil, nil, syntax(err)
	}
	root := &document
	if root.Kind == yaml.DocumentNode {
		if len(root.Content) == 0 {
			return nil, nil, nil
		}
		root = root.Content[0]
	}
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, nil, problem(root.Line, root.Column, "", "not a map; want lines such as untracked.cni/ports: tcp/6379")
	}
	values, places := map[string]string{}, map[string]resource.Position{}
	var errs []error
	for n := 0; n+1 < len(root.Content); n += 2 {
		key, value := root.Content[n], root.Content[n+1]
		switch _, twice := values[key.Value]; {
		case key.Kind != yaml.ScalarNode:
			errs = append(errs, problem(key.Line, key.Column, "", "not the name of an annotation; want one such as untracked.cni/ports"))
		case twice:
			errs = append(errs, problem(key.Line, key.Column, key.Value, "the key is there twice; want it once"))
		case value.Kind != yaml.ScalarNode || value.Tag == "!!null":
			errs = append(errs, problem(value.Line, value.Column, key.Value, "annotation values are strings; want a string, or the key left out"))
		default:
			values[key.Value] = value.Value
			places[key.Value] = resource.Position{File: file, Line: value.Line, Column: value.Column}
		}
	}
	return values, places, errors.Join(errs...)
}
