//! The dispatcher: one thread that makes the requests of a round at their times.
//!
//! It waits on a single thing, the channel on which outcomes come back, for at most as long as
//! the next arrival is away, so that an arrival is never behind an outcome and no timer thread
//! stands between. It never spins. The next request is put into its bytes while nothing is due.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use celslm_systems::clock::now_ns;
use celslm_systems::control::{ControlError, ControlResult, EdgeCommand, EdgeReply, Encoded};
use celslm_systems::{Answer, SystemError};

use crate::deployment::EdgeControl;

use super::arrivals::{Arrivals, Step, When};
use super::overload::{Overload, OverloadRule};

/// How often a stop from outside and the rule for overload are looked at while nothing happens.
const TICK: Duration = Duration::from_millis(100);

/// Earlier turns of a conversation: what the user said and what was answered.
pub type History = Vec<(String, String)>;

/// Makes the command of a request: its index, its arrival and the conversation so far. Returns
/// the edge that it goes to, too.
pub type MakeCommand<'a> = dyn Fn(usize, u64, History) -> (usize, EdgeCommand) + Sync + 'a;

/// What is to be dispatched.
pub struct Dispatch<'a> {
    /// The edges, by index.
    pub edges: Vec<&'a EdgeControl>,
    /// When each request is made.
    pub when: &'a [When],
    /// When the round starts.
    pub start_ns: u64,
    /// Users of a closed loop.
    pub users: usize,
    /// Most requests under way.
    pub max_in_flight: usize,
    /// When the round ends early.
    pub overload: OverloadRule,
    /// Longest wait for replies after the last request was made.
    pub drain: Duration,
    /// Makes the commands.
    pub make: &'a MakeCommand<'a>,
    /// Whether to end at once.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// The end of one request, made or not.
#[derive(Debug)]
pub struct Done {
    /// Its index.
    pub index: usize,
    /// Its arrival.
    pub scheduled_ns: u64,
    /// What became of it.
    pub outcome: Result<Answer, SystemError>,
}

/// What a dispatcher did.
#[derive(Debug, Default)]
pub struct Dispatched {
    /// From each request's arrival until it was written to its edge, in nanoseconds.
    pub send_delays_ns: Vec<u64>,
    /// Most requests under way at once.
    pub most_in_flight: usize,
    /// Why the round ended early.
    pub stopped: Option<String>,
    /// When the last outcome came.
    pub end_ns: u64,
    /// Whether it was stopped from outside; some requests then have no outcome.
    pub interrupted: bool,
    /// Which edge could not be reached any more, and why.
    pub broken: Option<(usize, ControlError)>,
    /// How the thread was scheduled.
    pub scheduling: String,
}

/// Kinds of failure of requests that no edge has seen.
pub mod kind {
    /// As many requests as may be were under way.
    pub const DROPPED: &str = "dropped";
    /// The level had ended early.
    pub const STOPPED: &str = "stopped";
    /// An earlier turn of the conversation has failed.
    pub const ABANDONED: &str = "abandoned";
    /// The edge did not reply.
    pub const NO_REPLY: &str = "no_reply";
    /// The connection to the edge broke.
    pub const INTERRUPTED: &str = "interrupted";

    /// Those of requests that were never handed to an edge.
    pub const NEVER_SENT: [&str; 3] = [DROPPED, STOPPED, ABANDONED];
}

/// A request under way.
struct Sent {
    edge: usize,
    scheduled_ns: u64,
    /// What its conversation needs for the next turn.
    turn: Option<(History, String)>,
}

struct Dispatcher<'a> {
    plan: &'a Dispatch<'a>,
    arrivals: Arrivals,
    overload: Overload,
    has_next_turn: Vec<bool>,
    under_way: HashMap<usize, Sent>,
    /// Conversations so far, by the index of the turn that is next.
    histories: HashMap<usize, History>,
    next_turn: HashMap<usize, usize>,
    prepared: Option<Prepared>,
    sink: Sender<(u64, ControlResult<EdgeReply>)>,
    done: Sender<Done>,
    report: Dispatched,
}

/// A request in its bytes, ahead of its time.
struct Prepared {
    index: usize,
    edge: usize,
    user: String,
    encoded: Encoded,
}

/// Makes the requests; `done` gets the end of each of them exactly once, unless the round is
/// stopped from outside. Blocks until the round is over.
#[must_use]
pub fn dispatch(plan: &Dispatch<'_>, done: Sender<Done>) -> Dispatched {
    let scheduling = celslm_link::be_punctual_sender();
    let (sink, inbox) = channel();
    let mut next_turn = HashMap::new();
    for (index, when) in plan.when.iter().enumerate() {
        if let When::After { turn, .. } = *when {
            next_turn.insert(turn, index);
        }
    }
    let mut dispatcher = Dispatcher {
        arrivals: Arrivals::new(plan.when, plan.start_ns, plan.users, plan.max_in_flight),
        overload: Overload::new(plan.overload, plan.start_ns),
        has_next_turn: (0..plan.when.len())
            .map(|index| next_turn.contains_key(&index))
            .collect(),
        under_way: HashMap::new(),
        histories: HashMap::new(),
        next_turn,
        prepared: None,
        sink,
        done,
        report: Dispatched {
            end_ns: plan.start_ns,
            scheduling: scheduling.policy,
            ..Dispatched::default()
        },
        plan,
    };
    dispatcher.run(&inbox);
    dispatcher.report.most_in_flight = dispatcher.arrivals.most_in_flight();
    dispatcher.report
}

impl Dispatcher<'_> {
    fn run(&mut self, inbox: &Receiver<(u64, ControlResult<EdgeReply>)>) {
        let mut drained_by = None;
        let mut next_verdict = 0;
        loop {
            if (self.plan.stop)() {
                self.report.interrupted = true;
                return;
            }
            let mut now = now_ns();
            while let Some(step) = self.arrivals.step(now) {
                self.take(step);
                now = now_ns();
            }
            if self.report.broken.is_some() {
                self.give_up("an edge cannot be reached".to_owned(), now);
            } else if now >= next_verdict {
                // A window may hold many thousands of answers: not at every one of them.
                next_verdict = now + TICK.as_nanos() as u64;
                if let Some(reason) = self.overload.verdict(now) {
                    self.give_up(reason, now);
                }
            }
            if self.arrivals.is_over() {
                return;
            }
            // Only replies are left to wait for, or a next turn that follows one of them.
            let wait = match self.arrivals.next_due() {
                Some((due_ns, _)) => {
                    drained_by = None;
                    self.prepare();
                    Duration::from_nanos(due_ns.saturating_sub(now_ns())).min(TICK)
                }
                None => {
                    let drain = self.plan.drain.as_nanos() as u64;
                    let by = *drained_by.get_or_insert(now.saturating_add(drain));
                    if now >= by {
                        self.lose_the_rest(now);
                        return;
                    }
                    TICK
                }
            };
            match inbox.recv_timeout(wait) {
                Ok((tag, reply)) => {
                    drained_by = None;
                    self.ended(tag, reply);
                    // Several may have come; an arrival that is due goes first all the same.
                    while self.nothing_due()
                        && let Ok((tag, reply)) = inbox.try_recv()
                    {
                        self.ended(tag, reply);
                    }
                }
                // The sender is held here, so that the channel cannot be closed.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }

    fn nothing_due(&self) -> bool {
        self.arrivals
            .next_due()
            .is_none_or(|(due_ns, _)| due_ns > now_ns())
    }

    /// Puts the next request into its bytes, if it does not depend on another's answer.
    fn prepare(&mut self) {
        let Some((scheduled_ns, index)) = self.arrivals.next_due() else {
            return;
        };
        if self.prepared.as_ref().is_some_and(|p| p.index == index) {
            return;
        }
        let history = self.histories.get(&index).cloned().unwrap_or_default();
        self.prepared = self.encode(index, scheduled_ns, history).ok();
    }

    fn encode(&self, index: usize, scheduled_ns: u64, history: History) -> ControlResult<Prepared> {
        let (edge, command) = (self.plan.make)(index, scheduled_ns, history);
        let encoded = self.plan.edges[edge].encode(&command)?;
        let user = match command {
            EdgeCommand::Answer { request, .. } => request.user,
            _ => String::new(),
        };
        Ok(Prepared {
            index,
            edge,
            user,
            encoded,
        })
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Send {
                index,
                scheduled_ns,
            } => match self.send(index, scheduled_ns) {
                Ok(()) => {
                    let delay = now_ns().saturating_sub(scheduled_ns);
                    self.report.send_delays_ns.push(delay);
                }
                Err(error) => {
                    let (kind, full) = match &error {
                        ControlError::Full { .. } => (kind::DROPPED, true),
                        _ => (kind::INTERRUPTED, false),
                    };
                    self.under_way.remove(&index);
                    let failure = SystemError::new(kind, &error);
                    if !full {
                        let (edge, _) = (self.plan.make)(index, scheduled_ns, History::new());
                        self.report.broken.get_or_insert((edge, error));
                    }
                    let now = now_ns();
                    self.finish(index, scheduled_ns, Err(failure));
                    let abandoned = self.arrivals.failed(index, now);
                    self.abandon(&abandoned, now);
                }
            },
            Step::Drop {
                index,
                scheduled_ns,
            } => {
                let now = now_ns();
                let failure = SystemError::new(
                    kind::DROPPED,
                    format!("{} requests were under way", self.arrivals.in_flight()),
                );
                self.finish(index, scheduled_ns, Err(failure));
                self.overload.failed(now);
                let abandoned = self.arrivals.dropped(index, now);
                self.abandon(&abandoned, now);
            }
        }
    }

    fn send(&mut self, index: usize, scheduled_ns: u64) -> ControlResult<()> {
        let history = self.histories.remove(&index).unwrap_or_default();
        let turn = self.has_next_turn[index].then(|| history.clone());
        let Prepared {
            edge,
            user,
            encoded,
            ..
        } = match self.prepared.take() {
            Some(prepared) if prepared.index == index => prepared,
            _ => self.encode(index, scheduled_ns, history)?,
        };
        let sent = Sent {
            edge,
            scheduled_ns,
            turn: turn.map(|history| (history, user)),
        };
        self.under_way.insert(index, sent);
        self.plan.edges[edge].send(encoded, index as u64, &self.sink)
    }

    /// A reply, or the end of the connection that it was to come over.
    fn ended(&mut self, tag: u64, reply: ControlResult<EdgeReply>) {
        let now = now_ns();
        let index = tag as usize;
        let Some(sent) = self.under_way.remove(&index) else {
            return;
        };
        let outcome = match reply {
            Ok(EdgeReply::Answered(answer)) => Ok(*answer),
            Ok(EdgeReply::Failed(error)) => Err(error),
            Ok(_) => Err(SystemError::new("control", "the edge sent another reply")),
            Err(error) => {
                let failure = SystemError::new(kind::INTERRUPTED, &error);
                self.report.broken.get_or_insert((sent.edge, error));
                Err(failure)
            }
        };
        self.report.end_ns = now;
        if outcome.is_err() {
            self.overload.failed(now);
        }
        match &outcome {
            Ok(answer) => {
                let first = answer.token_ns.first().copied().unwrap_or(now);
                self.overload
                    .answered(first.saturating_sub(sent.scheduled_ns), now);
                if let (Some(&next), Some((mut history, user))) =
                    (self.next_turn.get(&index), sent.turn)
                {
                    history.push((user, answer.output_text.clone()));
                    self.histories.insert(next, history);
                }
                self.arrivals.answered(index, answer.end_ns, now);
                self.finish(index, sent.scheduled_ns, outcome);
            }
            Err(_) => {
                self.finish(index, sent.scheduled_ns, outcome);
                let abandoned = self.arrivals.failed(index, now);
                self.abandon(&abandoned, now);
            }
        }
    }

    fn abandon(&self, turns: &[usize], now: u64) {
        for &turn in turns {
            let failure = SystemError::new(
                kind::ABANDONED,
                "an earlier turn of the conversation failed",
            );
            self.finish(turn, now, Err(failure));
        }
    }

    /// Makes no further request; those under way are waited for.
    fn give_up(&mut self, reason: String, now: u64) {
        if self.report.stopped.is_some() {
            return;
        }
        let under_way: Vec<usize> = self.under_way.keys().copied().collect();
        let left = self.arrivals.stop(&under_way);
        if left.is_empty() {
            // Every request had been made: there is nothing to end early.
            return;
        }
        for (index, at) in left {
            let failure = SystemError::new(kind::STOPPED, format!("the level was ended: {reason}"));
            self.finish(index, at.unwrap_or(now), Err(failure));
        }
        self.report.stopped = Some(reason);
    }

    /// Replies that have not come by now will not be waited for.
    fn lose_the_rest(&mut self, now: u64) {
        self.report.end_ns = now;
        let lost = std::mem::take(&mut self.under_way);
        for (index, sent) in lost {
            let failure = SystemError::new(kind::NO_REPLY, "the edge did not reply in time");
            self.finish(index, sent.scheduled_ns, Err(failure));
            for turn in self.arrivals.failed(index, now) {
                let failure = SystemError::new(
                    kind::ABANDONED,
                    "an earlier turn of the conversation failed",
                );
                self.finish(turn, now, Err(failure));
            }
        }
    }

    fn finish(&self, index: usize, scheduled_ns: u64, outcome: Result<Answer, SystemError>) {
        // A collector that has gone away ends the round from its side.
        let _ = self.done.send(Done {
            index,
            scheduled_ns,
            outcome,
        });
    }
}
