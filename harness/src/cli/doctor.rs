//! `celslm doctor`: what this machine can run.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Context as _;
use celslm::catalogue::{Catalogue, DATA_DIR_VARIABLE};
use celslm::config::ModelsConfig;
use celslm::device::CpuController;
use celslm::environment::Environment;
use celslm::exit::ExitCode;
use celslm::serving;
use celslm_link::Capabilities;
use celslm_model::store::ModelStore;
use clap::Args;

use super::{listing, models};

/// Logical CPUs below which the two nodes share a core, so that timings mix.
const WANTED_CPUS: usize = 2;
/// Memory that both nodes need with the default pair: the files mapped once, the edge's model
/// twice for exact hand-off, caches and buffers.
const WANTED_MEMORY_BYTES: u64 = 4 << 30;
/// Disk that the default pair and some results need.
const WANTED_DISK_BYTES: u64 = 3 << 30;
/// Instruction set extensions that the quantised kernels profit from, best first.
const WANTED_FEATURES: [&str; 8] = [
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "avx2",
    "fma",
    "f16c",
    "asimddp",
];

/// Say what this machine can run, and what is missing for the rest
///
/// Tries namespaces, TUN and veth in a process of its own, which leaves nothing behind, and looks
/// at cores, memory, disk, models and data. Ends with 0 when `celslm run quick` can run here (after
/// fetching the models where they are missing), and with 4 when the emulated link cannot be built;
/// it then says what still runs.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {}

/// A line of the findings: a mark, a name, what was found.
type Finding = [String; 3];

/// Runs the command.
pub(crate) fn run(_: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let here = Environment::capture();
    listing::show("machine\n");
    listing::print("  ", &machine(&here));

    listing::show("\nlink\n");
    let exe = std::env::current_exe().context("find this program's own file")?;
    let probed = celslm_link::probe(&exe, &[OsString::from("link-host")]);
    match &probed {
        Ok(found) => listing::print("  ", &link(found)),
        Err(error) => listing::print("  ", &[finding(false, "probe", error.to_string())]),
    }

    listing::show("\nmodels and data\n");
    let (files, pair_present) = files()?;
    listing::print("  ", &files);

    listing::show("\nserving engines (for the system cloud_api; none is needed for the others)\n");
    listing::print("  ", &engines());

    listing::show("\nwhat runs here\n");
    let emulates = probed.as_ref().is_ok_and(|found| {
        found
            .backends
            .iter()
            .any(|b| b.name == "userspace" && b.available)
    });
    for line in verdict(&probed.ok(), emulates, pair_present) {
        listing::show(&format!("  {line}\n"));
    }
    Ok(if emulates {
        ExitCode::Ok
    } else {
        ExitCode::Environment
    })
}

fn finding(good: bool, name: &str, detail: impl Into<String>) -> Finding {
    let mark = if good { "ok" } else { "--" };
    [mark.to_owned(), name.to_owned(), detail.into()]
}

fn machine(here: &Environment) -> Vec<Finding> {
    let cpu = &here.cpu;
    let usable = here
        .cgroup
        .cpu_quota
        .map_or(cpu.allowed.len() as f64, |quota| {
            quota.min(cpu.allowed.len() as f64)
        });
    let memory = here
        .cgroup
        .memory_limit_bytes
        .map_or(here.memory_available_bytes, |limit| {
            limit.min(here.memory_available_bytes)
        });
    let features: Vec<&str> = WANTED_FEATURES
        .into_iter()
        .filter(|name| here.has_feature(name))
        .collect();
    let compiled = celslm::manifest::Build::current().target_features;
    // The kernel and the compiler spell the extensions differently.
    let unused: Vec<&str> = features
        .iter()
        .copied()
        .filter(|name| {
            !compiled
                .iter()
                .any(|c| c.replace('_', "") == name.replace('_', ""))
        })
        .filter(|name| name.starts_with("avx"))
        .collect();
    let mut rows = vec![
        finding(
            true,
            "kernel",
            format!("{} ({})", here.kernel, here.platform),
        ),
        finding(
            usable >= WANTED_CPUS as f64,
            "cpu",
            format!(
                "{} {}, {} of {} CPUs usable, {usable} CPUs' worth of time",
                cpu.vendor,
                cpu.model,
                cpu.allowed.len(),
                cpu.logical
            ),
        ),
        finding(!features.is_empty(), "cpu features", features.join(" ")),
    ];
    if !unused.is_empty() {
        rows.push(finding(
            false,
            "build",
            format!(
                "not compiled for {}: build on this machine, with target-cpu=native",
                unused.join(" ")
            ),
        ));
    }
    rows.extend([
        finding(
            memory >= WANTED_MEMORY_BYTES,
            "memory",
            format!(
                "{} free of {}, the default pair wants {}",
                gib(memory),
                gib(here.memory_bytes),
                gib(WANTED_MEMORY_BYTES)
            ),
        ),
        disk(Path::new("."), "disk, results"),
        finding(
            true,
            "governor",
            here.governor
                .clone()
                .unwrap_or_else(|| "not in this system's hands".to_owned()),
        ),
        finding(
            here.cgroup.version.is_some(),
            "cgroup",
            here.cgroup
                .version
                .as_ref()
                .map_or_else(|| "none".to_owned(), |version| format!("version {version}")),
        ),
        quota(),
        finding(
            true,
            "congestion control",
            format!(
                "{}, available {}",
                here.congestion_control,
                here.congestion_controls.join(" ")
            ),
        ),
        finding(
            here.root,
            "root",
            if here.root {
                "yes"
            } else {
                "no: a user namespace stands in for it where the kernel allows"
            },
        ),
    ]);
    rows
}

/// Whether devices with a CPU quota can be stood in for; sweeps up what killed runs left.
fn quota() -> Finding {
    let swept = match celslm::device::sweep() {
        0 => String::new(),
        n => format!("; removed {n} empty groups of killed runs"),
    };
    let probed = CpuController::find().and_then(|found| {
        found.probe()?;
        Ok(found)
    });
    match probed {
        Ok(found) => finding(
            true,
            "cpu quota",
            format!(
                "control groups version {} below {}{swept}",
                found.version(),
                found.parent().display()
            ),
        ),
        Err(error) => {
            let cause = std::error::Error::source(&error)
                .map_or_else(String::new, |source| format!(": {source}"));
            finding(
                false,
                "cpu quota",
                format!(
                    "{error}{cause}: devices with a cpu_quota of whole cores get affinity, others \
                     cannot run here; those with a slowdown or rates can"
                ),
            )
        }
    }
}

fn link(found: &Capabilities) -> Vec<Finding> {
    found
        .items
        .iter()
        .map(|item| finding(item.available, &item.name, &item.detail))
        .chain(
            found
                .backends
                .iter()
                .map(|b| finding(b.available, &format!("backend {}", b.name), &b.detail)),
        )
        .collect()
}

/// Models, data folder and the disk under the store; whether the default pair is there.
fn files() -> anyhow::Result<(Vec<Finding>, bool)> {
    let specs = Catalogue::find().models()?;
    let store = ModelStore::open_default()?;
    let pair = ModelsConfig::default();
    let mut rows = Vec::new();
    let mut missing = 0;
    for spec in &specs {
        let state = models::state(&store, spec);
        let present = matches!(state, "verified" | "unchecked");
        let wanted = spec.name == pair.cloud || spec.name == pair.edge;
        missing += usize::from(wanted && !present);
        rows.push(finding(present, &spec.name, state));
    }
    let under = store.dir().ancestors().find(|dir| dir.is_dir());
    rows.push(disk(under.unwrap_or(Path::new("/")), "disk, models"));
    let data = std::env::var_os(DATA_DIR_VARIABLE);
    rows.push(match data.map(std::path::PathBuf::from) {
        Some(dir) if dir.is_dir() => finding(true, "data", dir.display().to_string()),
        Some(dir) => finding(
            false,
            "data",
            format!(
                "{DATA_DIR_VARIABLE} names {}, which is no folder",
                dir.display()
            ),
        ),
        None => finding(
            true,
            "data",
            format!("{DATA_DIR_VARIABLE} is not set: embedded data only"),
        ),
    });
    Ok((rows, missing == 0))
}

/// The serving engines that can be started as the cloud.
fn engines() -> Vec<Finding> {
    serving::engines()
        .into_iter()
        .map(|engine| match engine.command {
            Some(command) => finding(
                true,
                engine.name,
                format!("cloud.serving.command = {command:?}"),
            ),
            None => finding(false, engine.name, "not here"),
        })
        .collect()
}

fn disk(dir: &Path, name: &str) -> Finding {
    match rustix::fs::statvfs(dir) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            finding(
                free >= WANTED_DISK_BYTES,
                name,
                format!("{} free", gib(free)),
            )
        }
        Err(error) => finding(false, name, error.to_string()),
    }
}

fn verdict(found: &Option<Capabilities>, emulates: bool, pair_present: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let models = if pair_present {
        ""
    } else {
        ", which fetches the missing models first (about 1.6 GB)"
    };
    if emulates {
        lines.push(format!(
            "everything: `celslm run configs/experiments/quick.toml`{models}"
        ));
    } else {
        let has = |name: &str| {
            found
                .as_ref()
                .is_some_and(|f| f.backends.iter().any(|b| b.name == name && b.available))
        };
        lines.push(
            "not the emulated link: experiments with a rate, delay or loss cannot run".to_owned(),
        );
        for (backend, what) in [
            (
                "none",
                "both nodes in namespaces over a plain veth, no impairment",
            ),
            (
                "loopback",
                "both nodes over the host's loopback, no impairment, bytes not counted at the link",
            ),
        ] {
            if has(backend) {
                lines.push(format!(
                    "{what}: `celslm run smoke --set deployment.backend={backend} --set 'grid.links=[\"none\"]'`{models}"
                ));
            }
        }
        lines.push(
            "without a link: `celslm run … --dry-run`, `celslm report`, `celslm ls`".to_owned(),
        );
    }
    lines
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}
