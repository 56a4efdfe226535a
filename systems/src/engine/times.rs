//! How long a job spent in which state.

/// What a job is doing at a moment: always exactly one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It could run, and something else does.
    Queued,
    /// Its context's KV has not arrived.
    Blocked,
    /// Its prompt or context is computed.
    Prefill,
    /// Its next token is computed.
    Decode,
}

/// Time in each state since a job was submitted; together all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Times {
    /// Ready to run while something else ran, in nanoseconds.
    pub queued_ns: u64,
    /// Waiting for the context's KV.
    pub blocked_ns: u64,
    /// Computing the prompt or the context.
    pub prefill_ns: u64,
    /// Computing tokens of the answer.
    pub decode_ns: u64,
}

impl Times {
    /// The sum: the age of the job.
    pub fn total_ns(&self) -> u64 {
        self.queued_ns + self.blocked_ns + self.prefill_ns + self.decode_ns
    }

    /// What was added since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            queued_ns: self.queued_ns - earlier.queued_ns,
            blocked_ns: self.blocked_ns - earlier.blocked_ns,
            prefill_ns: self.prefill_ns - earlier.prefill_ns,
            decode_ns: self.decode_ns - earlier.decode_ns,
        }
    }

    fn of(&mut self, state: State) -> &mut u64 {
        match state {
            State::Queued => &mut self.queued_ns,
            State::Blocked => &mut self.blocked_ns,
            State::Prefill => &mut self.prefill_ns,
            State::Decode => &mut self.decode_ns,
        }
    }
}

/// Follows a job from state to state.
#[derive(Debug)]
pub(super) struct StateClock {
    state: State,
    since_ns: u64,
    times: Times,
    /// When it was blocked, for whoever knows what it was blocked on. At most one stretch for
    /// every layer.
    blocked: Vec<(u64, u64)>,
}

impl StateClock {
    /// Starts queued.
    pub(super) fn new(at_ns: u64) -> Self {
        Self {
            state: State::Queued,
            since_ns: at_ns,
            times: Times::default(),
            blocked: Vec::new(),
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// When it entered its state.
    pub(super) fn since_ns(&self) -> u64 {
        self.since_ns
    }

    /// Enters a state at a moment, which may lie a little back but not before the last change.
    pub(super) fn enter(&mut self, state: State, at_ns: u64) {
        if state == self.state {
            return;
        }
        let at_ns = at_ns.max(self.since_ns);
        *self.times.of(self.state) += at_ns - self.since_ns;
        if self.state == State::Blocked && at_ns > self.since_ns {
            self.blocked.push((self.since_ns, at_ns));
        }
        self.state = state;
        self.since_ns = at_ns;
    }

    /// The times up to a moment.
    pub(super) fn times_at(&self, at_ns: u64) -> Times {
        let mut times = self.times;
        *times.of(self.state) += at_ns.saturating_sub(self.since_ns);
        times
    }

    /// The stretches in which it was blocked.
    pub(super) fn take_blocked(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.blocked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_belongs_to_one_state() {
        let mut clock = StateClock::new(100);
        clock.enter(State::Blocked, 110);
        clock.enter(State::Blocked, 120);
        clock.enter(State::Queued, 130);
        clock.enter(State::Prefill, 135);
        // An event that is told late cannot take time back.
        clock.enter(State::Blocked, 134);
        clock.enter(State::Decode, 140);
        let times = clock.times_at(150);
        assert_eq!(
            times,
            Times {
                queued_ns: 15,
                blocked_ns: 25,
                prefill_ns: 0,
                decode_ns: 10,
            }
        );
        assert_eq!(times.total_ns(), 50);
        assert_eq!(clock.take_blocked(), [(110, 130), (135, 140)]);
    }
}
