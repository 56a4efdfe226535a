//! The edge node: the small model in its engine, a bounded cache of contexts, a connection to the
//! cloud, and the control loop that drives them.

use crate::LoadedModel;
use crate::answer::{Answer, ContextRef, Request, SystemError};
use crate::clock::now_ns;
use crate::codecs::Codecs;
use crate::control::{ControlListener, EdgeCommand, EdgeReply, Flow, Reply};
use crate::engine::{
    Engine, EngineLimits, NodeStats, Pace, Prefilled, SessionContext, SessionEvent, SessionHandle,
    SessionRequest, Times,
};
use crate::flights::Flights;
use crate::mapping::EdgeBridges;
use crate::openai::{Serving, ServingSlot};
use crate::prefix_cache::PrefixCache;
use crate::spec::{Contract, KvPath, SystemSpec};
use crate::system;
use crate::timeline::{Timeline, Track};
use crate::workers::Workers;
use celslm_kv::{Bridge, BridgeEnd, Chain, CodecConfig, ContextId};
use celslm_model::KvPrefix;
use celslm_wire::{CloudClient, Limits};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;

/// What an edge node is started with.
#[derive(Debug, Clone)]
pub struct EdgeOptions {
    /// The edge model's GGUF file.
    pub model: PathBuf,
    /// Fitted bridges that it maps through by itself.
    pub bridges: Vec<PathBuf>,
    /// What codecs that were fitted need.
    pub codec_artefact: Option<PathBuf>,
    /// Bytes of contexts that it may keep.
    pub cache_bytes: usize,
    /// Bounds of the protocol.
    pub limits: Limits,
    /// Bounds of the engine.
    pub engine: EngineLimits,
    /// How fast the engine is, compared with this machine.
    pub pace: Pace,
    /// Compute threads.
    pub threads: usize,
}

/// A running edge node.
pub struct EdgeNode {
    engine: Engine,
    pace: Pace,
    bridges: EdgeBridges,
    codecs: Codecs,
    cache: PrefixCache,
    /// Fetches under way, by cache key.
    flights: Flights,
    client: Mutex<Option<CloudClient>>,
    serving: ServingSlot,
    limits: Limits,
    max_calls: usize,
    threads: usize,
    runtime: Runtime,
}

impl EdgeNode {
    /// Loads the model; the connection to the cloud comes with the first `Connect`.
    ///
    /// # Errors
    /// When the model file, a bridge or the artefact is unusable or no thread can be started.
    pub fn start(options: &EdgeOptions) -> anyhow::Result<Self> {
        celslm_model::set_threads(options.threads)?;
        let model = Arc::new(LoadedModel::load(&options.model)?);
        let bridges = EdgeBridges::load(&options.bridges, &end(&model))?;
        let codecs = Codecs::load(options.codec_artefact.as_deref(), &model)?;
        // Receiving and checking chunks goes on beside the compute threads.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("edge-net")
            .enable_all()
            .build()?;
        Ok(Self {
            pace: options.pace,
            bridges,
            codecs,
            engine: Engine::start("edge", model, options.engine, options.pace)?,
            cache: PrefixCache::new(options.cache_bytes),
            flights: Flights::default(),
            client: Mutex::default(),
            serving: ServingSlot::default(),
            limits: options.limits.clone(),
            max_calls: options.engine.max_calls(),
            threads: options.threads,
            runtime,
        })
    }

    /// Serves controllers until one says shutdown. Every request is answered on a thread of its
    /// own; there are as many of them as the engine takes sessions, and a request beyond that is
    /// refused.
    ///
    /// # Errors
    /// When the control socket fails.
    pub fn serve(self, listener: &ControlListener) -> std::io::Result<()> {
        let workers = Workers::new("answer", self.max_calls);
        let node = Arc::new(self);
        listener.serve(
            |command, reply| node.take_up(command, reply, &workers),
            |reason| EdgeReply::Failed(SystemError::new("control", reason)),
        )
    }

    fn take_up(
        self: &Arc<Self>,
        command: EdgeCommand,
        reply: Reply<EdgeReply>,
        workers: &Workers,
    ) -> Flow {
        match command {
            EdgeCommand::Hello => reply.send(&self.hello().unwrap_or_else(EdgeReply::Failed)),
            EdgeCommand::Stats { reset } => reply.send(&EdgeReply::Stats(self.stats(reset))),
            EdgeCommand::Shutdown => {
                reply.send(&EdgeReply::Done);
                return Flow::Stop;
            }
            // A thread would cost more than the answer.
            EdgeCommand::Answer { ref spec, .. }
                if system::find(&spec.system).is_ok_and(|entry| entry.echo) =>
            {
                reply.send(&self.handle(command).unwrap_or_else(EdgeReply::Failed));
            }
            EdgeCommand::Connect { .. }
            | EdgeCommand::Serve { .. }
            | EdgeCommand::Prepare { .. }
            | EdgeCommand::Answer { .. } => {
                // Both the thread and the refusal need the reply; whoever comes first has it.
                let reply = Arc::new(Mutex::new(Some(reply)));
                let node = self.clone();
                let later = reply.clone();
                let call = move || {
                    let result = node.handle(command).unwrap_or_else(EdgeReply::Failed);
                    send(&later, &result);
                };
                if workers.run(Box::new(call)).is_err() {
                    let error = SystemError::new(
                        "overloaded",
                        format!("{} requests are under way, which is all", self.max_calls),
                    );
                    send(&reply, &EdgeReply::Failed(error));
                }
            }
        }
        Flow::Continue
    }

    fn hello(&self) -> Result<EdgeReply, SystemError> {
        let model = self.model();
        Ok(EdgeReply::Edge {
            fingerprint: model.decoder.fingerprint().to_string(),
            tokenizer: model.tokenizer.hash()?,
            codec_artefact: self.codecs.artefact_id(),
            num_layers: model.decoder.config().num_hidden_layers,
            threads: self.threads,
        })
    }

    fn stats(&self, reset: bool) -> NodeStats {
        let cached = self.cache.bytes() as u64;
        NodeStats::new(vec![self.engine.stats(reset)], cached, reset)
    }

    fn handle(&self, command: EdgeCommand) -> Result<EdgeReply, SystemError> {
        match command {
            EdgeCommand::Connect { addr } => {
                self.connect(addr)?;
                Ok(EdgeReply::Done)
            }
            EdgeCommand::Serve {
                endpoint,
                timeout_ms,
            } => {
                let patience = Duration::from_millis(timeout_ms);
                self.serving.set(&self.runtime, endpoint, patience)?;
                Ok(EdgeReply::Done)
            }
            EdgeCommand::Prepare {
                spec,
                contract,
                context,
                timeout_ms,
            } => {
                let deadline_ns = deadline_after(now_ns(), timeout_ms);
                self.prepare(&spec, contract, &context, deadline_ns)?;
                Ok(EdgeReply::Done)
            }
            EdgeCommand::Answer { spec, request } => {
                let timeline = Timeline::start(request.scheduled_ns);
                let deadline_ns = deadline_after(timeline.sent_ns(), request.timeout_ms);
                let system = system::find(&spec.system)?.system();
                let mut answer =
                    system.answer(self, spec.kv.as_ref(), &request, timeline, deadline_ns)?;
                answer.end_ns = now_ns();
                Ok(EdgeReply::Answered(Box::new(answer)))
            }
            EdgeCommand::Hello | EdgeCommand::Stats { .. } | EdgeCommand::Shutdown => {
                Ok(EdgeReply::Done)
            }
        }
    }

    fn connect(&self, addr: SocketAddr) -> Result<(), SystemError> {
        *self.connection() = None;
        self.serving.reconnect()?;
        let deadline = self.limits.connect_timeout();
        let limits = self.limits.clone();
        let client = self
            .runtime
            .block_on(CloudClient::connect(addr, limits, deadline))?;
        *self.connection() = Some(client);
        Ok(())
    }

    fn connection(&self) -> std::sync::MutexGuard<'_, Option<CloudClient>> {
        // It is set as a whole, so a panic elsewhere does not spoil it.
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prepare(
        &self,
        spec: &SystemSpec,
        contract: Contract,
        context: &ContextRef,
        deadline_ns: u64,
    ) -> Result<(), SystemError> {
        match contract {
            Contract::Cold => {
                self.cache.evict(&context.context_id);
                self.engine.forget(&context.context_id);
                Ok(())
            }
            Contract::Primed => {
                self.cache.evict(&context.context_id);
                self.engine.forget(&context.context_id);
                let system = system::find(&spec.system)?.system();
                system.prime(self, context, deadline_ns)
            }
            Contract::Warm => {
                let system = system::find(&spec.system)?.system();
                system.warm(self, spec.kv.as_ref(), context, deadline_ns)
            }
        }
    }

    /// The edge's model.
    pub fn model(&self) -> &LoadedModel {
        self.engine.model()
    }

    /// The chain of a codec, as this edge decodes it.
    ///
    /// # Errors
    /// Kind `codec` when it needs another artefact than this edge holds.
    pub(crate) fn chain(&self, codec: &CodecConfig) -> Result<Chain, SystemError> {
        let chain = self.codecs.chain(codec);
        chain.map_err(|error| SystemError::new("codec", error))
    }

    /// The model as an end of a bridge.
    pub(crate) fn end(&self) -> BridgeEnd {
        end(self.model())
    }

    /// The bridge of a path whose edge maps.
    ///
    /// # Errors
    /// Kind `config` when this edge does not hold it.
    pub(crate) fn bridge(&self, path: &KvPath) -> Result<Option<Arc<Bridge>>, SystemError> {
        self.bridges.of(path)
    }

    /// How fast it computes, compared with this machine.
    pub(crate) fn pace(&self) -> Pace {
        self.pace
    }

    /// The engine that runs it.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The runtime of the network side.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The connection to the cloud.
    pub(crate) fn client(&self) -> Result<CloudClient, SystemError> {
        self.connection()
            .clone()
            .ok_or_else(|| SystemError::new("connect", "this edge is not connected to a cloud"))
    }

    /// The serving engine in use.
    pub(crate) fn serving(&self) -> Result<Arc<Serving>, SystemError> {
        self.serving.get()
    }

    /// The id of a context.
    pub(crate) fn context_id(&self, context: &ContextRef) -> Result<ContextId, SystemError> {
        context
            .context_id
            .parse()
            .map_err(|error| SystemError::new("config", format!("bad context id: {error}")))
    }

    /// The right to fetch a variant of a context's KV: waits while another request fetches it, so
    /// that a burst of questions about one context costs the link one transfer. Whoever gets it
    /// looks into the cache once more.
    ///
    /// # Errors
    /// Kind `deadline` when the wait takes too long.
    pub(crate) fn fetching(
        &self,
        context: &ContextRef,
        variant: &str,
        deadline_ns: u64,
    ) -> Result<tokio::sync::OwnedMutexGuard<()>, SystemError> {
        let key = cache_key(context, variant);
        let left = Duration::from_nanos(deadline_ns.saturating_sub(now_ns()));
        let wait = async { tokio::time::timeout(left, self.flights.board(&key)).await };
        self.runtime.block_on(wait).map_err(|_| {
            SystemError::new(
                "deadline",
                "the request's time went by while another fetched the context",
            )
        })
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

    /// Submits a request's prompt over its context to the engine.
    ///
    /// # Errors
    /// As [`Engine::session`].
    pub(crate) fn submit(
        &self,
        request: &Request,
        prompt: Vec<u32>,
        context: SessionContext,
        deadline_ns: u64,
    ) -> Result<SessionHandle, SystemError> {
        self.engine.session(SessionRequest {
            client: request.client,
            context,
            prompt,
            sampling: request.sampling,
            seed: request.seed,
            max_tokens: request.max_tokens,
            deadline_ns,
        })
    }

    /// Collects what a session generates and completes the answer. `track` is what the caller did
    /// while the session waited for its context.
    ///
    /// # Errors
    /// Whatever ended the session.
    pub(crate) fn collect(
        &self,
        mut session: SessionHandle,
        mut timeline: Timeline,
        track: Option<&Track>,
        mut answer: Answer,
    ) -> Result<Answer, SystemError> {
        answer.sent_ns = timeline.sent_ns();
        let mut blocked = Vec::new();
        // Tokens whose text is not visible yet get the time of the text that completes them.
        let mut invisible = 0;
        let mut first = |answer: &mut Answer, at_ns: u64, times: &Times, blocked: &[(u64, u64)]| {
            timeline.lap_engine(at_ns, times, blocked, track);
            answer.parts = timeline.parts();
        };
        loop {
            match session.wait()? {
                SessionEvent::Prefilled(Prefilled { blocked: spent, .. }) => blocked = spent,
                SessionEvent::Token(token) => {
                    answer.output_ids.push(token.id);
                    answer.output_text.push_str(&token.text);
                    invisible += 1;
                    if !token.text.is_empty() {
                        if answer.token_ns.is_empty() {
                            first(&mut answer, token.at_ns, &token.times, &blocked);
                        }
                        let times = std::iter::repeat_n(token.at_ns, invisible);
                        answer.token_ns.extend(times);
                        invisible = 0;
                    }
                }
                SessionEvent::End(end) => {
                    if answer.token_ns.is_empty() {
                        // An answer without visible text still has an end that its parts lead to.
                        first(&mut answer, end.at_ns, &end.times, &blocked);
                    }
                    let times = std::iter::repeat_n(end.at_ns, invisible);
                    answer.token_ns.extend(times);
                    answer.edge_kv_bytes = end.kv_bytes as u64;
                    return Ok(answer);
                }
            }
        }
    }
}

fn end(model: &LoadedModel) -> BridgeEnd {
    BridgeEnd {
        fingerprint: model.decoder.fingerprint(),
        shape: model.decoder.kv_shape(),
    }
}

/// Sends a reply that two may want to send.
fn send(reply: &Mutex<Option<Reply<EdgeReply>>>, result: &EdgeReply) {
    let reply = reply.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(reply) = reply {
        reply.send(result);
    }
}

/// Names a variant of a context's KV, in the cache and in the engine.
pub(crate) fn cache_key(context: &ContextRef, variant: &str) -> String {
    format!("{}/{variant}", context.context_id)
}

fn deadline_after(start_ns: u64, timeout_ms: u64) -> u64 {
    start_ns.saturating_add(Duration::from_millis(timeout_ms).as_nanos() as u64)
}
