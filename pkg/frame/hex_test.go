// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// The same packet as several programs write it: `tcpdump -xx`, `-XX` and `-x`, and xxd.
const (
	plain = "020000000001020000000002080045000029000040004006addf0a000001c00002019c4018eb00000000000000005002ffff0e6c000041"

	dumpXX = "12:34:56.789012 IP 10.0.0.1.40000 > 192.0.2.1.6379: Flags [S], seq 0:1, win 65535, length 1\n" +
		"\t0x0000:  0200 0000 0001 0200 0000 0002 0800 4500\n" +
		"\t0x0010:  0029 0000 4000 4006 addf 0a00 0001 c000\n" +
		"\t0x0020:  0201 9c40 18eb 0000 0000 0000 0000 5002\n" +
		"\t0x0030:  ffff 0e6c 0000 41\n"
	dumpASCII = "12:34:56.789012 IP 10.0.0.1.40000 > 192.0.2.1.6379: Flags [S], seq 0:1, win 65535, length 1\n" +
		"\t0x0000:  0200 0000 0001 0200 0000 0002 0800 4500  ..............E.\n" +
		"\t0x0010:  0029 0000 4000 4006 addf 0a00 0001 c000  .)..@.@.........\n" +
		"\t0x0020:  0201 9c40 18eb 0000 0000 0000 0000 5002  ...@..........P.\n" +
		"\t0x0030:  ffff 0e6c 0000 41                        ...l..A\n"
	dumpIP = "\t0x0000:  4500 0029 0000 4000 4006 addf 0a00 0001\n" +
		"\t0x0010:  c000 0201 9c40 18eb 0000 0000 0000 0000\n" +
		"\t0x0020:  5002 ffff 0e6c 0000 41\n"
	dumpXXD = "00000000: 0200 0000 0001 0200 0000 0002 0800 4500  ..............E.\r\n" +
		"00000010: 0029 0000 4000 4006 addf 0a00 0001 c000  .)..@.@.........\r\n" +
		"00000020: 0201 9c40 18eb 0000 0000 0000 0000 5002  ...@..........P.\r\n" +
		"00000030: ffff 0e6c 0000 41                        ...l..A\r\n"
)

func TestHex(t *testing.T) {
	want, err := hex.DecodeString(plain)
	if err != nil {
		t.Fatal(err)
	}
	var colons, prefixed []string
	for _, b := range want {
		colons, prefixed = append(colons, fmt.Sprintf("%02X", b)), append(prefixed, fmt.Sprintf("0x%02x", b))
	}
	for name, text := range map[string]string{
		"plain": plain, "prefix": "0x" + plain, "colons": strings.Join(colons, ":"), "prefixes": strings.Join(prefixed, " "),
		"lines": " " + plain[:20] + "\n\n" + plain[20:] + "\r\n", "tcpdump -xx": dumpXX, "tcpdump -XX": dumpASCII,
		"tcpdump -x": dumpIP, "xxd": dumpXXD, "without Ethernet header": plain[28:],
	} {
		f, err := Hex(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(f.Ethernet, want) || f.Length != len(want) {
			t.Errorf("%s: got % x", name, f.Ethernet)
		}
	}
}

// What could be taken for an IP packet without Ethernet header, and is none.
func TestHexEthernetFirst(t *testing.T) {
	ip := mustWords(t, "tcp 10.0.0.1:1 10.0.0.2:2").Ethernet[ethernetHeader:]
	ip6 := mustWords(t, "tcp [2001:db8::1]:1 [2001:db8::2]:2").Ethernet[ethernetHeader:]
	mac := mustWords(t, "tcp 10.0.0.1:1 10.0.0.2:2").Ethernet
	copy(mac, []byte{0x45, 0, 0, byte(len(mac))}) // a MAC address that reads as the start of an IPv4 header
	from8 := mustWords(t, "tcp 8.0.0.1:1 10.0.0.2:2").Ethernet[ethernetHeader:]
	for _, c := range []struct {
		name  string
		bytes []byte
		isIP  bool
	}{
		{"an IPv4 packet", ip, true},
		{"an IPv6 packet", ip6, true},
		{"an IPv4 packet from 8.0.0.1, which reads as its ethertype", from8, true},
		{"an IPv4 packet with something behind it", append(bytes.Clone(ip), 0), false},
		{"an IPv6 packet cut short", ip6[:len(ip6)-1], false},
		{"an Ethernet frame", mac, false},
	} {
		f, err := Hex(hex.EncodeToString(c.bytes))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		want := c.bytes
		if c.isIP {
			want = append(bytes.Clone(f.Ethernet[:ethernetHeader]), want...)
		}
		if !bytes.Equal(f.Ethernet, want) || strings.HasPrefix(f.String(), "tcp") != (c.isIP || c.name == "an Ethernet frame") {
			t.Errorf("%s: %s: % x", c.name, f, f.Ethernet)
		}
	}
}

func TestHexErrors(t *testing.T) {
	for _, c := range []struct{ text, problem string }{
		{"", "0 bytes, want a whole Ethernet frame, whose header alone has 14"},
		{" \n:", "0 bytes, want a whole Ethernet frame, whose header alone has 14"},
		{"0200 0000 0001", "6 bytes, want a whole Ethernet frame, whose header alone has 14"},
		{"0200 000", `line 1: "000" is no whole number of bytes; want two digits for each`},
		{"0200 0x", `line 1: "0x" is no whole number of bytes; want two digits for each`},
		{strings.Repeat("0", 99), `line 1: "` + strings.Repeat("0", 40) + `..." is no whole number of bytes; want two digits for each`},
		{"0200\n00zz", `line 2: 'z' is no hexadecimal digit; want bytes such as 0800 or 08 00 or 08:00`},
		{"0200é", `line 1: '\u00e9' is no hexadecimal digit; want bytes such as 0800 or 08 00 or 08:00`},
		{"0200\xff", `line 1: '\ufffd' is no hexadecimal digit; want bytes such as 0800 or 08 00 or 08:00`},
		{"0000: 0200 0000\n0005: 00", "line 2 has offset 0x0005 behind 0x0004 bytes, want them equal"},
		{"0000: 0200 0000\n00 00", "line 2 of the dump has no offset, want 0x0004: in front"},
		{"0000: 0200 0000\n12:34 IP\n0000: 00", "line 2 of the dump has no offset, want 0x0004: in front"},
		{"0x0000:  0200 0000\n\n0x0000:  0200", "line 3 begins a second packet, want one; capture files may have many"},
		{"0000: 0200 0g00", `line 1: 'g' is no hexadecimal digit; want bytes such as 0800 or 08 00 or 08:00`},
	} {
		f, err := Hex(c.text)
		if err == nil || err.Error() != c.problem {
			t.Errorf("%.60q: %v\ngot  %v\nwant %s", c.text, f, err, c.problem)
		}
	}
}

func TestHexOfXXD(t *testing.T) {
	if _, err := exec.LookPath("xxd"); err != nil {
		t.Skip("needs xxd")
	}
	want := mustWords(t, "sctp [2001:db8::1]:1 [2001:db8::2]:2").Ethernet
	for _, options := range [][]string{nil, {"-p"}, {"-u", "-c", "7"}, {"-g", "1"}} {
		cmd := exec.Command("xxd", options...)
		cmd.Stdin = bytes.NewReader(want)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if f, err := Hex(string(out)); err != nil || !bytes.Equal(f.Ethernet, want) {
			t.Errorf("xxd %s: %v: %v", options, f, err)
		}
	}
}

// Whatever the text, what comes out is the same when written as hexadecimal and read again.
func FuzzHex(f *testing.F) {
	for _, seed := range []string{"", plain, dumpXX, dumpASCII, dumpIP, dumpXXD, "02:00:00", "0x00", "0000: 00", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Hex(text)
		if err != nil {
			return
		}
		if len(got.Ethernet) < ethernetHeader || len(got.Ethernet) > ethernetHeader+len(text)/2 || got.Cut() {
			t.Fatalf("%d bytes of %d, length %d", len(got.Ethernet), len(text), got.Length)
		}
		again, err := Hex(fmt.Sprintf("% x", got.Ethernet))
		if err != nil || !bytes.Equal(got.Ethernet, again.Ethernet) {
			t.Fatalf("% x and again %+v: %v", got.Ethernet, again, err)
		}
		_ = got.String()
	})
}
