//! The forms in which a context's KV can be had, and the store that keeps them.

use super::contexts::{Context, Contexts};
use super::replay::{Replay, ReplayOptions};
use super::scores::ScoreStore;
use crate::LoadedModel;
use crate::SystemError;
use crate::clock::now_ns;
use crate::codecs::Codecs;
use crate::engine::{ContextOutput, ContextRequest, Engine, EngineLimits, NodeStats, Pace};
use crate::flights::Flights;
use crate::prefix_cache::PrefixCache;
use anyhow::Context as _;
use celslm_kv::align::{BridgeEnd, Sources};
use celslm_kv::{AlignError, Bridge, ContextId, KvBlock, KvStore, SourceKind};
use celslm_model::{KvPrefix, ModelError};
use celslm_wire::{ServiceError, Variant};
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// The store's name for the cloud model's own KV.
const NATIVE: &str = Variant::NATIVE;
/// And for the edge model's.
const IDENTITY: &str = "identity";

/// What the node's calls share.
pub(super) struct Shared {
    pub(super) engine: Engine,
    pub(super) edge_engine: Option<Arc<Engine>>,
    bridges: Vec<(Arc<Bridge>, [u8; 32])>,
    pub(super) codecs: Codecs,
    pub(super) scores: ScoreStore,
    contexts: Contexts,
    /// Half of the node's bound; the other half is for `prefixes`.
    store: KvStore,
    /// Attention-ready native contexts, for answers of the cloud itself.
    prefixes: PrefixCache,
    /// Conversions in work.
    pub(super) flights: Flights,
    /// Work on blocking threads beside the engines: tokenising, mapping, encoding.
    helpers: Arc<Semaphore>,
    /// The engines' pace, which their model keeps outside them too.
    pace: Pace,
    /// What answers in the engines' place.
    pub(super) replay: Option<Replay>,
}

/// A form of KV that an edge may ask for.
pub(super) enum EdgeVariant {
    /// The cloud model's own, which the edge maps by itself.
    Native,
    /// Computed here by the edge's own model.
    Identity(Arc<Engine>),
    /// Mapped from the cloud model's KV or hidden states.
    Bridged(Arc<Bridge>, String),
}

impl EdgeVariant {
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Native => NATIVE,
            Self::Identity(_) => IDENTITY,
            Self::Bridged(_, key) => key,
        }
    }
}

/// KV with what it took to get it.
pub(super) struct Ready {
    pub(super) block: Arc<KvBlock>,
    pub(super) store_hit: bool,
    pub(super) queue_ns: u64,
    pub(super) compute_ns: u64,
    pub(super) align_ns: u64,
}

impl Ready {
    fn stored(block: Arc<KvBlock>) -> Self {
        Self {
            block,
            store_hit: true,
            queue_ns: 0,
            compute_ns: 0,
            align_ns: 0,
        }
    }
}

/// How the node computes.
#[derive(Clone)]
pub(super) struct Compute {
    pub(super) limits: EngineLimits,
    pub(super) pace: Pace,
    pub(super) threads: usize,
    pub(super) replay: Option<ReplayOptions>,
}

impl Shared {
    pub(super) fn new(
        model: LoadedModel,
        edge_model: Option<LoadedModel>,
        bridges: &[PathBuf],
        codecs: Codecs,
        store_bytes: u64,
        compute: Compute,
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
                Ok((Arc::new(bridge), hash))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let Compute {
            limits,
            pace,
            threads,
            replay,
        } = compute;
        let edge_engine = edge_model
            .map(|model| Engine::start("edge", Arc::new(model), limits, pace).map(Arc::new))
            .transpose()?;
        Ok(Self {
            engine: Engine::start("cloud", Arc::new(model), limits, pace)?,
            edge_engine,
            bridges,
            codecs,
            scores: ScoreStore::default(),
            contexts: Contexts::default(),
            store: KvStore::new(store_bytes / 2),
            prefixes: PrefixCache::new(usize::try_from(store_bytes / 2).unwrap_or(usize::MAX)),
            flights: Flights::default(),
            helpers: Arc::new(Semaphore::new(threads.max(1))),
            pace,
            replay: replay
                .map(|options| Replay::start(&options, limits))
                .transpose()?,
        })
    }

    /// The cloud's model.
    pub(super) fn model(&self) -> &LoadedModel {
        self.engine.model()
    }

    /// What the node says of itself.
    pub(super) fn stats(&self, reset: bool) -> NodeStats {
        let engines = std::iter::once(&self.engine).chain(self.edge_engine.as_deref());
        let engines = engines.map(|engine| engine.stats(reset)).collect();
        let cached = self.store.stats().bytes + self.prefixes.bytes() as u64;
        NodeStats::new(engines, cached, reset)
    }

    /// Runs a piece of work on a blocking thread, of which only as many work at once as there
    /// are compute threads.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ServiceError> {
        let closed = || ServiceError::Unavailable("the cloud is shutting down".to_owned());
        let permit = self.helpers.clone().acquire_owned().await;
        let permit = permit.map_err(|_| closed())?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        })
        .await
        .map_err(internal)
    }

    /// Registers a context by its system message.
    pub(super) fn publish(&self, system: &str) -> Result<(ContextId, Arc<Context>), ServiceError> {
        let model = self.model();
        let tokens = model.context_tokens(system).map_err(invalid)?;
        let window = model.decoder.config().max_position_embeddings;
        if tokens.is_empty() || tokens.len() >= window {
            return Err(ServiceError::InvalidArgument(format!(
                "the context has {} tokens, the cloud model's window is {window}",
                tokens.len()
            )));
        }
        let fingerprint = model.decoder.fingerprint();
        let id = ContextId::new(&fingerprint, model.template.source(), &tokens);
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

    /// Forgets everything that was computed for a context.
    pub(super) fn evict(&self, id: &ContextId) {
        if let Some(replay) = &self.replay {
            replay.evict(id);
        }
        self.scores.evict(id);
        self.store.remove(id, NATIVE);
        self.store.remove(id, IDENTITY);
        for (bridge, hash) in &self.bridges {
            self.store.remove(id, &bridge_key(bridge, hash));
        }
        let id = id.to_string();
        self.prefixes.evict(&id);
        self.engine.forget(&id);
        if let Some(engine) = &self.edge_engine {
            engine.forget(&id);
        }
    }

    /// The edge's model, where this node hosts it.
    fn edge_engine(&self) -> Result<Arc<Engine>, ServiceError> {
        self.edge_engine.clone().ok_or_else(|| {
            ServiceError::Unsupported(
                "this cloud does not host the edge's model; start it with --edge-model".to_owned(),
            )
        })
    }

    /// The form that a request names.
    pub(super) fn variant(&self, variant: &Variant) -> Result<EdgeVariant, ServiceError> {
        if variant.alignment == NATIVE {
            return Ok(EdgeVariant::Native);
        }
        if variant.alignment == IDENTITY {
            return self.edge_engine().map(EdgeVariant::Identity);
        }
        self.bridges
            .iter()
            .find(|(bridge, hash)| {
                bridge.alignment() == variant.alignment
                    && variant.bridge.is_none_or(|wanted| wanted == *hash)
            })
            .map(|(bridge, hash)| EdgeVariant::Bridged(bridge.clone(), bridge_key(bridge, hash)))
            .ok_or_else(|| {
                ServiceError::NotFound(format!(
                    "no bridge for the alignment {:?} is loaded; start the cloud with --bridge",
                    variant.alignment
                ))
            })
    }

    /// Whether a form of a context's KV is in the store.
    pub(super) fn has(&self, id: &ContextId, variant: &EdgeVariant) -> bool {
        self.store.contains(id, variant.key())
    }

    /// The cloud model's own KV of a context, computed once.
    async fn native(&self, id: &ContextId, deadline_ns: u64) -> Result<Ready, ServiceError> {
        if let Some(block) = self.store.get(id, NATIVE) {
            return Ok(Ready::stored(block));
        }
        let tokens = self.context(id)?.tokens.clone();
        self.computed(id, NATIVE, &self.engine, tokens, deadline_ns)
            .await
    }

    /// The cloud model's hidden states of a context, for a bridge that reads them. They are computed
    /// beside the engine, which takes turns with it at the compute threads, layer by layer, and kept
    /// nowhere: a context's states take several times the memory of its KV, and no more of them exist
    /// at once than there are compute threads. A device's `slowdown` stretches the whole of it.
    async fn states(&self, id: &ContextId, deadline_ns: u64) -> Result<Ready, ServiceError> {
        let context = self.context(id)?;
        let (model, pace) = (self.engine.model().clone(), self.pace);
        let arrived_ns = now_ns();
        let work = move || {
            let start_ns = now_ns();
            let in_time = || now_ns() < deadline_ns;
            let states = model.decoder.context_states(&context.tokens, in_time)?;
            let pause_ns = pace.pause_ns(now_ns() - start_ns, context.tokens.len(), 0);
            std::thread::sleep(Duration::from_nanos(pause_ns));
            Ok((states, start_ns - arrived_ns, now_ns() - start_ns))
        };
        let done = self.work(work).await?;
        let (states, queue_ns, compute_ns) = done.map_err(|error: ModelError| internal(error))?;
        let block = states.ok_or_else(|| {
            ServiceError::DeadlineExceeded(
                "the call's time is up before the context's states are computed".to_owned(),
            )
        })?;
        Ok(Ready {
            block: Arc::new(block),
            store_hit: false,
            queue_ns,
            compute_ns,
            align_ns: 0,
        })
    }

    /// KV computed by a model, together with everyone else who needs it now, and kept.
    async fn computed(
        &self,
        id: &ContextId,
        key: &str,
        engine: &Engine,
        tokens: Vec<u32>,
        deadline_ns: u64,
    ) -> Result<Ready, ServiceError> {
        let request = ContextRequest {
            key: id.to_string(),
            client: 0,
            tokens,
            output: ContextOutput::Block,
            deadline_ns,
        };
        let handle = engine.context(request).map_err(to_service)?;
        let ready = handle.ready().await.map_err(to_service)?;
        let times = ready.times;
        let block = ready.into_block().map_err(to_service)?;
        self.keep(id, key, &block)?;
        Ok(Ready {
            block,
            store_hit: false,
            queue_ns: times.queued_ns,
            compute_ns: times.prefill_ns,
            align_ns: 0,
        })
    }

    fn keep(&self, id: &ContextId, key: &str, block: &Arc<KvBlock>) -> Result<(), ServiceError> {
        self.store.insert(*id, key, block.clone()).map_err(|error| {
            ServiceError::Overloaded(format!("{error}: raise limits.cloud_store_bytes"))
        })
    }

    /// A context's KV in the form that an edge asks for: from the store, or made (computed and mapped,
    /// or taken from the recording) and kept.
    pub(super) async fn edge_shaped(
        &self,
        id: &ContextId,
        variant: &EdgeVariant,
        deadline_ns: u64,
    ) -> Result<Ready, ServiceError> {
        let Some(replay) = &self.replay else {
            return self.edge_shaped_live(id, variant, deadline_ns).await;
        };
        if let Some(block) = self.store.get(id, variant.key()) {
            return Ok(Ready::stored(block));
        }
        let waiting = now_ns();
        let _flight = self.flights.board(&format!("{id}/{}", variant.key())).await;
        let waited_ns = now_ns() - waiting;
        if let Some(block) = self.store.get(id, variant.key()) {
            return Ok(Ready {
                queue_ns: waited_ns,
                ..Ready::stored(block)
            });
        }
        let mut ready = replay.edge_shaped(self, id, variant, deadline_ns).await?;
        ready.queue_ns += waited_ns;
        self.keep(id, variant.key(), &ready.block)?;
        Ok(ready)
    }

    /// As [`Self::edge_shaped`], by this node's own models whatever it replays.
    pub(super) async fn edge_shaped_live(
        &self,
        id: &ContextId,
        variant: &EdgeVariant,
        deadline_ns: u64,
    ) -> Result<Ready, ServiceError> {
        if let Some(block) = self.store.get(id, variant.key()) {
            return Ok(Ready::stored(block));
        }
        match variant {
            EdgeVariant::Native => self.native(id, deadline_ns).await,
            EdgeVariant::Identity(engine) => self.own_of(id, engine, deadline_ns).await,
            EdgeVariant::Bridged(bridge, key) => {
                let waiting = now_ns();
                let _flight = self.flights.board(&format!("{id}/{key}")).await;
                let waited_ns = now_ns() - waiting;
                // Whoever was here before has kept it.
                if let Some(block) = self.store.get(id, key) {
                    return Ok(Ready {
                        queue_ns: waited_ns,
                        ..Ready::stored(block)
                    });
                }
                let context = self.context(id)?;
                let (cloud, edge) = (self.engine.model().clone(), self.edge_engine()?);
                let system = context.clone();
                let aligned = !bridge.tokens().is_same();
                let read = self.work(move || {
                    let tokens = edge.model().context_tokens(&system.system)?;
                    let spans = |model: &LoadedModel| model.context_spans(&system.system);
                    let spans = match aligned {
                        true => Some((spans(&cloud)?, spans(edge.model())?)),
                        false => None,
                    };
                    Ok((tokens, spans))
                });
                let (tokens, spans) = read.await?.map_err(invalid)?;
                if spans.is_none() && !bridge.parts().is_empty() && tokens != context.tokens {
                    let error = AlignError::OtherTokens {
                        source_tokens: context.tokens.len(),
                        target_tokens: tokens.len(),
                    };
                    return Err(ServiceError::Unsupported(error.to_string()));
                }
                let own = self.own(id, bridge, deadline_ns).await?;
                let read = match (bridge.reads(), &own) {
                    // A bridge without parts reads nothing else.
                    (_, Some(own)) if bridge.parts().is_empty() => Ready::stored(own.block.clone()),
                    (SourceKind::Kv, _) => self.native(id, deadline_ns).await?,
                    (SourceKind::States, _) => self.states(id, deadline_ns).await?,
                };
                let start = now_ns();
                let (bridge, block) = (bridge.clone(), read.block.clone());
                let beside = own.as_ref().map(|own| own.block.clone());
                let mapped = self.work(move || {
                    let source = match &spans {
                        Some((from, to)) if !bridge.parts().is_empty() => {
                            bridge.tokens().aligned(from, to, &block)?
                        }
                        _ => Cow::Borrowed(&*block),
                    };
                    bridge.map(Sources {
                        source: &source,
                        own: beside.as_deref(),
                        tokens: &tokens,
                    })
                });
                let mapped = mapped.await?.map_err(|error| match error {
                    AlignError::OtherTokens { .. } => ServiceError::Unsupported(error.to_string()),
                    _ => internal(error),
                })?;
                let block = Arc::new(mapped);
                let align_ns = now_ns() - start;
                self.keep(id, key, &block)?;
                Ok(Ready {
                    block,
                    store_hit: false,
                    queue_ns: waited_ns + read.queue_ns + own.as_ref().map_or(0, |o| o.queue_ns),
                    compute_ns: read.compute_ns + own.as_ref().map_or(0, |o| o.compute_ns),
                    align_ns,
                })
            }
        }
    }

    /// The edge model's own KV of a context, where a bridge adds to it.
    async fn own(
        &self,
        id: &ContextId,
        bridge: &Bridge,
        deadline_ns: u64,
    ) -> Result<Option<Ready>, ServiceError> {
        if !bridge.reads_own() {
            return Ok(None);
        }
        if let Some(block) = self.store.get(id, IDENTITY) {
            return Ok(Some(Ready::stored(block)));
        }
        let engine = self.edge_engine()?;
        let ready = self.own_of(id, &engine, deadline_ns).await?;
        Ok(Some(ready))
    }

    /// KV that the edge's model, hosted here, computes of a context.
    async fn own_of(
        &self,
        id: &ContextId,
        engine: &Engine,
        deadline_ns: u64,
    ) -> Result<Ready, ServiceError> {
        let context = self.context(id)?;
        let model = engine.model().clone();
        let tokens = self.work(move || model.context_tokens(&context.system));
        let tokens = tokens.await?.map_err(invalid)?;
        self.computed(id, IDENTITY, engine, tokens, deadline_ns)
            .await
    }

    /// A context ready for the cloud model to continue, with whether its KV was there.
    pub(super) async fn native_prefix(
        &self,
        id: &ContextId,
        deadline_ns: u64,
    ) -> Result<(Arc<KvPrefix>, Ready), ServiceError> {
        let mut native = self.native(id, deadline_ns).await?;
        let key = id.to_string();
        if let Some(prefix) = self.prefixes.get(&key) {
            return Ok((prefix, native));
        }
        let waiting = now_ns();
        let _flight = self.flights.board(&key).await;
        native.queue_ns += now_ns() - waiting;
        if let Some(prefix) = self.prefixes.get(&key) {
            return Ok((prefix, native));
        }
        let block = native.block.clone();
        let model = self.engine.model().clone();
        let prefix = self.work(move || KvPrefix::from_block(&block, model.decoder.rope()));
        let prefix = Arc::new(prefix.await?.map_err(internal)?);
        // One that does not fit is rebuilt next time: slower, not wrong.
        self.prefixes.insert(key, prefix.clone());
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
pub(super) fn invalid(error: ModelError) -> ServiceError {
    ServiceError::InvalidArgument(format!("failed to {error}"))
}

pub(super) fn internal(error: impl std::fmt::Display) -> ServiceError {
    ServiceError::Internal(error.to_string())
}

/// An engine's error as it crosses the wire.
pub(super) fn to_service(error: SystemError) -> ServiceError {
    let SystemError { kind, message } = error;
    match kind.as_str() {
        "overloaded" => ServiceError::Overloaded(message),
        "deadline" => ServiceError::DeadlineExceeded(message),
        "config" => ServiceError::InvalidArgument(message),
        "engine" => ServiceError::Unavailable(message),
        _ => ServiceError::Internal(message),
    }
}
