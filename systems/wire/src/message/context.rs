//! Publishing a context and looking one up.

use celslm_kv::{ContextId, KvShape, ModelFingerprint};

use super::field;
use crate::{error::Invalid, proto};

/// A shared context to register. It must hold no private text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRequest {
    /// The model whose tokenizer and template apply; part of the id.
    pub model: ModelFingerprint,
    /// Chat template, by name or as text; part of the id.
    pub template: String,
    /// The context itself.
    pub content: ContextContent,
}

/// How a context is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextContent {
    /// System text that the cloud renders and tokenises.
    SystemText(String),
    /// Token ids of the rendered context.
    Tokens(Vec<u32>),
}

impl PublishRequest {
    /// Bytes of template and content, where a token id counts as 4; bounded by
    /// [`Limits::max_text_bytes`](crate::Limits::max_text_bytes).
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let content = match &self.content {
            ContextContent::SystemText(text) => text.len(),
            ContextContent::Tokens(ids) => ids.len().saturating_mul(size_of::<u32>()),
        };
        content.saturating_add(self.template.len())
    }

    pub(crate) fn into_proto(self) -> proto::PublishRequest {
        use proto::publish_request::Content;
        proto::PublishRequest {
            model: self.model.as_bytes().to_vec(),
            template: self.template,
            content: Some(match self.content {
                ContextContent::SystemText(text) => Content::SystemText(text),
                ContextContent::Tokens(ids) => Content::Tokens(proto::TokenIds { ids }),
            }),
        }
    }

    pub(crate) fn from_proto(request: proto::PublishRequest) -> Result<Self, Invalid> {
        use proto::publish_request::Content;
        const MESSAGE: &str = "PublishRequest";
        let content = match request.content {
            Some(Content::SystemText(text)) => ContextContent::SystemText(text),
            Some(Content::Tokens(tokens)) => ContextContent::Tokens(tokens.ids),
            None => return Err(Invalid::new(MESSAGE, "content is missing")),
        };
        Ok(Self {
            model: ModelFingerprint::from_bytes(field::hash(MESSAGE, "model", &request.model)?),
            template: request.template,
            content,
        })
    }
}

/// A registered context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishReply {
    /// The context's id.
    pub context_id: ContextId,
    /// Length of the rendered context, in tokens.
    pub context_tokens: usize,
}

impl PublishReply {
    pub(crate) fn into_proto(self) -> Result<proto::PublishReply, Invalid> {
        Ok(proto::PublishReply {
            context_id: self.context_id.as_bytes().to_vec(),
            context_tokens: field::narrow("PublishReply", "context_tokens", self.context_tokens)?,
        })
    }

    pub(crate) fn from_proto(reply: &proto::PublishReply) -> Result<Self, Invalid> {
        const MESSAGE: &str = "PublishReply";
        Ok(Self {
            context_id: context_id(MESSAGE, &reply.context_id)?,
            context_tokens: field::within(
                MESSAGE,
                "context_tokens",
                reply.context_tokens,
                1..=field::MOST_TOKENS,
            )?,
        })
    }
}

/// Which form of a context's KV is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Registry name of the alignment, or [`Variant::NATIVE`].
    pub alignment: String,
    /// Hash of the bridge file; `None` for an alignment without one.
    pub bridge: Option<[u8; 32]>,
}

impl Variant {
    /// In an alignment's place: the cloud model's own KV, as it was computed.
    pub const NATIVE: &str = "native";

    /// The cloud model's own KV.
    #[must_use]
    pub fn native() -> Self {
        Self {
            alignment: Self::NATIVE.to_owned(),
            bridge: None,
        }
    }

    pub(super) fn into_proto(self) -> proto::Variant {
        proto::Variant {
            alignment: self.alignment,
            bridge: self.bridge.map(|hash| hash.to_vec()),
        }
    }

    pub(super) fn from_proto(
        message: &'static str,
        variant: Option<proto::Variant>,
    ) -> Result<Self, Invalid> {
        let variant = variant.ok_or_else(|| Invalid::new(message, "variant is missing"))?;
        Ok(Self {
            alignment: field::name(message, "alignment", variant.alignment)?,
            bridge: variant
                .bridge
                .map(|bytes| field::hash(message, "bridge", &bytes))
                .transpose()?,
        })
    }
}

/// Asks what the cloud has for a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupRequest {
    /// The context.
    pub context_id: ContextId,
    /// The form of its KV.
    pub variant: Variant,
}

impl LookupRequest {
    pub(crate) fn into_proto(self) -> proto::LookupRequest {
        proto::LookupRequest {
            context_id: self.context_id.as_bytes().to_vec(),
            variant: Some(self.variant.into_proto()),
        }
    }

    pub(crate) fn from_proto(request: proto::LookupRequest) -> Result<Self, Invalid> {
        const MESSAGE: &str = "LookupRequest";
        Ok(Self {
            context_id: context_id(MESSAGE, &request.context_id)?,
            variant: Variant::from_proto(MESSAGE, request.variant)?,
        })
    }
}

/// What the cloud has for a context: nothing, or an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupReply {
    /// The context, if it is registered.
    pub found: Option<ContextEntry>,
}

/// A context that the cloud knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextEntry {
    /// The KV of the variant asked for is in the store, so that a fetch computes nothing.
    pub computed: bool,
    /// Shape of the whole KV of that variant.
    pub shape: KvShape,
    /// The model that this KV fits.
    pub fingerprint: ModelFingerprint,
    /// Length of the context, in tokens.
    pub tokens: usize,
}

impl LookupReply {
    pub(crate) fn into_proto(self) -> Result<proto::LookupReply, Invalid> {
        const MESSAGE: &str = "LookupReply";
        let Some(entry) = self.found else {
            return Ok(proto::LookupReply::default());
        };
        Ok(proto::LookupReply {
            found: true,
            computed: entry.computed,
            shape: Some(field::shape_to_proto(MESSAGE, entry.shape)?),
            fingerprint: entry.fingerprint.as_bytes().to_vec(),
            tokens: field::narrow(MESSAGE, "tokens", entry.tokens)?,
        })
    }

    pub(crate) fn from_proto(reply: &proto::LookupReply) -> Result<Self, Invalid> {
        const MESSAGE: &str = "LookupReply";
        if !reply.found {
            return Ok(Self { found: None });
        }
        Ok(Self {
            found: Some(ContextEntry {
                computed: reply.computed,
                shape: field::shape(MESSAGE, reply.shape)?,
                fingerprint: ModelFingerprint::from_bytes(field::hash(
                    MESSAGE,
                    "fingerprint",
                    &reply.fingerprint,
                )?),
                tokens: field::within(MESSAGE, "tokens", reply.tokens, 1..=field::MOST_TOKENS)?,
            }),
        })
    }
}

/// A context id from its bytes.
pub(super) fn context_id(message: &'static str, bytes: &[u8]) -> Result<ContextId, Invalid> {
    Ok(ContextId::from_bytes(field::hash(
        message,
        "context_id",
        bytes,
    )?))
}
