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
	"github.com/untracked-cni/untracked/pkg/pods"
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
	pod, err := podOf(n, c, args)
	if err != nil {
		return toCNI(err)
	}
	if err := ensure(n, c); err != nil {
		return err
	}
	if err := pod.add(n, c); err != nil {
		return err
	}
	return printResult(c)
}

// ensure puts the node's policy in force. That it cannot be is an error only where it is required.
func ensure(n *node.Node, c *config.Config) error {
	result, err := n.Ensure(context.Background(), c)
	if err != nil && (c.Required || node.IsConfigError(err) || errors.Is(err, node.ErrLocked)) {
		return toCNI(err)
	}
	if err != nil {
		n.Log.Error("the node may be without the policy; the pod starts all the same", "error", err)
		return nil
	}
	for _, p := range result.Problems {
		if result.Changed || p.Broken {
			n.Log.Warn(p.Message, "problem", p.Code, "remedy", p.Remedy)
		}
	}
	if c.Required && result.Broken() {
		return problemsError(codeDatapath, "the datapath that the config requires could not be set up", result.Problems)
	}
	return nil
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
	pod, err := podOf(n, c, args)
	if err != nil {
		return toCNI(err)
	}
	drift, err := n.Check(context.Background(), c)
	if err == nil {
		var missing []string
		missing, err = pod.check(n, c)
		drift = append(drift, missing...)
	}
	if err != nil {
		return toCNI(err)
	}
	if len(drift) > 0 {
		return types.NewError(codeDrift, "the node does not match the policy", strings.Join(drift, "; "))
	}
	return nil
}

// cmdDel takes off what the pod asked for; host interfaces keep their programs. It succeeds whatever the config is like,
// and whatever goes wrong: the next ADD finds out that the pod has vanished.
func cmdDel(args *skel.CmdArgs) (err error) {
	start := time.Now()
	var failed error
	if o := config.Options(args.StdinData); pods.At(o.RunDir).Has(attachment(args)) {
		failed = onRecords(o, func(n *node.Node) error { return n.RemovePod(context.Background(), attachment(args)) })
	}
	logCall("DEL", args, start, &failed)
	return nil
}

// cmdGC takes off the pods of this network that are not among the valid attachments. Where there is no list of those,
// nothing is known.
func cmdGC(args *skel.CmdArgs) (err error) {
	defer logCall("GC", args, time.Now(), &err)
	network, valid, err := validAttachments(args.StdinData)
	if err != nil || valid == nil {
		return err
	}
	err = onRecords(config.Options(args.StdinData), func(n *node.Node) error {
		return n.CollectPods(context.Background(), network, valid)
	})
	if err != nil {
		return toCNI(err)
	}
	return nil
}

// onRecords works on the records of pods, for which a config need not be valid.
func onRecords(o config.Locations, fn func(*node.Node) error) error {
	log, done := openLog(o.LogFile, o.LogLevel)
	defer done()
	return fn(&node.Node{Version: pluginVersion, BPFFS: o.BPFFS, RunDir: o.RunDir, Log: log})
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
	prev, _, err := prevResult(c)
	if err != nil {
		return toCNI(err)
	}
	if prev.Version() == c.CNIVersion {
		_, err = os.Stdout.Write(append(bytes.TrimSpace(c.PrevResult), '\n'))
		return err
	}
	return types.PrintResult(prev, c.CNIVersion)
}

// prevResult reads it in the version it is written in: the main plugin may have answered in another one than it was asked
// in, and libcni hands that on. The second result is the same in the latest version.
func prevResult(c *config.Config) (types.Result, *types100.Result, error) {
	var own struct {
		CNIVersion string `json:"cniVersion"`
	}
	_ = json.Unmarshal(c.PrevResult, &own)
	prev, err := version.NewResult(cmp.Or(own.CNIVersion, c.CNIVersion), c.PrevResult)
	if err != nil {
		return nil, nil, &config.Error{Key: "prevResult", Problem: fmt.Sprintf("not a result of version %s: %v", c.CNIVersion, err)}
	}
	latest, err := types100.NewResultFromResult(prev)
	if err != nil {
		return nil, nil, &config.Error{Key: "prevResult", Problem: err.Error()}
	}
	return prev, latest, nil
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
