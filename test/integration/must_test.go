// SPDX-License-Identifier: Apache-2.0

package integration

import "testing"

// must ends the test on an error, and check does for a function that returns nothing else.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
