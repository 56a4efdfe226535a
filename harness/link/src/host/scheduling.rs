//! The best scheduling that the machine grants to a thread that must be on time.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::unistd::Pid;

use super::sys;
use crate::error::Fault;
use crate::facts::Scheduling;

/// Priority of the packet thread under `SCHED_FIFO`.
pub(super) const PACKET_PRIORITY: i32 = 20;
/// Priority of a thread of the controller that makes requests at their times: below the packet
/// thread, which carries them.
const SENDER_PRIORITY: i32 = 15;
/// Priority of the measuring threads: below the packet thread, which they must not delay.
pub(super) const PROBE_PRIORITY: i32 = 10;
/// The slice asked for where `SCHED_FIFO` is not granted: the shorter it is, the sooner the
/// scheduler lets a waking thread run.
const SLICE_NS: u64 = 100_000;
/// The least timer slack there is.
const TIMER_SLACK_NS: u64 = 1;

/// Gives the calling thread timer slack of 1 ns and `SCHED_FIFO`, or a slice of 0.1 ms, or what
/// there is, and says which.
pub(super) fn be_punctual(priority: i32) -> Scheduling {
    let slack = prctl::set_timerslack(TIMER_SLACK_NS);
    let (policy, note) = match sys::schedule_fifo(priority) {
        Ok(()) => ("fifo", String::new()),
        Err(fifo) => match sys::schedule_slice(SLICE_NS) {
            Ok(()) => (
                "other, 0.1 ms slice",
                format!("SCHED_FIFO was refused: {fifo}"),
            ),
            Err(slice) => (
                "other",
                format!("SCHED_FIFO was refused: {fifo}; a 0.1 ms slice was refused: {slice}"),
            ),
        },
    };
    Scheduling {
        policy: policy.to_owned(),
        note,
        timer_slack_ns: slack
            .ok()
            .and_then(|()| prctl::get_timerslack().ok())
            .and_then(|slack| u64::try_from(slack).ok())
            .unwrap_or(0),
        cpu: None,
    }
}

/// As [`be_punctual`], for a thread of the controller that makes requests at their times.
pub fn be_punctual_sender() -> Scheduling {
    be_punctual(SENDER_PRIORITY)
}

/// Pins the calling thread (or the process about to be, after a fork) to CPUs.
pub(super) fn pin(cpus: &CpuSet) -> nix::Result<()> {
    sched_setaffinity(Pid::from_raw(0), cpus)
}

/// A set of CPUs.
pub(super) fn cpu_set(cpus: &[usize]) -> Result<CpuSet, Fault> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu)
            .map_err(|_| Fault::Unsupported(format!("there is no CPU {cpu}")))?;
    }
    Ok(set)
}
