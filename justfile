# Thin recipes: the logic lives in the binary.

# The main job: three systems over three links.
quick:
    cargo run -- run configs/experiments/quick.toml

# Every experiment that is a result, in order.
bench-all: quick
    cargo bench -p celslm-benches

# Three systems under rising request rates, and what the harness itself costs.
load:
    cargo run -- run configs/experiments/load.toml
    cargo run -- run configs/experiments/null.toml

# The emulated link by itself: against its own figures, and against the kernel's token bucket.
link:
    cargo run -- link calibrate --strict 1/20 10/20 100/1 100/20 100/100 100/200 300/20 1000/20
    cargo run -- link calibrate --strict lte-driving-ie 5g-driving-ie leo lte-driving-synthetic
    cargo run -- link calibrate --hogs 2 100/20
    python3 benches/versus_tbf.py

# All tests.
test:
    cargo test --workspace

# Decoders and readers under libFuzzer, so many executions each; see systems/kv/fuzz/README.md.
fuzz executions="10000000" *names:
    systems/kv/fuzz/run {{executions}} {{names}}

# What CI runs.
ci:
    bash .ci/run
