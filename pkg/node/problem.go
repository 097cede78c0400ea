// SPDX-License-Identifier: Apache-2.0

package node

import "fmt"

// Problem is something an operator should know, with what to do about it.
type Problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
	// Broken says that some interface is without the policy, or that the node is not as the record has it; the
	// other problems are advice. A broken node is tried again at each call.
	Broken bool `json:"broken,omitempty"`
}

// Status is the problem as listed.
func (p Problem) Status() ProblemStatus { return ProblemStatus{p.Code, p.Message, p.Remedy} }

func (p Problem) String() string { return fmt.Sprintf("%s (%s)", p.Message, p.Remedy) }

// Problem codes, stable for scripts.
const (
	ProblemNotApplied     = "not-applied"
	ProblemBadPolicy      = "bad-policy"
	ProblemDrift          = "drift"
	ProblemBPFFS          = "bpffs-missing"
	ProblemNoInterface    = "no-interface"
	ProblemForeignXDP     = "foreign-xdp"
	ProblemXDPRefused     = "xdp-refused"
	ProblemNoMetadata     = "no-metadata"
	ProblemNotAttached    = "not-attached"
	ProblemTable          = "table"
	ProblemConntrack      = "conntrack"
	ProblemConflict       = "conflicting-policies"
	ProblemFailsafePort   = "failsafe-port"
	ProblemEmptyPolicy    = "empty-policy"
	ProblemShadowed       = "hep-shadowed"
	ProblemNoHostEndpoint = "no-host-endpoint"
	ProblemNoLog          = "no-log"
	ProblemBridge         = "bridge"
	ProblemUpper          = "upper-interface"
	ProblemPodsTable      = "pods-table"
	ProblemPodsUnheard    = "pods-unheard"
	ProblemTranslated     = "translated"
	ProblemConntrackFull  = "conntrack-nearly-full"
	ProblemRunDir         = "run-dir"
)

// ProblemCodes are all of them, for whoever wants to say which there are not.
var ProblemCodes = []string{
	ProblemNotApplied, ProblemBadPolicy, ProblemDrift, ProblemBPFFS, ProblemNoInterface, ProblemForeignXDP, ProblemXDPRefused,
	ProblemNoMetadata, ProblemNotAttached, ProblemTable, ProblemConntrack, ProblemConflict, ProblemFailsafePort,
	ProblemEmptyPolicy, ProblemShadowed, ProblemNoHostEndpoint, ProblemNoLog, ProblemBridge, ProblemUpper, ProblemConntrackFull,
	ProblemPodsTable, ProblemPodsUnheard, ProblemTranslated, ProblemRunDir,
}

// anyBroken reports whether something is not as the policy wants it.
func anyBroken(problems []Problem) bool {
	for _, p := range problems {
		if p.Broken {
			return true
		}
	}
	return false
}
