# `make demo` and `make test` do everything on a fresh machine; `make help` lists the rest.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test e2e check bench fleet image release control-plane stores fmt

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/jasm
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
# What is built, tagged and released; `make image IMAGE=registry.example.com/jasm` for a registry of your own.
IMAGE := ghcr.io/codnod/jasm
DENY_VERSION := 0.20.2
DENY := $(CACHE)/tools/cargo-deny-$(DENY_VERSION)/bin/cargo-deny

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: rust control-plane ## the main job on a real API server: pods ask three stores, Secrets come out (KEEP=1: stay up; MODE=central: that mode)
	@echo 'Building the agent (the first time: about 3 minutes) ...'
	@cargo build --locked --quiet
	@tests/$(if $(filter central,$(MODE)),demo_central,demo).py target/debug/jasm-agent

test: rust control-plane ## all tests, on a real API server with the shipped rights and policies
	@echo 'Building the agent and its tests (the first time: about 5 minutes) ...'
	cargo test --locked

e2e: rust ## the install on a real node: one of its own (root, Debian or Ubuntu), or the cluster of KUBECONFIG
	@tests/e2e.sh

check: rust $(DENY) ## format, lints, licences and bans; no network but the crate registry
	cargo fmt --check
	cargo clippy --locked --all-targets -- --deny warnings
	cargo clippy --locked --no-default-features --features aws -- --deny warnings
	$(DENY) --all-features check --hide-inclusion-graph bans licenses sources

bench: rust control-plane ## figures of a release build, beside the targets (the first time: about 10 minutes)
	@echo 'Building the release profile (fat LTO: about 4 minutes on two cores) ...'
	cargo build --locked --release
	JASM_AGENT_BIN=$(CURDIR)/target/release/jasm-agent cargo test --locked --test it -- --ignored --nocapture --test-threads=1 bench::

fleet: rust control-plane ## 10,000 syncs of ten agents with a store that fails now and then (about 10 minutes)
	@echo 'Building the release profile (fat LTO: about 4 minutes on two cores) ...'
	cargo build --locked --release
	JASM_AGENT_BIN=$(CURDIR)/target/release/jasm-agent cargo test --locked --test it -- --ignored --nocapture --test-threads=1 fleet::

image: rust ## the container image, with buildah or docker: an archive in dist/ (the first time: about 5 minutes)
	@.ci/image $(IMAGE):$(VERSION)

release: ## dist/install.yaml: all that `kubectl apply -k daemonset` applies, with the image of this version
	@.ci/release $(IMAGE):$(VERSION) $(DIGEST)

control-plane: stores ## etcd, kube-apiserver, kube-controller-manager, kubectl and the stores, built once into the cache
	@tests/control-plane/build.sh >/dev/null

stores: ## Vault and an emulator of AWS, built once into the cache
	@tests/control-plane/moto.sh >/dev/null
	@tests/control-plane/build.sh vault >/dev/null

fmt: ## format the code
	cargo fmt

.PHONY: rust
rust:
	@command -v cargo >/dev/null || { echo 'error: Rust is not installed: install Rust 1.95 or newer (https://rustup.rs)' >&2; exit 1; }

$(DENY):
	@echo 'Installing cargo-deny $(DENY_VERSION) into the cache (once, about 5 minutes) ...'
	@cargo install --quiet --locked --root $(CACHE)/tools/cargo-deny-$(DENY_VERSION) cargo-deny@$(DENY_VERSION)
