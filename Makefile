# SPDX-License-Identifier: Apache-2.0

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
DESTDIR :=
BINDIR  := /opt/cni/bin

GO      := go
LDFLAGS := -s -w -X main.pluginVersion=$(VERSION)
# The container images and the tests need a binary that runs anywhere.
export CGO_ENABLED := 0
export GOFLAGS     += -buildvcs=false

# The committed objects are built by Debian 12's clang 14; another version gives other bytes.
BPF2GO_CFLAGS := -O2 -g -Wall -Wextra -Werror -mcpu=v3 -I/usr/include/$(shell uname -m)-linux-gnu

.PHONY: all build image generate test test-tools test-kernels e2e demo bench lint install clean

all: build

build: ## the plugin and command: bin/untracked, static
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/untracked ./plugins/meta/untracked

# What the image is for. No compiler for them is needed: the BPF programs are the same on all.
ARCHITECTURES := amd64 arm64
IMAGE := bin/untracked-image.tar
IMAGE_BINARIES := $(ARCHITECTURES:%=bin/untracked-linux-%)

image: $(IMAGE_BINARIES) ## the container image: bin/untracked-image.tar, written without a container engine
	$(GO) run ./conf/kubernetes/image -o '$(IMAGE)' -version '$(VERSION)' -revision "$$(git rev-parse HEAD 2>/dev/null)" \
		-created "$$(git log -1 --format=%ct 2>/dev/null || echo 0)" $(foreach a,$(ARCHITECTURES),$(a)=bin/untracked-linux-$(a))

.PHONY: $(IMAGE_BINARIES)
$(IMAGE_BINARIES): bin/untracked-linux-%:
	GOOS=linux GOARCH=$* $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./plugins/meta/untracked

generate: ## compile the BPF programs and their bindings again (needs clang, llvm and libbpf-dev)
	BPF2GO_CFLAGS='$(BPF2GO_CFLAGS)' $(GO) generate ./bpf ./test/bench

test: build test-tools ## everything: pure packages, programs in the kernel, real traffic, real runtimes (as root)
	$(GO) test -count=1 -timeout 30m ./...
	$(GO) -C test/manifests test -count=1 ./...

# What some tests compare with or put to work. Tests that lack a tool say so and skip.
TEST_TOOLS := ip:iproute2 nft:nftables conntrack:conntrack tcpdump:tcpdump redis-server:redis-server redis-benchmark:redis-tools iptables:iptables
test-tools:
	@missing=; for t in $(TEST_TOOLS); do command -v $${t%%:*} >/dev/null || missing="$$missing $${t##*:}"; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing$$missing"; apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

test-kernels: ## the datapath on the kernels 5.10 to 7.x, which are downloaded and run by qemu
	$(GO) run ./test/kernels

e2e: ## real containerd, kubelet and control plane run pods with the plugin (as root; the first time builds them, 10 to 20 minutes)
	$(GO) run ./test/e2e/prepare
	$(GO) test -v -count=1 -p 1 -parallel 8 -timeout 20m ./test/e2e/... -e2e

demo: build ## see it work: two network namespaces, real connections, before and after (as root)
	$(GO) run ./test/demo

bench: ## measure what it costs (as root, about ten minutes): tables, bench.json, and the plots in test/bench
	$(GO) run ./test/bench -json bench.json

lint: ## vet, staticcheck, formatting
	@unformatted=$$(gofmt -l bpf conf pkg plugins test); if [ -n "$$unformatted" ]; then echo "gofmt would change: $$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) -C test/manifests vet ./...
	$(GO) tool staticcheck ./...
	cd test/manifests && "$$($(GO) -C ../.. tool -n staticcheck)" ./...

install: build ## bin/untracked to $(DESTDIR)/opt/cni/bin
	install -d $(DESTDIR)$(BINDIR)
	# By rename: a runtime may be running the old binary this very moment.
	install -m 0755 bin/untracked $(DESTDIR)$(BINDIR)/.untracked.new
	mv -f $(DESTDIR)$(BINDIR)/.untracked.new $(DESTDIR)$(BINDIR)/untracked

clean:
	rm -rf bin bench.json

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22
