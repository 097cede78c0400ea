// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestPickNewest(t *testing.T) {
	const listed = `linux-image-7.9.1+deb13-cloud-amd64 - Linux 7.9.1 for x86-64 cloud
linux-base-7.10.2+deb13-cloud-amd64 - Linux 7.10.2 for x86-64 cloud (base files)
linux-binary-7.10.2+deb13-cloud-amd64 - Linux 7.10.2 for x86-64 cloud (kernel image)
linux-binary-unsigned-7.10.2+deb13-cloud-amd64 - Linux 7.10.2 for x86-64 cloud (unsigned kernel image)
linux-modules-7.10.2+deb13-cloud-amd64 - Linux 7.10.2 for x86-64 cloud (modules)
linux-modules-7.10.1+deb13-cloud-amd64 - Linux 7.10.1 for x86-64 cloud (modules)
linux-image-cloud-amd64 - Linux for x86-64 cloud (meta-package)
linux-image-6.12.90+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.90+deb12.1-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12-cloud-amd64 - Linux for x86-64 cloud (meta-package)
linux-image-6.1.0-56-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-9-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
`
	for _, c := range []struct {
		series, release string
		packages        []string
	}{
		{"7", "7.10.2+deb13-cloud-amd64", []string{"linux-base-7.10.2+deb13-cloud-amd64", "linux-binary-7.10.2+deb13-cloud-amd64", "linux-modules-7.10.2+deb13-cloud-amd64"}},
		{"6.12", "6.12.90+deb12.1-cloud-amd64", []string{"linux-image-6.12.90+deb12.1-cloud-amd64"}},
		{"6.1", "6.1.0-56-cloud-amd64", []string{"linux-image-6.1.0-56-cloud-amd64"}},
		{"5.10", "", nil},
	} {
		release, packages := pickNewest(listed, regexp.MustCompile(packagesOf(series{name: c.series})+" - "))
		if release != c.release || !slices.Equal(packages, c.packages) {
			t.Errorf("series %s: %q of %q, want %q of %q", c.series, release, packages, c.release, c.packages)
		}
	}
}

// What the archive holds comes out again, by somebody else's reading of the format.
func TestArchive(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("needs cpio")
	}
	a := newArchive()
	files := map[string]string{"init": "first", "modules/a.ko": "12345678", "modules/deep/b.ko": ""}
	for name, text := range files {
		a.add(name, []byte(text))
	}
	dir := t.TempDir()
	cmd := exec.Command("cpio", "--extract", "--no-absolute-filenames")
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(string(a.close()))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, text := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != text {
			t.Errorf("%s: %q, %v; want %q", name, got, err, text)
		}
	}
}

func TestJudge(t *testing.T) {
	const (
		run     = "=== RUN   TestA\n"
		passed  = run + "=== ATTR  TestA tcx no\n    a_test.go:1: 12 verdicts compared, no mismatch\n--- PASS: TestA (0.10s)\n"
		failed  = run + "    a_test.go:1: what was wrong\n--- FAIL: TestA (0.10s)\n"
		skipped = run + "--- SKIP: TestA (0.10s)\n"
		warning = "[   42.000000] a word from the kernel\n"
		success = "\nkernel test: pass\n[   43.000000] reboot: Power down\n"
	)
	marked := func(console string) []byte { // as -test.v=test2json has it
		return []byte(regexp.MustCompile(`(?m)^(===|---|PASS|FAIL)`).ReplaceAllString(console, "\x16$1"))
	}
	for name, c := range map[string]struct {
		console string
		wanted  []string
		err     string // part of it, empty for none
	}{
		"passed":          {"boot\n" + passed + "PASS\n" + success, []string{"Test"}, ""},
		"noisy":           {warning + passed + warning + "PASS\n" + success, []string{"TestA$"}, ""},
		"failed":          {failed + "FAIL\n\nkernel test: fail: a.test: exit status 1\n", nil, "failed: TestA"},
		"failed silently": {passed + "PASS\n\nkernel test: fail: the kernel warned\n", nil, "the kernel warned"},
		"hung":            {passed + run, nil, "did not come to an end"},
		"nothing":         {"", nil, "did not come to an end"},
		"no tests":        {"PASS\n" + success, nil, "no test has run"},
		"all skipped":     {skipped + "PASS\n" + success, nil, "no test has run"},
		"one missing":     {passed + "PASS\n" + success, []string{"TestA", "TestB"}, "no test is called TestB"},
	} {
		t.Run(name, func(t *testing.T) {
			console := marked(c.console)
			tests, err := readTestLog(console)
			if err != nil {
				t.Fatal(err)
			}
			err = judge(console, &tests, c.wanted)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %v, want %q", err, c.err)
			}
			if strings.Contains(c.console, "what was wrong") != strings.Contains(tests.failures, "what was wrong") {
				t.Errorf("the failures are %q", tests.failures)
			}
			if strings.Contains(c.console, "verdicts") && (tests.verdicts != 12 || !slices.Equal(tests.features, []string{"tcx no"})) {
				t.Errorf("%d verdicts, features %q; want 12 and no tcx", tests.verdicts, tests.features)
			}
		})
	}
}

func TestConclude(t *testing.T) {
	ran, none := outcome{series: "1"}, outcome{series: "2", unavailable: os.ErrNotExist}
	bad := outcome{series: "3", err: os.ErrInvalid}
	for _, c := range []struct {
		outcomes  []outcome
		allowNone bool
		fails     bool
	}{
		{[]outcome{ran, none}, false, false},
		{[]outcome{none}, false, true},
		{[]outcome{none}, true, false},
		{[]outcome{ran, bad}, true, true},
	} {
		if err := conclude(c.outcomes, c.allowNone); (err != nil) != c.fails {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
