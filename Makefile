# What can be done here. Each target brings along what it needs (scripts/setup says what it installs).

.PHONY: setup build test

setup:
	scripts/setup

build: setup
	cargo build --release --locked

test: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --workspace --locked
