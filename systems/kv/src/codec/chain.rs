//! A chain of stages as one codec.

use super::{Codec, CodecConfig, CodecError, Tile, TileMut, TileShape};

/// The codec that a [`CodecConfig`] describes.
///
/// A config holds exactly one quantiser, which is the innermost codec; select and transform
/// stages own it and hand it another tile, entropy stages own all of that and code its bytes.
#[derive(Debug)]
pub struct Chain {
    config: CodecConfig,
    codec: Box<dyn Codec>,
}

impl Chain {
    pub(super) fn new(config: CodecConfig) -> Self {
        let [stage, ..] = config.stages() else {
            unreachable!("a codec config has exactly one quantiser");
        };
        let codec = stage.quantiser();
        Self { config, codec }
    }

    /// The stages of the chain.
    #[must_use]
    pub const fn config(&self) -> &CodecConfig {
        &self.config
    }
}

impl Clone for Chain {
    fn clone(&self) -> Self {
        Self::new(self.config.clone())
    }
}

impl Codec for Chain {
    fn id(&self) -> String {
        self.config.id()
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        self.codec.check_shape(shape)
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.codec.encode(tile, out)
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        self.codec.decode(bytes, tile)
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        self.codec.encoded_len(shape)
    }

    fn nominal_bits(&self) -> f64 {
        self.codec.nominal_bits()
    }

    fn token_group(&self) -> usize {
        self.codec.token_group()
    }

    fn error_bound(&self, min: f32, max: f32) -> Option<f32> {
        self.codec.error_bound(min, max)
    }
}
