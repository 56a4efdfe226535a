//! The codec artefact that a node holds, and the chains that it builds with it.

use crate::LoadedModel;
use anyhow::{Context as _, ensure};
use celslm_kv::codec::{CodecArtefact, CodecContext};
use celslm_kv::{Chain, CodecConfig, CodecError};
use std::path::Path;
use std::sync::Arc;

/// What a node codes with.
#[derive(Debug, Default)]
pub(crate) struct Codecs {
    context: CodecContext,
}

impl Codecs {
    /// Reads the artefact, if the node is to have one, and checks that it was fitted on the KV of
    /// `model`, which is what crosses the link.
    ///
    /// # Errors
    /// A file that cannot be used, or is another model's.
    pub(crate) fn load(path: Option<&Path>, model: &LoadedModel) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let artefact = CodecArtefact::read(path)?;
        let of = artefact.model();
        let (fingerprint, shape) = (model.decoder.fingerprint(), model.decoder.kv_shape());
        ensure!(
            of.fingerprint == fingerprint && of.shape == shape,
            "the codec artefact {} ({}) was fitted on KV of model {} ({}), the edge's model is \
             {fingerprint} ({shape})",
            artefact.id(),
            path.display(),
            of.fingerprint,
            of.shape
        );
        Ok(Self {
            context: CodecContext::new(Arc::new(artefact)),
        })
    }

    /// As [`Self::load`], for a node that may lack the model.
    pub(crate) fn load_for(
        path: Option<&Path>,
        model: Option<&LoadedModel>,
    ) -> anyhow::Result<Self> {
        match (path, model) {
            (None, _) => Ok(Self::default()),
            (path, model) => Self::load(
                path,
                model
                    .context("a codec artefact needs the edge's model: start with --edge-model")?,
            ),
        }
    }

    /// The id of the artefact.
    pub(crate) fn artefact_id(&self) -> Option<String> {
        let artefact = self.context.artefact.as_ref();
        artefact.map(|artefact| artefact.id().to_string())
    }

    /// The chain of a codec that both ends were told to use.
    ///
    /// # Errors
    /// [`CodecError::Artefact`] when the codec names another artefact than the node holds (both
    /// ids are stated), names none, or needs one where there is none.
    pub(crate) fn chain(&self, codec: &CodecConfig) -> Result<Chain, CodecError> {
        let refuse = |reason: String| CodecError::Artefact {
            codec: codec.id(),
            reason,
        };
        if codec.needs_artefact() {
            let held = self.context.artefact.as_ref().map(|artefact| artefact.id());
            match (codec.artefact(), held) {
                (Some(named), None) => {
                    return Err(refuse(format!(
                        "artefact {named} is asked for, this node holds none: start it with \
                         --codec-artefact FILE"
                    )));
                }
                // Two ends with one id would differ in what they hold.
                (None, held) => {
                    let held = held.map_or("none".to_owned(), |id| id.to_string());
                    return Err(refuse(format!(
                        "the codec does not name its artefact; this node holds {held}"
                    )));
                }
                (Some(_), Some(_)) => {}
            }
        }
        let chain = codec.build_with(&self.context)?;
        // Every stage names it, or one of them would be left open.
        if chain.config() == codec {
            return Ok(chain);
        }
        Err(refuse(format!(
            "a stage does not name its artefact; in full it is {}",
            chain.config()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use celslm_kv::align::BridgeEnd;
    use celslm_kv::codec::{ArtefactFitter, ArtefactOptions};
    use celslm_kv::{Codec as _, KeyRope, KvBlock, KvShape, LayerKv, ModelFingerprint};
    use half::f16;

    fn artefact(seed: u32) -> Arc<CodecArtefact> {
        let model = BridgeEnd {
            fingerprint: ModelFingerprint::from_bytes([3; 32]),
            shape: KvShape::new(2, 1, 8).unwrap(),
        };
        let side = |shift: u32| {
            (0..200 * 8)
                .map(|i| f16::from_f32(((i * (i % 8 + 3) + shift + seed) as f32).sin()))
                .collect()
        };
        let layers = (0..2)
            .map(|layer| LayerKv {
                k: side(layer),
                v: side(layer + 9),
            })
            .collect();
        let rope = KeyRope::Pre;
        let block = KvBlock::new(model.fingerprint, model.shape, 0, 0..200, rope, layers);
        let mut fitter = ArtefactFitter::new(model, ArtefactOptions::new("none", "tests")).unwrap();
        fitter.add(&block.unwrap()).unwrap();
        Arc::new(fitter.finish().unwrap())
    }

    /// An id that travels names the artefact, in every stage that uses it, and it is the node's.
    #[test]
    fn both_ends_build_from_the_artefact_that_the_id_names_or_not_at_all() {
        let held = artefact(1);
        let (held_id, other_id) = (held.id(), artefact(2).id());
        let node = Codecs {
            context: CodecContext::new(held),
        };
        let bare = Codecs::default();
        let codec = |text: String| text.parse::<CodecConfig>().unwrap();
        let named = |id| {
            codec(format!(
                "prefix-{id}+pca-predict-{id}+step-m600-d15+context"
            ))
        };
        let chain = node.chain(&named(held_id)).unwrap();
        assert_eq!(chain.id(), named(held_id).id());
        assert_eq!(chain.prior_layers(), 2);
        let refused = |node: &Codecs, config: &CodecConfig| {
            let error = node.chain(config).unwrap_err();
            assert!(matches!(error, CodecError::Artefact { .. }), "{error:?}");
            error.to_string()
        };
        let both = refused(&node, &named(other_id));
        for id in [held_id, other_id] {
            assert!(both.contains(&id.to_string()), "{both}");
        }
        let none = refused(&bare, &named(held_id));
        assert!(none.contains("this node holds none"), "{none}");
        let unnamed = codec("pca+step-m600-d15".to_owned());
        assert!(refused(&node, &unnamed).contains(&held_id.to_string()));
        refused(&bare, &unnamed);
        let half = codec(format!("prefix+pca-{held_id}+step-m600-d15"));
        let told = refused(&node, &half);
        assert!(told.contains(&format!("prefix-{held_id}")), "{told}");
        let free = codec("group_quant-4b-g32+zstd-l3".to_owned());
        for node in [&node, &bare] {
            assert_eq!(node.chain(&free).unwrap().id(), free.id());
        }
    }
}
