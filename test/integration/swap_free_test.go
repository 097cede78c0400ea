// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// swapBusy is for how long no kernel thread may be busy to free a generation.
const swapBusy = 50 * time.Millisecond

// swapKernelThreads reads the CPU time of each kernel thread.
func swapKernelThreads() (map[string]time.Duration, error) {
	const (
		kernelThread    = 0x00200000 // PF_KTHREAD of linux/sched.h
		ticksPerSecond  = 100        // USER_HZ, whatever the kernel's own tick is
		flags           = 6          // places in /proc/PID/stat behind the name
		userTime, kTime = 11, 12
	)
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	out := map[string]time.Duration{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if n, err := strconv.Atoi(fields[flags]); err != nil || n&kernelThread == 0 {
			continue
		}
		ticks := 0
		for _, place := range []int{userTime, kTime} {
			n, err := strconv.Atoi(fields[place])
			if err != nil {
				return nil, err
			}
			ticks += n
		}
		out[path] = time.Duration(ticks) * time.Second / ticksPerSecond
	}
	return out, nil
}

// swapBusiest is how long the busiest kernel thread ran while fn did, and a little longer.
func swapBusiest(t testing.TB, fn func()) time.Duration {
	t.Helper()
	before := must(swapKernelThreads())(t)
	fn()
	time.Sleep(100 * time.Millisecond)
	busiest := time.Duration(0)
	for path, now := range must(swapKernelThreads())(t) {
		busiest = max(busiest, now-before[path])
	}
	return busiest
}

// swapMillion is a rule that denies a million networks, by the given seed.
func swapMillion(seed uint64) []policy.Rule {
	random := rand.New(rand.NewPCG(seed, 1))
	var b netset.Builder
	for range 1_000_000 {
		addr := netset.To4(random.Uint32())
		b.Add(netip.PrefixFrom(addr, 24+random.IntN(9)).Masked())
	}
	return []policy.Rule{{
		Policy: "million", Action: policy.Deny, Source: policy.Entity{Nets: b.Build(), NetsName: "million"},
	}}
}

// A generation of a million networks goes away without any kernel thread being busy with it, and all of it goes.
func TestSwapFreesWithoutStall(t *testing.T) {
	l := lab.New(t, lab.Config{})
	n := &trafficNode{TB: t, lab: l, u: l.Uplinks[0]}
	pins := datapath.PinsAt(l.BPFFS)
	check(t, pins.Create())
	lists := [][]policy.Rule{swapMillion(1), swapMillion(2)}
	var images []*compiler.Image
	for _, list := range lists {
		images = append(images, must(compiler.Compile(list))(t))
	}
	index := n.u.NodeIndex
	install := func(gen uint64) {
		t.Helper()
		g := pins.NewGeneration(gen, swapMark)
		tables := must(g.Tables(lists[gen%2], images[gen%2]))(t)
		check(t, lab.In(l.Node, func() error {
			_, _, err := g.Install(datapath.Target{Name: "eth0", Index: index}, []datapath.Mode{datapath.Classifier}, tables)
			return errors.Join(err, g.Close(), pins.Carry(index))
		}))
	}
	install(1)
	const frees = 5
	least := time.Hour
	for gen := uint64(2); gen < 2+frees; gen++ {
		old := n.objects()
		install(gen)
		kept := n.objects()
		runtime.GC() // this process still maps the old program's constants, as the command does until it ends
		idle := swapBusiest(t, func() {})
		busy := swapBusiest(t, func() {
			check(t, lab.In(l.Node, func() error { return pins.Prune(map[int]uint64{index: gen}, false) }))
			trafficUntil(t, "the old generation is freed", func() bool {
				left := old.alive().without(kept)
				return left.none()
			})
		})
		t.Logf("generation %d of %d MiB: the busiest kernel thread ran for %v, with nothing to do %v", gen-1, len(images[0].Bytes)>>20, busy, idle)
		least = min(least, max(0, busy-idle))
	}
	if least > swapBusy {
		t.Errorf("to free a generation keeps a kernel thread busy for %v at least, want %v at most", least, swapBusy)
	}
}

// without leaves out what is also elsewhere.
func (o trafficObjects) without(other trafficObjects) trafficObjects {
	there := map[ebpf.MapID]bool{}
	for _, id := range other.maps {
		there[id] = true
	}
	var maps []ebpf.MapID
	for _, id := range o.maps {
		if !there[id] {
			maps = append(maps, id)
		}
	}
	o.maps, o.links = maps, nil // links are updated in place
	return o
}

// What a kernel thread is kept busy with is seen: an LPM trie of the same networks is an example.
func TestSwapStallIsSeen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	prefixes := swapMillion(1)[0].Source.Nets.Prefixes()
	trie := must(ebpf.NewMap(&ebpf.MapSpec{
		Name: "swap_trie", Type: ebpf.LPMTrie, KeySize: 8, ValueSize: 4, MaxEntries: uint32(len(prefixes)), Flags: unix.BPF_F_NO_PREALLOC,
	}))(t)
	const batch = 100_000
	for len(prefixes) > 0 {
		some := prefixes[:min(batch, len(prefixes))]
		prefixes = prefixes[len(some):]
		keys, values := make([][8]byte, len(some)), make([]uint32, len(some))
		for i, p := range some {
			binary.NativeEndian.PutUint32(keys[i][:], uint32(p.Bits()))
			copy(keys[i][4:], p.Addr().AsSlice())
		}
		must(trie.BatchUpdate(keys, values, nil))(t)
	}
	id, _ := must(trie.Info())(t).ID()
	busy := swapBusiest(t, func() {
		check(t, trie.Close())
		trafficUntil(t, "the trie is freed", func() bool {
			m, err := ebpf.NewMapFromID(id)
			if err == nil {
				m.Close()
			}
			return err != nil
		})
		time.Sleep(2 * time.Second) // its number goes first
	})
	if busy <= swapBusy {
		t.Errorf("to free an LPM trie of a million networks kept no kernel thread busy for more than %v: the measurement shows nothing", busy)
	}
	t.Logf("an LPM trie of the same networks: %v", busy)
}
