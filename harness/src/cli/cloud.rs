//! `celslm cloud`: the cloud node.

use std::net::SocketAddr;
use std::path::PathBuf;

use celslm::device::DeviceProfile;
use celslm::exit::{ExitCode, Verdict};
use celslm_systems::cloud::{CloudNode, CloudOptions, ReplayOptions};
use clap::Args;

/// Be the cloud node: hold the large model and serve edges over the network
///
/// `celslm run` starts it by itself. By hand it serves a run on real machines; see `celslm edge
/// --help`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  celslm cloud --model cloud.gguf --edge-model edge.gguf --listen 0.0.0.0:7070 \\
               --advertise 192.0.2.7:7070 --control /tmp/cloud.sock")]
pub(crate) struct CloudArgs {
    /// GGUF file of the cloud's model
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// GGUF file of the edge's model, for hand-offs of its KV and for bridges
    #[arg(long, value_name = "FILE")]
    edge_model: Option<PathBuf>,
    /// Fitted bridge to map KV through; may be given more than once. Not for alignments that map at
    /// the edge
    #[arg(long = "bridge", value_name = "FILE")]
    bridges: Vec<PathBuf>,
    /// Codec artefact, for the codecs that need one (`celslm codec fit`)
    #[arg(long, value_name = "FILE")]
    codec_artefact: Option<PathBuf>,
    /// Address to serve edges on; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Address at which edges reach it, if not the one it listens on (0.0.0.0, a forwarded port)
    #[arg(long, value_name = "ADDR:PORT")]
    advertise: Option<SocketAddr>,
    /// Unix socket on which it listens for its controller
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// Most bytes of context KV that it keeps
    #[arg(long, value_name = "N", default_value_t = 2 << 30)]
    store_bytes: u64,
    /// Largest message on the wire, in bytes
    #[arg(long, value_name = "N", default_value_t = 8 << 20)]
    message_bytes: usize,
    #[command(flatten)]
    engine: super::edge::EngineArgs,
    /// Compute threads; 0 means every CPU it may use
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Serve what this folder's recording holds, and compute only to record for the controller
    #[arg(long, value_name = "DIR", requires = "replay_device")]
    replay: Option<PathBuf>,
    /// Device profile with the rates at which the recording is served
    #[arg(long, value_name = "FILE", requires = "replay")]
    replay_device: Option<PathBuf>,
    /// Most bytes of the recording
    #[arg(long, value_name = "N", default_value_t = 8 << 30)]
    recording_bytes: u64,
}

impl CloudArgs {
    fn replay(&self) -> anyhow::Result<Option<ReplayOptions>> {
        let (Some(dir), Some(device)) = (&self.replay, &self.replay_device) else {
            return Ok(None);
        };
        let profile = DeviceProfile::load(device)?;
        let rates = profile.rates.ok_or_else(|| {
            let name = profile.name;
            Verdict::Config(format!("device {name} states no rates to serve at"))
        })?;
        Ok(Some(ReplayOptions {
            dir: dir.clone(),
            max_bytes: self.recording_bytes,
            rates,
        }))
    }
}

/// Runs the command.
pub(crate) fn run(args: &CloudArgs) -> anyhow::Result<ExitCode> {
    let listener = super::edge::bind(&args.control)?;
    let node = CloudNode::start(&CloudOptions {
        model: args.model.clone(),
        edge_model: args.edge_model.clone(),
        bridges: args.bridges.clone(),
        codec_artefact: args.codec_artefact.clone(),
        listen: args.listen,
        advertise: args.advertise,
        store_bytes: args.store_bytes,
        limits: args.engine.wire(args.message_bytes),
        engine: args.engine.limits(),
        pace: args.engine.slowdown,
        threads: super::edge::threads(args.threads),
        replay: args.replay()?,
    })?;
    eprintln!(
        "cloud: serving edges at {}, controlled at {}",
        node.addr(),
        args.control.display()
    );
    node.serve(&listener)?;
    Ok(ExitCode::Ok)
}
