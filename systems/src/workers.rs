//! A bounded set of threads for calls that block.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

type Call = Box<dyn FnOnce() + Send>;

/// How long a thread waits for another call. A crowd's threads go with it, and so does what each of
/// them has allocated and keeps for the next time.
const KEEP: Duration = Duration::from_secs(2);

#[derive(Default)]
struct State {
    /// Never more than there are idle threads.
    calls: VecDeque<Call>,
    idle: usize,
    threads: usize,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every update leaves it consistent, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Threads that are started when they are needed and kept for a while. On drop they end with their calls.
pub(crate) struct Workers {
    shared: Arc<Shared>,
    name: &'static str,
    limit: usize,
}

impl Workers {
    /// No thread yet, and never more than `limit`.
    pub(crate) fn new(name: &'static str, limit: usize) -> Self {
        Self {
            shared: Arc::default(),
            name,
            limit: limit.max(1),
        }
    }

    /// Runs a call on a thread of its own; gives it back when all are busy.
    pub(crate) fn run(&self, call: Call) -> Result<(), Call> {
        let mut state = self.shared.state();
        if state.idle > state.calls.len() {
            state.calls.push_back(call);
            drop(state);
            self.shared.changed.notify_one();
            return Ok(());
        }
        if state.threads >= self.limit {
            return Err(call);
        }
        state.threads += 1;
        // A new thread is idle until it takes its first call.
        state.idle += 1;
        state.calls.push_back(call);
        drop(state);
        let shared = self.shared.clone();
        let spawned = std::thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || serve(&shared));
        if spawned.is_err() {
            let mut state = self.shared.state();
            state.threads -= 1;
            state.idle -= 1;
            // Another thread may have taken it meanwhile; otherwise it is the youngest.
            if state.calls.len() > state.idle
                && let Some(call) = state.calls.pop_back()
            {
                return Err(call);
            }
        }
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
    }
}

/// Leaves the count right even when a call panics and takes its thread along.
struct Busy<'a>(&'a Shared);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if std::thread::panicking() {
            state.threads -= 1;
        } else {
            state.idle += 1;
        }
    }
}

fn serve(shared: &Shared) {
    loop {
        let mut state = shared.state();
        let call = loop {
            if let Some(call) = state.calls.pop_front() {
                break call;
            }
            if state.ended {
                return;
            }
            let (woken, waited) = shared
                .changed
                .wait_timeout(state, KEEP)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            // Under the lock nobody can have counted on this thread in between.
            if waited.timed_out() && state.calls.is_empty() {
                state.idle -= 1;
                state.threads -= 1;
                return;
            }
        };
        state.idle -= 1;
        drop(state);
        let _busy = Busy(shared);
        call();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn threads_are_kept_and_bounded_and_survive_a_panic() {
        let workers = Workers::new("test", 2);
        let (done, results) = mpsc::channel();
        let (gate, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        for index in 0..2 {
            let (done, held) = (done.clone(), held.clone());
            let call = move || {
                let _ = held.lock().unwrap().recv();
                done.send((index, std::thread::current().id())).unwrap();
            };
            assert!(workers.run(Box::new(call)).is_ok());
        }
        assert!(workers.run(Box::new(|| {})).is_err(), "both are busy");
        gate.send(()).unwrap();
        gate.send(()).unwrap();
        let wait = Duration::from_secs(10);
        let mut threads: Vec<_> = (0..2)
            .map(|_| results.recv_timeout(wait).unwrap().1)
            .collect();
        // Threads come back, one after the other, even after a call that panics.
        for round in 0..4 {
            let done = done.clone();
            let mut call: Call = Box::new(move || {
                done.send((round, std::thread::current().id())).unwrap();
                assert!(round != 1, "a call that fails");
            });
            while let Err(back) = workers.run(call) {
                call = back;
                std::thread::yield_now();
            }
            threads.push(results.recv_timeout(wait).unwrap().1);
        }
        threads.sort_by_key(|id| format!("{id:?}"));
        threads.dedup();
        assert!(threads.len() <= 3, "{threads:?}");
    }

    #[test]
    fn idle_threads_end() {
        let workers = Workers::new("test", 8);
        for _ in 0..3 {
            assert!(workers.run(Box::new(|| {})).is_ok());
        }
        let ended = (0..200).any(|_| {
            std::thread::sleep(KEEP / 20);
            workers.shared.state().threads == 0
        });
        assert!(ended, "{} threads are left", workers.shared.state().threads);
        assert!(workers.run(Box::new(|| {})).is_ok(), "a new one is started");
    }
}
