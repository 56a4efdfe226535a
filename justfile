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

# All tests.
test:
    cargo test --workspace

# What CI runs.
ci:
    bash .ci/run
