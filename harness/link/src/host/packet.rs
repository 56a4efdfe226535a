//! The packet thread: reads packets from the TUN devices at both ends of every leg, keeps them on
//! the emulated leg for as long as they belong there, and writes them to the device at the other
//! end.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use super::offload::{self, MAX_READ_BYTES, Train};
use super::port::Port;
use super::scheduling::{self, PACKET_PRIORITY};
use crate::clock::Clock;
use crate::core::{Direction, DirectionCounters, DirectionSettings, Packet};
use crate::counters::{Audit, Counters, Histogram};
use crate::error::Fault;
use crate::facts::Scheduling;
use crate::protocol::HostConfig;

/// Packets moved in one direction before the other gets its turn.
const BATCH: usize = 64;
/// The least time between wake-ups while packets come thick and fast. Those that are due in
/// between leave together, late by at most this: less than what a busy machine adds, and the
/// processor time that it saves is the nodes'.
const WAKE_INTERVAL: Duration = Duration::from_micros(100);
/// Wake-ups that may come at once after a quiet time, so that sparse packets are never late.
const WAKE_BURST: u32 = 16;
/// How long before a departure a thread that spins stays awake: longer than a wake-up takes.
const SPIN: Duration = Duration::from_micros(80);
/// Bytes of a packet buffer; the MTU is 1500.
const BUFFER_BYTES: usize = 2048;
/// Buffers kept for reuse.
const POOL: usize = 4096;
/// How long a profile change waits for packets to leave under the old profile.
const DRAIN: Duration = Duration::from_secs(1);
/// How long the rest of the host waits for the packet thread's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// What the packet thread is asked.
enum Command {
    Reconfigure {
        leg: usize,
        uplink: Box<DirectionSettings>,
        downlink: Box<DirectionSettings>,
        seed: u64,
        done: Sender<Duration>,
    },
    Audit {
        leg: usize,
        answer: Sender<Audit>,
    },
    Stop,
}

/// The packet thread, as the rest of the link host sees it. Dropping it ends the thread.
pub(super) struct PacketThread {
    commands: Sender<Command>,
    wake: UnixStream,
    clock: Clock,
    counters: Arc<[SharedCounters]>,
    scheduling: Scheduling,
    thread: Option<JoinHandle<()>>,
}

/// The counters of a leg's directions, written by the packet thread and read by the rest.
type SharedCounters = [Mutex<DirectionCounters>; 2];

/// Every update is one assignment, so a panic elsewhere leaves nothing half done.
fn lock(counters: &Mutex<DirectionCounters>) -> MutexGuard<'_, DirectionCounters> {
    counters.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PacketThread {
    /// Starts the thread between the devices of each leg, pinned to a CPU if one is asked for,
    /// impairing nothing.
    pub(super) fn start(legs: Vec<[Port; 2]>, config: &HostConfig) -> Result<Self, Fault> {
        let HostConfig {
            packet_cpu: cpu,
            spin,
            seed,
            ..
        } = *config;
        let cpus = cpu.map(|cpu| scheduling::cpu_set(&[cpu])).transpose()?;
        let (wake, woken) = UnixStream::pair().map_err(Fault::failed("make a wake-up socket"))?;
        for end in [&wake, &woken] {
            end.set_nonblocking(true)
                .map_err(Fault::failed("make a wake-up socket"))?;
        }
        let (commands, requests) = mpsc::channel();
        let (report, reported) = mpsc::channel();
        let clock = Clock::start();
        let counters: Arc<[SharedCounters]> = legs.iter().map(|_| Default::default()).collect();
        let shared = Arc::clone(&counters);
        let thread = thread::Builder::new()
            .name("packets".to_owned())
            .spawn(move || {
                if let (Some(cpu), Some(cpus)) = (cpu, &cpus)
                    && let Err(error) = scheduling::pin(cpus)
                {
                    let fault = format!("pin the packet thread to CPU {cpu}: {error}");
                    let _ = report.send(Err(Fault::Unsupported(fault)));
                    return;
                }
                let mut scheduling = scheduling::be_punctual(PACKET_PRIORITY);
                if spin {
                    scheduling.policy.push_str(", spinning");
                }
                let _ = report.send(Ok(Scheduling { cpu, ..scheduling }));
                let shuttle = Shuttle {
                    spin,
                    ..Shuttle::new(legs, shared, seed, clock)
                };
                shuttle.run(&requests, woken);
            })
            .map_err(Fault::failed("start the packet thread"))?;
        let scheduling = reported
            .recv()
            .unwrap_or_else(|_| Err(Fault::Failed("the packet thread ended at once".to_owned())))?;
        Ok(Self {
            commands,
            wake,
            clock,
            counters,
            scheduling,
            thread: Some(thread),
        })
    }

    /// The clock by which packets are moved.
    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    pub(super) fn scheduling(&self) -> &Scheduling {
        &self.scheduling
    }

    /// What passed over a leg.
    pub(super) fn counters(&self, leg: usize) -> Counters {
        let [uplink, downlink] = &self.counters[leg];
        Counters {
            uplink: (*lock(uplink)).into(),
            downlink: (*lock(downlink)).into(),
        }
    }

    /// Changes both directions of a leg, once the packets on it have left or the time for that
    /// is over. Returns a clock that has run since then, by which its traces and cuts go.
    pub(super) fn reconfigure(
        &self,
        leg: usize,
        (uplink, downlink): (DirectionSettings, DirectionSettings),
        seed: u64,
    ) -> Result<Clock, Fault> {
        let (done, answer) = mpsc::channel();
        self.send(Command::Reconfigure {
            leg,
            uplink: Box::new(uplink),
            downlink: Box::new(downlink),
            seed,
            done,
        })?;
        Self::receive(&answer).map(|applied| self.clock.since(applied))
    }

    /// How punctual a leg was since its profile was set or this was last asked.
    pub(super) fn audit(&self, leg: usize) -> Result<Audit, Fault> {
        let (sender, answer) = mpsc::channel();
        self.send(Command::Audit {
            leg,
            answer: sender,
        })?;
        Self::receive(&answer)
    }

    fn send(&self, command: Command) -> Result<(), Fault> {
        let sent = self.commands.send(command).is_ok();
        // A full socket wakes the thread as well as one more byte would.
        let _ = (&self.wake).write(&[0]);
        if sent {
            Ok(())
        } else {
            Err(Fault::Failed("the packet thread has ended".to_owned()))
        }
    }

    fn receive<T>(answer: &Receiver<T>) -> Result<T, Fault> {
        answer
            .recv_timeout(ANSWER_TIMEOUT)
            .map_err(|error| Fault::Failed(format!("the packet thread does not answer: {error}")))
    }
}

impl Drop for PacketThread {
    fn drop(&mut self) {
        let _ = self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Processor time of the calling thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// One way across a leg.
struct Way {
    direction: Direction,
    /// Whether packets must bear whole checksums, since some of them are corrupted.
    complete: bool,
}

/// Two devices and what lies between them.
struct Leg {
    /// At the near end and at the far end.
    devices: [Port; 2],
    /// From the near end, and to it.
    ways: [Way; 2],
    lateness: Histogram,
    write_failures: u64,
    read_failures: u64,
    /// The thread's processor time when this leg was last audited.
    cpu_before: Duration,
    change: Option<Change>,
}

/// A profile change that waits for a leg to drain.
struct Change {
    settings: [Box<DirectionSettings>; 2],
    seed: u64,
    /// Is told when the change was made.
    done: Sender<Duration>,
    deadline: Duration,
}

struct Shuttle {
    clock: Clock,
    wakes: Wakes,
    spin: bool,
    legs: Vec<Leg>,
    counters: Arc<[SharedCounters]>,
    pool: Vec<Packet>,
    train: Train,
    /// What a device has handed over, before it is cut into packets.
    read: Box<[u8]>,
}

/// Spaces wake-ups: a virtual schedule (GCRA) that may be run ahead of by a burst.
struct Wakes {
    /// When the next wake-up would be if all had kept the interval.
    scheduled: Duration,
}

impl Wakes {
    /// How long to wait before the next wake-up, which this counts.
    fn wait(&mut self, now: Duration) -> Duration {
        let wait = self
            .scheduled
            .saturating_sub(now + WAKE_BURST * WAKE_INTERVAL);
        self.scheduled = self.scheduled.max(now) + WAKE_INTERVAL;
        wait
    }
}

impl Leg {
    fn new(devices: [Port; 2], seed: u64) -> Self {
        let (uplink, downlink) = crate::profile::LinkProfile::unimpaired().settings();
        let way = |name, settings| Way {
            direction: Direction::new(name, settings, seed),
            complete: false,
        };
        Self {
            devices,
            ways: [way("uplink", &uplink), way("downlink", &downlink)],
            lateness: Histogram::new(),
            write_failures: 0,
            read_failures: 0,
            cpu_before: Duration::ZERO,
            change: None,
        }
    }

    /// When something is to be done on this leg.
    fn deadline(&self) -> Option<Duration> {
        let departures = self
            .ways
            .iter()
            .filter_map(|way| way.direction.next_deadline());
        departures
            .chain(self.change.as_ref().map(|change| change.deadline))
            .min()
    }

    /// How punctual this leg was up to now; what comes is audited anew.
    fn audit(&mut self, cpu: Duration) -> Audit {
        let audit = Audit {
            packets: self.lateness.count(),
            lateness_p50_us: self.lateness.quantile_us(0.5),
            lateness_p99_us: self.lateness.quantile_us(0.99),
            lateness_max_us: self.lateness.max_us(),
            write_failures: self.write_failures,
            read_failures: self.read_failures,
            device_drops: self.devices.iter().map(Port::drops).sum(),
            cpu_s: cpu.saturating_sub(self.cpu_before).as_secs_f64(),
        };
        self.lateness.clear();
        self.write_failures = 0;
        self.read_failures = 0;
        self.cpu_before = cpu;
        audit
    }
}

impl Shuttle {
    fn new(legs: Vec<[Port; 2]>, counters: Arc<[SharedCounters]>, seed: u64, clock: Clock) -> Self {
        Self {
            clock,
            wakes: Wakes {
                scheduled: Duration::ZERO,
            },
            spin: false,
            legs: legs
                .into_iter()
                .map(|devices| Leg::new(devices, seed))
                .collect(),
            counters,
            pool: Vec::new(),
            train: Train::default(),
            read: vec![0; MAX_READ_BYTES].into_boxed_slice(),
        }
    }

    fn run(mut self, requests: &Receiver<Command>, mut woken: UnixStream) {
        let mut readable = Vec::new();
        let mut behind = false;
        loop {
            if !behind && !self.spin {
                let pause = self.wakes.wait(self.clock.now());
                if !pause.is_zero() {
                    thread::sleep(pause);
                }
            }
            if self.wait(&woken, &mut readable).is_err() {
                return;
            }
            // The command socket is the last.
            if readable.pop() == Some(true) {
                let mut bytes = [0; 64];
                while matches!(woken.read(&mut bytes), Ok(1..)) {}
                if !self.serve(requests) {
                    return;
                }
            }
            behind = false;
            for leg in 0..self.legs.len() {
                for way in 0..2 {
                    if readable[2 * leg + way] {
                        behind |= self.take_in(leg, way);
                    }
                }
            }
            for leg in 0..self.legs.len() {
                for way in 0..2 {
                    behind |= self.let_out(leg, way);
                }
                self.change_when_drained(leg);
            }
        }
    }

    /// Waits until a device has a packet, a packet is due or a command has come, and says which
    /// of the devices, two for each leg, and of the command socket can be read.
    fn wait(&self, woken: &UnixStream, readable: &mut Vec<bool>) -> Result<(), Errno> {
        let deadline = self.legs.iter().filter_map(Leg::deadline).min();
        let awake = if self.spin { SPIN } else { Duration::ZERO };
        let timeout = deadline
            .map(|due| TimeSpec::from(due.saturating_sub(self.clock.now()).saturating_sub(awake)));
        let devices = self.legs.iter().flat_map(|leg| &leg.devices);
        let mut fds: Vec<PollFd<'_>> = devices
            .map(AsFd::as_fd)
            .chain([woken.as_fd()])
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        readable.clear();
        match ppoll(&mut fds, timeout, None) {
            Ok(_) => readable.extend(fds.iter().map(|fd| fd.any().unwrap_or(true))),
            Err(Errno::EINTR) => readable.resize(fds.len(), false),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Reads what has come from a device onto the leg; true if there may be more.
    fn take_in(&mut self, leg: usize, way: usize) -> bool {
        let Leg {
            devices,
            ways,
            read_failures,
            ..
        } = &mut self.legs[leg];
        let Way {
            direction,
            complete,
        } = &mut ways[way];
        let link = devices[way].link_header().len();
        let mut packets = 0;
        while packets < BATCH {
            let len = match devices[way].read(&mut self.read) {
                Ok(len) => len,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        *read_failures += 1;
                    }
                    break;
                }
            };
            let now = self.clock.now();
            let whole = offload::split(&self.read[..len], link, *complete, |fill| {
                let mut packet = self
                    .pool
                    .pop()
                    .unwrap_or_else(|| Packet::with_capacity(BUFFER_BYTES));
                fill(&mut packet);
                direction.push(now, packet);
                packets += 1;
            });
            if !whole {
                *read_failures += 1;
                break;
            }
        }
        // Before anything read here can leave, so that whoever has received a packet finds it
        // counted.
        *lock(&self.counters[leg][way]) = direction.counters();
        packets >= BATCH
    }

    /// Writes what is due to the device at the far end; true if there may be more.
    fn let_out(&mut self, leg: usize, way: usize) -> bool {
        let mut left = 0;
        while left < BATCH {
            let now = self.clock.now();
            let Some(departure) = self.legs[leg].ways[way].direction.pop(now) else {
                break;
            };
            left += 1;
            self.legs[leg]
                .lateness
                .record(now.saturating_sub(departure.departure));
            if let Err(packet) = self.train.add(departure.packet) {
                self.write_train(leg, way);
                // An empty train takes any packet.
                let _ = self.train.add(packet);
            }
        }
        if left > 0 {
            self.write_train(leg, way);
            *lock(&self.counters[leg][way]) = self.legs[leg].ways[way].direction.counters();
        }
        left == BATCH
    }

    fn write_train(&mut self, leg: usize, way: usize) {
        if self.train.is_empty() {
            return;
        }
        let leg = &mut self.legs[leg];
        let to = &leg.devices[1 - way];
        let pool = &mut self.pool;
        let written = self.train.write(
            to.link_header(),
            |parts| to.write(parts),
            |packet| {
                if pool.len() < POOL {
                    pool.push(packet);
                }
            },
        );
        if written.is_err() {
            leg.write_failures += 1;
        }
    }

    /// Serves every command that has come; false to end.
    fn serve(&mut self, requests: &Receiver<Command>) -> bool {
        loop {
            match requests.try_recv() {
                Ok(Command::Reconfigure {
                    leg,
                    uplink,
                    downlink,
                    seed,
                    done,
                }) => {
                    let deadline = self.clock.now() + DRAIN;
                    self.legs[leg].change = Some(Change {
                        settings: [uplink, downlink],
                        seed,
                        done,
                        deadline,
                    });
                }
                Ok(Command::Audit { leg, answer }) => {
                    let _ = answer.send(self.legs[leg].audit(cpu_time()));
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn change_when_drained(&mut self, index: usize) {
        let leg = &mut self.legs[index];
        let now = self.clock.now();
        let drained = leg.ways.iter().all(|way| way.direction.is_empty());
        let Some(change) = leg
            .change
            .take_if(|change| drained || now >= change.deadline)
        else {
            return;
        };
        for (way, settings) in leg.ways.iter_mut().zip(&change.settings) {
            way.direction.flush();
            way.direction.reconfigure(now, settings, change.seed);
            way.complete = settings.corrupt > 0.0;
        }
        for (shared, way) in self.counters[index].iter().zip(&leg.ways) {
            *lock(shared) = way.direction.counters();
        }
        leg.audit(cpu_time());
        let _ = change.done.send(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_wake_ups_never_wait_and_dense_ones_keep_the_interval() {
        let mut wakes = Wakes {
            scheduled: Duration::ZERO,
        };
        for i in 0..1000 {
            assert_eq!(wakes.wait(2 * WAKE_INTERVAL * i), Duration::ZERO);
        }
        let start = 2 * WAKE_INTERVAL * 1000;
        let mut now = start;
        let count = 1000;
        for _ in 0..count {
            now += wakes.wait(now) + WAKE_INTERVAL / 10;
        }
        let least = (count - WAKE_BURST - 1) * WAKE_INTERVAL;
        assert!(now - start >= least, "{:?}", now - start);
        assert!(now - start <= least + 20 * WAKE_INTERVAL);
        // A quiet time gives the burst back.
        now += WAKE_INTERVAL * WAKE_BURST * 2;
        for _ in 0..WAKE_BURST {
            assert_eq!(wakes.wait(now), Duration::ZERO);
        }
    }
}
