//! `celslm edge`: the edge node.

use std::path::PathBuf;

use celslm::exit::{ExitCode, Verdict};
use celslm_systems::WireLimits;
use celslm_systems::control::ControlListener;
use celslm_systems::edge::{EdgeNode, EdgeOptions};
use celslm_systems::engine::{EngineLimits, Pace};
use clap::Args;

/// Be the edge node: hold the small model and answer a controller's requests
///
/// `celslm run` starts it by itself. By hand it serves a run on real machines: start
/// `celslm cloud` there, this here, forward the cloud's control socket (`ssh -L
/// /tmp/cloud.sock:/tmp/cloud.sock HOST`), and name both sockets in `deployment.external`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  celslm edge --model edge.gguf --control /tmp/edge.sock
  celslm edge --model edge.gguf --control /tmp/edge.sock --slowdown 4
  celslm edge --model edge.gguf --control /tmp/edge.sock --bridge pair.safetensors")]
pub(crate) struct EdgeArgs {
    /// GGUF file of the edge's model
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Fitted bridge, for alignments that map at the edge (`at = "edge"`); may be given more than once
    #[arg(long = "bridge", value_name = "FILE")]
    bridges: Vec<PathBuf>,
    /// Codec artefact, for the codecs that need one: the same file as the cloud's
    #[arg(long, value_name = "FILE")]
    codec_artefact: Option<PathBuf>,
    /// Unix socket on which it listens for its controller
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// Most bytes of context KV that it keeps
    #[arg(long, value_name = "N", default_value_t = 256 << 20)]
    cache_bytes: u64,
    /// Largest message on the wire, in bytes
    #[arg(long, value_name = "N", default_value_t = 8 << 20)]
    message_bytes: usize,
    #[command(flatten)]
    engine: EngineArgs,
    /// Compute threads; 0 means every CPU it may use
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

/// Bounds of a node's engines.
#[derive(Debug, Args)]
pub(super) struct EngineArgs {
    /// Most sessions that are computed at once
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_sessions: usize,
    /// Most sessions that wait for a place; further ones are refused
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_queue: usize,
    /// Most bytes of KV that the sessions may grow to, a shared context counted once
    #[arg(long, value_name = "N", default_value_t = 512 << 20)]
    session_kv_bytes: u64,
    /// Prompt tokens that one step takes in beside the sessions that generate
    #[arg(long, value_name = "N", default_value_t = 256)]
    step_tokens: usize,
    /// How many times longer each of its steps is to take than it does on this machine: a factor
    /// from 1 on, or one for prefill and one for decode. Only the models' steps are stretched
    #[arg(long, value_name = "F|P,D", default_value = "1")]
    pub(super) slowdown: Pace,
}

impl EngineArgs {
    pub(super) fn limits(&self) -> EngineLimits {
        EngineLimits {
            max_sessions: self.max_sessions,
            max_queue: self.max_queue,
            kv_bytes: usize::try_from(self.session_kv_bytes).unwrap_or(usize::MAX),
            step_tokens: self.step_tokens,
        }
    }

    /// Bounds of the protocol under which a call waits at the engines or is refused there, and
    /// never at the connection, where nobody sees it wait.
    pub(super) fn wire(&self, message_bytes: usize) -> WireLimits {
        let calls = self.limits().max_calls().clamp(1, 1 << 15);
        let base = WireLimits::default();
        WireLimits {
            max_message_bytes: message_bytes,
            max_server_calls: base.max_server_calls.max(2 * calls),
            max_concurrent_streams: base.max_concurrent_streams.max(2 * calls as u32),
            ..base
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &EdgeArgs) -> anyhow::Result<ExitCode> {
    let listener = bind(&args.control)?;
    let node = EdgeNode::start(&EdgeOptions {
        model: args.model.clone(),
        bridges: args.bridges.clone(),
        codec_artefact: args.codec_artefact.clone(),
        cache_bytes: usize::try_from(args.cache_bytes).unwrap_or(usize::MAX),
        limits: args.engine.wire(args.message_bytes),
        engine: args.engine.limits(),
        pace: args.engine.slowdown,
        threads: threads(args.threads),
    })?;
    eprintln!("edge: ready at {}", args.control.display());
    node.serve(&listener)?;
    Ok(ExitCode::Ok)
}

/// Listens at a control socket.
pub(super) fn bind(path: &std::path::Path) -> Result<ControlListener, Verdict> {
    ControlListener::bind(path).map_err(|error| {
        Verdict::Environment(format!("cannot listen at {}: {error}", path.display()))
    })
}

/// The number of compute threads that a setting means.
pub(super) fn threads(setting: usize) -> usize {
    match setting {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    }
}
