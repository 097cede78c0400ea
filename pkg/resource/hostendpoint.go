// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"net/netip"
	"path"
	"strings"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// maxInterface is the kernel's IFNAMSIZ without the terminating zero byte.
const maxInterface = 15

// defaultProfile is the one that Calico's own host endpoints have; it gives no labels.
const defaultProfile = "projectcalico-default-allow"

// hostEndpoint reads a HostEndpoint. A profile's rules are not consulted for untracked traffic, in Calico neither, but
// its labels are inherited, so that a profile which is not known cannot be left out.
func (r *Reader) hostEndpoint(o object) {
	var h HostEndpoint
	h.Meta = r.resource(o, domainName, func(v value) {
		v.fields(map[string]func(value){
			"node": func(v value) {
				if name, ok := v.string(); ok && name != "" && !isDomain(name) {
					v.fail("not a node's name; %s", domainName.want)
				}
				h.Node = v.scalar()
			},
			"interfaceName": func(v value) { h.InterfaceName = v.interfaceName() },
			"expectedIPs": func(v value) {
				v.set(unlimited, func(v value, s string) { h.ExpectedIPs = append(h.ExpectedIPs, v.address(s)) })
			},
			"profiles": func(v value) {
				v.set(unlimited, func(v value, s string) {
					switch {
					case !isDomain(s):
						v.fail("not a profile's name; %s", domainName.want)
					case s != defaultProfile:
						v.fail("profiles are not known here, and with it the labels that it gives; want them in metadata.labels, and no profile but %s", defaultProfile)
					}
				})
			},
			"ports": func(v value) {
				v.list(unlimited, func(v value) { h.Ports = append(h.Ports, v.namedPort()) })
			},
		})
	})
	spec := o.peek("spec")
	if h.Node == "" && spec.peek("node").scalar() == "" {
		spec.missing("node").fail("missing; want the name of the node that the interface is on")
	}
	// expectedIPs that are wrong have been reported, and say what was meant.
	if h.InterfaceName == "" && len(h.ExpectedIPs) == 0 && spec.peek("interfaceName").scalar() == "" {
		spec.missing("interfaceName").fail("missing; want interfaceName or expectedIPs, to say which interface this is")
	}
	r.set.HostEndpoints = append(r.set.HostEndpoints, h)
}

// interfaceName reads a name, or a pattern as [path.Match] has it; "*" is the only one that Calico knows.
func (v value) interfaceName() string {
	s, ok := v.string()
	if !ok || s == "" {
		return ""
	}
	allowed := func(r rune) bool {
		return r < 0x80 && isAlphanumeric(byte(r)) || strings.ContainsRune("_.-*?[]^", r)
	}
	_, err := path.Match(s, "")
	switch {
	case len(s) > maxInterface:
		v.fail("%d bytes; want at most %d, as interface names have", len(s), maxInterface)
	case strings.TrimFunc(s, allowed) != "" || strings.ContainsFunc(s, func(r rune) bool { return !allowed(r) }):
		v.fail("not an interface's name; want letters, digits, '_', '.' and '-', or a glob such as eth* or *")
	case err != nil:
		v.fail("not a complete glob; want one such as eth*, eth? or eth[0-3]")
	default:
		return s
	}
	return ""
}

func (v value) address(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil || a.Zone() != "":
		v.fail("not an address; want one such as 192.0.2.1 or 2001:db8::1")
	case a.Is4In6():
		v.fail("an IPv4 address in IPv6 form; want %s", a.Unmap())
	}
	return a
}

func (v value) namedPort() NamedPort {
	var p NamedPort
	have := v.fields(map[string]func(value){
		"name": func(v value) {
			var ok bool
			if p.Name, ok = v.string(); ok && !isPortName(p.Name) {
				v.fail("not a port's name; want lower-case letters, digits and single '-', at most 15, with a letter in it, a letter or digit first and last")
			}
		},
		"protocol": func(v value) {
			if protocol := v.protocol(); protocol != nil {
				if p.Protocol = *protocol; !takesPorts(p.Protocol) {
					v.fail("a protocol without ports; want TCP, UDP or SCTP")
				}
			}
		},
		"port": func(v value) {
			n, _ := v.integer(1, 65535)
			p.Port = uint16(n)
		},
	})
	for _, field := range []string{"name", "protocol", "port"} {
		if _, ok := have[field]; !ok && have != nil {
			v.missing(field).fail("missing; want name, protocol and port")
		}
	}
	return p
}

// isPortName is Kubernetes' IANA_SVC_NAME.
func isPortName(s string) bool {
	return len(s) <= 15 && isLowerWord(s) && !strings.Contains(s, "--") && strings.ContainsAny(s, "abcdefghijklmnopqrstuvwxyz")
}

// takesPorts: with which protocols Calico's rules and host endpoints can have ports.
func takesPorts(protocol uint8) bool {
	return protocol == policy.TCP || protocol == policy.UDP || protocol == policy.SCTP
}
