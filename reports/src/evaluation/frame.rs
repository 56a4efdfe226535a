//! Arms, questions and layers as Polars frames.

use polars::prelude::*;

use super::against::{best_control, best_own_control, gap_closed, less};
use super::arm::{Arm, Board, State};
use super::row::EVALUATION_FILE_VERSION;
use super::row::{ArmKind, CloudPart, ContextRow, LayerRow, QuestionRow};
use super::summary::Metric;
use crate::error::ReportError;
use crate::quality::{Paired, Score};

/// A comparison and its interval.
type Figure = (f64, Option<(f64, f64)>);

/// One row an arm, in plan order: identity, progress and every derived figure. Shares and
/// scores are 0 to 1, likelihoods in nats; a null is not defined or not measured.
pub(super) fn summary(boards: &[Board]) -> Result<DataFrame, ReportError> {
    let arms: Vec<&Arm> = boards.iter().flat_map(|b| &b.arms).collect();
    let mut columns = identity(&arms);
    macro_rules! add {
        ($name:expr, |$arm:ident| $value:expr) => {
            columns.push(Column::new(
                $name.into(),
                arms.iter().map(|$arm| $value).collect::<Vec<_>>(),
            ))
        };
    }
    macro_rules! figures {
        ($($field:ident),+ $(,)?) => {
            $(add!(stringify!($field), |arm| arm.summary.$field);)+
        };
    }
    add!("state", |arm| state(arm));
    add!("contexts_planned", |arm| arm.planned);
    add!("contexts", |arm| arm.summary.contexts as u64);
    add!("questions", |arm| arm.summary.questions as u64);
    add!("comparable", |arm| arm.comparable);
    add!("artefact_bytes", |arm| arm.identity.artefact_bytes);
    figures!(
        context_tokens,
        fp16_bytes_per_token,
        wire_ratio,
        nominal_ratio,
        bits_per_number,
        bytes_per_token,
        framing_per_token,
        held_share,
        edge_share,
        tune_s,
    );
    add!("fit_s", |arm| arm.identity.fit_s);
    add!("cloud", |arm| arm.identity.cloud.map(cloud));
    add!("own_controls", |arm| {
        let names = arm.identity.own_controls.join(", ");
        (!names.is_empty()).then_some(names)
    });
    macro_rules! scores {
        ($($field:ident),+) => {$(
            add!(stringify!($field), |arm| arm.summary.$field.map(|s: Score| s.mean));
            add!(concat!(stringify!($field), "_low"), |arm| low(
                arm.summary.$field.and_then(|s: Score| s.interval)
            ));
            add!(concat!(stringify!($field), "_high"), |arm| high(
                arm.summary.$field.and_then(|s: Score| s.interval)
            ));
        )+};
    }
    macro_rules! differences {
        ($($field:ident),+) => {$(
            add!(stringify!($field), |arm| arm.summary.$field.map(|d: Paired| d.difference));
            add!(concat!(stringify!($field), "_low"), |arm| low(
                arm.summary.$field.and_then(|d: Paired| d.interval)
            ));
            add!(concat!(stringify!($field), "_high"), |arm| high(
                arm.summary.$field.and_then(|d: Paired| d.interval)
            ));
            add!(concat!(stringify!($field), "_questions"), |arm| arm
                .summary
                .$field
                .map(|d: Paired| d.questions as u64));
        )+};
    }
    scores!(em, f1, nll);
    differences!(em_difference, f1_difference, nll_difference);
    figures!(kl, top1);
    macro_rules! distortion {
        ($($field:ident),+) => {
            $(add!(stringify!($field), |arm| arm.summary.distortion.map(|d| d.$field));)+
        };
    }
    distortion!(k_error, v_error, k_cosine, v_cosine, attention_error);
    figures!(encode_bytes_per_s, decode_bytes_per_s);
    columns.extend(compared(boards));
    DataFrame::new(arms.len(), columns).map_err(ReportError::frame("the summary of arms"))
}

/// What arms in which the cloud's model takes part are held against, in F1 and in NLL.
fn compared(boards: &[Board]) -> Vec<Column> {
    let arms = || {
        let of = |board| {
            let informed = |arm: &Arm| arm.identity.cloud == Some(CloudPart::Informs);
            let board: &Board = board;
            board
                .arms
                .iter()
                .map(move |arm| (board, arm, arm.comparable && informed(arm)))
        };
        boards.iter().flat_map(of)
    };
    let mut columns = Vec::new();
    for (metric, title) in [(Metric::F1, "f1"), (Metric::Nll, "nll")] {
        let mut figures = |name: &str, values: Vec<Option<Figure>>| {
            let mut add = |suffix: &str, value: fn(Figure) -> Option<f64>| {
                let column: Vec<Option<f64>> = values.iter().map(|v| value((*v)?)).collect();
                columns.push(Column::new(
                    format!("{title}_{name}{suffix}").into(),
                    column,
                ));
            };
            add("", |v| Some(v.0));
            add("_low", |v| low(v.1));
            add("_high", |v| high(v.1));
        };
        let plain = |d: Paired| (d.difference, d.interval);
        let to_best = |(board, arm, told): (&Board, &Arm, bool)| {
            let (_, found) = less(metric, arm, best_control(board, metric)).filter(|_| told)?;
            Some(plain(found))
        };
        let to_own = |(board, arm, told): (&Board, &Arm, bool)| {
            let best = best_own_control(board, arm, metric);
            let (_, found) = less(metric, arm, best).filter(|_| told)?;
            Some(plain(found))
        };
        let closed = |(board, arm, told): (&Board, &Arm, bool)| {
            let found = gap_closed(board, arm, metric).filter(|_| told)?;
            Some((found.share, found.interval))
        };
        figures("over_best_control", arms().map(to_best).collect());
        figures("over_best_own_control", arms().map(to_own).collect());
        figures("gap_closed", arms().map(closed).collect());
    }
    columns
}

/// One row a question under an arm, with every raw field.
pub(super) fn questions(boards: &[Board]) -> Result<DataFrame, ReportError> {
    let rows: Vec<(&Arm, &ContextRow, &QuestionRow)> = boards
        .iter()
        .flat_map(|b| &b.arms)
        .flat_map(|arm| {
            arm.rows
                .iter()
                .flat_map(move |context| context.questions.iter().map(move |q| (arm, context, q)))
        })
        .collect();
    let arms: Vec<&Arm> = rows.iter().map(|r| r.0).collect();
    let mut columns = identity(&arms);
    macro_rules! add {
        ($name:expr, |$context:ident, $q:ident| $value:expr) => {
            columns.push(Column::new(
                $name.into(),
                rows.iter()
                    .map(|&(_, $context, $q)| $value)
                    .collect::<Vec<_>>(),
            ))
        };
    }
    add!("context_id", |c, _q| c.context_id.as_str());
    add!("context_tokens", |c, _q| c.context_tokens);
    add!("fp16_bytes", |c, _q| c.fp16_bytes);
    add!("payload_bytes", |c, _q| c.payload_bytes);
    add!("message_bytes", |c, _q| c.message_bytes);
    add!("question_id", |_c, q| q.question_id.as_str());
    add!("answer", |_c, q| q.answer.as_deref());
    add!("output_tokens", |_c, q| q.output_tokens);
    add!("em", |_c, q| q.em);
    add!("f1", |_c, q| q.f1);
    add!("nll", |_c, q| q.nll);
    add!("nll_tokens", |_c, q| q.nll_tokens);
    add!("kl", |_c, q| q.kl);
    add!("top1", |_c, q| q.top1);
    add!("positions", |_c, q| q.positions);
    DataFrame::new(rows.len(), columns).map_err(ReportError::frame("the frame of questions"))
}

/// One row a layer of a context under an arm.
pub(super) fn layers(boards: &[Board]) -> Result<DataFrame, ReportError> {
    let rows: Vec<(&Arm, &ContextRow, &LayerRow)> = boards
        .iter()
        .flat_map(|b| &b.arms)
        .flat_map(|arm| {
            arm.rows
                .iter()
                .flat_map(move |context| context.layers.iter().map(move |l| (arm, context, l)))
        })
        .collect();
    let arms: Vec<&Arm> = rows.iter().map(|r| r.0).collect();
    let mut columns = identity(&arms);
    columns.push(Column::new(
        "context_id".into(),
        rows.iter()
            .map(|(_, context, _)| context.context_id.as_str())
            .collect::<Vec<_>>(),
    ));
    macro_rules! add {
        ($($field:ident),+) => {$(columns.push(Column::new(
            stringify!($field).into(),
            rows.iter().map(|(_, _, l)| l.$field).collect::<Vec<_>>(),
        ));)+};
    }
    add!(
        layer,
        k_mse,
        k_variance,
        k_cosine,
        v_mse,
        v_variance,
        v_cosine,
        attention_error
    );
    DataFrame::new(rows.len(), columns).map_err(ReportError::frame("the frame of layers"))
}

/// The columns that tell an arm from another.
fn identity(arms: &[&Arm]) -> Vec<Column> {
    macro_rules! column {
        ($name:expr, |$arm:ident| $value:expr) => {
            Column::new(
                $name.into(),
                arms.iter().map(|$arm| $value).collect::<Vec<_>>(),
            )
        };
    }
    vec![
        column!("schema_version", |_arm| EVALUATION_FILE_VERSION),
        column!("cell_id", |arm| arm.identity.cell_id.as_str()),
        column!("dataset", |arm| arm.identity.dataset.as_str()),
        column!("kind", |arm| kind(arm.identity.kind)),
        column!("family", |arm| arm.identity.family.as_str()),
        column!("name", |arm| arm.identity.name.as_str()),
        column!("codec", |arm| arm.identity.codec.as_deref()),
    ]
}

fn kind(kind: ArmKind) -> &'static str {
    match kind {
        ArmKind::Reference => "reference",
        ArmKind::Method => "method",
        ArmKind::Control => "control",
    }
}

fn cloud(part: CloudPart) -> &'static str {
    match part {
        CloudPart::Alone => "alone",
        CloudPart::Informs => "informs",
        CloudPart::Withheld => "withheld",
    }
}

fn state(arm: &Arm) -> &'static str {
    match arm.state() {
        State::NotRun => "not_run",
        State::Partial => "partial",
        State::Whole => "whole",
    }
}

fn low(interval: Option<(f64, f64)>) -> Option<f64> {
    interval.map(|i| i.0)
}

fn high(interval: Option<(f64, f64)>) -> Option<f64> {
    interval.map(|i| i.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::arm::read;
    use crate::evaluation::fixture;

    fn boards() -> (tempfile::TempDir, Vec<Board>) {
        let dir = tempfile::tempdir().unwrap();
        let boards = read(&fixture::run(dir.path())).unwrap();
        (dir, boards)
    }

    fn text(frame: &DataFrame, column: &str, row: usize) -> String {
        let column = frame.column(column).unwrap();
        column.str().unwrap().get(row).unwrap().to_owned()
    }

    fn real(frame: &DataFrame, column: &str, row: usize) -> Option<f64> {
        frame.column(column).unwrap().f64().unwrap().get(row)
    }

    #[test]
    fn the_summary_has_every_planned_arm() {
        let (_dir, boards) = boards();
        let frame = summary(&boards).unwrap();
        assert_eq!(frame.height(), 15);
        let row = |name: &str| {
            let found = (0..frame.height()).find(|&i| text(&frame, "name", i) == name);
            found.unwrap()
        };
        assert_eq!(text(&frame, "state", row("kvtc-32x")), "partial");
        assert_eq!(text(&frame, "state", row("groups-2bit")), "not_run");
        assert_eq!(text(&frame, "kind", row("no_context")), "control");
        let exact = row("exact");
        assert_eq!(real(&frame, "wire_ratio", exact), None);
        assert_eq!(real(&frame, "f1_difference", exact), None);
        assert!(real(&frame, "f1", exact).is_some());
        let arm = row("celslm-8x");
        let s = &boards[0].arms[arm].summary;
        assert_eq!(real(&frame, "nll", arm), s.nll.map(|n| n.mean));
        let (low, high) = s.f1_difference.unwrap().interval.unwrap();
        assert_eq!(real(&frame, "f1_difference_low", arm), Some(low));
        assert_eq!(real(&frame, "f1_difference_high", arm), Some(high));
        assert_eq!(
            real(&frame, "k_error", arm),
            s.distortion.map(|d| d.k_error)
        );
    }

    #[test]
    fn what_arms_are_held_against_is_in_the_summary() {
        let dir = tempfile::tempdir().unwrap();
        let boards = read(&fixture::clouds(dir.path(), 2)).unwrap();
        let frame = summary(&boards).unwrap();
        let row = |name: &str| {
            let found = (0..frame.height()).find(|&i| text(&frame, "name", i) == name);
            found.unwrap()
        };
        let tuned = row("distilled-cloud-r4-n60");
        assert_eq!(text(&frame, "own_controls", tuned), "distilled-edge-r4-n60");
        assert_eq!(text(&frame, "cloud", tuned), "informs");
        assert_eq!(real(&frame, "tune_s", tuned), Some(78.5));
        assert_eq!(
            real(&frame, "fit_s", row("all-trained-s4-l8")),
            Some(9400.0)
        );
        let board = &boards[0];
        let arm = &board.arms[tuned];
        let closed = gap_closed(board, arm, Metric::F1).unwrap();
        assert_eq!(real(&frame, "f1_gap_closed", tuned), Some(closed.share));
        let (low, _) = closed.interval.unwrap();
        assert_eq!(real(&frame, "f1_gap_closed_low", tuned), Some(low));
        let best = best_control(board, Metric::Nll);
        let (name, found) = less(Metric::Nll, arm, best).unwrap();
        assert_eq!(name, "no_context");
        assert_eq!(
            real(&frame, "nll_over_best_control", tuned),
            Some(found.difference)
        );
        // The cloud's model alone, controls and the reference are held against nothing.
        for name in [
            "cloud_alone",
            "no_context",
            "uncompressed",
            "distilled-edge-r4-n60",
        ] {
            assert_eq!(real(&frame, "nll_over_best_control", row(name)), None);
        }
    }

    #[test]
    fn questions_and_layers_have_a_row_each() {
        let (_dir, boards) = boards();
        let arms = &boards[0].arms;
        let frame = questions(&boards).unwrap();
        // 13 whole arms of 8 contexts and one of 3, with five questions each.
        assert_eq!(frame.height(), (13 * 8 + 3) * 5);
        assert_eq!(text(&frame, "cell_id", 0), "exact");
        assert_eq!(real(&frame, "kl", 0), None);
        let raw = &arms[0].rows[0].questions[1];
        assert_eq!(text(&frame, "question_id", 1), raw.question_id);
        assert_eq!(real(&frame, "nll", 1), Some(raw.nll));

        let frame = layers(&boards).unwrap();
        // Ten whole arms encode, and the partial one.
        assert_eq!(frame.height(), (10 * 8 + 3) * 4);
        assert_eq!(text(&frame, "name", 0), "groups-3bit");
        let raw = &arms
            .iter()
            .find(|a| a.name() == "groups-3bit")
            .unwrap()
            .rows[0];
        assert_eq!(real(&frame, "v_mse", 1), Some(raw.layers[1].v_mse));
        let none = (questions(&[]).unwrap(), layers(&[]).unwrap());
        assert_eq!((none.0.height(), none.1.height()), (0, 0));
    }
}
