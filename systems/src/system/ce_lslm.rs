//! CE-LSLM (arXiv 2505.14085): the context's KV comes from the cloud's store, the private
//! prompt is prefilled and answered at the edge.
//!
//! The edge saves the context's prefill and pays a transfer: it loses where the link is slower
//! than `kv_bytes_per_token × 8 × edge_prefill_tok_s / compression`. What answers is the edge's
//! model, so with [`Alignment::identity`](celslm_kv::AlignmentConfig) and an exact codec the
//! tokens are those of the edge alone.
//!
//! Where the edge maps ([`MapAt::Edge`](celslm_kv::align::MapAt)), the cloud model's own KV comes
//! down. A map may read any of its layers, so that nothing is let into the prefix before the last
//! has arrived and the trailer has vouched for all of them: no schedule has anything to overlap.

use super::System;
use crate::answer::{Answer, ContextRef, Request, SystemError};
use crate::clock::now_ns;
use crate::edge::EdgeNode;
use crate::engine::{ArrivingKv, SessionContext, SessionHandle};
use crate::mapping;
use crate::spec::KvPath;
use crate::timeline::{Part, Timeline, Track};
use celslm_kv::{Assembler, BlockSpec, Bridge, KeyRope, KvBlock, LayerKv};
use celslm_model::{KvPrefix, RotaryEmbedding};
use celslm_wire::{FetchEvent, FetchHeader, FetchRequest, Traffic, WireError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

pub(super) struct CeLslm;

/// Messages that wait between the network and the request's thread. Chunks beyond that stay in
/// the transport's windows, which are bounded too.
const INBOX: usize = 32;

/// Most fp16 bytes of a context that an edge takes: far above any window of the known models.
const MAX_CONTEXT_BYTES: u64 = 4 << 30;

impl System for CeLslm {
    fn warm(
        &self,
        edge: &EdgeNode,
        kv: Option<&KvPath>,
        context: &ContextRef,
        deadline_ns: u64,
    ) -> Result<(), SystemError> {
        let path = kv_path(kv)?;
        let _flight = edge.fetching(context, &variant_key(path), deadline_ns)?;
        if edge.cached(context, &variant_key(path)).is_none() {
            let mut timeline = Timeline::start(now_ns());
            let mut transfer = Transfer::open(edge, path, context, deadline_ns, &mut timeline)?;
            transfer.receive_all(edge, None, &mut Track::start())?;
            edge.keep(context, &variant_key(path), transfer.kv.prefix().clone())?;
        }
        Ok(())
    }

    fn answer(
        &self,
        edge: &EdgeNode,
        kv: Option<&KvPath>,
        request: &Request,
        mut timeline: Timeline,
        deadline_ns: u64,
    ) -> Result<Answer, SystemError> {
        let path = kv_path(kv)?;
        let model = edge.model();
        let prompt =
            model.conversation_tokens(&request.context.system, &request.history, &request.user)?;
        timeline.lap(Part::Tokenise);
        let mut answer = Answer {
            prompt_tokens: prompt.len(),
            edge_prefill_token_layers: (prompt.len() * model.decoder.config().num_hidden_layers)
                as u64,
            ..Answer::default()
        };
        let key = variant_key(path);
        let mut cached = edge.cached(&request.context, &key);
        let mut flight = None;
        if cached.is_none() {
            flight = Some(edge.fetching(&request.context, &key, deadline_ns)?);
            cached = edge.cached(&request.context, &key);
            // Without another fetch under way this is nothing.
            timeline.lap(Part::Transfer);
        }
        if let Some(prefix) = cached {
            drop(flight);
            answer.edge_cache_hit = true;
            answer.context_tokens = prefix.len();
            let context = SessionContext::Ready(prefix);
            let session = edge.submit(request, prompt, context, deadline_ns)?;
            return edge.collect(session, timeline, None, answer);
        }
        let mut transfer =
            Transfer::open(edge, path, &request.context, deadline_ns, &mut timeline)?;
        answer.context_tokens = transfer.kv.prefix().len();
        answer.cloud_store_hit = transfer.header.store_hit;
        let context = SessionContext::Arriving {
            kv: transfer.kv.clone(),
            schedule: path.schedule,
        };
        let mut session = edge.submit(request, prompt, context, deadline_ns)?;
        let mut track = Track::start();
        transfer.receive_all(edge, Some(&mut session), &mut track)?;
        // The next request about this context finds it here. One that is too large for the cache
        // is fetched again.
        let _ = edge.keep(&request.context, &key, transfer.kv.prefix().clone());
        drop(flight);
        let traffic = transfer.traffic;
        answer.uplink_payload_bytes = traffic.uplink_payload_bytes;
        answer.downlink_payload_bytes = traffic.downlink_payload_bytes;
        answer.kv_payload_bytes = transfer.payload_bytes;
        answer.kv_fp16_bytes = transfer.header.spec.fp16_bytes();
        edge.collect(session, timeline, Some(&track), answer)
    }
}

fn kv_path(kv: Option<&KvPath>) -> Result<&KvPath, SystemError> {
    kv.ok_or_else(|| {
        SystemError::new(
            "config",
            "ce_lslm needs an alignment, a codec and a schedule",
        )
    })
}

/// KV that came another way is another KV: the cache must not mix them.
fn variant_key(path: &KvPath) -> String {
    let bridge = path.bridge.as_deref().unwrap_or("-");
    format!("{}/{bridge}/{}", path.alignment, path.codec)
}

/// A transfer in progress: the network side runs on the edge's runtime and stamps what
/// arrives; this side decodes on the
/// caller's thread, while the engine computes what it can with the layers that are there.
struct Transfer {
    header: FetchHeader,
    kv: Arc<ArrivingKv>,
    intake: Intake,
    assembler: Assembler,
    inbox: mpsc::Receiver<Result<Arrival, WireError>>,
    /// When the header was in.
    header_ns: u64,
    payload_bytes: u64,
    traffic: Traffic,
}

/// What becomes of the layers that arrive.
enum Intake {
    /// They are the edge model's: each goes into the prefix when it is complete.
    Direct,
    /// They are the cloud model's: they are kept until all are there, and mapped.
    Mapped {
        bridge: Arc<Bridge>,
        /// The context in the edge model's tokens.
        tokens: Vec<u32>,
        layers: Vec<LayerKv>,
    },
}

struct Arrival {
    event: FetchEvent,
    at_ns: u64,
    traffic: Traffic,
}

impl Transfer {
    /// Sends the request and waits for the header.
    fn open(
        edge: &EdgeNode,
        path: &KvPath,
        context: &ContextRef,
        deadline_ns: u64,
        timeline: &mut Timeline,
    ) -> Result<Self, SystemError> {
        let chain = edge.chain(&path.codec)?;
        let bridge = edge.bridge(path)?;
        let call = FetchRequest {
            context_id: edge.context_id(context)?,
            variant: path.wire_variant()?,
            codec: path.codec.id(),
            chunk_tokens: path.chunk_tokens,
            first_layer: 0,
            deadline: Duration::from_nanos(deadline_ns.saturating_sub(now_ns())),
        };
        let client = edge.client()?;
        let (outbox, mut inbox) = mpsc::channel(INBOX);
        edge.runtime().spawn(async move {
            let mut stream = match client.fetch(call).await {
                Ok(stream) => stream,
                Err(error) => {
                    // The receiver is gone only if the request was given up.
                    let _ = outbox.send(Err(error)).await;
                    return;
                }
            };
            while let Some(event) = stream.next().await {
                let arrival = event.map(|event| Arrival {
                    event,
                    at_ns: now_ns(),
                    traffic: stream.traffic(),
                });
                let failed = arrival.is_err();
                if outbox.send(arrival).await.is_err() || failed {
                    return;
                }
            }
        });
        let intake = match bridge {
            None => Intake::Direct,
            Some(bridge) => {
                // While the request is on its way.
                let tokens = edge.model().context_tokens(&context.system)?;
                timeline.lap(Part::Tokenise);
                Intake::Mapped {
                    bridge,
                    tokens,
                    layers: Vec::new(),
                }
            }
        };
        let arrival = receive(&mut inbox)?;
        let FetchEvent::Header(header) = arrival.event else {
            return Err(SystemError::new(
                "out_of_order",
                "the fetch did not begin with a header",
            ));
        };
        timeline.lap_split(
            &[
                (Part::Queue, header.queue_ns),
                (Part::CloudCompute, header.cloud_compute_ns),
                (Part::Align, header.align_ns),
            ],
            Part::Request,
        );
        check_header(edge, &header.spec, &intake)?;
        let assembler = Assembler::new(header.spec.clone(), vec![chain], MAX_CONTEXT_BYTES)
            .map_err(|error| SystemError::new("corrupt_chunk", error))?
            .with_dropped(path.codec.leaves_tokens_out());
        let prefix = KvPrefix::new(edge.end().shape, header.spec.positions.len());
        Ok(Self {
            kv: edge.engine().arriving(Arc::new(prefix)),
            intake,
            header,
            assembler,
            inbox,
            header_ns: arrival.at_ns,
            payload_bytes: 0,
            traffic: arrival.traffic,
        })
    }

    /// Receives and decodes every layer, and maps them where that is left to the edge. The last one
    /// is let into the prefix only after the trailer has vouched for the whole, so that no token can
    /// come of less.
    fn receive_all(
        &mut self,
        edge: &EdgeNode,
        mut session: Option<&mut SessionHandle>,
        track: &mut Track,
    ) -> Result<(), SystemError> {
        let rope = edge.model().decoder.rope();
        let mut left = self.header.spec.shape.num_layers;
        let mut last = None;
        while left > 0 {
            let arrival = receive(&mut self.inbox)?;
            self.traffic = arrival.traffic;
            let FetchEvent::Chunk(received) = arrival.event else {
                return Err(SystemError::new(
                    "interrupted",
                    "the fetch ended before its last layer",
                ));
            };
            track.lap_split(&[(Part::Encode, received.encode_ns)], Part::Transfer);
            track.transferred(arrival.at_ns - self.header_ns);
            self.payload_bytes += received.chunk.payload.len() as u64;
            let complete = self
                .assembler
                .accept(&received.chunk)
                .map_err(|error| SystemError::new("corrupt_chunk", error))?;
            if let Some((layer, layer_kv)) = complete {
                left -= 1;
                match (&mut self.intake, left) {
                    (Intake::Mapped { layers, .. }, _) => layers.push(layer_kv),
                    (Intake::Direct, 0) => last = Some((layer, layer_kv)),
                    (Intake::Direct, _) => self.take(layer, &layer_kv, rope)?,
                }
            }
            // A session whose time is up needs no more KV.
            session.as_mut().map_or(Ok(()), |session| session.check())?;
            track.lap(Part::Decode);
        }
        let arrival = receive(&mut self.inbox)?;
        self.traffic = arrival.traffic;
        if !matches!(arrival.event, FetchEvent::Trailer(_)) {
            return Err(SystemError::new(
                "out_of_order",
                "the fetch did not end with a trailer",
            ));
        }
        track.lap(Part::Transfer);
        if let Some((layer, layer_kv)) = last {
            self.take(layer, &layer_kv, rope)?;
        }
        if let Some(mapped) = self.mapped(edge)? {
            track.lap(Part::Align);
            for (layer, layer_kv) in mapped.layers().iter().enumerate() {
                self.kv.set_layer(layer, layer_kv, &[], rope)?;
            }
        }
        track.lap(Part::Decode);
        Ok(())
    }

    /// What has arrived in the edge model's form, where that is for the edge to make.
    fn mapped(&mut self, edge: &EdgeNode) -> Result<Option<KvBlock>, SystemError> {
        let Intake::Mapped {
            bridge,
            tokens,
            layers,
        } = &mut self.intake
        else {
            return Ok(None);
        };
        // The stream has been checked to bring every layer once, in ascending order.
        let source = KvBlock::from_spec(self.header.spec.clone(), std::mem::take(layers))
            .map_err(|error| SystemError::new("unfit_kv", error))?;
        mapping::map(bridge, &source, tokens, edge.pace()).map(Some)
    }

    /// Lets a complete layer into the prefix, but for the tokens that its codec left out.
    fn take(
        &self,
        layer: usize,
        layer_kv: &LayerKv,
        rope: &RotaryEmbedding,
    ) -> Result<(), SystemError> {
        let dropped = self.assembler.dropped(layer);
        self.kv.set_layer(layer, layer_kv, dropped, rope)?;
        Ok(())
    }
}

fn receive(inbox: &mut mpsc::Receiver<Result<Arrival, WireError>>) -> Result<Arrival, SystemError> {
    match inbox.blocking_recv() {
        Some(arrival) => Ok(arrival?),
        None => Err(SystemError::new("interrupted", "the fetch ended early")),
    }
}

/// The KV must be what this edge's model, or the model that it maps from, would have computed for the
/// context's start.
fn check_header(edge: &EdgeNode, spec: &BlockSpec, intake: &Intake) -> Result<(), SystemError> {
    let refuse = |reason: String| Err(SystemError::new("unfit_kv", reason));
    let (expected, whose) = match intake {
        Intake::Direct => (edge.end(), "this edge runs"),
        Intake::Mapped { bridge, .. } => (*bridge.source(), "this edge maps from"),
    };
    if spec.fingerprint != expected.fingerprint {
        return refuse(format!(
            "the cloud sends KV for model {}, {whose} {}",
            spec.fingerprint, expected.fingerprint
        ));
    }
    if spec.shape != expected.shape || spec.rope != KeyRope::Pre || spec.positions.start != 0 {
        return refuse(format!(
            "the cloud sends KV of {} in a form this edge cannot use",
            spec.shape
        ));
    }
    if let Intake::Mapped { tokens, .. } = intake
        && tokens.len() != spec.positions.len()
    {
        return refuse(format!(
            "the cloud sends KV of {} tokens, the context has {} in the edge's model",
            spec.positions.len(),
            tokens.len()
        ));
    }
    let window = edge.model().decoder.config().max_position_embeddings;
    if spec.positions.len() > window {
        return refuse(format!(
            "the context has {} tokens, the edge's window is {window}",
            spec.positions.len()
        ));
    }
    Ok(())
}
