// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"flag"
	"os/exec"
	"testing"
	"time"

	"github.com/untracked-cni/untracked/test/lab"
)

// A longer search: go test ./test/integration -run TestWitness -witness.policies 2000 -witness.seed 7
var (
	witnessPolicies = flag.Int("witness.policies", 40, "random policies to compare with the witness")
	witnessSeed     = flag.Uint64("witness.seed", 1, "where random policies begin")
)

const witnessPackets = 200 // a policy

// witnessLab is a sender with hosts. They have no policy yet.
func witnessLab(t *testing.T, names ...string) (l *lab.Lab, hosts []*witnessHost) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs the nft command")
	}
	l = lab.New(t, lab.Config{})
	sender := must(l.AddNS("sender"))(t)
	check(t, lab.SetSysctl(sender, "net/ipv6/conf/default/disable_ipv6", "1")) // a host that says nothing
	for _, name := range names {
		h := must(witnessAddHost(l, sender, name))(t)
		t.Cleanup(func() { check(t, h.Close()) })
		hosts = append(hosts, h)
	}
	return l, hosts
}

// witnessDiffer returns the packets that fared differently on the witness and on a host.
func witnessDiffer(c *witnessCase, packets []witnessPacket, want []witnessSeen, host *witnessHost, got []witnessSeen) (found []*witnessMismatch) {
	for i := range packets {
		differ := want[i] != got[i]
		if packets[i].foreign() {
			differ = want[i].Passed != got[i].Passed
		}
		if differ {
			found = append(found, &witnessMismatch{c, packets[i], host, want[i], got[i]})
		}
	}
	return found
}

// The same policies, compiled to nftables by hand as Calico documents them, meet the same packets with the same
// result: what arrives is the same, what connection tracking says of it is, and what is in its table.
func TestWitness(t *testing.T) {
	l, hosts := witnessLab(t, "witness", "native", "tc")
	witness, ours := hosts[0], hosts[1:]
	witness.witness(nil)
	for _, h := range ours {
		check(t, h.untracked(l, h.name))
		for _, port := range witnessPorts() {
			check(t, h.listen(port))
		}
	}
	begin, policies, compared, verdicts := time.Now(), 0, 0, map[string]int{}
	for ; policies < *witnessPolicies && !t.Failed(); policies++ {
		seed := *witnessSeed + uint64(policies)
		g := newWitnessRandom(seed)
		c := g.policy()
		packets := g.packets(c, witnessPackets)
		seen, err := witnessTry(hosts, c, packets)
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, c)
		}
		for _, s := range seen[0] {
			verdicts[s.String()]++
		}
		for i, h := range ours {
			compared += len(packets)
			if found := witnessDiffer(c, packets, seen[0], h, seen[1+i]); len(found) > 0 {
				t.Errorf("seed %d: %d of %d packets differ. The smallest policy found that shows it:\n%s",
					seed, len(found), len(packets), found[0].shrink(witness))
			}
		}
	}
	t.Logf("%d policies from seed %d on, %d packets each, %d verdicts compared in %v; on the witness: %v",
		policies, *witnessSeed, witnessPackets, compared, time.Since(begin).Round(time.Millisecond), verdicts)
	for _, v := range []string{"dropped", "untracked", "tracked, with an entry"} {
		if !t.Failed() && policies >= 40 && verdicts[v]*10 < compared/len(ours) {
			t.Errorf("only %d packets were %s: the random policies are too dull", verdicts[v], v)
		}
	}
	for _, h := range ours {
		hooks := must(lab.ReadHooks(h.ns, witnessInterface))(t)
		if hooks.Generic || (hooks.XDP != 0) != (h.name == "native") || len(hooks.TCXIngress) != 1 {
			t.Errorf("hooks %+v do not fit mode %s", hooks, h.name)
		}
	}
}
