//! Fits a bridge from a stream of pairs of blocks of the same tokens.

use half::f16;

use super::bridge::check_end;
use super::mapping::{Choice, Errors, Group, Kept, Part, Problem};
use super::moments::check_weights;
use super::slot::gather;
use super::states::{check_kind, read_end};
use super::{
    AlignError, Bridge, BridgeEnd, BridgeManifest, KvSide, LayerFit, Mapping, MappingConfig,
    Moments, SourceKind, Storage, TokenAlignment, check_layer_map, ridge,
};
use crate::block::{KvBlock, KvShape};

/// Contexts in one round of splits; every round has one to validate and one to hold out.
const ROUND: u64 = 10;

/// Tokens whose rows are widened to f64 at a time.
const BLOCK_ROWS: usize = 256;

/// Contexts are kept to choose or score on up to so many tokens of each split; later ones are
/// fitted on. For the default pair that is 340 MB a split.
const MAX_KEPT_TOKENS: u64 = 8192;

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

/// What goes into the manifest, and how to fit.
#[derive(Debug, Clone, PartialEq)]
pub struct FitOptions {
    /// Id of the alignment that the layer map comes from.
    pub alignment: String,
    /// How the source blocks that are added were brought to the target's tokens.
    pub tokens: TokenAlignment,
    /// What relates the layers.
    pub mapping: MappingConfig,
    /// How the weights are stored.
    pub storage: Storage,
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
    /// Shape of the source model's hidden states, as
    /// [`states_shape`](super::states_shape) has it, for a mapping that reads them.
    pub states: Option<KvShape>,
}

impl FitOptions {
    /// Options for ridge, with the default grid and the first four tokens left out.
    #[must_use]
    pub fn new(alignment: &str, calibration_hash: &str, seed: u64, created_by: &str) -> Self {
        Self {
            alignment: alignment.to_owned(),
            tokens: TokenAlignment::Same,
            mapping: MappingConfig::Ridge,
            storage: MappingConfig::Ridge.storage(),
            calibration_hash: calibration_hash.to_owned(),
            seed,
            created_by: created_by.to_owned(),
            skip_tokens: 4,
            lambdas: ridge::LAMBDA_GRID.to_vec(),
            states: None,
        }
    }

    /// The same with another mapping, stored as it usually is.
    #[must_use]
    pub fn with_mapping(self, mapping: MappingConfig) -> Self {
        let storage = mapping.storage();
        Self {
            mapping,
            storage,
            ..self
        }
    }
}

/// Accumulates moments over contexts and solves for a [`Bridge`].
///
/// Memory is that of the moments, `p² + p·q` f64 numbers for every group of targets that are
/// mapped from the same `p` source channels (38 MB for ridge along `depth` between 28 x 256 and
/// 24 x 128 channels, 0.8 GB for the default `joint` map; twice as much where tokens are
/// weighted), and of the contexts that are kept to choose and to score on, at most 8192 tokens
/// of each. Solving takes about twice the largest group's moments on top.
#[derive(Debug)]
pub struct BridgeFitter {
    /// The source model.
    model: BridgeEnd,
    /// What is read of it.
    source: BridgeEnd,
    target: BridgeEnd,
    options: FitOptions,
    mapping: Box<dyn Mapping>,
    contexts: u64,
    groups: Vec<(Group, Sums)>,
    fit_tokens: u64,
    validation: Vec<Kept>,
    held_out: Vec<Kept>,
}

/// The moments of one group.
#[derive(Debug)]
struct Sums {
    plain: Moments,
    weighted: Option<Moments>,
}

/// A context on its way into the moments.
#[derive(Clone, Copy)]
struct Pair<'a> {
    source: &'a KvBlock,
    target: &'a KvBlock,
    first: usize,
    weights: Option<&'a [f32]>,
}

impl<'a> From<&'a Kept> for Pair<'a> {
    fn from(kept: &'a Kept) -> Self {
        Self {
            source: &kept.source,
            target: &kept.target,
            first: kept.first,
            weights: kept.weights.as_deref(),
        }
    }
}

impl Sums {
    fn add(&mut self, group: &Group, pair: Pair<'_>) -> Result<(), AlignError> {
        let outputs = group.outputs();
        let seq_len = pair.source.num_tokens();
        let mut buffer = Vec::new();
        for start in (pair.first..seq_len).step_by(BLOCK_ROWS) {
            let tokens = start..(start + BLOCK_ROWS).min(seq_len);
            let mut widen = |end, block, slots: &[_]| -> Result<Vec<f64>, AlignError> {
                gather(end, block, slots, tokens.clone(), &mut buffer)?;
                Ok(buffer.iter().map(|number| f64::from(*number)).collect())
            };
            let x = widen("source", pair.source, &group.inputs)?;
            let y = widen("target", pair.target, &outputs)?;
            self.plain.add(&x, &y)?;
            if let (Some(moments), Some(weights)) = (&mut self.weighted, pair.weights) {
                let weights = &weights[tokens.clone()];
                let weights: Vec<f64> = weights.iter().map(|x| f64::from(*x)).collect();
                moments.add_weighted(&x, &y, &weights)?;
            }
        }
        Ok(())
    }

    /// The moments to solve from. Weights are shrunk towards equal ones as far as the number of
    /// source channels needs.
    fn resolved(&self) -> std::borrow::Cow<'_, Moments> {
        use std::borrow::Cow;

        self.weighted
            .as_ref()
            .map_or(Cow::Borrowed(&self.plain), |weighted| {
                let least = (self.plain.count() as f64).min(2.0 * self.plain.source_width() as f64);
                let share = self.plain.largest_share(weighted, least);
                Cow::Owned(self.plain.blended(weighted, share))
            })
    }
}

impl BridgeFitter {
    /// Prepares to fit between two models along a layer map, whose source layers are states where
    /// the mapping reads states.
    ///
    /// # Errors
    /// [`AlignError::LayerMap`] or [`AlignError::Kv`] when the map or a shape is malformed,
    /// [`AlignError::Parameter`] for a parameter of the mapping that is out of range, and
    /// [`AlignError::Source`] for one that reads states without [`FitOptions::states`].
    pub fn new(
        source: BridgeEnd,
        target: BridgeEnd,
        layer_map: &[Vec<usize>],
        mut options: FitOptions,
    ) -> Result<Self, AlignError> {
        let mapping = options.mapping.method();
        if options.mapping.is_trained() {
            return Err(AlignError::NotFitted {
                mapping: mapping.id(),
            });
        }
        match mapping.reads() {
            SourceKind::Kv => options.states = None,
            kind @ SourceKind::States if options.states.is_none() => {
                return Err(AlignError::Source {
                    mapping: mapping.id(),
                    kind,
                    reason: "the model's states have no shape here".to_owned(),
                });
            }
            SourceKind::States => {}
        }
        let model = source;
        let source = read_end(&model, options.states);
        for end in [model, source, target] {
            end.shape.validate(1)?;
        }
        check_layer_map(layer_map, source.shape.num_layers, target.shape.num_layers)?;
        let groups = mapping.groups(layer_map, source.shape, target.shape)?;
        let empty = |group: Group| {
            let p = group.inputs.len() * source.shape.head_dim;
            let q = group.outputs().len() * target.shape.head_dim;
            let sums = Sums {
                plain: Moments::new(p, q),
                weighted: mapping.needs_weights().then(|| Moments::new(p, q)),
            };
            (group, sums)
        };
        let groups = groups.into_iter().map(empty).collect();
        Ok(Self {
            model,
            source,
            target,
            options,
            mapping,
            contexts: 0,
            groups,
            fit_tokens: 0,
            validation: Vec::new(),
            held_out: Vec::new(),
        })
    }

    /// Adds one context, both blocks pre-RoPE at the same positions with all layers (the source
    /// one of [`states_block`](super::states_block) where states are read), and
    /// returns what it is used for: of every ten contexts the third goes to validation and the
    /// sixth is held out, as long as there is room. Tokens of one context never come apart,
    /// because they are not independent.
    ///
    /// # Errors
    /// [`AlignError::Block`] when a block does not suit, [`AlignError::NotFinite`] for a NaN or
    /// an infinity, [`AlignError::Weights`] when the mapping needs weights. Give the fitter up
    /// then: a part of the context may have been added.
    pub fn add(&mut self, source: &KvBlock, target: &KvBlock) -> Result<Split, AlignError> {
        let split = self.next_split(source.num_tokens() as u64);
        self.add_to(split, source, target, None)?;
        Ok(split)
    }

    /// Adds one context with a weight for each token of the blocks: the attention that it
    /// receives, on any scale of the context's own, because weights are brought to a mean of one.
    /// Mappings that do not weigh tokens ignore them.
    ///
    /// # Errors
    /// As for [`Self::add`], and [`AlignError::Weights`] for weights that are none.
    pub fn add_weighted(
        &mut self,
        source: &KvBlock,
        target: &KvBlock,
        weights: &[f32],
    ) -> Result<Split, AlignError> {
        let split = self.next_split(source.num_tokens() as u64);
        self.add_to(split, source, target, Some(weights))?;
        Ok(split)
    }

    fn next_split(&self, tokens: u64) -> Split {
        let split = match self.contexts % ROUND {
            2 => Split::Validation,
            5 => Split::HeldOut,
            _ => Split::Fit,
        };
        let kept = self.tokens(split);
        if split != Split::Fit && kept > 0 && kept + tokens > MAX_KEPT_TOKENS {
            return Split::Fit;
        }
        split
    }

    /// Adds one context to a split of the caller's choice.
    ///
    /// # Errors
    /// As for [`Self::add_weighted`].
    pub fn add_to(
        &mut self,
        split: Split,
        source: &KvBlock,
        target: &KvBlock,
        weights: Option<&[f32]>,
    ) -> Result<(), AlignError> {
        check_kind(&self.model, self.options.states, source)?;
        check_end("source", &self.source, source)?;
        check_end("target", &self.target, target)?;
        if source.positions() != target.positions() {
            return Err(AlignError::Block {
                end: "target",
                expected: format!("positions {:?}", source.positions()),
                found: format!("positions {:?}", target.positions()),
            });
        }
        for (group, _) in &self.groups {
            // Rows of no token: all that is needed is there.
            gather("source", source, &group.inputs, 0..0, &mut Vec::new())?;
            gather("target", target, &group.outputs(), 0..0, &mut Vec::new())?;
        }
        let seq_len = source.num_tokens();
        let skipped = self.options.skip_tokens;
        let first = skipped
            .saturating_sub(source.positions().start)
            .min(seq_len);
        let weights = if self.mapping.needs_weights() {
            Some(self.normalised(weights, first..seq_len)?)
        } else {
            None
        };
        match split {
            Split::Fit => {
                let weights = weights.as_deref();
                let pair = Pair {
                    source,
                    target,
                    first,
                    weights,
                };
                for (group, sums) in &mut self.groups {
                    sums.add(group, pair)?;
                }
                self.fit_tokens += (seq_len - first) as u64;
            }
            Split::Validation | Split::HeldOut => {
                check_finite("source rows", source)?;
                check_finite("target rows", target)?;
                let kept = Kept {
                    source: source.clone(),
                    target: target.clone(),
                    first,
                    weights,
                };
                if split == Split::Validation {
                    self.validation.push(kept);
                } else {
                    self.held_out.push(kept);
                }
            }
        }
        self.contexts += 1;
        Ok(())
    }

    /// Weights with a mean of one over the tokens that take part.
    fn normalised(
        &self,
        weights: Option<&[f32]>,
        tokens: std::ops::Range<usize>,
    ) -> Result<Vec<f32>, AlignError> {
        let unfit = |reason| Err(AlignError::Weights { reason });
        let Some(weights) = weights else {
            return unfit(format!("mapping {} needs them", self.mapping.id()));
        };
        if weights.len() != tokens.end {
            return unfit(format!("{} for {} tokens", weights.len(), tokens.end));
        }
        check_weights(weights)?;
        let sum: f64 = weights[tokens.clone()].iter().map(|x| f64::from(*x)).sum();
        if sum <= 0.0 && !tokens.is_empty() {
            return unfit("all of them are zero".to_owned());
        }
        let scale = tokens.len() as f64 / sum;
        let scaled = weights.iter().map(|x| (f64::from(*x) * scale) as f32);
        Ok(scaled.collect())
    }

    /// Contexts added so far.
    #[must_use]
    pub const fn contexts(&self) -> u64 {
        self.contexts
    }

    /// Tokens added so far to a split, those left out not counted.
    #[must_use]
    pub fn tokens(&self, split: Split) -> u64 {
        let kept = match split {
            Split::Fit => return self.fit_tokens,
            Split::Validation => &self.validation,
            Split::HeldOut => &self.held_out,
        };
        let tokens = kept
            .iter()
            .map(|kept| kept.source.num_tokens() - kept.first);
        tokens.map(|tokens| tokens as u64).sum()
    }

    /// Chooses lambda, and whatever else the mapping leaves open, on the validation split, fits
    /// on it and the fit split together, and scores on the held-out split.
    ///
    /// # Errors
    /// [`AlignError::TooLittleData`] when a split is empty (fewer than six contexts), otherwise
    /// as for [`Mapping::solve`].
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
        let mut parts = Vec::new();
        let mut choices = Vec::new();
        for (group, mut sums) in self.groups {
            let problem = Problem {
                source: self.source.shape,
                target: self.target.shape,
                group: &group,
                storage: self.options.storage,
                lambdas: &self.options.lambdas,
                validation: &self.validation,
                weighted: self.mapping.needs_weights(),
            };
            let chosen = self.mapping.choose(&problem, &sums.resolved())?;
            for kept in &self.validation {
                sums.add(&group, kept.into())?;
            }
            parts.extend(self.mapping.solve(&problem, &sums.resolved(), &chosen)?);
            choices.extend(chosen);
        }
        let layers = scores(&self.target, &parts, &choices, &self.held_out)?;
        let manifest = BridgeManifest {
            calibration_hash: self.options.calibration_hash,
            fit_tokens,
            held_out_tokens,
            skipped_tokens: self.options.skip_tokens,
            seed: self.options.seed,
            created_by: self.options.created_by,
            layers,
            training: None,
            cost: None,
        };
        Ok(Bridge::new(
            self.model,
            self.target,
            self.options.alignment,
            self.options.mapping,
            self.options.storage,
            manifest,
            parts,
        )
        .reading(self.options.states)
        .with_tokens(self.options.tokens))
    }
}

fn check_finite(what: &str, block: &KvBlock) -> Result<(), AlignError> {
    let finite = |numbers: &[f16]| numbers.iter().all(|number| number.is_finite());
    if block
        .layers()
        .iter()
        .all(|kv| finite(&kv.k) && finite(&kv.v))
    {
        return Ok(());
    }
    Err(AlignError::NotFinite {
        what: what.to_owned(),
    })
}

/// Lambda and held-out R² of every target layer, tokens counting alike.
fn scores(
    target: &BridgeEnd,
    parts: &[Part],
    choices: &[Choice],
    held_out: &[Kept],
) -> Result<Vec<LayerFit>, AlignError> {
    /// Lambda, squared error and squared distance from the mean.
    type Sums = (f64, f64, f64);
    let mut layers: Vec<[Sums; 2]> = vec![[(0.0, 0.0, 0.0); 2]; target.shape.num_layers];
    for (part, choice) in parts.iter().zip(choices) {
        let mut errors = Errors::new(part.outputs.len(), target.shape.head_dim);
        for kept in held_out {
            errors.add(part, kept, false)?;
        }
        for (index, slot) in part.outputs.iter().enumerate() {
            let (error, spread) = errors.squares(index..index + 1);
            let sums = &mut layers[slot.layer][usize::from(slot.side == KvSide::V)];
            *sums = (sums.0.max(choice.lambda), sums.1 + error, sums.2 + spread);
        }
    }
    let r2 = |sums: Sums| {
        if sums.2 > 0.0 {
            1.0 - sums.1 / sums.2
        } else {
            0.0
        }
    };
    let layer = |[k, v]: [Sums; 2]| LayerFit {
        k_lambda: k.0 as f32,
        k_r2: r2(k) as f32,
        v_lambda: v.0 as f32,
        v_r2: r2(v) as f32,
    };
    Ok(layers.into_iter().map(layer).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use std::ops::Range;

    use super::*;
    use crate::align::{Alignment, Depth};
    use crate::block::{KeyRope, KvShape, LayerKv};
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
        let layer_map = Depth::default().layer_map(3, 2, None).unwrap();
        let mut options = FitOptions::new("depth", "hash", 7, "test 1");
        options.lambdas = vec![1e-9, 1e-2];
        let mut fitter = BridgeFitter::new(source, target, &layer_map, options).unwrap();
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
        let mut fitter = BridgeFitter::new(source, target, &layer_map, options).unwrap();
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
        let mut fitter = BridgeFitter::new(source, target, &map, options.clone()).unwrap();
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
        assert!(BridgeFitter::new(source, target, &[vec![0]], options.clone()).is_err());
        assert!(BridgeFitter::new(source, target, &[vec![0], vec![3]], options).is_err());
    }
}
