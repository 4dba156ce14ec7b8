# Flipside: one command for everything. `make help` lists them.

CARGO ?= cargo
SEEDS ?= 2000
CLUSTERS ?= 150
SEED ?= 1
SECONDS ?= 20
ACTIONS ?= 3
DEPTH ?= 2
EVERY ?= 1
ERRORS ?= 1
NESTED ?= 4096

# Where `make install` puts things; DESTDIR goes in front of it, for packages.
PREFIX ?= /usr/local
DESTDIR ?=
BINARY ?= target/release/flipside
BIN_DIR = $(DESTDIR)$(PREFIX)/bin
MAN_DIR = $(DESTDIR)$(PREFIX)/share/man/man1
BASH_DIR = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSH_DIR = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
FISH_DIR = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
UNIT_DIR = $(DESTDIR)$(PREFIX)/lib/systemd/system
EXAMPLE_DIR = $(DESTDIR)$(PREFIX)/share/doc/flipside

# Tests run optimised a little, with every assertion; the simulator wants it (see Cargo.toml).
.DEFAULT_GOAL := help
.PHONY: help setup build test soak sim sim-exhaustive mutants nbd-tester demo serve bench fuzz
.PHONY: bench-peers bench-journal bench-mds vm-blktests vm-test vm-bench coverage install uninstall clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what everything else needs (Debian packages; a list where it may not)
	@tools/setup.sh

build: ## build the release binary, target/release/flipside
	$(CARGO) build --release

test: setup ## format check, clippy, unit, integration and simulator tests
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --features mutants -- -D warnings
	$(CARGO) test

vm-test: setup ## what needs a kernel of its own, in a virtual machine (qemu, no KVM): 5 minutes
	@tools/vm/setup >/dev/null
	$(CARGO) test --test vm -- --nocapture

vm-blktests: build ## blktests' ublk and nbd groups in the virtual machine: 10 minutes; BLKTESTS=CHECKOUT
	@tools/vm/setup >/dev/null
	tools/vm/blktests "$(BLKTESTS)"

soak: setup ## the same tests with the long counts, the planted faults, the fuzzers: a day
	@tools/setup.sh soak
	@tools/vm/setup >/dev/null
	@FLIPSIDE_VM_SUITE=trixie-backports tools/vm/setup >/dev/null
	FLIPSIDE_SEEDS=$${FLIPSIDE_SEEDS:-1000000} $(CARGO) test --test sim -- --nocapture
	FLIPSIDE_SEEDS=$${FLIPSIDE_CLUSTERS:-100000} $(CARGO) test --test cluster --test grouped \
		-- --nocapture
	FLIPSIDE_ROUNDS=200 $(CARGO) test --test kill --test warm --test flags_move \
		--test mds_kill --test group_kill -- --nocapture
	FLIPSIDE_REQUIRE_ALL=1 FLIPSIDE_ROUNDS=50 $(CARGO) test --test vm -- --nocapture
	FLIPSIDE_REQUIRE_ALL=1 FLIPSIDE_VM_SUITE=trixie-backports $(CARGO) test --test vm -- --nocapture
	tools/vm/bench_journal
	$(if $(BLKTESTS),$(MAKE) vm-blktests)
	FLIPSIDE_GROUPS=1000000 $(CARGO) test --test global one_in_doubt -- --nocapture
	@tools/nbd_tester.sh
	FLIPSIDE_SECONDS=600 $(MAKE) mutants
	tools/fuzz.sh 600

# SECONDS alone is a bound of time, SEEDS alone of number; both: whichever comes first. $(origin)
# tells who was given.
SIM_SECONDS = $(if $(filter command environment,$(firstword $(origin SECONDS))),$(SECONDS))
SIM_SEEDS = $(if $(SIM_SECONDS),$(if $(filter command environment,$(firstword $(origin SEEDS))),$(SEEDS)),$(SEEDS))

sim: ## simulate SEEDS random seeds from SEED on and CLUSTERS of several machines and groups, or each for SECONDS
	FLIPSIDE_SEEDS=$(SIM_SEEDS) FLIPSIDE_SECONDS=$(SIM_SECONDS) FLIPSIDE_SEED=$(SEED) \
		$(CARGO) test --test sim -- --nocapture
	FLIPSIDE_SEEDS=$(if $(SIM_SEEDS),$(CLUSTERS)) FLIPSIDE_SECONDS=$(SIM_SECONDS) FLIPSIDE_SEED=$(SEED) \
		$(CARGO) test --test cluster --test grouped -- --nocapture

sim-exhaustive: ## every crash of up to ACTIONS operations, nested to DEPTH, NESTED images of each; all of it takes days
	FLIPSIDE_ACTIONS=$(ACTIONS) FLIPSIDE_DEPTH=$(DEPTH) FLIPSIDE_EVERY=$(EVERY) \
		FLIPSIDE_ERRORS=$(ERRORS) FLIPSIDE_NESTED=$(NESTED) \
		$(CARGO) test --test exhaustive -- --nocapture

mutants: ## switch on each planted fault, and show the random seeds that it survives
	$(CARGO) test --features mutants --test mutants -- --nocapture

nbd-tester: setup ## the NBD project's own test client, from Debian's sources, against us
	@tools/nbd_tester.sh

demo: setup ## format, serve, load, kill -9, recover, verify; on a loop device or a file
	@tools/demo.sh

serve: build ## serve a formatted disk: make serve DEV=/dev/sdX
	@test -n "$(DEV)" || { echo "make serve DEV=/dev/sdX (after: target/release/flipside format /dev/sdX)"; exit 2; }
	target/release/flipside serve $(DEV)

bench: build ## Flipside beside its peers, into bench/results/: 20 minutes; ARGS=--quick: 2; ARGS=--help
	@tools/setup.sh bench
	$(CARGO) build --release --example passthrough
	python3 bench/compare $(ARGS)

bench-peers: ## the part of it over NBD alone
	@$(MAKE) bench ARGS="--parts nbd $(ARGS)"

bench-mds: setup ## the metadata server's durable primitives a second over UDP, and its bounds; DIR=
	$(CARGO) bench --bench mds -- $(if $(DIR),--dir $(DIR)) $(ARGS)

bench-journal: setup ## data in the journal beside the device alone, and commits of groups; DIR= NVRAM=
	$(CARGO) bench --bench journal -- $(if $(DIR),--dir $(DIR)) $(if $(NVRAM),--nvram $(NVRAM)) $(ARGS)
	$(CARGO) bench --bench group_commits -- $(if $(DIR),--dir $(DIR)) $(if $(NVRAM),--nvram $(NVRAM)) $(ARGS)

vm-bench: setup ## the same with persistent memory, in the virtual machine: only the ratios count
	@tools/vm/setup >/dev/null
	tools/vm/bench_journal $(ARGS)

coverage: ## lines of journal/, unit/, format/, txn/ that tests execute (installs cargo-tarpaulin)
	@tools/coverage.sh

fuzz: ## every parser, SECONDS each (needs cargo-fuzz, which this installs)
	@tools/fuzz.sh $(SECONDS)

# Built again where a source is newer, and not otherwise: `sudo make install` needs no toolchain.
target/release/flipside: Cargo.toml Cargo.lock $(shell find src -name '*.rs')
	$(CARGO) build --release
	@touch $@

install: $(BINARY) ## binary, man pages, completions, systemd units; PREFIX=/usr/local DESTDIR=
	install -d $(BIN_DIR) $(MAN_DIR) $(BASH_DIR) $(ZSH_DIR) $(FISH_DIR) $(UNIT_DIR) $(EXAMPLE_DIR)
	install -m 755 $(BINARY) $(BIN_DIR)/flipside
	$(BIN_DIR)/flipside man $(MAN_DIR)
	$(BIN_DIR)/flipside completions bash >$(BASH_DIR)/flipside
	$(BIN_DIR)/flipside completions zsh >$(ZSH_DIR)/_flipside
	$(BIN_DIR)/flipside completions fish >$(FISH_DIR)/flipside.fish
	for unit in flipside flipside-mds; do sed 's|/usr/local/bin|$(PREFIX)/bin|' \
		tools/systemd/$$unit.service >$(UNIT_DIR)/$$unit.service; done
	install -m 644 tools/systemd/flipside.socket $(UNIT_DIR)
	install -m 644 tools/systemd/flipside.toml $(EXAMPLE_DIR)

uninstall: ## remove what install put there; disks and /etc/flipside.toml stay
	rm -f $(BIN_DIR)/flipside $(MAN_DIR)/flipside.1 $(MAN_DIR)/flipside-*.1
	rm -f $(BASH_DIR)/flipside $(ZSH_DIR)/_flipside $(FISH_DIR)/flipside.fish
	rm -f $(UNIT_DIR)/flipside.service $(UNIT_DIR)/flipside-mds.service
	rm -f $(UNIT_DIR)/flipside.socket $(EXAMPLE_DIR)/flipside.toml

clean: ## remove what was built
	$(CARGO) clean
