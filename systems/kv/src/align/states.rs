//! A model's hidden states as what maps read in place of its KV.
//!
//! The state of a token is the residual stream before a layer, or behind the last one, divided by
//! its root mean square: whatever a layer computes, its keys and values included, it computes from
//! that. They travel as a [`KvBlock`] of another shape, so that moments, maps and files are the same
//! for both; a fingerprint of their own keeps them from being taken for KV.

use std::fmt;

use half::f16;
use serde::{Deserialize, Serialize};

use super::{AlignError, BridgeEnd};
use crate::block::{KeyRope, KvBlock, KvError, KvShape, LayerKv};
use crate::ident::ModelFingerprint;

/// What of the source model a map reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// Pre-RoPE keys, and values.
    #[default]
    Kv,
    /// Hidden states.
    States,
}

impl SourceKind {
    /// Whether it is the usual one, which configurations leave out.
    pub(super) const fn is_kv(&self) -> bool {
        matches!(self, Self::Kv)
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kv => "KV",
            Self::States => "hidden states",
        })
    }
}

/// Shape of a block of hidden states: one layer for the state before each of the model's layers and
/// one for that behind the last, with one head as wide as half a state.
///
/// # Errors
/// [`KvError::OddStates`] where a state has no halves, otherwise as for [`KvShape::new`].
pub fn states_shape(num_layers: usize, hidden_size: usize) -> Result<KvShape, KvError> {
    if !hidden_size.is_multiple_of(2) {
        return Err(KvError::OddStates { hidden_size });
    }
    KvShape::new(num_layers.saturating_add(1), 1, hidden_size / 2)
}

/// A block of the hidden states of a context's tokens from position 0, as [`states_shape`] has it:
/// `states` are those before each layer and behind the last, `[tokens, hidden_size]` each. The first
/// half of a state stands where keys do, the second where values do. Its fingerprint is
/// [`ModelFingerprint::of_states`].
///
/// # Errors
/// [`KvError`] for states of no token, of an odd width, or of different lengths.
pub fn states_block(
    model: &ModelFingerprint,
    hidden_size: usize,
    states: Vec<Vec<f16>>,
) -> Result<KvBlock, KvError> {
    let shape = states_shape(states.len().saturating_sub(1), hidden_size)?;
    // The shape has been checked, so a state is not empty.
    let tokens = states.first().map_or(0, Vec::len) / hidden_size;
    let halves = |state: Vec<f16>| {
        let half = |start: usize| {
            let rows = state.chunks(hidden_size);
            let halves = rows.filter_map(|row| row.get(start..start + shape.head_dim));
            halves.flatten().copied().collect()
        };
        LayerKv {
            k: half(0),
            v: half(shape.head_dim),
        }
    };
    let layers = states.into_iter().map(halves).collect();
    let fingerprint = model.of_states();
    KvBlock::new(fingerprint, shape, 0, 0..tokens, KeyRope::Pre, layers)
}

/// What a map reads of a source model: the model's KV, or its hidden states where their shape is
/// given.
pub(super) fn read_end(model: &BridgeEnd, states: Option<KvShape>) -> BridgeEnd {
    states.map_or(*model, |shape| BridgeEnd {
        fingerprint: model.fingerprint.of_states(),
        shape,
    })
}

/// Refuses KV where a map reads states, and the other way round.
pub(super) fn check_kind(
    model: &BridgeEnd,
    states: Option<KvShape>,
    block: &KvBlock,
) -> Result<(), AlignError> {
    let kinds = [SourceKind::Kv, SourceKind::States];
    let (expected, found, other) = match states {
        None => (kinds[0], kinds[1], model.fingerprint.of_states()),
        Some(_) => (kinds[1], kinds[0], model.fingerprint),
    };
    if *block.fingerprint() != other {
        return Ok(());
    }
    Err(AlignError::Block {
        end: "source",
        expected: format!("{expected} of model {}", model.fingerprint),
        found: format!("its {found}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_stand_in_halves() {
        let model = ModelFingerprint::from_bytes([3; 32]);
        let number = |layer: usize, token: usize, channel: usize| {
            f16::from_f32((layer * 100 + token * 10 + channel) as f32)
        };
        let state =
            |layer| -> Vec<f16> { (0..3 * 4).map(|i| number(layer, i / 4, i % 4)).collect() };
        let block = states_block(&model, 4, (0..3).map(state).collect()).unwrap();
        assert_eq!(block.shape(), states_shape(2, 4).unwrap());
        assert_eq!((block.num_tokens(), block.shape().num_layers), (3, 3));
        assert_eq!(*block.fingerprint(), model.of_states());
        assert_ne!(*block.fingerprint(), model);
        for layer in 0..3 {
            let kv = block.layer(layer).unwrap();
            for token in 0..3 {
                for channel in 0..2 {
                    let at = token * 2 + channel;
                    assert_eq!(kv.k[at], number(layer, token, channel));
                    assert_eq!(kv.v[at], number(layer, token, channel + 2));
                }
            }
        }
        assert!(matches!(
            states_block(&model, 3, vec![vec![f16::ZERO; 3]; 2]),
            Err(KvError::OddStates { hidden_size: 3 })
        ));
        let uneven = vec![vec![f16::ZERO; 8], vec![f16::ZERO; 4]];
        assert!(states_block(&model, 4, uneven).is_err());
        assert!(states_block(&model, 4, Vec::new()).is_err());
        assert!(states_block(&model, 0, vec![Vec::new(); 2]).is_err());
    }
}
