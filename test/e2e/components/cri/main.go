// SPDX-License-Identifier: Apache-2.0

// cri asks containerd by CRI what kubelet asks, and prints JSON.
//
//	cri status          is the network ready
//	cri pods            the sandboxes
//	cri run NAME        start a sandbox, timed
//	cri remove ID       stop and remove one
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const socket = "unix:///run/containerd/containerd.sock"

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	answer, err := run(ctx, os.Args[1:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(answer)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (any, error) {
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client := cri.NewRuntimeServiceClient(conn)
	switch {
	case len(args) == 1 && args[0] == "status":
		return status(ctx, client)
	case len(args) == 1 && args[0] == "pods":
		return pods(ctx, client)
	case len(args) == 2 && args[0] == "run":
		return start(ctx, client, args[1])
	case len(args) == 2 && args[0] == "remove":
		return struct{}{}, remove(ctx, client, args[1])
	}
	return nil, fmt.Errorf("unknown arguments %q: want status, pods, run NAME or remove ID", args)
}

type runtimeStatus struct {
	NetworkReady   bool   `json:"networkReady"`
	NetworkMessage string `json:"networkMessage"`
	// Chain is the CNI configuration in use, as the runtime describes it.
	Chain string `json:"chain"`
}

func status(ctx context.Context, client cri.RuntimeServiceClient) (*runtimeStatus, error) {
	got, err := client.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return nil, err
	}
	s := &runtimeStatus{Chain: got.Info["cniconfig"]}
	for _, c := range got.Status.Conditions {
		if c.Type == cri.NetworkReady {
			s.NetworkReady, s.NetworkMessage = c.Status, c.Message
		}
	}
	return s, nil
}

type sandbox struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
	IP    string `json:"ip"`
	PID   int    `json:"pid"`
	// NetNS is the path of its network namespace, empty for the host's.
	NetNS string `json:"netns"`
}

func pods(ctx context.Context, client cri.RuntimeServiceClient) ([]sandbox, error) {
	list, err := client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	all := []sandbox{}
	for _, item := range list.Items {
		got, err := client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: item.Id, Verbose: true})
		if err != nil {
			continue // removed since
		}
		// What containerd tells only to the curious.
		var info struct {
			PID         int `json:"pid"`
			RuntimeSpec struct {
				Linux struct {
					Namespaces []struct{ Type, Path string } `json:"namespaces"`
				} `json:"linux"`
			} `json:"runtimeSpec"`
		}
		json.Unmarshal([]byte(got.Info["info"]), &info)
		s := sandbox{ID: item.Id, Name: item.Metadata.Name, Ready: item.State == cri.PodSandboxState_SANDBOX_READY, PID: info.PID}
		for _, ns := range info.RuntimeSpec.Linux.Namespaces {
			if ns.Type == "network" {
				s.NetNS = ns.Path
			}
		}
		if got.Status.Network != nil {
			s.IP = got.Status.Network.Ip
		}
		all = append(all, s)
	}
	return all, nil
}

type started struct {
	ID      string  `json:"id"`
	Seconds float64 `json:"seconds"`
}

func start(ctx context.Context, client cri.RuntimeServiceClient, name string) (*started, error) {
	// The connection is part of no measurement.
	if _, err := client.Version(ctx, &cri.VersionRequest{}); err != nil {
		return nil, err
	}
	begin := time.Now()
	got, err := client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		Linux:    &cri.LinuxPodSandboxConfig{},
	}})
	if err != nil {
		return nil, err
	}
	return &started{ID: got.PodSandboxId, Seconds: time.Since(begin).Seconds()}, nil
}

func remove(ctx context.Context, client cri.RuntimeServiceClient, id string) error {
	if _, err := client.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	_, err := client.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}
