//! `pca`: principal components of a layer's keys and values, fitted beforehand, of what the
//! layers below do not predict.
//!
//! Principal components before quantisation: KVTC (arXiv 2511.01815). Prediction from decoded
//! layers: the closed loop of differential coding, with a linear predictor that is best for the
//! noise which its inputs carry (Wiener). The basis never crosses the link.

use std::sync::Arc;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use crate::codec::artefact::{LayerBasis, basis_of};
use crate::codec::{
    ArtefactId, Beside, Codec, CodecArtefact, CodecError, Prior, Tile, TileMut, TileShape, TileSpec,
};

/// Turns a token's keys and values, all heads of a layer, into components of falling variance.
///
/// The rest of the chain sees a tile of one head: its keys are the components of even rank, its
/// values those of odd rank, `[1, tokens, num_kv_heads * head_dim]` each. Numbers are weighted
/// before, so that a squared error of one weighs the same in every component and layer. With
/// `predict`, as many layers below as the artefact has predictors for are subtracted first, as the
/// receiver has decoded them; chunks must then come layer by layer. Without those layers, for
/// example in a transfer that starts in the middle, a layer is coded by itself.
///
/// Loses on text unlike the calibration text, whose variance lies in other directions, and costs
/// `4 * width` multiplications per number to decode, three times that with two layers to predict
/// from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pca {
    /// Whether to predict from the layers below.
    #[serde(default)]
    pub predict: bool,
    /// The artefact; that of the context at hand when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artefact: Option<ArtefactId>,
}

impl Pca {
    pub(in crate::codec) const NAME: &str = "pca";

    /// Reads the parameters of an id: nothing, `predict`, an artefact, or `predict-` and one.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        let (predict, artefact) = match text.strip_prefix("predict") {
            None => (false, text),
            Some("") => (true, ""),
            Some(rest) => (true, rest.strip_prefix('-')?),
        };
        let artefact = match artefact {
            "" => None,
            id => Some(id.parse().ok()?),
        };
        Some(Self { predict, artefact })
    }

    pub(in crate::codec) fn id(&self) -> String {
        let mut id = Self::NAME.to_owned();
        if self.predict {
            id.push_str("-predict");
        }
        if let Some(artefact) = self.artefact {
            id.push_str(&format!("-{artefact}"));
        }
        id
    }
}

/// The stage with its artefact and the rest of its chain.
#[derive(Debug)]
pub(in crate::codec) struct PcaCodec {
    stage: Pca,
    artefact: Option<Arc<CodecArtefact>>,
    inner: Box<dyn Codec>,
}

impl PcaCodec {
    pub(in crate::codec) fn new(
        stage: Pca,
        artefact: Option<Arc<CodecArtefact>>,
        inner: Box<dyn Codec>,
    ) -> Self {
        Self {
            stage,
            artefact,
            inner,
        }
    }

    fn basis(&self, layer: usize) -> Result<&LayerBasis, CodecError> {
        basis_of(self.artefact.as_ref(), Pca::NAME, layer)
    }

    /// Place and shape of the tile of components.
    fn inner_spec(spec: &TileSpec) -> Result<TileSpec, CodecError> {
        Ok(spec.with_shape(inner_shape(spec.shape)?))
    }

    /// What the layers below predict, weighted, `[tokens, row]`.
    fn predict(
        &self,
        spec: &TileSpec,
        basis: &LayerBasis,
        prior: &[Prior<'_>],
    ) -> Result<Vec<f32>, CodecError> {
        let (tokens, row) = (spec.shape.tokens(), basis.mean.len());
        let mut predicted = vec![0.0; tokens * row];
        let below = basis.predictor.len() / (row * row);
        if !self.stage.predict || below == 0 || prior.len() < below {
            return Ok(predicted);
        }
        let mut weighted = vec![0.0; tokens * row];
        for (depth, prior) in prior[..below].iter().enumerate() {
            let lower = self.basis(spec.layer - 1 - depth)?;
            weigh(spec.shape, prior.k, prior.v, lower, &mut weighted);
            let weights = &basis.predictor[depth * row * row..][..row * row];
            matmul(
                MatMut::from_row_major_slice_mut(&mut predicted, tokens, row),
                Accum::Add,
                MatRef::from_row_major_slice(&weighted, tokens, row),
                MatRef::from_row_major_slice(weights, row, row),
                1.0,
                Par::Seq,
            );
        }
        Ok(predicted)
    }
}

fn inner_shape(shape: TileShape) -> Result<TileShape, CodecError> {
    TileShape::new(1, shape.tokens(), shape.num_kv_heads() * shape.head_dim())
}

/// Rows of weighted distances from the mean: `out` is `[tokens, row]`.
fn weigh(shape: TileShape, k: &[f16], v: &[f16], basis: &LayerBasis, out: &mut [f32]) {
    let (tokens, head_dim) = (shape.tokens(), shape.head_dim());
    let row = basis.mean.len();
    for (side, numbers) in [k, v].into_iter().enumerate() {
        for (head, numbers) in numbers.chunks_exact(tokens * head_dim).enumerate() {
            let start = side * row / 2 + head * head_dim;
            let (mean, weight) = (&basis.mean[start..], &basis.weight[start..]);
            let rows = numbers.chunks_exact(head_dim);
            for (numbers, out) in rows.zip(out.chunks_exact_mut(row)) {
                let out = &mut out[start..start + head_dim];
                numbers.convert_to_f32_slice(out);
                for ((x, mean), weight) in out.iter_mut().zip(mean).zip(weight) {
                    *x = (*x - mean) * weight;
                }
            }
        }
    }
}

/// The reverse of [`weigh`], into fp16 numbers that are finite.
fn unweigh(rows: &mut [f32], basis: &LayerBasis, shape: TileShape, sides: [&mut [f16]; 2]) {
    let (tokens, head_dim) = (shape.tokens(), shape.head_dim());
    let row = basis.mean.len();
    for rows in rows.chunks_exact_mut(row) {
        for ((x, mean), weight) in rows.iter_mut().zip(&basis.mean).zip(&basis.weight) {
            let number = *x / weight + mean;
            // Finite bytes and a finite artefact can still overflow on the way.
            *x = if number.is_nan() { *mean } else { number }.clamp(-65504.0, 65504.0);
        }
    }
    for (side, numbers) in sides.into_iter().enumerate() {
        for (head, numbers) in numbers.chunks_exact_mut(tokens * head_dim).enumerate() {
            let start = side * row / 2 + head * head_dim;
            for (numbers, rows) in numbers
                .chunks_exact_mut(head_dim)
                .zip(rows.chunks_exact(row))
            {
                numbers.convert_from_f32_slice(&rows[start..start + head_dim]);
            }
        }
    }
}

impl Codec for PcaCodec {
    fn id(&self) -> String {
        format!("{}+{}", self.stage.id(), self.inner.id())
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        let row = self.basis(0)?.mean.len();
        let width = shape.num_kv_heads() * shape.head_dim();
        if 2 * width != row {
            return Err(CodecError::UnsupportedShape {
                codec: self.stage.id(),
                reason: format!(
                    "the artefact is for {} numbers a side, not {width}",
                    row / 2
                ),
            });
        }
        self.inner.check_shape(inner_shape(shape)?)
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let spec = tile.spec();
        self.check_shape(spec.shape)?;
        let basis = self.basis(spec.layer)?;
        let (tokens, row) = (spec.shape.tokens(), basis.mean.len());
        let predicted = self.predict(spec, basis, tile.beside().prior)?;
        let mut rows = vec![0.0; tokens * row];
        weigh(spec.shape, tile.k(), tile.v(), basis, &mut rows);
        rows.iter_mut()
            .zip(&predicted)
            .for_each(|(x, predicted)| *x -= predicted);
        let mut components = predicted;
        matmul(
            MatMut::from_row_major_slice_mut(&mut components, tokens, row),
            Accum::Replace,
            MatRef::from_row_major_slice(&rows, tokens, row),
            MatRef::from_row_major_slice(&basis.basis, row, row).transpose(),
            1.0,
            Par::Seq,
        );
        let rank = |parity: usize| -> Vec<f16> {
            let ranks = components.iter().skip(parity).step_by(2);
            ranks.map(|x| f16::from_f32(*x)).collect()
        };
        let (even, odd) = (rank(0), rank(1));
        let beside = Beside {
            positions: tile.beside().positions,
            prior: &[],
        };
        let inner = Tile::new(Self::inner_spec(spec)?, &even, &odd)?.with_beside(beside)?;
        self.inner.encode(&inner, out)
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        let spec = *tile.spec();
        self.check_shape(spec.shape)?;
        let basis = self.basis(spec.layer)?;
        let (tokens, row) = (spec.shape.tokens(), basis.mean.len());
        let inner_spec = Self::inner_spec(&spec)?;
        let mut even = vec![f16::ZERO; inner_spec.shape.elements()];
        let mut odd = even.clone();
        let beside = Beside {
            positions: tile.beside().positions,
            prior: &[],
        };
        let mut inner = TileMut::new(inner_spec, &mut even, &mut odd)?.with_beside(beside)?;
        tile.decode_inner(&mut inner, |inner| self.inner.decode(bytes, inner))?;
        let mut components = vec![0.0; tokens * row];
        for ((pair, even), odd) in components
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(&even)
            .zip(&odd)
        {
            *pair = [even.to_f32(), odd.to_f32()];
        }
        let mut rows = self.predict(&spec, basis, tile.beside().prior)?;
        // At low rates the components of high rank are zero in all tokens: half of the work.
        let active = components
            .chunks_exact(row)
            .filter_map(|row| row.iter().rposition(|x| *x != 0.0))
            .max()
            .map_or(0, |last| last + 1);
        if active > 0 {
            matmul(
                MatMut::from_row_major_slice_mut(&mut rows, tokens, row),
                Accum::Add,
                MatRef::from_row_major_slice(&components, tokens, row).subcols(0, active),
                MatRef::from_row_major_slice(&basis.basis, row, row).subrows(0, active),
                1.0,
                Par::Seq,
            );
        }
        unweigh(&mut rows, basis, spec.shape, tile.sides());
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        inner_shape(shape).map_or(0, |shape| self.inner.encoded_len(shape))
    }

    fn nominal_bits(&self) -> f64 {
        self.inner.nominal_bits()
    }

    fn token_group(&self) -> usize {
        self.inner.token_group()
    }

    fn error_bound(&self, _min: f32, _max: f32) -> Option<f32> {
        None
    }

    fn prior_layers(&self) -> usize {
        match (&self.artefact, self.stage.predict) {
            (Some(artefact), true) => artefact.prior_layers(),
            _ => 0,
        }
    }

    fn decodes_prefixes(&self) -> bool {
        self.inner.decodes_prefixes()
    }
}
