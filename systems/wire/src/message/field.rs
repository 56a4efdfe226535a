//! Conversions of single fields: what the proto holds as plain integers and bytes.

use std::ops::Range;

use celslm_kv::KvShape;

use crate::{error::Invalid, proto};

/// Bounds on what a peer may claim. They are far above any model, and exist so that a hostile
/// header cannot make the receiver reserve memory by the terabyte.
const MOST_LAYERS: u32 = 4096;
const MOST_KV_HEADS: u32 = 4096;
const MOST_HEAD_DIM: u32 = 8192;
pub(super) const MOST_TOKENS: u32 = 1 << 24;
/// Longest registry name, in bytes.
const NAME_BYTES: usize = 256;
/// Longest codec chain as text, in bytes.
pub(super) const CODEC_BYTES: usize = 4096;

/// Checks that `value` is within `range`, and says which field is not.
pub(super) fn within(
    message: &'static str,
    field: &str,
    value: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Result<usize, Invalid> {
    if !range.contains(&value) {
        return Err(Invalid::new(
            message,
            format!(
                "{field} is {value}, must be {} to {}",
                range.start(),
                range.end()
            ),
        ));
    }
    usize::try_from(value)
        .map_err(|_| Invalid::new(message, format!("{field} does not fit this machine")))
}

/// Narrows a count to the proto's width.
pub(super) fn narrow(message: &'static str, field: &str, value: usize) -> Result<u32, Invalid> {
    u32::try_from(value)
        .map_err(|_| Invalid::new(message, format!("{field} is {value}, above 32 bits")))
}

/// A 32-byte hash.
pub(super) fn hash(message: &'static str, field: &str, bytes: &[u8]) -> Result<[u8; 32], Invalid> {
    bytes.try_into().map_err(|_| {
        Invalid::new(
            message,
            format!("{field} has {} bytes, must have 32", bytes.len()),
        )
    })
}

/// A layer index.
pub(super) fn layer(message: &'static str, field: &str, value: u32) -> Result<usize, Invalid> {
    within(message, field, value, 0..=MOST_LAYERS - 1)
}

/// A half-open, non-empty token range.
pub(super) fn tokens(message: &'static str, start: u32, end: u32) -> Result<Range<usize>, Invalid> {
    if start >= end {
        return Err(Invalid::new(
            message,
            format!("token range {start}..{end} is empty"),
        ));
    }
    let end = within(message, "tokens_end", end, 1..=MOST_TOKENS)?;
    let start = within(message, "tokens_start", start, 0..=MOST_TOKENS)?;
    Ok(start..end)
}

/// A shape with every count at least 1.
pub(super) fn shape(
    message: &'static str,
    shape: Option<proto::Shape>,
) -> Result<KvShape, Invalid> {
    let shape = shape.ok_or_else(|| Invalid::new(message, "shape is missing"))?;
    Ok(KvShape {
        num_layers: within(message, "num_layers", shape.num_layers, 1..=MOST_LAYERS)?,
        num_kv_heads: within(
            message,
            "num_kv_heads",
            shape.num_kv_heads,
            1..=MOST_KV_HEADS,
        )?,
        head_dim: within(message, "head_dim", shape.head_dim, 1..=MOST_HEAD_DIM)?,
    })
}

/// A shape in the proto's widths.
pub(super) fn shape_to_proto(
    message: &'static str,
    shape: KvShape,
) -> Result<proto::Shape, Invalid> {
    Ok(proto::Shape {
        num_layers: narrow(message, "num_layers", shape.num_layers)?,
        num_kv_heads: narrow(message, "num_kv_heads", shape.num_kv_heads)?,
        head_dim: narrow(message, "head_dim", shape.head_dim)?,
    })
}

/// A text that names a method: not empty, bounded.
pub(super) fn named(
    message: &'static str,
    field: &str,
    text: String,
    most_bytes: usize,
) -> Result<String, Invalid> {
    if text.is_empty() || text.len() > most_bytes {
        return Err(Invalid::new(
            message,
            format!(
                "{field} has {} bytes, must have 1 to {most_bytes}",
                text.len()
            ),
        ));
    }
    Ok(text)
}

/// A registry name.
pub(super) fn name(message: &'static str, field: &str, text: String) -> Result<String, Invalid> {
    named(message, field, text, NAME_BYTES)
}
