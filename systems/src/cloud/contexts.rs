//! The contexts that were published: bounded, by id.

use celslm_kv::ContextId;
use celslm_wire::ServiceError;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Most contexts that a cloud node registers.
const MAX_CONTEXTS: usize = 1 << 16;
/// Most bytes of their texts and tokens.
const MAX_BYTES: usize = 1 << 30;

/// A published context.
pub(super) struct Context {
    /// The system message.
    pub(super) system: String,
    /// Its rendered form under the cloud model's tokenizer.
    pub(super) tokens: Vec<u32>,
}

#[derive(Default)]
struct State {
    contexts: HashMap<ContextId, Arc<Context>>,
    bytes: usize,
}

/// The registry of contexts.
#[derive(Default)]
pub(super) struct Contexts(Mutex<State>);

impl Contexts {
    /// Registers a context; the same one again changes nothing.
    pub(super) fn insert(
        &self,
        id: ContextId,
        context: Context,
    ) -> Result<Arc<Context>, ServiceError> {
        // Every update leaves the map consistent, so a panic elsewhere does not spoil it.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = state.contexts.get(&id) {
            return Ok(known.clone());
        }
        let bytes = context.system.len() + context.tokens.len() * size_of::<u32>();
        if state.contexts.len() >= MAX_CONTEXTS || state.bytes + bytes > MAX_BYTES {
            return Err(ServiceError::Overloaded(format!(
                "{} contexts of {} bytes are registered, which is all this cloud takes",
                state.contexts.len(),
                state.bytes
            )));
        }
        state.bytes += bytes;
        let context = Arc::new(context);
        state.contexts.insert(id, context.clone());
        Ok(context)
    }

    /// The context of an id.
    pub(super) fn get(&self, id: &ContextId) -> Result<Arc<Context>, ServiceError> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.contexts.get(id).cloned().ok_or_else(|| {
            ServiceError::NotFound(format!("context {id} was never published to this cloud"))
        })
    }
}
