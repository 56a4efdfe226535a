//! The generation loop that every node runs.

use crate::SystemError;
use crate::clock::now_ns;
use crate::loaded::LoadedModel;
use celslm_model::{Hidden, KvCache, Sampler, Sampling, TextStream};

/// What bounds a generation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GenerationLimits {
    /// Most tokens.
    pub(crate) max_tokens: usize,
    /// `CLOCK_MONOTONIC` time after which it is given up.
    pub(crate) deadline_ns: u64,
}

/// A token as it becomes visible.
pub(crate) struct Step<'a> {
    /// Its id.
    pub(crate) id: u32,
    /// The text that became final with it; empty while a character is incomplete.
    pub(crate) text: &'a str,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The model ended its turn.
    Turn,
    /// `max_tokens` was reached.
    Length,
    /// The receiver wanted no more.
    Stopped,
}

/// Generates from the output of the last prompt token on. `emit` sees every token and returns
/// whether to go on.
///
/// # Errors
/// Kind `deadline` when the deadline passes, else what the model reports.
pub(crate) fn generate(
    model: &LoadedModel,
    cache: &mut KvCache,
    mut hidden: Hidden,
    sampling: Sampling,
    seed: u64,
    limits: GenerationLimits,
    mut emit: impl FnMut(Step<'_>) -> bool,
) -> Result<End, SystemError> {
    let mut sampler = Sampler::new(sampling, seed);
    let mut stream = TextStream::default();
    for index in 0..limits.max_tokens {
        check_deadline(limits.deadline_ns)?;
        let id = sampler.sample(&model.decoder.logits(&hidden)?);
        if model.tokenizer.is_end(id) {
            return Ok(End::Turn);
        }
        let text = stream.push(&model.tokenizer, id)?;
        if !emit(Step { id, text: &text }) {
            return Ok(End::Stopped);
        }
        if index + 1 < limits.max_tokens {
            hidden = model.decoder.forward(&[id], cache)?;
        }
    }
    Ok(End::Length)
}

/// Fails once a deadline has passed.
///
/// # Errors
/// Kind `deadline`.
pub(crate) fn check_deadline(deadline_ns: u64) -> Result<(), SystemError> {
    match now_ns() > deadline_ns {
        true => Err(SystemError::new("deadline", "the request's time is up")),
        false => Ok(()),
    }
}
