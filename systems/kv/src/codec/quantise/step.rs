//! `step`: one step for all components, which is what reverse water-filling asks for.
//!
//! Where an entropy coder follows, the best rates for a given sum of squared errors come from the
//! same step everywhere: components with more variance get more bits, and those whose variance
//! lies below the step's error get none (Kolmogorov's reverse water-filling; Gish and Pierce, 1968,
//! for scalar quantisers). Zero gets more than its share of the range, and numbers are put back
//! where their cell's mean was, as coders of images do (Sullivan, 1996).

use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use super::{Quantise, Symbols, check_finite};
use crate::codec::{CodecArtefact, CodecError, Tile, TileMut, TileShape, TileSpec};

/// Divides by `milli / 1000` and rounds, towards zero for what lies within `deadzone` percent of
/// a step of the next lower cell. For components of `pca`, whose mean variance is one.
///
/// Bytes beside the symbols: per side, where in their cells numbers of magnitude 1 and of larger
/// magnitude lie, a byte each. Loses without an entropy coder: symbols are 12 bits wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Step {
    milli: usize,
    deadzone: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Step", deny_unknown_fields)]
struct Fields {
    milli: usize,
    #[serde(default = "default_deadzone")]
    deadzone: usize,
}

const fn default_deadzone() -> usize {
    15
}

impl TryFrom<Fields> for Step {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.milli, fields.deadzone)
    }
}

impl From<Step> for Fields {
    fn from(stage: Step) -> Self {
        let Step { milli, deadzone } = stage;
        Self { milli, deadzone }
    }
}

/// Bits of a symbol.
const WIDTH: u8 = 12;
/// Numbers that are worked on at a time.
const LANES: usize = 16;

impl Step {
    pub(in crate::codec) const NAME: &str = "step";

    /// A step of `milli / 1000`, rounding down `deadzone` percent of a step more than half.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `milli` is 5 to 10000 and `deadzone` at most 40.
    pub fn new(milli: usize, deadzone: usize) -> Result<Self, CodecError> {
        let refuse = |parameter, value, allowed| {
            Err(CodecError::Parameter {
                stage: Self::NAME,
                parameter,
                value,
                allowed,
            })
        };
        if !(5..=10_000).contains(&milli) {
            return refuse("milli", milli, "5 to 10000");
        }
        if deadzone > 40 {
            return refuse("deadzone", deadzone, "0 to 40");
        }
        Ok(Self { milli, deadzone })
    }

    /// Reads the parameters of an id, `m500-d15`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        let (milli, deadzone) = text.strip_prefix('m')?.split_once("-d")?;
        Self::new(milli.parse().ok()?, deadzone.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-m{}-d{}", Self::NAME, self.milli, self.deadzone)
    }

    /// The step.
    pub(in crate::codec) fn size(&self) -> f32 {
        self.milli as f32 / 1000.0
    }

    /// Quantises one side and measures where in their cells its numbers lie, in 1/256 of a step
    /// below the cell's upper end of rounding to the nearest.
    pub(in crate::codec) fn quantise_side(
        &self,
        shape: TileShape,
        numbers: &[half::f16],
        symbols: &mut [i16],
    ) -> [u8; 2] {
        let (inverse, most) = (self.size().recip(), f32::from((1_i16 << (WIDTH - 1)) - 1));
        let offset = 0.5 - self.deadzone as f32 / 100.0;
        let mut row = vec![0.0_f32; shape.head_dim()];
        let (mut sums, mut counts) = ([0.0_f64; 2], [0_u32; 2]);
        let rows = numbers.chunks_exact(shape.head_dim());
        for (numbers, symbols) in rows.zip(symbols.chunks_exact_mut(shape.head_dim())) {
            numbers.convert_to_f32_slice(&mut row);
            // Sums in lanes, so that the loop has no branch and fills a vector.
            let (mut errors, mut ones) = ([[0.0_f32; LANES]; 2], [[0_u32; LANES]; 2]);
            for (symbols, row) in symbols.chunks_mut(LANES).zip(row.chunks(LANES)) {
                for (lane, (symbol, x)) in symbols.iter_mut().zip(row).enumerate() {
                    let scaled = x * inverse;
                    let magnitude = (scaled.abs() + offset).floor().min(most);
                    *symbol = magnitude.copysign(scaled) as i16;
                    let error = scaled.abs() - magnitude;
                    let kinds = [magnitude == 1.0, magnitude > 1.0];
                    for (kind, is) in kinds.into_iter().enumerate() {
                        errors[kind][lane] += if is { error } else { 0.0 };
                        ones[kind][lane] += u32::from(is);
                    }
                }
            }
            for kind in 0..2 {
                sums[kind] += f64::from(errors[kind].iter().sum::<f32>());
                counts[kind] += ones[kind].iter().sum::<u32>();
            }
        }
        [0, 1].map(|kind| {
            let mean = sums[kind] / f64::from(counts[kind].max(1));
            (mean * 256.0 + 128.0).round().clamp(0.0, 255.0) as u8
        })
    }

    /// The reverse of [`Self::quantise_side`].
    pub(in crate::codec) fn dequantise_side(
        &self,
        symbols: &[i16],
        places: [u8; 2],
        numbers: &mut [half::f16],
    ) {
        let places = places.map(|place| (f32::from(place) - 128.0) / 256.0);
        let size = self.size();
        let mut row = [0.0_f32; 8 * LANES];
        let runs = numbers.chunks_mut(row.len()).zip(symbols.chunks(row.len()));
        for (numbers, symbols) in runs {
            let row = &mut row[..numbers.len()];
            for (x, symbol) in row.iter_mut().zip(symbols) {
                let signed = f32::from(*symbol);
                let magnitude = signed.abs();
                let far = if magnitude > 1.0 {
                    places[1]
                } else {
                    places[0]
                };
                let place = if magnitude == 0.0 { 0.0 } else { far };
                let number = (magnitude + place) * size;
                *x = number.clamp(0.0, 65504.0).copysign(signed);
            }
            numbers.convert_from_f32_slice(row);
        }
    }
}

/// The stage with the artefact that says what to expect.
#[derive(Debug)]
pub(in crate::codec) struct StepQuantiser {
    stage: Step,
    artefact: Option<Arc<CodecArtefact>>,
}

impl StepQuantiser {
    pub(in crate::codec) fn new(stage: Step, artefact: Option<Arc<CodecArtefact>>) -> Self {
        Self { stage, artefact }
    }
}

impl Quantise for StepQuantiser {
    fn name(&self) -> &'static str {
        Step::NAME
    }

    fn check_shape(&self, _shape: TileShape) -> Result<(), CodecError> {
        Ok(())
    }

    fn widths(&self, spec: &TileSpec) -> [Vec<u8>; 2] {
        let widths = vec![WIDTH; spec.shape.num_kv_heads() * spec.shape.head_dim()];
        [widths.clone(), widths]
    }

    fn quantise(&self, tile: &Tile<'_>, symbols: &mut Symbols) -> Result<Vec<u8>, CodecError> {
        check_finite(Step::NAME, tile)?;
        let shape = tile.shape();
        let k = self.stage.quantise_side(shape, tile.k(), &mut symbols.k);
        let v = self.stage.quantise_side(shape, tile.v(), &mut symbols.v);
        Ok([k, v].concat())
    }

    fn dequantise(
        &self,
        symbols: &Symbols,
        side: &[u8],
        tile: &mut TileMut<'_>,
    ) -> Result<(), CodecError> {
        let Some([a, b, c, d]) = side.first_chunk::<4>().filter(|_| side.len() == 4) else {
            return Err(super::bad_scales(Step::NAME));
        };
        self.stage.dequantise_side(&symbols.k, [*a, *b], tile.k());
        self.stage.dequantise_side(&symbols.v, [*c, *d], tile.v());
        Ok(())
    }

    fn side_len(&self, _shape: TileShape) -> usize {
        4
    }

    fn expected(&self, spec: &TileSpec) -> Option<[Vec<u16>; 2]> {
        expected(self.artefact.as_ref(), &self.stage, spec)
    }
}

/// Mean magnitudes of the symbols of `pca`'s components, in 1/16: 0.8 standard deviations, as of
/// normal numbers. The square root is exactly rounded everywhere, so both ends agree.
pub(in crate::codec) fn expected(
    artefact: Option<&Arc<CodecArtefact>>,
    step: &Step,
    spec: &TileSpec,
) -> Option<[Vec<u16>; 2]> {
    let basis = artefact?.layer(spec.layer)?;
    let channels = spec.shape.num_kv_heads() * spec.shape.head_dim();
    if basis.variance.len() != 2 * channels {
        return None;
    }
    let factor = 16.0 * 0.8 / step.size();
    Some([0, 1].map(|parity| {
        let ranks = basis.variance.iter().skip(parity).step_by(2);
        ranks
            .map(|variance| (variance.sqrt() * factor) as u16)
            .collect()
    }))
}
