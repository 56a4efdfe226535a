//! `zstd`: general lossless compression of the bytes before it (RFC 8878), by the reference
//! implementation. KVTC (arXiv 2511.01815) uses DEFLATE in this place.

use serde::{Deserialize, Serialize};

use crate::codec::{ByteCount, Codec, CodecError, Tile, TileMut, TileShape};

/// Compresses whatever the chain before it writes, each payload by itself.
///
/// Finds bytes and runs of bytes that occur often. Packed codes mix several numbers in a byte,
/// which hides what an entropy coder of the numbers themselves sees: loses against those on
/// quantised KV, wins where codes are bytes or mostly zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Zstd {
    level: i32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Zstd", deny_unknown_fields)]
struct Fields {
    #[serde(default = "default_level")]
    level: usize,
}

const fn default_level() -> usize {
    3
}

impl TryFrom<Fields> for Zstd {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.level)
    }
}

impl From<Zstd> for Fields {
    fn from(stage: Zstd) -> Self {
        let level = stage.level.unsigned_abs() as usize;
        Self { level }
    }
}

impl Zstd {
    pub(in crate::codec) const NAME: &str = "zstd";

    /// Compression at `level`.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `level` is 1 to 19.
    pub fn new(level: usize) -> Result<Self, CodecError> {
        match i32::try_from(level) {
            Ok(level @ 1..=19) => Ok(Self { level }),
            _ => Err(CodecError::Parameter {
                stage: Self::NAME,
                parameter: "level",
                value: level,
                allowed: "1 to 19",
            }),
        }
    }

    /// Reads the parameters of an id, `l3`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        Self::new(text.strip_prefix('l')?.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-l{}", Self::NAME, self.level)
    }
}

/// The stage with the chain before it.
#[derive(Debug)]
pub(in crate::codec) struct ZstdCodec {
    stage: Zstd,
    inner: Box<dyn Codec>,
}

impl ZstdCodec {
    pub(in crate::codec) fn new(stage: Zstd, inner: Box<dyn Codec>) -> Self {
        Self { stage, inner }
    }

    fn corrupt(&self, reason: String) -> CodecError {
        CodecError::Corrupt {
            codec: self.stage.id(),
            reason,
        }
    }
}

/// First byte of a payload that was worth compressing, and of one that is as it was.
const COMPRESSED: u8 = 1;
const STORED: u8 = 0;

impl Codec for ZstdCodec {
    fn id(&self) -> String {
        format!("{}+{}", self.inner.id(), self.stage.id())
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        self.inner.check_shape(shape)
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let mut inner = Vec::new();
        self.inner.encode(tile, &mut inner)?;
        let compressed = zstd::bulk::compress(&inner, self.stage.level)
            .map_err(|error| self.corrupt(error.to_string()))?;
        if compressed.len() < inner.len() {
            out.push(COMPRESSED);
            out.extend(compressed);
        } else {
            out.push(STORED);
            out.extend(inner);
        }
        Ok(())
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        let most = self.inner.encoded_len(tile.shape());
        let restored;
        let inner = match bytes.split_first() {
            Some((&STORED, inner)) => inner,
            Some((&COMPRESSED, compressed)) => {
                // One frame and nothing behind it: the library would skip what it can.
                let frame = zstd::zstd_safe::find_frame_compressed_size(compressed);
                if frame != Ok(compressed.len()) {
                    return Err(self.corrupt("not exactly one frame".to_owned()));
                }
                restored = zstd::bulk::decompress(compressed, most)
                    .map_err(|error| self.corrupt(error.to_string()))?;
                &restored
            }
            _ => return Err(self.corrupt("the first byte is no form of payload".to_owned())),
        };
        let spent = tile.take_account();
        if spent.is_some() {
            tile.start_account();
        }
        self.inner.decode(inner, tile)?;
        // What the stages before this one spent is not what crossed the link: their bytes are
        // shares of the compressed payload.
        let inside = tile.take_account();
        if let (Some(mut spent), Some(inside)) = (spent, inside) {
            spent.extend(shares(&inside, bytes.len()));
            tile.set_account(spent);
        }
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        1 + self.inner.encoded_len(shape)
    }

    fn nominal_bits(&self) -> f64 {
        // The byte in front, of a tile of 256 tokens with 128 channels.
        self.inner.nominal_bits() + 1.0 / 8192.0
    }

    fn token_group(&self) -> usize {
        self.inner.token_group()
    }

    fn error_bound(&self, min: f32, max: f32) -> Option<f32> {
        self.inner.error_bound(min, max)
    }

    fn prior_layers(&self) -> usize {
        self.inner.prior_layers()
    }

    fn decodes_prefixes(&self) -> bool {
        false
    }
}

/// Shares `bytes` out in proportion to what the parts were before; the last gets the rest.
fn shares(parts: &[ByteCount], bytes: usize) -> Vec<ByteCount> {
    let total: usize = parts.iter().map(|part| part.bytes).sum();
    let mut left = bytes;
    let mut shared: Vec<ByteCount> = parts
        .iter()
        .map(|part| {
            let share = (part.bytes * bytes).checked_div(total).unwrap_or(0);
            left -= share;
            ByteCount {
                bytes: share,
                ..*part
            }
        })
        .collect();
    if let Some(last) = shared.last_mut() {
        last.bytes += left;
    }
    shared
}
