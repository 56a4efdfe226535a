//! Devices: what an edge or a cloud would compute on, and how this machine stands in for it.
//!
//! A [`DeviceProfile`] (`configs/devices/NAME.toml`) says how fast a device is and where that is
//! known from. As an edge it is imitated by slowing the node down: by a CPU quota, by a fixed
//! factor on every measured step of the engine, or by the two factors that bring this host's own
//! rates down to published ones. As a cloud its rates may instead be what recorded outputs are
//! served at; the recording's real tokens and bytes then arrive at the profile's speed.

mod measure;
mod profile;
mod quota;
mod throttle;

pub use measure::{
    Distribution, HostRates, MeasureError, MeasureOptions, Measurement, SessionsMeasurement,
    SessionsOptions, measure, measure_sessions, model_window,
};
pub use profile::{DeviceProfile, HOST, ProfileKind};
pub use quota::{CpuController, CpuQuota, QuotaError, sweep};
pub use throttle::{DeviceError, Subject, ThrottleFacts, Throttling, throttle};
