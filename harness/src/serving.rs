//! Serving engines behind the OpenAI API: how one is started, where it is asked, and which of
//! the known ones this machine has.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use celslm_systems::openai::Endpoint;

use crate::clock;
use crate::config::ServingConfig;

/// Python that the llama.cpp server is looked for in; `python3` if the variable is not set.
pub const LLAMA_PYTHON_VARIABLE: &str = "CELSLM_LLAMA_SERVER_PYTHON";
/// Longest wait for a Python to say whether it has a module.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
const PROBE_POLL: Duration = Duration::from_millis(20);

/// The command of an engine with its placeholders filled in: program and arguments.
#[must_use]
pub fn command_line(
    serving: &ServingConfig,
    model_path: &Path,
    host: IpAddr,
    threads: usize,
) -> Vec<String> {
    let values = [
        ("{model_path}", model_path.to_string_lossy().into_owned()),
        ("{model}", serving.model.clone()),
        ("{host}", host.to_string()),
        ("{port}", serving.port().to_string()),
        ("{threads}", threads.to_string()),
    ];
    serving
        .command
        .iter()
        .flatten()
        .map(|argument| fill(argument, &values))
        .collect()
}

/// One pass from left to right, so that a value with braces in it stays as it is.
fn fill(argument: &str, values: &[(&str, String)]) -> String {
    let mut filled = String::new();
    let mut rest = argument;
    'next: while let Some(at) = rest.find('{') {
        filled.push_str(&rest[..at]);
        rest = &rest[at..];
        for (name, value) in values {
            if let Some(after) = rest.strip_prefix(name) {
                filled.push_str(value);
                rest = after;
                continue 'next;
            }
        }
        filled.push('{');
        rest = &rest[1..];
    }
    filled + rest
}

/// How an edge asks the engine; `via` is where the relay listens, if there is one.
#[must_use]
pub fn endpoint(serving: &ServingConfig, cloud: IpAddr, via: Option<SocketAddr>) -> Endpoint {
    let started = || format!("http://{}/v1", SocketAddr::new(cloud, serving.port()));
    Endpoint {
        base_url: serving.base_url.clone().unwrap_or_else(started),
        via,
        model: serving.model.clone(),
        api_key_env: serving.api_key_env.clone(),
        ready_path: serving.ready_path.clone(),
    }
}

/// Host and port of an address that the configuration has checked.
#[must_use]
pub fn host_and_port(base_url: &str) -> Option<(String, u16)> {
    let (rest, default) = match base_url.strip_prefix("https://") {
        Some(rest) => (rest, 443),
        None => (base_url.strip_prefix("http://")?, 80),
    };
    let authority = rest.split('/').next()?;
    // The colons of an IPv6 address are within brackets.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, default),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// Where a program is, looked for as the system does.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A serving engine that the harness knows how to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// Its name.
    pub name: &'static str,
    /// `cloud.serving.command` that starts it, if it is here.
    pub command: Option<Vec<String>>,
}

/// The known engines and whether this machine has them. Takes seconds: a Python is asked.
#[must_use]
pub fn engines() -> Vec<Engine> {
    let owned = |arguments: &[&str]| arguments.iter().map(|&a| a.to_owned()).collect::<Vec<_>>();
    let python = llama_python();
    vec![
        Engine {
            name: "llama.cpp (llama_cpp.server)",
            command: python.map(|python| [vec![python], owned(&LLAMA_PYTHON_ARGUMENTS)].concat()),
        },
        Engine {
            name: "llama.cpp (llama-server)",
            command: program("llama-server").map(|_| {
                owned(&[
                    "llama-server",
                    "--model",
                    "{model_path}",
                    "--host",
                    "{host}",
                    "--port",
                    "{port}",
                    "--threads",
                    "{threads}",
                ])
            }),
        },
        Engine {
            name: "vLLM",
            command: program("vllm").map(|_| {
                owned(&[
                    "vllm", "serve", "{model}", "--host", "{host}", "--port", "{port}",
                ])
            }),
        },
    ]
}

const LLAMA_PYTHON_ARGUMENTS: [&str; 12] = [
    "-m",
    "llama_cpp.server",
    "--model",
    "{model_path}",
    "--host",
    "{host}",
    "--port",
    "{port}",
    "--n_threads",
    "{threads}",
    "--n_ctx",
    "8192",
];

/// A Python that has llama.cpp's server.
#[must_use]
pub fn llama_python() -> Option<String> {
    let python = std::env::var(LLAMA_PYTHON_VARIABLE).unwrap_or_else(|_| "python3".to_owned());
    let mut child = Command::new(&python)
        .args(["-c", "import llama_cpp.server.app"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let give_up = clock::now() + PROBE_TIMEOUT;
    let found = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.success(),
            Ok(None) if clock::now() < give_up => std::thread::sleep(PROBE_POLL),
            _ => {
                // It ends with this, or has ended.
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
        }
    };
    found.then_some(python)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serving(text: &str) -> ServingConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn placeholders_are_filled_in_once() {
        let config = serving(
            "model = '{port}'\nport = 9\ncommand = ['x', '{model}', '--at={host}:{port}', '{\"a\":{}}', '{threads}{', '{model_path}']",
        );
        let line = command_line(
            &config,
            Path::new("/m/{host}.gguf"),
            "10.0.0.2".parse().unwrap(),
            3,
        );
        assert_eq!(
            line,
            [
                "x",
                "{port}",
                "--at=10.0.0.2:9",
                "{\"a\":{}}",
                "3{",
                "/m/{host}.gguf"
            ]
        );
        let endpoint = endpoint(&config, "10.0.0.2".parse().unwrap(), None);
        assert_eq!(endpoint.base_url, "http://10.0.0.2:9/v1");
    }

    #[test]
    fn addresses_are_taken_apart() {
        for (url, expected) in [
            ("http://h/v1", Some(("h", 80))),
            ("https://h.example", Some(("h.example", 443))),
            ("https://h:8443/a/v1", Some(("h", 8443))),
            ("http://[::1]:8000/v1", Some(("::1", 8000))),
            ("http://[::1]/v1", Some(("::1", 80))),
            ("http://h:x/v1", None),
            ("h:1", None),
        ] {
            let expected = expected.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(host_and_port(url), expected, "{url}");
        }
    }
}
