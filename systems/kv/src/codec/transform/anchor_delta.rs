//! `anchor_delta`: the first token of a group as it is, the others as differences to it
//! (`CacheGen`, Liu et al., SIGCOMM 2024, arXiv 2310.07240).
//!
//! Keys and values of neighbouring tokens are alike; differences to one anchor, rather than from
//! token to token, let the tokens of a group be coded side by side.

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use crate::codec::frame::{Reader, number_len, put_section};
use crate::codec::tile::Part;
use crate::codec::{Codec, CodecError, Held, Tile, TileMut, TileShape};

/// Groups of `group` tokens; the first of each is the anchor.
///
/// Anchors are quantised to 8 bits and go through the entropy stages of the chain; the others are
/// coded as differences to the anchor as the receiver has it. Bytes: a section of anchors, then
/// the differences as the rest of the chain codes them, nothing where every token is an anchor.
/// Loses where neighbours are not alike: the variance of a difference of two unrelated numbers is
/// twice that of either. Before RoPE that is so for most channels once their mean is taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct AnchorDelta {
    group: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "AnchorDelta", deny_unknown_fields)]
struct Fields {
    #[serde(default = "default_group")]
    group: usize,
}

const fn default_group() -> usize {
    AnchorDelta::PAPER.group
}

impl TryFrom<Fields> for AnchorDelta {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.group)
    }
}

impl From<AnchorDelta> for Fields {
    fn from(stage: AnchorDelta) -> Self {
        Self { group: stage.group }
    }
}

impl AnchorDelta {
    pub(in crate::codec) const NAME: &str = "anchor_delta";
    /// The paper's groups of ten tokens.
    pub const PAPER: Self = Self { group: 10 };

    /// Groups of `group` tokens.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `group` is 2 to 1024.
    pub fn new(group: usize) -> Result<Self, CodecError> {
        if (2..=1024).contains(&group) {
            return Ok(Self { group });
        }
        Err(CodecError::Parameter {
            stage: Self::NAME,
            parameter: "group",
            value: group,
            allowed: "2 to 1024",
        })
    }

    /// Reads the parameters of an id, `g10`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        Self::new(text.strip_prefix('g')?.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-g{}", Self::NAME, self.group)
    }

    /// Offsets of the anchors and of the others.
    fn split(&self, tokens: usize) -> (Vec<usize>, Vec<usize>) {
        (0..tokens).partition(|offset| offset % self.group == 0)
    }

    /// Adds `sign` times the anchor's row to every other row of a side, head by head: `rows` holds
    /// the others, `anchors` the anchors.
    fn shift(&self, shape: TileShape, rows: &mut [f16], anchors: &[f16], sign: f32) {
        let head_dim = shape.head_dim();
        let (anchor_offsets, others) = self.split(shape.tokens());
        let mut wide = vec![0.0_f32; head_dim];
        let mut wide_anchor = wide.clone();
        let heads = rows.chunks_exact_mut(others.len() * head_dim);
        for (rows, anchors) in heads.zip(anchors.chunks_exact(anchor_offsets.len() * head_dim)) {
            for (row, offset) in rows.chunks_exact_mut(head_dim).zip(&others) {
                let anchor = &anchors[offset / self.group * head_dim..][..head_dim];
                anchor.convert_to_f32_slice(&mut wide_anchor);
                row.convert_to_f32_slice(&mut wide);
                for (x, anchor) in wide.iter_mut().zip(&wide_anchor) {
                    *x = (*x + sign * anchor).clamp(-65504.0, 65504.0);
                }
                row.convert_from_f32_slice(&wide);
            }
        }
    }
}

/// The stage with the codec of its anchors and the rest of its chain.
#[derive(Debug)]
pub(in crate::codec) struct AnchorDeltaCodec {
    stage: AnchorDelta,
    anchors: Box<dyn Codec>,
    inner: Box<dyn Codec>,
}

impl AnchorDeltaCodec {
    pub(in crate::codec) fn new(
        stage: AnchorDelta,
        anchors: Box<dyn Codec>,
        inner: Box<dyn Codec>,
    ) -> Self {
        Self {
            stage,
            anchors,
            inner,
        }
    }

    fn corrupt(&self, reason: &str) -> CodecError {
        CodecError::Corrupt {
            codec: self.stage.id(),
            reason: reason.to_owned(),
        }
    }
}

impl Codec for AnchorDeltaCodec {
    fn id(&self) -> String {
        format!("{}+{}", self.stage.id(), self.inner.id())
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        self.anchors.check_shape(shape)?;
        self.inner.check_shape(shape)
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let shape = tile.shape();
        self.check_shape(shape)?;
        let (anchors, others) = self.stage.split(shape.tokens());
        let mut bytes = Vec::new();
        Part::of(tile, &anchors)?.encode(|part| self.anchors.encode(part, &mut bytes))?;
        let start = out.len();
        put_section(out, &bytes);
        if others.is_empty() {
            return Ok(());
        }
        let [k, v] = self.decode_anchors(tile.spec(), &bytes, anchors.len())?;
        let mut part = Part::of(tile, &others)?;
        self.stage.shift(shape, &mut part.k, &k, -1.0);
        self.stage.shift(shape, &mut part.v, &v, -1.0);
        part.encode(|part| self.inner.encode(part, out))
            .inspect_err(|_| out.truncate(start))
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        let shape = tile.shape();
        self.check_shape(shape)?;
        let (anchors, others) = self.stage.split(shape.tokens());
        let mut reader = Reader::new(bytes);
        let section = reader
            .section()
            .ok_or_else(|| self.corrupt("the bytes end inside the anchors"))?;
        let framing = bytes.len() - section.len() - reader.rest().len();
        tile.count(AnchorDelta::NAME, "lengths of sections", framing);
        tile.count(AnchorDelta::NAME, "anchors", section.len());
        let decoded = self.decode_anchors(tile.spec(), section, anchors.len())?;
        if others.is_empty() {
            if !reader.is_empty() {
                return Err(self.corrupt("bytes behind the anchors, and no other token"));
            }
        } else {
            let part = Part::room(tile, &others)?;
            let held =
                part.decode_into(tile, &others, |part| self.inner.decode(reader.rest(), part))?;
            debug_assert_eq!(held, Held::All, "selections stand before transforms");
        }
        for (side, anchor_rows) in tile.sides().into_iter().zip(&decoded) {
            if !others.is_empty() {
                let mut rows = crate::codec::tile::gather(side, shape, &others);
                self.stage.shift(shape, &mut rows, anchor_rows, 1.0);
                crate::codec::tile::scatter(&rows, side, shape, &others);
            }
            crate::codec::tile::scatter(anchor_rows, side, shape, &anchors);
        }
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        let anchors = shape.tokens().div_ceil(self.stage.group);
        let part = |tokens| TileShape::new(shape.num_kv_heads(), tokens, shape.head_dim());
        let anchors_len = part(anchors).map_or(0, |shape| self.anchors.encoded_len(shape));
        let others =
            part(shape.tokens() - anchors).map_or(0, |shape| self.inner.encoded_len(shape));
        anchors_len + number_len(anchors_len) + others
    }

    fn nominal_bits(&self) -> f64 {
        let shape = TileShape::new(2, 256, 64);
        shape.map_or(16.0, |shape| {
            self.encoded_len(shape) as f64 * 4.0 / shape.elements() as f64
        })
    }

    fn error_bound(&self, _min: f32, _max: f32) -> Option<f32> {
        None
    }

    fn decodes_prefixes(&self) -> bool {
        false
    }
}

impl AnchorDeltaCodec {
    /// The anchors as the receiver has them.
    fn decode_anchors(
        &self,
        spec: &crate::codec::TileSpec,
        bytes: &[u8],
        count: usize,
    ) -> Result<[Vec<f16>; 2], CodecError> {
        let spec = spec.with_tokens(count)?;
        let mut sides = [(); 2].map(|()| vec![f16::ZERO; spec.shape.elements()]);
        let [k, v] = &mut sides;
        self.anchors.decode(bytes, &mut TileMut::new(spec, k, v)?)?;
        Ok(sides)
    }
}
