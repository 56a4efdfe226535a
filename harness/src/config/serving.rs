//! `cloud.serving`: an existing serving engine as the cloud.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, ConfigSource};

/// Port of an engine that the harness starts, unless the configuration names another.
const DEFAULT_PORT: u16 = 8000;

/// What an argument of [`ServingConfig::command`] may stand for.
pub const PLACEHOLDERS: [&str; 5] = ["model_path", "model", "host", "port", "threads"];

/// `cloud.serving`: a server with the OpenAI chat-completions API, either one that runs already
/// (`base_url`) or one that the harness starts at the cloud's end of the link (`command`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServingConfig {
    /// The API's root at a server that runs already, such as `https://cluster.example/v1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// A program with its arguments, to be started in the cloud's namespace. `{model_path}` is
    /// the cloud model's file, `{model}` the name below, `{host}` and `{port}` where it is to
    /// listen, `{threads}` the cloud's compute threads. Its API's root must be `/v1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// The model's name at the server.
    pub model: String,
    /// Name of the environment variable that holds the API key, if the server wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// Port that the started program listens on; 8000 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What answers with success once the server is ready, as a path from the server's root;
    /// `models` under the API's root if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_path: Option<String>,
    /// Longest wait for that, in seconds.
    #[serde(default = "default_ready_timeout_s")]
    pub ready_timeout_s: u64,
}

fn default_ready_timeout_s() -> u64 {
    120
}

impl ServingConfig {
    /// Port that the started program listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(DEFAULT_PORT)
    }

    /// Longest wait for the server to be ready.
    #[must_use]
    pub fn ready_timeout(&self) -> Duration {
        Duration::from_secs(self.ready_timeout_s)
    }

    pub(super) fn validate(
        &self,
        source: &ConfigSource,
        external: bool,
    ) -> Result<(), ConfigError> {
        let fail = |key: &str, message: String| {
            let path = match key {
                "" => "cloud.serving".to_owned(),
                key => format!("cloud.serving.{key}"),
            };
            Err(source.error_at(&path, message))
        };
        match (&self.base_url, &self.command) {
            (None, None) | (Some(_), Some(_)) => {
                return fail(
                    "",
                    "name either base_url (a server that runs already) or command (one to start)"
                        .to_owned(),
                );
            }
            (Some(url), None) => {
                let rest = url
                    .strip_prefix("http://")
                    .or_else(|| url.strip_prefix("https://"));
                let authority = rest.and_then(|rest| rest.split('/').next());
                if authority.is_none_or(str::is_empty) {
                    return fail(
                        "base_url",
                        format!("`{url}` is no http:// or https:// address"),
                    );
                }
                if authority.is_some_and(|authority| authority.contains('@'))
                    || url.contains(['?', '#'])
                {
                    return fail(
                        "base_url",
                        "leave out names, passwords, `?` and `#`; a key goes into the variable that api_key_env names".to_owned(),
                    );
                }
                if self.port.is_some() {
                    return fail("port", "the port is part of base_url".to_owned());
                }
            }
            (None, Some(command)) => {
                if external {
                    return fail(
                        "command",
                        "nodes started by hand have no namespace to start it in: start it by hand and name its base_url".to_owned(),
                    );
                }
                if command.first().is_none_or(String::is_empty) {
                    return fail("command", "name a program".to_owned());
                }
                for (index, argument) in command.iter().enumerate() {
                    if let Some(name) =
                        placeholders(argument).find(|name| !PLACEHOLDERS.contains(name))
                    {
                        return fail(
                            &format!("command.{index}"),
                            format!(
                                "unknown placeholder `{{{name}}}`; known: {}",
                                PLACEHOLDERS.join(", ")
                            ),
                        );
                    }
                }
                if self.port == Some(0) {
                    return fail("port", "0 is outside 1 to 65535".to_owned());
                }
            }
        }
        if self.model.is_empty() {
            return fail("model", "name the model as the server calls it".to_owned());
        }
        if let Some(variable) = &self.api_key_env {
            let mut bytes = variable.bytes();
            let first = bytes
                .next()
                .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
            if !first || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                // What was written there may be the key: it is not repeated.
                return fail(
                    "api_key_env",
                    "this is the name of an environment variable (letters, digits, `_`), not the key itself".to_owned(),
                );
            }
        }
        if self
            .ready_path
            .as_ref()
            .is_some_and(|path| !path.starts_with('/'))
        {
            return fail("ready_path", "begin the path with `/`".to_owned());
        }
        if !(1..=24 * 60 * 60).contains(&self.ready_timeout_s) {
            return fail(
                "ready_timeout_s",
                format!("{} is outside 1 to 86400", self.ready_timeout_s),
            );
        }
        Ok(())
    }
}

/// The names in braces; braces around anything else, such as JSON, are text.
fn placeholders(argument: &str) -> impl Iterator<Item = &str> {
    argument.split('{').skip(1).filter_map(|rest| {
        let (name, _) = rest.split_once('}')?;
        let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        named.then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use crate::fixture::parse;

    fn with(serving: &str) -> Result<crate::config::Config, String> {
        let text = format!(
            "[experiment]\nname = 'x'\n[cloud]\nserving = {{ {serving} }}\n[grid]\nsystems = ['cloud_api']\n"
        );
        parse(&text, &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn both_kinds_of_server_parse() {
        let there =
            with("base_url = 'https://host.example:8443/v1', model = 'm', api_key_env = 'MY_KEY'");
        assert_eq!(there.unwrap().cloud.serving.unwrap().ready_timeout_s, 120);
        let started = with(
            "command = ['python3', '-m', 'x', '--json={\"a\": {}}', '--model={model_path}'], model = 'm', port = 9000",
        );
        assert_eq!(started.unwrap().cloud.serving.unwrap().port(), 9000);
    }

    #[test]
    fn faults_are_named() {
        for (serving, part) in [
            ("model = 'm'", "name either base_url"),
            (
                "model = 'm', base_url = 'http://h/v1', command = ['x']",
                "name either base_url",
            ),
            ("model = 'm', base_url = 'ftp://h/v1'", "is no http://"),
            ("model = 'm', base_url = 'http:///v1'", "is no http://"),
            (
                "model = 'm', base_url = 'http://me:pw@h/v1'",
                "leave out names",
            ),
            (
                "model = 'm', base_url = 'http://h/v1', port = 3",
                "part of base_url",
            ),
            ("model = 'm', command = []", "name a program"),
            (
                "model = 'm', command = ['x', '{modelpath}']",
                "known: model_path, model, host",
            ),
            ("model = 'm', command = ['x'], port = 0", "outside 1"),
            ("model = '', command = ['x']", "as the server calls it"),
            (
                "model = 'm', command = ['x'], ready_path = 'v1'",
                "begin the path",
            ),
            (
                "model = 'm', command = ['x'], ready_timeout_s = 0",
                "outside 1",
            ),
            (
                "model = 'm', command = ['x'], ready = 0",
                "unknown field `ready`",
            ),
            ("command = ['x']", "missing field `model`"),
        ] {
            let error = with(serving).unwrap_err();
            assert!(error.contains(part), "{serving}: {error}");
        }
        // A key in the wrong place is not printed by its own error.
        let error =
            with("model = 'm', base_url = 'http://h/v1', api_key_env = 'sk-secret'").unwrap_err();
        assert!(error.contains("not the key itself"), "{error}");
    }

    #[test]
    fn cells_that_cannot_be_are_refused() {
        let refused = |text: &str| {
            parse(&format!("[experiment]\nname = 'x'\n{text}"), &[])
                .unwrap_err()
                .to_string()
        };
        let error = refused("[grid]\nsystems = ['cloud_api']\n");
        assert!(error.contains("[cloud] serving"), "{error}");
        let error = refused(
            "[cloud]\nserving = { model = 'm', command = ['x'] }\n[[scenario]]\nname = 'a'\nsystems = ['cloud_api']\ncontracts = ['cold']\n",
        );
        assert!(error.contains("cannot be emptied"), "{error}");
    }
}
