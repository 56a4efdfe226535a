//! Loss by gaps and bursts.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// The 4-state Markov model; see [`LossModel::FourState`](super::LossModel) for its parameters.
/// Salsano, Ludovici, Ordine, Giannuzzi: "Definition of a general and intuitive loss model for
/// packet networks and its implementation in the Netem module in the Linux kernel", 2012.
#[derive(Clone, Debug)]
pub(super) struct FourState {
    gap_to_burst: f64,
    burst_to_gap: f64,
    lost_to_received: f64,
    received_to_lost: f64,
    isolated: f64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    ReceivedInGap,
    ReceivedInBurst,
    LostInBurst,
    LostInGap,
}

impl FourState {
    pub(super) fn new(p13: f64, p31: f64, p32: f64, p23: f64, p14: f64) -> Self {
        Self {
            gap_to_burst: p13,
            burst_to_gap: p31,
            lost_to_received: p32,
            received_to_lost: p23,
            isolated: p14,
            state: State::ReceivedInGap,
        }
    }

    /// Whether the present state is one of loss.
    pub(super) fn is_lossy(&self) -> bool {
        matches!(self.state, State::LostInBurst | State::LostInGap)
    }

    /// Whether the next packet is lost: by the state that its draw leads to.
    pub(super) fn draw(&mut self, rng: &mut ChaCha8Rng) -> bool {
        let draw: f64 = rng.random();
        self.state = match self.state {
            State::ReceivedInGap if draw < self.isolated => State::LostInGap,
            State::ReceivedInGap if draw < self.isolated + self.gap_to_burst => State::LostInBurst,
            State::ReceivedInBurst if draw < self.received_to_lost => State::LostInBurst,
            State::LostInBurst if draw < self.lost_to_received => State::ReceivedInBurst,
            State::LostInBurst if draw < self.lost_to_received + self.burst_to_gap => {
                State::ReceivedInGap
            }
            State::LostInGap => State::ReceivedInGap,
            unchanged => unchanged,
        };
        self.is_lossy()
    }
}
