//! Measurements simulated over one link and judged as if it were another, or the same.

use std::path::Path;

use super::predict::{NO_LAGS, Seed, draws, flood, lost, round_trips};
use super::*;
use crate::core::{DirectionSettings, Opportunities};
use crate::profile::{
    CutConfig, JitterDistribution, LinkProfile, LossConfig, OutagesConfig, ReorderConfig,
    TraceSource,
};

const MS: Duration = Duration::from_millis(1);

fn profile() -> LinkProfile {
    let mut profile = LinkProfile::unimpaired();
    for direction in [&mut profile.uplink, &mut profile.downlink] {
        direction.rate_mbit = Some(100.0);
        direction.delay_ms = 10.0;
    }
    profile
}

fn shipped() -> Vec<LinkProfile> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/links");
    let profiles = LinkProfile::load_dir(&dir).expect("the shipped profiles");
    profiles.into_values().collect()
}

fn rate(mbit: Option<f64>) -> MeasuredRate {
    MeasuredRate {
        mbit,
        method: RateMethod::Tcp,
        tcp_mbit: mbit,
        window_ms: None,
    }
}

/// When the tools would have sent what, some time after a link got its profile.
struct Plan {
    options: CalibrateOptions,
    echo: Schedule,
    numbered: [Schedule; 2],
    windows: [Window; 2],
    gaps: [Option<Duration>; 2],
}

impl Plan {
    fn new(predictor: &Predictor, phase: Duration, options: CalibrateOptions) -> Self {
        let patience = predictor.greatest_rtt() + 300 * MS;
        let schedule = |start: Duration, count: u32, gap: Duration| {
            let sent: Vec<Duration> = (0..count).map(|number| start + gap * number).collect();
            let until = sent.last().copied().unwrap_or_default() + patience;
            Schedule { sent, until }
        };
        let interval = Duration::from_micros(options.ping_interval_us);
        let echo = schedule(phase, options.pings, interval);
        let numbered = [Way::Uplink, Way::Downlink].map(|way| {
            let gap = Duration::from_secs_f64(1.0 / predictor.loss_pace(way));
            schedule(echo.until, options.loss_datagrams, gap)
        });
        let mut start = numbered[0].until.max(numbered[1].until);
        let window = Duration::from_millis(options.rate_window_ms);
        let windows = [(); 2].map(|()| {
            let from = start + predictor.greatest_rtt() + 200 * MS;
            let until = from + window;
            let window = Window { start, from, until };
            start = until + 500 * MS;
            window
        });
        let gaps = [Way::Uplink, Way::Downlink].map(|way| predictor.flood_mbit(way).map(flood_gap));
        Self {
            options,
            echo,
            numbered,
            windows,
            gaps,
        }
    }

    fn predict(&self, predictor: &Predictor) -> Predicted {
        let [rtt_p50_ms, rtt_p99_ms] = predictor.round_trips(&self.echo);
        Predicted {
            rtt_p50_ms,
            rtt_p99_ms,
            uplink_loss: predictor.loss(Way::Uplink, &self.numbered[0]),
            downlink_loss: predictor.loss(Way::Downlink, &self.numbered[1]),
            uplink_rate: predictor.rate(Way::Uplink, self.windows[0]),
            downlink_rate: predictor.rate(Way::Downlink, self.windows[1]),
        }
    }

    /// What the tools see of a link that got its profile `ahead` earlier than the plan says, on a
    /// machine that is `late` with each packet.
    fn measure(
        &self,
        settings: &[DirectionSettings; 2],
        ahead: Duration,
        late: Duration,
        seed: u64,
    ) -> Measured {
        let seed = Seed {
            seed,
            age: if seed.is_multiple_of(3) { 0 } else { 5_000 },
        };
        let moved = |schedule: &Schedule| Schedule {
            sent: schedule.sent.iter().map(|&sent| sent + ahead).collect(),
            until: schedule.until + ahead,
        };
        let trips = round_trips(settings, &moved(&self.echo), [late; 2], seed);
        let [uplink_lost, downlink_lost] = [(Way::Uplink, 0), (Way::Downlink, 1)]
            .map(|(way, at)| lost(&settings[at], way, &moved(&self.numbered[at]), late, seed));
        let [uplink_rate, downlink_rate] =
            [(Way::Uplink, 0), (Way::Downlink, 1)].map(|(way, at)| {
                let window = Window {
                    start: self.windows[at].start + ahead,
                    from: self.windows[at].from + ahead,
                    until: self.windows[at].until + ahead,
                };
                let gap = self.gaps[at];
                rate(gap.and_then(|gap| flood(&settings[at], way, window, gap, late, seed)))
            });
        Measured {
            rtts: trips.into_iter().map(|trip| trip + 2 * late).collect(),
            pings_sent: self.options.pings,
            uplink_lost,
            downlink_lost,
            loss_datagrams: self.options.loss_datagrams,
            uplink_rate,
            downlink_rate,
        }
    }
}

fn degraded(calibration: &Calibration) -> Vec<&'static str> {
    let figures = calibration.figures();
    let degraded: Vec<&str> = figures
        .iter()
        .filter(|(_, figure)| figure.verdict == Verdict::Degraded)
        .map(|(name, _)| *name)
        .collect();
    assert_eq!(
        calibration.verdict == Verdict::Degraded,
        !degraded.is_empty()
    );
    degraded
}

const PHASE: Duration = Duration::from_millis(2_345);
const LATE: Duration = Duration::from_micros(60);

/// Judges what is measured of `real` as if it were `claimed`.
fn verdicts_of(
    claimed: &LinkProfile,
    real: &LinkProfile,
    ahead: Duration,
    options: CalibrateOptions,
) -> Vec<&'static str> {
    let predictor = Predictor::new(claimed, true, options.tolerances.loss_z);
    let plan = Plan::new(&predictor, PHASE, options);
    let measured = plan.measure(&real.settings().into(), ahead, LATE, 77);
    let predicted = plan.predict(&predictor);
    degraded(&judge("test", measured, &predicted, options.tolerances))
}

fn verdicts(claimed: &LinkProfile, real: &LinkProfile) -> Vec<&'static str> {
    verdicts_of(claimed, real, Duration::ZERO, CalibrateOptions::default())
}

fn strict() -> CalibrateOptions {
    CalibrateOptions {
        loss_datagrams: 20_000,
        rate_window_ms: 3_000,
        tolerances: Tolerances {
            rate_fraction: 0.01,
            ..Tolerances::default()
        },
        ..CalibrateOptions::default()
    }
}

/// How many percent of measurements are judged to be what they are.
fn sound(profile: &LinkProfile, options: CalibrateOptions) -> (usize, String) {
    let predictor = Predictor::new(profile, true, options.tolerances.loss_z);
    let plan = Plan::new(&predictor, PHASE, options);
    let predicted = plan.predict(&predictor);
    let settings: [DirectionSettings; 2] = profile.settings().into();
    // Without any chance only the machine can make a difference.
    let seeds = if settings.iter().any(draws) { 100 } else { 10 };
    let mut missed = Vec::new();
    for seed in 0..seeds {
        // From a machine that is idle to one that is not.
        let late = Duration::from_micros(20 + 10 * (seed % 10));
        let measured = plan.measure(&settings, Duration::ZERO, late, seed);
        let calibration = judge("test", measured, &predicted, options.tolerances);
        for name in degraded(&calibration) {
            let figures = calibration.figures();
            let figure = figures.iter().find(|(of, _)| *of == name);
            missed.push(format!("{seed}: {figure:?}"));
        }
    }
    let percent = missed.len() * 100 / seeds as usize;
    (100 - percent.min(100), missed.join("\n"))
}

#[test]
fn every_shipped_profile_is_judged_to_be_itself() {
    for profile in shipped() {
        let (sound, missed) = sound(&profile, CalibrateOptions::default());
        println!("{}: {sound}", profile.name);
        assert!(sound >= 98, "{}: {sound}\n{missed}", profile.name);
    }
}

#[test]
fn so_is_a_link_with_everything() {
    let mut harsh = profile();
    harsh.uplink.rate_mbit = Some(20.0);
    harsh.uplink.jitter_ms = 2.0;
    harsh.uplink.jitter_distribution = JitterDistribution::Normal;
    harsh.uplink.loss_model = Some(LossConfig::GilbertElliott {
        p: 0.002,
        r: 0.1,
        h: 0.2,
        k: 0.999,
    });
    harsh.uplink.duplicate = 0.02;
    harsh.uplink.corrupt = 0.01;
    harsh.uplink.reorder = Some(ReorderConfig {
        probability: 0.02,
        gap: 3,
    });
    harsh.downlink.rate_mbit = Some(30.0);
    harsh.downlink.loss_model = Some(LossConfig::FourState {
        p13: 0.002,
        p31: 0.1,
        p32: 0.2,
        p23: 0.3,
        p14: 0.001,
    });
    harsh.downlink.outages = Some(OutagesConfig {
        mode: crate::core::OutageMode::Drop,
        cuts: vec![CutConfig {
            start_ms: 100.0,
            duration_ms: 40.0,
            every_ms: Some(700.0),
        }],
    });
    harsh.validate().expect("valid");
    let (sound, missed) = sound(&harsh, CalibrateOptions::default());
    assert!(sound >= 98, "{sound}\n{missed}");
    let mut heavier = harsh.clone();
    heavier.uplink.loss_model = Some(LossConfig::GilbertElliott {
        p: 0.05,
        r: 0.1,
        h: 0.2,
        k: 0.999,
    });
    assert!(verdicts(&harsh, &heavier).contains(&"uplink_loss"));
    let mut whole = harsh.clone();
    whole.downlink.outages = None;
    whole.downlink.loss_model = None;
    assert!(verdicts(&harsh, &whole).contains(&"downlink_loss"));
}

#[test]
fn a_fixed_link_has_the_targets_of_its_arithmetic() {
    let mut fixed = profile();
    fixed.uplink.overhead_bytes = 100;
    fixed.downlink.loss = 0.05;
    let predictor = Predictor::new(&fixed, false, 3.29);
    let plan = Plan::new(&predictor, PHASE, CalibrateOptions::default());
    let predicted = plan.predict(&predictor);
    let target = |expected| match expected {
        Expected::Within { target, .. } => target,
        other => panic!("{other:?}"),
    };
    // Delays, and the transmission of 160 and 60 bytes.
    let rtt = 20.0 + (160.0 + 60.0) * 8.0 / 1e5;
    assert!((target(predicted.rtt_p50_ms) - rtt).abs() < 1e-4);
    assert!((target(predicted.rtt_p99_ms) - rtt).abs() < 1e-4);
    assert!((target(predicted.uplink_rate) - 93.75).abs() < 1e-3);
    assert!((target(predicted.downlink_rate) - 100.0).abs() < 0.01);
    assert_eq!(target(predicted.uplink_loss), 0.0);
    assert!((target(predicted.downlink_loss) - 0.05).abs() < 0.002);
    let Expected::Within { low, high, .. } = predicted.downlink_loss else {
        panic!("no bounds");
    };
    // The 99.9% binomial interval of 3000 datagrams: 150 ± 39.
    assert!((0.034..0.040).contains(&low), "{low}");
    assert!((0.060..0.066).contains(&high), "{high}");
}

fn exactly(target: f64) -> Expected {
    Expected::Within {
        target,
        mean: target,
        low: target,
        high: target,
        or_nothing: false,
    }
}

#[test]
fn each_figure_is_judged_on_its_own() {
    let predicted = Predicted {
        rtt_p50_ms: exactly(20.01),
        rtt_p99_ms: exactly(20.01),
        uplink_loss: exactly(0.0),
        downlink_loss: exactly(0.0),
        uplink_rate: exactly(100.0),
        downlink_rate: exactly(100.0),
    };
    let measured = || Measured {
        rtts: (0..100)
            .map(|i| Duration::from_micros(20_050 + i))
            .collect(),
        pings_sent: 100,
        uplink_lost: 0,
        downlink_lost: 0,
        loss_datagrams: 1000,
        uplink_rate: rate(Some(99.8)),
        downlink_rate: rate(Some(99.8)),
    };
    let verdicts = |measured| degraded(&judge("test", measured, &predicted, Tolerances::default()));
    assert!(verdicts(measured()).is_empty());
    let late = Measured {
        rtts: vec![Duration::from_millis(22); 100],
        ..measured()
    };
    assert_eq!(verdicts(late), ["rtt_p50_ms"]);
    let mut tail = measured();
    tail.rtts[98..].fill(Duration::from_millis(40));
    assert_eq!(verdicts(tail), ["rtt_p99_ms"]);
    let slow = Measured {
        downlink_rate: rate(Some(96.0)),
        ..measured()
    };
    assert_eq!(verdicts(slow), ["downlink_rate_mbit"]);
    let lossy = Measured {
        uplink_lost: 1,
        ..measured()
    };
    assert_eq!(verdicts(lossy), ["uplink_loss"]);
    let silent = Measured {
        rtts: vec![],
        uplink_rate: rate(None),
        ..measured()
    };
    assert_eq!(
        verdicts(silent),
        ["rtt_p50_ms", "rtt_p99_ms", "uplink_rate_mbit"]
    );
    let nothing = judge(
        "test",
        measured(),
        &Predicted::NOTHING,
        Tolerances::default(),
    );
    assert_eq!(nothing.rtt_p50_ms.verdict, Verdict::Unchecked);
    assert_eq!(nothing.uplink_rate_mbit.target, None);
    assert_eq!(nothing.verdict, Verdict::Ok);
}

#[test]
fn a_link_that_carries_nothing_is_not_to_carry_something() {
    let mut dead = profile();
    dead.uplink.loss = 1.0;
    assert!(verdicts(&dead, &dead).is_empty());
    assert_eq!(
        verdicts(&dead, &profile()),
        [
            "rtt_p50_ms",
            "rtt_p99_ms",
            "uplink_rate_mbit",
            "uplink_loss"
        ]
    );
}

#[test]
fn loss_is_held_against_its_interval() {
    let mut lossy = profile();
    lossy.uplink.loss = 0.05;
    let options = CalibrateOptions {
        loss_datagrams: 1000,
        ..CalibrateOptions::default()
    };
    let predictor = Predictor::new(&lossy, true, options.tolerances.loss_z);
    let plan = Plan::new(&predictor, PHASE, options);
    let predicted = Predicted {
        uplink_loss: predictor.loss(Way::Uplink, &plan.numbered[0]),
        ..Predicted::NOTHING
    };
    let with = |uplink_lost| {
        let measured = Measured {
            rtts: vec![],
            pings_sent: 0,
            uplink_lost,
            downlink_lost: 0,
            loss_datagrams: 1000,
            uplink_rate: rate(None),
            downlink_rate: rate(None),
        };
        degraded(&judge("test", measured, &predicted, options.tolerances))
    };
    // The exact binomial interval of 99.9% is 29 to 75.
    for lost in [31, 50, 72] {
        assert!(with(lost).is_empty(), "{lost}");
    }
    for lost in [20, 84] {
        assert_eq!(with(lost), ["uplink_loss"], "{lost}");
    }
}

#[test]
fn links_that_are_off_are_degraded() {
    for right in shipped() {
        if right.name == "none" {
            continue;
        }
        let name = &right.name;
        for factor in [0.95, 1.05] {
            let mut wrong = right.clone();
            if let Some(rate) = &mut wrong.uplink.rate_mbit {
                *rate *= factor;
                assert!(
                    verdicts(&right, &wrong).contains(&"uplink_rate_mbit"),
                    "{name}: rate off by {factor}"
                );
            }
        }
        // Below 6 ms a tenth of the delay is within 0.3 ms.
        if right.uplink.delay_ms > 3.0 {
            for factor in [0.9, 1.1] {
                let mut wrong = right.clone();
                for direction in [&mut wrong.uplink, &mut wrong.downlink] {
                    direction.delay_ms *= factor;
                }
                assert!(
                    verdicts(&right, &wrong).contains(&"rtt_p50_ms"),
                    "{name}: delay off by {factor}"
                );
            }
        }
        let mut lossy = right.clone();
        lossy.downlink.loss = 4.0 * right.downlink.loss + 0.01;
        assert!(
            verdicts(&right, &lossy).contains(&"downlink_loss"),
            "{name}: loss off"
        );
    }
    let wifi = shipped()
        .into_iter()
        .find(|profile| profile.name == "wifi-home");
    let wifi = wifi.expect("wifi-home");
    let mut calm = wifi.clone();
    for direction in [&mut calm.uplink, &mut calm.downlink] {
        direction.jitter_ms = 0.0;
    }
    assert!(verdicts(&wifi, &calm).contains(&"rtt_p99_ms"));
}

/// Half a second at 12 Mbit/s, half a second at 36 Mbit/s, with some silence at the end.
fn mahimahi_profile() -> LinkProfile {
    let slow = (0..500).map(|ms| (ms, 1));
    let fast = (500..960).map(|ms| (ms, 3));
    let mut times: Vec<u32> = slow
        .chain(fast)
        .flat_map(|(ms, count)| (0..count).map(move |_| ms))
        .collect();
    times.push(1000);
    with_trace(&Opportunities::new(times).expect("a trace"))
}

fn with_trace(trace: &Opportunities) -> LinkProfile {
    let mut traced = profile();
    for direction in [&mut traced.uplink, &mut traced.downlink] {
        direction.rate_mbit = None;
        direction.overhead_bytes = 4;
        direction.trace = Some(TraceSource::GapsMs(trace.clone()));
    }
    traced
}

#[test]
fn a_mahimahi_trace_is_held_to_its_own_bytes() {
    let traced = mahimahi_profile();
    let (sound, missed) = sound(&traced, strict());
    assert!(sound >= 98, "{sound}\n{missed}");
    // Over three whole periods the target is the trace's mean.
    let predictor = Predictor::new(&traced, true, 3.29);
    let plan = Plan::new(&predictor, PHASE, strict());
    let Expected::Within { target, .. } = plan.predict(&predictor).uplink_rate else {
        panic!("no target");
    };
    let mean = traced.uplink.mean_mbit().expect("a mean") * 1500.0 / 1504.0;
    assert!((target / mean - 1.0).abs() < 0.005, "{target} {mean}");

    // Scaled by 3%: the same opportunities in less time.
    let Some(TraceSource::GapsMs(trace)) = &traced.uplink.trace else {
        panic!("no trace");
    };
    for factor in [0.97, 1.03] {
        let times = trace.times_ms().iter();
        let times = times.map(|&ms| (f64::from(ms) * factor).round() as u32);
        let scaled = with_trace(&Opportunities::new(times.collect()).expect("a trace"));
        let off = verdicts_of(&traced, &scaled, Duration::ZERO, strict());
        assert!(off.contains(&"uplink_rate_mbit"), "{factor}: {off:?}");
    }
    // At a wrong phase, in a window that is no whole number of periods.
    let off = verdicts_of(&traced, &traced, 300 * MS, CalibrateOptions::default());
    assert!(off.contains(&"uplink_rate_mbit"), "{off:?}");
}

#[test]
fn a_synthetic_trace_is_held_to_its_phase_and_scale() {
    let name = "lte-driving-synthetic";
    let right = shipped().into_iter().find(|profile| profile.name == name);
    let right = right.expect(name);
    assert!(verdicts_of(&right, &right, Duration::ZERO, strict()).is_empty());
    let off = verdicts_of(&right, &right, 10_000 * MS, strict());
    assert!(off.contains(&"uplink_rate_mbit"), "{off:?}");
    for factor in [0.97, 1.03] {
        let mut scaled = right.clone();
        for direction in [&mut scaled.uplink, &mut scaled.downlink] {
            let Some(TraceSource::Synthetic(crate::trace::Synthetic::Lte(model))) =
                &mut direction.trace
            else {
                panic!("another model");
            };
            model.mean_mbit *= factor;
        }
        let off = verdicts_of(&right, &scaled, Duration::ZERO, strict());
        assert!(
            off.contains(&"uplink_rate_mbit") && off.contains(&"downlink_rate_mbit"),
            "{factor}: {off:?}"
        );
    }
}

#[test]
fn cuts_are_found_in_their_windows() {
    let mut cut = profile();
    cut.uplink.outages = Some(OutagesConfig {
        mode: crate::core::OutageMode::Hold,
        cuts: vec![CutConfig {
            start_ms: 0.0,
            duration_ms: 100.0,
            every_ms: Some(1000.0),
        }],
    });
    assert!(verdicts(&cut, &cut).is_empty());
    assert!(!verdicts(&profile(), &cut).is_empty());
    assert!(!verdicts(&cut, &profile()).is_empty());
}

#[test]
fn without_a_phase_nothing_is_said_of_what_changes() {
    let mut traced = mahimahi_profile();
    traced.downlink = profile().downlink;
    let predictor = Predictor::new(&traced, false, 3.29);
    let plan = Plan::new(&predictor, PHASE, CalibrateOptions::default());
    let predicted = plan.predict(&predictor);
    for figure in [
        predicted.rtt_p50_ms,
        predicted.uplink_loss,
        predicted.uplink_rate,
    ] {
        assert_eq!(figure, Expected::Unknown);
    }
    for figure in [predicted.downlink_loss, predicted.downlink_rate] {
        assert!(matches!(figure, Expected::Within { .. }));
    }
}

#[test]
fn what_was_duplicated_counts_once_and_what_was_corrupted_not_at_all() {
    let mut odd = profile();
    odd.uplink.duplicate = 1.0;
    odd.downlink.corrupt = 1.0;
    let settings: [DirectionSettings; 2] = odd.settings().into();
    let sent: Vec<Duration> = (0..100).map(|i| i * MS).collect();
    let schedule = Schedule {
        sent,
        until: 500 * MS,
    };
    let seed = Seed { seed: 1, age: 0 };
    let none = Duration::ZERO;
    assert_eq!(lost(&settings[0], Way::Uplink, &schedule, none, seed), 0);
    assert_eq!(
        lost(&settings[1], Way::Downlink, &schedule, none, seed),
        100
    );
    odd.downlink.corrupt = 0.0;
    let settings: [DirectionSettings; 2] = odd.settings().into();
    let trips = round_trips(&settings, &schedule, NO_LAGS, seed);
    assert_eq!(trips.len(), 100);
}

#[test]
fn tcp_beyond_its_bounds_gives_way_to_the_flood() {
    let sample = |mbit, target| RateSample {
        mbit,
        expected: exactly(target),
        window: Window::default(),
    };
    let tolerances = Tolerances::default();
    let choose = |tcp, flood| choose(&tcp, &flood, &tolerances);
    let tcp = sample(Some(90.0), 100.0);
    assert!(!tcp.suffices(&tolerances) && sample(Some(98.0), 100.0).suffices(&tolerances));
    assert_eq!(choose(tcp, sample(Some(99.0), 100.0)), RateMethod::Udp);
    assert_eq!(choose(tcp, sample(Some(80.0), 100.0)), RateMethod::Tcp);
    // Each is held against its own part of a trace.
    assert_eq!(choose(tcp, sample(Some(80.0), 80.0)), RateMethod::Udp);
    assert_eq!(choose(tcp, sample(None, 100.0)), RateMethod::Tcp);
    let burst = sample(Some(120.0), 100.0);
    assert_eq!(choose(burst, sample(Some(100.0), 100.0)), RateMethod::Udp);
    assert_eq!(choose(burst, sample(None, 100.0)), RateMethod::Tcp);
}

#[test]
fn the_default_predictions_are_cheap() {
    // The worst of the shipped profiles took 0.2 s on a 2-core machine; the bound is for one that
    // is busy.
    for profile in shipped() {
        let predictor = Predictor::new(&profile, true, 3.29);
        let plan = Plan::new(&predictor, PHASE, CalibrateOptions::default());
        let clock = crate::clock::Clock::start();
        plan.predict(&predictor);
        let took = clock.now();
        println!("{}: {took:?}", profile.name);
        assert!(took < Duration::from_secs(2), "{}: {took:?}", profile.name);
    }
}

#[test]
fn a_calibration_of_an_earlier_version_can_be_read() {
    let calibration = judge(
        "test",
        Measured {
            rtts: vec![MS],
            pings_sent: 1,
            uplink_lost: 0,
            downlink_lost: 0,
            loss_datagrams: 1,
            uplink_rate: rate(None),
            downlink_rate: rate(None),
        },
        &Predicted::NOTHING,
        Tolerances::default(),
    );
    let mut json = serde_json::to_value(&calibration).expect("serialise");
    let fields = json.as_object_mut().expect("an object");
    assert!(fields.remove("prediction_ms").is_some());
    let read: Calibration = serde_json::from_value(json).expect("deserialise");
    assert_eq!(read, calibration);
}
