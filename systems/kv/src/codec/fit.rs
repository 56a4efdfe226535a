//! Fits a [`CodecArtefact`] from a stream of blocks.
//!
//! Bases are those of the Karhunen-Loève transform (principal components) of keys and values
//! together, all heads of a layer; KVTC (arXiv 2511.01815) takes them across layers too. Here
//! layers are tied by prediction instead: the layers below, as decoded, predict the next one, and
//! the basis is that of what is left. So a layer can be decoded as soon as its own bytes are
//! there, which a basis across layers does not allow. Beside it, for methods as published, stand
//! the components of the layer by itself, with neither prediction nor sensitivity.

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use half::f16;

use super::artefact::{
    ArtefactError, ArtefactManifest, CodecArtefact, Header, LayerBasis, MAX_PREFIX_TOKENS,
    MAX_PRIOR_LAYERS, PlainBasis, SCHEMA_VERSION,
};
use crate::align::{BridgeEnd, Moments};
use crate::block::{KeyRope, KvBlock, LayerKv};

/// Tokens whose rows are widened at a time.
const BLOCK_ROWS: usize = 256;

/// How to fit, and what goes into the manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct ArtefactOptions {
    /// Layers below that predict a layer, at most 8; 0 for bases alone.
    pub prior_layers: usize,
    /// Mean squared error of decoded layers relative to their variance, at the rate that the
    /// artefact is meant for: predictors trust noisy layers less. In 1/1000.
    pub noise: u32,
    /// Tokens at absolute positions below this are left out.
    pub skip_tokens: usize,
    /// How much an error in each number of a token's keys and values matters, relative to others
    /// of its layer and side: `[layer][2 * width]`, the square root of the second derivative of
    /// the loss. Without it all are taken to matter as their side's variance says.
    pub sensitivity: Option<Vec<Vec<f32>>>,
    /// Hash of the calibration data.
    pub calibration_hash: String,
    /// Program and version.
    pub created_by: String,
}

impl ArtefactOptions {
    /// Options with two layers to predict from, for an error of 2% of the variance.
    #[must_use]
    pub fn new(calibration_hash: &str, created_by: &str) -> Self {
        Self {
            prior_layers: 2,
            noise: 20,
            skip_tokens: 4,
            sensitivity: None,
            calibration_hash: calibration_hash.to_owned(),
            created_by: created_by.to_owned(),
        }
    }
}

/// Accumulates moments over blocks, in f64, and solves for an artefact.
///
/// Memory: per layer one matrix of `((prior_layers + 1) * 2 * width)²` f64 numbers (113 MB for 24
/// layers of 2 x 64 with two layers to predict from).
#[derive(Debug)]
pub struct ArtefactFitter {
    model: BridgeEnd,
    options: ArtefactOptions,
    /// Per layer, over rows of the layers below it, the nearest first, then its own.
    moments: Vec<Moments>,
    /// Per layer, rows of the first tokens that all contexts had in common so far; how many
    /// tokens, and of how many contexts.
    prefix: Vec<Vec<f16>>,
    prefix_tokens: usize,
    contexts: usize,
}

impl ArtefactFitter {
    /// Prepares to fit for a model.
    ///
    /// # Errors
    /// [`ArtefactError::Shape`] or [`ArtefactError::Fit`] for options that are not possible.
    pub fn new(model: BridgeEnd, options: ArtefactOptions) -> Result<Self, ArtefactError> {
        model.shape.validate(1)?;
        let row = 2 * model.shape.width();
        if options.prior_layers > MAX_PRIOR_LAYERS {
            return Err(unfit(format!(
                "predictors from {} layers, at most {MAX_PRIOR_LAYERS}",
                options.prior_layers
            )));
        }
        if let Some(sensitivity) = &options.sensitivity {
            let positive = |x: &f32| x.is_finite() && *x > 0.0;
            if sensitivity.len() != model.shape.num_layers
                || sensitivity
                    .iter()
                    .any(|layer| layer.len() != row || !layer.iter().all(positive))
            {
                return Err(unfit(format!(
                    "the sensitivity is not {} layers of {row} positive numbers",
                    model.shape.num_layers
                )));
            }
        }
        let moments = (0..model.shape.num_layers)
            .map(|layer| Moments::new((layer.min(options.prior_layers) + 1) * row, 1))
            .collect();
        Ok(Self {
            model,
            options,
            moments,
            prefix: Vec::new(),
            prefix_tokens: 0,
            contexts: 0,
        })
    }

    /// Adds a context: all layers, pre-RoPE.
    ///
    /// # Errors
    /// [`ArtefactError::Fit`] for a block that does not suit or is not finite. Give the fitter up
    /// then: a part of the block may have been added.
    pub fn add(&mut self, block: &KvBlock) -> Result<(), ArtefactError> {
        if *block.fingerprint() != self.model.fingerprint
            || block.shape() != self.model.shape
            || block.rope() != KeyRope::Pre
        {
            return Err(unfit("a block of another model, or rotated".to_owned()));
        }
        let skip = self
            .options
            .skip_tokens
            .saturating_sub(block.positions().start);
        let tokens = block.num_tokens();
        if block.positions().start == 0 {
            self.compare_prefix(block);
        }
        for start in (skip..tokens).step_by(BLOCK_ROWS) {
            let run = start..(start + BLOCK_ROWS).min(tokens);
            let rows: Vec<Vec<f64>> = block
                .layers()
                .iter()
                .map(|layer| {
                    let mut rows = Vec::new();
                    for token in run.clone() {
                        rows.extend(
                            row_of(layer, self.model.shape.head_dim, tokens, token)
                                .map(f16::to_f64),
                        );
                    }
                    rows
                })
                .collect();
            let row = 2 * self.model.shape.width();
            let dummy = vec![0.0; run.len()];
            for (layer, moments) in self.moments.iter_mut().enumerate() {
                let below = layer.min(self.options.prior_layers);
                let mut joint = Vec::with_capacity(run.len() * (below + 1) * row);
                for token in 0..run.len() {
                    for depth in 1..=below {
                        joint.extend_from_slice(&rows[layer - depth][token * row..][..row]);
                    }
                    joint.extend_from_slice(&rows[layer][token * row..][..row]);
                }
                moments
                    .add(&joint, &dummy)
                    .map_err(|error| unfit(error.to_string()))?;
            }
        }
        Ok(())
    }

    /// Keeps what the first tokens of this context have in common with those before, bit for bit
    /// and in all layers.
    fn compare_prefix(&mut self, block: &KvBlock) {
        let (head_dim, row) = (self.model.shape.head_dim, 2 * self.model.shape.width());
        let tokens = block.num_tokens();
        let rows: Vec<Vec<f16>> = block
            .layers()
            .iter()
            .map(|layer| {
                (0..tokens.min(MAX_PREFIX_TOKENS))
                    .flat_map(|token| row_of(layer, head_dim, tokens, token))
                    .collect()
            })
            .collect();
        if self.contexts == 0 {
            self.prefix_tokens = tokens.min(MAX_PREFIX_TOKENS);
            self.prefix = rows;
        } else {
            for (held, found) in self.prefix.iter().zip(&rows) {
                let same = held
                    .chunks_exact(row)
                    .zip(found.chunks_exact(row))
                    .take_while(|(a, b)| {
                        a.iter()
                            .map(|x| x.to_bits())
                            .eq(b.iter().map(|x| x.to_bits()))
                    });
                self.prefix_tokens = self.prefix_tokens.min(same.count());
            }
        }
        self.contexts += 1;
    }

    /// Tokens added so far.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.moments.first().map_or(0, Moments::count)
    }

    /// Solves.
    ///
    /// # Errors
    /// [`ArtefactError::Fit`] when there are fewer tokens than numbers in a row, or no solution.
    pub fn finish(&self) -> Result<CodecArtefact, ArtefactError> {
        let row = 2 * self.model.shape.width();
        let tokens = self.tokens();
        if tokens < 2 * row as u64 {
            return Err(unfit(format!(
                "{tokens} tokens, at least {} are needed",
                2 * row
            )));
        }
        // One context has everything in common with itself.
        let prefix_tokens = if self.contexts < 2 {
            0
        } else {
            self.prefix_tokens
        };
        let mut weights: Vec<Vec<f64>> = Vec::new();
        let (mut layers, mut plain) = (Vec::new(), Vec::new());
        for (layer, moments) in self.moments.iter().enumerate() {
            let below = layer.min(self.options.prior_layers);
            let own = below * row;
            let centred = moments.centred();
            let covariance = |i: usize, j: usize| centred.xtx[(i, j)] / tokens as f64;
            let mut weight = vec![0.0; row];
            for side in 0..2 {
                let run = side * row / 2..(side + 1) * row / 2;
                let mean = run
                    .clone()
                    .map(|i| covariance(own + i, own + i))
                    .sum::<f64>()
                    / (row / 2) as f64;
                // A side that never varies has no scale of its own.
                let scale = if mean > 0.0 { mean.sqrt().recip() } else { 1.0 };
                weight[run].fill(scale);
            }
            let alone = Mat::from_fn(row, row, |i, j| {
                covariance(own + i, own + j) * weight[i] * weight[j]
            });
            let (basis, variance) = components(&alone, layer)?;
            plain.push(PlainBasis {
                weight: weight.iter().copied().map(narrow).collect(),
                basis,
                variance,
            });
            if let Some(sensitivity) = &self.options.sensitivity {
                weight
                    .iter_mut()
                    .zip(&sensitivity[layer])
                    .for_each(|(weight, factor)| *weight *= f64::from(*factor));
            }
            weights.push(weight);
            // Weights of a joint row: the layers below, the nearest first, then this one.
            let joint: Vec<f64> = (1..=below)
                .map(|depth| layer - depth)
                .chain([layer])
                .flat_map(|layer| weights[layer].iter().copied())
                .collect();
            let at = |i: usize, j: usize| covariance(i, j) * joint[i] * joint[j];
            let cross = Mat::from_fn(own, row, |i, j| at(i, own + j));
            let mut left = Mat::from_fn(row, row, |i, j| at(own + i, own + j));
            let mut predictor = Mat::zeros(own, row);
            if own > 0 {
                // Decoded layers are noisy, which damps what is learnt from them.
                let noise = f64::from(self.options.noise.max(1)) / 1000.0;
                let noisy =
                    Mat::from_fn(own, own, |i, j| at(i, j) + if i == j { noise } else { 0.0 });
                predictor = noisy
                    .llt(Side::Lower)
                    .map_err(|_| unfit(format!("layer {layer}: no stable predictor")))?
                    .solve(&cross);
                left -= cross.transpose() * &predictor;
            }
            let (basis, variance) = components(&left, layer)?;
            layers.push(LayerBasis {
                mean: centred.mean_x[own..].iter().copied().map(narrow).collect(),
                weight: weights[layer].iter().copied().map(narrow).collect(),
                basis,
                variance,
                predictor: (0..own)
                    .flat_map(|i| (0..row).map(move |j| (i, j)))
                    .map(|(i, j)| f16::from_f64(predictor[(i, j)]))
                    .collect(),
                prefix: self
                    .prefix
                    .get(layer)
                    .map_or_else(Vec::new, |rows| rows[..prefix_tokens * row].to_vec()),
            });
        }
        let header = Header {
            schema_version: SCHEMA_VERSION,
            model: self.model,
            prior_layers: self.options.prior_layers,
            prefix_tokens,
            manifest: ArtefactManifest {
                calibration_hash: self.options.calibration_hash.clone(),
                fit_tokens: tokens,
                skipped_tokens: self.options.skip_tokens,
                noise: self.options.noise,
                sensitivity: self.options.sensitivity.is_some(),
                created_by: self.options.created_by.clone(),
            },
        };
        CodecArtefact::new(&header, &layers, &plain)
    }
}

const fn narrow(x: f64) -> f32 {
    x as f32
}

/// Principal components of a covariance, which rounding may have left not quite symmetric, and
/// their variances, by falling variance.
fn components(covariance: &Mat<f64>, layer: usize) -> Result<(Vec<f16>, Vec<f32>), ArtefactError> {
    let row = covariance.nrows();
    let symmetric = Mat::from_fn(row, row, |i, j| {
        f64::midpoint(covariance[(i, j)], covariance[(j, i)])
    });
    let eigen = symmetric
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| unfit(format!("layer {layer}: no principal components")))?;
    let (vectors, values) = (eigen.U(), eigen.S().column_vector());
    // Eigenvalues come in rising order.
    let falling = (0..row).rev();
    let basis = falling
        .clone()
        .flat_map(|component| (0..row).map(move |i| (i, component)))
        .map(|(i, component)| f16::from_f64(vectors[(i, component)]));
    let variance = falling.map(|i| narrow(values[i].max(0.0)));
    Ok((basis.collect(), variance.collect()))
}

/// One token's keys, all heads, then its values.
fn row_of(
    layer: &LayerKv,
    head_dim: usize,
    tokens: usize,
    token: usize,
) -> impl Iterator<Item = f16> {
    let run = move |side: &'_ [f16]| -> Vec<f16> {
        side.chunks_exact(tokens * head_dim)
            .flat_map(|head| &head[token * head_dim..][..head_dim])
            .copied()
            .collect()
    };
    run(&layer.k).into_iter().chain(run(&layer.v))
}

fn unfit(reason: String) -> ArtefactError {
    ArtefactError::Fit { reason }
}
