// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Listen binds to a TCP address. While somebody else is there it waits, and says so once: where a new server is started
// before the old one has gone, as a rolling update does, it takes over.
func Listen(ctx context.Context, address string, waiting func(error)) (net.Listener, error) {
	for said := false; ; {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if !errors.Is(err, unix.EADDRINUSE) {
			return l, err
		}
		if !said {
			waiting(err)
			said = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// Server answers scrapers, and probes at /healthz. It speaks as much of HTTP/1.1 (RFC 9110, 9112) as that needs: GET and
// HEAD, one request a connection, nothing kept of a client. Importing net/http would add 4 MB to the binary and a tenth
// to the start of every pod.
type Server struct {
	// Metrics are asked for at each scrape, by one goroutine at a time.
	Metrics func() []Family

	mu sync.Mutex
}

// What a client may take, so that none keeps others away for long.
const (
	maxClients = 64
	maxRequest = 16 << 10         // bytes
	patience   = 10 * time.Second // for the request, and for the answer to be taken
)

// Serve answers until the context ends; then it closes the listener, and returns when those that are being
// answered have been.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var clients sync.WaitGroup
	defer clients.Wait()
	defer l.Close()
	room := make(chan struct{}, maxClients)
	for {
		room <- struct{}{}
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // no descriptor left, or a client that has gone again
			<-room
			time.Sleep(50 * time.Millisecond)
			continue
		}
		clients.Go(func() {
			defer func() { <-room }()
			defer c.Close()
			s.exchange(ctx, c.(*net.TCPConn))
		})
	}
}

// exchange reads one request and answers it. Once the server is told to end, it waits for no request any more.
func (s *Server) exchange(ctx context.Context, c *net.TCPConn) {
	if c.SetReadDeadline(time.Now().Add(patience)) != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Now()) })()
	limited := &io.LimitedReader{R: c, N: maxRequest}
	r, err := readRequest(bufio.NewReader(limited))
	var answer response
	switch {
	case err == nil:
		answer = s.answer(r)
	case limited.N <= 0:
		answer = response{"431 Request Header Fields Too Large", plain, "too long\n"}
	case errors.Is(err, errBadRequest):
		answer = response{"400 Bad Request", plain, err.Error() + "\n"}
	default:
		return
	}
	if c.SetWriteDeadline(time.Now().Add(patience)) != nil || answer.write(c, r.method == "HEAD") != nil {
		return
	}
	// To close with something unread would have the answer thrown away at the other end (RFC 9112, 9.6).
	if c.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<20))
	}
}

// request is what matters of one.
type request struct{ method, path, accept string }

var errBadRequest = errors.New("not a request of HTTP/1.1 or 1.0")

func readRequest(b *bufio.Reader) (request, error) {
	in := textproto.NewReader(b)
	line, err := in.ReadLine()
	if err != nil {
		return request{}, err
	}
	words := strings.Split(line, " ")
	if len(words) != 3 || words[2] != "HTTP/1.1" && words[2] != "HTTP/1.0" {
		return request{}, errBadRequest
	}
	target, err := url.ParseRequestURI(words[1])
	if err != nil {
		return request{}, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	header, err := in.ReadMIMEHeader()
	var malformed textproto.ProtocolError
	if errors.As(err, &malformed) || err == nil && words[2] == "HTTP/1.1" && len(header["Host"]) != 1 {
		return request{}, errBadRequest
	}
	return request{words[0], target.Path, strings.Join(header["Accept"], ",")}, err
}

// response is a status with its reason, and header fields behind it if need be, and what is in the body.
type response struct{ status, kind, body string }

const plain = "text/plain; charset=utf-8"

func (s *Server) answer(r request) response {
	switch {
	case r.path != "/metrics" && r.path != "/healthz":
		return response{"404 Not Found", plain, "here are /metrics and /healthz\n"}
	case r.method != "GET" && r.method != "HEAD":
		return response{"405 Method Not Allowed\r\nAllow: GET, HEAD", plain, "GET or HEAD only\n"}
	case r.path == "/healthz":
		// Of this process: a node that is not well is told by its metrics, and not mended by a restart of this.
		return response{"200 OK", plain, "ok\n"}
	}
	var body strings.Builder
	format := Negotiate(r.accept)
	_ = Write(&body, format, s.metrics()) // into memory, which never fails
	return response{"200 OK", string(format), body.String()}
}

func (s *Server) metrics() []Family {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Metrics()
}

func (r *response) write(w io.Writer, head bool) error {
	const date = "Mon, 02 Jan 2006 15:04:05 GMT"
	text := fmt.Sprintf("HTTP/1.1 %s\r\nDate: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
		r.status, time.Now().UTC().Format(date), r.kind, len(r.body))
	if !head {
		text += r.body
	}
	_, err := io.WriteString(w, text)
	return err
}
