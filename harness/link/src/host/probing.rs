//! Trying out what this machine can do. Runs in a link host of its own, which ends afterwards.

use nix::net::if_::if_nametoindex;
use nix::sys::utsname::uname;

use super::device::{self, Side};
use super::namespace::Namespace;
use super::netem;
use super::scheduling::{self, PACKET_PRIORITY};
use super::sysctl;
use crate::error::Fault;
use crate::facts::{BACKENDS, Backend};
use crate::node::Node;
use crate::probe::{Capabilities, Capability};

/// Tries everything. `privileges` is the outcome of asking for a user namespace, where one was
/// needed.
pub(super) fn capabilities(root: bool, privileges: &Result<(), Fault>) -> Capabilities {
    let mut items = vec![Capability {
        name: "root".to_owned(),
        available: root,
        detail: if root {
            "CAP_NET_ADMIN and CAP_SYS_ADMIN are held".to_owned()
        } else {
            "CAP_NET_ADMIN and CAP_SYS_ADMIN are not held; a user namespace may do".to_owned()
        },
    }];
    items.push(match (root, privileges) {
        (true, _) => item(
            "user_namespaces",
            Ok("not needed by root, not tried".to_owned()),
        ),
        (false, Ok(())) => item("user_namespaces", Ok("made one".to_owned())),
        (false, Err(fault)) => item("user_namespaces", Err(fault.clone())),
    });
    let namespace = Namespace::create();
    items.push(item(
        "network_namespaces",
        namespace
            .as_ref()
            .map(|_| "made one".to_owned())
            .map_err(Clone::clone),
    ));
    let inside = |work: fn() -> Result<String, Fault>| match &namespace {
        Ok(namespace) => namespace.run(work),
        Err(fault) => Err(fault.clone()),
    };
    items.push(item("tun", inside(try_tun)));
    items.push(item(
        "veth",
        match &namespace {
            Ok(namespace) => try_veth(namespace),
            Err(fault) => Err(fault.clone()),
        },
    ));
    items.push(item("netem", inside(try_netem)));
    items.push(item("punctual_scheduling", try_scheduling()));
    items.push(item("congestion_control", inside(congestion_control)));
    let available = |name: &str| items.iter().find(|item| item.name == name);
    let backends = BACKENDS
        .iter()
        .map(|info| {
            let needed: &[&str] = match info.backend {
                // Packet sockets stand in for TUN devices.
                Backend::Userspace if available("tun").is_some_and(|tun| tun.available) => {
                    &["network_namespaces"]
                }
                Backend::Userspace => &["network_namespaces", "veth"],
                Backend::Kernel => &["network_namespaces", "veth", "netem"],
                Backend::None => &["network_namespaces", "veth"],
                Backend::Loopback => &[],
            };
            let missing = needed
                .iter()
                .filter_map(|name| available(name))
                .find(|item| !item.available);
            Capability {
                name: info.name.to_owned(),
                available: missing.is_none(),
                detail: missing.map_or_else(
                    || info.summary.to_owned(),
                    |missing| format!("{} missing: {}", missing.name, missing.detail),
                ),
            }
        })
        .collect();
    Capabilities {
        kernel: kernel(),
        items,
        backends,
    }
}

/// The kernel's release.
pub(super) fn kernel() -> String {
    uname().map_or_else(
        |error| format!("unknown ({error})"),
        |name| name.release().to_string_lossy().into_owned(),
    )
}

fn item(name: &str, found: Result<String, Fault>) -> Capability {
    let available = found.is_ok();
    let detail = found.unwrap_or_else(|fault| fault.message().to_owned());
    Capability {
        name: name.to_owned(),
        available,
        detail,
    }
}

/// A leg's side, to try devices with.
fn side() -> Side {
    Side {
        device: device::name(0),
        local: device::address(Node::Edge(0)),
        peer: device::address(Node::Cloud),
    }
}

fn try_tun() -> Result<String, Fault> {
    device::create_tun(&side())?;
    Ok("/dev/net/tun opened and a device made".to_owned())
}

fn try_veth(namespace: &Namespace) -> Result<String, Fault> {
    let other = Namespace::create()?;
    namespace.run(|| device::create_veth(&side(), &side().device, &other))?;
    Ok("made a pair".to_owned())
}

fn try_netem() -> Result<String, Fault> {
    let loopback = if_nametoindex("lo").map_err(Fault::failed("find the loopback device"))?;
    netem::install(loopback, &netem::unimpaired()?)?;
    Ok("the kernel has the netem discipline".to_owned())
}

fn try_scheduling() -> Result<String, Fault> {
    // On a thread of its own, which takes the setting with it.
    let scheduling = std::thread::spawn(|| scheduling::be_punctual(PACKET_PRIORITY))
        .join()
        .map_err(|_| Fault::Failed("a thread panicked".to_owned()))?;
    let description = format!("{}. {}", scheduling.policy, scheduling.note);
    let description = description.trim_end_matches(['.', ' ']).to_owned();
    if scheduling.policy == "other" {
        Err(Fault::Environment(description))
    } else {
        Ok(description)
    }
}

fn congestion_control() -> Result<String, Fault> {
    let read = |name: &str| sysctl::read(name).map_err(Fault::failed(format!("read {name}")));
    let available = read("net.ipv4.tcp_available_congestion_control")?;
    let default = read("net.ipv4.tcp_congestion_control")?;
    Ok(format!("available: {available}; default: {default}"))
}
