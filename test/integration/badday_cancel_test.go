// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/untracked-cni/untracked/test/lab"
)

// A runtime that loses patience has libcni kill the plugin in the middle of its call, tells the kubelet, deletes what there
// is of the pod and tries anew. Here the plugin is killed while it waits for the lock, with a policy to change. Nothing of
// the call is left, and the next one does it all.
func TestBadDayRuntimeGivesUp(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy())
	cniAdd(t, chain, pod)
	before := cniRead(t, l)
	check(t, chain.Rewrite(lab.ChainConfig{Annotations: cniPolicy("deny", "192.0.2.0/24")}))
	list, err := libcni.ConfListFromFile(chain.File)
	check(t, err)
	runtime := libcni.NewCNIConfigWithCacheDir([]string{chain.Bin}, filepath.Join(l.Dir, "cache"), &invoke.DefaultExec{
		RawExec: &invoke.RawExec{},
	})
	args := &libcni.RuntimeConf{ContainerID: pod.Name, NetNS: pod.Path, IfName: "eth0"}
	call := func(patience time.Duration, verb func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return lab.In(l.Node, func() error { return verb(ctx) }) // the plugins start on this thread
	}
	add := func(ctx context.Context) error {
		_, err := runtime.AddNetworkList(ctx, list, args)
		return err
	}
	del := func(ctx context.Context) error { return runtime.DelNetworkList(ctx, list, args) }

	release := cniHoldLock(t, l)
	defer release()
	begin := time.Now()
	if err := call(2*time.Second, add); err == nil {
		t.Error("ADD came back without the lock")
	}
	if took := time.Since(begin); took > cniPatience {
		t.Errorf("ADD came back after %v", took)
	}
	check(t, call(cniPatience, del))
	after := cniRead(t, l)
	delete(after.Hooks, "cni0") // the bridge plugin's, which stays
	cniSame(t, "a call that was killed", before, after)

	release()
	check(t, call(cniPatience, add))
	if r := cniRecord(t, l); r.Generation != 2 {
		t.Errorf("generation %d, want 2", r.Generation)
	}
	if err := call(cniPatience, func(ctx context.Context) error { return runtime.CheckNetworkList(ctx, list, args) }); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	check(t, call(cniPatience, del))
	cniHealthy(t, l, chain, pod)
}
