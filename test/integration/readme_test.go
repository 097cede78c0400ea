// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// The README is run here as its reader would: its shell blocks, in order, pasted into one shell, and what that
// prints compared with the console blocks that follow. The shell has mounts, a network and processes of its own,
// and goes away with all of them.

// readmePatience is for all blocks together, with a go build among them.
const readmePatience = 5 * time.Minute

// readmeTools are the commands that a block may need and a machine may lack.
var readmeTools = []string{"ip", "nft", "conntrack", "redis-server", "redis-cli", "redis-benchmark", "iptables", "unshare"}

// readmeBlock is a fenced block.
type readmeBlock struct {
	line           int
	language, text string
	// console is the expected output of a shell block, if the README shows it.
	console string
}

func readmeText(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// readmeBlocks are the fenced blocks, also those indented below a list item; each console block is joined to the
// shell block before it.
func readmeBlocks(t *testing.T) (blocks []readmeBlock) {
	t.Helper()
	var open *readmeBlock
	indent := ""
	for i, line := range strings.Split(readmeText(t), "\n") {
		fence, found := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case found && open == nil:
			indent = line[:strings.Index(line, "`")]
			open = &readmeBlock{line: i + 1, language: fence}
		case found && open.language == "console":
			last := len(blocks) - 1
			if last < 0 || blocks[last].language != "sh" || blocks[last].console != "" {
				t.Fatalf("line %d: a console block without a shell block before it", open.line)
			}
			blocks[last].console = open.text
			open = nil
		case found:
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.text += strings.TrimPrefix(line, indent) + "\n"
		}
	}
	if open != nil {
		t.Fatalf("line %d: the block has no end", open.line)
	}
	return blocks
}

func readmeShell(t *testing.T) (blocks []readmeBlock) {
	t.Helper()
	for _, b := range readmeBlocks(t) {
		switch b.language {
		case "sh":
			blocks = append(blocks, b)
		case "json", "yaml", "text":
		default:
			t.Errorf("line %d: a block of language %q; want sh, console, json, yaml or text, so that it is clear what is run", b.line, b.language)
		}
	}
	return blocks
}

// makeLine is the only kind of line that is not run: this test is a part of make test.
var makeLine = regexp.MustCompile(`(?m)^make (\S+)\n`)

func TestReadmeMakeTargets(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range readmeShell(t) {
		for _, m := range makeLine.FindAllStringSubmatch(b.text, -1) {
			target := regexp.MustCompile(`(?m)^([\w-]+ )*` + regexp.QuoteMeta(m[1]) + `( [\w-]+)*:($|[^=])`)
			if !target.Match(makefile) {
				t.Errorf("README line %d: the Makefile has no target %s", b.line, m[1])
			}
		}
	}
}

func TestReadmeCommands(t *testing.T) {
	blocks := readmeShell(t)
	for _, tool := range []string{"unshare", "ip", "nft", "bash"} {
		if !confInstalled(tool) {
			t.Skipf("%s is not installed (Debian: util-linux, iproute2, nftables, bash)", tool)
		}
	}
	// An open lab keeps others from making the machine's conntrack table small meanwhile.
	l := lab.New(t, lab.Config{})
	bin, err := lab.Build("untracked", "cnitool", "bridge", "host-local")
	if err != nil {
		t.Fatal(err)
	}
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	script, skipped := readmeScript(t, blocks, l.Dir, bin, root)

	ctx, cancel := context.WithTimeout(context.Background(), readmePatience)
	defer cancel()
	// With a process namespace of its own, what a failed walk-through leaves behind dies with it.
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash")
	cmd.Dir = root
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Errorf("not done after %s", readmePatience)
	}
	for i, b := range blocks {
		name := fmt.Sprintf("line %d", b.line)
		t.Run(name, func(t *testing.T) {
			if skipped[i] != "" {
				t.Skip(skipped[i])
			}
			got, problem := readmeOutput(string(out), i)
			if problem != "" {
				t.Fatalf("%s; the shell: %v\n%s\nits output:\n%s", problem, err, b.text, got)
			}
			if b.console != "" && !readmeSame(b.console, got) {
				t.Errorf("the README shows\n%s\nand the output is\n%s", b.console, got)
			}
		})
	}
	if t.Failed() {
		t.Logf("all output:\n%s", out)
	}
}

// readmeScript is what is pasted: the blocks with a mark before and after each. Block i is skipped where the
// second result says why.
func readmeScript(t *testing.T, blocks []readmeBlock, dir, bin, root string) (script string, skipped map[int]string) {
	t.Helper()
	var b strings.Builder
	skipped = map[int]string{}
	b.WriteString(readmeNode(t, dir, bin, root))
	for i, block := range blocks {
		if missing := readmeMissing(block.text); missing != "" {
			skipped[i] = missing + " is not installed"
			continue
		}
		text := makeLine.ReplaceAllStringFunc(block.text, func(line string) string {
			if line == "make install\n" {
				return "cp bin/untracked /opt/cni/bin/\n"
			}
			return "" // bin/untracked is there
		})
		fmt.Fprintf(&b, "echo; echo @@begin %d@@\n", i)
		// The trap tells of each failed command, not just the last; a shell inside the shell needs its own.
		fmt.Fprintf(&b, "trap 'echo @@failed %d $?: $BASH_COMMAND@@' ERR\n", i)
		b.WriteString(text)
		fmt.Fprintf(&b, "echo; echo @@end %d@@\n", i)
	}
	return b.String(), skipped
}

func readmeMissing(text string) string {
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || r == ';' || r == '|' }) {
		if slices.Contains(readmeTools, word) && !confInstalled(word) {
			return word
		}
	}
	return ""
}

// readmeNode makes the sandbox look like a node: an uplink with a default route, the conf list of the README,
// a firewall with a table called filter, directories that are nobody else's.
func readmeNode(t *testing.T, dir, bin, root string) string {
	t.Helper()
	conflist := filepath.Join(dir, "readme.conflist")
	if err := os.WriteFile(conflist, []byte(readmeConflist(t).text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil { // ignored by git
		t.Fatal(err)
	}
	return fmt.Sprintf(`exec 2>&1
set -e
mount -t tmpfs tmpfs %[3]q/bin
cp %[2]q/untracked %[3]q/bin/
mkdir %[1]q/etc
mount -t tmpfs -o mode=0755 tmpfs %[1]q/etc
cp -a /etc/. %[1]q/etc
mount --bind %[1]q/etc /etc
mkdir -p /etc/cni/net.d
cp %[1]q/readme.conflist /etc/cni/net.d/10-mynet.conflist
for d in /run /opt /var/lib; do mount -t tmpfs tmpfs $d; done
mkdir -p /opt/cni/bin
mount -t sysfs sysfs /sys
ip link set lo up
ip netns add peer
ip link add eth0 type veth peer name eth0 netns peer
ip address add 203.0.113.2/24 dev eth0
ip link set eth0 up
ip -n peer link set eth0 up
ip route add default via 203.0.113.1
nft -f - <<'NFT'
table inet filter {
	chain input { type filter hook input priority filter; }
	chain output { type filter hook output priority filter; }
}
NFT
set +e
`, dir, bin, root)
}

// readmeOutput is what a block printed, and what was wrong with it.
func readmeOutput(out string, block int) (got, problem string) {
	_, got, begun := strings.Cut(out, fmt.Sprintf("\n@@begin %d@@\n", block))
	if !begun {
		return "", "the shell did not come this far"
	}
	got, _, ended := strings.Cut(got, fmt.Sprintf("\n@@end %d@@\n", block))
	if failed := regexp.MustCompile(`@@failed (?s)(.+?)@@`).FindStringSubmatch(got); failed != nil {
		return got, "exit status " + failed[1]
	}
	if !ended {
		return got, "the shell did not come to the end of the block"
	}
	return got, ""
}

// readmeSame compares loosely: the README's lines must come in this order, `…` stands for any lines, amounts
// of space do not matter, and numbers, policy hashes and interface indexes may differ. But a number of three digits
// or more may not turn out 0, nor a lone 0 anything else. Without a `…`, the output is shown in full.
func readmeSame(console, got string) bool {
	var pattern strings.Builder
	pattern.WriteString(`^`)
	for _, line := range strings.Split(strings.TrimSpace(console), "\n") {
		line = strings.TrimSpace(line)
		switch line {
		case "":
		case "…":
			pattern.WriteString(`(?:.*\n)*?`)
		case "0":
			pattern.WriteString(`0\n`)
		default:
			pattern.WriteString(readmeLine(line) + `\n`)
		}
	}
	pattern.WriteString(`$`)
	var lines strings.Builder
	for line := range strings.Lines(got) {
		if line = strings.Join(strings.Fields(line), " "); line != "" {
			lines.WriteString(line + "\n")
		}
	}
	return regexp.MustCompile(pattern.String()).MatchString(lines.String())
}

var readmeToken = regexp.MustCompile(`\b[0-9a-f]{16}\b|[0-9]+|\s+`)

func readmeLine(line string) string {
	var b strings.Builder
	rest := line
	for rest != "" {
		at := readmeToken.FindStringIndex(rest)
		if at == nil {
			at = []int{len(rest), len(rest)}
		}
		b.WriteString(regexp.QuoteMeta(rest[:at[0]]))
		token := rest[at[0]:at[1]]
		n, err := strconv.Atoi(token)
		switch {
		case token == "":
		case strings.TrimSpace(token) == "":
			b.WriteString(` `)
		case len(token) == 16:
			b.WriteString(`[0-9a-f]{16}`)
		case err == nil && n >= 100:
			b.WriteString(`[1-9][0-9]*`)
		default:
			b.WriteString(`[0-9]+`)
		}
		rest = rest[at[1]:]
	}
	return b.String()
}

func TestReadmeSame(t *testing.T) {
	for _, c := range []struct {
		readme, got string
		same        bool
	}{
		{"2020", "1999", true},
		{"2020", "0", false},
		{"0", "7", false},
		{"policy 748f8383ad8aff5c, generation 1", "policy  0000000000000000, generation 12", true},
		{"policy 748f8383ad8aff5c, generation 1", "policy none, generation 12", false},
		{"a\n…\nb", "a\nx\ny\nb", true},
		{"a\n…\nb", "a\nx\ny", false},
		{"a", "a\nb", false},
		{"eth0 native yes 301", "eth0 tc yes 301", false},
	} {
		if same := readmeSame(c.readme, c.got); same != c.same {
			t.Errorf("%q against %q: same %v, want %v", c.readme, c.got, same, c.same)
		}
	}
}

// The conf lists in the README are good ones.
func TestReadmeConflists(t *testing.T) {
	for _, b := range readmeBlocks(t) {
		text := b.text
		if b.language == "sh" {
			_, heredoc, found := strings.Cut(text, "<<'EOF'\n")
			if !found {
				continue
			}
			text, _, _ = strings.Cut(heredoc, "\nEOF\n")
			if !strings.HasPrefix(text, "{") {
				continue // annotations.yaml, which a command of the block reads
			}
		} else if b.language != "json" {
			continue
		}
		if _, err := config.ParseConflist([]byte(text), fmt.Sprintf("README.md block of line %d", b.line)); err != nil {
			t.Error(err)
		}
	}
}

func readmeConflist(t *testing.T) readmeBlock {
	t.Helper()
	for _, b := range readmeBlocks(t) {
		if b.language == "json" {
			return b
		}
	}
	t.Fatal("the README shows no conf list")
	return readmeBlock{}
}

// The table of annotations has all that the parser knows, and nothing else.
func TestReadmeAnnotations(t *testing.T) {
	entry, err := json.Marshal(map[string]any{
		"name": "x", "type": config.PluginType,
		"annotations": map[string]string{config.Prefix + "no key is at all like this one": ""},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = config.Parse(entry)
	if err == nil {
		t.Fatal("an unknown key was accepted")
	}
	_, list, found := strings.Cut(err.Error(), "one of ")
	if !found {
		t.Fatalf("the error does not list the known keys: %v", err)
	}
	known := strings.Split(list, ", ")
	_, section, _ := strings.Cut(readmeText(t), "\n## Annotations\n")
	section, _, _ = strings.Cut(section, "\n### ")
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]+`) \\|").FindAllStringSubmatch(section, -1) {
		for _, key := range strings.Split(row[1], ", ") {
			documented = append(documented, strings.Trim(key, "`"))
		}
	}
	slices.Sort(known)
	slices.Sort(documented)
	if !slices.Equal(known, documented) {
		t.Errorf("the README documents\n%q, the parser knows\n%q", documented, known)
	}
}

// A pod may have the annotations that the README gives it.
func TestReadmePod(t *testing.T) {
	var annotations map[string]string
	for _, b := range readmeBlocks(t) {
		for _, a := range regexp.MustCompile(`(untracked\.cni/\S+): "([^"]*)"`).FindAllStringSubmatch(b.text, -1) {
			if b.language == "yaml" {
				if annotations == nil {
					annotations = map[string]string{}
				}
				annotations[a[1]] = a[2]
			}
		}
	}
	c := config.Config{PodAnnotations: annotations}
	if asked, err := c.PodRequest("readme"); err != nil || len(asked.Ports) == 0 || asked.Sources == nil {
		t.Errorf("the pod of the README asks for %+v by %v (%v), want ports and sources", asked, annotations, err)
	}
}

func TestReadmeFailsafes(t *testing.T) {
	text := strings.Join(strings.Fields(readmeText(t)), " ")
	for name, ports := range map[string]string{
		policy.FailsafeInbound: policy.DefaultFailsafeInbound, policy.FailsafeOutbound: policy.DefaultFailsafeOutbound,
	} {
		if !strings.Contains(text, name+" "+ports) {
			t.Errorf("the README does not give %s as %s", name, ports)
		}
	}
}

// Links within the repository lead somewhere.
func TestReadmeLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)]+)\)`)
	for _, file := range []string{"../../README.md", "../../KNOWN_ISSUES.md", "../../CHANGELOG.md", "../../conf/README.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(string(m[1]), "#")
			if strings.Contains(target, "://") {
				continue
			}
			path := file
			if target != "" {
				path = filepath.Join(filepath.Dir(file), target)
			}
			linked, err := os.ReadFile(path)
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			if anchor != "" && !slices.Contains(readmeAnchors(linked), anchor) {
				t.Errorf("%s: %s has no heading for #%s", file, path, anchor)
			}
		}
	}
}

// readmeAnchors are the headings as code hosts turn them into anchors.
func readmeAnchors(markdown []byte) (anchors []string) {
	for line := range bytes.Lines(markdown) {
		if heading := bytes.TrimLeft(line, "#"); len(heading) < len(line) {
			anchor := strings.ReplaceAll(strings.ToLower(string(bytes.TrimSpace(heading))), " ", "-")
			anchors = append(anchors, regexp.MustCompile(`[^a-z0-9-]`).ReplaceAllString(anchor, ""))
		}
	}
	return anchors
}
