//! `celslm relay`: the inner half of the way out of the link, which `run` starts.

use std::net::SocketAddr;
use std::path::PathBuf;

use celslm::exit::ExitCode;
use clap::Args;

/// Pass connections on from the cloud's end of the link; `run` starts it
#[derive(Debug, Args)]
pub(crate) struct RelayArgs {
    /// Address to listen on
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Unix socket of the outer half
    #[arg(long, value_name = "SOCKET")]
    exit: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: &RelayArgs) -> anyhow::Result<ExitCode> {
    celslm::relay::serve(args.listen, &args.exit)?;
    Ok(ExitCode::Ok)
}
