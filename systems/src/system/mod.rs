//! The systems under test, as the edge runs them.

mod ce_lslm;
mod cloud_api;
mod cloud_only;
mod edge_only;
mod null;

use crate::answer::{Answer, ContextRef, Request, SystemError};
use crate::edge::EdgeNode;
use crate::spec::KvPath;
use crate::timeline::Timeline;

/// One system: how an edge answers a private prompt about a shared context.
///
/// Its parameters come in as the [`KvPath`]; systems that move no KV ignore it.
pub trait System: Sync {
    /// Has a cloud that this project's node does not command take the context in, unmeasured, so
    /// that the next request finds it primed. The node's own store is primed by its controller.
    ///
    /// # Errors
    /// As [`System::answer`].
    fn prime(
        &self,
        _edge: &EdgeNode,
        _context: &ContextRef,
        _deadline_ns: u64,
    ) -> Result<(), SystemError> {
        Ok(())
    }

    /// Brings the context's KV to where the system would keep it at the edge, unmeasured, so
    /// that the next request finds a warm edge. A system that keeps nothing there does nothing.
    ///
    /// # Errors
    /// As [`System::answer`].
    fn warm(
        &self,
        edge: &EdgeNode,
        kv: Option<&KvPath>,
        context: &ContextRef,
        deadline_ns: u64,
    ) -> Result<(), SystemError>;

    /// Answers a request. The timeline has been started; the system accounts every stretch up
    /// to the first token.
    ///
    /// # Errors
    /// Whatever made the request fail, with a stable kind.
    fn answer(
        &self,
        edge: &EdgeNode,
        kv: Option<&KvPath>,
        request: &Request,
        timeline: Timeline,
        deadline_ns: u64,
    ) -> Result<Answer, SystemError>;
}

/// What a system needs of the cloud's store before a primed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudNeed {
    /// Nothing: the cloud takes no part.
    Nothing,
    /// The context's KV in the cloud model's own form, ready to attend to.
    Native,
    /// The context's KV in the form that the path asks for: the edge model's, or the cloud model's own
    /// where the edge maps.
    EdgeShaped,
}

/// One entry of the system registry.
pub struct SystemEntry {
    /// Name in configs.
    pub name: &'static str,
    /// One line for `celslm ls`.
    pub summary: &'static str,
    /// Whether alignment, codec and schedule apply to it.
    pub moves_kv: bool,
    /// What it needs of the cloud's store.
    pub cloud_need: CloudNeed,
    /// Whether it keeps a context's KV at the edge between requests.
    pub keeps_at_edge: bool,
    /// Whether the user's private text leaves the edge.
    pub sends_prompt: bool,
    /// Whether it answers at once without computing, to measure the harness. The edge serves it
    /// where its commands arrive, and no grid holds it unless it is named.
    pub echo: bool,
    /// Whether it asks a serving engine, which the configuration must name. No grid holds it
    /// unless it is named.
    pub needs_serving: bool,
    system: &'static dyn System,
}

impl SystemEntry {
    /// The system itself.
    pub fn system(&self) -> &'static dyn System {
        self.system
    }
}

/// The registered systems, in report order: the do-nothing baseline comes first, the echo last.
pub fn registry() -> &'static [SystemEntry] {
    const REGISTRY: &[SystemEntry] = &[
        SystemEntry {
            name: "edge_only",
            summary: "the edge prefills context and prompt and decodes; the cloud takes no part",
            moves_kv: false,
            cloud_need: CloudNeed::Nothing,
            keeps_at_edge: true,
            sends_prompt: false,
            echo: false,
            needs_serving: false,
            system: &edge_only::EdgeOnly,
        },
        SystemEntry {
            name: "cloud_only",
            summary: "the private prompt goes up, the cloud answers, tokens stream down",
            moves_kv: false,
            cloud_need: CloudNeed::Native,
            keeps_at_edge: false,
            sends_prompt: true,
            echo: false,
            needs_serving: false,
            system: &cloud_only::CloudOnly,
        },
        SystemEntry {
            name: "cloud_api",
            summary: "the private prompt goes up to a serving engine with the OpenAI API, tokens stream down",
            moves_kv: false,
            cloud_need: CloudNeed::Nothing,
            keeps_at_edge: false,
            sends_prompt: true,
            echo: false,
            needs_serving: true,
            system: &cloud_api::CloudApi,
        },
        SystemEntry {
            name: "ce_lslm",
            summary: "the context's KV comes down, aligned and encoded; the edge answers, the prompt stays",
            moves_kv: true,
            cloud_need: CloudNeed::EdgeShaped,
            keeps_at_edge: true,
            sends_prompt: false,
            echo: false,
            needs_serving: false,
            system: &ce_lslm::CeLslm,
        },
        SystemEntry {
            name: "null",
            summary: "an echo that computes nothing: what the harness itself takes",
            moves_kv: false,
            cloud_need: CloudNeed::Nothing,
            keeps_at_edge: false,
            sends_prompt: false,
            echo: true,
            needs_serving: false,
            system: &null::Null,
        },
    ];
    REGISTRY
}

/// The entry of a name.
///
/// # Errors
/// Kind `config`, listing the known names.
pub fn find(name: &str) -> Result<&'static SystemEntry, SystemError> {
    registry()
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| {
            let known: Vec<_> = registry().iter().map(|entry| entry.name).collect();
            SystemError::new(
                "config",
                format!(
                    "no system {name:?}: the known ones are {}",
                    known.join(", ")
                ),
            )
        })
}
