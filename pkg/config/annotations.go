// SPDX-License-Identifier: Apache-2.0

package config

import (
	"log/slog"
	"math/bits"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// setters has every annotation by its name without the prefix. A setter checks the value and puts it into
// the Config; one that returns an error has changed nothing.
var setters = map[string]func(*Config, string) *Error{
	"interfaces":        setInterfaces,
	"node":              setNode,
	"labels":            setLabels,
	"ports":             func(c *Config, v string) *Error { return setPorts(&c.Ports, v) },
	"sources":           func(c *Config, v string) *Error { return setNets(&c.Sources, v) },
	"remote-ports":      func(c *Config, v string) *Error { return setPorts(&c.RemotePorts, v) },
	"destinations":      func(c *Config, v string) *Error { return setNets(&c.Destinations, v) },
	"deny":              func(c *Config, v string) *Error { return setNets(&c.Deny, v) },
	"deny-files":        setDenyFiles,
	"policy":            setPolicy,
	"policy-files":      setPolicyFiles,
	"auto-return":       func(c *Config, v string) *Error { return setBool(&c.AutoReturn, v) },
	"failsafe-inbound":  func(c *Config, v string) *Error { return setFailsafes(&c.FailsafeInbound, v) },
	"failsafe-outbound": func(c *Config, v string) *Error { return setFailsafes(&c.FailsafeOutbound, v) },
	"mode":              setMode,
	"mark":              setMark,
	"pods":              setPods,
	"required":          func(c *Config, v string) *Error { return setBool(&c.Required, v) },
	"log-file":          setLogFile,
	"log-level":         setLogLevel,
	"bpffs":             func(c *Config, v string) *Error { return setPath(&c.BPFFS, v) },
	"run-dir":           func(c *Config, v string) *Error { return setPath(&c.RunDir, v) },
}

func setInterfaces(c *Config, v string) *Error {
	if _, err := items(v, "interface names, globs, CIDRs or "+hostif.DefaultRoute); err != nil {
		return err
	}
	selectors, err := hostif.ParseSelectors(v)
	if err != nil {
		return asProblem(v, err)
	}
	c.Interfaces = selectors
	return nil
}

func setNode(c *Config, v string) *Error {
	node := strings.TrimSpace(v)
	if node == "" {
		return problem(v, "empty; want this node's name, or the key left out for the host name")
	}
	if strings.ContainsFunc(node, isSpaceOrControl) {
		return problem(v, "node names have no white space; want this node's name")
	}
	c.Node = node
	return nil
}

func setPorts(to *[]policy.Port, v string) *Error {
	if _, err := items(v, "ports such as tcp/6379 or udp/7000-7100"); err != nil {
		return err
	}
	ports, err := policy.ParsePorts(v)
	if err != nil {
		return asProblem(v, err)
	}
	*to = ports
	return nil
}

func setNets(to **netset.Set, v string) *Error {
	list, bad := items(v, "addresses or CIDRs such as 10.0.0.0/8 or 2001:db8::1")
	if bad != nil {
		return bad
	}
	var b netset.Builder
	for _, item := range list {
		prefix, err := netset.ParsePrefix(item)
		if err != nil {
			return asProblem(item, err)
		}
		b.Add(prefix)
	}
	*to = b.Build()
	return nil
}

func setDenyFiles(c *Config, v string) *Error {
	return setPaths(&c.DenyFiles, v, "absolute paths of files")
}

func setFailsafes(to *[]policy.FailsafePort, v string) *Error {
	if _, err := items(v, "ports such as tcp:22 or udp:10.0.0.0/8:68, or none"); err != nil {
		return err
	}
	ports, err := policy.ParseFailsafes(v)
	if err != nil {
		return asProblem(v, err)
	}
	*to = ports
	return nil
}

func setBool(to *bool, v string) *Error {
	switch v {
	case "true":
		*to = true
	case "false":
		*to = false
	default:
		return oneOf(v, "true or false")
	}
	return nil
}

func setMode(c *Config, v string) *Error {
	switch m := Mode(v); m {
	case ModeAuto, ModeNative, ModeGeneric, ModeTC:
		c.Mode = m
		return nil
	}
	return oneOf(v, "auto, native, generic or tc")
}

func setMark(c *Config, v string) *Error {
	const want = "want one bit of 32, such as 0x1000 or 4096"
	digits, base := v, 10
	if hex, ok := strings.CutPrefix(strings.ToLower(v), "0x"); ok {
		digits, base = hex, 16
	}
	mark, err := strconv.ParseUint(digits, base, 32)
	if err != nil {
		return problem(v, "not a number of 32 bits; %s", want)
	}
	if n := bits.OnesCount64(mark); n != 1 {
		return problem(v, "has %d bits set; %s", n, want)
	}
	c.Mark = uint32(mark)
	return nil
}

func setPods(c *Config, v string) *Error {
	switch p := Pods(v); p {
	case PodsIgnore, PodsAllow, PodsAllowLenient:
		c.Pods = p
		return nil
	}
	return oneOf(v, "ignore, allow or allow-lenient")
}

func setLogFile(c *Config, v string) *Error {
	// The default can be written down too, in words or as nothing.
	if v == "" || v == "stderr" {
		c.LogFile = ""
		return nil
	}
	return setPath(&c.LogFile, v)
}

func setLogLevel(c *Config, v string) *Error {
	switch v {
	case "debug":
		c.LogLevel = slog.LevelDebug
	case "info":
		c.LogLevel = slog.LevelInfo
	case "warn":
		c.LogLevel = slog.LevelWarn
	case "error":
		c.LogLevel = slog.LevelError
	default:
		return oneOf(v, "debug, info, warn or error")
	}
	return nil
}

func setPath(to *string, v string) *Error {
	switch {
	case !filepath.IsAbs(v):
		return problem(v, "not an absolute path; want one such as /run/untracked")
	case strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return problem(v, "has control characters; want an absolute path without any")
	}
	*to = filepath.Clean(v)
	return nil
}

func setPolicy(c *Config, v string) *Error {
	if strings.TrimSpace(v) == "" {
		return problem(v, "empty; want resources in YAML or JSON, or the key left out")
	}
	c.Inline = append(c.Inline, Inline{Data: []byte(v), At: resource.Position{File: Prefix + "policy"}})
	return nil
}

func setPolicyFiles(c *Config, v string) *Error {
	var paths []string
	if err := setPaths(&paths, v, "absolute paths of files, directories or globs"); err != nil {
		return err
	}
	for _, path := range paths {
		if _, err := filepath.Match(path, ""); err != nil {
			return problem(path, "not a complete glob pattern; want an absolute path of a file, a directory or a glob such as /etc/untracked/*.yaml")
		}
	}
	c.PolicyFiles = paths
	return nil
}

func setPaths(to *[]string, v, want string) *Error {
	list, bad := items(v, want)
	if bad != nil {
		return bad
	}
	paths := make([]string, len(list))
	for i, item := range list {
		if err := setPath(&paths[i], item); err != nil {
			return err
		}
	}
	*to = paths
	return nil
}

func oneOf(v, values string) *Error {
	return problem(v, "not a value of this key; want %s", values)
}

// items splits a comma list. Spaces around an item do not matter; a list or an item that is empty is an
// error, because nobody writes that on purpose.
func items(v, want string) ([]string, *Error) {
	if strings.TrimSpace(v) == "" {
		return nil, problem(v, "empty; want %s, or the key left out", want)
	}
	list := strings.Split(v, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
		if list[i] == "" {
			return nil, problem(v, "item %d is empty, a comma too many; want %s", i+1, want)
		}
	}
	return list, nil
}

func isSpaceOrControl(r rune) bool { return r <= ' ' || r >= 0x7f && r <= 0xa0 }
