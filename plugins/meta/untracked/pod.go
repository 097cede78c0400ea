// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/nat"
	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/pkg/pods"
)

// pod is the one that a call is about, and what it asks for. It is nil where no network's pods are heard.
type pod struct {
	pods.Record
	asks config.PodRequest
	// mappings are its hostPorts, where the runtime tells them.
	mappings []nat.PortMapping
}

// podOf reads what the pod asks for. An error is about its annotations.
func podOf(n *node.Node, c *config.Config, args *skel.CmdArgs) (*pod, error) {
	namespace, name := podName(args.Args)
	p := &pod{Record: pods.Record{ID: attachment(args), Network: c.Network, Namespace: namespace, Pod: name, Netns: args.Netns}}
	if c.Pods == config.PodsIgnore {
		if len(c.PodAnnotations) > 0 {
			n.Log.Info("the annotations of a pod are ignored; to heed them, set "+config.Prefix+"pods to allow in the conf list's entry", "pod", p.Name())
		}
		if !pods.At(c.RunDir).Exist() {
			return nil, nil
		}
		// Another network hears its pods, and one of those that are gone may have had the address.
	}
	var err error
	if c.Pods != config.PodsIgnore {
		p.asks, err = c.PodRequest(p.Name())
	}
	if err != nil {
		if c.Pods == config.PodsAllow {
			return nil, err
		}
		n.Log.Warn("the annotations of a pod are ignored", "error", err)
	}
	if p.Addresses, err = ownAddresses(c, args.Netns); err != nil {
		return nil, err
	}
	p.Sandbox = pods.Sandbox(args.Netns)
	p.mappings = portMappings(args.StdinData)
	return p, nil
}

// add puts in force what the pod asks for. That it cannot be is an error only where it is required.
func (p *pod) add(n *node.Node, c *config.Config) error {
	if p == nil {
		return nil
	}
	err := n.AddPod(context.Background(), c, p.Record, p.asks)
	switch {
	case err == nil:
		n.WarnTranslated(context.Background(), c, p.ID, p.mappings)
	case errors.Is(err, node.ErrLocked):
		return toCNI(err)
	case c.Required:
		return types.NewError(codeDatapath, "the ports of pod "+p.Name()+" could not be taken out of connection tracking", err.Error())
	default:
		n.Log.Error("the ports of a pod stay tracked; it starts all the same", "pod", p.Name(), "error", err)
	}
	return nil
}

// check lists what the pod asks for and has not.
func (p *pod) check(n *node.Node, c *config.Config) ([]string, error) {
	if p == nil {
		return nil, nil
	}
	return n.CheckPod(c, p.Record, p.asks)
}

func attachment(args *skel.CmdArgs) pods.ID {
	return pods.ID{Container: args.ContainerID, Interface: args.IfName}
}

// podName finds the pod's name in CNI_ARGS, as kubelet's runtimes give it. Other keys are not ours to judge.
func podName(args string) (namespace, name string) {
	for _, pair := range strings.Split(args, ";") {
		switch key, value, _ := strings.Cut(pair, "="); key {
		case "K8S_POD_NAMESPACE":
			namespace = value
		case "K8S_POD_NAME":
			name = value
		}
	}
	return namespace, name
}

// ownAddresses are those of the result that are the pod's: on an interface inside of its sandbox, or on none that is named.
func ownAddresses(c *config.Config, netns string) ([]netip.Addr, error) {
	_, result, err := prevResult(c)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, ip := range result.IPs {
		if i := ip.Interface; i != nil && (*i < 0 || *i >= len(result.Interfaces) || !sameFile(result.Interfaces[*i].Sandbox, netns)) {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, a.Unmap())
		}
	}
	return out, nil
}

// portMappings are the pod's hostPorts. What is wrong with them is for the plugin that makes them to say.
func portMappings(stdin []byte) []nat.PortMapping {
	var conf struct {
		RuntimeConfig json.RawMessage `json:"runtimeConfig"`
	}
	_ = json.Unmarshal(stdin, &conf)
	mappings, _ := nat.PortMappings(conf.RuntimeConfig)
	return mappings
}

// sameFile also knows a network namespace by another of its paths.
func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// validAttachments reads the list of those that exist. It is nil where the key is absent, and empty where it is null, as
// some runtimes write an empty list.
func validAttachments(stdin []byte) (network string, valid []pods.ID, err error) {
	const key = "cni.dev/valid-attachments"
	var conf struct {
		Name string `json:"name"`
	}
	var all map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(stdin, &conf), json.Unmarshal(stdin, &all)); err != nil {
		return "", nil, types.NewError(types.ErrDecodingFailure, "the config cannot be read", err.Error())
	}
	text, given := all[key]
	if !given {
		return "", nil, nil
	}
	var attachments []types.GCAttachment
	if err := json.Unmarshal(text, &attachments); err != nil {
		return "", nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("%s cannot be read", key), err.Error())
	}
	valid = []pods.ID{}
	for _, a := range attachments {
		valid = append(valid, pods.ID{Container: a.ContainerID, Interface: a.IfName})
	}
	return conf.Name, valid, nil
}
