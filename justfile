# Thin recipes: the logic lives in the binary.

# The main job: three systems over three links.
quick:
    cargo run --release -- run configs/experiments/quick.toml

# Every experiment that is a result, in order.
bench-all: quick
    cargo bench -p celslm-benches

# All tests.
test:
    cargo test --workspace

# What CI runs.
ci:
    bash .ci/run
