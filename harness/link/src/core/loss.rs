//! Packet loss.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::LossModel;
use super::four_state::FourState;
use super::gilbert_elliott::GilbertElliott;

/// The state of a loss model.
#[derive(Clone, Debug)]
pub struct Loss {
    chain: Chain,
    rng: ChaCha8Rng,
    copies: ChaCha8Rng,
}

#[derive(Clone, Debug)]
enum Chain {
    None,
    Independent(f64),
    GilbertElliott(GilbertElliott),
    FourState(FourState),
}

impl Loss {
    /// The model in its first state. It draws for packets from one stream and for copies of
    /// packets from another, so that duplication shifts no loss.
    #[must_use]
    pub fn new(model: LossModel, rng: ChaCha8Rng, copies: ChaCha8Rng) -> Self {
        let chain = match model {
            LossModel::None => Chain::None,
            LossModel::Independent { probability } if probability <= 0.0 => Chain::None,
            LossModel::Independent { probability } => Chain::Independent(probability),
            LossModel::GilbertElliott { p, r, h, k } => {
                Chain::GilbertElliott(GilbertElliott::new(p, r, h, k))
            }
            LossModel::FourState {
                p13,
                p31,
                p32,
                p23,
                p14,
            } => Chain::FourState(FourState::new(p13, p31, p32, p23, p14)),
        };
        Self { chain, rng, copies }
    }

    /// Whether the next packet is lost.
    pub fn draw(&mut self) -> bool {
        match &mut self.chain {
            Chain::None => false,
            Chain::Independent(probability) => self.rng.random::<f64>() < *probability,
            Chain::GilbertElliott(chain) => chain.draw(&mut self.rng),
            Chain::FourState(chain) => chain.draw(&mut self.rng),
        }
    }

    /// Takes a model with states so many packets further; one without is where it was.
    pub(crate) fn age(&mut self, packets: u32) {
        if matches!(self.chain, Chain::GilbertElliott(_) | Chain::FourState(_)) {
            for _ in 0..packets {
                self.draw();
            }
        }
    }

    /// Whether a copy of the last packet is lost. It meets the model in the state in which the
    /// packet has left it, and leaves it there.
    pub fn draw_copy(&mut self) -> bool {
        let probability = match &self.chain {
            Chain::None => return false,
            Chain::Independent(probability) => *probability,
            Chain::GilbertElliott(chain) => chain.loss(),
            Chain::FourState(chain) => f64::from(chain.is_lossy()),
        };
        self.copies.random::<f64>() < probability
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream;
    use super::*;

    fn loss(model: LossModel) -> Loss {
        let copies = stream(9, "downlink", "copy/loss");
        Loss::new(model, stream(9, "downlink", "loss"), copies)
    }

    fn independent(probability: f64) -> Loss {
        loss(LossModel::Independent { probability })
    }

    const DRAWS: usize = 1_000_000;

    fn draws(mut loss: Loss) -> Vec<bool> {
        (0..DRAWS).map(|_| loss.draw()).collect()
    }

    fn fraction(draws: &[bool]) -> f64 {
        draws.iter().filter(|&&lost| lost).count() as f64 / draws.len() as f64
    }

    /// Lengths of the runs of losses that begin and end within the draws.
    fn bursts(draws: &[bool]) -> Vec<usize> {
        draws
            .split(|&lost| !lost)
            .map(<[bool]>::len)
            .filter(|&len| len > 0)
            .collect()
    }

    /// Chi-square of run lengths against the geometric distribution of a mean, and the critical
    /// value at the 1% level. The last class holds all lengths from there on.
    fn geometric_chi_square(lengths: &[usize], mean: f64, classes: usize) -> (f64, f64) {
        let end = 1.0 / mean;
        let n = lengths.len() as f64;
        let chi = (1..=classes)
            .map(|class| {
                let (seen, expected) = if class < classes {
                    let seen = lengths.iter().filter(|&&len| len == class).count();
                    (seen, n * end * (1.0 - end).powi(class as i32 - 1))
                } else {
                    let seen = lengths.iter().filter(|&&len| len >= class).count();
                    (seen, n * (1.0 - end).powi(class as i32 - 1))
                };
                assert!(expected > 5.0, "class {class} expects {expected}");
                (seen as f64 - expected).powi(2) / expected
            })
            .sum();
        // Wilson and Hilferty's approximation of the quantile.
        let freedom = classes as f64 - 1.0;
        let spread = 2.0 / (9.0 * freedom);
        let critical = freedom * (1.0 - spread + 2.326 * spread.sqrt()).powi(3);
        (chi, critical)
    }

    #[test]
    fn independent_loss_lies_within_its_99_percent_interval() {
        for probability in [0.0037, 0.0116, 0.05, 0.5] {
            let lost = fraction(&draws(independent(probability)));
            let sigma = (probability * (1.0 - probability) / DRAWS as f64).sqrt();
            assert!(
                (lost - probability).abs() < 2.576 * sigma,
                "{probability}: {lost}"
            );
        }
    }

    #[test]
    fn independent_losses_do_not_depend_on_the_one_before() {
        let draws = draws(independent(0.2));
        let after_loss: Vec<bool> = draws
            .windows(2)
            .filter(|pair| pair[0])
            .map(|pair| pair[1])
            .collect();
        let n = after_loss.len() as f64;
        assert!((fraction(&after_loss) - 0.2).abs() < 2.576 * (0.2 * 0.8 / n).sqrt());
    }

    #[test]
    fn the_ends_of_the_range_are_exact() {
        let mut never = independent(0.0);
        let mut always = independent(1.0);
        assert!((0..1000).all(|_| !never.draw() && always.draw()));
        assert!((0..1000).all(|_| !never.draw_copy() && always.draw_copy()));
    }

    #[test]
    fn gilberts_bursts_are_geometric_and_its_loss_stationary() {
        let (p, r) = (0.01, 0.25);
        let model = LossModel::GilbertElliott {
            p,
            r,
            h: 0.0,
            k: 1.0,
        };
        let draws = draws(loss(model));
        // The losses of one state follow each other; the variance of their number is that of
        // independent ones times (1 + ρ)/(1 − ρ) with ρ = 1 − p − r.
        let expected = model.stationary_loss();
        let rho = 1.0 - p - r;
        let variance = expected * (1.0 - expected) * (1.0 + rho) / (1.0 - rho) / DRAWS as f64;
        let lost = fraction(&draws);
        assert!(
            (lost - expected).abs() < 2.576 * variance.sqrt(),
            "{lost} instead of {expected}"
        );
        let lengths = bursts(&draws);
        let (chi, critical) = geometric_chi_square(&lengths, 1.0 / r, 20);
        assert!(chi < critical, "{chi} ≥ {critical}");
        // The gaps between bursts are geometric too.
        let gaps: Vec<bool> = draws.iter().map(|lost| !lost).collect();
        let (chi, critical) = geometric_chi_square(&bursts(&gaps), 1.0 / p, 60);
        assert!(chi < critical, "{chi} ≥ {critical}");
        // The test tells a mean that is 10% off.
        let (chi, critical) = geometric_chi_square(&lengths, 1.1 / r, 20);
        assert!(chi > critical, "{chi} < {critical}");
    }

    /// Chi-square of pairs of successive outcomes against the model's probabilities. Every
    /// `STRIDE`-th pair is taken, far enough apart to be nearly independent.
    #[test]
    fn elliotts_pairs_have_the_models_probabilities() {
        const STRIDE: usize = 25;
        let (p, r, h, k) = (0.05, 0.25, 0.4, 0.98);
        let draws = draws(loss(LossModel::GilbertElliott { p, r, h, k }));
        let bad = p / (p + r);
        // Probability of two outcomes: over the first state, the outcome there, the second
        // state, the outcome there.
        let outcome = |bad: bool, lost: bool| {
            let loss = if bad { 1.0 - h } else { 1.0 - k };
            if lost { loss } else { 1.0 - loss }
        };
        let switch = |from: bool, to: bool| {
            let change = if from { r } else { p };
            if from == to { 1.0 - change } else { change }
        };
        let pairs: Vec<&[bool]> = draws.windows(2).step_by(STRIDE).collect();
        let n = pairs.len() as f64;
        let mut chi = 0.0;
        for (first, second) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut probability = 0.0;
            for from in [false, true] {
                for to in [false, true] {
                    let start = if from { bad } else { 1.0 - bad };
                    probability +=
                        start * outcome(from, first) * switch(from, to) * outcome(to, second);
                }
            }
            let seen = pairs
                .iter()
                .filter(|pair| pair[0] == first && pair[1] == second)
                .count() as f64;
            chi += (seen - n * probability).powi(2) / (n * probability);
        }
        // 3 degrees of freedom at the 1% level.
        assert!(chi < 11.34, "{chi}");
    }

    #[test]
    fn the_first_packet_meets_the_good_state() {
        // Always switching and losing everything in the bad state only: every second one.
        let mut loss = loss(LossModel::GilbertElliott {
            p: 1.0,
            r: 1.0,
            h: 0.0,
            k: 1.0,
        });
        let draws: Vec<bool> = (0..6).map(|_| loss.draw()).collect();
        assert_eq!(draws, [false, true, false, true, false, true]);
    }

    #[test]
    fn four_states_lose_as_their_closed_form_says() {
        for (p13, p31, p32, p23, p14) in [
            (0.01, 0.3, 0.2, 0.4, 0.005),
            (0.02, 0.5, 0.0, 1.0, 0.0),
            (0.05, 0.1, 0.6, 0.7, 0.02),
        ] {
            let model = LossModel::FourState {
                p13,
                p31,
                p32,
                p23,
                p14,
            };
            let expected = model.stationary_loss();
            let draws = draws(loss(model));
            // Losses are correlated, so the variance is taken from batches, each far longer
            // than the correlation.
            let batches: Vec<f64> = draws.chunks(2_000).map(fraction).collect();
            let n = batches.len() as f64;
            let mean = batches.iter().sum::<f64>() / n;
            let variance = batches.iter().map(|b| (b - mean).powi(2)).sum::<f64>() / (n - 1.0);
            assert!(
                (mean - expected).abs() < 2.576 * (variance / n).sqrt(),
                "{mean} instead of {expected}"
            );
        }
    }

    #[test]
    fn four_states_follow_their_transitions() {
        let four = |p13, p31, p32, p23, p14| LossModel::FourState {
            p13,
            p31,
            p32,
            p23,
            p14,
        };
        let first = |model, n| -> Vec<bool> {
            let mut loss = loss(model);
            (0..n).map(|_| loss.draw()).collect()
        };
        let (no, yes) = (false, true);
        // Isolated losses stand alone, even if each packet in the gap draws one.
        assert_eq!(first(four(0.0, 1.0, 0.0, 1.0, 1.0), 4), [yes, no, yes, no]);
        // A burst that ends at once, and one that alternates for ever.
        assert_eq!(first(four(1.0, 1.0, 0.0, 1.0, 0.0), 4), [yes, no, yes, no]);
        assert_eq!(first(four(1.0, 0.0, 1.0, 1.0, 0.0), 4), [yes, no, yes, no]);
        assert_eq!(first(four(1.0, 0.0, 1.0, 0.0, 0.0), 4), [yes, no, no, no]);
        assert_eq!(first(four(1.0, 0.0, 0.0, 1.0, 0.0), 3), [yes; 3]);
        // Without state 2, bursts are geometric with mean 1/p31.
        let draws = draws(loss(four(0.01, 0.25, 0.0, 1.0, 0.0)));
        let (chi, critical) = geometric_chi_square(&bursts(&draws), 4.0, 20);
        assert!(chi < critical, "{chi} ≥ {critical}");
    }

    #[test]
    fn copies_meet_the_present_state_and_leave_it() {
        let model = LossModel::GilbertElliott {
            p: 0.3,
            r: 0.3,
            h: 0.0,
            k: 1.0,
        };
        let (mut alone, mut with_copies) = (loss(model), loss(model));
        let mut copies = Vec::new();
        for _ in 0..1000 {
            let lost = with_copies.draw();
            copies.push(with_copies.draw_copy());
            assert_eq!(alone.draw(), lost);
        }
        // With these parameters the copy shares the fate of the next packet.
        let mut again = loss(model);
        let losses: Vec<bool> = (0..1000).map(|_| again.draw()).collect();
        assert_eq!(copies[..999], losses[1..]);
    }
}
