//! The cloud node: the large model, the contexts that edges share, and their KV in a bounded
//! content-addressed store.

mod contexts;
mod serving;
mod variants;

use crate::answer::SystemError;
use crate::control::{CloudCommand, CloudReply, ControlListener, Flow, PublishedContext};
use crate::loaded::LoadedModel;
use crate::spec::{Contract, SystemSpec};
use crate::system::{self, CloudNeed};
use celslm_wire::{Limits, ServiceError};
use serving::Serving;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use variants::Shared;

/// What a cloud node is started with.
#[derive(Debug, Clone)]
pub struct CloudOptions {
    /// The cloud model's GGUF file.
    pub model: PathBuf,
    /// The edge's model, for hand-offs of the same model's KV.
    pub edge_model: Option<PathBuf>,
    /// Fitted bridges that it may map through.
    pub bridges: Vec<PathBuf>,
    /// Where it serves the edges.
    pub listen: SocketAddr,
    /// Where edges reach it, if that is another address.
    pub advertise: Option<SocketAddr>,
    /// Bytes of KV that it may keep.
    pub store_bytes: u64,
    /// Bounds of the protocol.
    pub limits: Limits,
    /// Compute threads.
    pub threads: usize,
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
    /// When the address is taken, or a model or bridge is unusable.
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
        let shared = Arc::new(Shared::new(
            model,
            edge_model,
            &options.bridges,
            options.store_bytes,
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

    /// Serves controllers until one says shutdown.
    ///
    /// # Errors
    /// When the control socket fails.
    pub fn serve(self, listener: &ControlListener) -> std::io::Result<()> {
        listener.serve(
            |command, reply| {
                let flow = match command {
                    CloudCommand::Shutdown => Flow::Stop,
                    _ => Flow::Continue,
                };
                reply.send(&self.handle(command).unwrap_or_else(CloudReply::Failed));
                flow
            },
            |reason| CloudReply::Failed(SystemError::new("control", reason)),
        )
    }

    fn handle(&self, command: CloudCommand) -> Result<CloudReply, SystemError> {
        match command {
            CloudCommand::Hello => Ok(CloudReply::Cloud {
                fingerprint: self.shared.model.decoder.fingerprint().to_string(),
                tokenizer: self.shared.model.tokenizer.hash()?,
                edge_fingerprint: self
                    .shared
                    .edge_model
                    .as_ref()
                    .map(|model| model.decoder.fingerprint().to_string()),
                addr: self.addr,
                threads: self.threads,
            }),
            CloudCommand::Publish { system } => {
                let (id, context) = self.shared.publish(&system).map_err(from_service)?;
                Ok(CloudReply::Published(PublishedContext {
                    context_id: id.to_string(),
                    context_tokens: context.tokens.len(),
                }))
            }
            CloudCommand::Prepare {
                spec,
                contract,
                context_id,
            } => {
                self.prepare(&spec, contract, &context_id)?;
                Ok(CloudReply::Done)
            }
            CloudCommand::Shutdown => Ok(CloudReply::Done),
        }
    }

    fn prepare(
        &self,
        spec: &SystemSpec,
        contract: Contract,
        context_id: &str,
    ) -> Result<(), SystemError> {
        let entry = system::find(&spec.system)?;
        let id = context_id
            .parse()
            .map_err(|error| SystemError::new("config", format!("bad context id: {error}")))?;
        if contract == Contract::Cold {
            self.shared.evict(&id);
            return Ok(());
        }
        // Requests of edges wait meanwhile, as they would for each other.
        let _turn = self
            .runtime
            .block_on(self.shared.turn())
            .map_err(from_service)?;
        match entry.cloud_need {
            CloudNeed::Nothing => {}
            CloudNeed::Native => {
                self.shared
                    .native_prefix(&id, &mut || true)
                    .map_err(from_service)?;
            }
            CloudNeed::EdgeShaped => {
                let path = spec.kv.as_ref().ok_or_else(|| {
                    SystemError::new("config", format!("{} needs an alignment", spec.system))
                })?;
                let variant = self
                    .shared
                    .variant(&path.wire_variant()?)
                    .map_err(from_service)?;
                self.shared
                    .edge_shaped(&id, &variant, &mut || true)
                    .map_err(from_service)?;
            }
        }
        Ok(())
    }
}

fn from_service(error: ServiceError) -> SystemError {
    SystemError::new(error.kind(), error)
}
