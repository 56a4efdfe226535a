//! Criterion benchmarks, one file per subject.
