//! The node processes, children of the link host.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getppid};

use super::backend::Topology;
use super::scheduling;
use crate::error::Fault;
use crate::node::{Node, NodeCommand, NodeExit, NodeSignal, ProcessId};
use crate::protocol::Place;

/// How long nodes are given to end in good order.
const GRACE: Duration = Duration::from_millis(500);
/// How often they are looked at meanwhile.
const POLL: Duration = Duration::from_millis(5);

/// The nodes that run and those that have ended.
#[derive(Default)]
pub(super) struct Nodes {
    running: BTreeMap<ProcessId, (Node, Child)>,
    exits: Vec<NodeExit>,
}

impl Nodes {
    /// Starts a program at one end, in a process group of its own.
    #[expect(
        unsafe_code,
        reason = "the child must move into its namespace before it executes"
    )]
    pub(super) fn spawn(
        &mut self,
        topology: &Topology,
        node: Node,
        node_command: &NodeCommand,
    ) -> Result<ProcessId, Fault> {
        let end = topology.node(node)?;
        let cpus = node_command
            .cpus
            .as_deref()
            .map(scheduling::cpu_set)
            .transpose()?;
        let namespace = end
            .namespace
            .as_ref()
            .map(|namespace| namespace.file().try_clone())
            .transpose()
            .map_err(Fault::failed("copy the namespace's file"))?;
        let mut command = Command::new(&node_command.exe);
        command
            .args(&node_command.args)
            .envs(node_command.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .process_group(0);
        match &node_command.log {
            Some(path) => {
                let log = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .map_err(Fault::failed(format!("open the log {}", path.display())))?;
                let copy = log
                    .try_clone()
                    .map_err(Fault::failed("copy the log's file"))?;
                command.stdout(log).stderr(copy);
            }
            None => {
                command.stdout(Stdio::null()).stderr(Stdio::inherit());
            }
        }
        let host = Pid::this();
        let prepare = move || {
            if let Some(namespace) = &namespace {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
            }
            if let Some(cpus) = &cpus {
                scheduling::pin(cpus)?;
            }
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The host may have died before the request was in place.
            if getppid() != host {
                return Err(nix::errno::Errno::ESRCH.into());
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls only: it neither
        // allocates nor locks anything.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn().map_err(|error| {
            Fault::Failed(format!(
                "start the {node} node {}: {error}",
                node_command.exe.display()
            ))
        })?;
        let process = ProcessId(child.id());
        self.running.insert(process, (node, child));
        Ok(process)
    }

    /// Sends a signal to a node's process group.
    pub(super) fn signal(&mut self, process: ProcessId, signal: NodeSignal) -> Result<(), Fault> {
        if !self.running.contains_key(&process) {
            return Err(Fault::Failed(format!(
                "process {process} is no running node"
            )));
        }
        let signal = match signal {
            NodeSignal::Terminate => Signal::SIGTERM,
            NodeSignal::Kill => Signal::SIGKILL,
            NodeSignal::Interrupt => Signal::SIGINT,
            NodeSignal::Stop => Signal::SIGSTOP,
            NodeSignal::Continue => Signal::SIGCONT,
        };
        // It has not been waited for, so the number is still its own.
        killpg(pid(process), signal).map_err(Fault::failed(format!("signal process {process}")))
    }

    /// Every node that has ended so far.
    pub(super) fn exits(&mut self) -> &[NodeExit] {
        let ended: Vec<ProcessId> = self
            .running
            .keys()
            .copied()
            .filter(|&process| has_ended(process))
            .collect();
        for process in ended {
            self.reap(process);
        }
        &self.exits
    }

    /// Ends every node: first in good order, then at once.
    pub(super) fn shut_down(&mut self) {
        for &process in self.running.keys() {
            // One that has just ended needs no signal; a stopped one must go on to get it.
            let _ = killpg(pid(process), Signal::SIGTERM);
            let _ = killpg(pid(process), Signal::SIGCONT);
        }
        let mut waited = Duration::ZERO;
        while !self.running.keys().all(|&process| has_ended(process)) && waited < GRACE {
            thread::sleep(POLL);
            waited += POLL;
        }
        let all: Vec<ProcessId> = self.running.keys().copied().collect();
        for process in all {
            self.reap(process);
        }
    }

    /// Ends what is left of a node's process group and waits for the node.
    fn reap(&mut self, process: ProcessId) {
        let _ = killpg(pid(process), Signal::SIGKILL);
        let Some((node, mut child)) = self.running.remove(&process) else {
            return;
        };
        let (code, signal) = match child.wait() {
            Ok(status) => (status.code(), status.signal()),
            Err(_) => (None, None),
        };
        self.exits.push(NodeExit {
            process,
            node,
            code,
            signal,
        });
    }
}

/// Makes a command of the controller's own start at a node, and be killed with the controller.
#[expect(
    unsafe_code,
    reason = "the child must move into its namespaces before it executes"
)]
pub(crate) fn place(command: &mut Command, place: &Place) -> std::io::Result<()> {
    let open = |path: &Option<PathBuf>| path.as_ref().map(File::open).transpose();
    let (user, network) = (open(&place.user)?, open(&place.network)?);
    let controller = Pid::this();
    let prepare = move || {
        // The user namespace holds the right to enter the other.
        if let Some(user) = &user {
            setns(user, CloneFlags::CLONE_NEWUSER)?;
        }
        if let Some(network) = &network {
            setns(network, CloneFlags::CLONE_NEWNET)?;
        }
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The controller may have died before the request was in place.
        if getppid() != controller {
            return Err(nix::errno::Errno::ESRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: it neither allocates nor
    // locks anything.
    unsafe { command.pre_exec(prepare) };
    Ok(())
}

/// Whether a child has ended; it stays waitable.
fn has_ended(process: ProcessId) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(
        waitid(Id::Pid(pid(process)), flags),
        Ok(WaitStatus::StillAlive)
    )
}

fn pid(process: ProcessId) -> Pid {
    Pid::from_raw(process.0 as libc::pid_t)
}
