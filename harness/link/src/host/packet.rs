//! The packet thread: reads packets from each TUN device, keeps them on the emulated link for as
//! long as they belong there, and writes them to the other device.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::scheduling::{self, PACKET_PRIORITY};
use crate::clock::Clock;
use crate::core::{Direction, DirectionCounters, DirectionSettings, Packet};
use crate::counters::{Audit, Counters, Histogram, TrafficCounters};
use crate::error::Fault;
use crate::facts::Scheduling;

/// Packets moved in one direction before the other gets its turn.
const BATCH: usize = 64;
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
        uplink: DirectionSettings,
        downlink: DirectionSettings,
        seed: u64,
        done: Sender<()>,
    },
    Audit {
        answer: Sender<Audit>,
    },
    Stop,
}

/// The packet thread, as the rest of the link host sees it. Dropping it ends the thread.
pub(super) struct PacketThread {
    commands: Sender<Command>,
    wake: UnixStream,
    counters: Arc<[SharedCounters; 2]>,
    scheduling: Scheduling,
    thread: Option<JoinHandle<()>>,
}

/// One direction's counters, written by the packet thread and read by the rest.
#[derive(Default)]
struct SharedCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
    delivered_packets: AtomicU64,
    delivered_bytes: AtomicU64,
    dropped_loss: AtomicU64,
    dropped_queue: AtomicU64,
    dropped_flush: AtomicU64,
}

impl SharedCounters {
    fn store(&self, counters: DirectionCounters) {
        self.packets.store(counters.packets, Ordering::Relaxed);
        self.bytes.store(counters.bytes, Ordering::Relaxed);
        self.delivered_packets
            .store(counters.delivered_packets, Ordering::Relaxed);
        self.delivered_bytes
            .store(counters.delivered_bytes, Ordering::Relaxed);
        self.dropped_loss
            .store(counters.dropped_loss, Ordering::Relaxed);
        self.dropped_queue
            .store(counters.dropped_queue, Ordering::Relaxed);
        self.dropped_flush
            .store(counters.dropped_flush, Ordering::Relaxed);
    }

    fn load(&self) -> TrafficCounters {
        TrafficCounters {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            delivered_packets: self.delivered_packets.load(Ordering::Relaxed),
            delivered_bytes: self.delivered_bytes.load(Ordering::Relaxed),
            dropped_loss: self.dropped_loss.load(Ordering::Relaxed),
            dropped_queue: self.dropped_queue.load(Ordering::Relaxed),
            dropped_flush: self.dropped_flush.load(Ordering::Relaxed),
        }
    }
}

impl PacketThread {
    /// Starts the thread between the two devices, pinned to `cpu` if given, impairing nothing.
    pub(super) fn start(
        edge: File,
        cloud: File,
        cpu: Option<usize>,
        seed: u64,
    ) -> Result<Self, Fault> {
        let cpus = cpu.map(|cpu| scheduling::cpu_set(&[cpu])).transpose()?;
        let (wake, woken) = UnixStream::pair().map_err(Fault::failed("make a wake-up socket"))?;
        for end in [&wake, &woken] {
            end.set_nonblocking(true)
                .map_err(Fault::failed("make a wake-up socket"))?;
        }
        let (commands, requests) = mpsc::channel();
        let (report, reported) = mpsc::channel();
        let counters: Arc<[SharedCounters; 2]> = Arc::default();
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
                let scheduling = scheduling::be_punctual(PACKET_PRIORITY);
                let _ = report.send(Ok(Scheduling { cpu, ..scheduling }));
                Shuttle::new(edge, cloud, shared, seed).run(&requests, woken);
            })
            .map_err(Fault::failed("start the packet thread"))?;
        let scheduling = reported
            .recv()
            .unwrap_or_else(|_| Err(Fault::Failed("the packet thread ended at once".to_owned())))?;
        Ok(Self {
            commands,
            wake,
            counters,
            scheduling,
            thread: Some(thread),
        })
    }

    pub(super) fn scheduling(&self) -> &Scheduling {
        &self.scheduling
    }

    pub(super) fn counters(&self) -> Counters {
        let [uplink, downlink] = &*self.counters;
        Counters {
            uplink: uplink.load(),
            downlink: downlink.load(),
        }
    }

    /// Changes both directions, once the packets on the link have left it or the time for that
    /// is over.
    pub(super) fn reconfigure(
        &self,
        (uplink, downlink): (DirectionSettings, DirectionSettings),
        seed: u64,
    ) -> Result<(), Fault> {
        let (done, answer) = mpsc::channel();
        self.send(Command::Reconfigure {
            uplink,
            downlink,
            seed,
            done,
        })?;
        Self::receive(&answer)
    }

    pub(super) fn audit(&self) -> Result<Audit, Fault> {
        let (sender, answer) = mpsc::channel();
        self.send(Command::Audit { answer: sender })?;
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

/// One way across: from one device over the emulated link to the other.
struct Way {
    direction: Direction,
    from: usize,
    to: usize,
}

struct Shuttle {
    clock: Clock,
    devices: [File; 2],
    ways: [Way; 2],
    counters: Arc<[SharedCounters; 2]>,
    pool: Vec<Packet>,
    lateness: Histogram,
    write_failures: u64,
    read_failures: u64,
    change: Option<Change>,
}

/// A profile change that waits for the link to drain.
struct Change {
    settings: [DirectionSettings; 2],
    seed: u64,
    done: Sender<()>,
    deadline: Duration,
}

impl Shuttle {
    fn new(edge: File, cloud: File, counters: Arc<[SharedCounters; 2]>, seed: u64) -> Self {
        let (uplink, downlink) = crate::profile::LinkProfile::unimpaired().settings();
        Self {
            clock: Clock::start(),
            devices: [edge, cloud],
            ways: [
                Way {
                    direction: Direction::new("uplink", &uplink, seed),
                    from: 0,
                    to: 1,
                },
                Way {
                    direction: Direction::new("downlink", &downlink, seed),
                    from: 1,
                    to: 0,
                },
            ],
            counters,
            pool: Vec::new(),
            lateness: Histogram::new(),
            write_failures: 0,
            read_failures: 0,
            change: None,
        }
    }

    fn run(mut self, requests: &Receiver<Command>, mut woken: UnixStream) {
        loop {
            let Ok([edge, cloud, wake]) = self.wait(&woken) else {
                return;
            };
            if wake {
                let mut bytes = [0; 64];
                while matches!(woken.read(&mut bytes), Ok(1..)) {}
                if !self.serve(requests) {
                    return;
                }
            }
            for (way, readable) in [edge, cloud].into_iter().enumerate() {
                if readable {
                    self.take_in(way);
                }
            }
            for way in 0..self.ways.len() {
                self.let_out(way);
            }
            self.change_when_drained();
        }
    }

    /// Waits until a device has a packet, a packet is due or a command has come, and says which
    /// of edge device, cloud device and command socket can be read.
    fn wait(&self, woken: &UnixStream) -> Result<[bool; 3], Errno> {
        let drained_by = self.change.as_ref().map(|change| change.deadline);
        let deadline = self
            .ways
            .iter()
            .filter_map(|way| way.direction.next_deadline())
            .chain(drained_by)
            .min();
        let timeout = deadline.map(|due| TimeSpec::from(due.saturating_sub(self.clock.now())));
        let [edge, cloud] = &self.devices;
        let mut fds = [edge.as_fd(), cloud.as_fd(), woken.as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match ppoll(&mut fds, timeout, None) {
            Ok(_) => Ok(fds.map(|fd| fd.any().unwrap_or(true))),
            Err(Errno::EINTR) => Ok([false; 3]),
            Err(error) => Err(error),
        }
    }

    /// Reads what has come from a device onto the link.
    fn take_in(&mut self, way: usize) {
        let Way {
            direction, from, ..
        } = &mut self.ways[way];
        for _ in 0..BATCH {
            let mut packet = self
                .pool
                .pop()
                .unwrap_or_else(|| Packet::with_capacity(BUFFER_BYTES));
            match (&self.devices[*from]).read(packet.buffer_mut()) {
                Ok(len) => {
                    packet.set_len(len);
                    direction.push(self.clock.now(), packet);
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.read_failures += 1;
                    }
                    self.pool.push(packet);
                    break;
                }
            }
        }
        // Before anything read here can leave, so that whoever has received a packet finds it
        // counted.
        self.counters[way].store(direction.counters());
    }

    /// Writes what is due to the device at the far end.
    fn let_out(&mut self, way: usize) {
        let Way { direction, to, .. } = &mut self.ways[way];
        let mut left = false;
        for _ in 0..BATCH {
            let now = self.clock.now();
            let Some(departure) = direction.pop(now) else {
                break;
            };
            left = true;
            self.lateness
                .record(now.saturating_sub(departure.departure));
            if (&self.devices[*to])
                .write(departure.packet.bytes())
                .is_err()
            {
                self.write_failures += 1;
            }
            if self.pool.len() < POOL {
                self.pool.push(departure.packet);
            }
        }
        if left {
            self.counters[way].store(direction.counters());
        }
    }

    /// Serves every command that has come; false to end.
    fn serve(&mut self, requests: &Receiver<Command>) -> bool {
        loop {
            match requests.try_recv() {
                Ok(Command::Reconfigure {
                    uplink,
                    downlink,
                    seed,
                    done,
                }) => {
                    let deadline = self.clock.now() + DRAIN;
                    self.change = Some(Change {
                        settings: [uplink, downlink],
                        seed,
                        done,
                        deadline,
                    });
                }
                Ok(Command::Audit { answer }) => {
                    let _ = answer.send(self.audit());
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn change_when_drained(&mut self) {
        let Some(change) = &self.change else { return };
        let drained = self.ways.iter().all(|way| way.direction.is_empty());
        if !drained && self.clock.now() < change.deadline {
            return;
        }
        for (index, way) in self.ways.iter_mut().enumerate() {
            way.direction.flush();
            way.direction
                .reconfigure(&change.settings[index], change.seed);
            self.counters[index].store(way.direction.counters());
        }
        self.lateness.clear();
        self.write_failures = 0;
        self.read_failures = 0;
        let _ = change.done.send(());
        self.change = None;
    }

    fn audit(&self) -> Audit {
        Audit {
            packets: self.lateness.count(),
            lateness_p50_us: self.lateness.quantile_us(0.5),
            lateness_p99_us: self.lateness.quantile_us(0.99),
            lateness_max_us: self.lateness.max_us(),
            write_failures: self.write_failures,
            read_failures: self.read_failures,
            device_drops: 0,
        }
    }
}
