//! The arithmetic of the decoders: quantised matrix products, attention and the row-wise
//! functions, on plain slices.
//!
//! Every function here gives a row the same bits whatever rows it is computed beside and
//! however many threads share the work: sums run in one fixed order per output element. The
//! engine's promise that a session's tokens do not depend on the rest of its batch rests on
//! that, and `tests/batch.rs` holds it.
//!
//! Vector code is chosen at compile time (`target-cpu`). Machines without AVX-512 VNNI run the
//! portable twins, which state the same arithmetic in plain Rust.

pub(crate) mod activations;
pub(crate) mod attention;
mod blocks;
pub(crate) mod dense;
pub(crate) mod matmul;
pub(crate) mod packed;
pub(crate) mod pool;
mod quantised;
pub(crate) mod rows;

/// Rows of a weight matrix that are stored and multiplied together: the 32-bit lanes of a
/// 512-bit vector.
pub(crate) const PANEL: usize = 16;
/// Values that share an activation scale, and the finest common grain of the weight formats.
pub(crate) const GROUP: usize = 32;
/// Rows of activations that one pass over a panel serves.
pub(crate) const TILE: usize = 16;
