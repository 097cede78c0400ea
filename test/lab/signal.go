// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// What is open now, to be closed by a signal. In the order of opening.
var onSignal struct {
	sync.Mutex
	once  sync.Once
	order []any
	close map[any]func() error
}

func registerForSignal(key any, fn func() error) {
	onSignal.Lock()
	defer onSignal.Unlock()
	if onSignal.close == nil {
		onSignal.close = map[any]func() error{}
	}
	onSignal.order = append(onSignal.order, key)
	onSignal.close[key] = fn
}

func unregisterForSignal(key any) {
	onSignal.Lock()
	defer onSignal.Unlock()
	onSignal.order = slices.DeleteFunc(onSignal.order, func(k any) bool { return k == key })
	delete(onSignal.close, key)
}

// CloseOnSignal has SIGINT, SIGTERM and SIGHUP close every open lab and lift every conntrack limit, whenever
// they were made, and then end the process with status 128 + signal, as shells do.
func CloseOnSignal() {
	onSignal.once.Do(func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
		go func() {
			s := (<-signals).(unix.Signal)
			signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
			CloseAll()
			os.Exit(128 + int(s))
		}()
	})
}

// CloseAll closes every open lab and lifts every conntrack limit, the latest first; for exits that pass by
// deferred calls.
func CloseAll() {
	for {
		onSignal.Lock()
		n := len(onSignal.order)
		if n == 0 {
			onSignal.Unlock()
			return
		}
		key := onSignal.order[n-1]
		fn := onSignal.close[key]
		onSignal.Unlock()
		if err := fn(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		unregisterForSignal(key)
	}
}
