// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// PodsTable is the name of the table of pods' ports, in family inet. It is apart from the policy's table, which is
// written as a whole: here each pod comes and goes by its elements.
//
//	table inet untracked-pods {
//	  set ports4 {                  # address, protocol and port of pods: who calls there is untracked
//	    type ipv4_addr . inet_proto . inet_service
//	    elements = { 10.88.0.5 . tcp . 6379 comment "<container>/eth0 default/redis" }
//	  }
//	  set sourced4 {                # the same of pods that named their sources
//	    type ipv4_addr . inet_proto . inet_service
//	    elements = { 10.88.0.6 . tcp . 6379 comment "…" }
//	  }
//	  set sources4 {                # the pod, and who may call there untracked
//	    type ipv4_addr . ipv4_addr
//	    flags interval
//	    elements = { 10.88.0.6 . 192.0.2.0/24 comment "…" }
//	  }
//	  set quoted-ports4, …          # all three once more, in the form that an ICMP error quotes
//	  chain prerouting, output      # raw priority
//	  chain pods4 {
//	    ip daddr . meta l4proto . th dport @ports4 counter name "requests" notrack accept
//	    ip saddr . meta l4proto . th sport @ports4 counter name "replies" notrack accept
//	    ip daddr . meta l4proto . th dport @sourced4 ip daddr . ip saddr @sources4 counter name "requests" notrack accept
//	    ip saddr . meta l4proto . th sport @sourced4 ip saddr . ip daddr @sources4 counter name "replies" notrack accept
//	    icmp type { … } goto errors4          # an error: about which packet?
//	  }
//	  chain errors4 { … }           # the same look-ups of the quoted packet
//	}
//
// A packet pays for some look-ups in hash sets, however many pods there are, and one that is for a port with sources for
// one in an interval set besides. No pod has a rule or chain of its own: each time that a way to a chain is added, the
// kernel looks at all ways there are.
const PodsTable = "untracked-pods"

// Pod is what one attachment of a pod has in the table: pure data.
type Pod struct {
	// Owner identifies the attachment. It has no white space, and at most [MaxOwner] bytes.
	Owner string
	// Name is the pod's, for readers of a listing. (optional)
	Name string
	// Addresses are the pod's own.
	Addresses []netip.Addr
	// Ports have protocols with ports, and none of them twice.
	Ports []policy.Port
	// Sources are who may use the ports untracked, nil for anybody.
	Sources *netset.Set
}

// MaxOwner is the longest owner: nft takes comments of 127 bytes, and readers want to see a name, too.
const MaxOwner = 100

// ErrNoPodsTable is returned where there is no table inet untracked-pods. It is [ErrNoTable], too.
var ErrNoPodsTable = fmt.Errorf("no table inet %s: %w", PodsTable, ErrNoTable)

// ErrPodsTableChanged is returned where the table lacks something that should be there, or has something that should
// not: it was changed by others, and must be written anew.
var ErrPodsTableChanged = errors.New("it was changed by somebody else")

func dialPods() (*socket, error) {
	s, err := dial()
	if err == nil {
		s.of = PodsTable
	}
	return s, err
}

// WritePods replaces the table, if there is one, by one that has these pods, in one atomic batch. No two of them may
// have the same address. The counters go on.
//
// Returns ErrNotSupported if the kernel has no nf_tables. Needs CAP_NET_ADMIN and Linux 5.10 or later.
func WritePods(pods []Pod) error {
	return onPods("write", func(s *socket) error {
		before, err := s.find()
		if err != nil {
			return err
		}
		return s.commit(newPods(before, pods))
	})
}

// EditPods takes pods out of the table, and then puts others in, in one atomic batch. Of those that are taken out it
// deletes what is still theirs, and no element that has become another's. What is put in must be nobody's by then.
//
// Returns ErrNoPodsTable where there is no table, ErrPodsTableChanged where WritePods must put it right.
func EditPods(out, in []Pod) error {
	return onPods("edit", func(s *socket) error {
		if _, err := s.table(); err != nil {
			return err
		}
		b := &batch{table: PodsTable}
		if err := s.takeOut(b, out); err != nil {
			return err
		}
		b.putIn(in)
		if len(b.messages) == 0 {
			return nil
		}
		err := s.commit(b)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("%w: %w", ErrPodsTableChanged, err)
		}
		return err
	})
}

// fewPods are those for which it takes less time to ask for each element than to list the table of a large node.
const fewPods = 4

// MissingPods lists what pods should have in the table and have not, as "10.88.0.5 tcp/6379": for packets, or for the errors
// that quote them.
func MissingPods(pods ...Pod) (missing []string, err error) {
	err = onPods("read", func(s *socket) error {
		if _, err := s.table(); err != nil {
			return err
		}
		listed := map[elementPlace]string{}
		if len(pods) > fewPods {
			var err error
			if listed, err = s.owners(); err != nil {
				return err
			}
		}
		for i := range pods {
			own := pods[i].owner()
			for e := range pods[i].elements() {
				for _, e := range []podElement{e, e.twin()} {
					if listed[e.place()] == own {
						continue
					}
					owner, err := s.owner(e) // a list may lack it, see podElements
					if err != nil {
						return err
					}
					if owner != own {
						missing = append(missing, e.String())
						break
					}
				}
			}
		}
		return nil
	})
	return missing, err
}

// PodCounters are packets to and from ports of pods that went untracked.
func PodCounters() (requests, replies Counter, err error) {
	err = onPods("read", func(s *socket) error {
		objects, err := s.objects()
		for _, o := range objects {
			switch o.name {
			case requestsCounter:
				requests = o.value
			case repliesCounter:
				replies = o.value
			}
		}
		return err
	})
	return requests, replies, err
}

// PodsInForce is to the table of pods what [InForce] is to the policy's: it returns what [PodsDigest] does, unless
// somebody changed its rules. It does not look at what is there for single pods.
func PodsInForce() (digest string, err error) {
	err = onPods("read", func(s *socket) error {
		digest, err = s.inForce()
		return err
	})
	return digest, err
}

// RemovePods deletes the table. It is no error if there is none.
func RemovePods() error {
	err := onPods("delete", func(s *socket) error {
		b := &batch{table: PodsTable}
		b.deleteTable()
		return s.commit(b)
	})
	if errors.Is(err, ErrNoPodsTable) || errors.Is(err, ErrNotSupported) {
		return nil
	}
	return err
}

func onPods(does string, fn func(*socket) error) error {
	s, err := dialPods()
	if err == nil {
		defer s.Close()
		err = fn(s)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNoTable), errors.Is(err, unix.ENOENT) && does == "delete":
		return ErrNoPodsTable
	}
	return fmt.Errorf("%s table inet %s: %w", does, PodsTable, err)
}

// label is the comment on an element: the owner first, by which it is told whose it is.
func (p *Pod) label() string { return comment(strings.TrimSpace(p.Owner + " " + p.Name)) }

// owner is the owner as a label has it.
func (p *Pod) owner() string { return ownerOf(p.label()) }

func ownerOf(label string) string {
	owner, _, _ := strings.Cut(label, " ")
	return owner
}

// PodElements lists all that is in the table's sets of pods, with its owner: for tests and for listings. What is quoted
// has the name of its set in front. Of a large set that was just written some may be left out.
func PodElements() (map[string]string, error) {
	out := map[string]string{}
	err := onPods("list", func(s *socket) error {
		for _, set := range podSets {
			elements, err := s.podElements(set)
			if err != nil {
				return err
			}
			for _, e := range elements {
				name := e.String()
				if set.quoted {
					name = set.String() + " " + name
				}
				out[name] = ownerOf(e.label)
			}
		}
		return nil
	})
	return out, err
}
