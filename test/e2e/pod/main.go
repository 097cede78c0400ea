// SPDX-License-Identifier: Apache-2.0

// pod is what the containers of end-to-end tests run: nothing, or a server.
//
//	pod pause              wait for the end
//	pod serve PORT…        send back what comes, by TCP (each connection's bytes) and UDP (each datagram)
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGTERM, unix.SIGINT)
	if len(os.Args) > 2 && os.Args[1] == "serve" {
		for _, port := range os.Args[2:] {
			if err := serve(":" + port); err != nil {
				fmt.Fprintln(os.Stderr, "pod:", err)
				os.Exit(1)
			}
		}
	}
	<-ended
}

func serve(address string) error {
	udp, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	lis, err := net.Listen("tcp", address) // who can connect knows that datagrams are taken, too
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			udp.WriteTo(buf[:n], from)
		}
	}()
	return nil
}
