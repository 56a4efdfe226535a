//! The protocol over real sockets, against a cloud that plays a script.

mod fixture;

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::atomic::Ordering,
    time::Duration,
};

use celslm_wire::{
    CloudClient, ContextContent, FetchEvent, FetchStream, GRPC_FRAME_BYTES, GenerateEvent, Limits,
    LookupReply, LookupRequest, PublishRequest, ServiceError, TokenStream, WireError, bind, serve,
};
use fixture::{
    FakeCloud, PATIENCE, Running, Script, chunk, chunks, connect, context_id, fetch_of,
    fetch_request, fingerprint, finished, generate_request, good_fetch, good_generation, header,
    local, pair, started, token, wait_cancelled,
};

#[path = "fixture/raw.rs"]
mod raw;

const FETCH: &str = "/celslm.v1.ContextStore/Fetch";
const GENERATE: &str = "/celslm.v1.Generation/Generate";

/// Reads to the end: the good events, and the error if there was one.
async fn drain(stream: &mut FetchStream) -> (Vec<FetchEvent>, Option<WireError>) {
    let mut events = Vec::new();
    loop {
        let next = tokio::time::timeout(PATIENCE, stream.next()).await;
        match next.expect("the stream must not hang") {
            Some(Ok(event)) => events.push(event),
            Some(Err(error)) => {
                assert!(stream.next().await.is_none(), "nothing follows an error");
                return (events, Some(error));
            }
            None => return (events, None),
        }
    }
}

async fn drain_tokens(stream: &mut TokenStream) -> (Vec<GenerateEvent>, Option<WireError>) {
    let mut events = Vec::new();
    loop {
        let next = tokio::time::timeout(PATIENCE, stream.next()).await;
        match next.expect("the stream must not hang") {
            Some(Ok(event)) => events.push(event),
            Some(Err(error)) => return (events, Some(error)),
            None => return (events, None),
        }
    }
}

/// Fetches a script and returns what came of it.
async fn fetched(script: Vec<FetchEvent>) -> (Vec<FetchEvent>, Option<WireError>) {
    let (client, _server) = pair(
        FakeCloud::fetching(Script::events(script)),
        Limits::default(),
    )
    .await;
    drain(&mut client.fetch(fetch_request(4)).await.unwrap()).await
}

fn publish_request(text: &str) -> PublishRequest {
    PublishRequest {
        model: fingerprint(),
        template: "chatml".to_owned(),
        content: ContextContent::SystemText(text.to_owned()),
    }
}

#[tokio::test]
async fn all_calls_round_trip() {
    let cloud = FakeCloud::default();
    let (client, _server) = pair(cloud.clone(), Limits::default()).await;

    let request = publish_request("the shared manual");
    let reply = client.publish(request.clone()).await.unwrap();
    assert_eq!(reply.value, cloud.publish.clone().unwrap());
    assert_eq!(*cloud.seen.published.lock().unwrap(), [request]);
    // Fields of 32, 6 and 17 bytes with two bytes of tag and length each, and the frame.
    assert_eq!(
        reply.traffic.uplink_payload_bytes,
        34 + 8 + 19 + GRPC_FRAME_BYTES
    );
    assert_eq!(
        reply.traffic.downlink_payload_bytes,
        34 + 2 + GRPC_FRAME_BYTES
    );

    let request = LookupRequest {
        context_id: context_id(),
        variant: fetch_request(4).variant,
    };
    let reply = client.lookup(request.clone()).await.unwrap();
    assert_eq!(reply.value, cloud.lookup);
    assert_eq!(*cloud.seen.looked_up.lock().unwrap(), [request]);

    let mut stream = client.fetch(fetch_request(4)).await.unwrap();
    let (events, error) = drain(&mut stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(events, good_fetch(10, 4, 32));
    let mut seen = cloud.seen.fetched.lock().unwrap().pop().unwrap();
    assert!(seen.deadline <= PATIENCE && seen.deadline > PATIENCE / 2);
    seen.deadline = PATIENCE;
    assert_eq!(seen, fetch_request(4));

    let mut stream = client.generate(generate_request(3)).await.unwrap();
    let (events, error) = drain_tokens(&mut stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(events, good_generation(3));
    let prompt_bytes = generate_request(3).prompt.len() as u64;
    assert!(stream.uplink_payload_bytes() > prompt_bytes);
    let (_, mut seen) = cloud.seen.generated.lock().unwrap().pop().unwrap();
    seen.deadline = PATIENCE;
    assert_eq!(seen, generate_request(3));
}

/// What a cloud's fairness rests on.
#[tokio::test]
async fn a_connection_is_one_caller_and_two_connections_are_two() {
    let cloud = FakeCloud::default();
    let (first, server) = pair(cloud.clone(), Limits::default()).await;
    let second = connect(server.addr, Limits::default()).await;
    for client in [&first, &second, &first] {
        drain_tokens(&mut client.generate(generate_request(3)).await.unwrap()).await;
    }
    let seen = cloud.seen.generated.lock().unwrap();
    let callers: Vec<u32> = seen.iter().map(|(caller, _)| *caller).collect();
    assert_eq!(callers[0], callers[2]);
    assert_ne!(callers[0], callers[1]);
}

#[tokio::test]
async fn an_unknown_context_is_a_reply_not_an_error() {
    let cloud = FakeCloud {
        lookup: LookupReply { found: None },
        ..FakeCloud::default()
    };
    let (client, _server) = pair(cloud, Limits::default()).await;
    let request = LookupRequest {
        context_id: context_id(),
        variant: fetch_request(4).variant,
    };
    assert_eq!(client.lookup(request).await.unwrap().value.found, None);
}

/// The counts agree with those of a peer that knows nothing of the crate's codec.
#[tokio::test]
async fn payload_bytes_are_the_bytes_of_the_messages() {
    let (client, server) = pair(FakeCloud::default(), Limits::default()).await;
    let mut stream = client.fetch(fetch_request(4)).await.unwrap();
    drain(&mut stream).await;

    let channel = raw::channel(server.addr, 1 << 20).await;
    let request = raw::fetch_bytes(&fetch_request(4));
    assert_eq!(
        stream.uplink_payload_bytes(),
        request.len() as u64 + GRPC_FRAME_BYTES
    );
    let mut messages = raw::call(&channel, FETCH, request, None).await.unwrap();
    let mut bytes = 0;
    while let Some(message) = messages.message().await.unwrap() {
        bytes += message.len() as u64 + GRPC_FRAME_BYTES;
    }
    assert_eq!(stream.downlink_payload_bytes(), bytes);
    assert!(bytes > 9 * 32);
}

#[tokio::test]
async fn large_streams_pass_through_small_windows() {
    let limits = Limits {
        stream_window_bytes: 65_535,
        connection_window_bytes: 65_535,
        ..Limits::default()
    };
    // 3 layers × 8 chunks of 400,000 bytes, each six windows long.
    let events = good_fetch(800, 100, 400_000);
    let (client, _server) = pair(FakeCloud::fetching(Script::events(events.clone())), limits).await;
    let mut stream = client.fetch(fetch_request(100)).await.unwrap();
    let (got, error) = drain(&mut stream).await;
    assert!(error.is_none(), "{error:?}");
    assert!(got == events, "content must arrive unchanged");
    assert!(stream.downlink_payload_bytes() > 24 * 400_000);
}

/// A reader that pauses holds the producer back: memory is bounded by window and channels.
#[tokio::test]
async fn a_slow_reader_holds_the_producer_back() {
    let limits = Limits {
        stream_window_bytes: 65_535,
        connection_window_bytes: 65_535,
        ..Limits::default()
    };
    let cloud = FakeCloud::fetching(Script::events(good_fetch(4000, 10, 20_000)));
    let (client, _server) = pair(cloud.clone(), limits).await;
    let mut stream = client.fetch(fetch_request(10)).await.unwrap();
    assert!(matches!(
        stream.next().await,
        Some(Ok(FetchEvent::Header(_)))
    ));
    tokio::time::sleep(Duration::from_millis(300)).await;
    // 1,202 messages in all. The window takes three, hyper's send buffer about 20, the codec and
    // channels a few, and socket buffers are behind the window.
    let sent = cloud.seen.sent.load(Ordering::SeqCst);
    assert!(
        sent < 100,
        "{sent} messages were accepted while nobody read"
    );
}

#[tokio::test]
async fn parallel_calls_share_a_connection() {
    let events = good_fetch(400, 10, 5_000);
    let cloud = FakeCloud::fetching(Script::events(events.clone()));
    let (client, _server) = pair(cloud, Limits::default()).await;
    // The first stream stays unread, with everything it can buffer in flight.
    let _idle = client.fetch(fetch_request(10)).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        tasks
            .spawn(async move { drain(&mut client.fetch(fetch_request(10)).await.unwrap()).await });
    }
    while let Some(result) = tasks.join_next().await {
        let (got, error) = result.unwrap();
        assert!(error.is_none(), "{error:?}");
        assert!(got == events);
    }
}

#[tokio::test]
async fn oversize_messages_are_refused_on_every_side() {
    let small = Limits {
        max_message_bytes: 4096,
        max_text_bytes: 2048,
        ..Limits::default()
    };

    // The client does not send them.
    let (client, server) = pair(FakeCloud::default(), small.clone()).await;
    let error = client
        .publish(publish_request(&"x".repeat(3000)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "too_large");
    assert!(
        error.to_string().contains("max_text_bytes is 2048"),
        "{error}"
    );

    // The server refuses the text of a client with wider limits, and a message before decoding it.
    let wide = connect(server.addr, Limits::default()).await;
    let error = wide
        .publish(publish_request(&"x".repeat(3000)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "invalid_argument");
    let error = wide
        .publish(publish_request(&"x".repeat(30_000)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "too_large");

    // The server does not send them.
    let cloud = FakeCloud::fetching(Script::events(good_fetch(10, 4, 5000)));
    let (client, _server) = pair(cloud.clone(), small.clone()).await;
    let (_, error) = drain(&mut client.fetch(fetch_request(4)).await.unwrap()).await;
    let error = error.unwrap();
    assert_eq!(error.kind(), "internal");
    assert!(error.to_string().contains("chunk_tokens"), "{error}");

    // The client does not accept them.
    let server = Running::start(cloud, Limits::default()).await;
    let client = connect(server.addr, small).await;
    let (events, error) = drain(&mut client.fetch(fetch_request(4)).await.unwrap()).await;
    assert_eq!(events.len(), 1);
    assert_eq!(error.unwrap().kind(), "too_large");
}

#[tokio::test]
async fn a_corrupted_chunk_is_named() {
    let mut chunks = chunks(10, 4, 32);
    chunks[4].chunk.payload[7] ^= 1;
    let (events, error) = fetched(fetch_of(10, chunks)).await;
    assert_eq!(events.len(), 5, "header and the four good chunks before it");
    let error = error.unwrap();
    assert_eq!(error.kind(), "corrupt_chunk");
    match error {
        WireError::CorruptChunk { layer, tokens, .. } => assert_eq!((layer, tokens), (2, 4..8)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn disorder_is_refused() {
    let good = chunks(10, 4, 32);
    let swapped = |a: usize, b: usize| {
        let mut chunks = good.clone();
        chunks.swap(a, b);
        fetch_of(10, chunks)
    };
    let without = |at: usize| {
        let mut chunks = good.clone();
        chunks.remove(at);
        fetch_of(10, chunks)
    };
    let mut repeated = good.clone();
    repeated.insert(3, good[2].clone());
    let mut extra = good.clone();
    extra.push(chunk(4, 0..4, 32));
    let mut beyond = good.clone();
    beyond[2] = chunk(1, 8..12, 32);
    let mut wide = good.clone();
    wide.splice(0..2, [chunk(1, 0..8, 32)]);
    let mut false_trailer = good_fetch(10, 4, 32);
    if let Some(FetchEvent::Trailer(trailer)) = false_trailer.last_mut() {
        trailer.payload_bytes += 1;
    }
    let mut false_hash = good_fetch(10, 4, 32);
    if let Some(FetchEvent::Trailer(trailer)) = false_hash.last_mut() {
        trailer.hash[0] ^= 1;
    }
    let mut no_header = good_fetch(10, 4, 32);
    no_header.remove(0);
    let mut two_headers = good_fetch(10, 4, 32);
    two_headers.insert(1, FetchEvent::Header(header(10)));
    let mut other_layer = good_fetch(10, 4, 32);
    if let FetchEvent::Header(header) = &mut other_layer[0] {
        header.spec.first_layer = 0;
    }
    let mut other_codec = good_fetch(10, 4, 32);
    if let FetchEvent::Header(header) = &mut other_codec[0] {
        "zip".clone_into(&mut header.codec);
    }
    let cases = [
        ("tokens reordered", swapped(0, 1)),
        ("layers reordered", swapped(0, 3)),
        ("first missing", without(0)),
        ("last missing", without(8)),
        ("repeated", fetch_of(10, repeated)),
        ("a layer too many", fetch_of(10, extra)),
        ("beyond the tokens", fetch_of(10, beyond)),
        ("more than chunk_tokens", fetch_of(10, wide)),
        ("payload bytes of the trailer", false_trailer),
        ("hash of the trailer", false_hash),
        ("no header", no_header),
        ("two headers", two_headers),
        ("another first layer", other_layer),
        ("another codec", other_codec),
    ];
    for (case, events) in cases {
        let (_, error) = fetched(events).await;
        let error = error.unwrap_or_else(|| panic!("{case} must fail"));
        assert_eq!(error.kind(), "out_of_order", "{case}: {error}");
    }
}

#[tokio::test]
async fn disorder_among_tokens_is_refused() {
    let cases = [
        vec![token(0), finished(1)],
        vec![started(), started(), finished(0)],
        vec![started(), token(1), finished(1)],
        vec![started(), token(0), token(0), finished(2)],
        vec![started(), token(0), finished(2)],
        vec![
            started(),
            token(0),
            token(1),
            token(2),
            token(3),
            finished(4),
        ],
    ];
    for events in cases {
        let cloud = FakeCloud::generating(Script::events(events.clone()));
        let (client, _server) = pair(cloud, Limits::default()).await;
        let (_, error) =
            drain_tokens(&mut client.generate(generate_request(3)).await.unwrap()).await;
        assert_eq!(error.unwrap().kind(), "out_of_order", "{events:?}");
    }
}

#[tokio::test]
async fn a_service_that_stops_early_is_an_internal_error() {
    let mut events = good_fetch(10, 4, 32);
    events.pop();
    let (got, error) = fetched(events).await;
    assert_eq!(got.len(), 10);
    assert_eq!(error.unwrap().kind(), "internal");
}

#[tokio::test]
async fn service_errors_keep_kind_and_text() {
    let text = "grüße: 100 % of \"it\"\nand more".to_owned();
    let errors = [
        ServiceError::NotFound(text.clone()),
        ServiceError::Unsupported(text.clone()),
        ServiceError::InvalidArgument(text.clone()),
        ServiceError::Overloaded(text.clone()),
        ServiceError::Unavailable(text.clone()),
        ServiceError::DeadlineExceeded(text.clone()),
        ServiceError::Cancelled(text.clone()),
        ServiceError::Internal(text),
    ];
    for error in errors {
        let mut late: Vec<_> = good_fetch(10, 4, 32).into_iter().take(3).map(Ok).collect();
        late.push(Err(error.clone()));
        let cloud = FakeCloud {
            publish: Err(error.clone()),
            fetch: Script::Send(late),
            generate: Script::Fail(error.clone()),
            ..FakeCloud::default()
        };
        let (client, _server) = pair(cloud, Limits::default()).await;
        let reported = |got: WireError| match got {
            WireError::Service(got) => assert_eq!(got, error),
            other => panic!("{other:?}"),
        };
        reported(client.publish(publish_request("x")).await.unwrap_err());
        reported(client.generate(generate_request(3)).await.unwrap_err());
        let (events, late) = drain(&mut client.fetch(fetch_request(4)).await.unwrap()).await;
        assert_eq!(events.len(), 3);
        reported(late.unwrap());
    }
}

/// Set for the process that plays the cloud in the test below.
const CLOUD_PROCESS: &str = "CELSLM_WIRE_TEST_CLOUD";
const CLOUD_ADDR: &str = "cloud listens on ";

/// The cloud of the next test: serves until it is killed.
#[tokio::test]
#[ignore = "started by a_cloud_killed_mid_stream_is_an_interruption as a process of its own"]
async fn cloud_process() {
    if std::env::var_os(CLOUD_PROCESS).is_none() {
        return;
    }
    let some: Vec<_> = good_fetch(10, 4, 32).into_iter().take(4).map(Ok).collect();
    let cloud = FakeCloud {
        fetch: Script::Hold(some),
        generate: Script::Hold(vec![Ok(started()), Ok(token(0)), Ok(token(1))]),
        ..FakeCloud::default()
    };
    let listener = bind(local()).await.unwrap();
    println!("\n{CLOUD_ADDR}{}", listener.local_addr().unwrap());
    // Not forever, in case the parent dies before it kills this process.
    serve(
        listener,
        cloud,
        Limits::default(),
        tokio::time::sleep(3 * PATIENCE),
    )
    .await
    .unwrap();
}

/// A real process and a real kill: a runtime that is shut down in this process says goodbye.
#[tokio::test]
async fn a_cloud_killed_mid_stream_is_an_interruption() {
    let mut cloud = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cloud_process", "--ignored", "--nocapture"])
        .env(CLOUD_PROCESS, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let addr = BufReader::new(cloud.stdout.take().unwrap())
        .lines()
        .find_map(|line| line.unwrap().strip_prefix(CLOUD_ADDR)?.parse().ok())
        .expect("the cloud must state its address");

    let client = connect(addr, Limits::default()).await;
    let mut fetch = client.fetch(fetch_request(4)).await.unwrap();
    let mut generate = client.generate(generate_request(3)).await.unwrap();
    for _ in 0..4 {
        fetch.next().await.unwrap().unwrap();
    }
    for _ in 0..3 {
        generate.next().await.unwrap().unwrap();
    }
    cloud.kill().unwrap();
    cloud.wait().unwrap();

    let (_, error) = drain(&mut fetch).await;
    match error.unwrap() {
        WireError::Interrupted {
            call: "fetch",
            received: 3,
            ..
        } => {}
        other => panic!("{other:?}"),
    }
    let (_, error) = drain_tokens(&mut generate).await;
    let error = error.unwrap();
    assert_eq!(error.kind(), "interrupted", "{error}");
    assert!(error.to_string().contains("after 2 tokens"), "{error}");

    // What is called next finds nobody there; a call may still go out on the dying connection.
    loop {
        let error = client.publish(publish_request("x")).await.unwrap_err();
        match error.kind() {
            "connect" => break,
            "interrupted" => {}
            _ => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn dropping_a_stream_cancels_the_work() {
    // Waiting for more, with the client reading.
    let cloud = FakeCloud::fetching(Script::Hold(vec![Ok(FetchEvent::Header(header(10)))]));
    let (client, _server) = pair(cloud.clone(), Limits::default()).await;
    let mut stream = client.fetch(fetch_request(4)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(*cloud.cancelled.borrow(), 0);
    drop(stream);
    wait_cancelled(&cloud.cancelled).await;

    // Held back by flow control.
    let limits = Limits {
        stream_window_bytes: 65_535,
        connection_window_bytes: 65_535,
        ..Limits::default()
    };
    let cloud = FakeCloud::fetching(Script::events(good_fetch(4000, 10, 20_000)));
    let (client, _server) = pair(cloud.clone(), limits).await;
    let mut stream = client.fetch(fetch_request(10)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    wait_cancelled(&cloud.cancelled).await;

    // Before the service has answered at all.
    let cloud = FakeCloud::generating(Script::Stall);
    let (client, _server) = pair(cloud.clone(), Limits::default()).await;
    let call = tokio::time::timeout(
        Duration::from_millis(200),
        client.generate(generate_request(3)),
    );
    assert!(call.await.is_err(), "the call must still be waiting");
    wait_cancelled(&cloud.cancelled).await;
}

#[tokio::test]
async fn the_client_enforces_its_deadline() {
    let deadline = Duration::from_millis(150);
    let cloud = FakeCloud {
        fetch: Script::Stall,
        generate: Script::Hold(vec![Ok(started()), Ok(token(0))]),
        ..FakeCloud::default()
    };
    let (client, _server) = pair(cloud, Limits::default()).await;
    let mut request = fetch_request(4);
    request.deadline = deadline;
    let error = client.fetch(request).await.unwrap_err();
    assert_eq!(error.kind(), "deadline", "{error}");

    let mut request = generate_request(3);
    request.deadline = deadline;
    let mut stream = client.generate(request).await.unwrap();
    let (events, error) = drain_tokens(&mut stream).await;
    assert_eq!(events.len(), 2);
    match error.unwrap() {
        WireError::Deadline {
            call: "generate",
            received: 1,
            deadline: d,
        } => assert_eq!(d, deadline),
        other => panic!("{other:?}"),
    }
}

/// With a client that enforces nothing itself.
#[tokio::test]
async fn the_server_honours_the_deadline() {
    let request = raw::fetch_bytes(&fetch_request(10));

    let cloud = FakeCloud::fetching(Script::Hold(vec![Ok(FetchEvent::Header(header(10)))]));
    let server = Running::start(cloud.clone(), Limits::default()).await;
    let channel = raw::channel(server.addr, 65_535).await;
    let mut stream = raw::call(&channel, FETCH, request.clone(), Some("200m"))
        .await
        .unwrap();
    assert!(stream.message().await.unwrap().is_some());
    let status = tokio::time::timeout(PATIENCE, stream.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    wait_cancelled(&cloud.cancelled).await;

    // The same when the client has stopped reading, so that nobody polls the response.
    let cloud = FakeCloud::fetching(Script::events(good_fetch(4000, 10, 20_000)));
    let server = Running::start(cloud.clone(), Limits::default()).await;
    let channel = raw::channel(server.addr, 65_535).await;
    let _stream = raw::call(&channel, FETCH, request.clone(), Some("200m"))
        .await
        .unwrap();
    wait_cancelled(&cloud.cancelled).await;

    // A call without a deadline gets the server's own.
    let cloud = FakeCloud::fetching(Script::Hold(vec![]));
    let limits = Limits {
        request_deadline_ms: 200,
        ..Limits::default()
    };
    let server = Running::start(cloud.clone(), limits).await;
    let channel = raw::channel(server.addr, 65_535).await;
    let mut stream = raw::call(&channel, FETCH, request.clone(), None)
        .await
        .unwrap();
    let status = tokio::time::timeout(PATIENCE, stream.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);

    let status = raw::call(&channel, FETCH, request, Some("soon"))
        .await
        .err()
        .unwrap();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn senseless_requests_are_refused_and_the_server_lives() {
    let (client, server) = pair(FakeCloud::default(), Limits::default()).await;
    let channel = raw::channel(server.addr, 65_535).await;
    let mut short_id = raw::fetch_bytes(&fetch_request(4));
    short_id[1] = 31;
    let cases: [(&'static str, Vec<u8>); 5] = [
        (FETCH, vec![]),
        (FETCH, vec![0xff; 64]),
        (FETCH, short_id),
        (GENERATE, vec![]),
        (GENERATE, vec![0x12, 0x02, 0xc3, 0x28]), // a prompt that is not UTF-8
    ];
    for (path, bytes) in cases {
        let status = raw::call(&channel, path, bytes.clone(), None)
            .await
            .err()
            .unwrap();
        assert_eq!(
            status.code(),
            tonic::Code::InvalidArgument,
            "{bytes:?}: {status}"
        );
    }
    for path in [
        "/celslm.v1.ContextStore/Forget",
        "/celslm.v2.ContextStore/Fetch",
        "/",
    ] {
        let status = raw::call(&channel, path, vec![], None).await.err().unwrap();
        assert_eq!(status.code(), tonic::Code::Unimplemented, "{path}");
    }
    client.publish(publish_request("still here")).await.unwrap();
}

#[tokio::test]
async fn calls_beyond_the_bound_are_refused() {
    let cloud = FakeCloud::fetching(Script::Hold(vec![Ok(FetchEvent::Header(header(10)))]));
    let limits = Limits {
        max_server_calls: 1,
        ..Limits::default()
    };
    let (client, _server) = pair(cloud.clone(), limits).await;
    let open = client.fetch(fetch_request(4)).await.unwrap();
    let error = client.publish(publish_request("x")).await.unwrap_err();
    assert_eq!(error.kind(), "overloaded");
    drop(open);
    wait_cancelled(&cloud.cancelled).await;
    client.publish(publish_request("x")).await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let held = bind(local()).await.unwrap();
    let addr = held.local_addr().unwrap();
    let error = bind(addr).await.unwrap_err();
    assert_eq!(error.kind(), "address_in_use");
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
    drop(held);
    bind(addr).await.unwrap();
    // An address that belongs to another machine (RFC 5737).
    let error = bind(([192, 0, 2, 1], 0).into()).await.unwrap_err();
    assert_eq!(error.kind(), "bind");
}

#[tokio::test]
async fn connecting_waits_for_a_cloud_that_is_late_and_gives_up_at_the_deadline() {
    let held = bind(local()).await.unwrap();
    let addr = held.local_addr().unwrap();
    drop(held);
    let error = CloudClient::connect(addr, Limits::default(), Duration::from_millis(200))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "connect");
    assert!(error.to_string().contains("refused"), "{error}");

    let late = tokio::spawn(CloudClient::connect(addr, Limits::default(), PATIENCE));
    tokio::time::sleep(Duration::from_millis(150)).await;
    let listener = bind(addr).await.unwrap();
    tokio::spawn(serve(
        listener,
        FakeCloud::default(),
        Limits::default(),
        std::future::pending(),
    ));
    let client = late.await.unwrap().unwrap();
    client.publish(publish_request("x")).await.unwrap();
}

#[tokio::test]
async fn shutdown_lets_calls_finish_then_ends_the_rest() {
    // A stream that can finish does.
    let events = good_fetch(400, 10, 5_000);
    let cloud = FakeCloud::fetching(Script::events(events.clone()));
    let limits = Limits {
        stream_window_bytes: 65_535,
        ..Limits::default()
    };
    let (client, mut server) = pair(cloud, limits).await;
    let mut stream = client.fetch(fetch_request(10)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    server.stop.take().unwrap().send(()).unwrap();
    let (rest, error) = drain(&mut stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(rest.len() + 1, events.len());
    tokio::time::timeout(PATIENCE, server.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();

    // One that cannot is ended, and says why.
    let cloud = FakeCloud::fetching(Script::Hold(vec![Ok(FetchEvent::Header(header(10)))]));
    let limits = Limits {
        drain_timeout_ms: 100,
        ..Limits::default()
    };
    let (client, mut server) = pair(cloud.clone(), limits).await;
    let mut stream = client.fetch(fetch_request(4)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    server.stop.take().unwrap().send(()).unwrap();
    let (_, error) = drain(&mut stream).await;
    let error = error.unwrap();
    assert_eq!(error.kind(), "unavailable", "{error}");
    wait_cancelled(&cloud.cancelled).await;
    tokio::time::timeout(PATIENCE, server.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    bind(server.addr).await.unwrap();
}

#[tokio::test]
async fn dropping_the_server_ends_its_calls() {
    let cloud = FakeCloud::fetching(Script::Hold(vec![Ok(FetchEvent::Header(header(10)))]));
    let (client, server) = pair(cloud.clone(), Limits::default()).await;
    let mut stream = client.fetch(fetch_request(4)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    server.task.abort();
    let (_, error) = drain(&mut stream).await;
    assert_eq!(error.unwrap().kind(), "unavailable");
    wait_cancelled(&cloud.cancelled).await;
}

#[tokio::test]
async fn invalid_limits_are_refused_before_anything_is_opened() {
    let limits = Limits {
        max_message_bytes: 1,
        ..Limits::default()
    };
    let error = CloudClient::connect(local(), limits.clone(), PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "invalid_limits");
    let listener = bind(local()).await.unwrap();
    let served = serve(
        listener,
        FakeCloud::default(),
        limits,
        std::future::pending(),
    );
    assert_eq!(served.await.unwrap_err().kind(), "invalid_limits");
}
