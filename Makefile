# Flipside: one command for everything. `make help` lists them.

CARGO ?= cargo
SEEDS ?= 2000
SEED ?= 1
SECONDS ?= 20

# Tests run optimised a little, with every assertion; the simulator wants it (see Cargo.toml).
.DEFAULT_GOAL := help
.PHONY: help setup build test soak sim demo serve bench fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what everything else needs (Debian packages; a list where it may not)
	@tools/setup.sh

build: ## build the release binary, target/release/flipside
	$(CARGO) build --release

test: setup ## format check, clippy, unit, integration and simulator tests
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) test

soak: setup ## the same tests with the long counts: hours
	FLIPSIDE_SEEDS=$${FLIPSIDE_SEEDS:-1000000} $(CARGO) test --test sim -- --nocapture
	FLIPSIDE_ROUNDS=200 $(CARGO) test --test kill -- --nocapture

sim: ## simulate SEEDS random seeds from SEED on, on all cores
	FLIPSIDE_SEEDS=$(SEEDS) FLIPSIDE_SEED=$(SEED) $(CARGO) test --test sim -- --nocapture

demo: setup ## format, serve, load, kill -9, recover, verify; on a loop device or a file
	@tools/demo.sh

serve: build ## serve a formatted disk: make serve DEV=/dev/sdX
	@test -n "$(DEV)" || { echo "make serve DEV=/dev/sdX (after: target/release/flipside format /dev/sdX)"; exit 2; }
	target/release/flipside serve $(DEV)

bench: setup build ## Flipside beside qemu-nbd on one RAM-backed device; writes bench/results/
	python3 bench/compare.py

fuzz: ## every parser, SECONDS each (needs cargo-fuzz, which this installs)
	@tools/fuzz.sh $(SECONDS)

clean: ## remove what was built
	$(CARGO) clean
