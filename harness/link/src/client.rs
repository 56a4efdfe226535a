//! The controller's side: starts the link host, asks it, and takes everything down again.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::calibration::{CalibrateOptions, Calibration};
use crate::counters::{Audit, Counters};
use crate::error::LinkError;
use crate::facts::{BackendChoice, DeviceChoice, LinkFacts};
use crate::host::{device_address, place};
use crate::node::{Leg, Node, NodeCommand, NodeExit, NodeSignal, ProcessId};
use crate::profile::LinkProfile;
use crate::protocol::{HostConfig, MAX_LINE_BYTES, Request, Response};

/// How long the host is given for an ordinary request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long it is given for a calibration, beyond what the options ask for.
const CALIBRATE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it is given to take everything down before it is killed.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// How to start the link host and what it is to build.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The program whose `args` lead to [`crate::host_main`]; as a rule the controller's own.
    pub exe: PathBuf,
    /// Its arguments, for example `["link-host"]`.
    pub args: Vec<OsString>,
    /// The backend to build.
    pub backend: BackendChoice,
    /// TCP congestion control of both ends. `None` takes cubic where the kernel has it; a name
    /// that cannot be had is an error.
    pub congestion_control: Option<String>,
    /// `net.ipv4.tcp_slow_start_after_idle` of both ends; `None` leaves the kernel's default.
    pub tcp_slow_start_after_idle: Option<bool>,
    /// The greatest size of TCP buffers at both ends, which bounds rate × RTT; `None` leaves
    /// the kernel's default.
    pub tcp_buffer_max_bytes: Option<u64>,
    /// The CPU to pin the packet thread to.
    pub packet_cpu: Option<usize>,
    /// Whether the packet thread waits out the last stretch before a departure awake, and wakes
    /// for every packet: punctual to some microseconds, for much of a CPU.
    pub spin: bool,
    /// The devices of the `userspace` backend.
    pub devices: DeviceChoice,
    /// How many edges there are, each with a leg of its own to the cloud (1 to 64).
    pub edges: usize,
    /// Pairs of edges with a leg between them.
    pub neighbours: Vec<(usize, usize)>,
    /// Seed of the link's random streams.
    pub seed: u64,
}

impl HostOptions {
    /// Default options for a link host started by `exe` with `args`: backend `auto`, cubic where
    /// available, TCP buffers of up to 32 MiB, one edge, seed 0.
    #[must_use]
    pub fn new(
        exe: impl Into<PathBuf>,
        args: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Self {
        Self {
            exe: exe.into(),
            args: args.into_iter().map(Into::into).collect(),
            backend: BackendChoice::Auto,
            congestion_control: None,
            tcp_slow_start_after_idle: None,
            tcp_buffer_max_bytes: Some(32 << 20),
            packet_cpu: None,
            spin: false,
            devices: DeviceChoice::Auto,
            edges: 1,
            neighbours: Vec::new(),
            seed: 0,
        }
    }

    fn config(&self) -> HostConfig {
        HostConfig {
            backend: self.backend,
            congestion_control: self.congestion_control.clone(),
            tcp_slow_start_after_idle: self.tcp_slow_start_after_idle,
            tcp_buffer_max_bytes: self.tcp_buffer_max_bytes,
            packet_cpu: self.packet_cpu,
            spin: self.spin,
            devices: self.devices,
            edges: self.edges,
            neighbours: self.neighbours.clone(),
            seed: self.seed,
        }
    }
}

/// A link that exists: nodes, the legs between them and the processes at them.
///
/// Dropping it ends the nodes and removes every namespace and device. So does the death of the
/// controller or of the link host, by whatever signal: nothing has a name that could persist.
///
/// Requests block and are served one after the other; every one of them is bounded in time.
#[must_use = "the link is taken down when this is dropped"]
#[derive(Debug)]
pub struct Link {
    host: Host,
    facts: LinkFacts,
    profile_changes: AtomicU64,
}

impl Link {
    /// Starts the link host and builds the link, which impairs nothing at first.
    ///
    /// # Errors
    /// [`LinkError::Environment`] where this machine cannot run the backend asked for.
    pub fn start(options: &HostOptions) -> Result<Self, LinkError> {
        let host = Host::start(&options.exe, &options.args)?;
        let request = Request::Start(options.config());
        match host.ask(&request)? {
            Response::Started(facts) => Ok(Self {
                host,
                facts: *facts,
                profile_changes: AtomicU64::new(0),
            }),
            other => Err(Host::unexpected(&request, &other)),
        }
    }

    /// What the link is made of.
    #[must_use]
    pub fn facts(&self) -> &LinkFacts {
        &self.facts
    }

    /// The address of a node; every node has one, whatever legs end there.
    #[must_use]
    pub fn addr(&self, node: Node) -> IpAddr {
        match (node, self.facts.edge_addr) {
            (Node::Cloud, _) => self.facts.cloud_addr,
            (Node::Edge(_), address) if address.is_loopback() => address,
            (Node::Edge(_), _) => device_address(node).into(),
        }
    }

    /// The legs, which the other methods know by their index.
    #[must_use]
    pub fn legs(&self) -> &[Leg] {
        &self.facts.legs
    }

    /// Gives a leg another profile, with random streams that no earlier change has used.
    ///
    /// Packets on the leg leave it under the old profile first. Where that takes more than a
    /// second, because something keeps sending, those that remain are dropped and counted as
    /// `dropped_flush`.
    ///
    /// # Errors
    /// [`LinkError::Profile`] for an invalid profile, [`LinkError::Unsupported`] where the
    /// profile impairs anything and the backend emulates nothing.
    pub fn set_profile(&self, leg: usize, profile: &LinkProfile) -> Result<(), LinkError> {
        // Odd multiples of this constant are distinct modulo 2⁶⁴.
        let change = self.profile_changes.fetch_add(1, Ordering::Relaxed);
        let seed = self
            .facts
            .seed
            .wrapping_add(change.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.set_profile_with_seed(leg, profile, seed)
    }

    /// As [`Link::set_profile`], with the seed of the random streams stated: the same seed
    /// impairs the same packets in the same way.
    ///
    /// # Errors
    /// As [`Link::set_profile`].
    pub fn set_profile_with_seed(
        &self,
        leg: usize,
        profile: &LinkProfile,
        seed: u64,
    ) -> Result<(), LinkError> {
        profile.validate()?;
        self.done(&Request::SetProfile {
            leg,
            profile: Box::new(profile.clone()),
            seed,
        })
    }

    /// What passed over a leg so far, calibration included; `None` on loopback, where nothing
    /// can be counted.
    ///
    /// # Errors
    /// [`LinkError`], if the link host is gone or failed.
    pub fn counters(&self, leg: usize) -> Result<Option<Counters>, LinkError> {
        let request = Request::Counters { leg };
        match self.host.ask(&request)? {
            Response::Counters(counters) => Ok(counters),
            other => Err(Host::unexpected(&request, &other)),
        }
    }

    /// How well the emulator kept its times on a leg since its profile was last changed or this was
    /// last asked; `None` where nothing is emulated.
    ///
    /// # Errors
    /// [`LinkError`], if the link host is gone or failed.
    pub fn audit(&self, leg: usize) -> Result<Option<Audit>, LinkError> {
        let request = Request::Audit { leg };
        match self.host.ask(&request)? {
            Response::Audit(audit) => Ok(audit),
            other => Err(Host::unexpected(&request, &other)),
        }
    }

    /// Measures RTT, loss and rate over a leg and holds them against its profile. Takes some
    /// seconds, in which the nodes should be idle and other requests wait.
    ///
    /// # Errors
    /// [`LinkError::Unsupported`] for options out of range; [`LinkError::Failed`] where the
    /// measurement itself could not run. A link that misses its profile is no error but a verdict.
    pub fn calibrate(
        &self,
        leg: usize,
        options: &CalibrateOptions,
    ) -> Result<Calibration, LinkError> {
        let request = Request::Calibrate {
            leg,
            options: *options,
        };
        match self.host.ask(&request)? {
            Response::Calibration(calibration) => Ok(*calibration),
            other => Err(Host::unexpected(&request, &other)),
        }
    }

    /// Runs a program at one end, in a process group of its own. It is killed when the link goes.
    ///
    /// # Errors
    /// [`LinkError::Failed`], if it could not be started.
    pub fn spawn(&self, node: Node, command: &NodeCommand) -> Result<ProcessId, LinkError> {
        let request = Request::Spawn {
            node,
            command: command.clone(),
        };
        match self.host.ask(&request)? {
            Response::Spawned(process) => Ok(process),
            other => Err(Host::unexpected(&request, &other)),
        }
    }

    /// Makes a command start at a node, with the standard streams that it has, as a child of this
    /// process, with which it is killed. The link must outlive the start. On loopback every node
    /// is the host itself.
    ///
    /// # Errors
    /// [`LinkError`], if the link host is gone or has no such node; [`LinkError::Start`], if its
    /// namespaces cannot be opened.
    pub fn enter(&self, node: Node, command: &mut Command) -> Result<(), LinkError> {
        let request = Request::Place { node };
        match self.host.ask(&request)? {
            Response::Place(found) => place(command, &found).map_err(|source| LinkError::Start {
                exe: command.get_program().into(),
                source,
            }),
            other => Err(Host::unexpected(&request, &other)),
        }
    }

    /// Every node process that has ended since the link was started, in the order in which that
    /// was noticed. Does not wait.
    ///
    /// # Errors
    /// [`LinkError::HostEnded`], if the link host is gone, and all nodes with it.
    pub fn exits(&self) -> Result<Vec<NodeExit>, LinkError> {
        match self.host.ask(&Request::Exits)? {
            Response::Exits(exits) => Ok(exits),
            other => Err(Host::unexpected(&Request::Exits, &other)),
        }
    }

    /// Sends a signal to a node process and to whatever it started.
    ///
    /// # Errors
    /// [`LinkError::Failed`], if no such process runs.
    pub fn kill(&self, process: ProcessId, signal: NodeSignal) -> Result<(), LinkError> {
        self.done(&Request::Signal { process, signal })
    }

    fn done(&self, request: &Request) -> Result<(), LinkError> {
        match self.host.ask(request)? {
            Response::Done => Ok(()),
            other => Err(Host::unexpected(request, &other)),
        }
    }
}

/// The link host's process and the socket to it.
#[derive(Debug)]
pub(crate) struct Host {
    connection: Mutex<BufReader<UnixStream>>,
    process: Arc<Process>,
}

/// The link host's process, reaped by a thread of its own.
#[derive(Debug)]
struct Process {
    pid: Pid,
    /// How it ended. Reaping happens under this lock, so that a signal sent under it cannot
    /// reach another process that took over the number.
    status: Mutex<Option<String>>,
    ended: Condvar,
}

impl Host {
    /// Starts the program with the control socket as its standard input.
    pub(crate) fn start(exe: &Path, args: &[OsString]) -> Result<Self, LinkError> {
        let failed = |source| LinkError::Start {
            exe: exe.to_owned(),
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(exe);
        command
            .args(args)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null());
        // The host asks the kernel to be killed when the thread that started it ends. That
        // thread must therefore live as long as the host: it is the one that waits for it.
        let (sender, receiver) = mpsc::channel();
        thread::Builder::new()
            .name("link-host-wait".to_owned())
            .spawn(move || match command.spawn() {
                Ok(mut child) => {
                    // The command holds the host's end of the socket; as long as it did, the
                    // host's death would go unnoticed here.
                    drop(command);
                    let process = Arc::new(Process {
                        pid: pid(&child),
                        status: Mutex::new(None),
                        ended: Condvar::new(),
                    });
                    // The receiver waits for exactly this.
                    let _ = sender.send(Ok(Arc::clone(&process)));
                    process.reap(&mut child);
                }
                Err(error) => {
                    let _ = sender.send(Err(error));
                }
            })
            .map_err(failed)?;
        let process = receiver
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the waiting thread ended")))
            .map_err(failed)?;
        Ok(Self {
            connection: Mutex::new(BufReader::new(ours)),
            process,
        })
    }

    /// Sends a request and waits for its answer. A fault comes back as the error it stands for.
    pub(crate) fn ask(&self, request: &Request) -> Result<Response, LinkError> {
        let name = request.name();
        let timeout = match request {
            Request::Calibrate { options, .. } => {
                CALIBRATE_TIMEOUT
                    + Duration::from_micros(u64::from(options.pings) * options.ping_interval_us)
                    + Duration::from_millis(6 * options.rate_window_ms)
                    + Duration::from_millis(u64::from(options.loss_datagrams))
            }
            Request::Shutdown => SHUTDOWN_TIMEOUT,
            _ => REQUEST_TIMEOUT,
        };
        let mut line = serde_json::to_string(request).map_err(|error| LinkError::Protocol {
            request: name,
            message: error.to_string(),
        })?;
        line.push('\n');
        let mut connection = lock(&self.connection);
        match exchange(&mut connection, &line, timeout) {
            Ok(answer) if answer.is_empty() => Err(self.ended(name)),
            Ok(answer) => match serde_json::from_str(&answer) {
                Ok(Response::Fault(fault)) => Err(fault.into()),
                Ok(response) => Ok(response),
                Err(error) => Err(LinkError::Protocol {
                    request: name,
                    message: error.to_string(),
                }),
            },
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                // A late answer would be taken for the next request's; a host that hangs is of
                // no use, and ending it ends its nodes.
                self.process.kill();
                Err(LinkError::Timeout {
                    request: name,
                    seconds: timeout.as_secs(),
                })
            }
            Err(_) => Err(self.ended(name)),
        }
    }

    pub(crate) fn unexpected(request: &Request, response: &Response) -> LinkError {
        let mut message = format!("unexpected {response:?}");
        message.truncate(message.floor_char_boundary(200));
        LinkError::Protocol {
            request: request.name(),
            message,
        }
    }

    fn ended(&self, request: &'static str) -> LinkError {
        let status = self.process.wait(Duration::from_millis(500));
        LinkError::HostEnded { request, status }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.process.wait(Duration::ZERO).is_none() {
            // Whatever comes of it, the process is ended below.
            let _ = self.ask(&Request::Shutdown);
        }
        if self.process.wait(Duration::from_millis(500)).is_none() {
            self.process.kill();
            self.process.wait(SHUTDOWN_TIMEOUT);
        }
    }
}

impl Process {
    fn reap(&self, child: &mut Child) {
        let seen = waitid(
            Id::Pid(self.pid),
            WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT,
        );
        debug_assert!(seen.is_ok(), "waiting for the link host: {seen:?}");
        let mut status = lock(&self.status);
        *status = Some(match child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => format!("unknown status: {error}"),
        });
        self.ended.notify_all();
    }

    fn kill(&self) {
        let status = lock(&self.status);
        if status.is_none() {
            // It has not been reaped, so the number is still its own.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }

    /// How the process ended, waiting for it at most `timeout`.
    fn wait(&self, timeout: Duration) -> Option<String> {
        let status = lock(&self.status);
        let (status, _) = self
            .ended
            .wait_timeout_while(status, timeout, |status| status.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        status.clone()
    }
}

fn exchange(
    connection: &mut BufReader<UnixStream>,
    line: &str,
    timeout: Duration,
) -> io::Result<String> {
    connection.get_ref().set_read_timeout(Some(timeout))?;
    connection.get_ref().set_write_timeout(Some(timeout))?;
    connection.get_mut().write_all(line.as_bytes())?;
    let mut answer = String::new();
    connection.take(MAX_LINE_BYTES).read_line(&mut answer)?;
    Ok(answer)
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// No invariant of what these locks guard can be broken half way, so poison is no reason to stop.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
