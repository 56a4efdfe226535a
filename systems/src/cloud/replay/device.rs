//! A device that computes nothing: it says when a device of stated rates would have been done.
//!
//! It batches as the engine does. Each step holds the next token of every session that generates,
//! and up to a chunk of prompt and context tokens, first come first served; the step takes what
//! the rates say of its parts, one after the other. The schedule is kept in ideal time: a wake-up
//! that comes late makes the next wait shorter, and no error adds up.

use crate::clock::now_ns;
use crate::engine::EngineLimits;
use crate::rates::Rates;
use celslm_model::PREFILL_CHUNK;
use celslm_wire::ServiceError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;
use tokio::sync::mpsc as events;

/// Something that the device would have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beat {
    /// The prompt or context is in the cache.
    Prefilled {
        /// When.
        at_ns: u64,
        /// How long it waited for a place and for its turns.
        queued_ns: u64,
        /// How long the steps took that it was part of.
        worked_ns: u64,
    },
    /// A token was sampled; the first comes with `Prefilled`.
    Sample {
        /// When.
        at_ns: u64,
    },
}

/// A piece of work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task {
    /// Tokens in the cache before it begins.
    pub(super) past: usize,
    /// Tokens to prefill, at least one.
    pub(super) prompt: usize,
    /// Tokens to sample: none for a context.
    pub(super) samples: usize,
}

/// The device.
pub(super) struct ReplayDevice {
    inbox: SyncSender<Work>,
    /// Work that was taken in and has not ended.
    held: Arc<AtomicUsize>,
    max_calls: usize,
}

impl ReplayDevice {
    /// Starts the device's thread; it ends with the device.
    pub(super) fn start(rates: Rates, limits: EngineLimits) -> std::io::Result<Self> {
        let max_calls = limits.max_calls().max(1);
        let (inbox, work) = mpsc::sync_channel(max_calls);
        std::thread::Builder::new()
            .name("replay-device".to_owned())
            .spawn(move || run(&rates, &limits, &work))?;
        Ok(Self {
            inbox,
            held: Arc::default(),
            max_calls,
        })
    }

    /// Takes a piece of work in. Its beats come as the device would have made them; dropping the
    /// receiver cancels it.
    ///
    /// # Errors
    /// [`ServiceError::Overloaded`] beyond the bounds.
    pub(super) fn submit(&self, task: Task) -> Result<events::Receiver<Beat>, ServiceError> {
        let full = || ServiceError::Overloaded(format!("{} calls are under way", self.max_calls));
        let slot = Slot(self.held.clone());
        if self.held.fetch_add(1, Ordering::Relaxed) >= self.max_calls {
            return Err(full());
        }
        // Room for every beat that there will be: the device never waits for a listener.
        let (sender, receiver) = events::channel(task.samples + 1);
        let work = Work {
            task,
            done: 0,
            sampled: 0,
            arrived_ns: now_ns(),
            worked_ns: 0,
            events: sender,
            _slot: slot,
        };
        self.inbox.try_send(work).map_err(|_| full())?;
        Ok(receiver)
    }
}

/// A place among the calls under way.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Work {
    task: Task,
    /// Prompt tokens prefilled.
    done: usize,
    sampled: usize,
    arrived_ns: u64,
    worked_ns: u64,
    events: events::Sender<Beat>,
    _slot: Slot,
}

/// What one step holds.
#[derive(Debug, Default, PartialEq)]
struct Step {
    /// Index of the work and its prompt tokens.
    prompts: Vec<(usize, usize)>,
    /// Index of the work that samples a further token.
    decodes: Vec<usize>,
    seconds: f64,
}

/// Composes a step. Pure, so that it can be tested without a clock.
fn compose(active: &[(Task, usize, usize)], rates: &Rates, step_tokens: usize) -> Step {
    let mut step = Step::default();
    let mut budget = step_tokens.max(1);
    let mut context = 0;
    for (index, &(task, done, sampled)) in active.iter().enumerate() {
        let left = task.prompt - done;
        if left == 0 {
            step.decodes.push(index);
            context += task.past + task.prompt + sampled;
        } else if budget > 0 {
            let tokens = left.min(budget);
            budget -= tokens;
            step.seconds += rates.prefill_s(task.past + done, tokens);
            step.prompts.push((index, tokens));
        }
    }
    if let Some(mean) = context.checked_div(step.decodes.len()) {
        step.seconds += rates.step_s(step.decodes.len(), mean);
    }
    step
}

fn run(rates: &Rates, limits: &EngineLimits, inbox: &Receiver<Work>) {
    let mut waiting: VecDeque<Work> = VecDeque::new();
    let mut active: Vec<Work> = Vec::new();
    let mut clock_ns = now_ns();
    loop {
        if active.is_empty() && waiting.is_empty() {
            let Ok(work) = inbox.recv() else { return };
            waiting.push_back(work);
            // The device was idle until now.
            clock_ns = clock_ns.max(now_ns());
        }
        waiting.extend(inbox.try_iter());
        waiting.retain(|work| !work.events.is_closed());
        active.retain(|work| !work.events.is_closed());
        while active.len() < limits.max_sessions.max(1)
            && let Some(work) = waiting.pop_front()
        {
            active.push(work);
        }
        if active.is_empty() {
            continue;
        }
        let view: Vec<_> = active
            .iter()
            .map(|work| (work.task, work.done, work.sampled))
            .collect();
        let step = compose(&view, rates, PREFILL_CHUNK);
        let duration_ns = (step.seconds * 1e9) as u64;
        clock_ns = clock_ns.saturating_add(duration_ns);
        let early = clock_ns.saturating_sub(now_ns());
        if early > 0 {
            std::thread::sleep(Duration::from_nanos(early));
        }
        let at_ns = now_ns();
        for &(index, tokens) in &step.prompts {
            let work = &mut active[index];
            work.done += tokens;
            work.worked_ns += duration_ns;
            if work.done == work.task.prompt {
                let lived = at_ns.saturating_sub(work.arrived_ns);
                work.tell(Beat::Prefilled {
                    at_ns,
                    queued_ns: lived.saturating_sub(work.worked_ns),
                    worked_ns: work.worked_ns.min(lived),
                });
                work.sample(at_ns);
            }
        }
        for &index in &step.decodes {
            active[index].sample(at_ns);
        }
        active.retain(|work| work.done < work.task.prompt || work.sampled < work.task.samples);
    }
}

impl Work {
    fn sample(&mut self, at_ns: u64) {
        if self.sampled < self.task.samples {
            self.sampled += 1;
            self.tell(Beat::Sample { at_ns });
        }
    }

    fn tell(&self, beat: Beat) {
        // There is room for every beat; a listener that is gone is found before the next step.
        let _ = self.events.try_send(beat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rates::RatePoint;

    fn rates(prefill: f64, decode: f64) -> Rates {
        let point = |batch, tok_s| RatePoint {
            batch,
            context: 100,
            tok_s,
        };
        Rates {
            model: "m".to_owned(),
            engine: "e".to_owned(),
            prefill: vec![point(1, prefill)],
            decode: vec![point(1, decode), point(4, 2.0 * decode)],
        }
    }

    fn task(past: usize, prompt: usize, samples: usize) -> Task {
        Task {
            past,
            prompt,
            samples,
        }
    }

    #[test]
    fn a_step_is_every_decode_and_a_bounded_piece_of_prompts() {
        let active = [
            (task(100, 10, 5), 10, 1),
            (task(0, 300, 1), 0, 0),
            (task(0, 50, 1), 0, 0),
            (task(100, 10, 5), 10, 2),
        ];
        let step = compose(&active, &rates(1000.0, 50.0), 256);
        assert_eq!(step.prompts, [(1, 256)]);
        assert_eq!(step.decodes, [0, 3]);
        // 256 tokens at 1000 tok/s, and two decodes: between 20 ms for one and 40 ms for four.
        let wanted = 0.256 + 0.020 + 0.020 / 3.0;
        assert!((step.seconds - wanted).abs() < 1e-9, "{}", step.seconds);
    }

    #[test]
    fn beats_come_at_the_rates_and_sessions_share_the_device() {
        let device = ReplayDevice::start(rates(2000.0, 100.0), EngineLimits::default()).unwrap();
        let start = now_ns();
        // 100 tokens are 50 ms; then five further samples of 10 ms each.
        let mut beats = device.submit(task(0, 100, 6)).unwrap();
        let mut seen = Vec::new();
        while let Some(beat) = beats.blocking_recv() {
            seen.push(beat);
        }
        assert_eq!(seen.len(), 7);
        let Beat::Prefilled { at_ns, .. } = seen[0] else {
            panic!("{seen:?}");
        };
        let Beat::Sample { at_ns: last } = seen[6] else {
            panic!("{seen:?}");
        };
        let ms = |from: u64, to: u64| (to - from) as f64 / 1e6;
        assert!(
            (49.9..90.0).contains(&ms(start, at_ns)),
            "{}",
            ms(start, at_ns)
        );
        // A late wake-up may eat into the first gap, and none is added to the others.
        assert!(
            (9.0..95.0).contains(&ms(at_ns, last)),
            "{}",
            ms(at_ns, last)
        );
        assert!(ms(start, last) >= 99.9, "{}", ms(start, last));
    }

    #[test]
    fn calls_beyond_the_bounds_are_refused_and_places_come_back() {
        let limits = EngineLimits {
            max_sessions: 1,
            max_queue: 1,
            ..EngineLimits::default()
        };
        let device = ReplayDevice::start(rates(1000.0, 100.0), limits).unwrap();
        let first = device.submit(task(0, 500, 1)).unwrap();
        let mut second = device.submit(task(0, 10, 1)).unwrap();
        assert!(matches!(
            device.submit(task(0, 10, 1)),
            Err(ServiceError::Overloaded(_))
        ));
        // Cancelling one lets the other through.
        drop(first);
        assert!(second.blocking_recv().is_some());
        while second.blocking_recv().is_some() {}
        assert!(device.submit(task(0, 10, 0)).is_ok());
    }
}
