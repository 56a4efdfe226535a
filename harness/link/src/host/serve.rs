//! The link host's conversation with the controller.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, dup, dup2_stdin, setpgid};

use super::backend::{self, Path};
use super::calibrate;
use super::device;
use super::namespace;
use super::nodes::Nodes;
use super::probing;
use super::sysctl;
use crate::error::Fault;
use crate::facts::{BACKENDS, Backend, BackendAttempt, BackendChoice, LinkFacts};
use crate::node::Node;
use crate::profile::LinkProfile;
use crate::protocol::{HostConfig, MAX_LINE_BYTES, Place, Request, Response};

/// Runs the link host until the controller says so or is gone. To be called by the hidden
/// subcommand before the process has a second thread; the process should end with the code
/// returned.
///
/// Its standard input is the control socket, which [`crate::Link::start`] puts there.
#[must_use]
pub fn host_main() -> i32 {
    match control_socket().and_then(converse) {
        Ok(()) => 0,
        Err(fault) => {
            eprintln!("link host: {}", fault.message());
            if matches!(fault, Fault::Unsupported(_)) {
                2
            } else {
                1
            }
        }
    }
}

/// Takes the control socket from standard input, where no node shall inherit it.
fn control_socket() -> Result<UnixStream, Fault> {
    let stdin = io::stdin();
    let copy = dup(stdin.as_fd()).map_err(Fault::failed("copy the control socket"))?;
    let socket = UnixStream::from(copy);
    if socket.local_addr().is_err() {
        return Err(Fault::Unsupported(
            "this subcommand is started by celslm itself, with a control socket as its standard \
             input"
                .to_owned(),
        ));
    }
    let null = File::open("/dev/null").map_err(Fault::failed("open /dev/null"))?;
    dup2_stdin(&null).map_err(Fault::failed(
        "put /dev/null in place of the control socket",
    ))?;
    Ok(socket)
}

/// Asks the kernel to end this process with the thread that started it.
fn die_with_controller() -> Result<(), Fault> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(Fault::failed("tie the link host to its parent"))
}

fn converse(mut socket: UnixStream) -> Result<(), Fault> {
    // Ctrl-C on the controller's terminal is the controller's to handle.
    setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(Fault::failed("make a process group"))?;
    die_with_controller()?;
    let copy = socket
        .try_clone()
        .map_err(Fault::failed("copy the control socket"))?;
    let mut requests = BufReader::new(copy);
    let Some(first) = next(&mut requests)? else {
        return Ok(());
    };
    let config = match first {
        Request::Start(config) => config,
        Request::Probe => {
            let root = namespace::is_privileged();
            let privileges = if root {
                Ok(())
            } else {
                namespace::enter_user_namespace()
            };
            let answer = Response::Capabilities(probing::capabilities(root, &privileges));
            return answer_with(&mut socket, &answer);
        }
        other => {
            let fault = Fault::Failed(format!("{} came before start", other.name()));
            return answer_with(&mut socket, &Response::Fault(fault));
        }
    };
    let mut host = match LinkHost::build(&config) {
        Ok((host, facts)) => {
            answer_with(&mut socket, &Response::Started(Box::new(facts)))?;
            host
        }
        Err(fault) => return answer_with(&mut socket, &Response::Fault(fault)),
    };
    // The end of the stream is the end of the controller.
    while let Some(request) = next(&mut requests)? {
        let last = matches!(request, Request::Shutdown);
        let answer = host.serve(request).unwrap_or_else(Response::Fault);
        answer_with(&mut socket, &answer)?;
        if last {
            break;
        }
    }
    host.nodes.shut_down();
    Ok(())
}

fn next(requests: &mut BufReader<UnixStream>) -> Result<Option<Request>, Fault> {
    let mut line = String::new();
    requests
        .take(MAX_LINE_BYTES)
        .read_line(&mut line)
        .map_err(Fault::failed("read from the control socket"))?;
    if line.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&line)
        .map(Some)
        .map_err(|error| Fault::Failed(format!("understand the controller: {error}")))
}

fn answer_with(socket: &mut UnixStream, answer: &Response) -> Result<(), Fault> {
    let mut line = serde_json::to_string(answer)
        .map_err(|error| Fault::Failed(format!("write an answer: {error}")))?;
    line.push('\n');
    socket
        .write_all(line.as_bytes())
        .map_err(Fault::failed("write to the control socket"))
}

/// The link and what belongs to it.
struct LinkHost {
    backend: Backend,
    path: Box<dyn Path>,
    /// Of each leg.
    profiles: Vec<LinkProfile>,
    nodes: Nodes,
    user_namespace: bool,
}

impl LinkHost {
    /// Builds the link that the configuration asks for.
    fn build(config: &HostConfig) -> Result<(Self, LinkFacts), Fault> {
        let root = namespace::is_privileged();
        let privileges = if root || config.backend == BackendChoice::Loopback {
            Ok(())
        } else {
            let entered = namespace::enter_user_namespace();
            // The kernel forgets the request when credentials change.
            die_with_controller()?;
            entered
        };
        let user_namespace =
            !root && config.backend != BackendChoice::Loopback && privileges.is_ok();
        let try_backend = |backend: Backend| {
            if backend != Backend::Loopback {
                privileges.clone()?;
            }
            backend::build(backend, config)
        };
        let mut attempts = Vec::new();
        let (backend, path) = match requested(config.backend) {
            Some(backend) => (backend, try_backend(backend)?),
            None => automatic(try_backend, &mut attempts)?,
        };
        let facts = facts(config, backend, &*path, attempts, user_namespace)?;
        let host = Self {
            backend,
            profiles: vec![LinkProfile::unimpaired(); path.topology().legs().len()],
            path,
            nodes: Nodes::default(),
            user_namespace,
        };
        Ok((host, facts))
    }

    fn serve(&mut self, request: Request) -> Result<Response, Fault> {
        Ok(match request {
            Request::Probe | Request::Start(_) => {
                return Err(Fault::Failed("the link exists already".to_owned()));
            }
            Request::SetProfile { leg, profile, seed } => {
                self.path.set_profile(leg, &profile, seed)?;
                if let Some(of_leg) = self.profiles.get_mut(leg) {
                    *of_leg = *profile;
                }
                Response::Done
            }
            Request::Counters { leg } => Response::Counters(self.path.counters(leg)?),
            Request::Audit { leg } => Response::Audit(self.path.audit(leg)?),
            Request::Calibrate { leg, options } => {
                if let Some(problem) = options.problem() {
                    return Err(Fault::Unsupported(format!("calibration: {problem}")));
                }
                let emulated = self.backend.emulates();
                let applied = self.path.applied(leg);
                let ends = self.path.topology().leg(leg)?;
                let profile = &self.profiles[leg];
                let calibration = calibrate::calibrate(ends, profile, emulated, applied, &options)?;
                Response::Calibration(Box::new(calibration))
            }
            Request::Spawn { node, command } => {
                Response::Spawned(self.nodes.spawn(self.path.topology(), node, &command)?)
            }
            Request::Signal { process, signal } => {
                self.nodes.signal(process, signal)?;
                Response::Done
            }
            Request::Exits => Response::Exits(self.nodes.exits().to_vec()),
            Request::Place { node } => {
                let process = std::process::id();
                let namespace = self.path.topology().node(node)?.namespace.as_ref();
                Response::Place(Place {
                    user: (self.user_namespace && namespace.is_some())
                        .then(|| format!("/proc/{process}/ns/user").into()),
                    network: namespace.map(|namespace| {
                        let file = namespace.file().as_raw_fd();
                        format!("/proc/{process}/fd/{file}").into()
                    }),
                })
            }
            Request::Shutdown => {
                self.nodes.shut_down();
                Response::Done
            }
        })
    }
}

/// The backend that a choice names; `None` for `auto`.
fn requested(choice: BackendChoice) -> Option<Backend> {
    match choice {
        BackendChoice::Auto => None,
        BackendChoice::Userspace => Some(Backend::Userspace),
        BackendChoice::Kernel => Some(Backend::Kernel),
        BackendChoice::None => Some(Backend::None),
        BackendChoice::Loopback => Some(Backend::Loopback),
    }
}

/// The first backend of the registry that `auto` may take and that can be built; what failed
/// before goes to `attempts`.
fn automatic(
    try_backend: impl Fn(Backend) -> Result<Box<dyn Path>, Fault>,
    attempts: &mut Vec<BackendAttempt>,
) -> Result<(Backend, Box<dyn Path>), Fault> {
    for info in BACKENDS.iter().filter(|info| info.automatic) {
        match try_backend(info.backend) {
            Ok(path) => return Ok((info.backend, path)),
            // A mistake in the configuration is to be put right, not worked around.
            Err(Fault::Unsupported(message)) => {
                let before: Vec<String> = attempts
                    .iter()
                    .map(|a| format!("\"{}\" does not work: {}; ", a.backend, a.problem))
                    .collect();
                return Err(Fault::Unsupported(format!("{}{message}", before.concat())));
            }
            Err(fault) => attempts.push(BackendAttempt {
                backend: info.backend,
                problem: fault.message().to_owned(),
            }),
        }
    }
    let problems: Vec<String> = attempts
        .iter()
        .map(|attempt| format!("{}: {}", attempt.backend, attempt.problem))
        .collect();
    Err(Fault::Environment(format!(
        "no link backend works here: {}",
        problems.join("; ")
    )))
}

/// Pins the congestion control and gathers what the link is made of.
fn facts(
    config: &HostConfig,
    backend: Backend,
    path: &dyn Path,
    attempts: Vec<BackendAttempt>,
    user_namespace: bool,
) -> Result<LinkFacts, Fault> {
    let topology = path.topology();
    let edge = topology.node(Node::Edge(0))?;
    let congestion_control_note = if backend == Backend::Loopback {
        "the host's own setting, left alone".to_owned()
    } else {
        match edge.run(|| sysctl::wanted_congestion_control(config))? {
            Some(name) => {
                let mut note = String::new();
                for (node, end) in topology.nodes() {
                    let sides = topology.sides_of(node);
                    note = end.run(|| sysctl::pin_congestion_control(&name, &sides))?;
                }
                note
            }
            None => "cubic is not available; the kernel's default".to_owned(),
        }
    };
    let congestion_control = calibrate::congestion_control(topology.leg(0)?)?;
    if let Some(wanted) = &config.congestion_control
        && *wanted != congestion_control
    {
        return Err(Fault::Environment(format!(
            "congestion control \"{wanted}\" was asked for, but connections use \
             \"{congestion_control}\""
        )));
    }
    let reason = match config.backend {
        BackendChoice::Auto if attempts.is_empty() => {
            format!("auto: \"{backend}\" is the first choice and works here")
        }
        BackendChoice::Auto => {
            let failed: Vec<String> = attempts
                .iter()
                .map(|a| format!("\"{}\" does not work: {}", a.backend, a.problem))
                .collect();
            format!("auto: {}; took \"{backend}\"", failed.join("; "))
        }
        _ if backend.info().is_some_and(|info| !info.automatic) => {
            "as configured; auto never takes it".to_owned()
        }
        _ => "as configured".to_owned(),
    };
    let reason = match path.remark() {
        Some(remark) => format!("{reason}; {remark}"),
        None => reason,
    };
    let on_devices = backend != Backend::Loopback;
    Ok(LinkFacts {
        requested: config.backend,
        backend,
        reason,
        attempts,
        emulates: backend.emulates(),
        user_namespace,
        kernel: probing::kernel(),
        edge_addr: IpAddr::V4(edge.address),
        cloud_addr: IpAddr::V4(topology.node(Node::Cloud)?.address),
        devices: path.devices(),
        legs: topology.legs().iter().map(|ends| ends.leg).collect(),
        mtu: if on_devices {
            device::MTU
        } else {
            device::LOOPBACK_MTU
        },
        tx_queue_packets: on_devices.then_some(device::TX_QUEUE_PACKETS),
        congestion_control,
        congestion_control_note,
        sysctls: edge.run(|| Ok(sysctl::recorded()))?,
        scheduling: path.scheduling(),
        seed: config.seed,
        host_pid: std::process::id(),
    })
}
