//! What this machine can do for link emulation.

use std::ffi::OsString;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::client::Host;
use crate::error::LinkError;
use crate::protocol::{Request, Response};

/// One thing that a backend may need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub available: bool,
    /// One line: what was found, or what is missing and what to do about it.
    pub detail: String,
}

/// Everything that was probed, and what follows for the backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Kernel release.
    pub kernel: String,
    /// The single capabilities.
    pub items: Vec<Capability>,
    /// Each backend, in the registry's order.
    pub backends: Vec<Capability>,
}

impl Capabilities {
    /// The capability of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Capability> {
        self.items.iter().find(|item| item.name == name)
    }
}

/// Finds out what this machine can do by trying it in a process of its own, which leaves nothing
/// behind. `exe` and `args` start the link host, as in [`crate::HostOptions`].
///
/// # Errors
/// [`LinkError`], if the process could not be started or did not answer.
pub fn probe(exe: &Path, args: &[OsString]) -> Result<Capabilities, LinkError> {
    let host = Host::start(exe, args)?;
    match host.ask(&Request::Probe)? {
        Response::Capabilities(capabilities) => Ok(capabilities),
        other => Err(Host::unexpected(&Request::Probe, &other)),
    }
}
