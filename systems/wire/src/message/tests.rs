//! Nothing that arrives can panic, and what is sent arrives as it was.

use std::time::Duration;

use celslm_kv::{BlockSpec, ContextId, KeyRope, KvChunk, KvShape, ModelFingerprint};
use proptest::{collection::vec, option, prelude::*};
use prost::Message;

use super::*;
use crate::{proto, verify::Verifier};

const DEADLINE: Duration = Duration::from_secs(1);

/// Feeds bytes to every decoder; a decoder may refuse them in any way but a panic.
fn decode_everything(bytes: &[u8]) {
    let _ = proto::PublishRequest::decode(bytes).map(PublishRequest::from_proto);
    let _ = proto::PublishReply::decode(bytes).map(|m| PublishReply::from_proto(&m));
    let _ = proto::LookupRequest::decode(bytes).map(LookupRequest::from_proto);
    let _ = proto::LookupReply::decode(bytes).map(|m| LookupReply::from_proto(&m));
    let _ = proto::FetchRequest::decode(bytes).map(|m| FetchRequest::from_proto(m, DEADLINE));
    let _ = proto::FetchMessage::decode(bytes).map(FetchEvent::from_proto);
    let _ = proto::GenerateRequest::decode(bytes).map(|m| GenerateRequest::from_proto(m, DEADLINE));
    let _ = proto::GenerateMessage::decode(bytes).map(GenerateEvent::from_proto);
}

fn context_id() -> impl Strategy<Value = ContextId> {
    any::<[u8; 32]>().prop_map(ContextId::from_bytes)
}

fn fingerprint() -> impl Strategy<Value = ModelFingerprint> {
    any::<[u8; 32]>().prop_map(ModelFingerprint::from_bytes)
}

fn variant() -> impl Strategy<Value = Variant> {
    ("[a-z_]{1,20}", option::of(any::<[u8; 32]>()))
        .prop_map(|(alignment, bridge)| Variant { alignment, bridge })
}

fn shape() -> impl Strategy<Value = KvShape> {
    (1..100_usize, 1..64_usize, 1..512_usize).prop_map(|(num_layers, num_kv_heads, head_dim)| {
        KvShape {
            num_layers,
            num_kv_heads,
            head_dim,
        }
    })
}

fn header() -> impl Strategy<Value = FetchHeader> {
    let spec = (
        fingerprint(),
        shape(),
        0..100_usize,
        0..1000_usize,
        1..1000_usize,
        any::<bool>(),
    )
        .prop_map(
            |(fingerprint, shape, first_layer, start, len, pre)| BlockSpec {
                fingerprint,
                shape,
                first_layer,
                positions: start..start + len,
                rope: if pre { KeyRope::Pre } else { KeyRope::Post },
            },
        );
    (spec, "[a-z]{1,20}", any::<(bool, u64, u64, u64)>()).prop_map(
        |(spec, codec, (store_hit, queue_ns, cloud_compute_ns, align_ns))| FetchHeader {
            spec,
            codec,
            store_hit,
            queue_ns,
            cloud_compute_ns,
            align_ns,
        },
    )
}

fn chunk() -> impl Strategy<Value = FetchChunk> {
    (
        (0..100_usize, 0..1000_usize, 1..300_usize),
        "[a-z]{1,20}",
        any::<u8>(),
        vec(any::<u8>(), 0..200),
        any::<u64>(),
    )
        .prop_map(
            |((layer, start, len), codec, level, payload, encode_ns)| FetchChunk {
                chunk: KvChunk::seal(layer, start..start + len, codec, level, payload),
                encode_ns,
            },
        )
}

fn fetch_event() -> impl Strategy<Value = FetchEvent> {
    prop_oneof![
        header().prop_map(FetchEvent::Header),
        chunk().prop_map(FetchEvent::Chunk),
        any::<(u64, u64, [u8; 32], u64)>().prop_map(|(chunks, payload_bytes, hash, encode_ns)| {
            FetchEvent::Trailer(FetchTrailer {
                chunks,
                payload_bytes,
                hash,
                encode_ns,
            })
        }),
    ]
}

fn generate_event() -> impl Strategy<Value = GenerateEvent> {
    let reason = prop_oneof![
        Just(FinishReason::EndOfSequence),
        Just(FinishReason::MaxTokens),
        Just(FinishReason::ContextFull),
    ];
    prop_oneof![
        (
            0..5000_usize,
            0..5000_usize,
            any::<(bool, u64, u64, u64, u64)>()
        )
            .prop_map(
                |(context_tokens, prompt_tokens, rest)| GenerateEvent::Started(GenerateStarted {
                    context_tokens,
                    prompt_tokens,
                    store_hit: rest.0,
                    tokenise_ns: rest.1,
                    queue_ns: rest.2,
                    cloud_compute_ns: rest.3,
                    prompt_prefill_ns: rest.4,
                })
            ),
        (0..5000_usize, any::<u32>(), ".{0,12}", any::<u64>()).prop_map(
            |(index, id, text, step_ns)| GenerateEvent::Token(GenerateToken {
                index,
                id,
                text,
                step_ns
            })
        ),
        (reason, 0..5000_usize).prop_map(|(reason, output_tokens)| GenerateEvent::Finished(
            GenerateFinished {
                reason,
                output_tokens
            }
        )),
    ]
}

fn sampling() -> impl Strategy<Value = Sampling> {
    prop_oneof![
        Just(Sampling::Greedy),
        (0.01..5.0_f64, 0.01..=1.0_f64, any::<u64>()).prop_map(|(temperature, top_p, seed)| {
            Sampling::Draw {
                temperature,
                top_p,
                seed,
            }
        }),
    ]
}

/// Through bytes and back, as the network does it.
fn over_the_wire<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        decode_everything(&bytes);
    }

    /// Damage to real messages reaches deeper than noise does.
    #[test]
    fn damaged_messages_never_panic(
        event in fetch_event(),
        token in generate_event(),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        for mut bytes in [
            event.into_proto().unwrap().encode_to_vec(),
            token.into_proto().unwrap().encode_to_vec(),
        ] {
            let at = at.index(bytes.len());
            bytes[at] = value;
            decode_everything(&bytes);
            decode_everything(&bytes[..at]);
        }
    }

    /// A change to any byte of a chunk is noticed, unless it is to its timing or re-encodes the
    /// same content.
    #[test]
    fn damaged_chunks_are_noticed(
        sent in chunk(),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let mut bytes = FetchEvent::Chunk(sent.clone()).into_proto().unwrap().encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(Ok(FetchEvent::Chunk(got))) =
            proto::FetchMessage::decode(bytes.as_slice()).map(FetchEvent::from_proto)
        {
            prop_assert!(got.chunk == sent.chunk || got.chunk.verify().is_err());
        }
    }

    #[test]
    fn context_messages_round_trip(
        model in fingerprint(),
        id in context_id(),
        variant in variant(),
        shape in shape(),
        template in ".{0,40}",
        text in ".{0,40}",
        ids in vec(any::<u32>(), 0..40),
        tokens in 1..100_000_usize,
        computed in any::<bool>(),
    ) {
        for content in [ContextContent::SystemText(text.clone()), ContextContent::Tokens(ids.clone())] {
            let request = PublishRequest { model, template: template.clone(), content };
            let wire = over_the_wire(&request.clone().into_proto());
            prop_assert_eq!(PublishRequest::from_proto(wire).unwrap(), request);
        }
        let reply = PublishReply { context_id: id, context_tokens: tokens };
        let wire = over_the_wire(&reply.into_proto().unwrap());
        prop_assert_eq!(PublishReply::from_proto(&wire).unwrap(), reply);
        let request = LookupRequest { context_id: id, variant };
        let wire = over_the_wire(&request.clone().into_proto());
        prop_assert_eq!(LookupRequest::from_proto(wire).unwrap(), request);
        let entry = ContextEntry { computed, shape, fingerprint: model, tokens };
        for reply in [LookupReply { found: None }, LookupReply { found: Some(entry) }] {
            let wire = over_the_wire(&reply.into_proto().unwrap());
            prop_assert_eq!(LookupReply::from_proto(&wire).unwrap(), reply);
        }
    }

    #[test]
    fn requests_round_trip(
        context_id in context_id(),
        variant in variant(),
        codec in ".{1,40}",
        chunk_tokens in 1..100_000_usize,
        first_layer in 0..100_usize,
        history in proptest::collection::vec((".{0,20}", ".{0,20}"), 0..3),
        prompt in ".{0,40}",
        sampling in sampling(),
        max_tokens in 1..100_000_usize,
    ) {
        let fetch = FetchRequest { context_id, variant, codec, chunk_tokens, first_layer, deadline: DEADLINE };
        let wire = over_the_wire(&fetch.clone().into_proto().unwrap());
        prop_assert_eq!(FetchRequest::from_proto(wire, DEADLINE).unwrap(), fetch);
        let generate = GenerateRequest { context_id, history, prompt, sampling, max_tokens, deadline: DEADLINE };
        let wire = over_the_wire(&generate.clone().into_proto().unwrap());
        prop_assert_eq!(GenerateRequest::from_proto(wire, DEADLINE).unwrap(), generate);
    }

    #[test]
    fn events_round_trip(event in fetch_event(), token in generate_event()) {
        let wire = over_the_wire(&event.clone().into_proto().unwrap());
        prop_assert_eq!(FetchEvent::from_proto(wire).unwrap(), event);
        let wire = over_the_wire(&token.clone().into_proto().unwrap());
        prop_assert_eq!(GenerateEvent::from_proto(wire).unwrap(), token);
    }

    /// Any order of well-formed messages is accepted or refused, never a panic, and a stream
    /// counts as complete only after a trailer.
    #[test]
    fn any_order_of_events_is_harmless(
        events in vec(fetch_event(), 0..12),
        tokens in vec(generate_event(), 0..12),
    ) {
        let mut fetch = crate::verify::FetchVerifier::new(0, 256, "a".to_owned());
        for event in events {
            let is_trailer = matches!(event, FetchEvent::Trailer(_));
            let _ = fetch.accept(event.into_proto().unwrap());
            prop_assert!(!fetch.is_complete() || is_trailer);
        }
        let mut generate = crate::verify::GenerateVerifier::new(4);
        for token in tokens {
            let _ = generate.accept(token.into_proto().unwrap());
        }
        prop_assert!(generate.received() <= 4);
    }
}

#[test]
fn senseless_fields_are_refused_by_name() {
    let header = |spoil: fn(&mut proto::Header)| {
        let mut header = proto::Header {
            fingerprint: vec![1; 32],
            shape: Some(proto::Shape {
                num_layers: 2,
                num_kv_heads: 2,
                head_dim: 64,
            }),
            tokens_end: 10,
            key_rope: proto::KeyRope::Pre.into(),
            codec: "identity".to_owned(),
            ..Default::default()
        };
        spoil(&mut header);
        let event = Some(proto::fetch_message::Event::Header(header));
        FetchEvent::from_proto(proto::FetchMessage { event }).map_err(|e| e.to_string())
    };
    assert!(header(|_| {}).is_ok());
    type Case = (&'static str, fn(&mut proto::Header));
    let cases: [Case; 8] = [
        ("fingerprint has 31 bytes", |h| h.fingerprint.truncate(31)),
        ("shape is missing", |h| h.shape = None),
        ("num_layers is 0", |h| {
            h.shape.as_mut().unwrap().num_layers = 0;
        }),
        ("head_dim is 4294967295", |h| {
            h.shape.as_mut().unwrap().head_dim = u32::MAX;
        }),
        ("token range 10..10 is empty", |h| h.tokens_start = 10),
        ("tokens_end is 4294967295", |h| h.tokens_end = u32::MAX),
        ("key_rope 7 is not known", |h| h.key_rope = 7),
        ("codec has 0 bytes", |h| h.codec.clear()),
    ];
    for (expected, spoil) in cases {
        let error = header(spoil).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let draw = |temperature, top_p| {
        GenerateRequest::from_proto(
            proto::GenerateRequest {
                context_id: vec![0; 32],
                max_tokens: 1,
                sampling: Some(proto::generate_request::Sampling::Draw(proto::Draw {
                    temperature,
                    top_p,
                    seed: 0,
                })),
                ..Default::default()
            },
            DEADLINE,
        )
    };
    assert!(draw(0.7, 0.9).is_ok());
    for (temperature, top_p) in [
        (0.0, 0.9),
        (f64::NAN, 0.9),
        (0.7, 0.0),
        (0.7, 1.1),
        (0.7, f64::NAN),
    ] {
        assert!(draw(temperature, top_p).is_err(), "{temperature} {top_p}");
    }
}
