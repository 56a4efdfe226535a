//! Exit codes, and the one place where errors become them.

use std::error::Error;
use std::process::Termination;

use celslm_datasets::DatasetError;
use celslm_link::{LinkError, ProfileError};
use celslm_reports::ReportError;

use crate::catalogue::CatalogueError;
use crate::config::ConfigError;
use crate::device::{DeviceError, MeasureError, QuotaError};
use crate::plan::{PlanError, ShardError};
use crate::store::StoreError;

/// What a command's exit status means. Scripts and CI rely on the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything asked for was done.
    Ok = 0,
    /// The configuration or the command line is wrong.
    Config = 2,
    /// A regression, or a claim that does not hold.
    Claim = 3,
    /// This machine, as it is, cannot do what was asked.
    Environment = 4,
    /// A measurement failed, or its result is not valid.
    Measurement = 5,
}

impl Termination for ExitCode {
    fn report(self) -> std::process::ExitCode {
        std::process::ExitCode::from(self as u8)
    }
}

/// An outcome that a command states itself, where no library error says it.
#[derive(Debug, thiserror::Error)]
pub enum Verdict {
    /// Exit code 2.
    #[error("{0}")]
    Config(String),
    /// Exit code 3.
    #[error("{0}")]
    Claim(String),
    /// Exit code 4.
    #[error("{0}")]
    Environment(String),
    /// Exit code 5.
    #[error("{0}")]
    Measurement(String),
}

impl ExitCode {
    /// The code of an error: the first error of its chain that is known decides. What nobody
    /// classified is a failed measurement, unless the operating system refused something.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut at = Some(error);
        while let Some(error) = at {
            if let Some(code) = Self::known(error) {
                return code;
            }
            at = error.source();
        }
        Self::Measurement
    }

    fn known(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(verdict) = error.downcast_ref::<Verdict>() {
            return Some(match verdict {
                Verdict::Config(_) => Self::Config,
                Verdict::Claim(_) => Self::Claim,
                Verdict::Environment(_) => Self::Environment,
                Verdict::Measurement(_) => Self::Measurement,
            });
        }
        if error.is::<ConfigError>() || error.is::<PlanError>() || error.is::<ShardError>() {
            return Some(Self::Config);
        }
        if let Some(error) = error.downcast_ref::<CatalogueError>() {
            return match error {
                CatalogueError::Config(_) | CatalogueError::Links(_) => Some(Self::Config),
                // The sources below know more.
                _ => None,
            };
        }
        if let Some(error) = error.downcast_ref::<DatasetError>() {
            return Some(match error {
                DatasetError::NoDataDir { .. }
                | DatasetError::FileMissing { .. }
                | DatasetError::Read { .. } => Self::Environment,
                _ => Self::Config,
            });
        }
        if let Some(error) = error.downcast_ref::<celslm_model::store::StoreError>() {
            return Some(match error {
                error if error.is_environment() => Self::Environment,
                celslm_model::store::StoreError::Cancelled { .. } => Self::Measurement,
                _ => Self::Config,
            });
        }
        if let Some(error) = error.downcast_ref::<celslm_systems::WireError>() {
            use celslm_systems::WireError as E;
            return Some(match error {
                E::AddressInUse { .. } | E::Bind { .. } => Self::Environment,
                E::InvalidLimits { .. } => Self::Config,
                _ => Self::Measurement,
            });
        }
        if error.is::<DeviceError>() || error.is::<QuotaError>() {
            return Some(Self::Environment);
        }
        if let Some(MeasureError::Settings(_)) = error.downcast_ref::<MeasureError>() {
            return Some(Self::Config);
        }
        if let Some(crate::deployment::DeploymentError::Serving { .. }) = error.downcast_ref() {
            return Some(Self::Environment);
        }
        if let Some(error) = error.downcast_ref::<celslm_systems::mapping::UnfitBridge>() {
            use celslm_systems::mapping::UnfitBridge as E;
            return match error {
                // The sources below know more.
                E::Read { .. } => None,
                _ => Some(Self::Config),
            };
        }
        if let Some(error) = error.downcast_ref::<celslm_kv::BridgeError>() {
            return match error {
                celslm_kv::BridgeError::Io { .. } => None,
                _ => Some(Self::Config),
            };
        }
        if error.is::<celslm_model::ModelError>() {
            return Some(Self::Environment);
        }
        if let Some(error) = error.downcast_ref::<LinkError>() {
            return Some(match error {
                error if error.is_environment() => Self::Environment,
                error if error.is_usage() => Self::Config,
                _ => Self::Measurement,
            });
        }
        if error.is::<ProfileError>() {
            return Some(Self::Config);
        }
        if let Some(error) = error.downcast_ref::<StoreError>() {
            return Some(match error {
                StoreError::Changed { .. } | StoreError::NotResults { .. } => Self::Config,
                StoreError::Busy { .. } | StoreError::Io { .. } => Self::Environment,
                _ => Self::Measurement,
            });
        }
        if let Some(error) = error.downcast_ref::<ReportError>() {
            return Some(match error {
                ReportError::NotResults { .. } | ReportError::UnknownView { .. } => Self::Config,
                ReportError::Read { .. } | ReportError::Write { .. } => Self::Environment,
                _ => Self::Measurement,
            });
        }
        error.is::<std::io::Error>().then_some(Self::Environment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Box<dyn Error + Send + Sync>);

    #[test]
    fn the_first_known_error_of_a_chain_decides() {
        let config = ConfigError::File {
            path: "x".into(),
            message: "bad".into(),
        };
        assert_eq!(ExitCode::of(&Outer(Box::new(config))), ExitCode::Config);
        let missing = CatalogueError::Dataset {
            name: "squad",
            source: DatasetError::FileMissing {
                path: "x".into(),
                home: "y".into(),
            },
        };
        assert_eq!(ExitCode::of(&missing), ExitCode::Environment);
        let slip = CatalogueError::Dataset {
            name: "embedded",
            source: DatasetError::Zero {
                setting: "documents",
            },
        };
        assert_eq!(ExitCode::of(&slip), ExitCode::Config);
        // A bridge that cannot be read is the machine's fault, one that is none the user's.
        let bridge = |source| celslm_systems::mapping::UnfitBridge::Read {
            path: "x".into(),
            source,
        };
        let absent = bridge(celslm_kv::BridgeError::Io {
            path: "x".into(),
            source: std::io::Error::other("disk"),
        });
        assert_eq!(ExitCode::of(&absent), ExitCode::Environment);
        let header = celslm_kv::BridgeError::Header {
            reason: "r".to_owned(),
        };
        assert_eq!(ExitCode::of(&bridge(header)), ExitCode::Config);
        let io = Outer(Box::new(std::io::Error::other("disk")));
        assert_eq!(ExitCode::of(&io), ExitCode::Environment);
        assert_eq!(ExitCode::of(&Outer("odd".into())), ExitCode::Measurement);
        assert_eq!(ExitCode::of(&Verdict::Claim("x".into())), ExitCode::Claim);
    }
}
