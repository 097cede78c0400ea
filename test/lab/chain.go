// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// ChainConfig says what conflist to write: bridge with host-local, then untracked.
type ChainConfig struct {
	// CNIVersion of the list. "" means 1.1.0.
	CNIVersion string
	// Annotations of the untracked entry, by their keys without "untracked.cni/". `bpffs` and `run-dir`
	// are the lab's own unless given here. nil leaves the entry out: the chain as it was before untracked.
	Annotations map[string]string
	// Entry holds further keys of the untracked entry, such as capabilities.
	Entry map[string]any
	// CapArgs and Args go to the plugins as runtimeConfig and CNI_ARGS.
	CapArgs map[string]any
	Args    string
}

// AnnotationPrefix begins every key of ours.
const AnnotationPrefix = "untracked.cni/"

// Chain is a network configuration list on the node, and the runtime that calls it: cnitool.
type Chain struct {
	Network string // its name, unique on this machine
	// ConfDir is NETCONFPATH, File the conflist in it, Bin is CNI_PATH.
	ConfDir, File, Bin string

	lab    *Lab
	config ChainConfig
}

var chains atomic.Uint64

// Chain builds the binaries and writes the conflist.
func (l *Lab) Chain(c ChainConfig) (*Chain, error) {
	binaries := []string{"cnitool", "bridge", "host-local"}
	if c.Annotations != nil {
		binaries = append(binaries, "untracked")
	}
	bin, err := Build(binaries...)
	if err != nil {
		return nil, err
	}
	n := chains.Add(1)
	chain := &Chain{
		// Removing a lab finds cnitool's cache files by this name.
		Network: fmt.Sprintf("%s-net%d", l.Name, n),
		ConfDir: filepath.Join(l.Dir, fmt.Sprintf("net%d.d", n)),
		Bin:     bin,
		lab:     l,
	}
	chain.File = filepath.Join(chain.ConfDir, "10-net.conflist")
	if err := os.Mkdir(chain.ConfDir, 0o700); err != nil {
		return nil, err
	}
	return chain, chain.Rewrite(c)
}

// Rewrite replaces the conflist, as an engineer who edits it would.
func (c *Chain) Rewrite(config ChainConfig) error {
	if config.Annotations != nil {
		if _, err := Build("untracked"); err != nil {
			return err
		}
	}
	c.config = config
	return c.WriteFile(c.conflist())
}

// WriteFile replaces the conflist by what is given, however broken.
func (c *Chain) WriteFile(conflist []byte) error {
	return os.WriteFile(c.File, conflist, 0o600)
}

// annotations are the keys and values of the untracked entry, in full.
func (c *Chain) annotations() map[string]string {
	full := map[string]string{
		AnnotationPrefix + "bpffs":   c.lab.BPFFS,
		AnnotationPrefix + "run-dir": c.lab.RunDir,
	}
	for key, value := range c.config.Annotations {
		full[AnnotationPrefix+key] = value
	}
	return full
}

func (c *Chain) version() string {
	if c.config.CNIVersion == "" {
		return "1.1.0"
	}
	return c.config.CNIVersion
}

// entry is the plugin's part of the list.
func (c *Chain) entry() map[string]any {
	entry := map[string]any{"type": "untracked", "annotations": c.annotations()}
	maps.Copy(entry, c.config.Entry)
	return entry
}

// conflist is laid out by hand where people look least.
func (c *Chain) conflist() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{
  "cniVersion": %q,
  "name": %q,
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true,
      "ipam": {
        "type": "host-local", "dataDir": %q,
        "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    }`, c.version(), c.Network, filepath.Join(c.lab.Dir, "ipam"))
	if c.config.Annotations != nil {
		b.WriteString(",\n    ")
		var entry any = c.entry()
		if c.config.Entry == nil {
			entry = struct { // the type first
				Type        string            `json:"type"`
				Annotations map[string]string `json:"annotations"`
			}{"untracked", c.annotations()}
		}
		text, err := json.MarshalIndent(entry, "    ", "  ")
		if err != nil {
			panic(err) // only Entry can hold what JSON cannot
		}
		b.Write(text)
	}
	b.WriteString("\n  ]\n}\n")
	return b.Bytes()
}

// Outcome is one run of a program.
type Outcome struct {
	Stdout, Stderr []byte
	ExitCode       int
	Elapsed        time.Duration
}

// CNIError is what a plugin said when it failed.
type CNIError struct {
	// Code is 0 where only the text is known: cnitool does not print the code.
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details"`
	Verb    string `json:"-"`
}

func (e *CNIError) Error() string {
	s := fmt.Sprintf("cni %s: %s", strings.ToLower(e.Verb), e.Msg)
	if e.Details != "" {
		s += "; " + e.Details
	}
	if e.Code != 0 {
		s += fmt.Sprintf(" (code %d)", e.Code)
	}
	return s
}

// Add, Check, Del, GC and Status run cnitool on the node. An exit status other than 0 is a *CNIError.
func (c *Chain) Add(pod *NS) (*Outcome, error) { return c.cnitool("add", pod) }

// Check runs `cnitool check`.
func (c *Chain) Check(pod *NS) (*Outcome, error) { return c.cnitool("check", pod) }

// Del runs `cnitool del`.
func (c *Chain) Del(pod *NS) (*Outcome, error) { return c.cnitool("del", pod) }

// GC runs `cnitool gc`, which deletes every attachment of the network.
func (c *Chain) GC() (*Outcome, error) { return c.cnitool("gc", nil) }

// Status runs `cnitool status`.
func (c *Chain) Status() (*Outcome, error) { return c.cnitool("status", nil) }

// Environment and CommandLine are what Add and the others run, for people to read.
func (c *Chain) Environment() string {
	return fmt.Sprintf("CNI_PATH=%s NETCONFPATH=%s", c.Bin, c.ConfDir)
}

// CommandLine is the line for one verb.
func (c *Chain) CommandLine(verb string, pod *NS) string {
	return fmt.Sprintf("cnitool %s %s %s", verb, c.Network, netnsOf(pod))
}

// netnsOf is the argument that gc and status want although they do not use it.
func netnsOf(pod *NS) string {
	if pod == nil {
		return "/none"
	}
	return pod.Path
}

func (c *Chain) cnitool(verb string, pod *NS) (*Outcome, error) {
	cmd := Command(c.lab.Node, filepath.Join(c.Bin, "cnitool"), verb, c.Network, netnsOf(pod))
	cmd.Env = append(os.Environ(), "CNI_PATH="+c.Bin, "NETCONFPATH="+c.ConfDir, "CNI_IFNAME=eth0", "CNI_ARGS="+c.config.Args)
	if c.config.CapArgs != nil {
		args, err := json.Marshal(c.config.CapArgs)
		if err != nil {
			return nil, err
		}
		cmd.Env = append(cmd.Env, "CAP_ARGS="+string(args))
	}
	out, err := cmd.outcome()
	if err != nil {
		return out, fmt.Errorf("cnitool %s %s: %w", verb, c.Network, err)
	}
	if out.ExitCode == 0 {
		return out, nil
	}
	// cnitool prints the error twice, with its usage between; the plugins' own stderr comes first.
	lines := strings.Split(strings.TrimSpace(string(out.Stderr)), "\n")
	msg, details, _ := strings.Cut(lines[len(lines)-1], "; ")
	return out, &CNIError{Verb: verb, Msg: msg, Details: details}
}

// Plugin calls the untracked plugin itself as a runtime would, with a verb in capitals. stdin is what Stdin
// returns unless a test wants something else. The error is the plugin's own, code and all.
func (c *Chain) Plugin(verb string, pod *NS, stdin []byte) (*Outcome, error) {
	cmd := Command(c.lab.Node, filepath.Join(c.Bin, "untracked"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_PATH="+c.Bin, "CNI_IFNAME=eth0", "CNI_ARGS="+c.config.Args)
	if pod != nil {
		cmd.Env = append(cmd.Env, "CNI_CONTAINERID="+pod.Name, "CNI_NETNS="+pod.Path)
	}
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.outcome()
	if err != nil {
		return out, fmt.Errorf("untracked %s: %w", verb, err)
	}
	if out.ExitCode == 0 {
		return out, nil
	}
	cniErr := &CNIError{Verb: verb}
	if err := json.Unmarshal(out.Stdout, cniErr); err != nil {
		return out, fmt.Errorf("untracked %s: exit status %d without a CNI error: stdout %q, stderr %q", verb, out.ExitCode, out.Stdout, out.Stderr)
	}
	return out, cniErr
}

// Stdin is what a runtime would write to the untracked plugin: its entry with the list's name and version,
// and prevResult if there is one.
func (c *Chain) Stdin(prevResult []byte) []byte {
	conf := c.entry()
	conf["name"], conf["cniVersion"] = c.Network, c.version()
	if prevResult != nil {
		conf["prevResult"] = json.RawMessage(prevResult)
	}
	text, err := json.Marshal(conf)
	if err != nil {
		panic(err) // only Entry and prevResult can hold what JSON cannot
	}
	return text
}

// onNode are the commands that must be told where; the others read it in a conflist, or do not need it.
var onNode = []string{"status", "rules", "pods", "explain", "monitor", "metrics", "remove"}

// Untracked runs the operator's command on the node, against the lab's own bpffs and run-dir.
func (l *Lab) Untracked(args ...string) (*Outcome, error) {
	bin, err := Build("untracked")
	if err != nil {
		return nil, err
	}
	if len(args) > 0 && slices.Contains(onNode, args[0]) {
		args = append(args, "--bpffs", l.BPFFS, "--run-dir", l.RunDir)
	}
	out, err := Command(l.Node, filepath.Join(bin, "untracked"), args...).outcome()
	if err != nil {
		return out, fmt.Errorf("untracked %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// outcome runs the process. Only a process that could not run is an error; an exit status is an outcome.
func (c *Cmd) outcome() (*Outcome, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	begin := time.Now()
	err := c.Run()
	out := &Outcome{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), ExitCode: c.ProcessState.ExitCode(), Elapsed: time.Since(begin)}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		err = nil
	}
	return out, err
}
