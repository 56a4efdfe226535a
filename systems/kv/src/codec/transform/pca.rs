//! `pca`: principal components of a layer's keys and values, fitted beforehand, of what the
//! layers below do not predict.
//!
//! Principal components before quantisation: KVTC (arXiv 2511.01815). Prediction from decoded
//! layers: the closed loop of differential coding, with a linear predictor that is best for the
//! noise which its inputs carry (Wiener). The basis never crosses the link. The method as published
//! neither predicts nor knows which errors matter: `plain` has its components.

use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use crate::codec::artefact::{LayerBasis, LayerMaps, basis_of};
use crate::codec::dot::ZERO;
use crate::codec::matrix::ROWS;
use crate::codec::{
    ArtefactId, Beside, Codec, CodecArtefact, CodecContext, CodecError, Prior, Tile, TileMut,
    TileShape, TileSpec,
};

/// Which of an artefact's components a tile is turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PcaBasis {
    /// Those of what prediction leaves, with nothing predicted.
    #[default]
    Alone,
    /// Those of what prediction leaves, of that.
    Predict,
    /// Those of the layer by itself, errors weighed by its side's variance alone.
    Plain,
}

impl PcaBasis {
    /// The name in ids; the first has none.
    const ALL: [(Self, &str); 3] = [
        (Self::Alone, ""),
        (Self::Predict, "predict"),
        (Self::Plain, "plain"),
    ];
}

/// Turns a token's keys and values, all heads of a layer, into components of falling variance.
///
/// The rest of the chain sees a tile of one head: its keys are the components of even rank, its
/// values those of odd rank, `[1, tokens, num_kv_heads * head_dim]` each. Numbers are weighted
/// before, so that a squared error of one weighs the same in every component and layer. With
/// [`PcaBasis::Predict`], as many layers below as the artefact has predictors for are subtracted first, as the
/// receiver has decoded them; chunks must then come layer by layer. Without those layers, for
/// example in a transfer that starts in the middle, a layer is coded by itself.
///
/// Loses on text unlike the calibration text, whose variance lies in other directions, and costs
/// up to `2 * width` multiplications per number to decode, and as many more for each layer to
/// predict from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pca {
    /// Which components.
    #[serde(default)]
    pub basis: PcaBasis,
    /// The artefact; that of the context at hand when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artefact: Option<ArtefactId>,
}

impl Pca {
    pub(in crate::codec) const NAME: &str = "pca";

    /// Reads the parameters of an id: nothing, `predict` or `plain`, an artefact, or one of these
    /// words, `-` and an artefact.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        let (basis, artefact) = PcaBasis::ALL
            .into_iter()
            .filter(|(_, word)| !word.is_empty())
            .find_map(|(basis, word)| Some((basis, text.strip_prefix(word)?)))
            .map_or(Some((PcaBasis::Alone, text)), |(basis, rest)| match rest {
                "" => Some((basis, "")),
                // A dash with nothing behind it is no id.
                rest => Some((basis, rest.strip_prefix('-').filter(|id| !id.is_empty())?)),
            })?;
        let artefact = match artefact {
            "" => None,
            id => Some(id.parse().ok()?),
        };
        Some(Self { basis, artefact })
    }

    pub(in crate::codec) fn id(&self) -> String {
        let mut id = Self::NAME.to_owned();
        let words = PcaBasis::ALL.into_iter();
        for (_, word) in words.filter(|(basis, word)| *basis == self.basis && !word.is_empty()) {
            id.push_str(&format!("-{word}"));
        }
        if let Some(artefact) = self.artefact {
            id.push_str(&format!("-{artefact}"));
        }
        id
    }

    /// What the stage and all that codes its components use of a context.
    pub(in crate::codec) fn context(&self, context: &CodecContext) -> CodecContext {
        match self.basis {
            PcaBasis::Alone | PcaBasis::Predict => context.clone(),
            PcaBasis::Plain => context.plain(),
        }
    }

    const fn predicts(&self) -> bool {
        matches!(self.basis, PcaBasis::Predict)
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

    fn maps(&self, layer: usize) -> Result<&LayerMaps, CodecError> {
        let artefact = self.artefact.as_ref();
        artefact
            .and_then(|artefact| artefact.maps(layer))
            .ok_or_else(|| CodecError::Artefact {
                codec: self.stage.id(),
                reason: format!("the artefact has no layer {layer}"),
            })
    }
}

/// Tokens that are worked on at a time: their rows stay near the core.
const STRIP: usize = 8 * ROWS;

/// What the layers below say about a layer, a strip of tokens at a time.
struct Predictor<'a> {
    shape: TileShape,
    basis: &'a LayerBasis,
    maps: &'a LayerMaps,
    /// The layers to predict from, none where there are not enough.
    prior: &'a [Prior<'a>],
    /// A layer's rows, `[STRIP, row]`, and all layers' as bytes, `[STRIP, prior.len() * row]`.
    lower: Vec<f32>,
    bytes: Vec<u8>,
}

impl<'a> Predictor<'a> {
    fn new(
        stage: &Pca,
        shape: TileShape,
        (basis, maps): (&'a LayerBasis, &'a LayerMaps),
        prior: &'a [Prior<'a>],
    ) -> Self {
        let below = maps.predict_from.len();
        let enough = stage.predicts() && below > 0 && prior.len() >= below;
        let row = basis.mean.len();
        Self {
            shape,
            basis,
            maps,
            prior: if enough { &prior[..below] } else { &[] },
            lower: vec![0.0; if enough { STRIP * row } else { 0 }],
            bytes: vec![
                ZERO;
                if enough {
                    STRIP * maps.predict.depth()
                } else {
                    0
                }
            ],
        }
    }

    /// Writes what is predicted of the tokens from `first` on, the means where nothing is.
    fn predict(&mut self, first: usize, out: &mut [f32]) {
        let row = self.basis.mean.len();
        for out in out.chunks_exact_mut(row) {
            out.copy_from_slice(&self.basis.mean);
        }
        if self.prior.is_empty() {
            return;
        }
        let depth = self.maps.predict.depth();
        let layers = self.prior.iter().zip(&self.maps.predict_from);
        for (layer, (prior, levels)) in layers.enumerate() {
            let lower = &mut self.lower[..out.len()];
            widen(self.shape, [prior.k, prior.v], first, lower);
            let bytes = self.bytes.chunks_exact_mut(depth);
            for (lower, bytes) in lower.chunks_exact(row).zip(bytes) {
                levels.write(lower, &mut bytes[layer * row..][..row]);
            }
        }
        let bytes = &self.bytes[..out.len() / row * depth];
        self.maps.predict.add_product(bytes, out);
    }
}

/// First token and number of tokens of each strip, and that number filled up to a multiple of
/// [`ROWS`].
fn strips(tokens: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..tokens).step_by(STRIP).map(move |first| {
        let count = STRIP.min(tokens - first);
        (first, count, count.next_multiple_of(ROWS))
    })
}

fn inner_shape(shape: TileShape) -> Result<TileShape, CodecError> {
    TileShape::new(1, shape.tokens(), shape.num_kv_heads() * shape.head_dim())
}

/// Rows of keys and values of the tokens from `first` on, as many as `rows` has or there are.
fn widen(shape: TileShape, sides: [&[f16]; 2], first: usize, rows: &mut [f32]) {
    let (tokens, head_dim) = (shape.tokens(), shape.head_dim());
    let width = shape.num_kv_heads() * head_dim;
    for (side, numbers) in sides.into_iter().enumerate() {
        for (head, numbers) in numbers.chunks_exact(tokens * head_dim).enumerate() {
            let start = side * width + head * head_dim;
            let numbers = numbers[first * head_dim..].chunks_exact(head_dim);
            for (numbers, row) in numbers.zip(rows.chunks_exact_mut(2 * width)) {
                numbers.convert_to_f32_slice(&mut row[start..start + head_dim]);
            }
        }
    }
}

/// The reverse of [`widen`], into fp16 numbers that are finite.
fn narrow(shape: TileShape, rows: &mut [f32], mean: &[f32], first: usize, sides: [&mut [f16]; 2]) {
    let (tokens, head_dim) = (shape.tokens(), shape.head_dim());
    let width = shape.num_kv_heads() * head_dim;
    for row in rows.chunks_exact_mut(2 * width) {
        for (x, mean) in row.iter_mut().zip(mean) {
            // Finite bytes and a finite artefact can still overflow on the way.
            *x = if x.is_nan() { *mean } else { *x }.clamp(-65504.0, 65504.0);
        }
    }
    for (side, numbers) in sides.into_iter().enumerate() {
        for (head, numbers) in numbers.chunks_exact_mut(tokens * head_dim).enumerate() {
            let start = side * width + head * head_dim;
            let numbers = numbers[first * head_dim..].chunks_exact_mut(head_dim);
            for (numbers, row) in numbers.zip(rows.chunks_exact(2 * width)) {
                numbers.convert_from_f32_slice(&row[start..start + head_dim]);
            }
        }
    }
}

/// One more than the last channel that is not zero in all rows.
fn active(numbers: &[f16], channels: usize) -> usize {
    numbers.chunks_exact(channels).fold(0, |active, row| {
        let beyond = row[active..].iter().rposition(|x| x.to_bits() << 1 != 0);
        beyond.map_or(active, |last| active + last + 1)
    })
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
        let fitted = (self.basis(spec.layer)?, self.maps(spec.layer)?);
        let analysis = fitted.1.analysis(fitted.0);
        let (tokens, row) = (spec.shape.tokens(), fitted.0.mean.len());
        let mut predictor = Predictor::new(&self.stage, spec.shape, fitted, tile.beside().prior);
        let mut sides = [(); 2].map(|()| vec![f16::ZERO; tokens * row / 2]);
        let mut numbers = vec![0.0; STRIP * row];
        let mut predicted = vec![0.0; STRIP * row];
        let mut components = vec![0.0; STRIP * row];
        for (first, count, rows) in strips(tokens) {
            let (numbers, predicted) = (&mut numbers[..rows * row], &mut predicted[..rows * row]);
            predictor.predict(first, predicted);
            widen(spec.shape, [tile.k(), tile.v()], first, numbers);
            let pairs = numbers.iter_mut().zip(predicted);
            pairs.for_each(|(x, predicted)| *x -= *predicted);
            let components = &mut components[..rows * row];
            components.fill(0.0);
            analysis.add_product(numbers, components, |_| row);
            for (index, components) in components.chunks_exact(row).take(count).enumerate() {
                let (even, odd) = components.split_at(row / 2);
                for (side, numbers) in sides.iter_mut().zip([even, odd]) {
                    side[(first + index) * row / 2..][..row / 2].convert_from_f32_slice(numbers);
                }
            }
        }
        let [even, odd] = sides;
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
        let fitted = (self.basis(spec.layer)?, self.maps(spec.layer)?);
        let (tokens, row) = (spec.shape.tokens(), fitted.0.mean.len());
        let inner_spec = Self::inner_spec(&spec)?;
        let mut even = vec![f16::ZERO; inner_spec.shape.elements()];
        let mut odd = even.clone();
        let beside = Beside {
            positions: tile.beside().positions,
            prior: &[],
        };
        let mut inner = TileMut::new(inner_spec, &mut even, &mut odd)?.with_beside(beside)?;
        tile.decode_inner(&mut inner, |inner| self.inner.decode(bytes, inner))?;
        let mut predictor = Predictor::new(&self.stage, spec.shape, fitted, tile.beside().prior);
        let mut sums = vec![0.0; STRIP * row];
        let mut components = vec![0.0; STRIP * row / 2];
        for (first, count, rows) in strips(tokens) {
            let sums = &mut sums[..rows * row];
            predictor.predict(first, sums);
            for (side, map) in [&even, &odd].into_iter().zip(&fitted.1.synthesis) {
                let side = &side[first * row / 2..(first + count) * row / 2];
                // Components of high rank are mostly zero in all of some tokens: not multiplied.
                let mut used = [0; STRIP / ROWS];
                for (used, side) in used.iter_mut().zip(side.chunks(ROWS * row / 2)) {
                    *used = active(side, row / 2);
                }
                side.convert_to_f32_slice(&mut components[..count * row / 2]);
                map.add_product(&components[..rows * row / 2], sums, |tile| used[tile]);
            }
            let sums = &mut sums[..count * row];
            narrow(spec.shape, sums, &fitted.0.mean, first, tile.sides());
        }
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
        match (&self.artefact, self.stage.predicts()) {
            (Some(artefact), true) => artefact.prior_layers(),
            _ => 0,
        }
    }

    fn decodes_prefixes(&self) -> bool {
        self.inner.decodes_prefixes()
    }
}
