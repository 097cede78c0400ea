// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// serve runs a server of these families until the test ends, or stop is called, which returns what Serve did.
func serve(t *testing.T, families func() []Family) (url string, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l, err := Listen(ctx, "127.0.0.1:0", func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- (&Server{Metrics: families}).Serve(ctx, l) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(time.Minute):
			return errors.New("still serving after a minute")
		}
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String(), stop
}

func TestServer(t *testing.T) {
	url, _ := serve(t, func() []Family { return sample })
	for _, c := range []struct {
		method, path, accept string
		status               int
		kind, body           string
	}{
		{"GET", "/metrics", "", 200, string(Text), "# TYPE x_packets_total counter\n"},
		{"GET", "/metrics?collect=all", "application/openmetrics-text;version=1.0.0", 200, string(OpenMetrics), "# EOF\n"},
		{"HEAD", "/metrics", "application/openmetrics-text", 200, string(OpenMetrics), ""},
		{"GET", "/healthz", "", 200, plain, "ok\n"},
		{"HEAD", "/healthz", "", 200, plain, ""},
		{"GET", "/", "", 404, plain, "/metrics"},
		{"GET", "/metrics/../etc/passwd", "", 404, plain, "/metrics"},
		{"POST", "/metrics", "", 405, plain, "GET or HEAD"},
		{"DELETE", "/healthz", "", 405, plain, "GET or HEAD"},
	} {
		// More than fits into one's buffers: it has to be read, or the answer would get lost.
		body := io.Reader(nil)
		if c.method == "POST" {
			body = strings.NewReader(strings.Repeat("x", 500<<10))
		}
		r, err := http.NewRequest(c.method, url+c.path, body)
		if err != nil {
			t.Fatal(err)
		}
		if c.accept != "" {
			r.Header.Set("Accept", c.accept)
		}
		got, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Errorf("%s %s: %v", c.method, c.path, err)
			continue
		}
		text, err := io.ReadAll(got.Body)
		got.Body.Close()
		if err != nil || got.StatusCode != c.status || got.Header.Get("Content-Type") != c.kind || !strings.Contains(string(text), c.body) {
			t.Errorf("%s %s: %s, %v, %q, %v", c.method, c.path, got.Status, got.Header, text, err)
		}
		if !got.Close || c.method == "HEAD" && (len(text) > 0 || got.ContentLength <= 0) {
			t.Errorf("%s %s: %+v", c.method, c.path, got)
		}
		if c.status == 405 && got.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s %s: %v", c.method, c.path, got.Header)
		}
		if date, err := http.ParseTime(got.Header.Get("Date")); err != nil || time.Since(date).Abs() > time.Hour {
			t.Errorf("%s %s: date %v, %v", c.method, c.path, date, err)
		}
	}
}

// What is no request is told so, or gets nothing, and harms nobody.
func TestServerRefuses(t *testing.T) {
	url, _ := serve(t, func() []Family { return sample })
	address := strings.TrimPrefix(url, "http://")
	for request, want := range map[string]string{
		"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n":                                            "HTTP/1.1 200 OK\r\n",
		"GET http://x/metrics HTTP/1.1\r\nHost: x\r\n\r\n":                                    "HTTP/1.1 200 OK\r\n",
		"GET /metrics HTTP/1.0\r\n\r\n":                                                       "HTTP/1.1 200 OK\r\n",
		"GET /metrics HTTP/1.1\r\n\r\n":                                                       "HTTP/1.1 400 ",
		"GET /metrics HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n":                                 "HTTP/1.1 400 ",
		"GET /metrics HTTP/2.0\r\nHost: x\r\n\r\n":                                            "HTTP/1.1 400 ",
		"GET metrics HTTP/1.1\r\nHost: x\r\n\r\n":                                             "HTTP/1.1 400 ",
		"GET /metrics\r\n\r\n":                                                                "HTTP/1.1 400 ",
		"GET /metrics HTTP/1.1\r\nno field\r\n\r\n":                                           "HTTP/1.1 400 ",
		"\x16\x03\x01\x02\x00\r\n\r\n":                                                        "HTTP/1.1 400 ",
		"GET /" + strings.Repeat("x", maxRequest) + " HTTP/1.1\r\nHost: x\r\n\r\n":            "HTTP/1.1 431 ",
		"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-Y: z\r\n", maxRequest/8) + "\r\n": "HTTP/1.1 431 ",
		"GET /metrics HTTP/1.1\r\nHost: x\r\n":                                                "",
		"":                                                                                    "",
	} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, request); err != nil {
			t.Errorf("%.40q: %v", request, err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Errorf("%.40q: %v", request, err)
		}
		got, err := io.ReadAll(c)
		if c.Close(); err != nil || !strings.HasPrefix(string(got), want) || want == "" && len(got) > 0 {
			t.Errorf("%.40q: %.80q, %v; want %q", request, got, err, want)
		}
	}
}

// When it is told to end, who is being answered gets the answer, and who has asked for nothing yet does not keep it.
func TestServerEnds(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	url, stop := serve(t, func() []Family {
		close(asked)
		<-answer
		return sample
	})
	idle, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	got := make(chan error, 1)
	go func() {
		r, err := http.Get(url + "/metrics")
		if err == nil {
			var text []byte
			text, err = io.ReadAll(r.Body)
			if r.Body.Close(); !strings.Contains(string(text), "x_packets_total") {
				err = errors.Join(err, errors.New(string(text)))
			}
		}
		got <- err
	}()
	<-asked
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	if _, err := io.ReadAll(idle); err != nil { // which ends when it has been told
		t.Errorf("the idle client: %v", err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			break
		}
		if c.Close(); time.Now().After(deadline) {
			t.Error("it accepts more")
			break
		}
	}
	close(answer)
	if err := <-got; err != nil {
		t.Errorf("the answer: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// It asks for one thing at a time, and many clients at once all get theirs.
func TestServerManyClients(t *testing.T) {
	var at, most atomic.Int32
	url, _ := serve(t, func() []Family {
		most.Store(max(most.Load(), at.Add(1)))
		defer at.Add(-1)
		return sample
	})
	failed := make(chan error, 2*maxClients)
	for range cap(failed) {
		go func() {
			r, err := http.Get(url + "/metrics")
			if err == nil {
				_, err = io.ReadAll(r.Body)
				r.Body.Close()
			}
			failed <- err
		}()
	}
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	if most.Load() != 1 {
		t.Errorf("%d at a time", most.Load())
	}
}

// The next one takes over the address when the one before goes; it says that it waits, once.
func TestListenWaits(t *testing.T) {
	old, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := old.Addr().String()
	var said []error
	l, err := Listen(t.Context(), address, func(err error) {
		said = append(said, err)
		time.AfterFunc(time.Second, func() { old.Close() }) // some tries later
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if len(said) != 1 || !strings.Contains(said[0].Error(), address) {
		t.Errorf("said %v", said)
	}

	ctx, cancel := context.WithCancel(t.Context())
	if l, err := Listen(ctx, address, func(error) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("told to end while it waits: %v, %v", l, err)
	}
	if l, err := Listen(t.Context(), "192.0.2.1:80", func(err error) { t.Error(err) }); err == nil {
		t.Errorf("at an address that is not this machine's: %v", l)
	}
}
