// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// LogGroup is the nflog group that Log rules report to. Without a reader of the group a report costs the kernel
// one lookup, and nothing ever gets into its own log. The number is far from those in common use: ulogd begins at 0,
// Calico takes 1 and 2, kube-router 100.
const LogGroup uint16 = 30062

// LogBytes is how much of a packet, from its IP header on, a report holds at most: enough for the headers of an
// ICMP error and of the packet that it quotes.
const LogBytes = 256

// LogRate bounds the reports of each nftables rule, by the second and in one burst. The counter counts all.
const LogRate = 100

// ErrNoLog is returned when the kernel cannot report packets. The table has been written all the same, and its
// Digest is in force: only the reports are missing.
var ErrNoLog = errors.New("the kernel cannot report packets (modules nft_log, nft_limit, nfnetlink_log): rules that log do no more than count")

const logPrefix = TableName + " "

// LogPrefix is what the reports of a rule begin with, so that a reader knows the rule (see policy.IDs). The interface
// is part of the report.
func LogPrefix(ruleID uint64) string { return fmt.Sprintf("%s%016x", logPrefix, ruleID) }

// ParseLogPrefix is the inverse of LogPrefix, false for a report that is none of ours.
func ParseLogPrefix(prefix string) (ruleID uint64, ok bool) {
	digits, ok := strings.CutPrefix(prefix, logPrefix)
	id, err := strconv.ParseUint(digits, 16, 64)
	return id, ok && err == nil && LogPrefix(id) == prefix
}

// report tells the readers of LogGroup about a packet, and lets the next rule be asked either way.
func report(ruleID uint64) []step {
	return steps(
		&expr.Limit{Type: expr.LimitTypePkts, Rate: LogRate, Unit: expr.LimitTimeSecond, Burst: LogRate},
		&expr.Log{
			Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN | 1<<unix.NFTA_LOG_PREFIX,
			Group: LogGroup, Snaplen: LogBytes, Data: []byte(LogPrefix(ruleID)),
		})
}

// reports says whether any rule has a report.
func (rs *ruleset) reports() bool {
	return slices.ContainsFunc(rs.rules, func(r rule) bool { return len(r.report) > 0 })
}
