//! The calls of the edges.

use super::replay::{Asked, Replay, Replayed};
use super::variants::{EdgeVariant, Shared, internal, invalid, to_service};
use crate::clock::now_ns;
use crate::engine::{Ending, SessionContext, SessionEvent, SessionRequest};
use crate::mapping::codec_problem;
use celslm_kv::{Chain, ChunkEncoder, Codec as _, CodecConfig, CodecError, chunk};
use celslm_model::Sampling;
use celslm_wire::{
    CloudService, ContextContent, ContextEntry, FetchChunk, FetchEvent, FetchHeader, FetchRequest,
    FinishReason, GenerateEvent, GenerateFinished, GenerateRequest, GenerateStarted, GenerateToken,
    LookupReply, LookupRequest, PublishReply, PublishRequest, ServiceError, TrailerBuilder,
};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Messages that wait between a call and the network. A chunk is at most a few hundred
/// kilobytes, so a slow link holds back the encoder early.
const OUTBOX: usize = 8;

/// The cloud's side of the protocol.
pub(super) struct Serving(pub(super) Arc<Shared>);

type Sender<T> = mpsc::Sender<Result<T, ServiceError>>;
type Receiver<T> = mpsc::Receiver<Result<T, ServiceError>>;

/// What ends a call early.
enum Stop {
    /// The caller went away; nobody is left to tell.
    Gone,
    Failed(ServiceError),
}

impl From<ServiceError> for Stop {
    fn from(error: ServiceError) -> Self {
        Self::Failed(error)
    }
}

async fn send<T>(outbox: &Sender<T>, message: T) -> Result<(), Stop> {
    outbox.send(Ok(message)).await.map_err(|_| Stop::Gone)
}

/// Runs a call as a task of its own, until it ends or its caller goes away. It holds no thread
/// while it waits for an engine or a slow link.
fn run<T, F>(call: impl FnOnce(Sender<T>) -> F) -> Receiver<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Stop>> + Send + 'static,
{
    let (outbox, inbox) = mpsc::channel(OUTBOX);
    let call = call(outbox.clone());
    tokio::spawn(async move {
        tokio::select! {
            result = call => if let Err(Stop::Failed(error)) = result {
                // A receiver that is gone needs no error.
                let _ = outbox.send(Err(error)).await;
            },
            // What the call was waiting for is cancelled with it.
            () = outbox.closed() => {}
        }
    });
    inbox
}

/// When a call must be done, by the engines' clock.
fn deadline_ns(deadline: Duration) -> u64 {
    now_ns().saturating_add(u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX))
}

impl CloudService for Serving {
    async fn publish(&self, request: PublishRequest) -> Result<PublishReply, ServiceError> {
        if request.model != self.0.model().decoder.fingerprint() {
            return Err(ServiceError::Unsupported(format!(
                "this cloud runs model {}, not {}",
                self.0.model().decoder.fingerprint(),
                request.model
            )));
        }
        let ContextContent::SystemText(system) = request.content else {
            return Err(ServiceError::Unsupported(
                "publish the context's text: this cloud tokenises it itself".to_owned(),
            ));
        };
        let shared = self.0.clone();
        let published = self.0.work(move || shared.publish(&system)).await?;
        let (context_id, context) = published?;
        Ok(PublishReply {
            context_id,
            context_tokens: context.tokens.len(),
        })
    }

    async fn lookup(&self, request: LookupRequest) -> Result<LookupReply, ServiceError> {
        let shared = &self.0;
        let Ok(context) = shared.context(&request.context_id) else {
            return Ok(LookupReply { found: None });
        };
        let variant = shared.variant(&request.variant)?;
        // Each variant has the shape of the model that it is for; only its owner knows it.
        let (shape, fingerprint) = match &variant {
            EdgeVariant::Native => {
                let decoder = &shared.model().decoder;
                (decoder.kv_shape(), decoder.fingerprint())
            }
            EdgeVariant::Identity(engine) => {
                let decoder = &engine.model().decoder;
                (decoder.kv_shape(), decoder.fingerprint())
            }
            EdgeVariant::Bridged(bridge, _) => (bridge.target().shape, bridge.target().fingerprint),
        };
        Ok(LookupReply {
            found: Some(ContextEntry {
                computed: shared.has(&request.context_id, &variant),
                shape,
                fingerprint,
                tokens: context.tokens.len(),
            }),
        })
    }

    async fn fetch(&self, request: FetchRequest) -> Result<Receiver<FetchEvent>, ServiceError> {
        let unsupported = |error: CodecError| ServiceError::Unsupported(error.to_string());
        let codec: CodecConfig = request.codec.parse().map_err(unsupported)?;
        let chain = self.0.codecs.chain(&codec).map_err(unsupported)?;
        self.0.context(&request.context_id)?;
        let variant = self.0.variant(&request.variant)?;
        if let (EdgeVariant::Native, Some(problem)) = (&variant, codec_problem(&codec)) {
            return Err(ServiceError::Unsupported(format!(
                "codec {codec} for the cloud model's own KV: {problem}"
            )));
        }
        let shared = self.0.clone();
        Ok(run(|outbox| async move {
            fetch(&shared, &request, &variant, chain, &outbox).await
        }))
    }

    async fn generate(
        &self,
        caller: u32,
        request: GenerateRequest,
    ) -> Result<Receiver<GenerateEvent>, ServiceError> {
        self.0.context(&request.context_id)?;
        let shared = self.0.clone();
        Ok(run(|outbox| async move {
            answer(&shared, caller, request, &outbox).await
        }))
    }
}

async fn fetch(
    shared: &Arc<Shared>,
    request: &FetchRequest,
    variant: &EdgeVariant,
    chain: Chain,
    outbox: &Sender<FetchEvent>,
) -> Result<(), Stop> {
    let deadline_ns = deadline_ns(request.deadline);
    let ready = shared
        .edge_shaped(&request.context_id, variant, deadline_ns)
        .await?;
    let scored = match chain.config().scored_by() {
        Some(by) => Some(shared.scores(&request.context_id, by, deadline_ns).await?),
        None => None,
    };
    let layers = request.first_layer..ready.block.shape().num_layers;
    let unfit = |error: &dyn std::fmt::Display| ServiceError::InvalidArgument(error.to_string());
    let block = match request.first_layer {
        0 => ready.block,
        _ => Arc::new(
            ready
                .block
                .slice_layers(layers)
                .map_err(|error| unfit(&error))?,
        ),
    };
    let places =
        chunk::plan(block.spec(), request.chunk_tokens, &chain).map_err(|error| unfit(&error))?;
    let header = FetchEvent::Header(FetchHeader {
        spec: block.spec().clone(),
        codec: chain.id(),
        store_hit: ready.store_hit && scored.as_ref().is_none_or(|scored| scored.store_hit),
        queue_ns: ready.queue_ns + scored.as_ref().map_or(0, |scored| scored.queue_ns),
        cloud_compute_ns: ready.compute_ns + scored.as_ref().map_or(0, |scored| scored.compute_ns),
        align_ns: ready.align_ns,
    });
    send(outbox, header).await?;
    let mut totals = TrailerBuilder::default();
    let scores = scored.map(|scored| scored.scores);
    let mut encoder = ChunkEncoder::new(chain).with_scores(scores);
    for (layer, tokens) in places {
        // Chunk by chunk, so that a slow link keeps no other call from encoding. The encoder knows
        // what it has sent, which later layers may be predicted from, and goes along.
        let block = block.clone();
        let encode = move || {
            let start = now_ns();
            let chunk = encoder.encode(&block, layer, tokens);
            (encoder, chunk, now_ns() - start)
        };
        let (returned, chunk, encode_ns) = shared.work(encode).await?;
        encoder = returned;
        let chunk = chunk.map_err(internal)?;
        totals.add(&chunk, encode_ns);
        send(outbox, FetchEvent::Chunk(FetchChunk { chunk, encode_ns })).await?;
    }
    send(outbox, FetchEvent::Trailer(totals.finish())).await
}

async fn answer(
    shared: &Shared,
    caller: u32,
    request: GenerateRequest,
    outbox: &Sender<GenerateEvent>,
) -> Result<(), Stop> {
    // What the edge allows counts from here, not from the first token.
    let deadline_ns = deadline_ns(request.deadline);
    let model = shared.engine.model().clone();
    let context = shared.context(&request.context_id)?;
    let context_tokens = context.tokens.len();
    let (history, text) = (request.history, request.prompt);
    let tokenise = move || {
        let start = now_ns();
        let prompt = model.conversation_tokens(&context.system, &history, &text);
        (prompt, now_ns() - start)
    };
    let (prompt, tokenise_ns) = shared.work(tokenise).await?;
    let prompt = prompt.map_err(invalid)?;
    let (sampling, seed) = match request.sampling {
        celslm_wire::Sampling::Greedy => (Sampling::Greedy, 0),
        celslm_wire::Sampling::Draw {
            temperature,
            top_p,
            seed,
        } => (
            Sampling::Nucleus {
                temperature: temperature as f32,
                top_p: top_p as f32,
            },
            seed,
        ),
    };
    let prompt_tokens = prompt.len();
    if let Some(replay) = &shared.replay {
        let asked = Asked {
            context: &request.context_id,
            prompt: &prompt,
            sampling,
            seed,
            max_tokens: request.max_tokens,
        };
        return replayed(shared, replay, &asked, tokenise_ns, deadline_ns, outbox).await;
    }
    let (prefix, ready) = shared
        .native_prefix(&request.context_id, deadline_ns)
        .await?;
    let session = shared.engine.session(SessionRequest {
        client: caller,
        context: SessionContext::Ready(prefix),
        prompt,
        sampling,
        seed,
        max_tokens: request.max_tokens,
        deadline_ns,
    });
    let mut session = session.map_err(to_service)?;
    let (mut index, mut last_ns) = (0, 0);
    loop {
        match session.next_event().await.map_err(to_service)? {
            SessionEvent::Prefilled(prefilled) => {
                last_ns = prefilled.at_ns;
                let started = GenerateStarted {
                    context_tokens,
                    prompt_tokens,
                    store_hit: ready.store_hit,
                    tokenise_ns,
                    queue_ns: ready.queue_ns + prefilled.times.queued_ns,
                    cloud_compute_ns: ready.compute_ns,
                    prompt_prefill_ns: prefilled.times.prefill_ns,
                };
                send(outbox, GenerateEvent::Started(started)).await?;
            }
            SessionEvent::Token(token) => {
                let event = GenerateToken {
                    index,
                    id: token.id,
                    text: token.text,
                    step_ns: token.at_ns - last_ns,
                };
                last_ns = token.at_ns;
                index += 1;
                send(outbox, GenerateEvent::Token(event)).await?;
            }
            SessionEvent::End(end) => {
                let finished = GenerateFinished {
                    reason: reason(end.ending),
                    output_tokens: index,
                };
                return send(outbox, GenerateEvent::Finished(finished)).await;
            }
        }
    }
}

/// An answer from the recording, at the device's speed.
async fn replayed(
    shared: &Shared,
    replay: &Replay,
    asked: &Asked<'_>,
    tokenise_ns: u64,
    deadline_ns: u64,
    outbox: &Sender<GenerateEvent>,
) -> Result<(), Stop> {
    let context_tokens = shared.context(asked.context)?.tokens.len();
    let held = replay.hold(shared, asked.context, deadline_ns).await?;
    let mut answering = replay.answer(shared, asked)?;
    let (mut index, mut last_ns) = (0, 0);
    loop {
        match answering.next(deadline_ns).await? {
            Replayed::Prefilled {
                at_ns,
                queued_ns,
                prefill_ns,
            } => {
                last_ns = at_ns;
                let started = GenerateStarted {
                    context_tokens,
                    prompt_tokens: asked.prompt.len(),
                    store_hit: held.store_hit,
                    tokenise_ns,
                    queue_ns: held.queue_ns + queued_ns,
                    cloud_compute_ns: held.compute_ns,
                    prompt_prefill_ns: prefill_ns,
                };
                send(outbox, GenerateEvent::Started(started)).await?;
            }
            Replayed::Token { id, text, at_ns } => {
                let event = GenerateToken {
                    index,
                    id,
                    text,
                    step_ns: at_ns.saturating_sub(last_ns),
                };
                last_ns = at_ns;
                index += 1;
                send(outbox, GenerateEvent::Token(event)).await?;
            }
            Replayed::End(ending) => {
                let finished = GenerateFinished {
                    reason: reason(ending),
                    output_tokens: index,
                };
                return send(outbox, GenerateEvent::Finished(finished)).await;
            }
        }
    }
}

fn reason(ending: Ending) -> FinishReason {
    match ending {
        Ending::Turn => FinishReason::EndOfSequence,
        Ending::Length => FinishReason::MaxTokens,
        Ending::Full => FinishReason::ContextFull,
    }
}
