//! The forms in which a context's KV can be had, and the store that keeps them.

use super::contexts::{Context, Contexts};
use crate::clock::now_ns;
use crate::loaded::LoadedModel;
use crate::prefix_cache::PrefixCache;
use anyhow::Context as _;
use celslm_kv::align::BridgeEnd;
use celslm_kv::{Bridge, ContextId, KvBlock, KvStore};
use celslm_model::{KvPrefix, ModelError};
use celslm_wire::{ServiceError, Variant};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls that may wait for the models at once; further ones are refused.
const MAX_WAITING: usize = 64;

/// The store's name for the cloud model's own KV.
const NATIVE: &str = "native";

/// What the node's calls share.
pub(super) struct Shared {
    pub(super) model: LoadedModel,
    pub(super) edge_model: Option<LoadedModel>,
    bridges: Vec<(Bridge, [u8; 32])>,
    contexts: Contexts,
    /// Half of the node's bound; the other half is for `prefixes`.
    store: KvStore,
    /// Attention-ready native contexts, for answers of the cloud itself.
    prefixes: PrefixCache,
    /// The models compute for one call at a time, as they use every compute thread.
    compute: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// A form of KV that fits the edge's model.
pub(super) enum EdgeVariant<'a> {
    /// Computed here by the edge's own model.
    Identity(&'a LoadedModel),
    /// Mapped from the cloud model's KV.
    Bridged(&'a Bridge, String),
}

impl EdgeVariant<'_> {
    fn key(&self) -> &str {
        match self {
            Self::Identity(_) => "identity",
            Self::Bridged(_, key) => key,
        }
    }
}

/// KV with what it took to get it.
pub(super) struct Ready {
    pub(super) block: Arc<KvBlock>,
    pub(super) store_hit: bool,
    pub(super) compute_ns: u64,
    pub(super) align_ns: u64,
}

impl Shared {
    pub(super) fn new(
        model: LoadedModel,
        edge_model: Option<LoadedModel>,
        bridges: &[PathBuf],
        store_bytes: u64,
    ) -> anyhow::Result<Self> {
        let bridges = bridges
            .iter()
            .map(|path| {
                let edge_model = edge_model.as_ref().with_context(|| {
                    format!(
                        "the bridge {} needs the edge's model: start with --edge-model",
                        path.display()
                    )
                })?;
                let bridge = Bridge::load(path, &end(&model), &end(edge_model))
                    .with_context(|| format!("failed to load the bridge {}", path.display()))?;
                let hash = *blake3::Hasher::new()
                    .update_mmap(path)?
                    .finalize()
                    .as_bytes();
                Ok((bridge, hash))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self {
            model,
            edge_model,
            bridges,
            contexts: Contexts::default(),
            store: KvStore::new(store_bytes / 2),
            prefixes: PrefixCache::new(usize::try_from(store_bytes / 2).unwrap_or(usize::MAX)),
            compute: Arc::new(Semaphore::new(1)),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Registers a context by its system message.
    pub(super) fn publish(&self, system: &str) -> Result<(ContextId, Arc<Context>), ServiceError> {
        let tokens = self.model.context_tokens(system).map_err(invalid)?;
        let window = self.model.decoder.config().max_position_embeddings;
        if tokens.is_empty() || tokens.len() >= window {
            return Err(ServiceError::InvalidArgument(format!(
                "the context has {} tokens, the cloud model's window is {window}",
                tokens.len()
            )));
        }
        let fingerprint = self.model.decoder.fingerprint();
        let id = ContextId::new(&fingerprint, self.model.template.source(), &tokens);
        let context = self.contexts.insert(
            id,
            Context {
                system: system.to_owned(),
                tokens,
            },
        )?;
        Ok((id, context))
    }

    /// A published context.
    pub(super) fn context(&self, id: &ContextId) -> Result<Arc<Context>, ServiceError> {
        self.contexts.get(id)
    }

    /// Waits for the models; the permit is the turn.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, ServiceError> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if ahead >= MAX_WAITING {
            return Err(ServiceError::Overloaded(format!(
                "{ahead} calls wait for the models"
            )));
        }
        self.compute
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| ServiceError::Unavailable("the cloud is shutting down".to_owned()))
    }

    /// Forgets everything that was computed for a context.
    pub(super) fn evict(&self, id: &ContextId) {
        self.store.remove(id, NATIVE);
        self.store.remove(id, "identity");
        for (bridge, hash) in &self.bridges {
            self.store.remove(id, &bridge_key(bridge, hash));
        }
        self.prefixes.evict(&id.to_string());
    }

    /// The form that a request names.
    pub(super) fn variant(&self, variant: &Variant) -> Result<EdgeVariant<'_>, ServiceError> {
        if variant.alignment == "identity" {
            return self
                .edge_model
                .as_ref()
                .map(EdgeVariant::Identity)
                .ok_or_else(|| {
                    ServiceError::Unsupported(
                        "this cloud does not host the edge's model; start it with --edge-model"
                            .to_owned(),
                    )
                });
        }
        self.bridges
            .iter()
            .find(|(bridge, hash)| {
                bridge.alignment() == variant.alignment
                    && variant.bridge.is_none_or(|wanted| wanted == *hash)
            })
            .map(|(bridge, hash)| EdgeVariant::Bridged(bridge, bridge_key(bridge, hash)))
            .ok_or_else(|| {
                ServiceError::NotFound(format!(
                    "no bridge for the alignment {:?} is loaded; start the cloud with --bridge",
                    variant.alignment
                ))
            })
    }

    /// Whether a form of a context's KV is in the store.
    pub(super) fn has(&self, id: &ContextId, variant: &EdgeVariant<'_>) -> bool {
        self.store.contains(id, variant.key())
    }

    /// The cloud model's own KV of a context, computed once.
    fn native(
        &self,
        id: &ContextId,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<Ready, ServiceError> {
        let context = self.context(id)?;
        self.stored(id, NATIVE, &self.model, &context.tokens, proceed)
    }

    /// KV from the store, or computed by a model and kept.
    fn stored(
        &self,
        id: &ContextId,
        key: &str,
        model: &LoadedModel,
        tokens: &[u32],
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<Ready, ServiceError> {
        if let Some(block) = self.store.get(id, key) {
            return Ok(Ready {
                block,
                store_hit: true,
                compute_ns: 0,
                align_ns: 0,
            });
        }
        let start = now_ns();
        let block = model
            .decoder
            .context_kv(tokens, proceed)
            .map_err(internal)?
            .ok_or_else(|| ServiceError::Cancelled("the caller went away".to_owned()))?;
        let block = Arc::new(block);
        let compute_ns = now_ns() - start;
        self.keep(id, key, &block)?;
        Ok(Ready {
            block,
            store_hit: false,
            compute_ns,
            align_ns: 0,
        })
    }

    fn keep(&self, id: &ContextId, key: &str, block: &Arc<KvBlock>) -> Result<(), ServiceError> {
        self.store.insert(*id, key, block.clone()).map_err(|error| {
            ServiceError::Overloaded(format!("{error}: raise limits.cloud_store_bytes"))
        })
    }

    /// A context's KV in the edge model's form: from the store, or computed (and mapped) and kept.
    pub(super) fn edge_shaped(
        &self,
        id: &ContextId,
        variant: &EdgeVariant<'_>,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<Ready, ServiceError> {
        match variant {
            EdgeVariant::Identity(model) => {
                let context = self.context(id)?;
                let tokens = model.context_tokens(&context.system).map_err(invalid)?;
                self.stored(id, variant.key(), model, &tokens, proceed)
            }
            EdgeVariant::Bridged(bridge, key) => {
                if let Some(block) = self.store.get(id, key) {
                    return Ok(Ready {
                        block,
                        store_hit: true,
                        compute_ns: 0,
                        align_ns: 0,
                    });
                }
                let native = self.native(id, proceed)?;
                let start = now_ns();
                let block = Arc::new(bridge.map(&native.block).map_err(internal)?);
                let align_ns = now_ns() - start;
                self.keep(id, key, &block)?;
                Ok(Ready {
                    block,
                    store_hit: false,
                    compute_ns: native.compute_ns,
                    align_ns,
                })
            }
        }
    }

    /// A context ready for the cloud model to continue, with whether its KV was there.
    pub(super) fn native_prefix(
        &self,
        id: &ContextId,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<(Arc<KvPrefix>, Ready), ServiceError> {
        let native = self.native(id, proceed)?;
        let key = id.to_string();
        let prefix = match self.prefixes.get(&key) {
            Some(prefix) => prefix,
            None => {
                let prefix = KvPrefix::from_block(&native.block, self.model.decoder.rope());
                let prefix = Arc::new(prefix.map_err(internal)?);
                // One that does not fit is rebuilt next time: slower, not wrong.
                self.prefixes.insert(key, prefix.clone());
                prefix
            }
        };
        Ok((prefix, native))
    }
}

/// One end of a bridge, as a model has it.
fn end(model: &LoadedModel) -> BridgeEnd {
    BridgeEnd {
        fingerprint: model.decoder.fingerprint(),
        shape: model.decoder.kv_shape(),
    }
}

fn bridge_key(bridge: &Bridge, hash: &[u8; 32]) -> String {
    format!("{}-{}", bridge.alignment(), celslm_kv::ident::to_hex(hash))
}

/// The request cannot be served as it stands.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape of a closure for map_err"
)]
fn invalid(error: ModelError) -> ServiceError {
    ServiceError::InvalidArgument(format!("failed to {error}"))
}

fn internal(error: impl std::fmt::Display) -> ServiceError {
    ServiceError::Internal(error.to_string())
}
