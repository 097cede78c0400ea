// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the C sources of the programs and their generated bindings.
//
// The objects are committed: building needs no clang. They use no CO-RE and no kernel types beyond the
// stable UAPI, so one object serves every kernel from 5.10 on, with or without BTF.
package bpf

//go:generate go tool bpf2go -go-package bpf -output-stem untracked -target bpfel Untracked untracked.bpf.c
