//! The data sets there are, and how one is loaded.

use std::path::Path;

use crate::choice::{Choice, ChoiceConfig};
use crate::config::method_config;
use crate::continuation::{Continuation, ContinuationConfig};
use crate::document::Document;
use crate::embedded::{self, Embedded, EmbeddedConfig};
use crate::error::DatasetError;
use crate::gsm8k::{Gsm8k, Gsm8kConfig};
use crate::needle::{Needle, NeedleConfig};
use crate::recall::{Recall, RecallConfig};
use crate::source;
use crate::squad::{Squad, SquadConfig};

/// The setting that names the folder which relative data paths start from. The
/// value reaches [`load`] as `data_dir`.
pub const DATA_DIR_SETTING: &str = "data_dir";

/// A loaded data set: the drawn documents, with where they come from.
pub trait Dataset: Send + Sync {
    /// Registry name.
    fn name(&self) -> &'static str;
    /// Licence of the text, as an SPDX expression where there is one.
    fn licence(&self) -> &str;
    /// Official home of the data.
    fn source(&self) -> &str;
    /// BLAKE3 (hex) of the whole source, before any draw: the file's bytes, or
    /// every embedded document. With the configuration and the seed it fixes
    /// the documents.
    fn hash(&self) -> &str;
    /// The drawn documents, each with at least one question.
    fn documents(&self) -> &[Document];
}

/// One line of the data set registry.
#[derive(Debug, Clone, Copy)]
pub struct DatasetEntry {
    /// Name in configurations and results.
    pub name: &'static str,
    /// One sentence for `celslm ls`.
    pub about: &'static str,
    /// Licence of the data, in words.
    pub licence: &'static str,
    /// Where the data come from.
    pub source: &'static str,
}

/// Every data set, in the order they are listed to a user.
pub const DATASETS: &[DatasetEntry] = &[
    DatasetEntry {
        name: "embedded",
        about: "invented manuals, policies, rules and run-books with private questions, compiled in",
        licence: embedded::LICENCE,
        source: embedded::SOURCE,
    },
    DatasetEntry {
        name: "squad",
        about: "any file in SQuAD 1.1 or 2.0 format, for example XQuAD; found by a path setting",
        licence: "as stated by the file's publisher",
        source: "the file named by `path`",
    },
    DatasetEntry {
        name: "recall",
        about: "passages of any text, with questions that quote some words and ask for the next",
        licence: source::TEXT_LICENCE,
        source: "the file or folder named by `path`",
    },
    DatasetEntry {
        name: "choice",
        about: "multiple choice behind solved examples, for example ARC and OpenBookQA; for evaluations",
        licence: "as stated by the file's publisher",
        source: "the file named by `path`",
    },
    DatasetEntry {
        name: "gsm8k",
        about: "word problems behind solved examples, scored by the final number; for evaluations",
        licence: "MIT",
        source: "https://github.com/openai/grade-school-math",
    },
    DatasetEntry {
        name: "continuation",
        about: "how likely the text is that follows a stretch of any text; for evaluations",
        licence: source::TEXT_LICENCE,
        source: "the file or folder named by `path`",
    },
    DatasetEntry {
        name: "needle",
        about: "made-up facts at stated depths of texts of several lengths, with a question for each",
        licence: source::TEXT_LICENCE,
        source: "the file or folder named by `path`",
    },
];

/// The registry line of `name`.
///
/// # Errors
/// [`DatasetError::Unknown`], which lists the known names.
pub fn entry(name: &str) -> Result<&'static DatasetEntry, DatasetError> {
    DATASETS
        .iter()
        .find(|e| e.name == name)
        .ok_or_else(|| DatasetError::Unknown {
            registry: "dataset",
            name: name.to_owned(),
            known: DATASETS
                .iter()
                .map(|e| e.name)
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// Which data set to load, and how much of it: `"embedded"`,
/// `{ embedded = { documents = 4 } }` or `{ squad = { path = "…" } }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatasetConfig {
    /// The project's own documents.
    Embedded(EmbeddedConfig),
    /// A file in SQuAD format.
    Squad(SquadConfig),
    /// Passages of plain text.
    Recall(RecallConfig),
    /// Multiple-choice questions.
    Choice(ChoiceConfig),
    /// Word problems.
    Gsm8k(Gsm8kConfig),
    /// Likelihood of the text that follows.
    Continuation(ContinuationConfig),
    /// Made-up facts in a long text.
    Needle(NeedleConfig),
}

method_config!(DatasetConfig, "dataset", {
    "embedded" => Embedded(EmbeddedConfig),
    "squad" => Squad(SquadConfig),
    "recall" => Recall(RecallConfig),
    "choice" => Choice(ChoiceConfig),
    "gsm8k" => Gsm8k(Gsm8kConfig),
    "continuation" => Continuation(ContinuationConfig),
    "needle" => Needle(NeedleConfig),
});

impl DatasetConfig {
    /// Registry name of the data set.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::Squad(_) => "squad",
            Self::Recall(_) => "recall",
            Self::Choice(_) => "choice",
            Self::Gsm8k(_) => "gsm8k",
            Self::Continuation(_) => "continuation",
            Self::Needle(_) => "needle",
        }
    }

    /// The file or folder that it reads; `None` for data that is compiled in.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Embedded(_) => None,
            Self::Squad(settings) => Some(&settings.path),
            Self::Recall(settings) => Some(&settings.path),
            Self::Choice(settings) => Some(&settings.path),
            Self::Gsm8k(settings) => Some(&settings.path),
            Self::Continuation(settings) => Some(&settings.path),
            Self::Needle(settings) => Some(&settings.path),
        }
    }

    /// Why it serves in evaluations only, where it does: what it asks for is no answer that a
    /// system could give and EM and F1 could grade.
    #[must_use]
    pub fn only_in_evaluations(&self) -> Option<&'static str> {
        match self {
            Self::Choice(_) => {
                Some("options are compared by their likelihood, which no system of a run reports")
            }
            Self::Gsm8k(_) => {
                Some("solutions are compared by their final number, which no run does")
            }
            Self::Continuation(_) => {
                Some("only likelihoods count in it, which no system of a run reports")
            }
            Self::Embedded(_) | Self::Squad(_) | Self::Recall(_) | Self::Needle(_) => None,
        }
    }
}

impl Default for DatasetConfig {
    fn default() -> Self {
        Self::Embedded(EmbeddedConfig::default())
    }
}

/// Loads a data set and draws its documents and questions.
///
/// `data_dir` is where relative paths start; `embedded` needs none. The same
/// `config`, `seed` and source give the same documents in the same order, and a
/// larger `documents` or `questions_per_document` begins with the smaller draw.
///
/// # Errors
/// A missing data folder or file, a malformed file (with its location), and a
/// draw of nothing or of more than there is.
pub fn load(
    config: &DatasetConfig,
    data_dir: Option<&Path>,
    seed: u64,
) -> Result<Box<dyn Dataset>, DatasetError> {
    Ok(match config {
        DatasetConfig::Embedded(settings) => Box::new(Embedded::load(settings, seed)?),
        DatasetConfig::Squad(settings) => Box::new(Squad::load(settings, data_dir, seed)?),
        DatasetConfig::Recall(settings) => Box::new(Recall::load(settings, data_dir, seed)?),
        DatasetConfig::Choice(settings) => Box::new(Choice::load(settings, data_dir, seed)?),
        DatasetConfig::Gsm8k(settings) => Box::new(Gsm8k::load(settings, data_dir, seed)?),
        DatasetConfig::Continuation(settings) => {
            Box::new(Continuation::load(settings, data_dir, seed)?)
        }
        DatasetConfig::Needle(settings) => Box::new(Needle::load(settings, data_dir, seed)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        dataset: DatasetConfig,
    }

    fn parse(text: &str) -> Result<DatasetConfig, String> {
        toml::from_str::<Config>(text)
            .map(|c| c.dataset)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn names_and_tables_parse() {
        assert_eq!(
            parse(r#"dataset = "embedded""#).unwrap(),
            DatasetConfig::default()
        );
        assert_eq!(
            parse("dataset = { embedded = { documents = 4, questions_per_document = 2, unanswerable = false } }")
                .unwrap(),
            DatasetConfig::Embedded(EmbeddedConfig {
                documents: Some(4),
                questions_per_document: Some(2),
                unanswerable: false,
            })
        );
        let DatasetConfig::Squad(squad) = parse(
            r#"dataset = { squad = { path = "quality/xquad.en.json", merge_paragraphs = true } }"#,
        )
        .unwrap() else {
            panic!("not squad");
        };
        assert!(squad.merge_paragraphs && squad.unanswerable);
    }

    #[test]
    fn the_table_form_round_trips() {
        let config = parse(r#"dataset = { squad = { path = "a.json", documents = 3 } }"#).unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(
            serde_json::from_str::<DatasetConfig>(&json).unwrap(),
            config
        );
    }

    #[test]
    fn bad_configs_name_the_fault_and_the_place() {
        let unknown = parse(r#"dataset = "squid""#).unwrap_err();
        assert!(
            unknown.contains("unknown dataset `squid`; known: embedded, squad, recall, choice, gsm8k, continuation, needle"),
            "{unknown}"
        );
        assert!(unknown.contains("line 1"), "{unknown}");
        let unknown = parse("\ndataset = { squid = {} }").unwrap_err();
        assert!(unknown.contains("unknown dataset `squid`"), "{unknown}");
        assert!(unknown.contains("line 2"), "{unknown}");
        let key = parse("dataset = { embedded = { document = 4 } }").unwrap_err();
        assert!(
            key.contains("unknown field `document`") && key.contains("questions_per_document"),
            "{key}"
        );
        let missing = parse(r#"dataset = "squad""#).unwrap_err();
        assert!(missing.contains("missing field `path`"), "{missing}");
        let two = parse(r#"dataset = { embedded = {}, squad = { path = "x" } }"#).unwrap_err();
        assert!(two.contains("in one table"), "{two}");
        let none = parse("dataset = {}").unwrap_err();
        assert!(none.contains("names no dataset"), "{none}");
        let number = parse("dataset = 3").unwrap_err();
        assert!(number.contains("name of a dataset"), "{number}");
    }

    #[test]
    fn every_config_is_registered() {
        for registered in DATASETS {
            let name = registered.name;
            assert_eq!(entry(name).unwrap().name, name);
            let config = parse(&format!("dataset = {{ {name} = {{ path = \"x\" }} }}"));
            match config {
                Ok(config) => {
                    assert_eq!((config.name(), config.path()), (name, Some(Path::new("x"))));
                    let error = load(&config, None, 1).err().unwrap().to_string();
                    assert!(error.contains("find `x`"), "{error}");
                }
                Err(_) => assert_eq!(name, "embedded"),
            }
        }
        let error = entry("nope").unwrap_err().to_string();
        assert!(
            error.contains("known: embedded, squad, recall, choice, gsm8k, continuation, needle"),
            "{error}"
        );
    }
}
