//! The figures of one arm.
//!
//! | figure | definition |
//! |---|---|
//! | `wire_ratio` | fp16 bytes / message bytes, sums over contexts; none where the edge computed as much as the whole context itself |
//! | `nominal_ratio` | fp16 bytes / payload bytes |
//! | `bits_per_number` | 8 × payload bytes / (fp16 bytes / 2) |
//! | `bytes_per_token` | message bytes / context tokens |
//! | `held_share` | held token-layers / token-layers |
//! | `edge_share` | token-layers that the edge computed / token-layers |
//! | `tune_s` | mean time to tune to a context, where the arm is tuned to each |
//! | `em`, `f1` | mean over questions |
//! | `nll` | sum of nats / gold tokens |
//! | `kl`, `top1` | sum over positions / positions |
//! | errors of a layer | sum of the MSE over contexts / sum of the variance |
//! | cosines, attention error of a layer | mean over contexts |
//! | the same of an arm | mean over layers |

use std::collections::BTreeMap;

use super::arm::Arm;
use super::row::{ContextRow, LayerRow, QuestionRow};
use crate::quality::{
    Paired, Score, Scored, Share, weighted_paired, weighted_score, weighted_share,
};

/// The figures of one arm; `None` where nothing defines them.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct ArmSummary {
    pub(super) contexts: usize,
    pub(super) questions: usize,
    pub(super) context_tokens: u64,
    /// fp16 bytes of KV per token of context, sent or not.
    pub(super) fp16_bytes_per_token: Option<f64>,
    pub(super) wire_ratio: Option<f64>,
    pub(super) nominal_ratio: Option<f64>,
    pub(super) bits_per_number: Option<f64>,
    pub(super) bytes_per_token: Option<f64>,
    pub(super) held_share: Option<f64>,
    pub(super) edge_share: Option<f64>,
    /// Seconds a context.
    pub(super) tune_s: Option<f64>,
    /// Exact match and word F1, 0 to 1.
    pub(super) em: Option<Score>,
    pub(super) f1: Option<Score>,
    /// Nats per gold token.
    pub(super) nll: Option<Score>,
    /// Differences to the reference on the same questions.
    pub(super) em_difference: Option<Paired>,
    pub(super) f1_difference: Option<Paired>,
    pub(super) nll_difference: Option<Paired>,
    /// Nats per position.
    pub(super) kl: Option<f64>,
    pub(super) top1: Option<f64>,
    /// Each layer, in order.
    pub(super) layers: Vec<LayerFigures>,
    /// Means over layers.
    pub(super) distortion: Option<Distortion>,
    /// Bytes of each part per token of context, in the order of the stages.
    pub(super) parts: Vec<(String, f64)>,
    /// Message bytes that are no payload, per token of context.
    pub(super) framing_per_token: Option<f64>,
    /// fp16 bytes per second of encoding and decoding.
    pub(super) encode_bytes_per_s: Option<f64>,
    pub(super) decode_bytes_per_s: Option<f64>,
    /// Questions that the reference has with another number of gold tokens.
    pub(super) unlike_gold: usize,
}

/// Distortion of keys, values and what attention reads from them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Distortion {
    /// MSE relative to the variance.
    pub(super) k_error: f64,
    pub(super) v_error: f64,
    pub(super) k_cosine: f64,
    pub(super) v_cosine: f64,
    pub(super) attention_error: f64,
}

/// Distortion of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LayerFigures {
    pub(super) layer: u32,
    pub(super) distortion: Distortion,
}

/// `a / b`, where there is a `b`.
fn ratio(a: u64, b: u64) -> Option<f64> {
    (b > 0).then(|| a as f64 / b as f64)
}

pub(super) fn summarise(arm: &Arm, reference: Option<&Arm>) -> ArmSummary {
    let rows = &arm.rows;
    let sum = |field: fn(&ContextRow) -> u64| rows.iter().map(field).sum::<u64>();
    let context_tokens = sum(|r| r.context_tokens);
    let fp16 = sum(|r| r.fp16_bytes);
    let payload = sum(|r| r.payload_bytes);
    let message = sum(|r| r.message_bytes);
    let sent = |bytes: u64| (bytes > 0).then_some(bytes);
    let per_second = |ns: u64| ratio(fp16, ns).map(|bytes_per_ns| 1e9 * bytes_per_ns);
    let questions = || rows.iter().flat_map(|r| &r.questions);
    let positions = |has: fn(&QuestionRow) -> bool| {
        questions()
            .filter(|q| has(q))
            .map(|q| q.positions)
            .sum::<u64>()
    };
    let kl_positions = positions(|q| q.kl.is_some());
    // What the edge computed itself was not sent, whatever else was.
    let (computed, all) = (sum(|r| r.edge_token_layers), sum(|r| r.token_layers));
    let saved = |bytes: u64| ratio(fp16, bytes).filter(|_| computed < all);
    let layers = layers(rows);
    let paired = |value: Value| {
        let reference = reference.filter(|r| r.identity.cell_id != arm.identity.cell_id)?;
        weighted_paired(scored(arm, value), scored(reference, value))
    };
    let unlike_gold = reference.map_or(0, |reference| {
        let gold: BTreeMap<_, _> = gold_tokens(reference).collect();
        gold_tokens(arm)
            .filter(|(key, tokens)| gold.get(key).is_some_and(|other| other != tokens))
            .count()
    });
    ArmSummary {
        contexts: rows.len(),
        questions: questions().count(),
        context_tokens,
        fp16_bytes_per_token: ratio(fp16, context_tokens),
        wire_ratio: saved(message),
        nominal_ratio: saved(payload),
        bits_per_number: sent(payload).and_then(|bytes| ratio(16 * bytes, fp16)),
        bytes_per_token: sent(message).and_then(|bytes| ratio(bytes, context_tokens)),
        held_share: ratio(sum(|r| r.held_token_layers), sum(|r| r.token_layers)),
        edge_share: ratio(computed, all),
        tune_s: ratio(sum(|r| r.encode_ns), rows.len() as u64)
            .filter(|_| arm.identity.tuned_per_context)
            .map(|ns| 1e-9 * ns),
        em: weighted_score(scored(arm, em)),
        f1: weighted_score(scored(arm, f1)),
        nll: weighted_score(scored(arm, nll)),
        em_difference: paired(em),
        f1_difference: paired(f1),
        nll_difference: paired(nll),
        kl: (kl_positions > 0)
            .then(|| questions().filter_map(|q| q.kl).sum::<f64>() / kl_positions as f64),
        top1: ratio(
            questions().filter_map(|q| q.top1).sum(),
            positions(|q| q.top1.is_some()),
        ),
        distortion: mean_over_layers(&layers),
        layers,
        parts: parts(rows, context_tokens),
        framing_per_token: sent(message)
            .and_then(|bytes| ratio(bytes.saturating_sub(payload), context_tokens)),
        encode_bytes_per_s: per_second(sum(|r| r.encode_ns)),
        decode_bytes_per_s: per_second(sum(|r| r.decode_ns)),
        unlike_gold,
    }
}

/// How well questions are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    /// Word F1, or accuracy; more is better.
    F1,
    /// Nats per gold token; less is better.
    Nll,
}

impl Metric {
    pub(super) const ALL: [Self; 2] = [Self::F1, Self::Nll];

    fn value(self) -> Value {
        match self {
            Self::F1 => f1,
            Self::Nll => nll,
        }
    }

    pub(super) const fn of(self, summary: &ArmSummary) -> Option<Score> {
        match self {
            Self::F1 => summary.f1,
            Self::Nll => summary.nll,
        }
    }
}

/// `own` − `other` on the questions that both have.
pub(super) fn difference(metric: Metric, own: &Arm, other: &Arm) -> Option<Paired> {
    let value = metric.value();
    weighted_paired(scored(own, value), scored(other, value))
}

/// How far `own` is on the way from `from` to `to`.
pub(super) fn share(metric: Metric, own: &Arm, from: &Arm, to: &Arm) -> Option<Share> {
    let value = metric.value();
    weighted_share(scored(own, value), scored(from, value), scored(to, value))
}

/// A question's value and weight.
type Value = fn(&QuestionRow) -> Option<(f64, u64)>;

fn em(question: &QuestionRow) -> Option<(f64, u64)> {
    question.em.map(|em| (em, 1))
}

fn f1(question: &QuestionRow) -> Option<(f64, u64)> {
    question.f1.map(|f1| (f1, 1))
}

fn nll(question: &QuestionRow) -> Option<(f64, u64)> {
    let tokens = question.nll_tokens;
    (tokens > 0).then(|| (question.nll / tokens as f64, tokens))
}

fn scored(arm: &Arm, value: Value) -> impl Iterator<Item = Scored<'_>> {
    arm.rows.iter().flat_map(move |row| {
        row.questions.iter().filter_map(move |question| {
            let (value, weight) = value(question)?;
            Some(Scored {
                document: (&arm.identity.dataset, &row.context_id),
                question: &question.question_id,
                value,
                weight: weight as usize,
            })
        })
    })
}

fn gold_tokens(arm: &Arm) -> impl Iterator<Item = ((&str, &str), u64)> {
    arm.rows.iter().flat_map(|row| {
        row.questions.iter().map(|question| {
            let key = (row.context_id.as_str(), question.question_id.as_str());
            (key, question.nll_tokens)
        })
    })
}

fn layers(rows: &[ContextRow]) -> Vec<LayerFigures> {
    let mut by_layer: BTreeMap<u32, Vec<&LayerRow>> = BTreeMap::new();
    for row in rows.iter().flat_map(|r| &r.layers) {
        by_layer.entry(row.layer).or_default().push(row);
    }
    let figures = |(layer, rows): (u32, Vec<&LayerRow>)| {
        let sum = |field: fn(&LayerRow) -> f64| rows.iter().map(|r| field(r)).sum::<f64>();
        let mean = |field: fn(&LayerRow) -> f64| sum(field) / rows.len() as f64;
        // Numbers that do not vary cannot be off by a share of their variance.
        let relative = |error: f64, variance: f64| if error > 0.0 { error / variance } else { 0.0 };
        LayerFigures {
            layer,
            distortion: Distortion {
                k_error: relative(sum(|r| r.k_mse), sum(|r| r.k_variance)),
                v_error: relative(sum(|r| r.v_mse), sum(|r| r.v_variance)),
                k_cosine: mean(|r| r.k_cosine),
                v_cosine: mean(|r| r.v_cosine),
                attention_error: mean(|r| r.attention_error),
            },
        }
    };
    by_layer.into_iter().map(figures).collect()
}

fn mean_over_layers(layers: &[LayerFigures]) -> Option<Distortion> {
    let mean = |field: fn(&Distortion) -> f64| {
        layers.iter().map(|l| field(&l.distortion)).sum::<f64>() / layers.len() as f64
    };
    (!layers.is_empty()).then(|| Distortion {
        k_error: mean(|d| d.k_error),
        v_error: mean(|d| d.v_error),
        k_cosine: mean(|d| d.k_cosine),
        v_cosine: mean(|d| d.v_cosine),
        attention_error: mean(|d| d.attention_error),
    })
}

/// Parts in the order in which a context first names them.
fn parts(rows: &[ContextRow], context_tokens: u64) -> Vec<(String, f64)> {
    let mut sums: Vec<(&str, u64)> = Vec::new();
    for part in rows.iter().flat_map(|r| &r.parts) {
        match sums.iter_mut().find(|(name, _)| *name == part.part) {
            Some((_, bytes)) => *bytes += part.bytes,
            None => sums.push((&part.part, part.bytes)),
        }
    }
    sums.into_iter()
        .filter_map(|(name, bytes)| Some((name.to_owned(), ratio(bytes, context_tokens)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::row::EVALUATION_SCHEMA_VERSION;
    use crate::evaluation::row::{ArmIdentity, ArmKind, BytePart};

    fn arm(cell: &str, rows: Vec<ContextRow>) -> Arm {
        Arm {
            identity: ArmIdentity {
                cell_id: cell.into(),
                dataset: "squad".into(),
                kind: ArmKind::Method,
                family: cell.into(),
                name: cell.into(),
                codec: None,
                artefact_bytes: 0,
                cloud: None,
                fit_s: None,
                tuned_per_context: false,
                own_controls: Vec::new(),
            },
            rows,
            planned: Some(2),
            summary: ArmSummary::default(),
            comparable: true,
        }
    }

    fn part(part: &str, bytes: u64) -> BytePart {
        BytePart {
            part: part.into(),
            bytes,
        }
    }

    fn row(context: &str, tokens: u64, questions: Vec<QuestionRow>) -> ContextRow {
        ContextRow {
            schema_version: EVALUATION_SCHEMA_VERSION,
            cell_id: "a".into(),
            context_id: context.into(),
            context_tokens: tokens,
            held_token_layers: tokens,
            token_layers: 2 * tokens,
            fp16_bytes: 100 * tokens,
            payload_bytes: 20 * tokens,
            message_bytes: 20 * tokens + 50,
            edge_token_layers: tokens / 2,
            parts: vec![part("scales", 5 * tokens), part("symbols", 15 * tokens)],
            encode_ns: 1_000,
            decode_ns: 500,
            layers: Vec::new(),
            questions,
        }
    }

    fn question(id: &str, f1: f64, nll: f64, tokens: u64) -> QuestionRow {
        QuestionRow {
            question_id: id.into(),
            answer: None,
            output_tokens: 0,
            em: None,
            f1: Some(f1),
            nll,
            nll_tokens: tokens,
            kl: Some(0.1 * tokens as f64),
            top1: Some(tokens - 1),
            positions: tokens,
        }
    }

    fn near(found: Option<f64>, expected: f64) {
        let found = found.unwrap();
        assert!((found - expected).abs() < 1e-12, "{found} for {expected}");
    }

    #[test]
    fn bytes_by_hand() {
        let rows = vec![row("c1", 10, Vec::new()), row("c2", 30, Vec::new())];
        let s = summarise(&arm("a", rows), None);
        assert_eq!((s.contexts, s.context_tokens), (2, 40));
        near(s.fp16_bytes_per_token, 100.0);
        // 4000 fp16 bytes; 800 of payload, 900 of messages.
        near(s.wire_ratio, 4000.0 / 900.0);
        near(s.nominal_ratio, 5.0);
        near(s.bits_per_number, 16.0 / 5.0);
        near(s.bytes_per_token, 22.5);
        near(s.framing_per_token, 2.5);
        near(s.held_share, 0.5);
        near(s.edge_share, 0.25);
        // 4000 bytes in 2 µs and in 1 µs.
        near(s.encode_bytes_per_s, 2e9);
        near(s.decode_bytes_per_s, 4e9);
        assert_eq!(
            s.parts,
            [("scales".to_owned(), 5.0), ("symbols".to_owned(), 15.0)]
        );
        assert_eq!((s.f1, s.nll, s.kl, s.distortion), (None, None, None, None));
    }

    #[test]
    fn what_is_tuned_to_each_context_states_what_that_takes() {
        let mut tuned = arm(
            "a",
            vec![row("c1", 10, Vec::new()), row("c2", 30, Vec::new())],
        );
        tuned.rows[1].encode_ns = 2_000;
        assert_eq!(summarise(&tuned, None).tune_s, None);
        tuned.identity.tuned_per_context = true;
        near(summarise(&tuned, None).tune_s, 1.5e-6);
    }

    #[test]
    fn what_sends_nothing_has_no_ratio() {
        let mut none = row("c1", 10, Vec::new());
        (none.payload_bytes, none.message_bytes) = (0, 0);
        (none.encode_ns, none.decode_ns) = (0, 0);
        none.parts.clear();
        let s = summarise(&arm("a", vec![none]), None);
        for figure in [
            s.wire_ratio,
            s.nominal_ratio,
            s.bits_per_number,
            s.bytes_per_token,
            s.framing_per_token,
            s.encode_bytes_per_s,
            s.decode_bytes_per_s,
        ] {
            assert_eq!(figure, None);
        }
        assert_eq!(
            summarise(&arm("a", Vec::new()), None),
            ArmSummary::default()
        );
    }

    /// Text that is sent beside a context that the edge computes itself compresses nothing.
    #[test]
    fn what_the_edge_computes_itself_has_no_ratio() {
        let mut own = row("c1", 10, Vec::new());
        own.edge_token_layers = own.token_layers;
        let s = summarise(&arm("a", vec![own.clone()]), None);
        assert_eq!((s.wire_ratio, s.nominal_ratio), (None, None));
        near(s.edge_share, 1.0);
        near(s.bytes_per_token, 25.0);
        own.edge_token_layers -= 1;
        let s = summarise(&arm("a", vec![own]), None);
        near(s.wire_ratio, 1000.0 / 250.0);
    }

    #[test]
    fn scores_and_differences_by_hand() {
        let own = arm(
            "a",
            vec![
                row(
                    "c1",
                    10,
                    vec![question("1", 1.0, 6.0, 3), question("2", 0.0, 1.0, 1)],
                ),
                row("c2", 10, vec![question("1", 0.5, 10.0, 4)]),
            ],
        );
        let reference = arm(
            "r",
            vec![
                row(
                    "c1",
                    10,
                    vec![question("1", 1.0, 3.0, 3), question("2", 0.5, 1.0, 1)],
                ),
                row("c2", 10, vec![question("1", 0.75, 6.0, 4)]),
            ],
        );
        let s = summarise(&own, Some(&reference));
        assert_eq!(s.questions, 3);
        let f1 = s.f1.unwrap();
        assert_eq!((f1.mean, f1.interval), (0.5, Some((0.5, 0.5))));
        // 17 nats over 8 tokens; contexts alone have 7/4 and 10/4.
        let nll = s.nll.unwrap();
        assert_eq!((nll.mean, nll.interval), (17.0 / 8.0, Some((1.75, 2.5))));
        let d = s.f1_difference.unwrap();
        // 0 and −0.5 in one context, −0.25 in the other.
        assert_eq!((d.questions, d.difference), (3, -0.25));
        assert_eq!(d.interval, Some((-0.25, -0.25)));
        let d = s.nll_difference.unwrap();
        // 3 + 0 nats over 4 tokens, 4 over 4.
        assert_eq!((d.questions, d.difference), (3, 7.0 / 8.0));
        assert_eq!(d.interval, Some((0.75, 1.0)));
        assert_eq!((s.em, s.em_difference), (None, None));
        near(s.kl, 0.1);
        // One of 3, 1 and 4 positions differs each time.
        near(s.top1, 5.0 / 8.0);
        // The reference has no difference to itself.
        assert_eq!(summarise(&own, Some(&own)).f1_difference, None);
    }

    #[test]
    fn other_gold_answers_are_counted_and_left_out() {
        let own = arm("a", vec![row("c1", 10, vec![question("1", 1.0, 6.0, 3)])]);
        let rows = vec![row("c1", 10, vec![question("1", 1.0, 6.0, 4)])];
        let s = summarise(&own, Some(&arm("r", rows)));
        assert_eq!((s.unlike_gold, s.nll_difference), (1, None));
        assert!(s.f1_difference.is_some());
    }

    #[test]
    fn distortion_by_hand() {
        let layer = |layer, k_mse, attention_error| LayerRow {
            layer,
            k_mse,
            k_variance: 2.0,
            k_cosine: 0.5 + 0.1 * k_mse,
            v_mse: 0.0,
            v_variance: 0.0,
            v_cosine: 1.0,
            attention_error,
        };
        let mut rows = vec![row("c1", 10, Vec::new()), row("c2", 30, Vec::new())];
        rows[0].layers = vec![layer(1, 4.0, 0.5), layer(0, 1.0, 0.2)];
        rows[1].layers = vec![layer(0, 2.0, 0.4), layer(1, 0.0, 0.1)];
        let s = summarise(&arm("a", rows), None);
        assert_eq!(s.layers.len(), 2);
        let first = s.layers[0];
        assert_eq!(first.layer, 0);
        // (1 + 2) / (2 + 2), and (4 + 0) / (2 + 2).
        near(Some(first.distortion.k_error), 0.75);
        near(Some(s.layers[1].distortion.k_error), 1.0);
        let d = s.distortion.unwrap();
        near(Some(d.k_error), 0.875);
        near(Some(d.attention_error), 0.3);
        near(Some(d.k_cosine), (0.65 + 0.7) / 2.0);
        // Values that neither vary nor are off.
        assert_eq!((d.v_error, d.v_cosine), (0.0, 1.0));
    }
}
