//! What the live cloud model made, kept on disk: answers and contexts' KV, by content.
//!
//! A file's name is the BLAKE3 of what it answers to, and its first line states that in clear
//! together with the BLAKE3 of the rest. Nothing is used before that has been checked.

use crate::cloud::scores::extent;
use celslm_kv::block::BlockSpec;
use celslm_kv::codec::TokenScores;
use celslm_kv::{ContextId, KvBlock, LayerKv};
use celslm_model::Sampling;
use half::f16;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Version of the files.
const VERSION: u32 = 1;
/// Longest first line; a longer one is damage.
const MAX_HEADER: usize = 64 << 10;

/// Why a recording cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordingError {
    /// A file or folder failed.
    #[error("{what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A file is not what was written.
    #[error("{} is damaged: {reason}; delete it and record again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The bound is reached.
    #[error(
        "the recording holds {held} of {most} bytes, and {wanted} more do not fit: raise limits.recording_bytes"
    )]
    Full {
        /// Bytes held.
        held: u64,
        /// The bound.
        most: u64,
        /// Bytes wanted.
        wanted: u64,
    },
}

/// Everything that decides an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct AnswerKey {
    /// Fingerprint of the model, in hex.
    pub(super) model: String,
    /// The context, in hex.
    pub(super) context: String,
    /// BLAKE3 of the private prompt's token ids, in hex: the text stays out of the file's head.
    pub(super) prompt: String,
    /// Its length.
    pub(super) prompt_tokens: usize,
    pub(super) sampling: Sampling,
    pub(super) seed: u64,
    pub(super) max_tokens: usize,
}

impl AnswerKey {
    pub(super) fn new(
        model: &str,
        context: &ContextId,
        prompt: &[u32],
        sampling: Sampling,
        seed: u64,
        max_tokens: usize,
    ) -> Self {
        let mut hasher = blake3::Hasher::new();
        for id in prompt {
            hasher.update(&id.to_le_bytes());
        }
        Self {
            model: model.to_owned(),
            context: context.to_string(),
            prompt: hasher.finalize().to_hex().to_string(),
            prompt_tokens: prompt.len(),
            sampling,
            // Greedy decoding draws nothing, whatever the seed.
            seed: if sampling == Sampling::Greedy {
                0
            } else {
                seed
            },
            max_tokens,
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RecordedAnswer {
    /// Token ids with the text that became final with each.
    pub(super) tokens: Vec<(u32, String)>,
    /// `turn`, `length` or `full`.
    pub(super) ending: RecordedEnding,
}

impl RecordedAnswer {
    /// The answer as its reader sees it.
    pub(super) fn text(&self) -> String {
        self.tokens.iter().map(|(_, text)| text.as_str()).collect()
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RecordedEnding {
    /// The model ended its turn.
    Turn,
    /// The request's bound.
    Length,
    /// The window's.
    Full,
}

/// A context's KV in the edge model's form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct KvKey {
    /// Fingerprint of the cloud's model, in hex.
    pub(super) model: String,
    /// The context, in hex.
    pub(super) context: String,
    /// The form's key in the cloud's store.
    pub(super) variant: String,
}

/// KV with what belongs to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RecordedKv {
    pub(super) block: KvBlock,
    /// How long mapping took on the machine that recorded; 0 where nothing is mapped.
    pub(super) align_ns: u64,
}

/// Scores of a context's tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ScoresKey {
    /// Fingerprint of the model that scored, in hex.
    pub(super) model: String,
    /// The context, in hex.
    pub(super) context: String,
    /// The method's name.
    pub(super) by: String,
}

#[derive(Serialize, Deserialize)]
struct Head<K> {
    version: u32,
    key: K,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    spec: Option<BlockSpec>,
    #[serde(default)]
    align_ns: u64,
    /// BLAKE3 of everything behind this line, in hex.
    blake3: String,
}

/// A file's first line and what is behind it.
type Found<K> = (Head<K>, Vec<u8>);

/// The recording in a folder.
pub(super) struct Recording {
    dir: PathBuf,
    max_bytes: u64,
    held: Mutex<u64>,
}

impl Recording {
    /// Opens a recording, and makes it if need be.
    pub(super) fn open(dir: &Path, max_bytes: u64) -> Result<Self, RecordingError> {
        let mut held = 0;
        for kind in ["answers", "kv", "scores"] {
            let folder = dir.join(kind);
            fs::create_dir_all(&folder).map_err(|e| failed("make", &folder, e))?;
            let entries = fs::read_dir(&folder).map_err(|e| failed("list", &folder, e))?;
            for entry in entries.flatten() {
                held += entry.metadata().map_or(0, |found| found.len());
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            max_bytes,
            held: Mutex::new(held),
        })
    }

    /// The answer to a request, if it was recorded.
    pub(super) fn answer(&self, key: &AnswerKey) -> Result<Option<RecordedAnswer>, RecordingError> {
        let path = self.path("answers", key);
        let Some((_, body)) = read::<AnswerKey>(&path, key)? else {
            return Ok(None);
        };
        serde_json::from_slice(&body)
            .map(Some)
            .map_err(|error| damaged(&path, error))
    }

    /// Keeps an answer.
    pub(super) fn put_answer(
        &self,
        key: &AnswerKey,
        answer: &RecordedAnswer,
    ) -> Result<(), RecordingError> {
        let path = self.path("answers", key);
        let body = serde_json::to_vec(answer).map_err(|error| damaged(&path, error))?;
        self.write(&path, key, None, 0, &body)
    }

    /// Scores of a context's tokens, if they were recorded.
    pub(super) fn scores(&self, key: &ScoresKey) -> Result<Option<TokenScores>, RecordingError> {
        let path = self.path("scores", key);
        let Some((_, body)) = read::<ScoresKey>(&path, key)? else {
            return Ok(None);
        };
        let numbers = body.as_chunks::<4>().0;
        let (tokens, numbers) = numbers
            .split_first()
            .ok_or_else(|| damaged(&path, "no length"))?;
        let tokens = u32::from_le_bytes(*tokens) as usize;
        let numbers: Vec<f32> = numbers.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if tokens == 0 || !numbers.len().is_multiple_of(tokens) {
            return Err(damaged(&path, "no whole number of layers"));
        }
        let layers = numbers.chunks_exact(tokens).map(<[f32]>::to_vec).collect();
        let scores = TokenScores::new(0, 0, layers);
        scores.map(Some).map_err(|error| damaged(&path, error))
    }

    /// Keeps scores of all layers and tokens of a context: the number of tokens, then the scores
    /// layer by layer.
    pub(super) fn put_scores(
        &self,
        key: &ScoresKey,
        scores: &TokenScores,
    ) -> Result<(), RecordingError> {
        let path = self.path("scores", key);
        let (layers, tokens) = extent(scores);
        let mut body = (tokens as u32).to_le_bytes().to_vec();
        for (_, scores) in (0..layers).filter_map(|layer| scores.layer(layer)) {
            body.extend(scores.iter().flat_map(|score| score.to_le_bytes()));
        }
        self.write(&path, key, None, 0, &body)
    }

    /// A context's KV, if it was recorded.
    pub(super) fn kv(&self, key: &KvKey) -> Result<Option<RecordedKv>, RecordingError> {
        let path = self.path("kv", key);
        let Some((head, body)) = read::<KvKey>(&path, key)? else {
            return Ok(None);
        };
        let spec = head.spec.ok_or_else(|| damaged(&path, "no shape"))?;
        spec.validate().map_err(|error| damaged(&path, error))?;
        let elements = spec.layer_elements();
        let wanted = (elements as u64)
            .saturating_mul(4)
            .saturating_mul(spec.shape.num_layers as u64);
        if body.len() as u64 != wanted {
            let reason = format!("{} bytes of KV, {wanted} expected", body.len());
            return Err(damaged(&path, reason));
        }
        let tensor = |bytes: &[u8]| -> Vec<f16> {
            bytes
                .chunks_exact(2)
                .map(|pair| f16::from_le_bytes([pair[0], pair[1]]))
                .collect()
        };
        let layers = body
            .chunks_exact(elements * 4)
            .map(|layer| {
                let (k, v) = layer.split_at(elements * 2);
                LayerKv {
                    k: tensor(k),
                    v: tensor(v),
                }
            })
            .collect();
        let block = KvBlock::from_spec(spec, layers).map_err(|error| damaged(&path, error))?;
        Ok(Some(RecordedKv {
            block,
            align_ns: head.align_ns,
        }))
    }

    /// Whether a context's KV was recorded, without reading it.
    pub(super) fn has_kv(&self, key: &KvKey) -> bool {
        self.path("kv", key).is_file()
    }

    /// Keeps a context's KV.
    pub(super) fn put_kv(
        &self,
        key: &KvKey,
        block: &KvBlock,
        align_ns: u64,
    ) -> Result<(), RecordingError> {
        let mut body = Vec::with_capacity(usize::try_from(block.fp16_bytes()).unwrap_or(0));
        for layer in block.layers() {
            for value in layer.k.iter().chain(&layer.v) {
                body.extend_from_slice(&value.to_le_bytes());
            }
        }
        let path = self.path("kv", key);
        self.write(&path, key, Some(block.spec().clone()), align_ns, &body)
    }

    fn path(&self, kind: &str, key: &impl Serialize) -> PathBuf {
        // Strings and numbers always have a JSON form.
        let bytes = serde_json::to_vec(key).unwrap_or_default();
        let name = blake3::hash(&bytes).to_hex().to_string();
        self.dir.join(kind).join(name)
    }

    fn write<K: Serialize>(
        &self,
        path: &Path,
        key: &K,
        spec: Option<BlockSpec>,
        align_ns: u64,
        body: &[u8],
    ) -> Result<(), RecordingError> {
        let head = Head {
            version: VERSION,
            key,
            spec,
            align_ns,
            blake3: blake3::hash(body).to_hex().to_string(),
        };
        let mut bytes = serde_json::to_vec(&head).map_err(|error| damaged(path, error))?;
        bytes.push(b'\n');
        bytes.extend_from_slice(body);
        let wanted = bytes.len() as u64;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held + wanted > self.max_bytes {
            return Err(RecordingError::Full {
                held: *held,
                most: self.max_bytes,
                wanted,
            });
        }
        // A killed run leaves no half file under the name.
        let partial = path.with_extension("partial");
        fs::write(&partial, &bytes).map_err(|e| failed("write", &partial, e))?;
        fs::rename(&partial, path).map_err(|e| failed("rename", &partial, e))?;
        *held += wanted;
        Ok(())
    }
}

/// The head and body of a file; `None` where there is none.
fn read<K: for<'de> Deserialize<'de> + PartialEq>(
    path: &Path,
    key: &K,
) -> Result<Option<Found<K>>, RecordingError> {
    let mut bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path, error)),
    };
    let line = bytes
        .iter()
        .take(MAX_HEADER)
        .position(|&byte| byte == b'\n')
        .ok_or_else(|| damaged(path, "no first line"))?;
    let body = bytes.split_off(line + 1);
    bytes.truncate(line);
    let head: Head<K> = serde_json::from_slice(&bytes).map_err(|error| damaged(path, error))?;
    if head.version != VERSION {
        return Err(damaged(path, format!("version {}", head.version)));
    }
    if head.key != *key {
        return Err(damaged(path, "it answers to something else"));
    }
    if head.blake3 != blake3::hash(&body).to_hex().to_string() {
        return Err(damaged(path, "its hash is another"));
    }
    Ok(Some((head, body)))
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> RecordingError {
    RecordingError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

fn damaged(path: &Path, reason: impl std::fmt::Display) -> RecordingError {
    RecordingError::Damaged {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use celslm_kv::{KeyRope, KvShape, ModelFingerprint};

    fn answer_key(seed: u64, sampling: Sampling) -> AnswerKey {
        let context = ContextId::from_bytes([7; 32]);
        AnswerKey::new("aa", &context, &[1, 2, 3], sampling, seed, 8)
    }

    fn answer() -> RecordedAnswer {
        RecordedAnswer {
            tokens: vec![(5, "fünf".to_owned()), (6, String::new())],
            ending: RecordedEnding::Turn,
        }
    }

    fn block() -> KvBlock {
        let shape = KvShape::new(2, 2, 4).unwrap();
        let layers = (0..2)
            .map(|layer| LayerKv {
                k: (0..24)
                    .map(|i| f16::from_f32(i as f32 - layer as f32))
                    .collect(),
                v: (0..24).map(|i| f16::from_f32(0.5 * i as f32)).collect(),
            })
            .collect();
        let fingerprint = ModelFingerprint::from_bytes([1; 32]);
        KvBlock::new(fingerprint, shape, 0, 0..3, KeyRope::Pre, layers).unwrap()
    }

    fn kv_key() -> KvKey {
        KvKey {
            model: "aa".to_owned(),
            context: "bb".to_owned(),
            variant: "identity".to_owned(),
        }
    }

    #[test]
    fn what_was_recorded_comes_back_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let recording = Recording::open(dir.path(), 1 << 20).unwrap();
        let key = answer_key(0, Sampling::Greedy);
        assert_eq!(recording.answer(&key).unwrap(), None);
        recording.put_answer(&key, &answer()).unwrap();
        recording.put_kv(&kv_key(), &block(), 42).unwrap();
        // Another process reads it, for any seed of a greedy answer.
        let again = Recording::open(dir.path(), 1 << 20).unwrap();
        let other_seed = answer_key(9, Sampling::Greedy);
        assert_eq!(again.answer(&other_seed).unwrap(), Some(answer()));
        let drawn = Sampling::Nucleus {
            temperature: 0.5,
            top_p: 0.9,
        };
        assert_eq!(again.answer(&answer_key(0, drawn)).unwrap(), None);
        let kv = again.kv(&kv_key()).unwrap().unwrap();
        assert_eq!((kv.block, kv.align_ns), (block(), 42));
        assert!(again.has_kv(&kv_key()));
    }

    #[test]
    fn scores_come_back_with_their_infinities() {
        let dir = tempfile::tempdir().unwrap();
        let recording = Recording::open(dir.path(), 1 << 20).unwrap();
        let key = |by: &str| ScoresKey {
            model: "aa".to_owned(),
            context: "bb".to_owned(),
            by: by.to_owned(),
        };
        let layers = vec![vec![0.5, f32::INFINITY, -1.0], vec![1.0, 2.0, 3.0]];
        let scores = TokenScores::new(0, 0, layers).unwrap();
        assert_eq!(recording.scores(&key("h2o")).unwrap(), None);
        recording.put_scores(&key("h2o"), &scores).unwrap();
        assert_eq!(recording.scores(&key("h2o")).unwrap(), Some(scores));
        assert_eq!(recording.scores(&key("snapkv")).unwrap(), None);
    }

    #[test]
    fn damage_is_found_and_the_bound_holds() {
        let dir = tempfile::tempdir().unwrap();
        let recording = Recording::open(dir.path(), 1 << 20).unwrap();
        recording.put_kv(&kv_key(), &block(), 0).unwrap();
        let path = recording.path("kv", &kv_key());
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = recording.kv(&kv_key()).unwrap_err().to_string();
        assert!(error.contains("its hash is another"), "{error}");
        bytes.truncate(40);
        fs::write(&path, &bytes).unwrap();
        assert!(recording.kv(&kv_key()).is_err());
        let small = Recording::open(dir.path(), 200).unwrap();
        let error = small
            .put_kv(&kv_key(), &block(), 0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("limits.recording_bytes"), "{error}");
    }
}
