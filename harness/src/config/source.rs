//! Where a configuration came from, so that every fault can be shown in place.

use std::path::Path;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use super::{Config, ConfigError, EvaluationFile, Override};

/// The text of an experiment file with the overrides that were put on it.
#[derive(Debug, Clone)]
pub struct ConfigSource {
    path: String,
    text: String,
    overrides: Vec<Override>,
}

impl ConfigSource {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError::Read`].
    pub fn read(path: &Path, overrides: Vec<Override>) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::new(&path.display().to_string(), &text, overrides))
    }

    /// A configuration given as text; `path` is what errors call it.
    #[must_use]
    pub fn new(path: &str, text: &str, overrides: Vec<Override>) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            overrides,
        }
    }

    /// The typed, checked configuration.
    ///
    /// # Errors
    /// The first fault: syntax, unknown key, unknown method, wrong type, or a value out of range.
    pub fn parse(&self) -> Result<Config, ConfigError> {
        let config: Config = self.typed()?;
        config.validate(self)?;
        Ok(config)
    }

    /// Whether this is an experiment in process, which [`ConfigSource::parse_evaluation`] reads.
    #[must_use]
    pub fn is_evaluation(&self) -> bool {
        toml::from_str::<toml::Table>(&self.text)
            .is_ok_and(|table| table.contains_key("evaluation"))
    }

    /// As [`ConfigSource::parse`], for an experiment in process.
    ///
    /// # Errors
    /// As [`ConfigSource::parse`].
    pub fn parse_evaluation(&self) -> Result<EvaluationFile, ConfigError> {
        let file: EvaluationFile = self.typed()?;
        file.validate(self)?;
        Ok(file)
    }

    fn typed<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        // The file is read by itself first, for the sake of its line numbers; a required key that
        // only a --set brings is the one fault that must wait.
        let table: toml::Table = toml::from_str(&self.text).map_err(|e| self.in_file(&e))?;
        match toml::from_str::<T>(&self.text) {
            Ok(config) if self.overrides.is_empty() => Ok(config),
            Ok(_) => self.overridden(table),
            Err(e) if e.message().starts_with("missing field") && !self.overrides.is_empty() => {
                self.overridden(table)
            }
            Err(e) => Err(self.in_file(&e)),
        }
    }

    /// The text as another typed file of the same manners, such as a device profile.
    ///
    /// # Errors
    /// Syntax, an unknown key, or a wrong type, with its place.
    pub fn read_as<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|e| self.in_file(&e))
    }

    fn overridden<T: DeserializeOwned>(&self, base: toml::Table) -> Result<T, ConfigError> {
        let mut table = base.clone();
        for set in &self.overrides {
            set.apply(&mut table)?;
        }
        let fault = match T::deserialize(table) {
            Ok(config) => return Ok(config),
            Err(fault) => fault,
        };
        // The fault is charged to the first override after which it stays.
        let mut table = base;
        let mut culprit = self.overrides.len() - 1;
        for (index, set) in self.overrides.iter().enumerate() {
            set.apply(&mut table)?;
            match T::deserialize(table.clone()) {
                Err(e) if e.message() == fault.message() => {
                    culprit = index;
                    break;
                }
                _ => {}
            }
        }
        if fault.message().starts_with("missing field") {
            // No override can take a key away, so this one is the file's own.
            return Err(ConfigError::File {
                path: self.path.clone(),
                message: fault.message().to_owned(),
            });
        }
        Err(ConfigError::Set {
            argument: self.overrides[culprit].argument().to_owned(),
            message: fault.message().to_owned(),
        })
    }

    /// An error about the value at a dotted path such as `grid.links.2`: it names the last
    /// override that set the value, or else its place in the file, or else the file.
    #[must_use]
    pub fn error_at(&self, path: &str, message: impl Into<String>) -> ConfigError {
        let steps: Vec<String> = path.split('.').map(str::to_owned).collect();
        let message = format!("{path}: {}", message.into());
        if let Some(set) = self.overrides.iter().rev().find(|o| o.covers(&steps)) {
            return ConfigError::Set {
                argument: set.argument().to_owned(),
                message,
            };
        }
        match locate(&self.text, &steps) {
            Some(span) => self.at(span, message),
            None => ConfigError::File {
                path: self.path.clone(),
                message,
            },
        }
    }

    fn in_file(&self, error: &toml::de::Error) -> ConfigError {
        match error.span() {
            // A missing field of the whole document spans all of it, which points nowhere.
            Some(span) if span.len() < self.text.trim_end().len().max(1) => {
                self.at(span, error.message().to_owned())
            }
            _ => ConfigError::File {
                path: self.path.clone(),
                message: error.message().to_owned(),
            },
        }
    }

    fn at(&self, span: std::ops::Range<usize>, message: String) -> ConfigError {
        let start = floor_char_boundary(&self.text, span.start);
        let before = &self.text[..start];
        let line = before.matches('\n').count() + 1;
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let content = self.text[line_start..].lines().next().unwrap_or_default();
        let column = self.text[line_start..start].chars().count() + 1;
        let end = floor_char_boundary(&self.text, span.end).min(line_start + content.len());
        let width = self
            .text
            .get(start..end)
            .map_or(1, |t| t.chars().count())
            .max(1);
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        let pad = " ".repeat(column - 1);
        let marks = "^".repeat(width);
        ConfigError::At {
            path: self.path.clone(),
            line,
            column,
            message,
            excerpt: format!("{gutter} |\n{number} | {content}\n{gutter} | {pad}{marks}"),
        }
    }
}

fn floor_char_boundary(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

/// Byte range of the value at `steps`, or of the closest thing around it that the file holds.
fn locate(text: &str, steps: &[String]) -> Option<std::ops::Range<usize>> {
    let document = DeTable::parse(text).ok()?;
    let (first, rest) = steps.split_first()?;
    let mut at = document.get_ref().get(first.as_str())?;
    for step in rest {
        let next = match at.get_ref() {
            DeValue::Table(table) => table.get(step.as_str()),
            DeValue::Array(entries) => step.parse::<usize>().ok().and_then(|i| entries.get(i)),
            _ => None,
        };
        match next {
            Some(next) => at = next,
            None => break,
        }
    }
    Some(at.span())
}

#[cfg(test)]
mod tests {
    use crate::fixture::parse;

    const GOOD: &str = "[experiment]\nname = 'x'\n";

    fn fault(text: &str, sets: &[&str]) -> String {
        parse(text, sets).unwrap_err().to_string()
    }

    #[test]
    fn faults_are_shown_in_place() {
        let file = |rest: &str| fault(&format!("{GOOD}{rest}"), &[]);
        insta::assert_snapshot!("unknown_key", file("[generation]\nmax_token = 3\n"));
        insta::assert_snapshot!("unknown_section", file("[generaton]\nmax_tokens = 3\n"));
        insta::assert_snapshot!(
            "unknown_system",
            file("[grid]\nsystems = ['edge_only', 'edge']\n")
        );
        insta::assert_snapshot!(
            "unknown_codec",
            file("[grid]\ncodecs = ['identity', 'gzip']\n")
        );
        insta::assert_snapshot!(
            "unknown_codec_key",
            file("[grid]\ncodecs = [{ group_quant = { bit = 4 } }]\n")
        );
        insta::assert_snapshot!("unknown_alignment", file("[grid]\nalignments = ['deep']\n"));
        insta::assert_snapshot!("unknown_schedule", file("[grid]\nschedules = ['eager']\n"));
        insta::assert_snapshot!("unknown_contract", file("[grid]\ncontracts = ['hot']\n"));
        insta::assert_snapshot!("unknown_dataset", file("[grid]\ndatasets = ['squid']\n"));
        insta::assert_snapshot!("unknown_backend", file("[deployment]\nbackend = 'netem'\n"));
        insta::assert_snapshot!(
            "unknown_scenario_key",
            file("[[scenario]]\nname = 'a'\ncodec = ['identity']\n")
        );
        insta::assert_snapshot!("wrong_type", file("[generation]\nmax_tokens = 'many'\n"));
        insta::assert_snapshot!("out_of_range", file("[generation]\nmax_tokens = 0\n"));
        insta::assert_snapshot!(
            "temperature",
            file("[generation]\nsampling = { nucleus = { temperature = 0.0, top_p = 0.9 } }\n")
        );
        insta::assert_snapshot!("twice", file("[grid]\nlinks = ['a', 'b', 'a']\n"));
        insta::assert_snapshot!("empty_list", file("[[scenario]]\nname = 'a'\nlinks = []\n"));
        insta::assert_snapshot!(
            "two_scenarios",
            file("[[scenario]]\nname = 'a'\n[[scenario]]\nname = 'a'\n")
        );
        insta::assert_snapshot!(
            "chunk_tokens",
            file("[grid]\nchunk_tokens = [64, 50]\ncodecs = [{ group_quant = { bits = 4 } }]\n")
        );
        insta::assert_snapshot!("syntax", file("[grid\n"));
        insta::assert_snapshot!("no_name", fault("[experiment]\nseed = 1\n", &[]));
        insta::assert_snapshot!("no_experiment", fault("[models]\n", &[]));
        insta::assert_snapshot!("bad_name", fault("[experiment]\nname = '../x'\n", &[]));
    }

    #[test]
    fn faults_of_overrides_name_the_argument() {
        insta::assert_snapshot!(
            "set_unknown_key",
            fault(GOOD, &["seed=1", "generation.tokens=3"])
        );
        insta::assert_snapshot!("set_unknown_section", fault(GOOD, &["gird.links=['none']"]));
        insta::assert_snapshot!(
            "set_wrong_type",
            fault(GOOD, &["generation.max_tokens=many"])
        );
        insta::assert_snapshot!(
            "set_out_of_range",
            fault(GOOD, &["generation.max_tokens=0"])
        );
        insta::assert_snapshot!("set_unknown_method", fault(GOOD, &["grid.codecs=['gzip']"]));
    }

    #[test]
    fn overrides_replace_values_before_validation() {
        let config = parse(GOOD, &["generation.max_tokens=9", "experiment.seed=3"]).unwrap();
        assert_eq!(
            (config.generation.max_tokens, config.experiment.seed),
            (9, 3)
        );
        // A required key may come from the command line alone.
        assert_eq!(
            parse("", &["experiment.name=y"]).unwrap().experiment.name,
            "y"
        );
        // A bad value in the file can be mended there, and a good one spoilt.
        let bad = format!("{GOOD}[generation]\nmax_tokens = 0\n");
        assert!(parse(&bad, &["generation.max_tokens=1"]).is_ok());
    }

    #[test]
    fn the_last_of_several_overrides_wins() {
        let sets = ["generation.max_tokens=9", "generation.max_tokens=4"];
        assert_eq!(parse(GOOD, &sets).unwrap().generation.max_tokens, 4);
    }
}
