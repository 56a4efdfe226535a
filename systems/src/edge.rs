//! The edge node: the small model, a bounded cache of contexts, a connection to the cloud, and
//! the control loop that drives them.

use crate::answer::{Answer, ContextRef, Request, SystemError};
use crate::clock::now_ns;
use crate::control::{ControlListener, EdgeCommand, EdgeReply, Flow};
use crate::generation::{GenerationLimits, generate};
use crate::loaded::LoadedModel;
use crate::prefix_cache::PrefixCache;
use crate::spec::{Contract, SystemSpec};
use crate::system;
use crate::timeline::{Part, Timeline};
use celslm_kv::ContextId;
use celslm_model::{Hidden, KeyRetention, KvCache, KvPrefix};
use celslm_wire::{CloudClient, Limits};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// What an edge node is started with.
#[derive(Debug, Clone)]
pub struct EdgeOptions {
    /// The edge model's GGUF file.
    pub model: PathBuf,
    /// Bytes of contexts that it may keep.
    pub cache_bytes: usize,
    /// Bounds of the protocol.
    pub limits: Limits,
    /// Compute threads.
    pub threads: usize,
}

/// A running edge node.
pub struct EdgeNode {
    model: LoadedModel,
    cache: PrefixCache,
    client: Option<CloudClient>,
    limits: Limits,
    threads: usize,
    runtime: Runtime,
}

impl EdgeNode {
    /// Loads the model; the connection to the cloud comes with the first `Connect`.
    ///
    /// # Errors
    /// When the model file is unusable or no runtime can be started.
    pub fn start(options: &EdgeOptions) -> anyhow::Result<Self> {
        celslm_model::set_threads(options.threads)?;
        let model = LoadedModel::load(&options.model)?;
        // Receiving and checking chunks goes on beside the compute threads.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("edge-net")
            .enable_all()
            .build()?;
        Ok(Self {
            model,
            cache: PrefixCache::new(options.cache_bytes),
            client: None,
            limits: options.limits.clone(),
            threads: options.threads,
            runtime,
        })
    }

    /// Serves controllers until one says shutdown.
    ///
    /// # Errors
    /// When the control socket fails.
    pub fn serve(mut self, listener: &ControlListener) -> std::io::Result<()> {
        listener.serve(
            |command, reply| {
                let flow = match command {
                    EdgeCommand::Shutdown => Flow::Stop,
                    _ => Flow::Continue,
                };
                reply.send(&self.handle(command).unwrap_or_else(EdgeReply::Failed));
                flow
            },
            |reason| EdgeReply::Failed(SystemError::new("control", reason)),
        )
    }

    fn handle(&mut self, command: EdgeCommand) -> Result<EdgeReply, SystemError> {
        match command {
            EdgeCommand::Hello => Ok(EdgeReply::Edge {
                fingerprint: self.model.decoder.fingerprint().to_string(),
                tokenizer: self.model.tokenizer.hash()?,
                num_layers: self.model.decoder.config().num_hidden_layers,
                threads: self.threads,
            }),
            EdgeCommand::Connect { addr } => {
                self.connect(addr)?;
                Ok(EdgeReply::Done)
            }
            EdgeCommand::Prepare {
                spec,
                contract,
                context,
                timeout_ms,
            } => {
                self.prepare(
                    &spec,
                    contract,
                    &context,
                    deadline_after(now_ns(), timeout_ms),
                )?;
                Ok(EdgeReply::Done)
            }
            EdgeCommand::Answer { spec, request } => {
                let timeline = Timeline::start(request.scheduled_ns);
                let deadline_ns = deadline_after(timeline.sent_ns(), request.timeout_ms);
                let system = system::find(&spec.system)?.system();
                let answer =
                    system.answer(self, spec.kv.as_ref(), &request, timeline, deadline_ns)?;
                Ok(EdgeReply::Answered(Box::new(answer)))
            }
            EdgeCommand::Shutdown => Ok(EdgeReply::Done),
        }
    }

    fn connect(&mut self, addr: SocketAddr) -> Result<(), SystemError> {
        self.client = None;
        let deadline = self.limits.connect_timeout();
        let limits = self.limits.clone();
        let client = self
            .runtime
            .block_on(CloudClient::connect(addr, limits, deadline))?;
        self.client = Some(client);
        Ok(())
    }

    fn prepare(
        &self,
        spec: &SystemSpec,
        contract: Contract,
        context: &ContextRef,
        deadline_ns: u64,
    ) -> Result<(), SystemError> {
        match contract {
            Contract::Cold | Contract::Primed => {
                self.cache.evict(&context.context_id);
                Ok(())
            }
            Contract::Warm => {
                let system = system::find(&spec.system)?.system();
                system.warm(self, spec.kv.as_ref(), context, deadline_ns)
            }
        }
    }

    /// The edge's model.
    pub fn model(&self) -> &LoadedModel {
        &self.model
    }

    /// The runtime of the network side.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The connection to the cloud.
    pub(crate) fn client(&self) -> Result<CloudClient, SystemError> {
        self.client
            .clone()
            .ok_or_else(|| SystemError::new("connect", "this edge is not connected to a cloud"))
    }

    /// The id of a context.
    pub(crate) fn context_id(&self, context: &ContextRef) -> Result<ContextId, SystemError> {
        context
            .context_id
            .parse()
            .map_err(|error| SystemError::new("config", format!("bad context id: {error}")))
    }

    /// A variant of a context's KV from the edge's cache.
    pub(crate) fn cached(&self, context: &ContextRef, variant: &str) -> Option<Arc<KvPrefix>> {
        self.cache.get(&cache_key(context, variant))
    }

    /// Keeps a variant of a context's KV.
    ///
    /// # Errors
    /// Kind `edge_cache` when it exceeds the cache's bound.
    pub(crate) fn keep(
        &self,
        context: &ContextRef,
        variant: &str,
        prefix: Arc<KvPrefix>,
    ) -> Result<(), SystemError> {
        let bytes = prefix.bytes();
        match self.cache.insert(cache_key(context, variant), prefix) {
            true => Ok(()),
            false => Err(SystemError::new(
                "edge_cache",
                format!(
                    "a context of {bytes} bytes exceeds the edge's cache: raise limits.edge_cache_bytes"
                ),
            )),
        }
    }

    /// A cache for one request: the shared prefix, and room for the prompt and the answer.
    pub(crate) fn session_cache(
        &self,
        prefix: Option<Arc<KvPrefix>>,
        prompt_tokens: usize,
        request: &Request,
    ) -> Result<KvCache, SystemError> {
        if prompt_tokens == 0 {
            return Err(SystemError::new("config", "the prompt is empty"));
        }
        let shape = self.model.decoder.kv_shape();
        let window = self.model.decoder.config().max_position_embeddings;
        let capacity = prompt_tokens.saturating_add(request.max_tokens).min(window);
        Ok(KvCache::new(
            shape,
            prefix,
            capacity,
            KeyRetention::RotatedOnly,
        )?)
    }

    /// Generates from the prompt's last hidden state on and completes the answer.
    pub(crate) fn decode(
        &self,
        cache: &mut KvCache,
        hidden: Hidden,
        request: &Request,
        mut timeline: Timeline,
        deadline_ns: u64,
        mut answer: Answer,
    ) -> Result<Answer, SystemError> {
        let limits = GenerationLimits {
            max_tokens: request.max_tokens,
            deadline_ns,
        };
        answer.sent_ns = timeline.sent_ns();
        // Tokens whose text is not visible yet get the time of the text that completes them.
        let mut invisible = 0;
        generate(
            &self.model,
            cache,
            hidden,
            request.sampling,
            request.seed,
            limits,
            |step| {
                answer.output_ids.push(step.id);
                answer.output_text.push_str(step.text);
                invisible += 1;
                if !step.text.is_empty() {
                    if answer.token_ns.is_empty() {
                        timeline.lap(Part::FirstStep);
                        answer.parts = timeline.parts();
                    }
                    answer
                        .token_ns
                        .extend(std::iter::repeat_n(now_ns(), invisible));
                    invisible = 0;
                }
                true
            },
        )?;
        if answer.token_ns.is_empty() {
            // An answer without visible text still has an end that its parts lead to.
            timeline.lap(Part::FirstStep);
            answer.parts = timeline.parts();
        }
        answer
            .token_ns
            .extend(std::iter::repeat_n(now_ns(), invisible));
        answer.edge_kv_bytes = cache.bytes() as u64;
        Ok(answer)
    }
}

fn cache_key(context: &ContextRef, variant: &str) -> String {
    format!("{}/{variant}", context.context_id)
}

fn deadline_after(start_ns: u64, timeout_ms: u64) -> u64 {
    start_ns.saturating_add(Duration::from_millis(timeout_ms).as_nanos() as u64)
}
