//! The server that an edge asks: connected anew with each link, shared by its requests.

use super::client::{ApiError, Client, Endpoint};
use crate::answer::{ContextRef, SystemError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;

/// Most contexts whose token counts are remembered.
const MAX_COUNTS: usize = 4096;

/// A server with what is remembered of it.
pub(crate) struct Serving {
    endpoint: Endpoint,
    client: Client,
    context_tokens: Mutex<HashMap<String, usize>>,
}

impl Serving {
    fn new(endpoint: Endpoint) -> Result<Self, ApiError> {
        let client = Client::new(&endpoint)?;
        Ok(Self {
            endpoint,
            client,
            context_tokens: Mutex::default(),
        })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The tokens of a context, counted once.
    pub(crate) fn context_tokens(
        &self,
        context: &ContextRef,
        count: impl FnOnce() -> Result<usize, SystemError>,
    ) -> Result<usize, SystemError> {
        if let Some(&tokens) = lock(&self.context_tokens).get(&context.context_id) {
            return Ok(tokens);
        }
        let tokens = count()?;
        let mut counts = lock(&self.context_tokens);
        if counts.len() >= MAX_COUNTS {
            counts.clear();
        }
        counts.insert(context.context_id.clone(), tokens);
        Ok(tokens)
    }
}

/// The place of an edge's server.
#[derive(Default)]
pub(crate) struct ServingSlot(Mutex<Option<Arc<Serving>>>);

impl ServingSlot {
    /// Takes a server into use if it is ready.
    ///
    /// # Errors
    /// As [`Client::ready`].
    pub(crate) fn set(
        &self,
        runtime: &Runtime,
        endpoint: Endpoint,
        patience: Duration,
    ) -> Result<(), SystemError> {
        let serving = Serving::new(endpoint)?;
        runtime.block_on(serving.client.ready(patience))?;
        *lock(&self.0) = Some(Arc::new(serving));
        Ok(())
    }

    /// Drops the server's connections; further requests open new ones.
    ///
    /// # Errors
    /// Kind `config`.
    pub(crate) fn reconnect(&self) -> Result<(), SystemError> {
        let mut slot = lock(&self.0);
        if let Some(serving) = &*slot {
            let fresh = Serving::new(serving.endpoint.clone())?;
            *slot = Some(Arc::new(fresh));
        }
        Ok(())
    }

    /// The server.
    ///
    /// # Errors
    /// Kind `config` where there is none.
    pub(crate) fn get(&self) -> Result<Arc<Serving>, SystemError> {
        lock(&self.0).clone().ok_or_else(|| {
            SystemError::new(
                "config",
                "this edge knows no serving engine: set cloud.serving",
            )
        })
    }
}

/// What these locks guard is whole at every moment, so poison is no reason to stop.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
