//! Both ends over a real socket.

use super::{ControlClient, ControlError, ControlListener, Flow, Reply};
use serde::{Deserialize, Serialize};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Command {
    /// Replied to when the next one comes.
    Hold(u32),
    Echo(u32),
    Lose,
    Stop,
}

type Client = ControlClient<Command, String>;

struct Node {
    dir: PathBuf,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Node {
    fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("celslm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let listener = ControlListener::bind(&dir.join("s")).unwrap();
        let thread = std::thread::spawn(move || {
            let mut held: Vec<(u32, Reply<String>)> = Vec::new();
            listener
                .serve(
                    |command, reply| {
                        match command {
                            Command::Hold(n) => {
                                held.push((n, reply));
                                return Flow::Continue;
                            }
                            Command::Echo(n) => reply.send(&format!("echo {n}")),
                            Command::Lose => drop(reply),
                            Command::Stop => {
                                reply.send(&"bye".to_owned());
                                return Flow::Stop;
                            }
                        }
                        for (n, reply) in held.drain(..).rev() {
                            // From another thread, as an engine would.
                            std::thread::spawn(move || reply.send(&format!("held {n}")));
                        }
                        Flow::Continue
                    },
                    |reason| format!("refused: {reason}"),
                )
                .unwrap();
        });
        let thread = Some(thread);
        Self { dir, thread }
    }

    fn connect(&self) -> Client {
        Client::connect(&self.dir.join("s")).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn replies_find_their_commands_in_any_order() {
    let node = Node::start("order");
    let client = node.connect();
    let (sink, outcomes) = channel();
    for n in 0..50 {
        client
            .submit(&Command::Hold(n), u64::from(n), &sink)
            .unwrap();
    }
    assert_eq!(client.call(&Command::Echo(7), PATIENCE).unwrap(), "echo 7");
    let mut tags: Vec<u64> = (0..50)
        .map(|_| {
            let (tag, outcome) = outcomes.recv_timeout(PATIENCE).unwrap();
            assert_eq!(outcome.unwrap(), format!("held {tag}"));
            tag
        })
        .collect();
    tags.sort_unstable();
    assert!(tags.into_iter().eq(0..50));
    assert_eq!(client.call(&Command::Stop, PATIENCE).unwrap(), "bye");
}

#[test]
fn a_lost_a_late_and_an_ended_command_each_have_their_error() {
    let node = Node::start("errors");
    let client = node.connect();
    let lost = client.call(&Command::Lose, PATIENCE).unwrap_err();
    assert!(lost.to_string().contains("given up"), "{lost}");
    let late = client
        .call(&Command::Hold(1), Duration::from_millis(20))
        .unwrap_err();
    assert!(matches!(late, ControlError::Timeout { .. }), "{late}");
    // The late reply, when it comes, is nobody's.
    assert_eq!(client.call(&Command::Echo(2), PATIENCE).unwrap(), "echo 2");
    // What waits when the node ends has an outcome too.
    let (sink, outcomes) = channel();
    client.submit(&Command::Hold(3), 3, &sink).unwrap();
    client.call(&Command::Stop, PATIENCE).unwrap();
    let (tag, outcome) = outcomes.recv_timeout(PATIENCE).unwrap();
    assert_eq!(tag, 3);
    assert!(outcome.is_err());
    drop(node);
    let closed = client.call(&Command::Echo(1), PATIENCE).unwrap_err();
    let ended = matches!(
        closed,
        ControlError::Closed { .. } | ControlError::Io { .. }
    );
    assert!(ended, "{closed}");
}

#[test]
fn a_line_that_is_no_command_is_refused_and_foreign_speech_ends_the_connection() {
    let node = Node::start("refused");
    let mut raw = UnixStream::connect(node.dir.join("s")).unwrap();
    raw.write_all(b"{\"id\":9,\"body\":{\"jump\":1}}\n")
        .unwrap();
    let mut reader = BufReader::new(raw.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"id\":9,\"body\":\"refused: not a command"));
    raw.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    line.clear();
    assert_eq!(reader.read_line(&mut line).unwrap(), 0);
    // The node serves the next controller.
    assert_eq!(
        node.connect().call(&Command::Stop, PATIENCE).unwrap(),
        "bye"
    );
}
