//! `celslm link`: the emulated link by itself.

mod calibrate;
mod profiles;
mod run;

use std::path::Path;

use anyhow::Context as _;
use celslm::catalogue::Catalogue;
use celslm::exit::ExitCode;
use celslm_link::{BackendChoice, DeviceChoice, HostOptions, Link, LinkFacts, LinkProfile};
use clap::{Args, Subcommand};

/// Put programs on an emulated link, measure it, list its profiles
#[derive(Debug, Args)]
pub(crate) struct LinkArgs {
    #[command(subcommand)]
    command: LinkCommand,
}

#[derive(Debug, Subcommand)]
enum LinkCommand {
    Run(run::RunArgs),
    Calibrate(calibrate::CalibrateArgs),
    /// List the profiles in configs/links, with their figures and sources
    Profiles,
}

/// Runs the command.
pub(crate) fn run(args: &LinkArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        LinkCommand::Run(args) => run::run(args),
        LinkCommand::Calibrate(args) => calibrate::run(args),
        LinkCommand::Profiles => profiles::run(),
    }
}

/// How the link is built, the same for all commands.
#[derive(Debug, Args)]
struct BuildArgs {
    /// How the path is made; `auto` takes the first that works here and says which
    #[arg(long, value_name = "BACKEND", default_value = "auto", value_parser = backend)]
    backend: BackendChoice,

    /// What backend `userspace` gives its nodes: `tun`, `veth`, or `auto`
    #[arg(long, value_name = "DEVICES", default_value = "auto", value_parser = devices)]
    devices: DeviceChoice,

    /// TCP congestion control of both ends [default: cubic where the kernel has it]
    #[arg(long, value_name = "NAME")]
    congestion_control: Option<String>,

    /// Seed of the link's random streams: the same seed impairs the same packets
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// CPU to pin the packet thread to
    #[arg(long, value_name = "CPU")]
    packet_cpu: Option<usize>,

    /// Keep the packet thread awake shortly before each departure: more punctual, for much of a CPU
    #[arg(long)]
    spin: bool,
}

impl BuildArgs {
    /// Builds the link, which impairs nothing yet.
    fn start(&self) -> anyhow::Result<Link> {
        let exe = std::env::current_exe().context("find this program's own file")?;
        let mut options = HostOptions::new(exe, ["link-host"]);
        options.backend = self.backend;
        options.devices = self.devices;
        options
            .congestion_control
            .clone_from(&self.congestion_control);
        options.seed = self.seed;
        options.packet_cpu = self.packet_cpu;
        options.spin = self.spin;
        Ok(Link::start(&options)?)
    }
}

fn backend(name: &str) -> Result<BackendChoice, String> {
    name.parse()
}

fn devices(name: &str) -> Result<DeviceChoice, String> {
    name.parse()
}

/// The profile in a file, or the one of that name in configs/links.
fn profile(name: &str) -> anyhow::Result<LinkProfile> {
    let path = Path::new(name);
    if path
        .extension()
        .is_some_and(|extension| extension == "toml")
    {
        return Ok(LinkProfile::load(path)?);
    }
    Ok(LinkProfile::find(&Catalogue::find().links_dir(), name)?)
}

/// One line on what a link is made of.
fn describe(facts: &LinkFacts) -> String {
    let scheduling = facts
        .scheduling
        .as_ref()
        .map_or(String::new(), |s| format!(", packet thread {}", s.policy));
    format!(
        "backend {} ({}), {}, {}{scheduling}, kernel {}",
        facts.backend, facts.reason, facts.devices, facts.congestion_control, facts.kernel
    )
}
