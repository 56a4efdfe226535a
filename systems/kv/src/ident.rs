//! Identities: which model a block belongs to, and which context it holds.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A string that is not the hexadecimal form of a 32-byte hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 lowercase or uppercase hexadecimal digits, found {found:?}")]
pub struct HexError {
    /// The offending text, cut to 80 characters.
    pub found: String,
}

/// Writes a 32-byte hash as 64 lowercase hexadecimal digits.
#[must_use]
pub fn to_hex(bytes: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*bytes).to_hex().to_string()
}

/// Reads 64 hexadecimal digits.
///
/// # Errors
/// [`HexError`] when the text has another length or another character.
pub fn from_hex(text: &str) -> Result<[u8; 32], HexError> {
    match blake3::Hash::from_hex(text) {
        Ok(hash) => Ok(*hash.as_bytes()),
        Err(_) => Err(HexError {
            found: text.chars().take(80).collect(),
        }),
    }
}

macro_rules! hash_identity {
    ($name:ident) => {
        impl $name {
            /// Wraps a hash that was computed elsewhere (read from a file or from the wire).
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes of the hash.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first 12 hexadecimal digits, for messages.
            #[must_use]
            pub fn short(&self) -> String {
                let mut text = to_hex(&self.0);
                text.truncate(12);
                text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            fn from_str(text: &str) -> Result<Self, HexError> {
                from_hex(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

/// BLAKE3 of a model's file. Two blocks are interchangeable only if theirs are equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelFingerprint([u8; 32]);

hash_identity!(ModelFingerprint);

impl ModelFingerprint {
    /// Hashes a model file through a memory map, on all cores.
    ///
    /// # Errors
    /// Any error of opening or reading the file.
    pub fn of_file(path: &Path) -> std::io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_mmap_rayon(path)?;
        Ok(Self(*hasher.finalize().as_bytes()))
    }

    /// What blocks of the model's hidden states bear in place of its own, so that nothing takes
    /// them for its KV: BLAKE3 of the model's, keyed by what they are.
    #[must_use]
    pub fn of_states(&self) -> Self {
        Self(blake3::derive_key(
            "celslm hidden states of a model, version 1",
            &self.0,
        ))
    }
}

/// Which context a block holds: BLAKE3 over the model's fingerprint, the hash of the chat
/// template and the context's token ids (`u32`, little-endian).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId([u8; 32]);

hash_identity!(ContextId);

impl ContextId {
    /// Identifies `tokens` as rendered by `template` for the model `fingerprint`.
    #[must_use]
    pub fn new(fingerprint: &ModelFingerprint, template: &str, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(fingerprint.as_bytes());
        hasher.update(blake3::hash(template.as_bytes()).as_bytes());
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_rejects() {
        let fingerprint = ModelFingerprint::from_bytes([0xab; 32]);
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        assert_eq!(fingerprint.short(), "abababababab");
        for bad in ["", "ab", &"zz".repeat(32), &"ab".repeat(33), "é"] {
            assert!(bad.parse::<ModelFingerprint>().is_err(), "{bad}");
        }
        let json = serde_json::to_string(&fingerprint).unwrap();
        assert_eq!(
            serde_json::from_str::<ModelFingerprint>(&json).unwrap(),
            fingerprint
        );
    }

    #[test]
    fn context_id_depends_on_every_part() {
        let a = ModelFingerprint::from_bytes([1; 32]);
        let b = ModelFingerprint::from_bytes([2; 32]);
        let base = ContextId::new(&a, "template", &[1, 2, 3]);
        assert_eq!(base, ContextId::new(&a, "template", &[1, 2, 3]));
        assert_ne!(base, ContextId::new(&b, "template", &[1, 2, 3]));
        assert_ne!(base, ContextId::new(&a, "templatE", &[1, 2, 3]));
        assert_ne!(base, ContextId::new(&a, "template", &[1, 2, 4]));
    }

    #[test]
    fn fingerprint_is_the_hash_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        std::fs::write(&path, b"weights").unwrap();
        let fingerprint = ModelFingerprint::of_file(&path).unwrap();
        assert_eq!(fingerprint.as_bytes(), blake3::hash(b"weights").as_bytes());
        assert!(ModelFingerprint::of_file(&dir.path().join("absent")).is_err());
    }
}
