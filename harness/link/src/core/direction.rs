//! One direction of the link: its impairments in netem's order.

use std::time::Duration;

use super::chance::Chance;
use super::corrupt::Flip;
use super::outages::Cuts;
use super::queue::Rank;
use super::{
    Bandwidth, CoDel, Corrupt, Delay, DirectionSettings, Discipline, Duplicate, Loss, Packet,
    Queue, QueueLimit, Rate, ReorderGap, stream,
};

/// What became of a packet that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What became of the packet.
    pub packet: Fate,
    /// What became of its copy, if it was duplicated: one push may put two packets on the link.
    pub copy: Option<Fate>,
}

/// What became of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// It is on the link.
    Queued {
        /// When it leaves the link; `None` where CoDel decides that, and whether it leaves at
        /// all, when its turn comes.
        departure: Option<Duration>,
    },
    /// It is gone.
    Dropped(DropReason),
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DropReason {
    /// The loss model, or the trace's loss, took it.
    Loss,
    /// The queue was full.
    Queue,
    /// The link was cut.
    Outage,
}

/// A packet that has left the link.
#[derive(Debug)]
pub struct Departure {
    /// When it was due.
    pub departure: Duration,
    /// The packet.
    pub packet: Packet,
}

/// What has passed through a direction since it was made; only ever grows.
///
/// `packets + duplicated` is the sum of what was delivered, what was dropped and what is on the
/// link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectionCounters {
    /// Packets offered by the sender.
    pub packets: u64,
    /// IP bytes offered by the sender.
    pub bytes: u64,
    /// Packets that left the link at the far end.
    pub delivered_packets: u64,
    /// IP bytes that left the link at the far end.
    pub delivered_bytes: u64,
    /// Packets taken by the loss model.
    pub dropped_loss: u64,
    /// Packets dropped because the queue was full.
    pub dropped_queue: u64,
    /// Packets dropped by CoDel.
    pub dropped_codel: u64,
    /// Packets dropped because the link was cut.
    pub dropped_outage: u64,
    /// Packets dropped by a flush (see [`Direction::flush`]).
    pub dropped_flush: u64,
    /// Copies made of packets, those dropped afterwards included.
    pub duplicated: u64,
    /// Packets of which a bit was flipped.
    pub corrupted: u64,
    /// Packets sent ahead of the others.
    pub reordered: u64,
}

/// One direction of a link.
///
/// A packet meets, in this order: the duplication draw; the loss draw (a packet drawn for both is
/// one packet; one drawn for duplication alone gets a copy, made before corruption); a cut that
/// drops; corruption; the queue's limit, which counts packets in propagation too; reordering,
/// which sends it at once; or else the delay, then the bandwidth, in the order in which packets
/// came: `departure = max(now + delay, last) + tx`. Without a bandwidth packets leave in the
/// order of their departures. Ties leave first in, first out.
///
/// The queue for the bandwidth thus lies behind the propagation. For the departures that is the
/// same as the other way round, but it is where CoDel finds a packet's wait apart from its
/// propagation: it decides when a packet's turn comes, at `max(now + delay, last)`. Under
/// drop-tail everything is known when a packet is pushed.
///
/// Every impairment draws from a stream of its own for each packet offered, dropped ones
/// included, and for copies from another one, so that switching one impairment on leaves the
/// draws of the others where they were.
#[derive(Debug)]
pub struct Direction {
    name: &'static str,
    shape: Shape,
    queue: Queue,
    counters: DirectionCounters,
}

/// What the settings say, with the state that goes with it.
#[derive(Debug)]
struct Shape {
    origin: Duration,
    bandwidth: Bandwidth,
    duplicate: Duplicate,
    loss: Loss,
    trace_loss: [Chance; 2],
    originals: Draws,
    copies: Draws,
    reorder: ReorderGap,
    cuts: Cuts,
    limit: QueueLimit,
    codel: Option<CoDel>,
    rate: Rate,
}

/// The draws that a packet and its copy each have of their own.
#[derive(Debug)]
struct Draws {
    corrupt: Corrupt,
    reorder: Chance,
    delay: Delay,
}

/// What was drawn for one packet.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    flip: Option<Flip>,
    reorder: bool,
    delay: Duration,
}

impl Shape {
    fn new(name: &str, settings: &DirectionSettings, seed: u64, origin: Duration) -> Self {
        let stream = |impairment: &str| stream(seed, name, impairment);
        let draws = |of: &str| Draws {
            corrupt: Corrupt::new(settings.corrupt, stream(&format!("{of}corrupt"))),
            reorder: Chance::new(
                settings.reorder.probability,
                stream(&format!("{of}reorder")),
            ),
            delay: Delay::new(
                settings.delay,
                &settings.jitter,
                stream(&format!("{of}delay")),
            ),
        };
        let cuts = Cuts::new(settings.outages.clone(), origin);
        let rate = Rate::new(settings.bandwidth.clone(), settings.framing, &cuts, origin);
        let codel = match settings.queue.discipline {
            Discipline::CoDel { target, interval } if rate.is_limited() => {
                Some(CoDel::new(target, interval))
            }
            _ => None,
        };
        Self {
            origin,
            bandwidth: settings.bandwidth.clone(),
            duplicate: Duplicate::new(settings.duplicate, stream("duplicate")),
            loss: Loss::new(settings.loss, stream("loss"), stream("copy/loss")),
            trace_loss: ["trace-loss", "copy/trace-loss"].map(|of| Chance::new(0.0, stream(of))),
            originals: draws(""),
            copies: draws("copy/"),
            reorder: ReorderGap::new(settings.reorder),
            cuts,
            limit: settings.queue.limit,
            codel,
            rate,
        }
    }

    /// Delay and loss that the trace adds now.
    fn traced(&self, now: Duration) -> (Duration, f64) {
        let Bandwidth::Trace(trace) = &self.bandwidth else {
            return (Duration::ZERO, 0.0);
        };
        let time = now.saturating_sub(self.origin);
        (trace.delay_at(time), trace.loss_at(time))
    }
}

impl Draws {
    fn draw(&mut self, more_delay: Duration) -> Drawn {
        Drawn {
            flip: self.corrupt.draw(),
            reorder: self.reorder.draw(),
            delay: self.delay.draw_around(more_delay),
        }
    }
}

impl Direction {
    /// A direction; its `name` and `seed` fix its random streams. Traces and cuts start at
    /// time 0.
    #[must_use]
    pub fn new(name: &'static str, settings: &DirectionSettings, seed: u64) -> Self {
        Self {
            name,
            shape: Shape::new(name, settings, seed, Duration::ZERO),
            queue: Queue::default(),
            counters: DirectionCounters::default(),
        }
    }

    /// Takes other settings from `now` on, at which traces and cuts start, and starts the random
    /// streams anew. Packets already on the link keep their departures, and those that CoDel had
    /// not decided about leave in their turn; [`Direction::flush`] first where none may remain.
    pub fn reconfigure(&mut self, now: Duration, settings: &DirectionSettings, seed: u64) {
        self.advance(now);
        let undecided = self.shape.codel.as_mut().map(CoDel::drain);
        for waiting in undecided.into_iter().flatten() {
            let departure = self.shape.rate.send(waiting.ready, waiting.packet.len());
            self.queue.insert(departure, Rank::Tail, waiting.packet);
        }
        let busy_until = self.shape.rate.busy_until();
        self.shape = Shape::new(self.name, settings, seed, now);
        if !self.queue.is_empty() {
            self.shape.rate.wait_until(busy_until);
        }
    }

    /// Takes the loss model as far as so many packets would have taken it.
    pub(crate) fn age(&mut self, packets: u32) {
        self.shape.loss.age(packets);
    }

    /// Offers a packet to the link at `now`. Times passed in must not go back.
    pub fn push(&mut self, now: Duration, packet: Packet) -> Verdict {
        self.advance(now);
        self.counters.packets += 1;
        self.counters.bytes += packet.len() as u64;

        let shape = &mut self.shape;
        let (more_delay, trace_loss) = shape.traced(now);
        let duplicated = shape.duplicate.draw();
        // Both draw, whatever the other says.
        let lost = shape.loss.draw() | shape.trace_loss[0].draw_at(trace_loss);
        let drawn = shape.originals.draw(more_delay);
        let copy = duplicated.then(|| {
            let lost = shape.loss.draw_copy() | shape.trace_loss[1].draw_at(trace_loss);
            (lost, shape.copies.draw(more_delay))
        });

        // A packet that is both duplicated and lost is one packet.
        let copy = copy.filter(|_| !lost);
        let fate = if lost && !duplicated {
            self.counters.dropped_loss += 1;
            Fate::Dropped(DropReason::Loss)
        } else if shape.cuts.drops(now) {
            self.counters.dropped_outage += 1;
            Fate::Dropped(DropReason::Outage)
        } else if let Some((copy_lost, copy_drawn)) = copy {
            let second = packet.clone();
            let packet = self.enqueue(now, packet, drawn);
            self.counters.duplicated += 1;
            let copy = if copy_lost {
                self.counters.dropped_loss += 1;
                Fate::Dropped(DropReason::Loss)
            } else {
                self.enqueue(now, second, copy_drawn)
            };
            return Verdict {
                packet,
                copy: Some(copy),
            };
        } else {
            self.enqueue(now, packet, drawn)
        };
        Verdict {
            packet: fate,
            copy: None,
        }
    }

    /// When the link has to be asked next: a packet leaves, or CoDel decides about one, in which
    /// case [`Direction::pop`] may find nothing yet. `None` while the link is empty.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let departure = self.queue.next_departure();
        departure.into_iter().chain(self.next_turn()).min()
    }

    /// The next packet that has left the link by `now`; call until it returns `None`.
    pub fn pop(&mut self, now: Duration) -> Option<Departure> {
        self.advance(now);
        if self.queue.next_departure()? > now {
            return None;
        }
        let (departure, packet) = self.queue.take()?;
        self.counters.delivered_packets += 1;
        self.counters.delivered_bytes += packet.len() as u64;
        Some(Departure { departure, packet })
    }

    /// Packets on the link.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len() + self.shape.codel.as_ref().map_or(0, CoDel::len)
    }

    /// IP bytes on the link.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.queue.bytes() + self.shape.codel.as_ref().map_or(0, CoDel::bytes)
    }

    /// Whether no packet is on the link.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops every packet on the link and counts them.
    pub fn flush(&mut self) -> usize {
        let undecided = self.shape.codel.as_mut().map(CoDel::drain);
        let dropped = self.queue.flush() + undecided.map_or(0, |undecided| undecided.len());
        self.counters.dropped_flush += dropped as u64;
        self.shape.rate.reset();
        dropped
    }

    /// What has passed so far.
    #[must_use]
    pub fn counters(&self) -> DirectionCounters {
        self.counters
    }

    /// Puts one packet on the link, unless the queue is full.
    fn enqueue(&mut self, now: Duration, mut packet: Packet, drawn: Drawn) -> Fate {
        let corrupted = drawn.flip.is_some_and(|flip| flip.apply(&mut packet));
        self.counters.corrupted += u64::from(corrupted);
        let len = packet.len();
        if !self.shape.limit.admits(self.len(), self.bytes(), len) {
            self.counters.dropped_queue += 1;
            return Fate::Dropped(DropReason::Queue);
        }
        if self.shape.reorder.decide(drawn.reorder) {
            self.counters.reordered += 1;
            let departure = match self.shape.cuts.hold() {
                true => self.shape.cuts.up_at(now),
                false => now,
            };
            self.queue.insert(departure, Rank::Head, packet);
            return Fate::Queued {
                departure: Some(departure),
            };
        }
        let ready = now.saturating_add(drawn.delay);
        if let Some(codel) = &mut self.shape.codel {
            codel.push(ready, packet);
            return Fate::Queued { departure: None };
        }
        let departure = self.shape.rate.send(ready, len);
        self.queue.insert(departure, Rank::Tail, packet);
        Fate::Queued {
            departure: Some(departure),
        }
    }

    /// When the turn of the packet begins that CoDel has to decide about next.
    fn next_turn(&self) -> Option<Duration> {
        let (ready, len) = self.shape.codel.as_ref()?.head()?;
        Some(self.shape.rate.turn(ready, len).begin)
    }

    /// Lets CoDel decide about every packet whose turn begins by `now`.
    fn advance(&mut self, now: Duration) {
        while let Some(begin) = self.next_turn().filter(|begin| *begin <= now) {
            let Some(codel) = &mut self.shape.codel else {
                return;
            };
            let (waiting, dropped) = codel.dequeue(begin);
            self.counters.dropped_codel += dropped;
            if let Some(waiting) = waiting {
                let departure = self.shape.rate.send(waiting.ready, waiting.packet.len());
                self.queue.insert(departure, Rank::Tail, waiting.packet);
            }
        }
    }
}

#[cfg(test)]
mod tests;
