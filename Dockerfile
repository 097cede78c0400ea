# SPDX-License-Identifier: Apache-2.0
#
# The image that `make image` writes without a container engine, for those who build with one:
#
#	docker build --build-arg VERSION=$(git describe --tags --always) -t REGISTRY/untracked:TAG .
#
# The BPF programs are committed as objects, so Go is all it takes.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETARCH
ARG VERSION=unknown
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 GOOS=linux GOARCH=$TARGETARCH go build -buildvcs=false -trimpath \
	-ldflags "-s -w -X main.pluginVersion=$VERSION" -o /untracked ./plugins/meta/untracked

FROM scratch
ARG VERSION=unknown
LABEL org.opencontainers.image.title="untracked" \
	org.opencontainers.image.description="Takes chosen traffic of a node out of connection tracking" \
	org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)" \
	org.opencontainers.image.source="https://github.com/untracked-cni/untracked" \
	org.opencontainers.image.version="$VERSION"
COPY LICENSE bpf/LICENSE.GPL-2.0 bpf/LICENSE.BSD-2-Clause /licenses/
COPY --from=build /untracked /untracked
ENTRYPOINT ["/untracked"]
