//! `identity`: fp16 as it is, little-endian, keys before values. The do-nothing baseline.

use serde::{Deserialize, Serialize};

use crate::block::{read_f16_le, write_f16_le};
use crate::codec::{Codec, CodecError, Tile, TileMut, TileShape};

/// Sends the fp16 numbers unchanged, every bit pattern included (NaN and infinities too).
///
/// Bytes: keys, then values, each `num_kv_heads * tokens * head_dim * 2`. Loses whenever the
/// link is slower than a codec; it is what every ratio is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Identity;

impl Identity {
    pub(in crate::codec) const NAME: &str = "identity";
}

impl Codec for Identity {
    fn id(&self) -> String {
        Self::NAME.to_owned()
    }

    fn check_shape(&self, _shape: TileShape) -> Result<(), CodecError> {
        Ok(())
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let start = out.len();
        out.resize(start + self.encoded_len(tile.shape()), 0);
        let (k, v) = out[start..].split_at_mut(tile.shape().elements() * 2);
        write_f16_le(tile.k(), k);
        write_f16_le(tile.v(), v);
        Ok(())
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        let expected = self.encoded_len(tile.shape());
        if bytes.len() != expected {
            return Err(CodecError::Length {
                codec: self.id(),
                expected,
                found: bytes.len(),
            });
        }
        let (k, v) = bytes.split_at(expected / 2);
        read_f16_le(k, tile.k());
        read_f16_le(v, tile.v());
        tile.count(Self::NAME, "keys", k.len());
        tile.count(Self::NAME, "values", v.len());
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        shape.fp16_bytes()
    }

    fn nominal_bits(&self) -> f64 {
        16.0
    }

    fn error_bound(&self, _min: f32, _max: f32) -> Option<f32> {
        Some(0.0)
    }
}
