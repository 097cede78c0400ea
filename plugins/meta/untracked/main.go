// SPDX-License-Identifier: Apache-2.0

// untracked is a chained CNI plugin that takes chosen traffic of the node out of connection tracking, and the
// operator's tool for it: see README.md.
//
// A runtime calls it with CNI_COMMAND in the environment, after the main plugin; the prevResult passes through
// as it came. Known limit: the node has one policy, so where the entries of two networks differ, the last
// caller's is in force.
package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/untracked-cni/untracked/pkg/cli"
)

// pluginVersion is stamped by the Makefile.
var pluginVersion = "dev"

func main() {
	collectLess()
	verb := os.Getenv("CNI_COMMAND")
	if verb == "" {
		os.Exit(cli.Run(pluginVersion, os.Args[1:], os.Stdout, os.Stderr))
	}
	err := skel.PluginMainFuncsWithError(verbs(), supportedVersions, "untracked "+pluginVersion)
	if err == nil {
		return
	}
	if verb == "DEL" {
		// Whatever is wrong with the call or its config: an error would keep the pod from going away, and the
		// plugins before us from releasing its address.
		fmt.Fprintf(os.Stderr, "untracked: DEL: %s\n", err.Error())
		return
	}
	if err := err.Print(); err != nil {
		fmt.Fprintf(os.Stderr, "untracked: write error to stdout: %v\n", err)
	}
	os.Exit(1)
}

// collectLess trades memory for time: a process that lives for a moment need not collect what it leaves behind. The limit
// is for those that have much to keep, or that live longer: near it, garbage is collected as usual.
func collectLess() {
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(128 << 20)
}
