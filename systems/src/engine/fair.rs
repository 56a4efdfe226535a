//! Whose turn it is: round-robin over clients, first come, first served within one.

use std::collections::{BTreeMap, VecDeque};

/// Remembers where the round stands.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    /// The client with the lowest id from here on comes first.
    next: u32,
}

impl FairQueue {
    /// Offers entries, given in the order of their coming, one of each client in turn. `take`
    /// says whether there was room; a client for whom there was none gets no second offer, so
    /// that nothing of the same client overtakes, and begins the next round.
    pub(super) fn offer<T>(
        &mut self,
        entries: impl IntoIterator<Item = (u32, T)>,
        mut take: impl FnMut(T) -> bool,
    ) {
        let mut clients: BTreeMap<u32, VecDeque<T>> = BTreeMap::new();
        for (client, entry) in entries {
            clients.entry(client).or_default().push_back(entry);
        }
        let after = clients.split_off(&self.next);
        let mut round: VecDeque<(u32, VecDeque<T>)> = after.into_iter().chain(clients).collect();
        let mut refused = None;
        while let Some((client, mut waiting)) = round.pop_front() {
            let Some(entry) = waiting.pop_front() else {
                continue;
            };
            if take(entry) {
                if refused.is_none() {
                    self.next = client.wrapping_add(1);
                }
                round.push_back((client, waiting));
            } else if refused.is_none() {
                refused = Some(client);
                self.next = client;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(queue: &mut FairQueue, entries: &[(u32, char)], room: usize) -> String {
        let mut out = String::new();
        queue.offer(entries.iter().copied(), |entry| {
            if out.len() < room {
                out.push(entry);
                return true;
            }
            false
        });
        out
    }

    #[test]
    fn clients_take_turns_and_their_own_come_in_order() {
        let mut queue = FairQueue::default();
        let entries = [(7, 'a'), (7, 'b'), (7, 'c'), (2, 'x'), (9, 'p')];
        assert_eq!(taken(&mut queue, &entries, 9), "xapbc");
    }

    #[test]
    fn the_round_goes_on_where_it_stopped() {
        let mut queue = FairQueue::default();
        let entries = [(1, 'a'), (2, 'b'), (3, 'c')];
        assert_eq!(taken(&mut queue, &entries, 1), "a");
        assert_eq!(taken(&mut queue, &entries, 1), "b");
        assert_eq!(taken(&mut queue, &entries, 1), "c");
        assert_eq!(taken(&mut queue, &entries, 2), "ab");
    }

    #[test]
    fn who_did_not_fit_begins_the_next_round_and_is_not_overtaken_by_its_own() {
        let mut queue = FairQueue::default();
        let sizes = [(1, 10), (1, 1), (2, 3), (3, 4)];
        let mut room = 5;
        let mut taken = Vec::new();
        queue.offer(sizes, |size| {
            let fits = size <= room;
            if fits {
                room -= size;
                taken.push(size);
            }
            fits
        });
        assert_eq!(taken, [3], "1's second may not overtake its first");
        assert_eq!(queue.next, 1);
    }
}
