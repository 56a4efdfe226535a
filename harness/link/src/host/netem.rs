//! The kernel's netem discipline: a direction's settings in its own terms, and putting it on a
//! device.
//!
//! The options are 24 bytes of six 32-bit numbers and attributes after them, as the kernel's
//! user-space interface (`linux/pkt_sched.h`) lays them out: times in nanoseconds where an
//! attribute takes them so, rates in bytes per second, probabilities as 32-bit fractions, numbers
//! in the machine's byte order.

use std::io;
use std::time::Duration;

use nix::libc;

use super::device::ETHERNET_HEADER_BYTES;
use super::netlink::{self, Message, QdiscState};
use crate::core::{
    Bandwidth, DirectionSettings, Discipline, Framing, Jitter, LossModel, QueueLimit,
};
use crate::error::Fault;
use crate::profile::LinkProfile;

const KIND: &str = "netem";
const HANDLE: u32 = 0x1_0000;
/// The discipline that drops every packet; every kernel with disciplines has it.
const GATE_KIND: &str = "blackhole";
const GATE_HANDLE: u32 = 0x2_0000;

const TCA_NETEM_DELAY_DIST: u16 = 2;
const TCA_NETEM_REORDER: u16 = 3;
const TCA_NETEM_CORRUPT: u16 = 4;
const TCA_NETEM_LOSS: u16 = 5;
const TCA_NETEM_RATE: u16 = 6;
const TCA_NETEM_RATE64: u16 = 8;
const TCA_NETEM_LATENCY64: u16 = 10;
const TCA_NETEM_JITTER64: u16 = 11;
const TCA_NETEM_PRNG_SEED: u16 = 14;
const NETEM_LOSS_GI: u16 = 1;
const NETEM_LOSS_GE: u16 = 2;

/// Bytes of `struct tc_netem_qopt`.
const FIXED_BYTES: usize = 24;
/// Nanoseconds of a tick, in which kernels before 4.15 take times.
const TICK_NS: u128 = 64;
/// The greatest scale of the jitter: the kernel draws with a signed 32-bit number of nanoseconds.
const MAX_JITTER: Duration = Duration::from_nanos(i32::MAX as u64);
/// Entries of a jitter table that the kernel takes at most.
const MAX_TABLE: usize = 16_384;
/// Bytes of the shortest IP packet. One that overhead made negative would never leave netem.
const MIN_PACKET_BYTES: i32 = 20;

/// Puts a new netem on a device of the calling thread's namespace, in place of what is there.
///
/// For some microseconds there is neither, and packets that come then are dropped: the kernel
/// refuses a netem that duplicates packets beside another one on the same device, and while one
/// replaced the other there would be both. A netem that is only changed would keep the table, the
/// correlations and the states that it had.
pub(super) fn install(index: u32, options: &[u8]) -> Result<(), Fault> {
    netlink::replace_root_qdisc(index, GATE_HANDLE, GATE_KIND, &[])
        .map_err(|error| refused(&error))?;
    netlink::replace_root_qdisc(index, HANDLE, KIND, options).map_err(|error| refused(&error))
}

/// The state of the netem on a device of the calling thread's namespace.
pub(super) fn state(index: u32) -> Result<QdiscState, Fault> {
    netlink::root_qdisc_state(index, HANDLE)
        .map_err(Fault::failed("read the state of a netem discipline"))?
        .ok_or_else(|| Fault::Failed("a netem discipline of the link is gone".to_owned()))
}

fn refused(error: &io::Error) -> Fault {
    match error.raw_os_error() {
        // The second is said by a kernel without any discipline.
        Some(libc::ENOENT | libc::EOPNOTSUPP) => Fault::Environment(
            "this kernel has no sch_netem: load the module (modprobe sch_netem; some \
             distributions keep it in a package of extra kernel modules), or use backend \
             \"userspace\", which needs none"
                .to_owned(),
        ),
        Some(libc::EINVAL) => Fault::Failed(format!(
            "the kernel's netem refuses the profile ({error}): use backend \"userspace\""
        )),
        _ => Fault::Failed(format!("put netem on a device: {error}")),
    }
}

/// Whether the kernel's netem took the seed, by the options that it states. Kernels before 6.7
/// pass over that attribute.
pub(super) fn is_seeded(stated: &[u8]) -> bool {
    stated
        .get(FIXED_BYTES..)
        .is_some_and(|rest| netlink::attributes(rest).any(|(kind, _)| kind == TCA_NETEM_PRNG_SEED))
}

/// Options under which netem impairs nothing.
pub(super) fn unimpaired() -> Result<Vec<u8>, Fault> {
    let (uplink, _) = LinkProfile::unimpaired().settings();
    options(&uplink, 0)
}

/// The options that make netem do what the settings of a direction say; `seed` is that of all its
/// random numbers in this direction, where the kernel takes one.
///
/// # Errors
/// [`Fault::Unsupported`] for a setting that netem cannot express; it begins with the name of the
/// key in a profile.
pub(super) fn options(settings: &DirectionSettings, seed: u64) -> Result<Vec<u8>, Fault> {
    if !settings.outages.is_empty() {
        return Err(refusal("outages", "cuts no link at set times"));
    }
    if settings.queue.discipline != Discipline::DropTail {
        return Err(refusal("queue", "drops at the tail only"));
    }
    let limit_packets = match settings.queue.limit {
        QueueLimit::Packets(packets) => u32::try_from(packets)
            .map_err(|_| refusal("limit_packets", "counts at most 4294967295"))?,
        QueueLimit::Bytes(_) => return Err(refusal("limit_bytes", "bounds packets, not bytes")),
    };
    let jitter = match &settings.jitter {
        // Beyond the delay it would be cut on one side, and the mean would not hold.
        Jitter::Uniform { half_width } => settings.delay.min(*half_width),
        other => other.scale(),
    };
    if jitter > MAX_JITTER {
        return Err(refusal(
            "jitter_ms",
            "draws with a scale of at most 2147 ms",
        ));
    }
    let table = settings.jitter.table();
    if table
        .as_ref()
        .is_some_and(|table| !(1..=MAX_TABLE).contains(&table.len()))
    {
        return Err(refusal(
            "jitter_distribution",
            "takes tables of 1 to 16384 entries",
        ));
    }
    let reorder = settings.reorder;
    let reorders = reorder.probability > 0.0 && reorder.gap > 0;
    let independent = match settings.loss {
        LossModel::Independent { probability } => fraction(probability),
        _ => 0,
    };

    // struct tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter.
    let mut message = Message::content(&words(&[
        ticks(settings.delay),
        limit_packets,
        independent,
        if reorders { reorder.gap } else { 0 },
        fraction(settings.duplicate),
        ticks(jitter),
    ]))
    .attribute(TCA_NETEM_LATENCY64, &nanos(settings.delay).to_ne_bytes())
    .attribute(TCA_NETEM_JITTER64, &nanos(jitter).to_ne_bytes());
    if let Some(table) = table {
        let entries: Vec<u8> = table.iter().flat_map(|entry| entry.to_ne_bytes()).collect();
        message = message.attribute(TCA_NETEM_DELAY_DIST, &entries);
    }
    message = add_loss(message, settings.loss);
    // Probability and correlation.
    if reorders {
        let values = words(&[fraction(reorder.probability), 0]);
        message = message.attribute(TCA_NETEM_REORDER, &values);
    }
    if settings.corrupt > 0.0 {
        let values = words(&[fraction(settings.corrupt), 0]);
        message = message.attribute(TCA_NETEM_CORRUPT, &values);
    }
    message = match settings.bandwidth {
        Bandwidth::Unlimited => message,
        Bandwidth::Fixed { bits_per_second } => {
            add_rate(message, bits_per_second, settings.framing)?
        }
        Bandwidth::Trace(_) => {
            return Err(refusal("trace", "knows a fixed rate and no trace"));
        }
    };
    Ok(message
        .attribute(TCA_NETEM_PRNG_SEED, &seed.to_ne_bytes())
        .into_content())
}

/// Adds a loss model that has states.
fn add_loss(message: Message, loss: LossModel) -> Message {
    match loss {
        LossModel::None | LossModel::Independent { .. } => message,
        // struct tc_netem_gemodel: p, r, h, 1 - k.
        LossModel::GilbertElliott { p, r, h, k } => message.nested(TCA_NETEM_LOSS, |model| {
            model.attribute(NETEM_LOSS_GE, &words(&[p, r, h, 1.0 - k].map(fraction)))
        }),
        // struct tc_netem_gimodel: p13, p31, p32, p14, p23.
        LossModel::FourState {
            p13,
            p31,
            p32,
            p23,
            p14,
        } => message.nested(TCA_NETEM_LOSS, |model| {
            let transitions = [p13, p31, p32, p14, p23];
            model.attribute(NETEM_LOSS_GI, &words(&transitions.map(fraction)))
        }),
    }
}

/// Adds a rate, which the kernel takes in whole bytes per second.
fn add_rate(message: Message, bits_per_second: u64, framing: Framing) -> Result<Message, Fault> {
    if framing.overhead_bytes < -MIN_PACKET_BYTES {
        return Err(refusal(
            "overhead_bytes",
            "takes no overhead below -20, which would make the shortest packet negative",
        ));
    }
    let whole_cell = i64::from(framing.cell_bytes) + i64::from(framing.cell_overhead_bytes);
    if framing.cell_bytes > 0 && !(0..=i64::from(u32::MAX)).contains(&whole_cell) {
        return Err(refusal(
            "cell_overhead_bytes",
            "takes no cell of negative length",
        ));
    }
    // The kernel takes 0 for no bound.
    let bytes_per_second = (bits_per_second.saturating_add(4) / 8).max(1);
    // Its lengths hold the Ethernet header, which no other backend has.
    let overhead = framing
        .overhead_bytes
        .saturating_sub(ETHERNET_HEADER_BYTES as i32);
    // struct tc_netem_rate: rate, packet overhead, cell size, cell overhead.
    let values = words(&[
        u32::try_from(bytes_per_second).unwrap_or(u32::MAX),
        overhead.cast_unsigned(),
        framing.cell_bytes,
        framing.cell_overhead_bytes.cast_unsigned(),
    ]);
    let message = message.attribute(TCA_NETEM_RATE, &values);
    // The greater of the two rates holds.
    Ok(if u32::try_from(bytes_per_second).is_ok() {
        message
    } else {
        message.attribute(TCA_NETEM_RATE64, &bytes_per_second.to_ne_bytes())
    })
}

fn refusal(field: &str, limitation: &str) -> Fault {
    Fault::Unsupported(format!(
        "{field}: the kernel's netem {limitation}; use backend \"userspace\""
    ))
}

fn words(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

/// A probability as a 32-bit fraction. Rounded down, because the kernel adds such numbers up
/// without regard to overflow: two that make 1 together must not make more.
fn fraction(probability: f64) -> u32 {
    // A cast from floating point saturates, and makes 0 of what is no number.
    (probability * f64::from(u32::MAX)) as u32
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// A time for kernels that do not know the attributes in nanoseconds, which override it.
fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_nanos() / TICK_NS).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use std::sync::Arc;

    use nix::net::if_::if_nametoindex;

    use super::*;
    use crate::core::{
        BandwidthTrace, Opportunities, Outage, OutageMode, Outages, QueueSettings, Reorder,
    };
    use crate::host::namespace::{self, Namespace};

    /// What the options begin with where nothing is impaired: limit 1000, no delay, no jitter.
    #[rustfmt::skip]
    const NOTHING: [u8; 48] = [
        0, 0, 0, 0, 0xe8, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        12, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        12, 0, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    /// What they end with.
    const SEED: u64 = 0x0102_0304_0506_0708;
    const SEED_BYTES: [u8; 12] = [12, 0, 14, 0, 8, 7, 6, 5, 4, 3, 2, 1];

    fn nothing() -> DirectionSettings {
        DirectionSettings::default()
    }

    fn encode(settings: &DirectionSettings) -> Vec<u8> {
        options(settings, SEED).expect("netem can do this")
    }

    /// Checks that the settings are encoded as [`NOTHING`], `expected` and [`SEED_BYTES`].
    fn assert_adds(settings: &DirectionSettings, expected: &[u8]) {
        assert_eq!(encode(settings), [&NOTHING, expected, &SEED_BYTES].concat());
    }

    #[test]
    fn times_limit_and_probabilities_fill_the_fixed_part() {
        assert_adds(&nothing(), &[]);
        let settings = DirectionSettings {
            delay: Duration::from_millis(30),
            jitter: Jitter::Uniform {
                half_width: Duration::from_millis(2),
            },
            loss: LossModel::Independent { probability: 0.01 },
            duplicate: 0.5,
            ..nothing()
        };
        #[rustfmt::skip]
        let expected = [
            // 468,750 ticks; 1000 packets; 1% and 50% of 2³² − 1; 31,250 ticks.
            0x0e, 0x27, 0x07, 0, 0xe8, 3, 0, 0, 0x28, 0x5c, 0x8f, 0x02,
            0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0x12, 0x7a, 0, 0,
            // 30,000,000 ns and 2,000,000 ns.
            12, 0, 10, 0, 0x80, 0xc3, 0xc9, 0x01, 0, 0, 0, 0,
            12, 0, 11, 0, 0x80, 0x84, 0x1e, 0, 0, 0, 0, 0,
        ];
        assert_eq!(encode(&settings), [&expected[..], &SEED_BYTES].concat());
    }

    #[test]
    fn uniform_jitter_is_cut_to_the_delay() {
        let jitter = |half_width_ms| DirectionSettings {
            delay: Duration::from_millis(3),
            jitter: Jitter::Uniform {
                half_width: Duration::from_millis(half_width_ms),
            },
            ..nothing()
        };
        assert_eq!(encode(&jitter(4)), encode(&jitter(3)));
        assert_ne!(encode(&jitter(2)), encode(&jitter(3)));
    }

    #[test]
    fn a_table_of_deviations_is_padded() {
        let settings = DirectionSettings {
            jitter: Jitter::Table {
                sigma: Duration::ZERO,
                table: Arc::from([-8192, 0, 8191]),
            },
            ..nothing()
        };
        assert_adds(
            &settings,
            &[10, 0, 2, 0, 0x00, 0xe0, 0, 0, 0xff, 0x1f, 0, 0],
        );
        // The computed ones fit too.
        let sigma = Duration::from_millis(1);
        for jitter in [
            Jitter::Normal { sigma },
            Jitter::Pareto { sigma },
            Jitter::ParetoNormal { sigma },
        ] {
            let table = jitter.table().expect("a table");
            let encoded = encode(&DirectionSettings {
                jitter,
                ..nothing()
            });
            let (_, entries) = netlink::attributes(&encoded[FIXED_BYTES..])
                .find(|(kind, _)| *kind == TCA_NETEM_DELAY_DIST)
                .expect("a table");
            assert_eq!(entries.len(), 2 * table.len());
        }
    }

    #[test]
    fn loss_models_are_nested() {
        let loss = LossModel::GilbertElliott {
            p: 0.01,
            r: 0.25,
            h: 0.0,
            k: 0.5,
        };
        #[rustfmt::skip]
        assert_adds(&DirectionSettings { loss, ..nothing() }, &[
            24, 0, 5, 0x80, 20, 0, 2, 0,
            0x28, 0x5c, 0x8f, 0x02, 0xff, 0xff, 0xff, 0x3f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f,
        ]);
        let loss = LossModel::FourState {
            p13: 0.01,
            p31: 0.25,
            p32: 0.5,
            p23: 1.0,
            p14: 0.0,
        };
        #[rustfmt::skip]
        assert_adds(&DirectionSettings { loss, ..nothing() }, &[
            28, 0, 5, 0x80, 24, 0, 1, 0,
            0x28, 0x5c, 0x8f, 0x02, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0,
            0xff, 0xff, 0xff, 0xff,
        ]);
    }

    #[test]
    fn reordering_and_corruption_are_uncorrelated() {
        let reorder = |probability, gap| DirectionSettings {
            reorder: Reorder { probability, gap },
            ..nothing()
        };
        let mut expected = NOTHING.to_vec();
        expected[12] = 5;
        expected.extend([12, 0, 3, 0, 0xff, 0xff, 0xff, 0x3f, 0, 0, 0, 0]);
        expected.extend(SEED_BYTES);
        assert_eq!(encode(&reorder(0.25, 5)), expected);
        // A gap alone would make netem reorder every packet that comes after it.
        assert_adds(&reorder(0.0, 5), &[]);
        assert_adds(&reorder(0.25, 0), &[]);
        let corrupt = DirectionSettings {
            corrupt: 0.01,
            ..nothing()
        };
        assert_adds(&corrupt, &[12, 0, 4, 0, 0x28, 0x5c, 0x8f, 0x02, 0, 0, 0, 0]);
    }

    fn rate(bits_per_second: u64, framing: Framing) -> DirectionSettings {
        DirectionSettings {
            bandwidth: Bandwidth::Fixed { bits_per_second },
            framing,
            ..nothing()
        }
    }

    #[test]
    fn rates_are_in_bytes_and_wide_ones_are_stated_twice() {
        let atm = Framing {
            overhead_bytes: 8,
            cell_bytes: 48,
            cell_overhead_bytes: 5,
        };
        #[rustfmt::skip]
        assert_adds(&rate(100_000_000, atm), &[
            20, 0, 6, 0, 0x20, 0xbc, 0xbe, 0, 0xfa, 0xff, 0xff, 0xff, 48, 0, 0, 0, 5, 0, 0, 0,
        ]);
        #[rustfmt::skip]
        assert_adds(&rate(100_000_000_000, Framing::default()), &[
            20, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, 0xf2, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
            12, 0, 8, 0, 0x00, 0xdd, 0x0e, 0xe9, 2, 0, 0, 0,
        ]);
        // Never 0, which would be no bound.
        #[rustfmt::skip]
        assert_adds(&rate(0, Framing::default()), &[
            20, 0, 6, 0, 1, 0, 0, 0, 0xf2, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
        ]);
    }

    #[test]
    fn what_netem_cannot_do_is_refused_by_name() {
        let queue = |limit, discipline| DirectionSettings {
            queue: QueueSettings { limit, discipline },
            ..nothing()
        };
        let second = Duration::from_secs(1);
        let codel = Discipline::CoDel {
            target: second,
            interval: second,
        };
        let table = |entries: usize| DirectionSettings {
            jitter: Jitter::Table {
                sigma: second,
                table: vec![0; entries].into(),
            },
            ..nothing()
        };
        let framing = |overhead_bytes, cell_overhead_bytes| {
            rate(
                1_000_000,
                Framing {
                    overhead_bytes,
                    cell_bytes: 48,
                    cell_overhead_bytes,
                },
            )
        };
        let outage = Outage {
            start: second,
            duration: second,
            every: None,
        };
        let outages = Outages {
            cuts: Arc::from([outage]),
            mode: OutageMode::Hold,
        };
        let trace = Opportunities::new(vec![1, 2, 3]).expect("a trace");
        let bandwidth = Bandwidth::Trace(Arc::new(BandwidthTrace::Opportunities(trace)));
        let sigma = Duration::from_millis(2148);
        let packets = QueueLimit::Packets(1000);
        for (field, settings) in [
            (
                "trace",
                DirectionSettings {
                    bandwidth,
                    ..nothing()
                },
            ),
            (
                "outages",
                DirectionSettings {
                    outages,
                    ..nothing()
                },
            ),
            ("queue", queue(packets, codel)),
            (
                "limit_bytes",
                queue(QueueLimit::Bytes(1 << 20), Discipline::DropTail),
            ),
            (
                "limit_packets",
                queue(QueueLimit::Packets(1 << 32), Discipline::DropTail),
            ),
            (
                "jitter_ms",
                DirectionSettings {
                    jitter: Jitter::Normal { sigma },
                    ..nothing()
                },
            ),
            ("jitter_distribution", table(0)),
            ("jitter_distribution", table(MAX_TABLE + 1)),
            ("overhead_bytes", framing(-21, 5)),
            ("cell_overhead_bytes", framing(8, -49)),
        ] {
            match options(&settings, SEED) {
                Err(Fault::Unsupported(message)) => assert!(
                    message.starts_with(&format!("{field}: ")) && message.contains("\"userspace\""),
                    "{message}"
                ),
                other => panic!("{field}: {other:?}"),
            }
        }
        assert!(options(&table(MAX_TABLE), SEED).is_ok());
        assert!(options(&framing(-20, -48), SEED).is_ok());
    }

    #[test]
    fn the_seed_is_found_again() {
        assert!(is_seeded(&encode(&nothing())) && !is_seeded(&NOTHING) && !is_seeded(&[]));
    }

    #[test]
    fn fractions_never_add_up_to_more_than_the_whole() {
        assert_eq!((fraction(0.0), fraction(1.0)), (0, u32::MAX));
        assert_eq!((fraction(-1.0), fraction(f64::NAN)), (0, 0));
        assert!(fraction(0.5).checked_add(fraction(0.5)).is_some());
    }

    /// A namespace to put netem in and the index of its loopback device, or why there is none.
    fn somewhere() -> Result<(Namespace, u32), String> {
        if !namespace::is_privileged() {
            return Err("not root".to_owned());
        }
        let namespace = Namespace::create().map_err(|fault| fault.message().to_owned())?;
        let loopback = namespace
            .run(|| if_nametoindex("lo").map_err(Fault::failed("find the loopback device")))
            .map_err(|fault| fault.message().to_owned())?;
        Ok((namespace, loopback))
    }

    #[test]
    fn a_kernel_without_netem_is_told_apart() {
        let (namespace, loopback) = match somewhere() {
            Ok(found) => found,
            Err(reason) => return println!("skipped: {reason}"),
        };
        match namespace.run(|| install(loopback, &encode(&nothing()))) {
            Ok(()) => println!("skipped: this kernel has netem"),
            Err(fault) => assert!(
                matches!(&fault, Fault::Environment(message)
                    if message.starts_with("this kernel has no sch_netem: ")),
                "{fault:?}"
            ),
        }
    }

    #[test]
    fn netem_states_what_it_was_told() {
        let (namespace, loopback) = match somewhere() {
            Ok(found) => found,
            Err(reason) => return println!("skipped: {reason}"),
        };
        let everything = DirectionSettings {
            delay: Duration::from_micros(30_001),
            jitter: Jitter::Table {
                sigma: Duration::from_micros(2_001),
                table: Arc::from([-8192, 0, 8191]),
            },
            loss: LossModel::GilbertElliott {
                p: 0.01,
                r: 0.25,
                h: 0.1,
                k: 0.9,
            },
            duplicate: 0.1,
            corrupt: 0.2,
            reorder: Reorder {
                probability: 0.5,
                gap: 3,
            },
            ..rate(
                100_000_000,
                Framing {
                    overhead_bytes: 8,
                    cell_bytes: 48,
                    cell_overhead_bytes: 5,
                },
            )
        };
        let wide = DirectionSettings {
            loss: LossModel::FourState {
                p13: 0.01,
                p31: 0.25,
                p32: 0.5,
                p23: 0.3,
                p14: 0.02,
            },
            ..rate(100_000_000_000, Framing::default())
        };
        let independent = DirectionSettings {
            loss: LossModel::Independent { probability: 0.05 },
            ..nothing()
        };
        // One that duplicates packets may neither follow nor precede another without an in between.
        for settings in [everything.clone(), wide, independent, everything, nothing()] {
            let told = encode(&settings);
            let stated = namespace.run(|| {
                install(loopback, &told)?;
                state(loopback)
            });
            let stated = match stated {
                Ok(state) => state.options,
                Err(Fault::Environment(reason)) => return println!("skipped: {reason}"),
                Err(fault) => panic!("{fault:?}"),
            };
            assert_eq!(stated[..FIXED_BYTES], told[..FIXED_BYTES]);
            let rest = &stated[FIXED_BYTES..];
            for (kind, payload) in netlink::attributes(&told[FIXED_BYTES..]) {
                let found = netlink::attributes(rest).find(|(found, _)| *found == kind);
                match kind {
                    // It never states its table, and its seed only where it knows of one.
                    TCA_NETEM_DELAY_DIST => {}
                    TCA_NETEM_PRNG_SEED if found.is_none() => println!("no seed in this kernel"),
                    _ => assert_eq!(found, Some((kind, payload)), "attribute {kind}"),
                }
            }
        }
    }
}
