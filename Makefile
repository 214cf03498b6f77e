# What can be done here. Each target brings along what it needs (scripts/setup says what it installs).

.PHONY: setup build test demo chaos fuzz bench bench-quick bench-codec deny

# Where cargo puts what it builds.
TARGET = $(or $(CARGO_TARGET_DIR),target)

setup:
	scripts/setup

build: setup
	cargo build --release --locked

test: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --workspace --locked

# Two regions under load: each daemon is killed, the line between them cut, a broker and a database restarted;
# then every row is compared. The last line is the verdict. KEEP=1 leaves everything running.
demo: setup
	cargo build --release --locked -p landfall -p testbed --bin landfall --bin demo
	$(TARGET)/release/demo $(TARGET)/release/landfall

# The kill tests at length, and memory at the sizes its cap is stated for, a backfill of ten million rows among them.
# Some hours; the seed is printed, LANDFALL_SEED repeats it.
chaos: setup
	LANDFALL_KILLS=300 cargo test --release --locked --test daemons -- kills:: parked:: backfill:: --nocapture --test-threads 1
	LANDFALL_MEMORY_ROWS=2000000 LANDFALL_MEMORY_TRANSACTIONS=5000000 LANDFALL_IDLE_MIB=1024 LANDFALL_BACKFILL_ROWS=10000000 \
		cargo test --release --locked --test daemons -- memory:: truth:: --nocapture --test-threads 1

# What reads bytes from outside, a minute for each target; the seed is printed, scripts/fuzz 60 SEED repeats it.
fuzz: setup
	scripts/fuzz 60

# How Landfall is set to be measured: as docs/sizing.md says where nobody else reads the topic. `make bench SETTINGS=`
# measures the defaults; each run names what it had.
SETTINGS = --source 'format = "packed"'

# Landfall and what users have today, in turn on this machine, over the same rows: some hours. Writes
# docs/benchmarks.
bench: setup
	scripts/setup-rivals
	cargo build --release --locked -p landfall -p testbed --bin landfall --bin bench
	$(TARGET)/release/bench $(TARGET)/release/landfall $(SETTINGS)

# Three workloads and the latency, a round each: a few minutes, ratios on the terminal only.
bench-quick: setup
	cargo build --release --locked -p landfall -p testbed --bin landfall --bin bench
	$(TARGET)/release/bench $(TARGET)/release/landfall --quick $(SETTINGS)

# What a change costs in our own hands, step by step, on one thread.
bench-codec: setup
	cargo bench --locked --bench codec

# Licences, sources, banned crates and advisories of everything that is built in (deny.toml).
deny:
	scripts/deny
