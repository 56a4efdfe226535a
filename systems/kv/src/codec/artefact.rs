//! What was fitted beforehand and both ends hold.

/// What a chain is built with beside its settings.
#[derive(Debug, Clone, Default)]
pub struct CodecContext {}
