# SPDX-License-Identifier: Apache-2.0
BPF2GO_CFLAGS := -O2 -g -Wall -Wextra -Werror -mcpu=v3 -I/usr/include/$(shell uname -m)-linux-gnu
generate:
	BPF2GO_CFLAGS="$(BPF2GO_CFLAGS)" go generate ./bpf
