// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Stateful is a firewall as nodes have it: an nftables table that asks for the connection tracking state of
// every packet, which is also what switches connection tracking on in a namespace.
type Stateful struct {
	ns    *NS
	table *nftables.Table
}

// States counts packets by their state, at the input, output and forward hooks together.
type States struct {
	Established, Invalid, Untracked, New uint64
}

const statefulTable = "lab-stateful"

// AddStateful sets the firewall in ns: established and related are accepted, invalid is dropped if so
// wanted, everything else is counted and accepted.
func AddStateful(ns *NS, dropInvalid bool) (*Stateful, error) {
	s := &Stateful{ns: ns, table: &nftables.Table{Family: nftables.TableFamilyINet, Name: statefulTable}}
	err := In(ns, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.AddTable(s.table)
		invalid := expr.VerdictAccept
		if dropInvalid {
			invalid = expr.VerdictDrop
		}
		rules := []struct {
			name    string
			bits    uint32
			verdict expr.VerdictKind
		}{
			{"established", expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED, expr.VerdictAccept},
			{"invalid", expr.CtStateBitINVALID, invalid},
			{"untracked", expr.CtStateBitUNTRACKED, expr.VerdictAccept},
			{"new", expr.CtStateBitNEW, expr.VerdictAccept},
		}
		for _, r := range rules {
			c.AddObj(&nftables.NamedObj{Table: s.table, Name: r.name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
		}
		for name, hook := range map[string]*nftables.ChainHook{"input": nftables.ChainHookInput, "output": nftables.ChainHookOutput, "forward": nftables.ChainHookForward} {
			chain := c.AddChain(&nftables.Chain{Name: name, Table: s.table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
			for _, r := range rules {
				mask := make([]byte, 4)
				binary.NativeEndian.PutUint32(mask, r.bits)
				c.AddRule(&nftables.Rule{Table: s.table, Chain: chain, Exprs: []expr.Any{
					&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
					&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
					&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
					&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: r.name},
					&expr.Verdict{Kind: r.verdict},
				}})
			}
		}
		return c.Flush()
	})
	if err != nil {
		return nil, fmt.Errorf("add stateful firewall to %s: %w", ns.Name, err)
	}
	return s, nil
}

// States reads the counters.
func (s *Stateful) States() (states States, err error) {
	err = In(s.ns, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		for name, to := range map[string]*uint64{"established": &states.Established, "invalid": &states.Invalid, "untracked": &states.Untracked, "new": &states.New} {
			obj, err := c.GetObject(&nftables.NamedObj{Table: s.table, Name: name, Type: nftables.ObjTypeCounter})
			if err != nil {
				return fmt.Errorf("counter %s: %w", name, err)
			}
			named, ok := obj.(*nftables.NamedObj)
			if !ok {
				return fmt.Errorf("counter %s: got a %T", name, obj)
			}
			counter, ok := named.Obj.(*expr.Counter)
			if !ok {
				return fmt.Errorf("counter %s: got a %T", name, named.Obj)
			}
			*to = counter.Packets
		}
		return nil
	})
	if err != nil {
		return states, fmt.Errorf("read stateful firewall of %s: %w", s.ns.Name, err)
	}
	return states, nil
}

// Tables names the nftables tables in ns as "family name", "inet untracked" for instance.
func Tables(ns *NS) (names []string, err error) {
	families := map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
		nftables.TableFamilyARP: "arp", nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyBridge: "bridge",
	}
	err = In(ns, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		for _, t := range tables {
			names = append(names, families[t.Family]+" "+t.Name)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list nftables tables of %s: %w", ns.Name, err)
	}
	return names, nil
}
