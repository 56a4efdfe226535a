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

/// Keys or values of a layer.
type Pick = fn(&LayerKv) -> &[f16];

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
                SideMoments {
                    k: Moments::new(p, q),
                    v: Moments::new(p, q),
                }
            };
            layer_map.iter().map(empty).collect()
        });
        Ok(Self {
            source,
            target,
            layer_map,
            options,
            contexts: 0,
            splits,
        })
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
        let first = self
            .options
            .skip_tokens
            .saturating_sub(source.positions().start);
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
            let sides: [(&mut Moments, Pick); 2] =
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
        self.splits[split as usize]
            .first()
            .map_or(0, |moments| moments.k.count())
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
            (
                Split::Validation,
                "tokens to choose lambda on (of the third context of ten)",
            ),
            (
                Split::HeldOut,
                "held-out tokens (of the sixth context of ten)",
            ),
        ] {
            let found = self.tokens(split);
            if found == 0 {
                return Err(AlignError::TooLittleData {
                    what,
                    found,
                    needed: 1,
                });
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
            scores.push(LayerFit {
                k_lambda,
                k_r2,
                v_lambda,
                v_r2,
            });
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
        Ok(Bridge::new(
            self.source,
            self.target,
            alignment,
            self.layer_map,
            manifest,
            layers,
        ))
    }
}

fn solve(
    mut fit: Moments,
    validation: &Moments,
    held_out: &Moments,
    lambdas: &[f64],
) -> Result<(ridge::Affine, f32, f32), AlignError> {
    let lambda = ridge::select_lambda(&fit, validation, lambdas)?;
    fit.merge(validation)?;
    let affine = ridge::fit(&fit, lambda)?;
    let r2 = affine.r2(held_out);
    Ok((affine, lambda as f32, r2 as f32))
}

#[cfg(test)]
pub(super) mod tests {
    use std::ops::Range;

    use super::*;
    use crate::align::{Alignment, Depth};
    use crate::block::{KeyRope, KvShape};
    use crate::ident::ModelFingerprint;

    /// Three source layers feed two target layers: layer 0 feeds 0, layer 2 feeds 1.
    pub(in crate::align) fn ends() -> (BridgeEnd, BridgeEnd) {
        let end = |byte, num_layers, head_dim| BridgeEnd {
            fingerprint: ModelFingerprint::from_bytes([byte; 32]),
            shape: KvShape::new(num_layers, 2, head_dim).unwrap(),
        };
        (end(0xaa, 3, 8), end(0xbb, 2, 4))
    }

    fn block(end: &BridgeEnd, positions: Range<usize>, layers: Vec<LayerKv>) -> KvBlock {
        KvBlock::new(
            end.fingerprint,
            end.shape,
            0,
            positions,
            KeyRope::Pre,
            layers,
        )
        .unwrap()
    }

    /// Multiples of 1/8 below 4, so that sums of a few of them are exact in fp16.
    pub(in crate::align) fn source_block(tokens: usize, seed: u64) -> KvBlock {
        let (source, _) = ends();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
        let mut side = || -> Vec<f16> {
            let next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(99_991);
                f16::from_f32((state >> 58) as f32 / 8.0 - 4.0)
            };
            std::iter::repeat_with(next)
                .take(source.shape.width() * tokens)
                .collect()
        };
        let layers = (0..3)
            .map(|_| LayerKv {
                k: side(),
                v: side(),
            })
            .collect();
        block(&source, 0..tokens, layers)
    }

    /// The linear model to be found: target (head h, channel c) of layer l is a difference of
    /// two source channels, across heads, plus an offset; values have the sign changed.
    pub(in crate::align) fn target_block(source: &KvBlock) -> KvBlock {
        let (_, target) = ends();
        let tokens = source.num_tokens();
        let side = |from: &[f16], sign: f32| {
            let at = |head: usize, t: usize, c: usize| from[(head * tokens + t) * 8 + c].to_f32();
            let mut side = Vec::new();
            for head in 0..2 {
                for t in 0..tokens {
                    for c in 0..4 {
                        let number = at(head, t, 2 * c) - 0.5 * at(1 - head, t, c + 1);
                        side.push(f16::from_f32(sign * number + c as f32));
                    }
                }
            }
            side
        };
        let layers = [0, 2].map(|layer: usize| {
            let from = &source.layers()[layer];
            LayerKv {
                k: side(&from.k, 1.0),
                v: side(&from.v, -1.0),
            }
        });
        block(&target, source.positions(), layers.to_vec())
    }

    pub(in crate::align) fn fitted() -> Bridge {
        let (source, target) = ends();
        let layer_map = Depth::default().layer_map(3, 2).unwrap();
        let mut options = FitOptions::new("depth", "hash", 7, "test 1");
        options.lambdas = vec![1e-9, 1e-2];
        let mut fitter = BridgeFitter::new(source, target, layer_map, options).unwrap();
        for context in 0..10 {
            let source = source_block(40, context);
            fitter.add(&source, &target_block(&source)).unwrap();
        }
        fitter.finish().unwrap()
    }

    #[test]
    fn a_linear_model_is_mapped_exactly() {
        let bridge = fitted();
        let manifest = bridge.manifest();
        assert_eq!(
            (manifest.fit_tokens, manifest.held_out_tokens),
            (9 * 36, 36)
        );
        for layer in &manifest.layers {
            assert_eq!((layer.k_lambda, layer.v_lambda), (1e-9, 1e-9));
            assert!(
                layer.k_r2 > 0.999_999 && layer.v_r2 > 0.999_999,
                "{layer:?}"
            );
        }
        assert!(manifest.mean_r2().0 > 0.999_999);
        let source = source_block(300, 99).slice_tokens(20..290).unwrap();
        let mapped = bridge.map(&source).unwrap();
        let truth = target_block(&source_block(300, 99))
            .slice_tokens(20..290)
            .unwrap();
        assert_eq!(mapped.spec(), truth.spec());
        for (mapped, truth) in mapped.layers().iter().zip(truth.layers()) {
            let pairs = mapped
                .k
                .iter()
                .zip(&truth.k)
                .chain(mapped.v.iter().zip(&truth.v));
            for (found, expected) in pairs {
                assert!(
                    (found.to_f32() - expected.to_f32()).abs() < 0.01,
                    "{found} {expected}"
                );
            }
        }
    }

    #[test]
    fn sinks_are_left_out() {
        let (source, target) = ends();
        let options = FitOptions::new("depth", "hash", 0, "test");
        let layer_map = vec![vec![0], vec![1, 2]];
        let mut fitter = BridgeFitter::new(source, target, layer_map, options).unwrap();
        let whole = source_block(10, 1);
        let split = fitter.add(&whole, &target_block(&whole)).unwrap();
        assert_eq!((split, fitter.tokens(Split::Fit)), (Split::Fit, 6));
        let later = whole.slice_tokens(3..10).unwrap();
        let target = target_block(&whole).slice_tokens(3..10).unwrap();
        fitter.add(&later, &target).unwrap();
        assert_eq!(fitter.tokens(Split::Fit), 12);
        let sinks = whole.slice_tokens(0..4).unwrap();
        fitter
            .add(&sinks, &target_block(&whole).slice_tokens(0..4).unwrap())
            .unwrap();
        assert_eq!(fitter.tokens(Split::Validation), 0);
    }

    #[test]
    fn blocks_that_do_not_pair_are_refused() {
        let (source, target) = ends();
        let options = FitOptions::new("depth", "hash", 0, "test");
        let map = vec![vec![0], vec![2]];
        let mut fitter = BridgeFitter::new(source, target, map.clone(), options.clone()).unwrap();
        let whole = source_block(10, 1);
        let other = target_block(&whole);
        assert!(matches!(
            fitter.add(&whole, &other.slice_tokens(0..9).unwrap()),
            Err(AlignError::Block { end: "target", .. })
        ));
        assert!(matches!(
            fitter.add(&other, &whole),
            Err(AlignError::Block { end: "source", .. })
        ));
        assert!(
            fitter
                .add(&whole.slice_layers(0..2).unwrap(), &other)
                .is_err()
        );
        assert!(
            fitter
                .add(&whole, &other.slice_layers(0..1).unwrap())
                .is_err()
        );
        assert_eq!(fitter.contexts(), 0);
        assert!(matches!(
            fitter.finish(),
            Err(AlignError::TooLittleData { .. })
        ));
        assert!(BridgeFitter::new(source, target, vec![vec![0]], options.clone()).is_err());
        assert!(BridgeFitter::new(source, target, vec![vec![0], vec![3]], options).is_err());
    }
}
