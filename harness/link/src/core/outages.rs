//! Scheduled cuts of the link, as a function of time.

use std::time::Duration;

use super::{Outage, OutageMode, Outages};

/// Cuts that are looked at for one packet, so that a link that is never up again holds a packet
/// for a finite time, and holds up nobody for longer.
const MAX_CUTS: usize = 4096;

/// The cuts of one direction since its settings were applied.
#[derive(Clone, Debug)]
pub struct Cuts {
    outages: Outages,
    origin: Duration,
}

impl Cuts {
    /// Cuts whose times count from `origin`.
    #[must_use]
    pub fn new(outages: Outages, origin: Duration) -> Self {
        Self { outages, origin }
    }

    /// Whether what comes now is lost.
    #[must_use]
    pub fn drops(&self, now: Duration) -> bool {
        self.outages.mode == OutageMode::Drop && self.next(now).is_some_and(|(from, _)| from <= now)
    }

    /// Whether cuts hold what is on the link.
    #[must_use]
    pub fn hold(&self) -> bool {
        self.outages.mode == OutageMode::Hold && !self.outages.is_empty()
    }

    /// The cuts that end after `time`, by their beginnings; one that another contains may be
    /// missing.
    pub(super) fn after(&self, time: Duration) -> impl Iterator<Item = (Duration, Duration)> {
        let mut time = time;
        std::iter::from_fn(move || {
            let cut = self.next(time)?;
            time = cut.1;
            Some(cut)
        })
        .take(MAX_CUTS)
    }

    /// `time`, or the end of the cut that it lies in.
    pub(super) fn up_at(&self, time: Duration) -> Duration {
        self.after(time)
            .scan(time, |up, (from, until)| {
                (from <= *up).then(|| {
                    *up = until;
                    until
                })
            })
            .last()
            .unwrap_or(time)
    }

    /// The cut that begins first of those that end after `time`.
    fn next(&self, time: Duration) -> Option<(Duration, Duration)> {
        let time = time.saturating_sub(self.origin);
        let cuts = self.outages.cuts.iter();
        let (from, until) = cuts.filter_map(|cut| cut.ending_after(time)).min()?;
        let absolute = |time: Duration| self.origin.saturating_add(time);
        Some((absolute(from), absolute(until)))
    }
}

impl Outage {
    /// The first occurrence that ends after `time`.
    fn ending_after(&self, time: Duration) -> Option<(Duration, Duration)> {
        if self.duration.is_zero() {
            return None;
        }
        let end = self.start.saturating_add(self.duration);
        if end > time {
            return Some((self.start, end));
        }
        let every = self.every.filter(|every| !every.is_zero())?;
        let times = (time - end).as_nanos() / every.as_nanos() + 1;
        let shift = u64::try_from(times * every.as_nanos()).map(Duration::from_nanos);
        let shift = shift.ok()?;
        Some((self.start.checked_add(shift)?, end.checked_add(shift)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn cut(start: u32, duration: u32, every: Option<u32>) -> Outage {
        Outage {
            start: start * MS,
            duration: duration * MS,
            every: every.map(|every| every * MS),
        }
    }

    fn cuts(cuts: &[Outage], mode: OutageMode) -> Cuts {
        let outages = Outages {
            cuts: cuts.into(),
            mode,
        };
        Cuts::new(outages, 1000 * MS)
    }

    #[test]
    fn cuts_come_back_and_count_from_the_origin() {
        let cuts = cuts(&[cut(10, 5, Some(100))], OutageMode::Drop);
        for (time, cut) in [
            (0, false),
            (1009, false),
            (1010, true),
            (1014, true),
            (1015, false),
            (1109, false),
            (1110, true),
            (51_012, true),
            (51_015, false),
        ] {
            assert_eq!(cuts.drops(time * MS), cut, "{time}");
        }
        let ahead: Vec<_> = cuts.after(1015 * MS).take(2).collect();
        assert_eq!(ahead, [(1110 * MS, 1115 * MS), (1210 * MS, 1215 * MS)]);
        assert!(!cuts.hold());
    }

    #[test]
    fn overlapping_cuts_are_one() {
        let list = [cut(10, 10, None), cut(0, 2, None), cut(15, 10, None)];
        let cuts = cuts(&list, OutageMode::Hold);
        assert!(cuts.hold() && !cuts.drops(1016 * MS));
        assert_eq!(cuts.up_at(1001 * MS), 1002 * MS);
        assert_eq!(cuts.up_at(1005 * MS), 1005 * MS);
        assert_eq!(cuts.up_at(1010 * MS), 1025 * MS);
        assert_eq!(cuts.up_at(1025 * MS), 1025 * MS);
    }

    #[test]
    fn a_link_that_is_never_up_ends_the_search() {
        let cuts = cuts(&[cut(0, 2, Some(1))], OutageMode::Hold);
        assert!(cuts.up_at(1000 * MS) >= 1000 * MS + MAX_CUTS as u32 * MS);
    }
}
