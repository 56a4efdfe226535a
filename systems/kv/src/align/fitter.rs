//! Fits a ridge bridge from a stream of pairs of blocks of the same tokens.

use half::f16;

use super::bridge::{check_end, gather_rows, sources};
use super::{
    AlignError, Bridge, BridgeEnd, BridgeManifest, LayerFit, LayerWeights, Moments,
    check_layer_map, ridge,
};
use crate::block::{KvBlock, LayerKv};

/// Contexts in one round of splits; every round has one to validate and one to hold out.
const ROUND: u64 = 10;

/// Tokens whose rows are widened to f64 at a time.
const BLOCK_ROWS: usize = 256;

/// What a pair of blocks is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Fitted on.
    Fit,
    /// Lambda is chosen on it; afterwards it is fitted on too.
    Validation,
    /// Scored on, never fitted on.
    HeldOut,
}

impl Split {
    const ALL: [Self; 3] = [Self::Fit, Self::Validation, Self::HeldOut];
}

/// What goes into the manifest, and how to fit.
#[derive(Debug, Clone, PartialEq)]
pub struct FitOptions {
    /// Id of the alignment that the layer map comes from.
    pub alignment: String,
    /// Hash of the calibration data.
    pub calibration_hash: String,
    /// Seed of the choice of calibration text.
    pub seed: u64,
    /// Program and version.
    pub created_by: String,
    /// Tokens at absolute positions below this are left out: attention sinks have keys and
    /// values far from all others and are better sent exactly.
    pub skip_tokens: usize,
    /// Values of lambda to choose from, relative to the mean diagonal.
    pub lambdas: Vec<f64>,
}

impl FitOptions {
    /// Options with the default grid and the first four tokens left out.
    #[must_use]
    pub fn new(alignment: &str, calibration_hash: &str, seed: u64, created_by: &str) -> Self {
        Self {
            alignment: alignment.to_owned(),
            calibration_hash: calibration_hash.to_owned(),
            seed,
            created_by: created_by.to_owned(),
            skip_tokens: 4,
            lambdas: ridge::LAMBDA_GRID.to_vec(),
        }
    }
}

/// Accumulates moments over contexts and solves for a [`Bridge`].
///
/// Memory is that of the moments: per target layer, for keys and for values, in each of three
/// splits, `p² + p·q` f64 numbers (113 MB for 24 layers, p = 256 and q = 128).
#[derive(Debug)]
pub struct BridgeFitter {
    source: BridgeEnd,
    target: BridgeEnd,
    layer_map: Vec<Vec<usize>>,
    options: FitOptions,
    contexts: u64,
    /// In the order of [`Split::ALL`].
    splits: [Vec<SideMoments>; 3],
}

#[derive(Debug)]
struct SideMoments {
    k: Moments,
    v: Moments,
}

impl BridgeFitter {
    /// Prepares to fit between two models along a layer map.
    ///
    /// # Errors
    /// [`AlignError::LayerMap`] or [`AlignError::Kv`] when the map or a shape is malformed.
    pub fn new(
        source: BridgeEnd,
        target: BridgeEnd,
        layer_map: Vec<Vec<usize>>,
        options: FitOptions,
    ) -> Result<Self, AlignError> {
        source.shape.validate(1)?;
        target.shape.validate(1)?;
        check_layer_map(&layer_map, source.shape.num_layers, target.shape.num_layers)?;
        let splits = Split::ALL.map(|_| {
            let empty = |layers: &Vec<usize>| {
                let (p, q) = (layers.len() * source.shape.width(), target.shape.width());
                SideMoments { k: Moments::new(p, q), v: Moments::new(p, q) }
            };
            layer_map.iter().map(empty).collect()
        });
        Ok(Self { source, target, layer_map, options, contexts: 0, splits })
    }

    /// Adds one context, both blocks pre-RoPE at the same positions with all layers, and
    /// returns what it is used for: of every ten contexts the third goes to validation and the
    /// sixth is held out. Tokens of one context never come apart, because they are not
    /// independent.
    ///
    /// # Errors
    /// [`AlignError::Block`] when a block does not suit, [`AlignError::NotFinite`] for a NaN or
    /// an infinity. Give the fitter up then: a part of the context may have been added.
    pub fn add(&mut self, source: &KvBlock, target: &KvBlock) -> Result<Split, AlignError> {
        let split = match self.contexts % ROUND {
            2 => Split::Validation,
            5 => Split::HeldOut,
            _ => Split::Fit,
        };
        self.add_to(split, source, target)?;
        Ok(split)
    }

    /// Adds one context to a split of the caller's choice.
    ///
    /// # Errors
    /// As for [`Self::add`].
    pub fn add_to(
        &mut self,
        split: Split,
        source: &KvBlock,
        target: &KvBlock,
    ) -> Result<(), AlignError> {
        check_end("source", &self.source, source)?;
        check_end("target", &self.target, target)?;
        if source.positions() != target.positions() {
            return Err(AlignError::Block {
                end: "target",
                expected: format!("positions {:?}", source.positions()),
                found: format!("positions {:?}", target.positions()),
            });
        }
        let seq_len = source.num_tokens();
        let first = self.options.skip_tokens.saturating_sub(source.positions().start);
        let moments = &mut self.splits[split as usize];
        let mut buffer = Vec::new();
        let mut widen = |sides: &[&[f16]], head_dim, tokens| -> Vec<f64> {
            gather_rows(sides, seq_len, head_dim, tokens, &mut buffer);
            buffer.iter().map(|number| f64::from(*number)).collect()
        };
        for (layer, (layers, moments)) in self.layer_map.iter().zip(moments).enumerate() {
            let inputs = sources(source, layers)?;
            let output = target.layer(layer).ok_or_else(|| AlignError::Block {
                end: "target",
                expected: format!("layer {layer}"),
                found: format!("layers {:?}", target.layer_range()),
            })?;
            let sides: [(&mut Moments, fn(&LayerKv) -> &[f16]); 2] =
                [(&mut moments.k, |kv| &kv.k), (&mut moments.v, |kv| &kv.v)];
            for (moments, pick) in sides {
                let inputs: Vec<&[f16]> = inputs.iter().map(|input| pick(input)).collect();
                for start in (first..seq_len).step_by(BLOCK_ROWS) {
                    let tokens = start..(start + BLOCK_ROWS).min(seq_len);
                    let x = widen(&inputs, self.source.shape.head_dim, tokens.clone());
                    let y = widen(&[pick(output)], self.target.shape.head_dim, tokens);
                    moments.add(&x, &y)?;
                }
            }
        }
        self.contexts += 1;
        Ok(())
    }

    /// Contexts added so far.
    #[must_use]
    pub const fn contexts(&self) -> u64 {
        self.contexts
    }

    /// Tokens added so far to a split, those left out not counted.
    #[must_use]
    pub fn tokens(&self, split: Split) -> u64 {
        self.splits[split as usize].first().map_or(0, |moments| moments.k.count())
    }

    /// Chooses lambda per layer and side on the validation split, fits on it and the fit split
    /// together, and scores on the held-out split.
    ///
    /// # Errors
    /// [`AlignError::TooLittleData`] when a split is empty (fewer than six contexts), otherwise
    /// as for [`ridge::fit`].
    pub fn finish(self) -> Result<Bridge, AlignError> {
        for (split, what) in [
            (Split::Fit, "tokens to fit on"),
            (Split::Validation, "tokens to choose lambda on (of the third context of ten)"),
            (Split::HeldOut, "held-out tokens (of the sixth context of ten)"),
        ] {
            let found = self.tokens(split);
            if found == 0 {
                return Err(AlignError::TooLittleData { what, found, needed: 1 });
            }
        }
        let fit_tokens = self.tokens(Split::Fit) + self.tokens(Split::Validation);
        let held_out_tokens = self.tokens(Split::HeldOut);
        let [fit, validation, held_out] = self.splits;
        let mut layers = Vec::with_capacity(fit.len());
        let mut scores = Vec::with_capacity(fit.len());
        for ((fit, validation), held_out) in fit.into_iter().zip(validation).zip(held_out) {
            let lambdas = &self.options.lambdas;
            let (k, k_lambda, k_r2) = solve(fit.k, &validation.k, &held_out.k, lambdas)?;
            let (v, v_lambda, v_r2) = solve(fit.v, &validation.v, &held_out.v, lambdas)?;
            layers.push(LayerWeights { k, v });
            scores.push(LayerFit { k_lambda, k_r2, v_lambda, v_r2 });
        }
        let manifest = BridgeManifest {
            calibration_hash: self.options.calibration_hash,
            fit_tokens,
            held_out_tokens,
            skipped_tokens: self.options.skip_tokens,
            seed: self.options.seed,
            created_by: self.options.created_by,
            layers: scores,
        };
        let alignment = self.options.alignment;
        Ok(Bridge::new(self.source, self.target, alignment, self.layer_map, manifest, layers))
    }
}

fn solve(
    mut fit: Moments,
    validation: &Moments,
    held_out: &Moments,
    lambdas: &[f64],
) -> Result<(ridge::Affine, f64, f64), AlignError> {
    let lambda = ridge::select_lambda(&fit, validation, lambdas)?;
    fit.merge(validation)?;
    let affine = ridge::fit(&fit, lambda)?;
    let r2 = affine.r2(held_out);
    Ok((affine, lambda, r2))
}
