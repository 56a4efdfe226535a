//! The link over real processes, namespaces and devices.
//!
//! The link host must start before its process has a second thread, which the usual test harness
//! does not allow, so this binary is its own harness: run with a role as its first argument it is
//! the link host, a controller to be killed, or a node. Where namespaces or TUN are missing, the
//! tests that need them say so and count as skipped.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};
use std::thread;
use std::time::Duration;

use celslm_link::profile::{JitterDistribution, LossConfig};
use celslm_link::{
    Backend, BackendChoice, CalibrateOptions, Calibration, DeviceChoice, HostOptions, Link,
    LinkError, LinkFacts, LinkProfile, Node, NodeCommand, NodeSignal, ProcessId, TrafficCounters,
    Verdict, host_main, probe,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

type Outcome = Result<(), Box<dyn Error>>;

/// Attempts that a timing assertion gets: other work shares this machine, but a link that is
/// wrong misses its figures every time.
const ATTEMPTS: usize = 3;

/// A test, and the backend without which it is skipped.
struct Test {
    name: &'static str,
    needs: Option<&'static str>,
    run: fn() -> Outcome,
}

const TESTS: &[Test] = &[
    Test {
        name: "rtt_and_rate_match_the_profile",
        needs: Some("userspace"),
        run: rtt_and_rate,
    },
    Test {
        name: "loss_lies_within_its_interval",
        needs: Some("userspace"),
        run: loss,
    },
    Test {
        name: "a_trace_delivers_its_own_bytes",
        needs: Some("userspace"),
        run: trace,
    },
    Test {
        name: "losses_in_bursts_are_judged_as_such",
        needs: Some("userspace"),
        run: bursts,
    },
    Test {
        name: "normal_jitter_matches_its_prediction",
        needs: Some("userspace"),
        run: jitter,
    },
    Test {
        name: "profiles_change_live",
        needs: Some("userspace"),
        run: live_change,
    },
    Test {
        name: "userspace_counts_what_is_sent",
        needs: Some("userspace"),
        run: userspace_counters,
    },
    Test {
        name: "veth_counts_what_is_sent",
        needs: Some("none"),
        run: veth_counters,
    },
    Test {
        name: "every_edge_has_its_own_leg",
        needs: Some("userspace"),
        run: own_legs,
    },
    Test {
        name: "packet_sockets_stand_in_for_tun",
        needs: Some("none"),
        run: packet_sockets,
    },
    Test {
        name: "bytes_arrive_whole_over_a_corrupting_link",
        needs: Some("userspace"),
        run: whole_bytes,
    },
    Test {
        name: "a_command_runs_at_a_node",
        needs: Some("none"),
        run: entered,
    },
    Test {
        name: "facts_state_the_link",
        needs: Some("userspace"),
        run: facts,
    },
    Test {
        name: "nodes_end_and_are_reported",
        needs: Some("none"),
        run: node_exits,
    },
    Test {
        name: "a_killed_host_leaves_nothing",
        needs: Some("userspace"),
        run: killed_host,
    },
    Test {
        name: "a_killed_controller_leaves_nothing",
        needs: Some("userspace"),
        run: killed_controller,
    },
    Test {
        name: "a_dropped_link_leaves_nothing",
        needs: Some("userspace"),
        run: dropped,
    },
    Test {
        name: "kernel_rtt_and_rate_match_the_profile",
        needs: Some("kernel"),
        run: kernel_rtt_and_rate,
    },
    Test {
        name: "kernel_loss_lies_within_its_interval",
        needs: Some("kernel"),
        run: kernel_loss,
    },
    Test {
        name: "kernel_profiles_change_live",
        needs: Some("kernel"),
        run: kernel_live_change,
    },
    Test {
        name: "kernel_legs_have_profiles_of_their_own",
        needs: Some("kernel"),
        run: kernel_legs,
    },
    Test {
        name: "kernel_counts_what_is_sent",
        needs: Some("kernel"),
        run: kernel_counters,
    },
    Test {
        name: "kernel_repeats_its_losses_where_it_takes_a_seed",
        needs: Some("kernel"),
        run: kernel_seed,
    },
    Test {
        name: "kernel_impairs_as_its_models_say",
        needs: Some("kernel"),
        run: kernel_impairments,
    },
    Test {
        name: "kernel_refuses_what_netem_cannot_do",
        needs: Some("kernel"),
        run: kernel_refusals,
    },
    Test {
        name: "kernel_states_the_link",
        needs: Some("kernel"),
        run: kernel_facts,
    },
    Test {
        name: "kernel_leaves_nothing_when_its_host_is_killed",
        needs: Some("kernel"),
        run: kernel_killed_host,
    },
    Test {
        name: "a_kernel_without_netem_is_told_apart",
        needs: None,
        run: kernel_without_netem,
    },
    Test {
        name: "a_hanging_host_is_ended",
        needs: None,
        run: hanging_host,
    },
    Test {
        name: "impairments_need_a_backend_that_emulates",
        needs: None,
        run: refusals,
    },
    Test {
        name: "bad_requests_are_told_apart",
        needs: None,
        run: bad_requests,
    },
    Test {
        name: "an_unprivileged_user_gets_a_reason",
        needs: Some("none"),
        run: unprivileged,
    },
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("link-host") => exit(host_main()),
        Some("role-controller") => controller(),
        Some("role-facts") => print_facts(),
        Some("role-sleep") => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        Some("role-receive") => receive(&args[1], &args[2]),
        Some("role-take") => take(&args[1], &args[2], &args[3]),
        Some("role-give") => give(&args[1], &args[2]),
        Some("role-send") => send(&args[1], &args[2], &args[3]),
        _ => run_tests(&args),
    }
}

fn run_tests(args: &[String]) {
    if args.iter().any(|arg| arg == "--list") {
        for test in TESTS {
            println!("{}: test", test.name);
        }
        return;
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter));
    let capabilities = match probe(&exe(), &["link-host".into()]) {
        Ok(capabilities) => capabilities,
        Err(error) => {
            eprintln!("the probe failed: {error}");
            exit(1);
        }
    };
    for item in capabilities.items.iter().chain(&capabilities.backends) {
        println!(
            "{:<20} {:<3} {}",
            item.name,
            if item.available { "yes" } else { "no" },
            item.detail
        );
    }
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for test in TESTS.iter().filter(|test| wanted(test.name)) {
        let missing = test.needs.and_then(|needed| {
            capabilities
                .backends
                .iter()
                .find(|backend| backend.name == needed && !backend.available)
        });
        if let Some(missing) = missing {
            println!(
                "test {} ... SKIPPED: backend {} cannot run here: {}",
                test.name, missing.name, missing.detail
            );
            skipped += 1;
            continue;
        }
        let failure = match panic::catch_unwind(AssertUnwindSafe(test.run)) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it panicked".to_owned()),
        };
        match failure {
            None => {
                println!("test {} ... ok", test.name);
                passed += 1;
            }
            Some(failure) => {
                println!("test {} ... FAILED: {failure}", test.name);
                failed += 1;
            }
        }
    }
    println!("\ntest result: {passed} passed; {failed} failed; {skipped} skipped");
    exit(i32::from(failed > 0));
}

// What the tests use.

fn exe() -> PathBuf {
    std::env::current_exe().expect("this binary has a path")
}

fn options(backend: BackendChoice) -> HostOptions {
    HostOptions {
        backend,
        seed: 11,
        ..HostOptions::new(exe(), ["link-host"])
    }
}

fn node(args: &[&str]) -> NodeCommand {
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    NodeCommand {
        exe: exe(),
        args,
        ..NodeCommand::default()
    }
}

fn profile(name: &str, rate_mbit: Option<f64>, delay_ms: f64, loss: f64) -> LinkProfile {
    let mut profile = LinkProfile {
        name: name.to_owned(),
        ..LinkProfile::unimpaired()
    };
    for direction in [&mut profile.uplink, &mut profile.downlink] {
        direction.rate_mbit = rate_mbit;
        direction.delay_ms = delay_ms;
        direction.loss = loss;
    }
    profile
}

fn shipped(name: &str) -> Result<LinkProfile, Box<dyn Error>> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs/links");
    Ok(LinkProfile::find(&dir, name)?)
}

fn describe(calibration: &Calibration) -> String {
    let figures = calibration.figures().map(|(name, figure)| {
        let number =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        format!(
            "{name} {} (target {}, {:?})",
            number(figure.measured),
            number(figure.target),
            figure.verdict
        )
    });
    format!(
        "{}: {} in {:.0} ms",
        calibration.profile,
        figures.join(", "),
        calibration.wall_ms
    )
}

/// Repeats until the condition holds or three seconds are over.
fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    (0..600).any(|_| {
        let holds = condition();
        if !holds {
            thread::sleep(Duration::from_millis(5));
        }
        holds
    })
}

fn is_alive(process: u32) -> bool {
    // A zombie is dead, and whoever inherits it may take its time.
    fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('Z'))
    })
}

fn namespace_of(process: u32) -> Result<String, Box<dyn Error>> {
    let link = fs::read_link(format!("/proc/{process}/ns/net"))?;
    Ok(link.to_string_lossy().into_owned())
}

/// Every network namespace that a process is in or holds open.
fn namespaces_in_use() -> BTreeSet<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .flat_map(|process| namespaces_in(&process.path()))
        .collect()
}

/// The network namespaces that one process is in or holds open.
fn namespaces_held_by(process: u32) -> BTreeSet<String> {
    namespaces_in(&PathBuf::from(format!("/proc/{process}")))
}

fn namespaces_in(process: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten();
    files
        .map(|file| file.path())
        .chain([process.join("ns/net")])
        .filter_map(|path| {
            let target = fs::read_link(path).ok()?;
            Some(target.to_string_lossy().into_owned())
        })
        .filter(|target| target.starts_with("net:["))
        .collect()
}

/// Checks that processes and namespaces are gone.
fn assert_gone(processes: &[u32], namespaces: &[String]) {
    for &process in processes {
        assert!(
            eventually(|| !is_alive(process)),
            "process {process} is still there"
        );
    }
    for namespace in namespaces {
        assert!(
            eventually(|| !namespaces_in_use().contains(namespace)),
            "namespace {namespace} is still there"
        );
    }
    let devices = fs::read_to_string("/proc/net/dev").expect("devices");
    assert!(
        !devices.contains("link0"),
        "the device is in the machine's own namespace"
    );
}

/// A link with a node at each end, and the namespaces of the nodes.
struct Populated {
    link: Link,
    nodes: [ProcessId; 2],
    namespaces: [String; 2],
}

fn populated(backend: BackendChoice) -> Result<Populated, Box<dyn Error>> {
    let link = Link::start(&options(backend))?;
    let edge = link.spawn(Node::Edge(0), &node(&["role-sleep"]))?;
    let cloud = link.spawn(Node::Cloud, &node(&["role-sleep"]))?;
    let namespaces = [namespace_of(edge.0)?, namespace_of(cloud.0)?];
    let own = namespace_of(std::process::id())?;
    assert!(namespaces[0] != namespaces[1] && !namespaces.contains(&own));
    Ok(Populated {
        link,
        nodes: [edge, cloud],
        namespaces,
    })
}

// The tests.

fn rtt_and_rate() -> Outcome {
    let link = Link::start(&options(BackendChoice::Userspace))?;
    link.set_profile(0, &shipped("metro-100m-20ms")?)?;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let calibration = link.calibrate(0, &CalibrateOptions::default())?;
        let audit = link.audit(0)?.ok_or("this backend emulates")?;
        println!("  {}", describe(&calibration));
        println!("  {audit:?}");
        if calibration.verdict == Verdict::Ok {
            // What the verdict rests on, stated without it.
            let figure = |figure: celslm_link::Figure| figure.measured.unwrap_or_default();
            assert!((19.9..21.1).contains(&figure(calibration.rtt_p50_ms)));
            assert!((97.0..103.0).contains(&figure(calibration.uplink_rate_mbit)));
            assert!((97.0..103.0).contains(&figure(calibration.downlink_rate_mbit)));
            assert!(audit.packets > 1000 && audit.write_failures == 0 && audit.device_drops == 0);
            assert!(audit.lateness_p50_us <= audit.lateness_p99_us);
            // It begins anew when it is asked for.
            let audit = link.audit(0)?.ok_or("this backend emulates")?;
            assert!(audit.packets < 100, "{audit:?}");
            return Ok(());
        }
        last = Some(calibration);
    }
    Err(format!("degraded in every attempt: {last:?}").into())
}

fn loss() -> Outcome {
    let link = Link::start(&options(BackendChoice::Userspace))?;
    let options = CalibrateOptions {
        pings: 20,
        loss_datagrams: 10_000,
        rate_window_ms: 300,
        ..CalibrateOptions::default()
    };
    link.set_profile_with_seed(0, &profile("lossy", Some(20.0), 5.0, 0.05), 4)?;
    for attempt in 1..=ATTEMPTS {
        let calibration = link.calibrate(0, &options)?;
        println!("  {}", describe(&calibration));
        let half_width = 2.576 * (0.05_f64 * 0.95 / 10_000.0).sqrt();
        let within = |figure: celslm_link::Figure| {
            (figure.measured.unwrap_or_default() - 0.05).abs() <= half_width
        };
        let rates = [calibration.uplink_rate_mbit, calibration.downlink_rate_mbit];
        let full = rates
            .iter()
            .all(|rate| (19.0..20.6).contains(&rate.measured.unwrap_or_default()));
        if within(calibration.uplink_loss) && within(calibration.downlink_loss) && full {
            break;
        }
        assert!(attempt < ATTEMPTS, "outside in every attempt");
    }
    let counters = link.counters(0)?.ok_or("this backend counts")?;
    for direction in [counters.uplink, counters.downlink] {
        let sum = direction.delivered_packets + direction.dropped_loss + direction.dropped_queue;
        assert!(
            direction.dropped_loss > 300 && sum <= direction.packets,
            "{direction:?}"
        );
    }
    Ok(())
}

/// Calibrates until nothing is degraded, and returns that calibration.
fn sound(link: &Link, options: &CalibrateOptions) -> Result<Calibration, Box<dyn Error>> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let calibration = link.calibrate(0, options)?;
        println!(
            "  {} of which {:.0} ms to predict",
            describe(&calibration),
            calibration.prediction_ms
        );
        if calibration.verdict == Verdict::Ok {
            return Ok(calibration);
        }
        last = Some(calibration);
    }
    Err(format!("degraded in every attempt: {last:?}").into())
}

/// A Mahimahi trace is replayed to within 1% of its bytes per second.
fn trace() -> Outcome {
    const PERIOD_MS: u64 = 1_000;
    let dir = tempfile::tempdir()?;
    // Half a second at 12 Mbit/s, then 36 Mbit/s, and 39 ms of silence.
    let lines = (0..500).chain((500..960).flat_map(|ms| [ms; 3]));
    let lines: Vec<String> = lines.chain([PERIOD_MS]).map(|ms| ms.to_string()).collect();
    fs::write(dir.path().join("two-rates.up"), lines.join("\n"))?;
    let direction = "trace = { mahimahi = \"two-rates.up\" }\ndelay_ms = 10\noverhead_bytes = 4\n";
    let text = format!(
        "name = \"two-rates\"\ndescription = \"d\"\nsource = \"s\"\n\
         [uplink]\n{direction}[downlink]\n{direction}"
    );
    fs::write(dir.path().join("two-rates.toml"), text)?;
    let profile = LinkProfile::load(&dir.path().join("two-rates.toml"))?;
    let link = Link::start(&options(BackendChoice::Userspace))?;
    link.set_profile(0, &profile)?;
    let mut options = CalibrateOptions {
        rate_window_ms: 2 * PERIOD_MS,
        ..CalibrateOptions::default()
    };
    options.tolerances.rate_fraction = 0.01;
    let calibration = sound(&link, &options)?;
    // What the verdict rests on, stated without it: a window of whole periods has the trace's mean.
    let mean = lines.len() as f64 * 1500.0 * 8.0 / 1e3 / PERIOD_MS as f64;
    for (figure, rate) in [
        (calibration.uplink_rate_mbit, calibration.uplink_rate),
        (calibration.downlink_rate_mbit, calibration.downlink_rate),
    ] {
        assert_eq!(figure.verdict, Verdict::Ok);
        for mbit in [figure.measured, figure.target].map(Option::unwrap_or_default) {
            assert!(
                (mbit / mean - 1.0).abs() < 0.015,
                "{mbit} instead of {mean}"
            );
        }
        let [from, until] = rate
            .window_ms
            .ok_or("the link knows when it got its profile")?;
        assert!(from > 0.0 && (until - from - 2e3).abs() < 1.0);
    }
    // A part of a period has another rate than the whole, and is held to that.
    options.rate_window_ms = 400;
    options.tolerances.rate_fraction = 0.03;
    sound(&link, &options)?;
    Ok(())
}

fn bursts() -> Outcome {
    let link = Link::start(&options(BackendChoice::Userspace))?;
    let mut bursty = profile("bursty", Some(20.0), 5.0, 0.0);
    for direction in [&mut bursty.uplink, &mut bursty.downlink] {
        // 1% in bursts of 5.
        direction.loss_model = Some(LossConfig::GilbertElliott {
            p: 0.002,
            r: 0.2,
            h: 0.0,
            k: 1.0,
        });
    }
    link.set_profile(0, &bursty)?;
    let options = CalibrateOptions {
        loss_datagrams: 10_000,
        rate_window_ms: 300,
        ..CalibrateOptions::default()
    };
    let calibration = sound(&link, &options)?;
    for figure in [calibration.uplink_loss, calibration.downlink_loss] {
        let high = figure.high.unwrap_or_default();
        // Independent losses would have 0.013 as their bound.
        assert!(high > 0.016, "{figure:?}");
        assert!((figure.target.unwrap_or_default() - 0.01).abs() < 0.004);
    }
    // Four times the loss is not what was asked for, burst or not.
    assert!(calibration.uplink_loss.high.unwrap_or(1.0) < 0.04);
    Ok(())
}

fn jitter() -> Outcome {
    let link = Link::start(&options(BackendChoice::Userspace))?;
    let mut jittery = profile("jittery", Some(50.0), 15.0, 0.0);
    for direction in [&mut jittery.uplink, &mut jittery.downlink] {
        direction.jitter_ms = 3.0;
        direction.jitter_distribution = JitterDistribution::Normal;
    }
    link.set_profile(0, &jittery)?;
    let options = CalibrateOptions {
        pings: 400,
        rate_window_ms: 300,
        ..CalibrateOptions::default()
    };
    let calibration = sound(&link, &options)?;
    // The sum of two normal jitters, at its 99th percentile.
    let p99 = 30.0 + 2.326 * 3.0 * 2.0_f64.sqrt();
    let target = calibration.rtt_p99_ms.target.unwrap_or_default();
    assert!((target - p99).abs() < 1.0, "{target} instead of {p99}");
    Ok(())
}

fn live_change() -> Outcome {
    change_live(BackendChoice::Userspace)
}

fn kernel_live_change() -> Outcome {
    change_live(BackendChoice::Kernel)
}

fn change_live(backend: BackendChoice) -> Outcome {
    let link = Link::start(&options(backend))?;
    let quick = CalibrateOptions {
        pings: 40,
        loss_datagrams: 200,
        rate_window_ms: 300,
        ..CalibrateOptions::default()
    };
    let mut before = link.counters(0)?.ok_or("this backend counts")?;
    // No RTT is so short that the machine's own share of it, some tenths of a millisecond, is what is judged.
    for (name, rtt_ms, rate) in [
        ("fast", 16.0, 100.0),
        ("slow", 60.0, 20.0),
        ("fast", 16.0, 100.0),
    ] {
        link.set_profile(0, &profile(name, Some(rate), rtt_ms / 2.0, 0.0))?;
        let mut calibration = link.calibrate(0, &quick)?;
        for _ in 1..ATTEMPTS {
            if calibration.verdict != Verdict::Ok {
                calibration = link.calibrate(0, &quick)?;
            }
        }
        println!("  {}", describe(&calibration));
        assert_eq!(calibration.verdict, Verdict::Ok);
        let rtt = calibration.rtt_p50_ms.measured.unwrap_or_default();
        assert!((rtt_ms - 0.1..rtt_ms * 1.05 + 0.5).contains(&rtt), "{rtt}");
        let after = link.counters(0)?.ok_or("this backend counts")?;
        assert!(
            after.uplink.bytes > before.uplink.bytes
                && after.downlink.bytes > before.downlink.bytes
        );
        before = after;
    }
    Ok(())
}

fn userspace_counters() -> Outcome {
    counters(BackendChoice::Userspace)
}

fn veth_counters() -> Outcome {
    counters(BackendChoice::None)
}

fn kernel_counters() -> Outcome {
    counters(BackendChoice::Kernel)
}

/// A known number of datagrams of known size must be counted exactly, and nothing else.
fn counters(backend: BackendChoice) -> Outcome {
    const COUNT: u64 = 300;
    const PAYLOAD: u64 = 1000;
    let link = Link::start(&options(backend))?;
    if link.facts().emulates {
        link.set_profile(0, &profile("short", Some(500.0), 1.0, 0.0))?;
    }
    let dir = tempfile::tempdir()?;
    let ready = dir.path().join("ready");
    let ready = ready.to_str().ok_or("temporary path is no text")?;
    let target = SocketAddr::new(link.addr(Node::Cloud), 7000).to_string();
    link.spawn(Node::Cloud, &node(&["role-receive", &target, ready]))?;
    assert!(
        eventually(|| fs::exists(ready).unwrap_or(false)),
        "the receiver did not start"
    );
    let before = link.counters(0)?.ok_or("this backend counts")?;
    let sender = node(&[
        "role-send",
        &target,
        &COUNT.to_string(),
        &PAYLOAD.to_string(),
    ]);
    let sender = link.spawn(Node::Edge(0), &sender)?;
    let sent = eventually(|| {
        link.exits().is_ok_and(|exits| {
            exits
                .iter()
                .any(|exit| exit.process == sender && exit.success())
        })
    });
    assert!(sent, "the sender failed: {:?}", link.exits()?);
    let traffic = || -> Result<_, Box<dyn Error>> {
        Ok(link
            .counters(0)?
            .ok_or("this backend counts")?
            .since(&before))
    };
    assert!(
        eventually(|| traffic().is_ok_and(|t| t.uplink.delivered_packets == COUNT)),
        "{:?}",
        traffic()?
    );
    let traffic = traffic()?;
    assert_eq!(
        (traffic.uplink.packets, traffic.uplink.bytes),
        (COUNT, COUNT * (PAYLOAD + 28))
    );
    assert_eq!(traffic.uplink.delivered_bytes, traffic.uplink.bytes);
    assert_eq!(traffic.downlink.packets, 0);
    Ok(())
}

fn own_legs() -> Outcome {
    legs(BackendChoice::Userspace)
}

fn kernel_legs() -> Outcome {
    legs(BackendChoice::Kernel)
}

/// Two edges with links of their own, and one between them.
fn legs(backend: BackendChoice) -> Outcome {
    let link = Link::start(&HostOptions {
        edges: 2,
        neighbours: vec![(0, 1)],
        ..options(backend)
    })?;
    let names: Vec<String> = link.legs().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["edge–cloud", "edge-1–cloud", "edge–edge-1"]);
    let quick = CalibrateOptions {
        pings: 40,
        loss_datagrams: 200,
        rate_window_ms: 300,
        ..CalibrateOptions::default()
    };
    // As above: none so short that the machine's own share of it is what is judged.
    for (leg, (rtt_ms, rate)) in [(24.0, 50.0), (40.0, 20.0), (16.0, 100.0)]
        .into_iter()
        .enumerate()
    {
        link.set_profile(leg, &profile("own", Some(rate), rtt_ms / 2.0, 0.0))?;
    }
    // Each leg does what it was told, whatever the others do.
    for leg in 0..3 {
        let mut calibration = link.calibrate(leg, &quick)?;
        for _ in 1..ATTEMPTS {
            if calibration.verdict != Verdict::Ok {
                calibration = link.calibrate(leg, &quick)?;
            }
        }
        println!("  {}: {}", link.legs()[leg], describe(&calibration));
        assert_eq!(calibration.verdict, Verdict::Ok);
    }
    let before = link.counters(0)?;
    link.calibrate(1, &quick)?;
    assert_eq!(
        link.counters(0)?,
        before,
        "leg 1's packets passed over leg 0"
    );
    let error = link.calibrate(3, &quick).expect_err("no such leg");
    assert!(error.to_string().contains("no leg 3"), "{error}");
    Ok(())
}

fn packet_sockets() -> Outcome {
    let link = Link::start(&HostOptions {
        devices: DeviceChoice::Veth,
        ..options(BackendChoice::Userspace)
    })?;
    println!("  {}", link.facts().devices);
    link.set_profile(0, &shipped("metro-100m-20ms")?)?;
    for attempt in 1..=ATTEMPTS {
        let calibration = link.calibrate(0, &CalibrateOptions::default())?;
        println!("  {}", describe(&calibration));
        if calibration.verdict == Verdict::Ok {
            break;
        }
        assert!(attempt < ATTEMPTS, "degraded in every attempt");
    }
    Ok(())
}

/// What TCP delivers is what was sent, although packets are cut, joined, lost and corrupted.
fn whole_bytes() -> Outcome {
    const BYTES: usize = 3_000_000;
    let link = Link::start(&options(BackendChoice::Userspace))?;
    let mut lossy = profile("bad", Some(200.0), 1.0, 0.002);
    lossy.uplink.corrupt = 0.002;
    link.set_profile_with_seed(0, &lossy, 3)?;
    let dir = tempfile::tempdir()?;
    let text = |name: &str| {
        dir.path()
            .join(name)
            .to_str()
            .map(str::to_owned)
            .ok_or("no text")
    };
    let (ready, took) = (text("ready")?, text("took")?);
    let target = SocketAddr::new(link.addr(Node::Cloud), 7001).to_string();
    link.spawn(Node::Cloud, &node(&["role-take", &target, &ready, &took]))?;
    assert!(eventually(|| fs::exists(&ready).unwrap_or(false)));
    link.spawn(
        Node::Edge(0),
        &node(&["role-give", &target, &BYTES.to_string()]),
    )?;
    let whole = (0..10)
        .any(|_| eventually(|| fs::metadata(&took).is_ok_and(|file| file.len() == BYTES as u64)));
    assert!(
        whole,
        "{:?} of {BYTES} bytes arrived",
        fs::metadata(&took)?.len()
    );
    let wrong = fs::read(&took)?
        .iter()
        .enumerate()
        .position(|(at, &byte)| byte != pattern(at));
    assert_eq!(wrong, None, "a byte is not what was sent");
    let counters = link.counters(0)?.ok_or("this backend counts")?;
    assert!(counters.uplink.dropped_loss > 0, "{counters:?}");
    Ok(())
}

fn entered() -> Outcome {
    let link = Link::start(&options(BackendChoice::None))?;
    let at = |node: Node| -> Result<String, Box<dyn Error>> {
        let mut command = Command::new("readlink");
        command.arg("/proc/self/ns/net");
        link.enter(node, &mut command)?;
        Ok(String::from_utf8(command.output()?.stdout)?
            .trim()
            .to_owned())
    };
    let sleeper = link.spawn(Node::Cloud, &node(&["role-sleep"]))?;
    assert_eq!(at(Node::Cloud)?, namespace_of(sleeper.0)?);
    assert_ne!(at(Node::Edge(0))?, at(Node::Cloud)?);
    let mut command = Command::new("true");
    let error = link
        .enter(Node::Edge(1), &mut command)
        .expect_err("no such node");
    assert!(error.to_string().contains("edge-1"), "{error}");
    Ok(())
}

fn facts() -> Outcome {
    let auto = Link::start(&options(BackendChoice::Auto))?;
    let facts = auto.facts();
    println!("  {}", serde_json::to_string(facts)?);
    assert_eq!((facts.backend, facts.emulates), (Backend::Userspace, true));
    assert!(facts.reason.starts_with("auto: ") && facts.attempts.is_empty());
    assert!(
        facts
            .scheduling
            .as_ref()
            .is_some_and(|scheduling| scheduling.timer_slack_ns <= 1)
    );
    assert!(facts.sysctls["net.ipv4.tcp_wmem"].ends_with(&(32 << 20).to_string()));
    let available = &facts.sysctls["net.ipv4.tcp_available_congestion_control"];
    if available.contains("cubic") {
        assert_eq!(facts.congestion_control, "cubic");
    }
    drop(auto);
    let link = Link::start(&HostOptions {
        congestion_control: Some("reno".to_owned()),
        tcp_slow_start_after_idle: Some(false),
        packet_cpu: Some(0),
        ..options(BackendChoice::Userspace)
    })?;
    assert_eq!(link.facts().congestion_control, "reno");
    assert_eq!(
        link.facts().sysctls["net.ipv4.tcp_slow_start_after_idle"],
        "0"
    );
    assert_eq!(
        link.facts()
            .scheduling
            .as_ref()
            .and_then(|scheduling| scheduling.cpu),
        Some(0)
    );
    Ok(())
}

fn node_exits() -> Outcome {
    let link = Link::start(&options(BackendChoice::None))?;
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("node.log");
    let shell = |script: &str| NodeCommand {
        exe: "/bin/sh".into(),
        args: vec!["-c".to_owned(), script.to_owned()],
        env: vec![("GREETING".to_owned(), "good day".to_owned())],
        log: Some(log.clone()),
        cpus: Some(vec![0]),
    };
    let failing = link.spawn(
        Node::Cloud,
        &shell("echo $GREETING; echo $GREETING >&2; exit 3"),
    )?;
    let killed = link.spawn(Node::Edge(0), &shell("sleep 1000 & wait"))?;
    assert!(eventually(|| link
        .exits()
        .is_ok_and(|exits| exits.len() == 1)));
    let exits = link.exits()?;
    assert_eq!(
        (exits[0].process, exits[0].node, exits[0].code),
        (failing, Node::Cloud, Some(3))
    );
    assert_eq!(fs::read_to_string(&log)?, "good day\ngood day\n");
    // By the kernel's hand, as any other process would do it.
    kill(Pid::from_raw(killed.0.cast_signed()), Signal::SIGKILL)?;
    assert!(eventually(|| link
        .exits()
        .is_ok_and(|exits| exits.len() == 2)));
    let exit = link.exits()?[1];
    assert_eq!(
        (exit.process, exit.signal, exit.success()),
        (killed, Some(9), false)
    );
    assert!(
        exit.to_string().contains("edge node") && exit.to_string().contains("signal 9"),
        "{exit}"
    );
    // The link outlives its nodes, and takes new ones.
    let error = link
        .kill(killed, NodeSignal::Terminate)
        .expect_err("it is dead");
    assert!(matches!(error, LinkError::Failed { .. }), "{error}");
    let next = link.spawn(Node::Edge(0), &node(&["role-sleep"]))?;
    link.kill(next, NodeSignal::Terminate)?;
    assert!(eventually(|| link
        .exits()
        .is_ok_and(|exits| exits.len() == 3)));
    assert_eq!(link.exits()?[2].signal, Some(15));
    Ok(())
}

fn killed_host() -> Outcome {
    kill_host(BackendChoice::Userspace)
}

fn kernel_killed_host() -> Outcome {
    kill_host(BackendChoice::Kernel)
}

fn kill_host(backend: BackendChoice) -> Outcome {
    let Populated {
        link,
        nodes,
        namespaces,
    } = populated(backend)?;
    let host = link.facts().host_pid;
    let mut namespaces = BTreeSet::from(namespaces);
    // What a host in a user namespace holds, its user may not see.
    let own = namespaces_held_by(std::process::id());
    namespaces.extend(namespaces_held_by(host).difference(&own).cloned());
    if nix::unistd::geteuid().is_root() {
        // The router of the kernel backend has a namespace of its own.
        let expected = 2 + usize::from(backend == BackendChoice::Kernel);
        assert_eq!(namespaces.len(), expected, "{namespaces:?}");
    }
    let namespaces = Vec::from_iter(namespaces);
    kill(Pid::from_raw(host.cast_signed()), Signal::SIGKILL)?;
    assert_gone(&[host, nodes[0].0, nodes[1].0], &namespaces);
    let error = link.counters(0).expect_err("the host is gone");
    assert!(matches!(error, LinkError::HostEnded { .. }), "{error}");
    assert!(error.to_string().contains("signal: 9"), "{error}");
    Ok(())
}

fn killed_controller() -> Outcome {
    let mut controller = Command::new(exe())
        .arg("role-controller")
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = controller.stdout.take().ok_or("no output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let processes: Vec<u32> = line
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    assert_eq!(processes.len(), 3, "{line}");
    let namespaces = [namespace_of(processes[1])?, namespace_of(processes[2])?];
    controller.kill()?;
    controller.wait()?;
    assert_gone(&processes, &namespaces);
    Ok(())
}

fn dropped() -> Outcome {
    let Populated {
        link,
        nodes,
        namespaces,
    } = populated(BackendChoice::Userspace)?;
    // A node that stands still must not keep the link.
    link.kill(nodes[0], NodeSignal::Stop)?;
    let host = link.facts().host_pid;
    drop(link);
    assert_gone(&[host, nodes[0].0, nodes[1].0], &namespaces);
    Ok(())
}

fn hanging_host() -> Outcome {
    let link = Link::start(&options(BackendChoice::Loopback))?;
    let sleeper = link.spawn(Node::Edge(0), &node(&["role-sleep"]))?;
    let host = link.facts().host_pid;
    kill(Pid::from_raw(host.cast_signed()), Signal::SIGSTOP)?;
    drop(link);
    assert_gone(&[host, sleeper.0], &[]);
    Ok(())
}

fn kernel_rtt_and_rate() -> Outcome {
    let link = Link::start(&options(BackendChoice::Kernel))?;
    let mut jittery = profile("jittery-20m-40ms", Some(20.0), 20.0, 0.0);
    for direction in [&mut jittery.uplink, &mut jittery.downlink] {
        direction.jitter_ms = 2.0;
    }
    for profile in [
        profile("even-100m-20ms", Some(100.0), 10.0, 0.0),
        profile("even-20m-60ms", Some(20.0), 30.0, 0.0),
        jittery,
    ] {
        link.set_profile(0, &profile)?;
        let mut calibration = link.calibrate(0, &CalibrateOptions::default())?;
        println!("  {}", describe(&calibration));
        for _ in 1..ATTEMPTS {
            if calibration.verdict != Verdict::Ok {
                calibration = link.calibrate(0, &CalibrateOptions::default())?;
                println!("  {}", describe(&calibration));
            }
        }
        assert_eq!(
            calibration.verdict,
            Verdict::Ok,
            "degraded in every attempt"
        );
    }
    Ok(())
}

fn kernel_loss() -> Outcome {
    let link = Link::start(&options(BackendChoice::Kernel))?;
    let thorough = CalibrateOptions {
        pings: 20,
        loss_datagrams: 10_000,
        rate_window_ms: 300,
        ..CalibrateOptions::default()
    };
    link.set_profile_with_seed(0, &profile("lossy", Some(20.0), 5.0, 0.05), 4)?;
    for attempt in 1..=ATTEMPTS {
        let calibration = link.calibrate(0, &thorough)?;
        println!("  {}", describe(&calibration));
        if calibration.verdict == Verdict::Ok {
            break;
        }
        assert!(attempt < ATTEMPTS, "degraded in every attempt");
    }
    // What a profile without loss drops is the queue's, and the earlier drops stay counted.
    let before = link.counters(0)?.ok_or("this backend counts")?.uplink;
    assert!(
        before.dropped_undistinguished > 300
            && before.dropped_queue == 0
            && before.delivered_packets + before.dropped_undistinguished <= before.packets,
        "{before:?}"
    );
    let mut narrow = profile("narrow", Some(1.0), 5.0, 0.0);
    narrow.uplink.limit_packets = Some(10);
    link.set_profile(0, &narrow)?;
    let target = SocketAddr::new(link.addr(Node::Cloud), 7000).to_string();
    let sender = link.spawn(Node::Edge(0), &node(&["role-send", &target, "300", "1000"]))?;
    assert!(eventually(|| link.exits().is_ok_and(|exits| exits
        .iter()
        .any(|exit| exit.process == sender))));
    let after = link.counters(0)?.ok_or("this backend counts")?.uplink;
    println!("  {after:?}");
    assert!(after.dropped_queue > 100, "{after:?}");
    assert_eq!(
        after.dropped_undistinguished,
        before.dropped_undistinguished
    );
    Ok(())
}

fn kernel_seed() -> Outcome {
    let link = Link::start(&options(BackendChoice::Kernel))?;
    if link.facts().reason.contains("takes no seed") {
        println!("  skipped: {}", link.facts().reason);
        return Ok(());
    }
    let lossy = profile("lossy", None, 1.0, 0.3);
    let delivered = |seed| -> Result<u64, Box<dyn Error>> {
        let passed = uplink_after(&link, &lossy, seed, 1000)?;
        let dropped = passed.dropped_undistinguished;
        assert_eq!(passed.delivered_packets + dropped, 1000);
        Ok(passed.delivered_packets)
    };
    let of_one = [delivered(1)?, delivered(1)?, delivered(1)?];
    let of_others = [delivered(2)?, delivered(3)?, delivered(4)?];
    println!("  of one seed {of_one:?}, of three others {of_others:?}");
    assert!(of_one.iter().all(|&count| count == of_one[0]));
    assert!(of_others.iter().any(|&count| count != of_one[0]));
    Ok(())
}

/// Bursts of losses and copies come as often as their models say.
fn kernel_impairments() -> Outcome {
    const COUNT: u64 = 10_000;
    let link = Link::start(&options(BackendChoice::Kernel))?;
    let models = [
        LossConfig::GilbertElliott {
            p: 0.02,
            r: 0.18,
            h: 0.25,
            k: 0.98,
        },
        LossConfig::FourState {
            p13: 0.05,
            p31: 0.3,
            p32: 0.2,
            p23: 0.5,
            p14: 0.02,
        },
    ];
    for model in models {
        let mut bursty = profile("bursty", None, 1.0, 0.0);
        bursty.uplink.loss_model = Some(model);
        let expected = bursty.uplink.loss_model().stationary_loss();
        let passed = uplink_after(&link, &bursty, 5, COUNT)?;
        let lost = 1.0 - passed.delivered_packets as f64 / COUNT as f64;
        println!("  {model:?}: lost {lost:.4}, in closed form {expected:.4}");
        assert_eq!(
            passed.delivered_packets + passed.dropped_undistinguished,
            COUNT
        );
        // Four standard deviations, where bursts make a packet count for a fifth.
        let deviation = (5.0 * expected * (1.0 - expected) / COUNT as f64).sqrt();
        assert!((lost - expected).abs() < 4.0 * deviation, "{deviation}");
    }
    let mut doubling = profile("doubling", None, 1.0, 0.0);
    doubling.uplink.duplicate = 0.2;
    // Twice, since the kernel refuses two disciplines that duplicate beside each other.
    for seed in [5, 6] {
        let passed = uplink_after(&link, &doubling, seed, COUNT)?;
        let copies = passed.delivered_packets.saturating_sub(COUNT) as f64 / COUNT as f64;
        println!("  duplicate 0.2: copies {copies:.4}");
        assert!((copies - 0.2).abs() < 4.0 * (0.2 * 0.8 / COUNT as f64).sqrt());
    }
    Ok(())
}

/// What netem cannot do is refused, and the link stays as it was.
fn kernel_refusals() -> Outcome {
    let link = Link::start(&options(BackendChoice::Kernel))?;
    link.set_profile(0, &profile("before", Some(20.0), 10.0, 0.0))?;
    let mut bounded = profile("bounded", Some(20.0), 5.0, 0.0);
    bounded.downlink.limit_bytes = Some(100_000);
    let error = link.set_profile(0, &bounded).expect_err("refused");
    println!("  {error}");
    let message = error.to_string();
    assert!(
        error.is_usage()
            && message.contains("\"bounded\": downlink.limit_bytes: ")
            && message.contains("\"userspace\""),
        "{message}"
    );
    let calibration = link.calibrate(
        0,
        &CalibrateOptions {
            pings: 20,
            loss_datagrams: 0,
            rate_window_ms: 100,
            ..CalibrateOptions::default()
        },
    )?;
    assert_eq!(calibration.profile, "before");
    let rtt = calibration.rtt_p50_ms.measured.unwrap_or_default();
    assert!((20.0..22.0).contains(&rtt), "{rtt}");
    Ok(())
}

/// What the uplink counts under a profile while the edge sends so many small datagrams.
fn uplink_after(
    link: &Link,
    profile: &LinkProfile,
    seed: u64,
    count: u64,
) -> Result<TrafficCounters, Box<dyn Error>> {
    link.set_profile_with_seed(0, profile, seed)?;
    let uplink = || -> Result<_, Box<dyn Error>> {
        Ok(link.counters(0)?.ok_or("this backend counts")?.uplink)
    };
    let before = uplink()?;
    let target = SocketAddr::new(link.addr(Node::Cloud), 7000).to_string();
    let args = ["role-send", &target, &count.to_string(), "100"];
    let sender = link.spawn(Node::Edge(0), &node(&args))?;
    let done = || {
        link.exits()
            .is_ok_and(|exits| exits.iter().any(|exit| exit.process == sender))
    };
    assert!((0..10).any(|_| eventually(done)), "the sender does not end");
    // What is on the link comes out.
    thread::sleep(Duration::from_millis(50));
    let passed = uplink()?.since(&before);
    assert_eq!(passed.packets, count);
    Ok(passed)
}

fn kernel_facts() -> Outcome {
    let link = Link::start(&options(BackendChoice::Kernel))?;
    let facts = link.facts();
    println!("  {}", serde_json::to_string(facts)?);
    assert_eq!((facts.backend, facts.emulates), (Backend::Kernel, true));
    assert!(
        facts
            .reason
            .starts_with("as configured; auto never takes it")
    );
    assert!(facts.scheduling.is_none() && link.audit(0)?.is_none());
    let auto = Link::start(&options(BackendChoice::Auto))?;
    assert_ne!(auto.facts().backend, Backend::Kernel);
    Ok(())
}

/// On a kernel without netem, the backend must say so and nothing else.
fn kernel_without_netem() -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        println!("  skipped: not root, so the answer may be about rights instead");
        return Ok(());
    }
    let capabilities = probe(&exe(), &["link-host".into()])?;
    let netem = capabilities.get("netem").ok_or("netem is probed")?;
    if netem.available {
        println!("  skipped: this kernel has netem");
        return Ok(());
    }
    let started = Link::start(&options(BackendChoice::Kernel));
    let error = started.err().ok_or("there is no netem to build it of")?;
    println!("  {error}");
    assert!(error.is_environment(), "{error}");
    for message in [&error.to_string(), &netem.detail] {
        assert!(
            message.contains("this kernel has no sch_netem") && message.contains("userspace"),
            "{message}"
        );
    }
    let backend = capabilities.backends.iter().find(|b| b.name == "kernel");
    assert!(backend.is_some_and(|backend| !backend.available));
    Ok(())
}

fn refusals() -> Outcome {
    let link = Link::start(&options(BackendChoice::Loopback))?;
    assert_eq!(link.facts().backend, Backend::Loopback);
    assert_eq!((link.counters(0)?, link.audit(0)?), (None, None));
    link.set_profile(0, &LinkProfile::unimpaired())?;
    let error = link
        .set_profile(0, &profile("slow", Some(1.0), 1.0, 0.0))
        .expect_err("refused");
    assert!(
        error.is_usage() && error.to_string().contains("emulates nothing"),
        "{error}"
    );
    let invalid = link
        .set_profile(0, &profile("bad", Some(1.0), -1.0, 0.0))
        .expect_err("invalid");
    assert!(
        invalid.is_usage() && invalid.to_string().contains("delay_ms"),
        "{invalid}"
    );
    let quick = CalibrateOptions {
        pings: 20,
        rate_window_ms: 100,
        ..CalibrateOptions::default()
    };
    let calibration = link.calibrate(0, &quick)?;
    println!("  {}", describe(&calibration));
    assert_eq!(calibration.rtt_p50_ms.verdict, Verdict::Unchecked);
    assert!(
        calibration
            .uplink_rate_mbit
            .measured
            .is_some_and(|rate| rate > 100.0)
    );
    let error = link
        .calibrate(0, &CalibrateOptions { pings: 0, ..quick })
        .expect_err("out of range");
    assert!(error.is_usage(), "{error}");
    Ok(())
}

fn bad_requests() -> Outcome {
    let missing = HostOptions::new("/nonexistent/celslm", ["link-host"]);
    let error = Link::start(&missing).expect_err("no such program");
    assert!(matches!(error, LinkError::Start { .. }), "{error}");

    let silent = HostOptions::new("/bin/true", ["link-host"]);
    let error = Link::start(&silent).expect_err("no link host");
    assert!(matches!(error, LinkError::HostEnded { .. }), "{error}");

    let by_hand = Command::new(exe())
        .arg("link-host")
        .stdin(Stdio::null())
        .output()?;
    assert_eq!(by_hand.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&by_hand.stderr).contains("started by celslm itself"));

    let loopback = options(BackendChoice::Loopback);
    let pinned = HostOptions {
        congestion_control: Some("reno".to_owned()),
        ..loopback.clone()
    };
    let error = Link::start(&pinned).expect_err("the host's settings are left alone");
    assert!(
        error.is_usage() && error.to_string().contains("loopback"),
        "{error}"
    );

    let link = Link::start(&loopback)?;
    let command = NodeCommand {
        exe: "/nonexistent/node".into(),
        ..NodeCommand::default()
    };
    let error = link
        .spawn(Node::Edge(0), &command)
        .expect_err("no such program")
        .to_string();
    assert!(
        error.contains("/nonexistent/node") && error.contains("edge"),
        "{error}"
    );
    let command = NodeCommand {
        cpus: Some(vec![1 << 20]),
        ..node(&["role-sleep"])
    };
    let error = link
        .spawn(Node::Edge(0), &command)
        .expect_err("no such CPU");
    assert!(
        error.is_usage() && error.to_string().contains("1048576"),
        "{error}"
    );

    let unknown = HostOptions {
        congestion_control: Some("carrier-pigeon".to_owned()),
        ..options(BackendChoice::None)
    };
    let error = Link::start(&unknown).expect_err("no such algorithm");
    assert!(error.is_environment(), "{error}");
    Ok(())
}

/// Runs a controller as a user without rights. Whatever it gets, it must say why.
fn unprivileged() -> Outcome {
    const NOBODY: u32 = 65_534;
    if !nix::unistd::geteuid().is_root() {
        println!("  not root: every other test has shown this already");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let copy = dir.path().join("link");
    fs::copy(exe(), &copy)?;
    for path in [dir.path(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    let output = Command::new(&copy)
        .arg("role-facts")
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/")
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let facts: LinkFacts = serde_json::from_slice(&output.stdout)?;
    println!("  took {}: {}", facts.backend, facts.reason);
    assert!(facts.reason.starts_with("auto: "));
    if facts.backend != Backend::Userspace {
        assert_eq!(facts.attempts[0].backend, Backend::Userspace);
        assert!(!facts.attempts[0].problem.is_empty());
    }
    assert_eq!(facts.user_namespace, facts.backend != Backend::Loopback);
    Ok(())
}

// The other roles of this binary.

/// A controller that waits to be killed.
fn controller() {
    let Populated { link, nodes, .. } = populated(BackendChoice::Userspace).expect("a link");
    println!("{} {} {}", link.facts().host_pid, nodes[0], nodes[1]);
    std::io::stdout().flush().expect("flush");
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// A controller that takes what it gets and states it.
fn print_facts() {
    match Link::start(&options(BackendChoice::Auto)) {
        Ok(link) => {
            let node = link
                .spawn(Node::Edge(0), &node(&["role-sleep"]))
                .expect("a node");
            assert!(is_alive(node.0));
            println!("{}", serde_json::to_string(link.facts()).expect("facts"));
        }
        Err(error) => {
            eprintln!("{error}");
            exit(4);
        }
    }
}

/// A node that takes datagrams and ignores them.
fn receive(address: &str, ready: &str) {
    let socket = UdpSocket::bind(address).expect("bind");
    fs::write(ready, "").expect("say so");
    let mut buffer = [0; 2048];
    while socket.recv(&mut buffer).is_ok() {}
}

/// A node that keeps what one connection brings.
fn take(address: &str, ready: &str, file: &str) {
    let listener = TcpListener::bind(address).expect("bind");
    fs::write(ready, "").expect("say so");
    let (mut stream, _) = listener.accept().expect("accept");
    let mut file = fs::File::create(file).expect("a file");
    std::io::copy(&mut stream, &mut file).expect("copy");
}

/// A node that sends bytes over a connection.
fn give(address: &str, bytes: &str) {
    let bytes: Vec<u8> = (0..bytes.parse().expect("a number")).map(pattern).collect();
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.write_all(&bytes).expect("send");
}

/// A byte of what [`give`] sends: no two windows of it are alike.
fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13) as u8
}

/// A node that sends datagrams and ends.
fn send(address: &str, count: &str, payload: &str) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
    let payload = vec![0; payload.parse().expect("a size")];
    for _ in 0..count.parse::<u64>().expect("a number") {
        socket.send_to(&payload, address).expect("send");
        thread::sleep(Duration::from_micros(100));
    }
}
