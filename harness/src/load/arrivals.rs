//! Which request is made when: the arrivals of one round as a pure function of time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// When a request of a round is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// So many nanoseconds after the round's start, whatever has become of the others.
    At(u64),
    /// As soon as one of the closed loop's users is free.
    Free,
    /// So many nanoseconds after the end of an earlier request: the next turn of a conversation.
    After {
        /// Index of the earlier request.
        turn: usize,
        /// The user's pause.
        think_ns: u64,
    },
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make the request.
    Send {
        /// Its index.
        index: usize,
        /// Its arrival, which may lie in the past.
        scheduled_ns: u64,
    },
    /// Do not make it: as many as may be are under way.
    Drop {
        /// Its index.
        index: usize,
        /// Its arrival.
        scheduled_ns: u64,
    },
}

/// The arrivals of one round. Times are nanoseconds of one clock; nobody reads it here.
#[derive(Debug)]
pub struct Arrivals {
    /// Requests with a time, the earliest first; of two at one time the first in the plan.
    due: BinaryHeap<Reverse<(u64, usize)>>,
    /// Requests that wait for a free user.
    free: VecDeque<usize>,
    /// The next turn of each request's conversation, and the pause before it.
    next_turn: Vec<Option<(usize, u64)>>,
    /// Whether a request holds one of the closed loop's users.
    holds_user: Vec<bool>,
    max_in_flight: usize,
    in_flight: usize,
    most_in_flight: usize,
}

impl Arrivals {
    /// The arrivals of a round that starts at `start_ns`, with `users` in its closed loop and at
    /// most `max_in_flight` requests under way.
    #[must_use]
    pub fn new(when: &[When], start_ns: u64, users: usize, max_in_flight: usize) -> Self {
        let mut arrivals = Self {
            due: BinaryHeap::new(),
            free: VecDeque::new(),
            next_turn: vec![None; when.len()],
            holds_user: vec![false; when.len()],
            max_in_flight,
            in_flight: 0,
            most_in_flight: 0,
        };
        for (index, when) in when.iter().enumerate() {
            match *when {
                When::At(offset) => {
                    let at = start_ns.saturating_add(offset);
                    arrivals.due.push(Reverse((at, index)));
                }
                When::Free => arrivals.free.push_back(index),
                When::After { turn, think_ns } => {
                    arrivals.next_turn[turn] = Some((index, think_ns));
                }
            }
        }
        for _ in 0..users {
            arrivals.admit_user(start_ns);
        }
        arrivals
    }

    /// Gives a free user the next request of the closed loop.
    fn admit_user(&mut self, now_ns: u64) {
        if let Some(index) = self.free.pop_front() {
            self.holds_user[index] = true;
            self.due.push(Reverse((now_ns, index)));
        }
    }

    /// The next arrival, as far as one is known.
    #[must_use]
    pub fn next_due(&self) -> Option<(u64, usize)> {
        self.due.peek().map(|&Reverse(next)| next)
    }

    /// The next step whose time has come.
    pub fn step(&mut self, now_ns: u64) -> Option<Step> {
        let (scheduled_ns, index) = self.next_due().filter(|&(due_ns, _)| due_ns <= now_ns)?;
        self.due.pop();
        if self.in_flight >= self.max_in_flight {
            return Some(Step::Drop {
                index,
                scheduled_ns,
            });
        }
        self.in_flight += 1;
        self.most_in_flight = self.most_in_flight.max(self.in_flight);
        Some(Step::Send {
            index,
            scheduled_ns,
        })
    }

    /// A request that was sent has ended. The next turn of its conversation follows `end_ns`, and
    /// a user that it held is free from `now_ns` on, when its end was noticed.
    pub fn answered(&mut self, index: usize, end_ns: u64, now_ns: u64) {
        self.in_flight -= 1;
        if let Some((turn, think_ns)) = self.next_turn[index] {
            self.holds_user[turn] = self.holds_user[index];
            let at = end_ns.saturating_add(think_ns);
            self.due.push(Reverse((at, turn)));
        } else if self.holds_user[index] {
            self.admit_user(now_ns);
        }
    }

    /// A request that was sent has failed: the rest of its conversation, which is returned, will
    /// not be made.
    pub fn failed(&mut self, index: usize, now_ns: u64) -> Vec<usize> {
        self.in_flight -= 1;
        self.abandon(index, now_ns)
    }

    /// A request was not made: as [`Arrivals::failed`].
    pub fn dropped(&mut self, index: usize, now_ns: u64) -> Vec<usize> {
        self.abandon(index, now_ns)
    }

    fn abandon(&mut self, index: usize, now_ns: u64) -> Vec<usize> {
        if self.holds_user[index] {
            self.admit_user(now_ns);
        }
        self.turns_after(index)
    }

    fn turns_after(&self, index: usize) -> Vec<usize> {
        std::iter::successors(self.next_turn[index], |&(turn, _)| self.next_turn[turn])
            .map(|(turn, _)| turn)
            .collect()
    }

    /// Makes no further request. Returns every one that was not made, with its arrival where it
    /// had one; those under way go on, and their later turns are among the returned.
    pub fn stop(&mut self, under_way: &[usize]) -> Vec<(usize, Option<u64>)> {
        let mut left: Vec<(usize, Option<u64>)> = std::mem::take(&mut self.due)
            .into_sorted_vec()
            .into_iter()
            .rev()
            .map(|Reverse((at, index))| (index, Some(at)))
            .chain(
                std::mem::take(&mut self.free)
                    .into_iter()
                    .map(|index| (index, None)),
            )
            .collect();
        let firsts: Vec<usize> = left.iter().map(|&(index, _)| index).collect();
        for &index in firsts.iter().chain(under_way) {
            left.extend(self.turns_after(index).into_iter().map(|turn| (turn, None)));
        }
        self.next_turn.fill(None);
        left
    }

    /// Requests under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The most that were under way at once.
    #[must_use]
    pub fn most_in_flight(&self) -> usize {
        self.most_in_flight
    }

    /// Whether nothing is left to make or to wait for.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.in_flight == 0 && self.due.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(index: usize, scheduled_ns: u64) -> Option<Step> {
        Some(Step::Send {
            index,
            scheduled_ns,
        })
    }

    #[test]
    fn open_arrivals_keep_their_times_whatever_becomes_of_the_others() {
        let when = [When::At(30), When::At(10), When::At(10)];
        let mut arrivals = Arrivals::new(&when, 1000, 0, 9);
        assert_eq!(arrivals.step(1009), None);
        assert_eq!(arrivals.next_due(), Some((1010, 1)));
        // The dispatcher is late: both are sent, with the arrival that was planned.
        assert_eq!(arrivals.step(1017), send(1, 1010));
        assert_eq!(arrivals.step(1017), send(2, 1010));
        assert_eq!(arrivals.step(1017), None);
        assert_eq!(arrivals.step(1030), send(0, 1030));
        assert_eq!((arrivals.in_flight(), arrivals.most_in_flight()), (3, 3));
        for index in 0..3 {
            assert!(!arrivals.is_over());
            arrivals.answered(index, 1040, 1041);
        }
        assert!(arrivals.is_over());
    }

    #[test]
    fn beyond_the_bound_arrivals_are_dropped_and_never_delayed() {
        let when = [When::At(0), When::At(1), When::At(2), When::At(3)];
        let mut arrivals = Arrivals::new(&when, 0, 0, 1);
        assert_eq!(arrivals.step(9), send(0, 0));
        assert_eq!(
            arrivals.step(9),
            Some(Step::Drop {
                index: 1,
                scheduled_ns: 1
            })
        );
        assert!(arrivals.dropped(1, 9).is_empty());
        assert!(arrivals.failed(0, 10).is_empty());
        assert_eq!(arrivals.step(10), send(2, 2));
        assert_eq!(arrivals.most_in_flight(), 1);
    }

    #[test]
    fn a_closed_loop_keeps_its_users_busy() {
        let mut arrivals = Arrivals::new(&[When::Free; 5], 100, 2, 9);
        assert_eq!(arrivals.step(100), send(0, 100));
        assert_eq!(arrivals.step(100), send(1, 100));
        assert_eq!(arrivals.step(500), None);
        arrivals.answered(1, 480, 500);
        assert_eq!(arrivals.step(500), send(2, 500));
        assert!(arrivals.failed(0, 600).is_empty());
        assert_eq!(arrivals.step(601), send(3, 600));
        arrivals.answered(3, 700, 700);
        arrivals.answered(2, 700, 700);
        assert_eq!(arrivals.step(700), send(4, 700));
        assert_eq!(arrivals.most_in_flight(), 2);
    }

    #[test]
    fn turns_follow_their_predecessor_after_the_user_has_thought() {
        let turn = |turn| When::After { turn, think_ns: 50 };
        let when = [When::At(0), turn(0), turn(1), When::At(5), turn(3)];
        let mut arrivals = Arrivals::new(&when, 0, 0, 9);
        assert_eq!(arrivals.step(0), send(0, 0));
        assert_eq!(arrivals.step(5), send(3, 5));
        // The pause begins at the answer's end, also when that is noticed later.
        arrivals.answered(0, 100, 120);
        assert_eq!(arrivals.step(149), None);
        assert_eq!(arrivals.step(155), send(1, 150));
        // A failed turn ends its conversation, and the rest is not silently missing.
        assert_eq!(arrivals.failed(1, 200), [2]);
        assert_eq!(arrivals.failed(3, 200), [4]);
        assert!(arrivals.is_over());
    }

    #[test]
    fn a_conversation_in_a_closed_loop_holds_its_user_to_the_end() {
        let when = [
            When::Free,
            When::After {
                turn: 0,
                think_ns: 10,
            },
            When::Free,
        ];
        let mut arrivals = Arrivals::new(&when, 0, 1, 9);
        assert_eq!(arrivals.step(0), send(0, 0));
        arrivals.answered(0, 20, 21);
        assert_eq!(arrivals.next_due(), Some((30, 1)));
        assert_eq!(arrivals.step(30), send(1, 30));
        arrivals.answered(1, 60, 61);
        assert_eq!(arrivals.step(61), send(2, 61));
    }

    #[test]
    fn a_stop_names_everything_that_is_left() {
        let when = [
            When::At(0),
            When::After {
                turn: 0,
                think_ns: 1,
            },
            When::At(7),
            When::At(5),
            When::After {
                turn: 2,
                think_ns: 1,
            },
            When::Free,
            When::Free,
        ];
        let mut arrivals = Arrivals::new(&when, 0, 1, 9);
        assert_eq!(arrivals.step(0), send(0, 0));
        assert_eq!(arrivals.step(0), send(5, 0));
        let left = arrivals.stop(&[0, 5]);
        let expected = [(3, Some(5)), (2, Some(7)), (6, None), (4, None), (1, None)];
        assert_eq!(left, expected);
        // Those under way end without a successor.
        arrivals.answered(0, 9, 9);
        arrivals.answered(5, 9, 9);
        assert!(arrivals.is_over());
    }
}
