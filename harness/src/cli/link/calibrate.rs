//! `celslm link calibrate`: does the link do what its profile says?

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context as _;
use celslm::exit::ExitCode;
use celslm_link::{
    Audit, CalibrateOptions, Calibration, Impairments, LinkFacts, LinkProfile, Tolerances, Verdict,
};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::cli::listing;

/// Measure RTT, rate and loss of an emulated link and hold them against its profile
///
/// Echoed datagrams give the RTT, numbered ones the loss, a TCP bulk transfer (or, where that does
/// not fill the path, a flood of datagrams) the rate, all over the path itself. Ends with 0 when
/// every figure lies within its tolerance and with 5 when one does not.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CalibrateArgs {
    /// Link profiles: names of `celslm link profiles`, or .toml files; or `RATE/RTT`, in Mbit/s and
    /// ms, for both directions alike
    #[arg(required = true, value_name = "PROFILE")]
    profiles: Vec<String>,

    /// Measure longer (20,000 numbered datagrams, 2,000 echoes, 3 s for each rate) and more
    /// strictly (median RTT within 0.3 ms or 1%, p99 within 2 ms, rate within 0.5%, of a trace
    /// within 1%, above 300 Mbit/s within 2%)
    #[arg(long)]
    strict: bool,

    /// Seconds for which each rate is measured, up to 120: as many as a trace's period to hold the
    /// whole of it to 1% [default: 0.6, with --strict 3]
    #[arg(long, value_name = "S")]
    rate_seconds: Option<f64>,

    /// Threads that do nothing but compute meanwhile, as inference does beside a link; RTT is then
    /// held to 5% and p99 + 5 ms
    #[arg(long, value_name = "N", default_value_t = 0)]
    hogs: usize,

    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    #[command(flatten)]
    build: super::BuildArgs,
}

const EXAMPLES: &str = "\
Examples:
  celslm link calibrate metro-100m-20ms lte-us
  celslm link calibrate --strict 1/20 10/20 100/20 300/20 1000/20
  celslm link calibrate --strict --rate-seconds 60 ./my-trace.toml
  celslm link calibrate --hogs 2 100/20
  celslm link calibrate --backend kernel 100/20 --format json";

/// How the result is printed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// A line for each figure.
    Table,
    /// One JSON value with everything.
    Json,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Output {
    schema_version: u32,
    link: LinkFacts,
    calibrations: Vec<Measured>,
}

#[derive(Serialize)]
struct Measured {
    calibration: Calibration,
    audit: Option<Audit>,
}

/// Runs the command.
pub(super) fn run(args: &CalibrateArgs) -> anyhow::Result<ExitCode> {
    let profiles: Vec<LinkProfile> = args
        .profiles
        .iter()
        .map(|name| profile(name))
        .collect::<anyhow::Result<_>>()?;
    let link = args.build.start()?;
    eprintln!("link: {}", super::describe(link.facts()));
    let stop = AtomicBool::new(false);
    let calibrations = thread::scope(|scope| {
        for _ in 0..args.hogs {
            scope.spawn(|| compute(&stop));
        }
        let all = profiles
            .iter()
            .map(|profile| {
                link.set_profile(0, profile)
                    .with_context(|| format!("set profile {}", profile.name))?;
                let calibration = link.calibrate(0, &options(profile, args))?;
                let audit = link.audit(0)?;
                if matches!(args.format, Format::Table) {
                    print(&calibration, audit.as_ref());
                }
                Ok(Measured { calibration, audit })
            })
            .collect::<anyhow::Result<Vec<Measured>>>();
        stop.store(true, Ordering::Relaxed);
        all
    })?;
    let degraded = calibrations
        .iter()
        .any(|measured| measured.calibration.verdict == Verdict::Degraded);
    if matches!(args.format, Format::Json) {
        let output = Output {
            schema_version: 1,
            link: link.facts().clone(),
            calibrations,
        };
        listing::show(&format!("{}\n", serde_json::to_string_pretty(&output)?));
    }
    Ok(if degraded {
        ExitCode::Measurement
    } else {
        ExitCode::Ok
    })
}

/// A profile by name or file, or `RATE/RTT`.
fn profile(name: &str) -> anyhow::Result<LinkProfile> {
    let numbers = name
        .split_once('/')
        .and_then(|(rate, rtt)| Some((rate.parse::<f64>().ok()?, rtt.parse::<f64>().ok()?)));
    let Some((rate_mbit, rtt_ms)) = numbers else {
        return super::profile(name);
    };
    let mut profile = LinkProfile::unimpaired();
    profile.name = format!("{rate_mbit}m-{rtt_ms}ms").replace('.', "_");
    profile.description = "given on the command line".to_owned();
    for direction in [&mut profile.uplink, &mut profile.downlink] {
        direction.rate_mbit = Some(rate_mbit);
        direction.delay_ms = rtt_ms / 2.0;
    }
    profile.validate()?;
    Ok(profile)
}

fn options(profile: &LinkProfile, args: &CalibrateArgs) -> CalibrateOptions {
    let mut options = CalibrateOptions::default();
    if args.strict {
        let fastest = [&profile.uplink, &profile.downlink]
            .into_iter()
            .filter_map(Impairments::mean_mbit)
            .fold(0.0, f64::max);
        let traced = profile.uplink.trace.is_some() || profile.downlink.trace.is_some();
        options = CalibrateOptions {
            pings: 2_000,
            ping_interval_us: 2_000,
            loss_datagrams: 20_000,
            rate_window_ms: 3_000,
            tolerances: Tolerances {
                rtt_ms: 0.3,
                rtt_fraction: 0.01,
                rtt_p99_ms: 2.0,
                rate_fraction: if fastest > 300.0 {
                    0.02
                } else if traced {
                    0.01
                } else {
                    0.005
                },
                loss_z: 2.576,
            },
        };
    }
    if let Some(seconds) = args.rate_seconds {
        options.rate_window_ms = (seconds * 1e3).round() as u64;
    }
    if args.hogs > 0 {
        options.tolerances.rtt_fraction = 0.05;
        options.tolerances.rtt_p99_ms = 5.0;
    }
    options
}

/// Computes until told otherwise.
fn compute(stop: &AtomicBool) {
    let mut value = 1_u64;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..10_000 {
            value = black_box(
                value
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1),
            );
        }
    }
}

fn print(calibration: &Calibration, audit: Option<&Audit>) {
    let number = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.4}"));
    let mut rows =
        vec![["figure", "target", "measured", "from", "to", "verdict"].map(str::to_owned)];
    for (name, figure) in calibration.figures() {
        rows.push([
            name.to_owned(),
            number(figure.target),
            number(figure.measured),
            number(figure.low),
            number(figure.high),
            format!("{:?}", figure.verdict).to_lowercase(),
        ]);
    }
    listing::show(&format!("{}\n", calibration.profile));
    listing::print("  ", &rows);
    if let Some(audit) = audit {
        listing::show(&format!(
            "  lateness of {} packets: p50 {:.0} µs, p99 {:.0} µs, at most {:.0} µs; {:.2} s of CPU\n",
            audit.packets,
            audit.lateness_p50_us,
            audit.lateness_p99_us,
            audit.lateness_max_us,
            audit.cpu_s
        ));
    }
}
