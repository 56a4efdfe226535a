//! Reordering.

use super::Reorder;

/// The state of reordering: how many packets have been delayed since one was reordered.
///
/// The draws are made elsewhere, one for every packet that is offered; this decides for every
/// packet that gets as far as the queue, as in netem.
#[derive(Clone, Copy, Debug)]
pub struct ReorderGap {
    gap: u32,
    delayed: u32,
}

impl ReorderGap {
    /// Reordering at the settings' distance.
    #[must_use]
    pub fn new(settings: Reorder) -> Self {
        Self {
            gap: settings.gap,
            delayed: 0,
        }
    }

    /// Whether the next packet is reordered, given that its draw says so.
    pub fn decide(&mut self, drawn: bool) -> bool {
        let far_enough = self.gap > 0 && self.delayed >= self.gap - 1;
        if far_enough && drawn {
            self.delayed = 0;
            return true;
        }
        self.delayed = self.delayed.saturating_add(1);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decisions(gap: u32, draws: &[bool]) -> Vec<bool> {
        let probability = 0.5;
        let mut reorder = ReorderGap::new(Reorder { probability, gap });
        draws.iter().map(|&drawn| reorder.decide(drawn)).collect()
    }

    #[test]
    fn a_gap_delays_that_many_packets_less_one() {
        let (no, yes) = (false, true);
        assert_eq!(decisions(1, &[no, yes, yes]), [no, yes, yes]);
        assert_eq!(decisions(3, &[yes; 7]), [no, no, yes, no, no, yes, no]);
        // After the gap, every packet may be reordered until one is.
        assert_eq!(
            decisions(3, &[yes, yes, no, no, yes, yes]),
            [no, no, no, no, yes, no]
        );
        assert_eq!(decisions(0, &[yes; 3]), [no; 3]);
    }
}
