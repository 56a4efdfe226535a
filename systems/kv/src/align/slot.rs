//! One head's keys or values in one layer: the unit that maps read and write.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use super::AlignError;
use crate::block::{KvBlock, KvShape, LayerKv};

/// Keys or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KvSide {
    /// Keys, pre-RoPE.
    K,
    /// Values.
    V,
}

impl KvSide {
    /// Both, in the order of a slot's.
    pub const ALL: [Self; 2] = [Self::K, Self::V];

    pub(super) const fn of(self, layer: &LayerKv) -> &Vec<f16> {
        match self {
            Self::K => &layer.k,
            Self::V => &layer.v,
        }
    }

    pub(super) const fn of_mut(self, layer: &mut LayerKv) -> &mut Vec<f16> {
        match self {
            Self::K => &mut layer.k,
            Self::V => &mut layer.v,
        }
    }
}

/// One KV head of one layer, its keys or its values: `head_dim` numbers a token. Written as
/// `k3.1`: keys, layer 3, head 1. Ordered by layer, side and head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Slot {
    /// Layer of the model.
    pub layer: usize,
    /// Keys or values.
    pub side: KvSide,
    /// KV head of the layer.
    pub head: usize,
}

impl Slot {
    /// All heads of one layer's keys or values.
    pub(super) fn heads(shape: KvShape, layer: usize, side: KvSide) -> impl Iterator<Item = Self> {
        (0..shape.num_kv_heads).map(move |head| Self { layer, side, head })
    }

    /// Whether a model of this shape has it.
    pub(super) const fn is_in(self, shape: KvShape) -> bool {
        self.layer < shape.num_layers && self.head < shape.num_kv_heads
    }

    /// Where the block holds it, `[tokens, head_dim]`.
    pub(super) fn of<'a>(
        self,
        end: &'static str,
        block: &'a KvBlock,
    ) -> Result<&'a [f16], AlignError> {
        let layer = block.layer(self.layer).ok_or_else(|| AlignError::Block {
            end,
            expected: format!("layer {}", self.layer),
            found: format!("layers {:?}", block.layer_range()),
        })?;
        let length = block.num_tokens() * block.shape().head_dim;
        Ok(&self.side.of(layer)[self.head * length..][..length])
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            KvSide::K => 'k',
            KvSide::V => 'v',
        };
        write!(f, "{side}{}.{}", self.layer, self.head)
    }
}

impl From<Slot> for String {
    fn from(slot: Slot) -> Self {
        slot.to_string()
    }
}

impl FromStr for Slot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let side = match text.as_bytes().first()? {
                b'k' => KvSide::K,
                b'v' => KvSide::V,
                _ => return None,
            };
            let (layer, head) = text.get(1..)?.split_once('.')?;
            let (layer, head) = (layer.parse().ok()?, head.parse().ok()?);
            Some(Self { layer, side, head })
        };
        read().ok_or_else(|| {
            let cut: String = text.chars().take(40).collect();
            format!("{cut:?} is no head, k3.1 is one (keys, layer 3, head 1)")
        })
    }
}

impl TryFrom<String> for Slot {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Gathers the rows `tokens` (relative to the block) of some slots into `rows`:
/// `[tokens.len(), slots.len() * head_dim]`.
///
/// # Errors
/// [`AlignError::Block`] when the block lacks a slot's layer.
pub(super) fn gather(
    end: &'static str,
    block: &KvBlock,
    slots: &[Slot],
    tokens: Range<usize>,
    rows: &mut Vec<f32>,
) -> Result<(), AlignError> {
    let head_dim = block.shape().head_dim;
    let sides = slots.iter().map(|slot| slot.of(end, block));
    let sides = sides.collect::<Result<Vec<_>, AlignError>>()?;
    rows.clear();
    rows.resize(tokens.len() * slots.len() * head_dim, 0.0);
    let mut places = rows.chunks_exact_mut(head_dim);
    for token in tokens {
        for (side, place) in sides.iter().zip(&mut places) {
            side[token * head_dim..][..head_dim].convert_to_f32_slice(place);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_round_trip(layer: usize, value: bool, head: usize) {
            let side = if value { KvSide::V } else { KvSide::K };
            let slot = Slot { layer, side, head };
            prop_assert_eq!(slot.to_string().parse(), Ok(slot));
        }

        #[test]
        fn other_names_are_refused(text in "[kvx]?[0-9]{0,2}[.]?[a-z]") {
            prop_assert!(text.parse::<Slot>().is_err());
        }
    }
}
