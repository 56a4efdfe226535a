//! The machine that a run was made on, as `environment.json` and the manifest state it.
//!
//! Everything is read from `/proc` and `/sys`. What a machine does not say is `None` or empty,
//! never a guess. No host, user or network name is recorded: results are meant to be published.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A machine's description.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of this shape.
    pub schema_version: u32,
    /// Operating system and architecture, for example `linux x86_64`.
    pub platform: String,
    /// Kernel release.
    pub kernel: String,
    /// Kernel version string, with its build options.
    pub kernel_version: String,
    /// The processor.
    pub cpu: Cpu,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// Memory that was available when the run began, in bytes.
    pub memory_available_bytes: u64,
    /// Frequency governor of the first CPU; `None` where frequency is not in the system's hands.
    pub governor: Option<String>,
    /// Load averages over 1, 5 and 15 minutes when the run began.
    pub load_average: Vec<f64>,
    /// The control group that the run is in.
    pub cgroup: Cgroup,
    /// The host's TCP congestion control. The nodes' own is part of the link's facts.
    pub congestion_control: String,
    /// The congestion controls that the kernel has at hand.
    pub congestion_controls: Vec<String>,
    /// Whether the run had root.
    pub root: bool,
}

/// A processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Vendor, as the processor names it.
    pub vendor: String,
    /// Model name.
    pub model: String,
    /// Logical CPUs that are online.
    pub logical: usize,
    /// Physical cores, where the kernel says.
    pub cores: Option<usize>,
    /// CPUs that this process may use.
    pub allowed: Vec<usize>,
    /// Last-level cache, as the kernel words it.
    pub cache: String,
    /// Instruction set extensions, as the kernel names them.
    pub features: Vec<String>,
}

/// A control group, version 1 or 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cgroup {
    /// `1`, `2` or `hybrid`; `None` without control groups.
    pub version: Option<String>,
    /// CPU time that the group may use, in CPUs; `None` for no bound.
    pub cpu_quota: Option<f64>,
    /// Memory that the group may use, in bytes; `None` for no bound.
    pub memory_limit_bytes: Option<u64>,
}

impl Environment {
    /// Describes this machine, now.
    #[must_use]
    pub fn capture() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let meminfo = read("/proc/meminfo");
        let control = "/proc/sys/net/ipv4/tcp_congestion_control";
        let controls = "/proc/sys/net/ipv4/tcp_available_congestion_control";
        Self {
            schema_version: crate::SCHEMA_VERSION,
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            kernel: read("/proc/sys/kernel/osrelease"),
            kernel_version: read("/proc/sys/kernel/version"),
            cpu: cpu(&cpuinfo, &read("/proc/self/status")),
            memory_bytes: kibibytes(&meminfo, "MemTotal"),
            memory_available_bytes: kibibytes(&meminfo, "MemAvailable"),
            governor: Some(read(
                "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
            ))
            .filter(|governor| !governor.is_empty()),
            load_average: read("/proc/loadavg")
                .split_whitespace()
                .take(3)
                .filter_map(|load| load.parse().ok())
                .collect(),
            cgroup: Cgroup::read(&read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup")),
            congestion_control: read(control),
            congestion_controls: read(controls)
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            root: rustix::process::geteuid().is_root(),
        }
    }

    /// Whether the processor has an extension, by the kernel's name for it.
    #[must_use]
    pub fn has_feature(&self, name: &str) -> bool {
        self.cpu.features.iter().any(|feature| feature == name)
    }
}

impl Cgroup {
    /// Reads the limits of the groups that `membership` (`/proc/self/cgroup`) lists, below the
    /// mount point `root`. A container often sees its own group at the mount point itself.
    fn read(membership: &str, root: &Path) -> Self {
        let mut group = Self {
            version: None,
            cpu_quota: None,
            memory_limit_bytes: None,
        };
        let (mut first, mut second) = (false, false);
        for line in membership.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let below = path.trim_start_matches('/');
            let folders = |controller: &str| {
                let mount = root.join(controller);
                [mount.join(below), mount]
            };
            let has = |name: &str| controllers.split(',').any(|c| c == name);
            if controllers.is_empty() {
                second = true;
                for folder in folders("") {
                    group.cpu_quota = group.cpu_quota.or_else(|| quota(&folder, "cpu.max", None));
                    group.memory_limit_bytes = group
                        .memory_limit_bytes
                        .or_else(|| limit(&folder.join("memory.max")));
                }
            } else if has("cpu") {
                first = true;
                let mut places = folders("cpu").to_vec();
                places.extend(folders(controllers));
                for folder in places {
                    group.cpu_quota = group
                        .cpu_quota
                        .or_else(|| quota(&folder, "cpu.cfs_quota_us", Some("cpu.cfs_period_us")));
                }
            } else if has("memory") {
                first = true;
                for folder in folders("memory") {
                    group.memory_limit_bytes = group
                        .memory_limit_bytes
                        .or_else(|| limit(&folder.join("memory.limit_in_bytes")));
                }
            }
        }
        group.version = match (first, second) {
            (true, true) => Some("hybrid".to_owned()),
            (true, false) => Some("1".to_owned()),
            (false, true) => Some("2".to_owned()),
            (false, false) => None,
        };
        group
    }
}

/// CPUs that a quota allows: quota and period in one file (version 2) or in two (version 1).
fn quota(folder: &Path, file: &str, period_file: Option<&str>) -> Option<f64> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    let mut words = text.split_whitespace();
    let quota: f64 = words.next()?.parse().ok()?;
    let period: f64 = match period_file {
        None => words.next()?.parse().ok()?,
        Some(file) => fs::read_to_string(folder.join(file))
            .ok()?
            .trim()
            .parse()
            .ok()?,
    };
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// A memory limit; version 1 writes "none" as a number near 2^63.
fn limit(file: &PathBuf) -> Option<u64> {
    let bytes: u64 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (bytes < 1 << 60).then_some(bytes)
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn kibibytes(meminfo: &str, key: &str) -> u64 {
    field(meminfo, key)
        .and_then(|value| value.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// Value of the first `key : value` line.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim())
}

fn cpu(cpuinfo: &str, status: &str) -> Cpu {
    let text = |keys: &[&str]| {
        keys.iter()
            .find_map(|key| field(cpuinfo, key))
            .unwrap_or_default()
            .to_owned()
    };
    Cpu {
        // The second name of each is that of other architectures.
        vendor: text(&["vendor_id", "CPU implementer"]),
        model: text(&["model name", "CPU part"]),
        logical: cpuinfo
            .lines()
            .filter(|line| {
                line.split_once(':')
                    .is_some_and(|(key, _)| key.trim() == "processor")
            })
            .count(),
        cores: field(cpuinfo, "cpu cores").and_then(|n| n.parse().ok()),
        allowed: ranges(field(status, "Cpus_allowed_list").unwrap_or_default()),
        cache: text(&["cache size"]),
        features: text(&["flags", "Features"])
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
    }
}

/// A CPU list such as `0-2,5`.
fn ranges(list: &str) -> Vec<usize> {
    list.split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse::<usize>().ok()?..=last.trim().parse().ok()?)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read_from_the_kernels_tables() {
        let cpuinfo = "processor\t: 0\nvendor_id\t: V\nmodel name\t: M 9\ncache size\t: 1024 KB\n\
                       cpu cores\t: 2\nflags\t\t: fpu avx512f\n\nprocessor\t: 1\nmodel name\t: M 9\n";
        let cpu = cpu(cpuinfo, "Name:\tx\nCpus_allowed_list:\t0-2,5\n");
        assert_eq!(
            (cpu.model.as_str(), cpu.logical, cpu.cores),
            ("M 9", 2, Some(2))
        );
        assert_eq!(cpu.allowed, [0, 1, 2, 5]);
        assert_eq!(cpu.features, ["fpu", "avx512f"]);
    }

    #[test]
    fn limits_of_both_control_group_versions_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        file("job/cpu.max", "150000 100000\n");
        file("job/memory.max", "max\n");
        let two = Cgroup::read("0::/job\n", dir.path());
        assert_eq!(two.version.as_deref(), Some("2"));
        assert_eq!((two.cpu_quota, two.memory_limit_bytes), (Some(1.5), None));
        file("cpu,cpuacct/job/cpu.cfs_quota_us", "50000");
        file("cpu,cpuacct/job/cpu.cfs_period_us", "100000");
        file("memory/memory.limit_in_bytes", "1073741824");
        let one = Cgroup::read("4:memory:/job\n3:cpu,cpuacct:/job\n", dir.path());
        assert_eq!(one.version.as_deref(), Some("1"));
        assert_eq!(one.cpu_quota, Some(0.5));
        assert_eq!(one.memory_limit_bytes, Some(1 << 30));
        assert_eq!(Cgroup::read("", dir.path()).version, None);
    }

    #[test]
    fn this_machine_has_a_kernel_and_a_processor() {
        let here = Environment::capture();
        assert!(!here.kernel.is_empty());
        assert!(here.cpu.logical > 0 && !here.cpu.allowed.is_empty());
        assert!(here.memory_bytes >= here.memory_available_bytes);
        let json = serde_json::to_string(&here).unwrap();
        assert_eq!(serde_json::from_str::<Environment>(&json).unwrap(), here);
    }
}
