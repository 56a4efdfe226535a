//! Network settings of the calling thread's namespace.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use nix::libc;

use super::device::{self, Side};
use super::netlink;
use crate::error::Fault;
use crate::protocol::HostConfig;

/// The congestion control taken where none is asked for: what most machines use.
const DEFAULT_CONGESTION_CONTROL: &str = "cubic";

/// The settings that every result records.
const RECORDED: &[&str] = &[
    "net.ipv4.tcp_available_congestion_control",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_wmem",
];

/// `/proc/sys/net` shows each thread its own namespace.
fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name.replace('.', "/"))
}

pub(super) fn read(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(name))?
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" "))
}

fn write(name: &str, value: &str) -> io::Result<()> {
    fs::write(path(name), value)
}

/// The recorded settings that this kernel has.
pub(super) fn recorded() -> BTreeMap<String, String> {
    RECORDED
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), read(name).ok()?)))
        .collect()
}

/// Switches IPv6 off before any device exists: its own traffic would count as the nodes'.
pub(super) fn disable_ipv6() -> Result<(), Fault> {
    for scope in ["all", "default"] {
        match write(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Fault::failed("switch IPv6 off")(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Makes the namespace pass IPv4 packets on between its devices.
pub(super) fn forward_ipv4() -> Result<(), Fault> {
    write("net.ipv4.ip_forward", "1").map_err(Fault::failed("switch IPv4 forwarding on"))
}

/// Applies what the configuration asks for, but for the congestion control.
pub(super) fn apply(config: &HostConfig) -> Result<(), Fault> {
    if let Some(enabled) = config.tcp_slow_start_after_idle {
        write(
            "net.ipv4.tcp_slow_start_after_idle",
            if enabled { "1" } else { "0" },
        )
        .map_err(Fault::failed("set tcp_slow_start_after_idle"))?;
    }
    if let Some(max) = config.tcp_buffer_max_bytes {
        for name in ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"] {
            let current = read(name).map_err(Fault::failed(format!("read {name}")))?;
            let mut fields = current.split(' ').map(str::parse::<u64>);
            let (Some(Ok(min)), Some(Ok(initial))) = (fields.next(), fields.next()) else {
                return Err(Fault::Failed(format!(
                    "{name} is not three numbers: {current}"
                )));
            };
            // The kernel keeps three numbers in ascending order.
            write(
                name,
                &format!("{} {} {max}", min.min(max), initial.min(max)),
            )
            .map_err(Fault::failed(format!("set {name}")))?;
        }
    }
    Ok(())
}

/// Which congestion control to pin, if any.
pub(super) fn wanted_congestion_control(config: &HostConfig) -> Result<Option<String>, Fault> {
    let available = read("net.ipv4.tcp_available_congestion_control")
        .map_err(Fault::failed("read the available congestion controls"))?;
    let is_available = |name: &str| available.split(' ').any(|known| known == name);
    match &config.congestion_control {
        Some(name) if is_available(name) => Ok(Some(name.clone())),
        Some(name) => Err(Fault::Environment(format!(
            "congestion control \"{name}\" is not available; this kernel has: {available} (load \
             the tcp_{name} module, or choose another)"
        ))),
        None => {
            Ok(is_available(DEFAULT_CONGESTION_CONTROL)
                .then(|| DEFAULT_CONGESTION_CONTROL.to_owned()))
        }
    }
}

/// Pins the congestion control of a node, whose legs are given, and says how.
pub(super) fn pin_congestion_control(name: &str, sides: &[Side]) -> Result<String, Fault> {
    match write("net.ipv4.tcp_congestion_control", name) {
        Ok(()) => Ok("set as the namespaces' default".to_owned()),
        // A namespace may not take an algorithm that the machine restricts as its default, but
        // a route may name it.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            for side in sides {
                let index = device::index(&side.device)?;
                let (peer, prefix) = (side.peer, device::PREFIX);
                netlink::route_congestion_control(index, peer, prefix, side.local, name).map_err(
                    Fault::environment(format!("pin the congestion control {name}")),
                )?;
            }
            Ok("set on the legs' routes, since this kernel restricts it as a default".to_owned())
        }
        Err(error) => Err(Fault::environment(format!(
            "pin the congestion control {name}"
        ))(error)),
    }
}
