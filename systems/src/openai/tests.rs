//! The client against a server that says exactly what each test wants.

use super::client::{ApiError, ChatEvent, Client, Endpoint};
use super::message::{ChatRequest, Message, Role, Usage};
use celslm_model::Sampling;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::Duration;
use tokio::runtime::Runtime;

const KEY: &str = "sk-very-secret";

/// What a server does with one connection.
enum Act {
    Say(Vec<u8>),
    Wait(Duration),
}

/// Serves each of the scripts to one connection, and tells what was asked.
fn server(scripts: Vec<Vec<Act>>) -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (asked, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for script in scripts {
            let Ok((mut stream, _)) = listener.accept() else {
                return;
            };
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !complete(&request) {
                match stream.read(&mut buffer) {
                    Ok(length @ 1..) => request.extend_from_slice(&buffer[..length]),
                    _ => break,
                }
            }
            let _ = asked.send(String::from_utf8_lossy(&request).into_owned());
            for act in script {
                match act {
                    // The client may have had enough.
                    Act::Say(bytes) => drop(stream.write_all(&bytes)),
                    Act::Wait(time) => std::thread::sleep(time),
                }
            }
        }
    });
    (addr, requests)
}

fn complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.parse::<usize>().ok())?
    });
    body.len() >= length.unwrap_or(0)
}

fn answer(status: &str, kind: &str, body: &[u8]) -> Vec<Act> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    vec![Act::Say([head.as_bytes(), body].concat())]
}

fn stream(body: &str) -> Vec<Act> {
    answer(
        "200 OK",
        "text/event-stream; charset=utf-8",
        body.as_bytes(),
    )
}

fn delta(text: &str) -> String {
    format!(
        "data: {}\n\n",
        serde_json::json!({"choices": [{"delta": {"content": text}}]})
    )
}

const STOP: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn endpoint(addr: SocketAddr) -> Endpoint {
    Endpoint {
        base_url: format!("http://{addr}/v1/"),
        via: None,
        model: "large".to_owned(),
        api_key_env: None,
        ready_path: None,
    }
}

fn request() -> ChatRequest<'static> {
    let message = |role, content| Message { role, content };
    ChatRequest {
        messages: vec![
            message(Role::System, "the \"doc\""),
            message(Role::User, "why?"),
        ],
        sampling: Sampling::Greedy,
        seed: u64::MAX,
        max_tokens: 5,
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

type Outcome = Result<(Vec<ChatEvent>, Option<String>), ApiError>;

fn ask(client: &Client, patience: Duration) -> Outcome {
    runtime().block_on(async {
        let mut stream = client.chat(&request(), patience).await?;
        let mut events = Vec::new();
        while let Some(event) = stream.next().await? {
            events.push(event);
        }
        assert!(stream.next().await?.is_none(), "the end is the end");
        assert!(stream.uplink_payload_bytes() > 0);
        Ok((events, stream.finish_reason().map(str::to_owned)))
    })
}

/// What comes of one script.
fn outcome(script: Vec<Act>) -> Outcome {
    let (addr, _requests) = server(vec![script]);
    let client = Client::with_key(&endpoint(addr), Some(KEY.to_owned())).unwrap();
    ask(&client, Duration::from_secs(20))
}

#[track_caller]
fn fails(script: Vec<Act>, kind: &str, part: &str) {
    let error = outcome(script).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error}");
    assert!(!error.to_string().contains(KEY), "{error}");
}

#[test]
fn an_answer_streams() {
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,\"x\":1}}\n\n";
    let body = [
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\n\n",
        ": keep-alive\n\n",
        "data: {\"choices\":[{\"delta\":{\"reasoning\":\"hm\",\"content\":null}}]}\n\n",
        &delta("a"),
        &delta(" ü"),
        STOP,
        usage,
        DONE,
        "data: not read any more\n\n",
    ]
    .concat();
    let (addr, requests) = server(vec![stream(&body)]);
    let client = Client::with_key(&endpoint(addr), Some(KEY.to_owned())).unwrap();
    let (events, finish) = ask(&client, Duration::from_secs(20)).unwrap();
    let counted = Usage {
        prompt_tokens: Some(9),
        completion_tokens: Some(2),
    };
    assert_eq!(
        events,
        [
            ChatEvent::Reasoning,
            ChatEvent::Text("a".to_owned()),
            ChatEvent::Text(" ü".to_owned()),
            ChatEvent::Usage(counted),
        ]
    );
    assert_eq!(finish.as_deref(), Some("stop"));
    let asked = requests.recv().unwrap();
    assert!(
        asked.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"),
        "{asked}"
    );
    assert!(
        asked.contains(&format!("authorization: Bearer {KEY}\r\n")),
        "{asked}"
    );
    let (_, body) = asked.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        body,
        serde_json::json!({
            "model": "large", "stream": true, "stream_options": {"include_usage": true},
            "messages": [{"role": "system", "content": "the \"doc\""}, {"role": "user", "content": "why?"}],
            "max_tokens": 5, "temperature": 0.0, "top_p": 1.0, "seed": 0x7fff_ffff,
        })
    );
}

#[test]
fn refusals_are_told_apart() {
    let body = format!("{{\"error\":\n \"key {KEY} is wrong\"}}");
    for (status, kind) in [
        ("400 Bad Request", "refused"),
        ("401 Unauthorized", "unauthorised"),
        ("403 Forbidden", "unauthorised"),
        ("404 Not Found", "not_found"),
        ("429 Too Many Requests", "overloaded"),
        ("500 Internal Server Error", "server_error"),
        ("502 Bad Gateway", "server_error"),
        ("503 Service Unavailable", "overloaded"),
    ] {
        let script = answer(status, "application/json", body.as_bytes());
        fails(script, kind, "[the API key] is wrong");
    }
    // Endless and empty explanations are shown as far as there is a point.
    let long = "x".repeat(1 << 20);
    let error = outcome(answer("500 Oh", "text/plain", long.as_bytes())).unwrap_err();
    assert!(error.to_string().len() < 600, "{error}");
    fails(
        answer("418 Teapot", "text/plain", b""),
        "refused",
        "says 418",
    );
}

#[test]
fn a_redirect_is_not_followed() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = elsewhere.local_addr().unwrap();
    let script = vec![Act::Say(
        format!("HTTP/1.1 307 Away\r\nlocation: http://{target}/\r\ncontent-length: 0\r\n\r\n")
            .into_bytes(),
    )];
    fails(script, "refused", "says 307");
    elsewhere.set_nonblocking(true).unwrap();
    assert!(elsewhere.accept().is_err(), "the key went elsewhere");
}

#[test]
fn bytes_that_make_no_sense_are_errors() {
    fails(
        stream("data: {\"choices\": [}\n\n"),
        "malformed",
        "expected",
    );
    fails(stream("data: {\"choices\": 3}\n\n"), "malformed", "choices");
    fails(stream("data: \u{7f}\n\n"), "malformed", "");
    fails(
        answer(
            "200 OK",
            "text/event-stream",
            b"data: {\"choices\":[{\"delta\":{\"content\":\"\xff\"}}]}\n\n",
        ),
        "malformed",
        "",
    );
    fails(
        answer(
            "200 OK",
            "application/json",
            b"{\"choices\":[{\"message\":{}}]}",
        ),
        "malformed",
        "without streaming",
    );
    fails(
        vec![Act::Say(b"what?\r\n\r\n".to_vec())],
        "connect",
        "broke",
    );
    fails(vec![], "connect", "broke");
    let reported = "data: {\"error\":{\"message\":\"out of memory\"}}\n\n";
    fails(
        stream(&[&delta("a"), reported].concat()),
        "server_error",
        "out of memory",
    );
}

#[test]
fn an_answer_that_is_cut_off_is_an_error() {
    // Closed in good order, in the middle of what was announced, and within a chunk.
    fails(stream(&delta("a")), "interrupted", "no reason to finish");
    fails(stream(""), "interrupted", "no reason to finish");
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
    let short = format!("{head}content-length: 9999\r\n\r\n{}", delta("a"));
    fails(vec![Act::Say(short.into_bytes())], "interrupted", "");
    let chunked = format!(
        "{head}transfer-encoding: chunked\r\n\r\nff\r\n{}",
        delta("a")
    );
    fails(vec![Act::Say(chunked.into_bytes())], "interrupted", "");
    // A reason to finish is enough, with or without the marker at the end.
    let (events, finish) = outcome(stream(&[&delta("a"), STOP].concat())).unwrap();
    assert_eq!((events.len(), finish.as_deref()), (1, Some("stop")));
}

#[test]
fn lengths_are_bounded() {
    let line = format!("data: {}", "x".repeat(2 << 20));
    fails(stream(&line), "too_large", "an event");
    let many = delta(&"x".repeat(1 << 19)).repeat(160);
    fails(stream(&many), "too_large", "more than");
}

#[test]
fn every_wait_ends() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n".to_vec();
    let long = Duration::from_secs(3);
    for script in [
        vec![Act::Wait(long)],
        vec![Act::Say(head.clone()), Act::Wait(long)],
        vec![
            Act::Say(head),
            Act::Say(delta("a").into_bytes()),
            Act::Wait(long),
        ],
    ] {
        let (addr, _requests) = server(vec![script]);
        let client = Client::with_key(&endpoint(addr), None).unwrap();
        let error = ask(&client, Duration::from_millis(300)).unwrap_err();
        assert_eq!(error.kind(), "deadline", "{error}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let client = Client::with_key(&endpoint(nobody), None).unwrap();
    let error = ask(&client, Duration::from_secs(5)).unwrap_err();
    assert_eq!(error.kind(), "connect", "{error}");
    assert!(error.to_string().contains("no connection"), "{error}");
}

#[test]
fn arbitrary_answers_never_panic() {
    // A cheap generator of its own: what matters is that the bytes are odd, and the same each time.
    let mut state = 7u64;
    let mut random = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize % below
    };
    let pieces: [&[u8]; 12] = [
        b"data: ",
        b"\n\n",
        b"\r",
        b"{\"choices\":[{\"delta\":{\"content\":",
        b"\"a\"",
        b"}}]}",
        b"[DONE]",
        b"\xff\xfe",
        b"null",
        b"{\"usage\":{\"completion_tokens\":18446744073709551615}}",
        b"\0",
        b"{{{",
    ];
    let scripts: Vec<Vec<Act>> = (0..200)
        .map(|_| {
            let length = random(12);
            let body: Vec<u8> = (0..length)
                .flat_map(|_| pieces[random(pieces.len())].to_vec())
                .collect();
            answer("200 OK", "text/event-stream", &body)
        })
        .collect();
    let (addr, _requests) = server(scripts);
    let client = Client::with_key(&endpoint(addr), None).unwrap();
    for _ in 0..200 {
        // Either outcome is fine; each must come.
        let _ = ask(&client, Duration::from_secs(20));
    }
}

#[test]
fn readiness_is_asked_for() {
    let ok = || answer("200 OK", "application/json", b"{}");
    let wait = || answer("503 Loading", "application/json", b"loading");
    let (addr, requests) = server(vec![wait(), ok(), ok()]);
    let ready = |endpoint: &Endpoint| {
        let client = Client::new(endpoint).unwrap();
        runtime().block_on(client.ready(Duration::from_secs(20)))
    };
    assert_eq!(ready(&endpoint(addr)).unwrap_err().kind(), "overloaded");
    ready(&endpoint(addr)).unwrap();
    let health = Endpoint {
        ready_path: Some("/health?deep=1".to_owned()),
        ..endpoint(addr)
    };
    ready(&health).unwrap();
    let asked: Vec<String> = requests.iter().collect();
    assert!(
        asked[1].starts_with("GET /v1/models HTTP/1.1"),
        "{}",
        asked[1]
    );
    assert!(
        asked[2].starts_with("GET /health?deep=1 HTTP/1.1"),
        "{}",
        asked[2]
    );
}

#[test]
fn the_link_may_lie_between() {
    for base_url in [
        "http://cluster.example:81/a/v1",
        "http://192.0.2.1/v1",
        "http://[::1]:81/v1",
    ] {
        let (addr, requests) = server(vec![stream(&[STOP, DONE].concat())]);
        let there = Endpoint {
            base_url: base_url.to_owned(),
            via: Some(addr),
            ..endpoint(addr)
        };
        let client = Client::with_key(&there, None).unwrap();
        ask(&client, Duration::from_secs(20)).unwrap();
        let asked = requests.recv().unwrap();
        let (authority, path) = base_url["http://".len()..].split_once('/').unwrap();
        assert!(
            asked.starts_with(&format!("POST /{path}/chat/completions ")),
            "{asked}"
        );
        assert!(asked.contains(&format!("host: {authority}\r\n")), "{asked}");
    }
}

#[test]
fn endpoints_that_cannot_be_are_refused() {
    let addr = SocketAddr::from(([127, 0, 0, 1], 1));
    let refused = |change: fn(&mut Endpoint)| {
        let mut endpoint = endpoint(addr);
        change(&mut endpoint);
        let error = Client::new(&endpoint).err().expect("it is refused");
        assert_eq!(error.kind(), "config");
        error.to_string()
    };
    refused(|e| e.base_url = "cluster".to_owned());
    refused(|e| e.base_url = "unix:/run/x".to_owned());
    refused(|e| e.ready_path = Some("http://elsewhere/".to_owned()));
    let missing = refused(|e| e.api_key_env = Some("CELSLM_NO_SUCH_KEY".to_owned()));
    assert!(missing.contains("CELSLM_NO_SUCH_KEY"), "{missing}");
    refused(|e| {
        e.base_url = "https://127.0.0.1/v1".to_owned();
        e.via = Some(SocketAddr::from(([127, 0, 0, 1], 1)));
    });
    assert!(Client::with_key(&endpoint(addr), Some("a\nb".to_owned())).is_err());
}
