// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
)

// Chaining begins with 0.3.0.
var supportedVersions = version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

// Our own error codes: the CNI specification leaves 100 and up to plugins.
const (
	codeDatapath = 100 // a required datapath could not be set up
	codeDrift    = 101 // the node does not match the policy
	codeNode     = 102 // the run directory or the network could not be read
)

func verbs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: cmdAdd, Check: cmdCheck, Del: cmdDel, GC: cmdGC, Status: cmdStatus}
}

// cmdAdd makes the node match the policy and passes the result on.
func cmdAdd(args *skel.CmdArgs) (err error) {
	defer logCall("ADD", args, time.Now(), &err)
	c, err := config.Parse(args.StdinData)
	if err != nil {
		return toCNI(err)
	}
	if c.PrevResult == nil {
		return toCNI(&config.Error{Key: "prevResult", Problem: "missing; untracked must be called as a chained plugin, after the main plugin"})
	}
	n, done := open(c)
	defer done()
	result, err := n.Ensure(context.Background(), c)
	if err != nil && (c.Required || node.IsConfigError(err) || errors.Is(err, node.ErrLocked)) {
		return toCNI(err)
	}
	if err != nil {
		n.Log.Error("the node may be without the policy; the pod starts all the same", "error", err)
		return printResult(c)
	}
	for _, p := range result.Problems {
		if result.Changed || p.Broken {
			n.Log.Warn(p.Message, "problem", p.Code, "remedy", p.Remedy)
		}
	}
	if c.Required && result.Broken() {
		return problemsError(codeDatapath, "the datapath that the config requires could not be set up", result.Problems)
	}
	return printResult(c)
}

// cmdCheck fails if the node drifted from the policy.
func cmdCheck(args *skel.CmdArgs) (err error) {
	defer logCall("CHECK", args, time.Now(), &err)
	c, err := config.Parse(args.StdinData)
	if err != nil {
		return toCNI(err)
	}
	if c.PrevResult == nil {
		return toCNI(&config.Error{Key: "prevResult", Problem: "missing; CHECK needs the result of ADD"})
	}
	n, done := open(c)
	defer done()
	drift, err := n.Check(context.Background(), c)
	if err != nil {
		return toCNI(err)
	}
	if len(drift) > 0 {
		return types.NewError(codeDrift, "the node does not match the policy", strings.Join(drift, "; "))
	}
	return nil
}

// cmdDel has nothing to take back: host interfaces keep their programs, and no map holds anything of a
// container. It succeeds whatever the config is like.
func cmdDel(args *skel.CmdArgs) (err error) {
	logCall("DEL", args, time.Now(), &err)
	return nil
}

// cmdGC succeeds for the same reason, with and without a list of valid attachments.
func cmdGC(args *skel.CmdArgs) (err error) {
	logCall("GC", args, time.Now(), &err)
	return nil
}

// cmdStatus only reads. An error here makes the whole node NotReady, so there is one only if the operator
// asked for it with required.
func cmdStatus(args *skel.CmdArgs) error {
	if !config.Options(args.StdinData).Required {
		return nil
	}
	const errNotAvailable = 50
	c, err := config.Parse(args.StdinData)
	if err == nil {
		n, done := open(c)
		defer done()
		err = n.Ready(c)
	}
	if err != nil {
		return types.NewError(errNotAvailable, "pods cannot be added as the config requires", err.Error())
	}
	return nil
}

// printResult writes the prevResult to stdout: byte for byte where it is of the config's version, as libcni
// sends it, so that nothing a later version or another plugin put there gets lost.
func printResult(c *config.Config) error {
	// The main plugin may have answered in another version than it was asked in; libcni hands that on.
	var own struct {
		CNIVersion string `json:"cniVersion"`
	}
	_ = json.Unmarshal(c.PrevResult, &own)
	prev, err := version.NewResult(cmp.Or(own.CNIVersion, c.CNIVersion), c.PrevResult)
	if err != nil {
		return toCNI(&config.Error{Key: "prevResult", Problem: fmt.Sprintf("not a result of version %s: %v", c.CNIVersion, err)})
	}
	if _, err := types100.NewResultFromResult(prev); err != nil {
		return toCNI(&config.Error{Key: "prevResult", Problem: err.Error()})
	}
	if prev.Version() == c.CNIVersion {
		_, err = os.Stdout.Write(append(bytes.TrimSpace(c.PrevResult), '\n'))
		return err
	}
	return types.PrintResult(prev, c.CNIVersion)
}

// toCNI gives every error of this project its CNI code.
func toCNI(err error) error {
	switch {
	case node.IsConfigError(err):
		return types.NewError(types.ErrInvalidNetworkConfig, "invalid untracked config", err.Error())
	case errors.Is(err, node.ErrLocked):
		return types.NewError(types.ErrTryAgainLater, "busy", err.Error())
	}
	return types.NewError(codeNode, "the node's policy could not be looked at", err.Error())
}

func problemsError(code uint, msg string, problems []node.Problem) error {
	var details []string
	for _, p := range problems {
		details = append(details, p.String())
	}
	return types.NewError(code, msg, strings.Join(details, "; "))
}

func open(c *config.Config) (n *node.Node, done func()) {
	log, done := openLog(c.LogFile, c.LogLevel)
	return &node.Node{Version: pluginVersion, BPFFS: c.BPFFS, RunDir: c.RunDir, Log: log}, done
}

// openLog logs to a file, one write a line so that parallel callers do not mix, or to stderr, which runtimes
// pass on to their own log when the call succeeds.
func openLog(path string, level slog.Level) (log *slog.Logger, done func()) {
	var w io.Writer = os.Stderr
	done = func() {}
	if path != "" {
		// A pipe that nobody reads must not hold a pod up.
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0o640)
		if err == nil {
			w, done = f, func() { f.Close() }
		} else {
			fmt.Fprintf(os.Stderr, "untracked: open log file: %v\n", err)
		}
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})), done
}

// logCall writes the one line a call leaves in the log.
func logCall(verb string, args *skel.CmdArgs, start time.Time, err *error) {
	o := config.Options(args.StdinData)
	level := slog.LevelDebug
	if *err != nil {
		level = slog.LevelError
	}
	if level < o.LogLevel {
		return
	}
	log, done := openLog(o.LogFile, o.LogLevel)
	defer done()
	attrs := []any{"container", args.ContainerID, "netns", args.Netns, "interface", args.IfName, "duration", time.Since(start)}
	if *err != nil {
		attrs = append(attrs, "error", (*err).Error())
	}
	log.Log(context.Background(), level, verb, attrs...)
}
