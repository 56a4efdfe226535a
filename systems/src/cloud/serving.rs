//! The calls of the edges.

use super::variants::Shared;
use crate::answer::SystemError;
use crate::clock::now_ns;
use crate::generation::{End, GenerationLimits, Step, generate};
use celslm_kv::{CodecConfig, KvChunk, chunk};
use celslm_model::{KeyRetention, KvCache, Sampling};
use celslm_wire::{
    CloudService, ContextContent, ContextEntry, FetchChunk, FetchEvent, FetchHeader, FetchRequest,
    FinishReason, GenerateEvent, GenerateFinished, GenerateRequest, GenerateStarted, GenerateToken,
    LookupReply, LookupRequest, PublishReply, PublishRequest, ServiceError, TrailerBuilder,
};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Messages that wait between the compute thread and the network. A chunk is at most a few
/// hundred kilobytes, so a slow link holds back the encoder early.
const OUTBOX: usize = 8;

/// The cloud's side of the protocol.
pub(super) struct Serving(pub(super) Arc<Shared>);

type Sender<T> = mpsc::Sender<Result<T, ServiceError>>;
type Receiver<T> = mpsc::Receiver<Result<T, ServiceError>>;

/// The caller went away; nobody is left to tell.
struct Gone;

fn send<T>(outbox: &Sender<T>, message: T) -> Result<(), Gone> {
    outbox.blocking_send(Ok(message)).map_err(|_| Gone)
}

/// What ends a call early.
enum Stop {
    Gone,
    Failed(ServiceError),
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<ServiceError> for Stop {
    fn from(error: ServiceError) -> Self {
        Self::Failed(error)
    }
}

impl Serving {
    /// Waits for the models, then runs a call on a blocking thread.
    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Shared, Turn, &Sender<T>) -> Result<(), Stop> + Send + 'static,
    ) -> Result<Receiver<T>, ServiceError> {
        let start = now_ns();
        let permit = self.0.turn().await?;
        let turn = Turn {
            permit,
            queue_ns: now_ns() - start,
        };
        let shared = self.0.clone();
        let (outbox, inbox) = mpsc::channel(OUTBOX);
        tokio::task::spawn_blocking(move || {
            if let Err(Stop::Failed(error)) = call(&shared, turn, &outbox) {
                // A receiver that is gone needs no error.
                let _ = outbox.blocking_send(Err(error));
            }
        });
        Ok(inbox)
    }
}

/// A call's turn at the models.
struct Turn {
    permit: OwnedSemaphorePermit,
    queue_ns: u64,
}

impl CloudService for Serving {
    async fn publish(&self, request: PublishRequest) -> Result<PublishReply, ServiceError> {
        if request.model != self.0.model.decoder.fingerprint() {
            return Err(ServiceError::Unsupported(format!(
                "this cloud runs model {}, not {}",
                self.0.model.decoder.fingerprint(),
                request.model
            )));
        }
        let ContextContent::SystemText(system) = request.content else {
            return Err(ServiceError::Unsupported(
                "publish the context's text: this cloud tokenises it itself".to_owned(),
            ));
        };
        let shared = self.0.clone();
        tokio::task::spawn_blocking(move || {
            let (context_id, context) = shared.publish(&system)?;
            Ok(PublishReply {
                context_id,
                context_tokens: context.tokens.len(),
            })
        })
        .await
        .map_err(|error| ServiceError::Internal(error.to_string()))?
    }

    async fn lookup(&self, request: LookupRequest) -> Result<LookupReply, ServiceError> {
        let shared = &self.0;
        let Ok(context) = shared.context(&request.context_id) else {
            return Ok(LookupReply { found: None });
        };
        let variant = shared.variant(&request.variant)?;
        // Every variant has the shape of the edge's model; only its owner knows it.
        let (shape, fingerprint) = match &variant {
            super::variants::EdgeVariant::Identity(model) => {
                (model.decoder.kv_shape(), model.decoder.fingerprint())
            }
            super::variants::EdgeVariant::Bridged(bridge, _) => {
                (bridge.target().shape, bridge.target().fingerprint)
            }
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
        let codec: CodecConfig = request
            .codec
            .parse()
            .map_err(|error| ServiceError::Unsupported(format!("{error}")))?;
        self.0.context(&request.context_id)?;
        self.0.variant(&request.variant)?;
        self.run(move |shared, turn, outbox| fetch(shared, turn, &request, &codec, outbox))
            .await
    }

    async fn generate(
        &self,
        request: GenerateRequest,
    ) -> Result<Receiver<GenerateEvent>, ServiceError> {
        self.0.context(&request.context_id)?;
        self.run(move |shared, turn, outbox| answer(shared, turn, &request, outbox))
            .await
    }
}

fn fetch(
    shared: &Shared,
    turn: Turn,
    request: &FetchRequest,
    codec: &CodecConfig,
    outbox: &Sender<FetchEvent>,
) -> Result<(), Stop> {
    let variant = shared.variant(&request.variant)?;
    let ready = shared.edge_shaped(&request.context_id, &variant, &mut || !outbox.is_closed())?;
    let Turn { permit, queue_ns } = turn;
    // Encoding and a slow link must not keep the models from the next call.
    drop(permit);
    let layers = request.first_layer..ready.block.shape().num_layers;
    let invalid = |error: &dyn std::fmt::Display| ServiceError::InvalidArgument(error.to_string());
    let block = match request.first_layer {
        0 => ready.block,
        _ => Arc::new(
            ready
                .block
                .slice_layers(layers)
                .map_err(|error| invalid(&error))?,
        ),
    };
    let chain = codec.build();
    let places =
        chunk::plan(block.spec(), request.chunk_tokens, &chain).map_err(|error| invalid(&error))?;
    send(
        outbox,
        FetchEvent::Header(FetchHeader {
            spec: block.spec().clone(),
            codec: codec.id(),
            store_hit: ready.store_hit,
            queue_ns,
            cloud_compute_ns: ready.compute_ns,
            align_ns: ready.align_ns,
        }),
    )?;
    let mut totals = TrailerBuilder::default();
    for (layer, tokens) in places {
        let start = now_ns();
        let chunk = KvChunk::encode(&block, layer, tokens, &chain)
            .map_err(|error| ServiceError::Internal(error.to_string()))?;
        let encode_ns = now_ns() - start;
        totals.add(&chunk, encode_ns);
        send(outbox, FetchEvent::Chunk(FetchChunk { chunk, encode_ns }))?;
    }
    send(outbox, FetchEvent::Trailer(totals.finish()))?;
    Ok(())
}

fn answer(
    shared: &Shared,
    turn: Turn,
    request: &GenerateRequest,
    outbox: &Sender<GenerateEvent>,
) -> Result<(), Stop> {
    let failed = |error: SystemError| match error.kind.as_str() {
        "deadline" => ServiceError::DeadlineExceeded(error.message),
        _ => ServiceError::Internal(error.message),
    };
    // What the edge allows counts from here, not from the first token.
    let deadline_ns = now_ns().saturating_add(request.deadline.as_nanos() as u64);
    let model = &shared.model;
    let context = shared.context(&request.context_id)?;
    let tokenising = now_ns();
    let prompt = model
        .conversation_tokens(&context.system, &request.history, &request.prompt)
        .map_err(|error| ServiceError::InvalidArgument(format!("failed to {error}")))?;
    let tokenise_ns = now_ns() - tokenising;
    let (prefix, ready) = shared.native_prefix(&request.context_id, &mut || {
        !outbox.is_closed() && now_ns() <= deadline_ns
    })?;
    let window = model.decoder.config().max_position_embeddings;
    let capacity = prompt.len().saturating_add(request.max_tokens).min(window);
    let prefilling = now_ns();
    let mut cache = KvCache::new(
        model.decoder.kv_shape(),
        Some(prefix),
        capacity,
        KeyRetention::RotatedOnly,
    )
    .map_err(|error| failed(error.into()))?;
    let hidden = model
        .decoder
        .forward(&prompt, &mut cache)
        .map_err(|error| failed(error.into()))?;
    send(
        outbox,
        GenerateEvent::Started(GenerateStarted {
            context_tokens: context.tokens.len(),
            prompt_tokens: prompt.len(),
            store_hit: ready.store_hit,
            tokenise_ns,
            queue_ns: turn.queue_ns,
            cloud_compute_ns: ready.compute_ns,
            prompt_prefill_ns: now_ns() - prefilling,
        }),
    )?;
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
    let limits = GenerationLimits {
        max_tokens: request.max_tokens,
        deadline_ns,
    };
    let mut index = 0;
    let mut stepping = now_ns();
    let end = generate(
        model,
        &mut cache,
        hidden,
        sampling,
        seed,
        limits,
        |Step { id, text }| {
            let step_ns = now_ns() - stepping;
            let token = GenerateToken {
                index,
                id,
                text: text.to_owned(),
                step_ns,
            };
            index += 1;
            let sent = send(outbox, GenerateEvent::Token(token)).is_ok();
            stepping = now_ns();
            sent
        },
    )
    .map_err(failed)?;
    drop(turn.permit);
    let reason = match end {
        End::Turn => FinishReason::EndOfSequence,
        End::Length => FinishReason::MaxTokens,
        End::Stopped => return Err(Stop::Gone),
    };
    send(
        outbox,
        GenerateEvent::Finished(GenerateFinished {
            reason,
            output_tokens: index,
        }),
    )?;
    Ok(())
}
