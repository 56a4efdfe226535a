//! How this host stands in for a device: what a node is started with, and what holds it down.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::{CpuController, CpuQuota, DeviceProfile, HostRates, Measurement, QuotaError, sweep};

/// Tokens of prompt and context at which this host is compared with a device.
const COMPARED_CONTEXT: usize = 256;
/// Tokens generated for it.
const COMPARED_DECODE: usize = 16;
/// Slower than a device by less than this, the host passes for it: repeats differ by as much.
const TOLERANCE: f64 = 0.95;

/// Why this host cannot stand in for a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No quota, and affinity cannot express it.
    #[error(
        "device {device} needs {cores} of a core's time, and {reason}: run where control groups \
         can be written (as root, or with the cpu controller delegated), or give the device a \
         `slowdown` instead"
    )]
    NoQuota {
        /// The device.
        device: String,
        /// The quota.
        cores: f64,
        /// What stands against it.
        reason: String,
    },
    /// A node could not be moved into its control group.
    #[error("hold the {role} to the CPU quota of device {device}")]
    Quota {
        /// The node.
        role: String,
        /// The device.
        device: String,
        /// The reason.
        #[source]
        source: QuotaError,
    },
    /// A host can be slowed down only.
    #[error(
        "device {device} does {what} at {device_tok_s:.1} tok/s, and this host at {host_tok_s:.1} \
         for the {role}'s model: a host cannot be made faster. A faster cloud can be replayed: \
         [cloud] compute = {{ replay = \"{device}\" }}"
    )]
    TooFast {
        /// The device.
        device: String,
        /// `prefill` or `decode`.
        what: &'static str,
        /// The node.
        role: String,
        /// The device's rate.
        device_tok_s: f64,
        /// This host's.
        host_tok_s: f64,
    },
    /// This host could not be measured.
    #[error("measure this host for device {device}: {reason}")]
    Measure {
        /// The device.
        device: String,
        /// What went wrong.
        reason: String,
    },
}

/// How a node stands in for its device, as the manifest states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThrottleFacts {
    /// The device profile's name.
    pub device: String,
    /// What slows the node down: `none`, `cgroup v1`, `cgroup v2`, `affinity`, `slowdown`, or
    /// `external` for a node that was started by hand, whose device is only named.
    pub means: String,
    /// CPU time of the node, in cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<f64>,
    /// Factor on steps that prefill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_slowdown: Option<f64>,
    /// Factor on steps that decode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_slowdown: Option<f64>,
    /// This host's own rates, where the factors come from comparing them with the profile's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostRates>,
}

impl ThrottleFacts {
    /// What a user reads.
    #[must_use]
    pub fn describe(&self) -> String {
        let Self {
            device,
            means,
            cpu_quota,
            prefill_slowdown,
            decode_slowdown,
            host,
        } = self;
        let mut text = match (cpu_quota, prefill_slowdown, decode_slowdown) {
            (Some(cores), ..) => format!("{device}: {cores} cores' worth of time by {means}"),
            (_, Some(prefill), Some(decode)) if prefill == decode => {
                format!("{device}: every step × {prefill}")
            }
            (_, Some(prefill), Some(decode)) => {
                format!("{device}: prefill × {prefill:.2}, decode × {decode:.2}")
            }
            _ if means == "external" => format!("{device}: started by hand, named only"),
            _ => device.clone(),
        };
        if let Some(host) = host {
            text.push_str(&format!(
                " of this host's {:.1} and {:.1} tok/s at {} tokens",
                host.prefill_tok_s, host.decode_tok_s, host.context
            ));
        }
        text
    }
}

/// What a node is started with, and what must be kept while it runs.
#[derive(Debug)]
pub struct Throttling {
    /// What is recorded.
    pub facts: ThrottleFacts,
    /// Further arguments of the node.
    pub args: Vec<String>,
    /// Compute threads, where the device has fewer than the configuration leaves open.
    pub threads: Option<usize>,
    /// CPUs, where affinity stands in for a quota.
    pub cpus: Option<Vec<usize>>,
    /// The group that the node belongs in.
    quota: Option<CpuQuota>,
    role: String,
}

impl Throttling {
    fn new(role: &str, profile: &DeviceProfile, means: &str) -> Self {
        Self {
            facts: ThrottleFacts {
                device: profile.name.clone(),
                means: means.to_owned(),
                cpu_quota: None,
                prefill_slowdown: None,
                decode_slowdown: None,
                host: None,
            },
            args: Vec::new(),
            threads: None,
            cpus: None,
            quota: None,
            role: role.to_owned(),
        }
    }

    /// A node that was started by hand: its device is named and nothing is done.
    #[must_use]
    pub fn external(role: &str, profile: &DeviceProfile) -> Self {
        Self::new(role, profile, "external")
    }

    fn slowed(mut self, prefill: f64, decode: f64) -> Self {
        self.facts.prefill_slowdown = Some(prefill);
        self.facts.decode_slowdown = Some(decode);
        self.args = vec![
            "--slowdown".to_owned(),
            match (prefill - decode).abs() < 1e-9 {
                true => prefill.to_string(),
                false => format!("{prefill},{decode}"),
            },
        ];
        self
    }

    /// The node, as [`Subject::role`] named it.
    #[must_use]
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Holds a node's process down, where that needs its id.
    ///
    /// # Errors
    /// [`DeviceError::Quota`].
    pub fn hold(&self, process: u32) -> Result<(), DeviceError> {
        let Some(quota) = &self.quota else {
            return Ok(());
        };
        quota.add(process).map_err(|source| DeviceError::Quota {
            role: self.role.clone(),
            device: self.facts.device.clone(),
            source,
        })
    }
}

/// What a throttled node would run.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The node, unique among those of the run: `edge`, `edge-1`, `cloud`.
    pub role: &'a str,
    /// The program, for measuring this host.
    pub exe: &'a Path,
    /// The node's model.
    pub model: &'a Path,
    /// Compute threads; 0 for every CPU.
    pub threads: usize,
    /// CPUs that it is pinned to; empty for all.
    pub cpus: &'a [usize],
    /// This host's rates, where they were measured for the same model and threads before.
    pub host: Option<HostRates>,
}

/// Prepares a node to be the device of `profile`. A profile that states rates only has this host
/// measured first, for a few seconds.
///
/// # Errors
/// [`DeviceError`].
pub fn throttle(profile: &DeviceProfile, subject: &Subject<'_>) -> Result<Throttling, DeviceError> {
    let plain = |means: &str| Throttling::new(subject.role, profile, means);
    if let Some(factor) = profile.slowdown {
        return Ok(plain("slowdown").slowed(factor, factor));
    }
    if let Some(cores) = profile.cpu_quota {
        // What killed runs left makes room first.
        sweep();
        let controller = CpuController::find();
        return quota(plain(""), subject, cores, controller);
    }
    let rates = match &profile.rates {
        Some(rates) if !profile.is_host() => rates,
        _ => return Ok(plain("none")),
    };
    let host = match subject.host {
        Some(host) => host,
        None => compare(profile, subject)?,
    };
    let factor = |what: &'static str, host_tok_s: f64, device_tok_s: f64| {
        let factor = host_tok_s / device_tok_s;
        match factor < TOLERANCE {
            true => Err(DeviceError::TooFast {
                device: profile.name.clone(),
                what,
                role: subject.role.to_owned(),
                device_tok_s,
                host_tok_s,
            }),
            false => Ok(factor.max(1.0)),
        }
    };
    let prefill = factor(
        "prefill",
        host.prefill_tok_s,
        rates.prefill_tok_s(host.context),
    )?;
    let decode = factor(
        "decode",
        host.decode_tok_s,
        rates.decode_tok_s(1, host.context),
    )?;
    let mut throttling = plain("slowdown").slowed(prefill, decode);
    throttling.facts.host = Some(host);
    Ok(throttling)
}

fn quota(
    mut throttling: Throttling,
    subject: &Subject<'_>,
    cores: f64,
    controller: Result<CpuController, QuotaError>,
) -> Result<Throttling, DeviceError> {
    throttling.facts.cpu_quota = Some(cores);
    if subject.threads == 0 {
        // More threads than cores' worth of time only wait for each other.
        throttling.threads = Some((cores.ceil() as usize).max(1));
    }
    let made = controller.and_then(|controller| {
        let quota = controller.create(subject.role, cores)?;
        Ok((controller.version(), quota))
    });
    let error = match made {
        Ok((version, quota)) => {
            throttling.facts.means = format!("cgroup v{version}");
            throttling.quota = Some(quota);
            return Ok(throttling);
        }
        Err(error) => error,
    };
    let allowed = match subject.cpus {
        [] => allowed_cpus(),
        cpus => cpus.to_vec(),
    };
    let whole = cores.fract() == 0.0 && cores as usize <= allowed.len();
    if whole {
        throttling.facts.means = "affinity".to_owned();
        throttling.cpus = Some(allowed[..cores as usize].to_vec());
        return Ok(throttling);
    }
    let mut reason = error.to_string();
    if let Some(source) = std::error::Error::source(&error) {
        reason = format!("{reason}: {source}");
    }
    Err(DeviceError::NoQuota {
        device: throttling.facts.device.clone(),
        cores,
        reason,
    })
}

fn allowed_cpus() -> Vec<usize> {
    crate::environment::Environment::capture().cpu.allowed
}

/// Measures this host in a process of its own, so that the controller stays small.
fn compare(profile: &DeviceProfile, subject: &Subject<'_>) -> Result<HostRates, DeviceError> {
    let fail = |reason: String| DeviceError::Measure {
        device: profile.name.clone(),
        reason,
    };
    let threads = match (subject.threads, subject.cpus) {
        (0, cpus) if !cpus.is_empty() => cpus.len(),
        (threads, _) => threads,
    };
    let output = Command::new(subject.exe)
        .args(["device", "measure", "--format", "json", "--quiet"])
        .arg("--model")
        .arg(subject.model)
        .args(["--prefill", &COMPARED_CONTEXT.to_string()])
        .args(["--decode", &COMPARED_DECODE.to_string()])
        .args(["--threads", &threads.to_string()])
        .output()
        .map_err(|error| fail(error.to_string()))?;
    if !output.status.success() {
        return Err(fail(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ));
    }
    let found: Measurement =
        serde_json::from_slice(&output.stdout).map_err(|error| fail(error.to_string()))?;
    Ok(HostRates {
        context: COMPARED_CONTEXT,
        prefill_tok_s: found.prefill_tok_s,
        decode_tok_s: found.decode_tok_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(rest: &str) -> DeviceProfile {
        toml::from_str(&format!(
            "name = 'x'\ndescription = 'd'\nsource = 's'\nkind = 'modelled'\n{rest}"
        ))
        .unwrap()
    }

    fn nowhere() -> std::path::PathBuf {
        "/nowhere".into()
    }

    #[test]
    fn published_rates_become_two_factors_of_this_hosts_own() {
        let path = nowhere();
        let rates = "[rates]\nmodel = 'm'\nengine = 'e'\n\
                     prefill = [{ context = 512, tok_s = 100.0 }]\n\
                     decode = [{ context = 64, tok_s = 20.0 }]\n";
        let host = |prefill_tok_s, decode_tok_s| HostRates {
            context: 256,
            prefill_tok_s,
            decode_tok_s,
        };
        let subject = |host| Subject {
            role: "edge",
            exe: &path,
            model: &path,
            threads: 0,
            cpus: &[],
            host: Some(host),
        };
        let slow = throttle(&profile(rates), &subject(host(650.0, 30.0))).unwrap();
        assert_eq!(slow.args, ["--slowdown", "6.5,1.5"]);
        assert_eq!(slow.facts.host, Some(host(650.0, 30.0)));
        // Within the spread of repeats the host passes for the device; beyond it, it cannot.
        let close = throttle(&profile(rates), &subject(host(98.0, 20.0))).unwrap();
        assert_eq!(close.facts.prefill_slowdown, Some(1.0));
        let error = throttle(&profile(rates), &subject(host(650.0, 10.0))).unwrap_err();
        assert!(error.to_string().contains("does decode at 20.0"), "{error}");
    }

    fn none() -> Result<CpuController, QuotaError> {
        Err(QuotaError::NoController("none is mounted".to_owned()))
    }

    #[test]
    fn a_slowdown_is_an_argument_and_the_host_is_nothing() {
        let path = nowhere();
        let subject = Subject {
            role: "edge",
            exe: &path,
            model: &path,
            threads: 0,
            cpus: &[],
            host: None,
        };
        let slow = throttle(&profile("slowdown = 2.5"), &subject).unwrap();
        assert_eq!(slow.args, ["--slowdown", "2.5"]);
        assert_eq!(slow.facts.means, "slowdown");
        assert_eq!(slow.facts.decode_slowdown, Some(2.5));
        slow.hold(1).unwrap();
        let host = throttle(&DeviceProfile::host(), &subject).unwrap();
        assert!(host.args.is_empty() && host.threads.is_none());
        assert_eq!(host.facts.means, "none");
        let two = Throttling::new("edge", &profile(""), "slowdown").slowed(6.5, 2.0);
        assert_eq!(two.args, ["--slowdown", "6.5,2"]);
    }

    #[test]
    fn without_a_controller_whole_cores_become_affinity_and_others_an_error() {
        let path = nowhere();
        let subject = Subject {
            role: "edge",
            exe: &path,
            model: &path,
            threads: 0,
            cpus: &[3, 5, 7],
            host: None,
        };
        let start = || Throttling::new("edge", &profile(""), "");
        let whole = quota(start(), &subject, 2.0, none()).unwrap();
        assert_eq!(whole.cpus, Some(vec![3, 5]));
        assert_eq!(
            (whole.threads, whole.facts.means.as_str()),
            (Some(2), "affinity")
        );
        let error = quota(start(), &subject, 0.5, none()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("needs 0.5 of a core") && text.contains("`slowdown`"),
            "{text}"
        );
        assert_eq!(
            crate::exit::ExitCode::of(&error),
            crate::exit::ExitCode::Environment
        );
        // More cores than there are cannot be had by affinity.
        assert!(quota(start(), &subject, 4.0, none()).is_err());
    }
}
