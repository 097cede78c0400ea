// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/untracked-cni/untracked/pkg/frame"
	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/pkg/policy"
)

func newExplain(version string) *cobra.Command {
	var where places
	var output outputFlag
	var ask question
	cmd := &cobra.Command{
		Use:   "explain [--interface IF] PACKET",
		Short: "Say what becomes of a packet, and which rule says so",
		Long: `Runs the program that is attached to an interface on a packet, in a private copy, so that nothing is counted or sent,
and names the verdict and the rule. With --egress it asks the rules on the way out. What they leave tracked may be
untracked by a pod, which has asked for the port.

PACKET is one of
  tcp SRC:SPORT DST:DPORT        also udp, udplite and sctp; an IPv6 address in [brackets]
  icmp SRC DST TYPE [CODE]       ICMPv6 where the addresses are IPv6
  proto N SRC DST                any other protocol, by number
or comes from --pcap FILE (pcap or pcapng, - for stdin; a line a packet), or from --hex BYTES, an Ethernet frame. All
packets of a capture are taken to arrive, or with --egress to leave: capture one direction (tcpdump -Q in, -Q out).

The interface may be left out where the policy covers one only. Exit code 0 whatever the verdict is.`,
		Example: `  untracked explain tcp 192.0.2.7:40000 10.0.0.1:6379
  untracked explain --interface eth0 --egress udp [2001:db8::1]:53 [2001:db8::2]:5353
  tcpdump -i eth0 -Q in -c 100 -w - | untracked explain --interface eth0 --pcap -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := output.json()
			if err != nil {
				return err
			}
			packets, err := ask.packets(cmd.InOrStdin(), args)
			if err != nil {
				return err
			}
			n := where.node(version, cmd.ErrOrStderr())
			if err := ask.chooseInterface(n); err != nil {
				return err
			}
			e, err := n.Explainer(ask.iface, ask.direction())
			if err != nil {
				return failed(err)
			}
			defer e.Close()
			a := answer{w: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr(), many: ask.pcap != "", json: asJSON}
			return a.all(e, packets)
		},
	}
	cmd.Flags().StringVarP(&ask.iface, "interface", "i", "", "the interface it arrives on or leaves by")
	cmd.Flags().BoolVar(&ask.egress, "egress", false, "ask about the way out")
	cmd.Flags().StringVar(&ask.pcap, "pcap", "", "read packets from a capture file, - for stdin")
	cmd.Flags().StringVar(&ask.hex, "hex", "", "the packet as hexadecimal bytes of an Ethernet frame")
	where.register(cmd)
	output.register(cmd)
	return cmd
}

// question is what the command line asks.
type question struct {
	iface, pcap, hex string
	egress           bool
}

func (q *question) direction() policy.Direction {
	if q.egress {
		return policy.Egress
	}
	return policy.Ingress
}

// packets returns what is asked about, one after another.
func (q *question) packets(stdin io.Reader, args []string) (func(func(*frame.Frame, error) bool), error) {
	forms := 0
	for _, given := range []bool{len(args) > 0, q.pcap != "", q.hex != ""} {
		if given {
			forms++
		}
	}
	if forms != 1 {
		return nil, usage(errors.New("want one packet as in `tcp 192.0.2.7:40000 10.0.0.1:6379`, or --pcap FILE, or --hex BYTES"))
	}
	if q.pcap != "" {
		return q.capture(stdin)
	}
	var f *frame.Frame
	var err error
	if q.hex != "" {
		f, err = frame.Hex(q.hex)
	} else {
		f, err = frame.Words(args)
	}
	if err != nil {
		return nil, usage(err)
	}
	return func(yield func(*frame.Frame, error) bool) { yield(f, nil) }, nil
}

func (q *question) capture(stdin io.Reader) (func(func(*frame.Frame, error) bool), error) {
	if q.pcap == "-" {
		return frame.Pcap(stdin), nil
	}
	f, err := os.Open(q.pcap)
	if err != nil {
		return nil, usage(err)
	}
	return func(yield func(*frame.Frame, error) bool) {
		defer f.Close()
		frame.Pcap(f)(yield)
	}, nil
}

func (q *question) chooseInterface(n *node.Node) error {
	if q.iface != "" {
		return nil
	}
	covered, err := n.Covered()
	switch {
	case err != nil:
		return failed(err)
	case len(covered) == 1:
		q.iface = covered[0]
		return nil
	case len(covered) == 0:
		return failed(errors.New("no policy has been applied to this node, so every packet is tracked"))
	}
	return usage(fmt.Errorf("the policy covers %s: want one of them with --interface", strings.Join(covered, ", ")))
}

// answer prints explanations.
type answer struct {
	w, stderr  io.Writer
	many, json bool
}

// numbered is an explanation with the packet's place in the capture.
type numbered struct {
	Packet int `json:"packet,omitempty"`
	*node.Explanation
}

func (a *answer) all(e *node.Explainer, packets func(func(*frame.Frame, error) bool)) error {
	number, failures := 0, 0
	verdicts := map[policy.Verdict]int{}
	for f, err := range packets {
		if err != nil {
			return failed(err)
		}
		number++
		x, err := e.Explain(f)
		if err != nil && a.many { // one packet that cannot be asked about says nothing of the others
			fmt.Fprintf(a.stderr, "untracked: packet %d: %v\n", number, err)
			failures++
			continue
		}
		if err != nil {
			return failed(err)
		}
		verdicts[x.Verdict]++
		if err := a.one(number, f, x); err != nil {
			return err
		}
	}
	if a.many && !a.json {
		if _, err := fmt.Fprintf(a.w, "%d packets: %d untracked, %d denied, %d tracked\n",
			number, verdicts[policy.Untracked], verdicts[policy.Denied], verdicts[policy.Tracked]); err != nil {
			return err
		}
	}
	if failures > 0 {
		return failed(fmt.Errorf("%d of %d packets could not be explained", failures, number))
	}
	return nil
}

func (a *answer) one(number int, f *frame.Frame, x *node.Explanation) error {
	switch {
	case a.json && a.many:
		return json.NewEncoder(a.w).Encode(numbered{number, x})
	case a.json:
		return printJSON(a.w, x)
	case a.many:
		_, err := fmt.Fprintf(a.w, "%d\t%-9s  %s  %s\n", number, x.Verdict, f, reason(x))
		return err
	}
	return a.page(f, x)
}

// reason is why, in one line.
func reason(x *node.Explanation) string {
	switch {
	case x.Rule != nil:
		return fmt.Sprintf("%s %s", x.By, x.Rule.Name())
	case x.Pod != "":
		return fmt.Sprintf("%s %s", x.By, x.Pod)
	}
	return string(x.By)
}

// byWords says what the reasons mean that are not a rule's.
var byWords = map[policy.Reason]string{
	policy.ByNoMatch:   "no rule matched",
	policy.ByFailsafe:  "IPv6 neighbour discovery is left alone",
	policy.ByMalformed: "its IP header is malformed",
	policy.ByFragment:  "a later fragment has no ports, and no rule without ports matched; the first fragment decides for the datagram",
	policy.ByNotIP:     "it is no IP packet",
	node.ByNoPolicy:    "no policy is in force there",
}

func (a *answer) page(f *frame.Frame, x *node.Explanation) error {
	t := newPage(a.w)
	t.line("packet", f.String())
	t.line("where", fmt.Sprintf("%s, %s", x.Interface, x.Direction))
	t.line("verdict", string(x.Verdict))
	for _, r := range x.Via {
		t.line("matched", ruleWords(r))
	}
	switch {
	case x.Rule != nil:
		t.line("by", ruleWords(*x.Rule))
	case x.Pod != "":
		t.line("by", fmt.Sprintf("pod %s: it asked for this port; see `untracked pods`", x.Pod))
	default:
		t.line("by", fmt.Sprintf("%s: %s", x.By, byWords[x.By]))
	}
	if c := x.Closest; c != nil {
		t.line("closest", ruleWords(c.RuleText))
		for _, miss := range c.Misses {
			t.line("", "but "+miss)
		}
	}
	for _, note := range x.Notes {
		t.line("note", note)
	}
	return t.flush()
}

// ruleWords is a rule in one line: its name, what it does, and where it is written.
func ruleWords(r node.RuleText) string {
	return fmt.Sprintf("%s: %s %s (%s)", r.Name(), r.Action, r.Match, r.Origin)
}
