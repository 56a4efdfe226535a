use std::sync::Arc;

use proptest::prelude::*;

use super::super::{
    BandwidthTrace, Framing, Jitter, LossModel, Opportunities, Outage, OutageMode, Outages,
    QueueSettings, Reorder, Step, Steps,
};
use super::*;

const MS: Duration = Duration::from_millis(1);
const ZERO: Duration = Duration::ZERO;

fn packet(index: usize, len: usize) -> Packet {
    let mut packet = Packet::with_capacity(len.max(8));
    packet.buffer_mut()[..8].copy_from_slice(&(index as u64).to_le_bytes());
    packet.set_len(len.max(8));
    packet
}

fn index(packet: &Packet) -> u64 {
    u64::from_le_bytes(packet.bytes()[..8].try_into().expect("eight bytes"))
}

/// A direction with a rate, a delay and uniform jitter, whose queue is never full.
fn settings(rate: Option<u64>, delay: Duration, jitter: Duration) -> DirectionSettings {
    DirectionSettings {
        bandwidth: rate.map_or(Bandwidth::Unlimited, |bits_per_second| Bandwidth::Fixed {
            bits_per_second,
        }),
        delay,
        jitter: Jitter::Uniform { half_width: jitter },
        queue: QueueSettings {
            limit: QueueLimit::Packets(usize::MAX),
            ..QueueSettings::default()
        },
        ..DirectionSettings::default()
    }
}

fn direction(settings: &DirectionSettings) -> Direction {
    Direction::new("uplink", settings, 7)
}

fn departure(verdict: Verdict) -> Duration {
    match verdict.packet {
        Fate::Queued {
            departure: Some(departure),
        } => departure,
        other => panic!("{other:?}"),
    }
}

fn is_queued(verdict: Verdict) -> bool {
    matches!(verdict.packet, Fate::Queued { .. })
}

/// Everything still on the link: when each packet leaves, and which it is.
fn drain(link: &mut Direction) -> Vec<(Duration, u64)> {
    let mut out = Vec::new();
    while let Some(due) = link.next_deadline() {
        while let Some(left) = link.pop(due) {
            assert_eq!(left.departure, due);
            out.push((left.departure, index(&left.packet)));
        }
    }
    assert!(link.is_empty() && link.bytes() == 0);
    out
}

fn assert_accounts(link: &Direction) {
    let c = link.counters();
    let dropped =
        c.dropped_loss + c.dropped_queue + c.dropped_codel + c.dropped_outage + c.dropped_flush;
    assert_eq!(
        c.packets + c.duplicated,
        c.delivered_packets + dropped + link.len() as u64
    );
}

#[test]
fn a_burst_is_spread_at_the_rate_after_one_delay() {
    let mut link = direction(&settings(Some(20_000_000), 30 * MS, ZERO));
    let now = 1000 * MS;
    for burst in 1..=3 {
        let due = departure(link.push(now, packet(0, 1500)));
        assert_eq!(due, now + Duration::from_micros(30_000 + 600 * burst));
    }
}

#[test]
fn the_limit_counts_packets_in_propagation() {
    let mut limited = settings(None, 10 * MS, ZERO);
    limited.queue.limit = QueueLimit::Packets(3);
    let mut link = direction(&limited);
    for _ in 0..3 {
        assert!(is_queued(link.push(ZERO, packet(0, 100))));
    }
    let almost = 10 * MS - Duration::from_nanos(1);
    let full = link.push(almost, packet(0, 100));
    assert_eq!(full.packet, Fate::Dropped(DropReason::Queue));
    assert!(link.pop(almost).is_none());
    assert!(link.pop(10 * MS).is_some());
    assert!(is_queued(link.push(10 * MS, packet(0, 100))));
    let counters = link.counters();
    assert_eq!(
        (counters.packets, counters.bytes, counters.dropped_queue),
        (5, 500, 1)
    );
    assert_eq!(
        (counters.delivered_packets, counters.delivered_bytes),
        (1, 100)
    );
    assert_accounts(&link);
}

#[test]
fn a_limit_in_bytes_admits_what_fits() {
    let mut limited = settings(Some(8_000_000), 10 * MS, ZERO);
    limited.queue.limit = QueueLimit::Bytes(3000);
    let mut link = direction(&limited);
    assert!(is_queued(link.push(ZERO, packet(0, 1500))));
    assert!(is_queued(link.push(ZERO, packet(1, 1000))));
    assert!(!is_queued(link.push(ZERO, packet(2, 501))));
    assert!(is_queued(link.push(ZERO, packet(3, 500))));
    assert!(!is_queued(link.push(ZERO, packet(4, 8))));
    // The first leaves after 10 ms and 1500 µs, and its bytes are free.
    let first = 11 * MS + MS / 2;
    assert!(link.pop(first).is_some());
    assert!(!is_queued(link.push(first, packet(5, 1501))));
    assert!(is_queued(link.push(first, packet(6, 1500))));
    let order: Vec<u64> = drain(&mut link).iter().map(|(_, index)| *index).collect();
    assert_eq!(order, [1, 3, 6]);
}

#[test]
fn reconfigure_keeps_counters_and_flush_is_counted() {
    let mut link = direction(&settings(Some(1_000_000), 10 * MS, ZERO));
    link.push(ZERO, packet(0, 1000));
    assert_eq!(link.flush(), 1);
    link.reconfigure(500 * MS, &settings(None, 5 * MS, ZERO), 1);
    let due = departure(link.push(1000 * MS, packet(1, 1000)));
    assert_eq!(due, 1005 * MS);
    let counters = link.counters();
    assert_eq!((counters.packets, counters.dropped_flush), (2, 1));
    assert_accounts(&link);
}

#[test]
fn a_rate_after_a_change_waits_for_what_is_still_on_the_link() {
    let mut link = direction(&settings(Some(8_000_000), 10 * MS, ZERO));
    assert_eq!(departure(link.push(ZERO, packet(0, 1000))), 11 * MS);
    link.reconfigure(MS, &settings(Some(8_000_000), ZERO, ZERO), 1);
    assert_eq!(departure(link.push(MS, packet(1, 1000))), 12 * MS);
    let order: Vec<u64> = drain(&mut link).iter().map(|(_, index)| *index).collect();
    assert_eq!(order, [0, 1]);
}

#[test]
fn jitter_reorders_without_a_rate_and_never_with_one() {
    for (rate, reorders) in [(None, true), (Some(1_000_000_000), false)] {
        let mut link = direction(&settings(rate, 10 * MS, 5 * MS));
        for i in 0..1000 {
            link.push(MS / 10 * i as u32, packet(i, 200));
        }
        let order: Vec<u64> = drain(&mut link).iter().map(|(_, index)| *index).collect();
        assert_eq!(order.len(), 1000);
        assert_eq!(!order.is_sorted(), reorders);
    }
}

#[test]
fn a_reordered_packet_leaves_at_once_and_first() {
    let reordering = DirectionSettings {
        reorder: Reorder {
            probability: 1.0,
            gap: 3,
        },
        ..settings(Some(8_000_000), 2 * MS, ZERO)
    };
    let mut link = direction(&reordering);
    assert_eq!(departure(link.push(ZERO, packet(0, 1000))), 3 * MS);
    assert_eq!(departure(link.push(ZERO, packet(1, 1000))), 4 * MS);
    // Due when packet 0 is, but ahead of it, and it takes no turn of the rate.
    assert_eq!(departure(link.push(3 * MS, packet(2, 1000))), 3 * MS);
    assert_eq!(departure(link.push(3 * MS, packet(3, 1000))), 6 * MS);
    let order: Vec<u64> = drain(&mut link).iter().map(|(_, index)| *index).collect();
    assert_eq!(order, [2, 0, 1, 3]);
    assert_eq!(link.counters().reordered, 1);
}

#[test]
fn reordering_has_its_probability() {
    let reordering = DirectionSettings {
        reorder: Reorder {
            probability: 0.25,
            gap: 1,
        },
        ..settings(None, 10 * MS, ZERO)
    };
    let mut link = direction(&reordering);
    let n = 100_000.0;
    for i in 0..n as usize {
        let verdict = link.push(MS * i as u32, packet(i, 100));
        let reordered = departure(verdict) == MS * i as u32;
        assert!(reordered || departure(verdict) == MS * (i as u32 + 10));
        while link.pop(MS * i as u32).is_some() {}
    }
    let reordered = link.counters().reordered as f64;
    assert!((reordered - n * 0.25).abs() < 2.576 * (n * 0.25 * 0.75).sqrt());
}

#[test]
fn a_duplicate_is_a_packet_of_its_own_behind_the_first() {
    let duplicating = DirectionSettings {
        duplicate: 1.0,
        ..settings(Some(8_000_000), 2 * MS, ZERO)
    };
    let mut link = direction(&duplicating);
    let verdict = link.push(ZERO, packet(5, 1000));
    assert_eq!(departure(verdict), 3 * MS);
    let copy = Fate::Queued {
        departure: Some(4 * MS),
    };
    assert_eq!(verdict.copy, Some(copy));
    assert_eq!((link.len(), link.bytes()), (2, 2000));
    assert_eq!(drain(&mut link), [(3 * MS, 5), (4 * MS, 5)]);
    let counters = link.counters();
    assert_eq!((counters.packets, counters.bytes), (1, 1000));
    assert_eq!((counters.duplicated, counters.delivered_packets), (1, 2));
    // One place in the queue is not enough for both.
    let mut limited = duplicating;
    limited.queue.limit = QueueLimit::Packets(1);
    let mut link = direction(&limited);
    let verdict = link.push(ZERO, packet(5, 1000));
    assert!(is_queued(verdict));
    assert_eq!(verdict.copy, Some(Fate::Dropped(DropReason::Queue)));
    assert_accounts(&link);
}

#[test]
fn a_packet_drawn_for_loss_and_duplication_is_one() {
    let both = DirectionSettings {
        duplicate: 1.0,
        loss: LossModel::Independent { probability: 1.0 },
        ..settings(None, MS, ZERO)
    };
    let mut link = direction(&both);
    let verdict = link.push(ZERO, packet(0, 100));
    assert!(is_queued(verdict) && verdict.copy.is_none());
    let counters = link.counters();
    assert_eq!((counters.duplicated, counters.dropped_loss), (0, 0));
    // In the long run: of each packet, d·l + (1 − d)(1 − l) come once, and of d(1 − l) one and,
    // unless the copy is lost, another.
    let (d, l, n) = (0.3, 0.2, 100_000.0);
    let mut link = direction(&DirectionSettings {
        duplicate: d,
        loss: LossModel::Independent { probability: l },
        ..settings(None, MS, ZERO)
    });
    for i in 0..n as usize {
        link.push(MS * i as u32, packet(i, 100));
        while link.pop(MS * i as u32).is_some() {}
    }
    drain(&mut link);
    let counters = link.counters();
    let expected = n * (d * l + (1.0 - d) * (1.0 - l) + d * (1.0 - l) * (2.0 - l));
    let delivered = counters.delivered_packets as f64;
    // The variance of a packet's number is below 1/2.
    assert!(
        (delivered - expected).abs() < 2.576 * (n / 2.0).sqrt(),
        "{delivered} instead of {expected}"
    );
    let duplicated = counters.duplicated as f64;
    let share = d * (1.0 - l);
    assert!((duplicated - n * share).abs() < 2.576 * (n * share * (1.0 - share)).sqrt());
    assert_accounts(&link);
}

#[test]
fn a_copy_is_made_before_corruption() {
    let corrupting = DirectionSettings {
        duplicate: 1.0,
        corrupt: 0.5,
        ..settings(None, MS, ZERO)
    };
    let mut link = direction(&corrupting);
    let mut kinds = [0; 4];
    for i in 0..1000 {
        let now = 10 * MS * i;
        link.push(now, Packet::from_bytes(&[0; 100]));
        let ones: Vec<u32> = std::iter::from_fn(|| link.pop(now + MS))
            .map(|left| {
                left.packet
                    .bytes()
                    .iter()
                    .map(|byte| byte.count_ones())
                    .sum()
            })
            .collect();
        assert!(ones.len() == 2 && ones.iter().all(|&ones| ones <= 1));
        kinds[(ones[0] * 2 + ones[1]) as usize] += 1;
    }
    // Each of the two is corrupted by itself.
    assert!(kinds.iter().all(|&n| (200..300).contains(&n)), "{kinds:?}");
    assert_eq!(
        link.counters().corrupted,
        kinds[1] + kinds[2] + 2 * kinds[3]
    );
}

fn with_outage(mode: OutageMode, rate: Option<u64>) -> DirectionSettings {
    DirectionSettings {
        outages: Outages {
            cuts: Arc::new([Outage {
                start: 10 * MS,
                duration: 5 * MS,
                every: Some(100 * MS),
            }]),
            mode,
        },
        ..settings(rate, 3 * MS, ZERO)
    }
}

#[test]
fn a_cut_that_drops_loses_what_comes_and_lets_out_what_is_on_the_link() {
    let mut link = direction(&settings(None, ZERO, ZERO));
    link.reconfigure(1000 * MS, &with_outage(OutageMode::Drop, None), 1);
    for (time, lost) in [
        (1009, false),
        (1010, true),
        (1014, true),
        (1015, false),
        (1112, true),
    ] {
        let verdict = link.push(time * MS, packet(time as usize, 100));
        let expected = if lost {
            Fate::Dropped(DropReason::Outage)
        } else {
            Fate::Queued {
                departure: Some((time + 3) * MS),
            }
        };
        assert_eq!(verdict.packet, expected, "{time}");
    }
    assert_eq!(link.counters().dropped_outage, 3);
    assert_eq!(drain(&mut link), [(1012 * MS, 1009), (1018 * MS, 1015)]);
    assert_accounts(&link);
}

#[test]
fn a_cut_that_holds_puts_off_departures_and_loses_nothing() {
    let mut link = direction(&with_outage(OutageMode::Hold, None));
    for time in 5..15 {
        link.push(time * MS, packet(time as usize, 100));
    }
    let out = drain(&mut link);
    let times: Vec<u128> = out.iter().map(|(due, _)| due.as_millis()).collect();
    assert_eq!(times, [8, 9, 15, 15, 15, 15, 15, 15, 16, 17]);
    assert!(out.iter().map(|(_, index)| *index).is_sorted());
    // With a rate what was held leaves at the rate, and what overtakes is held too.
    let reordering = DirectionSettings {
        reorder: Reorder {
            probability: 1.0,
            gap: 4,
        },
        ..with_outage(OutageMode::Hold, Some(8_000_000))
    };
    let mut link = direction(&reordering);
    for i in 0..4 {
        link.push(8 * MS, packet(i, 1000));
    }
    link.push(11 * MS, packet(4, 1000));
    let verdict = link.push(11 * MS, packet(5, 1000));
    assert_eq!(departure(verdict), 20 * MS);
    let out = drain(&mut link);
    assert_eq!(
        out,
        [
            (8 * MS, 3),
            (16 * MS, 0),
            (17 * MS, 1),
            (18 * MS, 2),
            (19 * MS, 4),
            (20 * MS, 5)
        ]
    );
}

fn opportunities(times_ms: Vec<u32>) -> Bandwidth {
    let trace = Opportunities::new(times_ms).expect("valid");
    Bandwidth::Trace(Arc::new(BandwidthTrace::Opportunities(trace)))
}

#[test]
fn a_trace_starts_when_it_is_applied() {
    let mut link = direction(&settings(None, ZERO, ZERO));
    let traced = DirectionSettings {
        bandwidth: opportunities(vec![4, 10]),
        ..settings(None, MS, ZERO)
    };
    link.reconfigure(1000 * MS, &traced, 1);
    // Ready at 1001; half an opportunity, then the rest of it and the next, and the next lap.
    for (len, millis) in [(700, 1004), (1000, 1010), (1308, 1010), (100, 1014)] {
        assert_eq!(departure(link.push(1000 * MS, packet(0, len))), millis * MS);
    }
}

#[test]
fn a_trace_adds_its_delay_and_its_loss() {
    let step = |start, delay, loss| Step {
        start: start * MS,
        bits_per_second: 8_000_000_000,
        delay: delay * MS,
        loss,
    };
    let steps = vec![step(0, 5, 0.0), step(100, 20, 1.0), step(200, 0, 0.25)];
    let trace = Steps::new(steps, 300 * MS).expect("valid");
    let traced = DirectionSettings {
        bandwidth: Bandwidth::Trace(Arc::new(BandwidthTrace::Steps(trace))),
        ..settings(None, 10 * MS, ZERO)
    };
    let mut link = direction(&traced);
    let tx = Duration::from_micros(1);
    assert_eq!(departure(link.push(ZERO, packet(0, 1000))), 15 * MS + tx);
    let lost = link.push(150 * MS, packet(0, 1000)).packet;
    assert_eq!(lost, Fate::Dropped(DropReason::Loss));
    let mut through = 0;
    for lap in 0..1000 {
        let now = (250 + 300 * lap) * MS;
        let verdict = link.push(now, packet(0, 1000));
        if is_queued(verdict) {
            assert_eq!(departure(verdict), now + 10 * MS + tx);
            through += 1;
        }
        while link.pop(now).is_some() {}
    }
    assert!((715..=785).contains(&through), "{through}");
}

/// What a sender that offers `offered` of `rate` makes of a link: the mean wait for the rate in
/// the second half of the time, and the link. Sent are 1000-byte packets for `seconds`.
fn load(discipline: Discipline, offered: f64, seconds: u32) -> (Duration, Direction) {
    let rate = 8_000_000;
    let propagation = 20 * MS;
    let mut loaded = settings(Some(rate), propagation, ZERO);
    loaded.queue = QueueSettings {
        limit: QueueLimit::Packets(500),
        discipline,
    };
    let mut link = direction(&loaded);
    let gap = MS.div_f64(offered);
    let packets = (f64::from(seconds) * 1e3 * offered) as u32;
    let (mut waits, mut counted) = (ZERO, 0);
    for i in 0..packets {
        let now = gap * i;
        while let Some(due) = link.next_deadline().filter(|due| *due <= now) {
            while let Some(left) = link.pop(due) {
                let pushed = gap * index(&left.packet) as u32;
                if now > Duration::from_secs(u64::from(seconds)) / 2 {
                    // What is neither propagation nor the packet's own transmission.
                    waits += left.departure - pushed - propagation - MS;
                    counted += 1;
                }
            }
        }
        link.push(now, packet(i as usize, 1000));
    }
    (waits / counted.max(1), link)
}

const CODEL: Discipline = Discipline::CoDel {
    target: Duration::from_millis(5),
    interval: Duration::from_millis(100),
};

#[test]
fn codel_holds_the_wait_near_its_target_under_overload() {
    // 2% too much: drop-tail fills its queue of 480 packets beyond propagation, CoDel drops what
    // is too much.
    let (wait, link) = load(Discipline::DropTail, 1.02, 120);
    assert!(wait > 400 * MS, "{wait:?}");
    assert!(link.counters().dropped_queue > 0);
    let (wait, link) = load(CODEL, 1.02, 120);
    assert!((MS..15 * MS).contains(&wait), "{wait:?}");
    let counters = link.counters();
    assert_eq!(counters.dropped_queue, 0);
    let share = counters.dropped_codel as f64 / counters.packets as f64;
    assert!((share - 0.02 / 1.02).abs() < 0.004, "{share}");
    assert_accounts(&link);
}

#[test]
fn codel_does_nothing_below_its_target() {
    for discipline in [Discipline::DropTail, CODEL] {
        let (wait, link) = load(discipline, 0.98, 60);
        assert_eq!(wait, ZERO);
        let counters = link.counters();
        assert_eq!((counters.dropped_codel, counters.dropped_queue), (0, 0));
    }
}

#[test]
fn codel_without_drops_keeps_the_formula() {
    let plain = settings(Some(8_000_000), 20 * MS, 10 * MS);
    let mut under_codel = plain.clone();
    under_codel.queue.discipline = Discipline::CoDel {
        target: Duration::from_secs(1),
        interval: Duration::from_secs(10),
    };
    let (mut plain, mut under_codel) = (direction(&plain), direction(&under_codel));
    let mut expected = Vec::new();
    let mut seen = Vec::new();
    for i in 0..300 {
        let now = MS * 9 / 10 * i;
        expected.push((
            departure(plain.push(now, packet(i as usize, 1000))),
            u64::from(i),
        ));
        let verdict = under_codel.push(now, packet(i as usize, 1000));
        assert_eq!(verdict.packet, Fate::Queued { departure: None });
        while let Some(left) = under_codel.pop(now) {
            seen.push((left.departure, index(&left.packet)));
        }
    }
    seen.extend(drain(&mut under_codel));
    assert_eq!(seen, expected);
    // Without a rate there is nothing to wait for, and CoDel stands aside.
    let mut unlimited = settings(None, 20 * MS, ZERO);
    unlimited.queue.discipline = CODEL;
    let verdict = direction(&unlimited).push(ZERO, packet(0, 100));
    assert_eq!(departure(verdict), 20 * MS);
}

#[test]
fn what_codel_has_not_decided_about_survives_a_change_and_not_a_flush() {
    let mut under_codel = settings(Some(8_000_000), 5 * MS, ZERO);
    under_codel.queue.discipline = CODEL;
    let mut link = direction(&under_codel);
    for i in 0..3 {
        link.push(ZERO, packet(i, 1000));
    }
    link.reconfigure(MS, &settings(None, ZERO, ZERO), 1);
    assert_eq!(drain(&mut link), [(6 * MS, 0), (7 * MS, 1), (8 * MS, 2)]);
    let mut link = direction(&under_codel);
    for i in 0..3 {
        link.push(ZERO, packet(i, 1000));
    }
    assert_eq!((link.flush(), link.len(), link.bytes()), (3, 0, 0));
    assert_accounts(&link);
}

/// The draws of every impairment, told by what it does to numbered packets.
struct Trail {
    lost: Vec<bool>,
    copied: Vec<bool>,
    delays: Vec<Option<Duration>>,
    copy_delays: Vec<Option<Duration>>,
    flips: Vec<Option<Vec<u8>>>,
    reordered: Vec<Option<bool>>,
}

/// Sends packets far enough apart that none meets another.
fn trail(settings: &DirectionSettings, seed: u64) -> Trail {
    let mut link = Direction::new("downlink", settings, seed);
    let mut trail = Trail {
        lost: Vec::new(),
        copied: Vec::new(),
        delays: Vec::new(),
        copy_delays: Vec::new(),
        flips: Vec::new(),
        reordered: Vec::new(),
    };
    for i in 0..400 {
        let now = Duration::from_secs(i);
        let before = link.counters();
        let verdict = link.push(now, Packet::from_bytes(&[0; 64]));
        let after = link.counters();
        let delay = |fate: Fate| match fate {
            Fate::Queued { departure } => departure.map(|departure| departure - now),
            Fate::Dropped(_) => None,
        };
        // A reordered packet shows no delay.
        let shown = |fate| delay(fate).filter(|delay| !delay.is_zero());
        trail.lost.push(delay(verdict.packet).is_none());
        trail.copied.push(verdict.copy.is_some());
        trail.delays.push(shown(verdict.packet));
        trail.copy_delays.push(verdict.copy.and_then(shown));
        let alone = verdict.copy.is_none() && delay(verdict.packet).is_some();
        trail
            .reordered
            .push(alone.then_some(after.reordered > before.reordered));
        let first = link.pop(now + Duration::from_millis(999));
        trail.flips.push(
            first
                .filter(|_| alone)
                .map(|left| left.packet.bytes().to_vec()),
        );
        while link.pop(now + Duration::from_millis(999)).is_some() {}
    }
    trail
}

/// Whether two lists agree wherever both know.
fn agree<T: PartialEq>(a: &[Option<T>], b: &[Option<T>]) -> bool {
    let mut known = 0;
    let agree = a.iter().zip(b).all(|pair| match pair {
        (Some(a), Some(b)) => {
            known += 1;
            a == b
        }
        _ => true,
    });
    agree && known > 20
}

#[test]
fn switching_one_impairment_on_shifts_no_other() {
    let base = DirectionSettings {
        loss: LossModel::GilbertElliott {
            p: 0.1,
            r: 0.3,
            h: 0.2,
            k: 0.9,
        },
        corrupt: 0.3,
        reorder: Reorder {
            probability: 0.2,
            gap: 1,
        },
        ..settings(None, 100 * MS, 50 * MS)
    };
    let duplicating = DirectionSettings {
        duplicate: 0.4,
        ..base.clone()
    };
    let normal = DirectionSettings {
        jitter: Jitter::Normal { sigma: 10 * MS },
        ..duplicating.clone()
    };
    for seed in 0..4 {
        let expected = trail(&base, seed);
        let with_copies = trail(&duplicating, seed);
        // Duplication: every loss where no copy was drawn, and all else where it shows.
        for (index, &lost) in with_copies.lost.iter().enumerate() {
            assert!(!lost || expected.lost[index]);
        }
        assert!(agree(&expected.delays, &with_copies.delays));
        assert!(agree(&expected.flips, &with_copies.flips));
        assert!(agree(&expected.reordered, &with_copies.reordered));

        let without = [
            DirectionSettings {
                loss: LossModel::None,
                ..duplicating.clone()
            },
            DirectionSettings {
                corrupt: 0.0,
                ..duplicating.clone()
            },
            DirectionSettings {
                reorder: Reorder::default(),
                ..duplicating.clone()
            },
        ];
        for (off, settings) in without.iter().enumerate() {
            let changed = trail(settings, seed);
            assert!(agree(&with_copies.delays, &changed.delays));
            assert!(agree(&with_copies.copy_delays, &changed.copy_delays));
            if off != 0 {
                assert_eq!(with_copies.lost, changed.lost);
                assert_eq!(with_copies.copied, changed.copied);
            }
            if off != 1 {
                assert!(agree(&with_copies.flips, &changed.flips));
            }
            if off != 2 {
                assert!(agree(&with_copies.reordered, &changed.reordered));
            }
        }
        // Another distribution of the delay changes delays only.
        let changed = trail(&normal, seed);
        assert_eq!(with_copies.lost, changed.lost);
        assert_eq!(with_copies.copied, changed.copied);
        assert!(agree(&with_copies.flips, &changed.flips));
        assert!(!agree(&with_copies.delays, &changed.delays));
        // And another seed changes all.
        let other = trail(&duplicating, seed + 100);
        assert_ne!(with_copies.lost, other.lost);
        assert_ne!(with_copies.copied, other.copied);
        assert!(!agree(&with_copies.delays, &other.delays));
        assert!(!agree(&with_copies.flips, &other.flips));
        assert!(!agree(&with_copies.reordered, &other.reordered));
    }
}

#[test]
fn a_copy_has_draws_of_its_own() {
    let duplicating = DirectionSettings {
        duplicate: 1.0,
        ..settings(None, 20 * MS, 10 * MS)
    };
    let mut link = direction(&duplicating);
    let mut delays = Vec::new();
    for i in 0..100 {
        let verdict = link.push(MS * i, packet(0, 100));
        let Some(Fate::Queued {
            departure: Some(copy),
        }) = verdict.copy
        else {
            panic!("every packet has a copy")
        };
        delays.push((departure(verdict), copy));
    }
    assert!(delays.iter().all(|(original, copy)| original != copy));
}

#[test]
fn a_traces_loss_and_the_loss_model_draw_apart() {
    let step = Step {
        start: ZERO,
        bits_per_second: 8_000_000_000,
        delay: ZERO,
        loss: 0.3,
    };
    let trace = BandwidthTrace::Steps(Steps::new(vec![step], MS).expect("valid"));
    let lost = |traced: bool, loss: LossModel| -> Vec<bool> {
        let mut settings = settings(Some(8_000_000_000), ZERO, ZERO);
        settings.loss = loss;
        if traced {
            settings.bandwidth = Bandwidth::Trace(Arc::new(trace.clone()));
        }
        let mut link = direction(&settings);
        (0..1000)
            .map(|i| !is_queued(link.push(MS * i, packet(0, 100))))
            .collect()
    };
    let model = LossModel::Independent { probability: 0.2 };
    let by_trace = lost(true, LossModel::None);
    let by_model = lost(false, model);
    for (index, lost) in lost(true, model).into_iter().enumerate() {
        assert_eq!(lost, by_trace[index] || by_model[index]);
    }
    assert_ne!(by_trace, by_model);
}

proptest! {
    #[test]
    fn departures_follow_the_formula(
        rate in prop_oneof![Just(None), (1_000_000_u64..2_000_000_000).prop_map(Some)],
        delay_us in 0_u64..50_000,
        overhead_bytes in -14_i32..40,
        (cell_bytes, cell_overhead_bytes) in prop_oneof![
            Just((0, 0)), (1_u32..200, -1_i32..20),
        ],
        packets in prop::collection::vec((0_u64..2_000, 28_usize..1500), 1..200),
    ) {
        let framing = Framing { overhead_bytes, cell_bytes, cell_overhead_bytes };
        let delay = Duration::from_micros(delay_us);
        let mut link = direction(&DirectionSettings { framing, ..settings(rate, delay, ZERO) });
        let (mut now, mut last) = (0_u128, 0_u128);
        let mut expected = Vec::new();
        for (i, (gap_us, len)) in packets.iter().enumerate() {
            now += u128::from(*gap_us) * 1000;
            let due = match rate {
                None => now + delay.as_nanos(),
                Some(rate) => {
                    let mut bytes = (*len as i64 + i64::from(overhead_bytes)).max(0);
                    if cell_bytes > 0 {
                        let mut cells = 0;
                        while cells * i64::from(cell_bytes) < bytes {
                            cells += 1;
                        }
                        bytes = cells * (i64::from(cell_bytes) + i64::from(cell_overhead_bytes));
                    }
                    let scaled = u128::from(bytes.max(0).unsigned_abs()) * 8_000_000_000;
                    let rate = u128::from(rate);
                    // Rounded to the nearest nanosecond.
                    let tx = scaled / rate + u128::from(scaled % rate * 2 >= rate);
                    (now + delay.as_nanos()).max(last) + tx
                }
            };
            last = due;
            let due = Duration::from_nanos(due as u64);
            let verdict = link.push(Duration::from_nanos(now as u64), packet(i, *len));
            prop_assert_eq!(departure(verdict), due);
            expected.push(due);
        }
        // Nothing leaves before its time, everything leaves at it, ties in order.
        for (i, due) in expected.iter().enumerate() {
            prop_assert_eq!(link.next_deadline(), Some(*due));
            if *due > ZERO {
                prop_assert!(link.pop(*due - Duration::from_nanos(1)).is_none());
            }
            let popped = link.pop(*due).expect("due now");
            prop_assert_eq!(index(&popped.packet), i as u64);
        }
        prop_assert!(link.is_empty());
    }

    #[test]
    fn the_same_seed_gives_the_same_packets(seed in any::<u64>(), loss in 0.01_f64..0.9) {
        let all = DirectionSettings {
            loss: LossModel::Independent { probability: loss },
            duplicate: 0.2,
            corrupt: 0.2,
            reorder: Reorder { probability: 0.1, gap: 2 },
            jitter: Jitter::Pareto { sigma: 5 * MS },
            ..settings(None, 20 * MS, ZERO)
        };
        let run = |seed| {
            let mut link = Direction::new("downlink", &all, seed);
            for i in 0..100 {
                link.push(MS * i, packet(i as usize, 100));
            }
            let mut out = Vec::new();
            while let Some(left) = link.pop(Duration::MAX) {
                out.push((left.departure, left.packet));
            }
            (out, link.counters())
        };
        let first = run(seed);
        prop_assert_eq!(&first, &run(seed));
        prop_assert_ne!(&first, &run(seed ^ 1));
    }

    #[test]
    fn no_packet_is_created_or_forgotten(
        limit in prop_oneof![
            (1_usize..40).prop_map(QueueLimit::Packets),
            (100_usize..40_000).prop_map(QueueLimit::Bytes),
        ],
        codel in any::<bool>(),
        rate in prop_oneof![Just(None), (1_000_000_u64..50_000_000).prop_map(Some)],
        hold in any::<bool>(),
        probabilities in (0.0_f64..0.5, 0.0_f64..0.5, 0.0_f64..0.5, 0.0_f64..0.5),
        gaps in prop::collection::vec(0_u64..3_000, 1..300),
    ) {
        let (loss, duplicate, corrupt, probability) = probabilities;
        let discipline = if codel {
            Discipline::CoDel { target: MS, interval: 10 * MS }
        } else {
            Discipline::DropTail
        };
        let mut link = direction(&DirectionSettings {
            loss: LossModel::Independent { probability: loss },
            duplicate,
            corrupt,
            reorder: Reorder { probability, gap: 1 },
            queue: QueueSettings { limit, discipline },
            outages: Outages {
                cuts: Arc::new([Outage { start: 20 * MS, duration: 7 * MS, every: Some(50 * MS) }]),
                mode: if hold { OutageMode::Hold } else { OutageMode::Drop },
            },
            ..settings(rate, 5 * MS, 2 * MS)
        });
        let mut now = ZERO;
        let mut left = 0;
        for (i, gap) in gaps.iter().enumerate() {
            now += Duration::from_micros(*gap);
            link.push(now, packet(i, 28 + i * 97 % 1400));
            let mut last = ZERO;
            while let Some(departure) = link.pop(now) {
                prop_assert!(departure.departure <= now && departure.departure >= last);
                last = departure.departure;
                left += departure.packet.len() as u64;
            }
            prop_assert!(link.next_deadline().is_none_or(|due| due > now));
            prop_assert_eq!(link.next_deadline().is_none(), link.is_empty());
            match limit {
                QueueLimit::Packets(limit) => prop_assert!(link.len() <= limit),
                QueueLimit::Bytes(limit) => prop_assert!(link.bytes() <= limit),
            }
            assert_accounts(&link);
        }
        drain(&mut link);
        prop_assert!(link.counters().delivered_bytes >= left);
        assert_accounts(&link);
    }
}
