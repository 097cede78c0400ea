// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// series is a line of kernels, of which the newest is tested.
type series struct {
	name string
	// suite is the part of Debian that has it.
	suite string
}

var known = []series{
	{"5.10", "bullseye-security"},
	{"6.1", "bookworm-security"},
	{"6.12", "bookworm-security"},
	{"6.18", "trixie-backports"},
	{"7", "trixie-backports"},
}

// kernel is one that is unpacked below dir as it would be below /.
type kernel struct{ release, dir string }

// image is the file to boot.
func (k kernel) image() (string, error) {
	for _, path := range []string{"boot/vmlinuz-" + k.release, "usr/lib/modules/" + k.release + "/vmlinuz"} {
		path = filepath.Join(k.dir, path)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no vmlinuz of %s in %s", k.release, k.dir)
}

// store keeps kernels: dir/kernels/SERIES/RELEASE, and apt's lists in dir/apt/SUITE.
type store struct{ dir, mirror string }

// fetch returns the newest kernel of a series. It downloads what is not there yet.
func (s *store) fetch(ctx context.Context, of series) (kernel, error) {
	unlock, err := s.lock()
	if err != nil {
		return kernel{}, err
	}
	defer unlock()
	a, err := s.openSuite(of.suite)
	if err != nil {
		return kernel{}, err
	}
	release, packages, err := a.newest(ctx, of)
	if err != nil {
		return kernel{}, err
	}
	k := kernel{release, filepath.Join(s.dir, "kernels", of.name, release)}
	if _, err := os.Stat(k.dir); err == nil {
		return k, nil
	}
	// Those before it are of no use any more.
	if err := os.RemoveAll(filepath.Dir(k.dir)); err != nil {
		return kernel{}, err
	}
	if err := os.MkdirAll(filepath.Dir(k.dir), 0o755); err != nil {
		return kernel{}, err
	}
	if err := a.unpack(ctx, packages, k); err != nil {
		return kernel{}, err
	}
	return k, nil
}

// lock keeps other series and other processes out.
func (s *store) lock() (unlock func() error, err error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(s.dir, "lock"))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f.Close, nil
}

// apt runs the programs of that name on one suite, and knows nothing of what is installed here.
type apt struct {
	suite, dir string
}

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

func (s *store) openSuite(suite string) (*apt, error) {
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("keys of Debian's archive (package debian-archive-keyring): %w", err)
	}
	a := &apt{suite, filepath.Join(s.dir, "apt", suite)}
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	archive := "debian"
	if strings.HasSuffix(suite, "-security") {
		archive = "debian-security"
	}
	source := fmt.Sprintf("deb [arch=amd64 signed-by=%s] %s/%s %s main\n", keyring, s.mirror, archive, suite)
	for name, text := range map[string]string{"sources.list": source, "status": ""} {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// command runs one of apt's programs. A proxy that this machine's apt.conf has is used.
func (a *apt) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	var options []string
	for key, value := range map[string]string{
		"Dir::Etc::sourcelist": a.dir + "/sources.list", "Dir::Etc::sourceparts": "/dev/null",
		"Dir::State": a.dir + "/state", "Dir::State::status": a.dir + "/status", "Dir::Cache": a.dir + "/cache",
		"APT::Architecture": "amd64", "APT::Sandbox::User": "root", "Acquire::Languages": "none", "Acquire::Retries": "3",
	} {
		options = append(options, "-o", key+"="+value)
	}
	cmd := exec.CommandContext(ctx, program, append(options, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return cmd
}

// newest returns the newest release in a series, with the packages that make it up. They are split differently from
// series to series.
func (a *apt) newest(ctx context.Context, of series) (release string, packages []string, err error) {
	// Lists from the last time are good enough.
	updateErr := output(a.command(ctx, "apt-get", "-qq", "update"), nil)
	name := packagesOf(of)
	var listed string
	if err := output(a.command(ctx, "apt-cache", "search", "--names-only", name+"$"), &listed); err != nil {
		return "", nil, errors.Join(updateErr, err)
	}
	release, packages = pickNewest(listed, regexp.MustCompile(name+` - `))
	if release == "" {
		return "", nil, errors.Join(fmt.Errorf("no kernel %s for cloud machines in %s", of.name, a.suite), updateErr)
	}
	return release, packages, nil
}

// packagesOf is a regular expression for the names of a series' packages; its second group is the release.
func packagesOf(s series) string {
	return `^linux-(image|binary|base|modules)-(` + regexp.QuoteMeta(s.name) + `\.[^ ]*-cloud-amd64)`
}

// pickNewest picks the packages of the newest release out of lines that begin with a package's name.
func pickNewest(listed string, name *regexp.Regexp) (release string, packages []string) {
	for line := range strings.Lines(listed) {
		m := name.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if compareReleases(m[2], release) > 0 {
			release, packages = m[2], nil
		}
		if m[2] == release {
			packages = append(packages, strings.TrimSuffix(m[0], " - "))
		}
	}
	return release, packages
}

var numbers = regexp.MustCompile(`[0-9]+`)

// compareReleases compares the numbers in two releases one after the other: 6.12.9+deb12 is before 6.12.10+deb12.
func compareReleases(a, b string) int {
	of := func(release string) (out []int) {
		for _, digits := range numbers.FindAllString(strings.TrimSuffix(release, "-cloud-amd64"), -1) {
			n, _ := strconv.Atoi(digits)
			out = append(out, n)
		}
		return out
	}
	return cmp.Or(slices.Compare(of(a), of(b)), cmp.Compare(a, b))
}

// unpack downloads packages and has them in k.dir, complete or not at all.
func (a *apt) unpack(ctx context.Context, packages []string, k kernel) error {
	partial, err := os.MkdirTemp(filepath.Dir(k.dir), "partial-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(partial)
	debs, root := filepath.Join(partial, "debs"), filepath.Join(partial, "root")
	for _, dir := range []string{debs, root} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	download := a.command(ctx, "apt-get", append([]string{"-qq", "download"}, packages...)...)
	download.Dir = debs
	if err := output(download, nil); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := output(exec.CommandContext(ctx, "dpkg-deb", "-x", file, root), nil); err != nil {
			return err
		}
	}
	// Newer packages have their modules in /usr/lib alone; kmod looks in /lib.
	if err := os.Symlink("usr/lib", filepath.Join(root, "lib")); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := output(exec.CommandContext(ctx, "depmod", "-b", root, k.release), nil); err != nil {
		return err
	}
	return os.Rename(root, k.dir)
}

// output runs a command and keeps what it prints, if that is wanted. What it complains about is part of the error.
func output(cmd *exec.Cmd, stdout *string) error {
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, strings.Join(strings.Fields(complaints.String()), " "))
	}
	if stdout != nil {
		*stdout = string(out)
	}
	return nil
}
