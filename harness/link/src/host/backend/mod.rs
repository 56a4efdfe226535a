//! The backends: how the path between the two ends is made.

mod loopback;
mod none;
mod userspace;

use std::net::Ipv4Addr;

use super::device;
use super::namespace::Namespace;
use super::sysctl;
use crate::counters::{Audit, Counters};
use crate::error::Fault;
use crate::facts::{Backend, Scheduling};
use crate::profile::LinkProfile;
use crate::protocol::HostConfig;

/// A path that exists.
pub(super) trait Path {
    /// Gives the path another profile.
    fn set_profile(&mut self, profile: &LinkProfile, seed: u64) -> Result<(), Fault>;
    /// What passed so far, where that can be known.
    fn counters(&mut self) -> Result<Option<Counters>, Fault>;
    /// How punctual the emulation was, where there is one.
    fn audit(&mut self) -> Result<Option<Audit>, Fault>;
    /// How the packet thread is scheduled, where there is one.
    fn scheduling(&self) -> Option<Scheduling>;
    /// The two ends.
    fn ends(&self) -> &Ends;
}

/// The two ends of a path.
pub(super) struct Ends {
    pub(super) edge: End,
    pub(super) cloud: End,
}

/// One end: its address and, unless it is the host itself, its namespace.
pub(super) struct End {
    pub(super) address: Ipv4Addr,
    pub(super) namespace: Option<Namespace>,
}

impl End {
    /// Runs `work` on a thread of its own at this end.
    pub(super) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, Fault> + Send,
    ) -> Result<T, Fault> {
        match &self.namespace {
            Some(namespace) => namespace.run(work),
            None => work(),
        }
    }

    /// Moves the calling thread, which must not do anything else, to this end.
    pub(super) fn enter(&self) -> Result<(), Fault> {
        self.namespace.as_ref().map_or(Ok(()), Namespace::enter)
    }
}

impl Ends {
    /// Two namespaces with everything but the path between them.
    fn create(config: &HostConfig) -> Result<Self, Fault> {
        let end = |address| {
            let namespace = Namespace::create()?;
            namespace.run(|| {
                sysctl::disable_ipv6()?;
                sysctl::apply(config)?;
                device::loopback_up()
            })?;
            Ok(End {
                address,
                namespace: Some(namespace),
            })
        };
        Ok(Self {
            edge: end(device::EDGE_ADDRESS)?,
            cloud: end(device::CLOUD_ADDRESS)?,
        })
    }
}

/// Builds a path.
pub(super) fn build(backend: Backend, config: &HostConfig) -> Result<Box<dyn Path>, Fault> {
    Ok(match backend {
        Backend::Userspace => Box::new(userspace::Userspace::build(config)?),
        Backend::None => Box::new(none::Veth::build(config)?),
        Backend::Loopback => Box::new(loopback::Loopback::build(config)?),
    })
}

/// Refuses a profile that a backend which emulates nothing cannot apply.
fn refuse_impairments(backend: Backend, profile: &LinkProfile) -> Result<(), Fault> {
    if profile.impairs() {
        return Err(Fault::Unsupported(format!(
            "the link runs on backend \"{backend}\", which emulates nothing, so profile \"{}\" \
             cannot be applied: use profile \"none\", or backend \"userspace\" where the machine \
             allows it",
            profile.name
        )));
    }
    Ok(())
}
