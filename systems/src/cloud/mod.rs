//! The cloud node: the large model, the contexts that edges share, and their KV in a bounded
//! content-addressed store.

mod contexts;
mod replay;
mod scores;
mod serving;
mod variants;

use crate::LoadedModel;
use crate::answer::SystemError;
use crate::clock::now_ns;
use crate::codecs::Codecs;
use crate::control::{
    CloudCommand, CloudReply, ControlListener, Flow, PublishedContext, RecordItem, Reply,
};
use crate::engine::{EngineLimits, Pace};
use crate::spec::{Contract, SystemSpec};
use crate::system::{self, CloudNeed};
use celslm_wire::{Limits, ServiceError};
use serving::Serving;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use variants::{Compute, Shared};

pub use replay::ReplayOptions;

/// Longest time that one context may take to be prepared; its controller waits no longer.
const PREPARE: Duration = Duration::from_secs(3600);

/// What a cloud node is started with.
#[derive(Debug, Clone)]
pub struct CloudOptions {
    /// The cloud model's GGUF file.
    pub model: PathBuf,
    /// The edge's model, for hand-offs of the same model's KV.
    pub edge_model: Option<PathBuf>,
    /// Fitted bridges that it may map through.
    pub bridges: Vec<PathBuf>,
    /// What codecs that were fitted need, for the edge's model.
    pub codec_artefact: Option<PathBuf>,
    /// Where it serves the edges.
    pub listen: SocketAddr,
    /// Where edges reach it, if that is another address.
    pub advertise: Option<SocketAddr>,
    /// Bytes of KV that it may keep.
    pub store_bytes: u64,
    /// Bounds of the protocol.
    pub limits: Limits,
    /// Bounds of each of its engines.
    pub engine: EngineLimits,
    /// How fast its engines are, compared with this machine.
    pub pace: Pace,
    /// Compute threads.
    pub threads: usize,
    /// A recording that answers in the models' place.
    pub replay: Option<ReplayOptions>,
}

/// A running cloud node.
pub struct CloudNode {
    shared: Arc<Shared>,
    addr: SocketAddr,
    threads: usize,
    runtime: Runtime,
    /// Ends the server when it is dropped.
    _shutdown: oneshot::Sender<()>,
}

impl CloudNode {
    /// Binds the address, loads the models and starts to serve the edges.
    ///
    /// # Errors
    /// When the address is taken, or a model, bridge or artefact is unusable.
    pub fn start(options: &CloudOptions) -> anyhow::Result<Self> {
        celslm_model::set_threads(options.threads)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("cloud-net")
            .enable_all()
            .build()?;
        // A taken address is known before gigabytes are loaded.
        let listener = runtime.block_on(celslm_wire::bind(options.listen))?;
        let local = listener.local_addr()?;
        let addr = options.advertise.unwrap_or(local);
        let model = LoadedModel::load(&options.model)?;
        let edge_model = options
            .edge_model
            .as_deref()
            .map(LoadedModel::load)
            .transpose()?;
        let codecs = Codecs::load_for(options.codec_artefact.as_deref(), edge_model.as_ref())?;
        let shared = Arc::new(Shared::new(
            model,
            edge_model,
            &options.bridges,
            codecs,
            options.store_bytes,
            Compute {
                limits: options.engine,
                pace: options.pace,
                threads: options.threads,
                replay: options.replay.clone(),
            },
        )?);
        let (shutdown, stopped) = oneshot::channel::<()>();
        let service = Serving(shared.clone());
        let limits = options.limits.clone();
        runtime.spawn(async move {
            let until = async {
                // Both a signal and a dropped sender mean stop.
                let _ = stopped.await;
            };
            if let Err(error) = celslm_wire::serve(listener, service, limits, until).await {
                eprintln!("cloud: {error}");
            }
        });
        Ok(Self {
            shared,
            addr,
            threads: options.threads,
            runtime,
            _shutdown: shutdown,
        })
    }

    /// Where edges reach it.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves controllers until one says shutdown. Commands overlap.
    ///
    /// # Errors
    /// When the control socket fails.
    pub fn serve(self, listener: &ControlListener) -> std::io::Result<()> {
        listener.serve(
            |command, reply| self.take_up(command, reply),
            |reason| CloudReply::Failed(SystemError::new("control", reason)),
        )
    }

    fn take_up(&self, command: CloudCommand, reply: Reply<CloudReply>) -> Flow {
        match command {
            CloudCommand::Hello => reply.send(&self.hello().unwrap_or_else(CloudReply::Failed)),
            CloudCommand::Stats { reset } => {
                reply.send(&CloudReply::Stats(self.shared.stats(reset)));
            }
            CloudCommand::Shutdown => {
                reply.send(&CloudReply::Done);
                return Flow::Stop;
            }
            CloudCommand::Publish { system } => {
                let shared = self.shared.clone();
                self.runtime.spawn(async move {
                    let result = publish(&shared, system).await;
                    reply.send(&result.unwrap_or_else(CloudReply::Failed));
                });
            }
            CloudCommand::Record { item } => {
                let shared = self.shared.clone();
                self.runtime.spawn(async move {
                    let result = record(&shared, &item).await;
                    reply.send(&match result {
                        Ok(text) => CloudReply::Recorded { text },
                        Err(error) => CloudReply::Failed(error),
                    });
                });
            }
            CloudCommand::Prepare {
                spec,
                contract,
                context_id,
            } => {
                let shared = self.shared.clone();
                self.runtime.spawn(async move {
                    let result = prepare(&shared, &spec, contract, &context_id).await;
                    reply.send(&match result {
                        Ok(()) => CloudReply::Done,
                        Err(error) => CloudReply::Failed(error),
                    });
                });
            }
        }
        Flow::Continue
    }

    fn hello(&self) -> Result<CloudReply, SystemError> {
        let model = self.shared.model();
        Ok(CloudReply::Cloud {
            fingerprint: model.decoder.fingerprint().to_string(),
            tokenizer: model.tokenizer.hash()?,
            edge_fingerprint: self
                .shared
                .edge_engine
                .as_ref()
                .map(|engine| engine.model().decoder.fingerprint().to_string()),
            codec_artefact: self.shared.codecs.artefact_id(),
            addr: self.addr,
            threads: self.threads,
        })
    }
}

async fn publish(shared: &Arc<Shared>, system: String) -> Result<CloudReply, SystemError> {
    let register = shared.clone();
    let published = shared.work(move || register.publish(&system)).await;
    let (id, context) = published
        .and_then(|published| published)
        .map_err(from_service)?;
    Ok(CloudReply::Published(PublishedContext {
        context_id: id.to_string(),
        context_tokens: context.tokens.len(),
    }))
}

async fn record(shared: &Shared, item: &RecordItem) -> Result<Option<String>, SystemError> {
    let replay = shared.replay.as_ref().ok_or_else(|| {
        SystemError::new("config", "this cloud computes live; start it with --replay")
    })?;
    let deadline_ns = now_ns().saturating_add(PREPARE.as_nanos() as u64);
    replay.record(shared, item, deadline_ns).await
}

/// Requests of edges compete with it for the engines, as they would with each other.
async fn prepare(
    shared: &Arc<Shared>,
    spec: &SystemSpec,
    contract: Contract,
    context_id: &str,
) -> Result<(), SystemError> {
    let entry = system::find(&spec.system)?;
    let id = context_id
        .parse()
        .map_err(|error| SystemError::new("config", format!("bad context id: {error}")))?;
    if contract == Contract::Cold {
        shared.evict(&id);
        return Ok(());
    }
    let deadline_ns = now_ns().saturating_add(PREPARE.as_nanos() as u64);
    match entry.cloud_need {
        CloudNeed::Nothing => {}
        CloudNeed::Native => {
            let ready = match &shared.replay {
                Some(replay) => replay.hold(shared, &id, deadline_ns).await.map(drop),
                None => shared.native_prefix(&id, deadline_ns).await.map(drop),
            };
            ready.map_err(from_service)?;
        }
        CloudNeed::EdgeShaped => {
            let path = spec.kv.as_ref().ok_or_else(|| {
                SystemError::new("config", format!("{} needs an alignment", spec.system))
            })?;
            let variant = shared
                .variant(&path.wire_variant()?)
                .map_err(from_service)?;
            let ready = shared.edge_shaped(&id, &variant, deadline_ns).await;
            ready.map_err(from_service)?;
            if let Some(by) = path.codec.scored_by() {
                let scored = shared.scores(&id, by, deadline_ns).await;
                scored.map_err(from_service)?;
            }
        }
    }
    Ok(())
}

fn from_service(error: ServiceError) -> SystemError {
    SystemError::new(error.kind(), error)
}
