//! `celslm link run`: any two programs on an emulated path.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;
use celslm::exit::ExitCode;
use celslm_link::{Audit, Counters, Link, LinkFacts, Node, TrafficCounters};
use clap::Args;
use serde::Serialize;

/// Run a program at the edge's end of an emulated link, and one at the cloud's if wanted
///
/// COMMAND sees the edge's network namespace: `lo` and `link0`, with the cloud at the address in
/// `CELSLM_CLOUD_ADDR`, which also replaces `{cloud}` in the arguments (and `CELSLM_EDGE_ADDR`,
/// `{edge}`). Its input, output and terminal are yours. When it ends, the program of --cloud is
/// ended, the link is taken down, and what passed over it is printed to standard error; the exit
/// code is COMMAND's.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RunArgs {
    /// Link profile: a name of `celslm link profiles`, or a .toml file
    #[arg(long, value_name = "PROFILE")]
    profile: String,

    /// Shell command to run at the cloud's end, started first
    #[arg(long, value_name = "COMMAND")]
    cloud: Option<String>,

    /// Write what the link is, what passed over it and how punctual it was to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// How long the cloud's program is given before COMMAND starts, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500)]
    cloud_head_start_ms: u64,

    #[command(flatten)]
    build: super::BuildArgs,

    /// Program to run at the edge's end, with its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  celslm link run --profile lte-us -- ping -c 5 {cloud}
  celslm link run --profile metro-100m-20ms --cloud 'iperf3 -s -1' -- iperf3 -c {cloud} -R
  celslm link run --profile ./my-link.toml --cloud 'python3 -m http.server' -- curl -s {cloud}:8000
  celslm link run --profile slow-20m-60ms -- bash          (a shell at the edge)";

/// Runs the command.
pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let profile = super::profile(&args.profile)?;
    // Ctrl-C is for the programs; this one ends when they have, and takes the link down.
    ctrlc::set_handler(|| {}).context("watch for Ctrl-C")?;
    let link = args.build.start()?;
    link.set_profile(0, &profile)?;
    eprintln!(
        "link: {} on {}",
        profile.name,
        super::describe(link.facts())
    );
    let fill = |text: &String| {
        text.replace("{cloud}", &link.addr(Node::Cloud).to_string())
            .replace("{edge}", &link.addr(Node::Edge(0)).to_string())
    };
    let mut cloud = match &args.cloud {
        Some(shell) => {
            let mut command = Command::new("sh");
            command.arg("-c").arg(fill(shell));
            let child = start(&link, Node::Cloud, command, shell)?;
            std::thread::sleep(Duration::from_millis(args.cloud_head_start_ms));
            Some(child)
        }
        None => None,
    };
    let (program, rest) = args.command.split_first().context("COMMAND is empty")?;
    let mut command = Command::new(fill(program));
    command.args(rest.iter().map(fill));
    let status = start(&link, Node::Edge(0), command, program)?
        .wait()
        .with_context(|| format!("wait for {program}"))?;
    if let Some(cloud) = &mut cloud {
        end(cloud);
    }
    let report = Report {
        schema_version: 1,
        profile: &profile.name,
        counters: link.counters(0)?,
        audit: link.audit(0)?,
        link: link.facts(),
    };
    if let Some(path) = &args.report {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    print(&report);
    drop(link);
    match code(status) {
        0 => Ok(ExitCode::Ok),
        // The program's own, whatever it means.
        code => std::process::exit(code),
    }
}

/// Starts a program at a node.
fn start(link: &Link, node: Node, mut command: Command, name: &str) -> anyhow::Result<Child> {
    command
        .env("CELSLM_EDGE_ADDR", link.addr(Node::Edge(0)).to_string())
        .env("CELSLM_CLOUD_ADDR", link.addr(Node::Cloud).to_string());
    link.enter(node, &mut command)?;
    command
        .spawn()
        .with_context(|| format!("start {name} at the {node}"))
}

/// Ends the cloud's program and waits for it.
fn end(child: &mut Child) {
    // One that has ended by itself needs no signal.
    let _ = child.kill();
    let _ = child.wait();
}

/// A shell's convention for those that a signal has ended.
fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// What `--report` writes.
#[derive(Serialize)]
struct Report<'a> {
    schema_version: u32,
    profile: &'a str,
    /// `None` on a backend that counts nothing.
    counters: Option<Counters>,
    /// `None` where there is no packet thread.
    audit: Option<Audit>,
    link: &'a LinkFacts,
}

fn print(report: &Report<'_>) {
    let Some(counters) = report.counters else {
        return;
    };
    let line = |name: &str, way: TrafficCounters| {
        eprintln!(
            "link: {name} {} packets, {} bytes sent; {} packets, {} bytes delivered; dropped {} by loss, {} by the queue",
            way.packets,
            way.bytes,
            way.delivered_packets,
            way.delivered_bytes,
            way.dropped_loss,
            way.dropped_queue
        );
    };
    line("up  ", counters.uplink);
    line("down", counters.downlink);
    if let Some(audit) = report.audit {
        eprintln!(
            "link: lateness p50 {:.0} µs, p99 {:.0} µs, at most {:.0} µs; {:.2} s of CPU; {} packets dropped before the link, {} writes refused",
            audit.lateness_p50_us,
            audit.lateness_p99_us,
            audit.lateness_max_us,
            audit.cpu_s,
            audit.device_drops,
            audit.write_failures
        );
    }
}
