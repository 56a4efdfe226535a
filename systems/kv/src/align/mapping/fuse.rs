//! `fuse`: what the source model's KV adds to the target model's own.

use serde::{Deserialize, Serialize};

use super::{Mapping, Part};
use crate::align::{Affine, AlignError, KvSide, Matrix, Slot, Weights};
use crate::block::KvShape;

/// A residual on the target model's own KV, read from that and the source's together: `y = own +
/// concat(x, own) A B + b` (after Cache-to-Cache, thu-nics/C2C). The gates of its layers are folded
/// into `B`; there are no weights by token, so that it stays one affine map.
///
/// It begins at a fitted [`Joint`](super::Joint) map: half of `A` says what the source predicts in the
/// directions that it predicts best, the other half what the target has there, and `B` is zero.
/// Training finds the rest. The context must be computed in the target's model too, so that it saves
/// nothing; it can only make answers better.
///
/// A gain means little without its self control: the same map, trained alike, from the target's own
/// KV at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fuse {
    /// Directions that it reads, half of them of either model.
    pub rank: usize,
}

impl Default for Fuse {
    fn default() -> Self {
        Self { rank: 256 }
    }
}

impl Fuse {
    pub(super) const NAME: &str = "fuse";

    /// The part that training starts from.
    ///
    /// # Errors
    /// [`AlignError::LayerMap`] for a part that is no map in two factors to all of the target's
    /// heads, [`AlignError::Parameter`] for a rank that it does not have.
    pub fn begin(&self, part: &Part, target: KvShape) -> Result<Part, AlignError> {
        let Weights::Factored { down, up } = part.affine.weights() else {
            return Err(AlignError::LayerMap {
                reason: "fuse begins at a map in two factors: fit one with mapping joint"
                    .to_owned(),
            });
        };
        let heads = (0..target.num_layers)
            .flat_map(|layer| KvSide::ALL.map(|side| (layer, side)))
            .flat_map(|(layer, side)| Slot::heads(target, layer, side));
        let own: Vec<Slot> = heads.collect();
        if !part.own.is_empty() || part.outputs != own {
            return Err(AlignError::LayerMap {
                reason: "fuse begins at one map to all heads: fit one with mapping joint"
                    .to_owned(),
            });
        }
        let half = self.rank / 2;
        let most = (2 * down.columns()).min(up.columns());
        if half == 0 || !self.rank.is_multiple_of(2) || self.rank > most {
            return Err(AlignError::Parameter {
                name: "rank",
                value: self.rank as f64,
                allowed: "an even number up to twice that of the map it begins at",
            });
        }
        let (p, q, rank) = (down.rows(), up.columns(), 2 * half);
        let mut first = vec![0.0; (p + q) * rank];
        for row in 0..p {
            let from = &down.numbers()[row * down.columns()..][..half];
            first[row * rank..][..half].copy_from_slice(from);
        }
        for direction in 0..half {
            let along = &up.numbers()[direction * q..][..q];
            // What the rows of `B` point at, in units of their own length.
            let length: f32 = along.iter().map(|x| x * x).sum();
            for (column, x) in along.iter().enumerate() {
                let unit = if length > 0.0 { x / length } else { 0.0 };
                first[(p + column) * rank + half + direction] = unit;
            }
        }
        // Rounded when training gives it back; until then it is a place to start.
        let affine = Affine::of(
            Weights::Factored {
                down: Matrix::new(p + q, rank, first, None),
                up: Matrix::new(rank, q, vec![0.0; rank * q], None),
            },
            vec![0.0; q],
            vec![0.0; q],
        );
        Ok(Part {
            inputs: part.inputs.clone(),
            own,
            outputs: part.outputs.clone(),
            affine,
        })
    }
}

impl Mapping for Fuse {
    fn id(&self) -> &'static str {
        Self::NAME
    }
}
