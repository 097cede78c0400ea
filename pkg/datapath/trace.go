// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// The codes of bpf/verdict.h.
var (
	verdictCodes = []policy.Verdict{policy.Tracked, policy.Untracked, policy.Denied}
	reasonCodes  = []policy.Reason{
		policy.ByNoMatch, policy.ByRule, policy.ByFailsafe, policy.ByMalformed, policy.ByFragment, policy.ByNotIP,
	}
)

// DecodeTrace reads what a program loaded with ProgramOptions.Trace returns.
func DecodeTrace(ret uint32) (policy.Decision, error) {
	d, err := decodeDecision(ret&7, ret>>4&15, int(ret>>8)-1)
	d.Logged = ret&8 != 0
	return d, err
}

func decodeDecision(verdict, reason uint32, rule int) (policy.Decision, error) {
	if int(verdict) >= len(verdictCodes) || int(reason) >= len(reasonCodes) {
		return policy.Decision{}, fmt.Errorf("verdict %d by %d, which is no decision", verdict, reason)
	}
	return policy.Decision{Verdict: verdictCodes[verdict], By: reasonCodes[reason], Rule: rule}, nil
}

// Decide runs a traced program on one frame of at least 14 bytes (BPF_PROG_TEST_RUN) and returns its decision.
func Decide(p *ebpf.Program, frame []byte) (policy.Decision, error) {
	ret, err := p.Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		return policy.Decision{}, fmt.Errorf("run the program on a frame of %d bytes: %w", len(frame), err)
	}
	return DecodeTrace(ret)
}
