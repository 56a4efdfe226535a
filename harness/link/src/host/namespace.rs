//! Network namespaces without names, and the right to make them.

use std::fs::{self, File};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getgid, getuid};

use crate::error::Fault;

/// Bits of the effective capability set that the link needs: `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`.
const NEEDED_CAPABILITIES: u64 = 1 << 12 | 1 << 21;

/// Whether the process may make network namespaces as it is.
pub(super) fn is_privileged() -> bool {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .is_some_and(|effective| effective & NEEDED_CAPABILITIES == NEEDED_CAPABILITIES)
}

/// Moves the process, which must still have a single thread, into a user namespace in which it
/// may make network namespaces. User and group keep their numbers, so files stay accessible and
/// the nodes run without capabilities.
pub(super) fn enter_user_namespace() -> Result<(), Fault> {
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(Fault::environment(
        "neither root nor able to make a user namespace (run as root, or allow user namespaces: \
         user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)",
    ))?;
    // Without this, the kernel refuses an unprivileged group map.
    fs::write("/proc/self/setgroups", "deny").map_err(Fault::environment("deny setgroups"))?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))
        .map_err(Fault::environment("map the user into the user namespace"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
        .map_err(Fault::environment("map the group into the user namespace"))
}

/// A network namespace, which lives as long as this and the processes in it.
#[derive(Debug)]
pub(super) struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes a namespace.
    pub(super) fn create() -> Result<Self, Fault> {
        // A thread of its own moves into the new namespace and ends; the file keeps it.
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(Fault::environment("make a network namespace"))?;
            let file = File::open("/proc/thread-self/ns/net")
                .map_err(Fault::failed("open the network namespace"))?;
            Ok(Self { file })
        })
    }

    /// The open namespace.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Moves the calling thread into the namespace, for good.
    pub(super) fn enter(&self) -> Result<(), Fault> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(Fault::failed("enter the network namespace"))
    }

    /// Runs `work` on a thread of its own inside the namespace.
    pub(super) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, Fault> + Send,
    ) -> Result<T, Fault> {
        on_own_thread(|| {
            self.enter()?;
            work()
        })
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T, Fault> + Send) -> Result<T, Fault> {
    thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|_| {
            Err(Fault::Failed(
                "a thread of the link host panicked".to_owned(),
            ))
        })
    })
}
