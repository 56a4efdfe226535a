//! A client of servers behind the OpenAI chat-completions API: vLLM, llama.cpp's server, or
//! whatever serves a cluster behind that API.
//!
//! The only module that knows reqwest. Nothing from the server is trusted: lines, events and
//! bodies are bounded, every wait ends with the request's deadline, redirects and proxies are
//! not followed (they would leave the measured link), and bytes that make no sense are errors.
//! The API key is read from an environment variable, sent in a header and shown nowhere.

mod client;
mod event_stream;
mod message;
mod serving;
mod tokens;

#[cfg(test)]
mod tests;

pub use client::{ApiError, ChatEvent, ChatStream, Client, Endpoint};
pub use message::{ChatRequest, Message, Role, Usage};
pub(crate) use serving::{Serving, ServingSlot};
pub(crate) use tokens::{TokenTimes, token_times};
