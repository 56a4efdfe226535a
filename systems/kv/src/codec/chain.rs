//! A chain of stages as one codec.

use std::sync::Arc;

use super::entropy::{AdaptiveCoder, ContextCoder, Packed, SymbolCoder, TablesCoder, ZstdCodec};
use super::quantise::{AllocatedQuantiser, Coded, ProgressiveCodec, Quantise, StepQuantiser};
use super::select::{ExactCodec, PrefixCodec, ScoredBy, Selected};
use super::transform::{
    AnchorDeltaCodec, CentreCodec, HadamardCodec, MergeCodec, OutliersCodec, PcaCodec, SvdCodec,
};
use super::{
    Beside, Codec, CodecConfig, CodecContext, CodecError, Explanation, GroupQuant, Identity,
    StageConfig, StageKind, Tile, TileMut, TileShape, TileSpec,
};

/// The codec that a [`CodecConfig`] describes.
///
/// A config holds exactly one quantiser, which is the innermost codec; an entropy stage for
/// symbols works with it, other entropy stages code its bytes, and select and transform stages
/// own all of that and hand it another tile.
#[derive(Debug, Clone)]
pub struct Chain {
    config: CodecConfig,
    codec: Arc<dyn Codec>,
}

impl Chain {
    pub(super) fn new(config: CodecConfig, context: &CodecContext) -> Result<Self, CodecError> {
        let config = config.bind(context)?;
        let codec = build(config.stages(), context).into();
        Ok(Self { config, codec })
    }

    /// A chain without artefacts: stages that need one refuse every tile.
    pub(super) fn without_artefact(config: CodecConfig) -> Self {
        let codec = build(config.stages(), &CodecContext::default()).into();
        Self { config, codec }
    }

    /// The stages of the chain.
    #[must_use]
    pub const fn config(&self) -> &CodecConfig {
        &self.config
    }

    /// What the bytes of a payload are spent on. Decodes it, so that an account is given only of
    /// what decodes; the parts add up to the payload.
    ///
    /// # Errors
    /// As for [`Codec::decode`].
    pub fn explain(
        &self,
        spec: TileSpec,
        beside: Beside<'_>,
        bytes: &[u8],
    ) -> Result<Explanation, CodecError> {
        let elements = spec.shape.elements();
        let mut k = vec![half::f16::ZERO; elements];
        let mut v = vec![half::f16::ZERO; elements];
        let mut tile = TileMut::new(spec, &mut k, &mut v)?.with_beside(beside)?;
        tile.start_account();
        self.codec.decode(bytes, &mut tile)?;
        let tokens = spec.shape.tokens();
        let held = tile.held().count(tokens);
        let parts = tile.take_account().unwrap_or_default();
        Ok(Explanation::new(
            parts,
            tokens,
            held,
            spec.shape.fp16_bytes(),
        ))
    }
}

/// Builds the codec of the stages, the quantiser first and what owns it around it.
fn build(stages: &[StageConfig], context: &CodecContext) -> Box<dyn Codec> {
    let at = stages
        .iter()
        .position(|stage| stage.kind() == StageKind::Quantise)
        .unwrap_or_default();
    let (before, rest) = stages.split_at(at);
    // What a quantiser expects of components holds behind pca only, whose id names the artefact.
    // Anywhere else two ends with the same id could differ in what they hold.
    let fitted = before
        .iter()
        .rev()
        .find_map(|stage| match stage {
            StageConfig::Pca(stage) => Some(stage.context(context)),
            _ => None,
        })
        .unwrap_or_default();
    let mut codec = quantise_and_code(rest, &fitted);
    for (index, stage) in before.iter().enumerate().rev() {
        codec = match stage {
            StageConfig::Outliers(stage) => {
                let widened = |inner: &StageConfig| match inner {
                    StageConfig::LloydMax(inner) => inner
                        .widened(stage.extra())
                        .map_or(StageConfig::LloydMax(*inner), StageConfig::LloydMax),
                    inner => *inner,
                };
                let outliers: Vec<_> = stages[index + 1..].iter().map(widened).collect();
                let outliers = build(&outliers, context);
                Box::new(OutliersCodec::new(*stage, outliers, codec))
            }
            StageConfig::AnchorDelta(stage) => {
                let mut anchors = vec![StageConfig::GroupQuant(GroupQuant::BITS_8)];
                anchors.extend_from_slice(&rest[1..]);
                let anchors = quantise_and_code(&anchors, &fitted);
                Box::new(AnchorDeltaCodec::new(*stage, anchors, codec))
            }
            StageConfig::Centre => Box::new(CentreCodec::new(codec)),
            StageConfig::Merge(stage) => Box::new(MergeCodec::new(*stage, codec)),
            StageConfig::Hadamard(stage) => Box::new(HadamardCodec::new(*stage, codec)),
            StageConfig::Svd(stage) => Box::new(SvdCodec::new(*stage, codec)),
            StageConfig::Pca(stage) => Box::new(PcaCodec::new(
                *stage,
                stage.context(context).artefact,
                codec,
            )),
            StageConfig::Prefix(stage) => {
                Box::new(PrefixCodec::new(*stage, context.artefact.clone(), codec))
            }
            StageConfig::Exact(stage) => Box::new(ExactCodec::new(*stage, codec)),
            StageConfig::Streaming(stage) => Box::new(Selected::new(Box::new(*stage), codec)),
            StageConfig::Knorm(stage) => Box::new(Selected::new(Box::new(*stage), codec)),
            StageConfig::Random(stage) => Box::new(Selected::new(Box::new(*stage), codec)),
            StageConfig::Snapkv(stage) => {
                Box::new(Selected::new(stage.selector(ScoredBy::SnapKv), codec))
            }
            StageConfig::ExpectedAttention(stage) => Box::new(Selected::new(
                stage.selector(ScoredBy::ExpectedAttention),
                codec,
            )),
            StageConfig::H2o(stage) => {
                Box::new(Selected::new(stage.selector(ScoredBy::H2o), codec))
            }
            _ => unreachable!("a codec config is in order"),
        };
    }
    codec
}

/// The quantiser `stages[0]` with the entropy stages behind it.
fn quantise_and_code(stages: &[StageConfig], context: &CodecContext) -> Box<dyn Codec> {
    let coder: Option<Box<dyn SymbolCoder>> = match stages.get(1) {
        Some(StageConfig::Tables(stage)) => Some(Box::new(TablesCoder::new(*stage))),
        Some(StageConfig::Adaptive) => Some(Box::new(AdaptiveCoder)),
        Some(StageConfig::Context) => Some(Box::new(ContextCoder)),
        _ => None,
    };
    let bytes_from = if coder.is_some() { 2 } else { 1 };
    let mut codec: Box<dyn Codec> = match (stages[0], coder) {
        (StageConfig::Identity, _) => Box::new(Identity),
        (StageConfig::GroupQuant(stage), None) => Box::new(stage),
        (StageConfig::Progressive(stage), _) => {
            Box::new(ProgressiveCodec::new(stage, context.artefact.clone()))
        }
        (stage, coder) => {
            let quantiser: Box<dyn Quantise> = match stage {
                StageConfig::GroupQuant(stage) => Box::new(stage),
                StageConfig::Bins(stage) => Box::new(stage),
                StageConfig::Vectorwise(stage) => Box::new(stage),
                StageConfig::LloydMax(stage) => Box::new(stage),
                StageConfig::Allocated(stage) => {
                    Box::new(AllocatedQuantiser::new(&stage, context.artefact.clone()))
                }
                StageConfig::Step(stage) => {
                    Box::new(StepQuantiser::new(stage, context.artefact.clone()))
                }
                _ => unreachable!("a codec config has its quantiser here"),
            };
            Box::new(Coded::new(
                quantiser,
                coder.unwrap_or_else(|| Box::new(Packed)),
            ))
        }
    };
    for stage in stages.iter().skip(bytes_from) {
        codec = match stage {
            StageConfig::Zstd(stage) => Box::new(ZstdCodec::new(*stage, codec)),
            _ => unreachable!("a codec config is in order"),
        };
    }
    codec
}

impl Codec for Chain {
    fn id(&self) -> String {
        self.config.id()
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        self.codec.check_shape(shape)
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let start = out.len();
        self.codec
            .encode(tile, out)
            .inspect_err(|_| out.truncate(start))
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        self.codec.decode(bytes, tile)
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        self.codec.encoded_len(shape)
    }

    fn nominal_bits(&self) -> f64 {
        self.codec.nominal_bits()
    }

    fn token_group(&self) -> usize {
        self.codec.token_group()
    }

    fn error_bound(&self, min: f32, max: f32) -> Option<f32> {
        self.codec.error_bound(min, max)
    }

    fn prior_layers(&self) -> usize {
        self.codec.prior_layers()
    }

    fn looks_above(&self) -> bool {
        self.codec.looks_above()
    }

    fn decodes_prefixes(&self) -> bool {
        self.codec.decodes_prefixes()
    }
}
