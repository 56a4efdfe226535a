//! Arms and their rows, as read back from a results folder.

use std::collections::BTreeSet;

use super::row::{ArmIdentity, ArmKind, ContextRow, EVALUATION_ROWS, EvaluationInput, read_rows};
use super::summary::{ArmSummary, summarise};
use crate::error::ReportError;
use crate::report::check_cell_id;

/// How far an arm got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// No context was evaluated.
    NotRun,
    /// Some were.
    Partial,
    /// All that were planned.
    Whole,
}

/// One arm over one data set.
#[derive(Debug)]
pub(super) struct Arm {
    pub(super) identity: ArmIdentity,
    /// Its contexts, in the order in which they were evaluated.
    pub(super) rows: Vec<ContextRow>,
    /// Contexts that it was planned for; `None` where the plan does not say.
    pub(super) planned: Option<u64>,
    /// Its figures.
    pub(super) summary: ArmSummary,
    /// Whether it may be drawn and ranked: it ran over the contexts that the reference
    /// ran over.
    pub(super) comparable: bool,
}

/// The arms over one data set, in plan order.
#[derive(Debug)]
pub(super) struct Board {
    /// Label of the data set.
    pub(super) dataset: String,
    /// What is added to the headings: empty where there is one data set.
    pub(super) suffix: String,
    pub(super) arms: Vec<Arm>,
    /// Index of the reference, where one was planned and has rows.
    pub(super) reference: Option<usize>,
}

impl Arm {
    pub(super) fn state(&self) -> State {
        match (self.rows.len() as u64, self.planned) {
            (0, _) => State::NotRun,
            (n, Some(planned)) if n < planned => State::Partial,
            _ => State::Whole,
        }
    }

    /// "12 of 48 contexts".
    pub(super) fn progress(&self) -> String {
        match self.planned {
            Some(planned) => format!("{} of {planned} contexts", self.rows.len()),
            None => format!("{} contexts", self.rows.len()),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.identity.name
    }

    pub(super) fn ran(&self) -> bool {
        !self.rows.is_empty()
    }
}

impl Board {
    pub(super) fn reference(&self) -> Option<&Arm> {
        self.reference.map(|index| &self.arms[index])
    }

    /// Arms of one kind, in plan order.
    pub(super) fn of(&self, kind: ArmKind) -> impl Iterator<Item = &Arm> {
        self.arms.iter().filter(move |a| a.identity.kind == kind)
    }

    /// Methods that ran: families in plan order, each by its wire ratio.
    pub(super) fn methods(&self) -> Vec<&Arm> {
        let mut families: Vec<&str> = Vec::new();
        for arm in self.of(ArmKind::Method) {
            if !families.contains(&arm.identity.family.as_str()) {
                families.push(&arm.identity.family);
            }
        }
        let place = |arm: &Arm| families.iter().position(|f| *f == arm.identity.family);
        let ratio = |arm: &Arm| arm.summary.wire_ratio.unwrap_or(0.0);
        let mut arms: Vec<&Arm> = self.of(ArmKind::Method).filter(|a| a.ran()).collect();
        arms.sort_by(|a, b| place(a).cmp(&place(b)).then(ratio(a).total_cmp(&ratio(b))));
        arms
    }
}

/// Reads every planned arm, by data set in plan order.
pub(super) fn read(input: &EvaluationInput) -> Result<Vec<Board>, ReportError> {
    let mut boards: Vec<Board> = Vec::new();
    for identity in &input.arms {
        let rows = rows_of(input, identity)?;
        let planned = input
            .contexts
            .iter()
            .find(|(dataset, _)| *dataset == identity.dataset)
            .map(|&(_, contexts)| contexts);
        let arm = Arm {
            identity: identity.clone(),
            rows,
            planned,
            summary: ArmSummary::default(),
            comparable: false,
        };
        match boards.iter_mut().find(|b| b.dataset == identity.dataset) {
            Some(board) => board.arms.push(arm),
            None => boards.push(Board {
                dataset: identity.dataset.clone(),
                suffix: String::new(),
                arms: vec![arm],
                reference: None,
            }),
        }
    }
    let several = boards.len() > 1;
    for board in &mut boards {
        if several {
            board.suffix = format!(", {}", board.dataset);
        }
        board.reference = board
            .arms
            .iter()
            .position(|a| a.identity.kind == ArmKind::Reference && a.ran());
        let summaries: Vec<_> = board
            .arms
            .iter()
            .map(|arm| {
                let summary = summarise(arm, board.reference());
                (summary, comparable(arm, board.reference()))
            })
            .collect();
        for (arm, (summary, comparable)) in board.arms.iter_mut().zip(summaries) {
            arm.summary = summary;
            arm.comparable = comparable;
        }
    }
    Ok(boards)
}

/// Whether `arm` covers what the reference covers. An evaluation that was cut off may have
/// left its last context to some of the arms only.
fn comparable(arm: &Arm, reference: Option<&Arm>) -> bool {
    let Some(reference) = reference else {
        return arm.state() == State::Whole;
    };
    let own: BTreeSet<&str> = arm.rows.iter().map(|r| r.context_id.as_str()).collect();
    let missing = reference
        .rows
        .iter()
        .filter(|row| !own.contains(row.context_id.as_str()))
        .count();
    let spared = usize::from(reference.state() == State::Partial);
    arm.ran() && missing <= spared
}

fn rows_of(
    input: &EvaluationInput,
    identity: &ArmIdentity,
) -> Result<Vec<ContextRow>, ReportError> {
    check_cell_id(&input.dir, &identity.cell_id)?;
    let path = input
        .dir
        .join("cells")
        .join(&identity.cell_id)
        .join(EVALUATION_ROWS);
    let rows = read_rows(&path)?.rows;
    let mut contexts = BTreeSet::new();
    for (index, row) in rows.iter().enumerate() {
        let reason = if row.cell_id != identity.cell_id {
            format!("it belongs to another cell: `{}`", row.cell_id)
        } else if !contexts.insert(&row.context_id) {
            format!("context `{}` is there twice", row.context_id)
        } else {
            continue;
        };
        return Err(ReportError::BadSample {
            path,
            line: index + 1,
            reason,
        });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::fixture;

    #[test]
    fn every_planned_arm_is_there_with_its_state() {
        let dir = tempfile::tempdir().unwrap();
        let boards = read(&fixture::run(dir.path())).unwrap();
        assert_eq!(boards.len(), 1);
        let board = &boards[0];
        assert_eq!(board.reference().unwrap().name(), "exact");
        let state = |name: &str| {
            let arm = board.arms.iter().find(|a| a.name() == name).unwrap();
            (arm.state(), arm.comparable, arm.progress())
        };
        let of = |n: usize| format!("{n} of {} contexts", fixture::CONTEXTS);
        assert_eq!(
            state("celslm-8x"),
            (State::Whole, true, of(fixture::CONTEXTS))
        );
        assert_eq!(state("kvtc-32x"), (State::Partial, false, of(3)));
        assert_eq!(state("groups-2bit"), (State::NotRun, false, of(0)));
    }

    #[test]
    fn methods_go_by_family_and_ratio() {
        let dir = tempfile::tempdir().unwrap();
        let boards = read(&fixture::run(dir.path())).unwrap();
        let names: Vec<_> = boards[0].methods().iter().map(|a| a.name()).collect();
        assert_eq!(
            names,
            [
                "groups-8bit",
                "groups-4bit",
                "groups-3bit",
                "kvtc-4x",
                "kvtc-8x",
                "kvtc-16x",
                "kvtc-32x",
                "celslm-4x",
                "celslm-8x",
                "celslm-16x",
                "celslm-32x",
            ]
        );
    }

    #[test]
    fn an_evaluation_under_way_spares_its_last_context() {
        let dir = tempfile::tempdir().unwrap();
        let mut input = fixture::run(dir.path());
        let cut = |cell: &str, contexts: usize| {
            let path = dir.path().join("cells").join(cell).join(EVALUATION_ROWS);
            let text = std::fs::read_to_string(&path).unwrap();
            let lines: Vec<_> = text
                .lines()
                .take(contexts)
                .map(|l| format!("{l}\n"))
                .collect();
            std::fs::write(&path, lines.concat()).unwrap();
        };
        cut("exact", 5);
        cut("celslm-8x", 4);
        cut("celslm-16x", 3);
        let comparable = |input: &EvaluationInput, name: &str| {
            let boards = read(input).unwrap();
            let arm = boards[0].arms.iter().find(|a| a.name() == name).unwrap();
            arm.comparable
        };
        assert!(comparable(&input, "celslm-4x") && comparable(&input, "celslm-8x"));
        assert!(!comparable(&input, "celslm-16x"));
        // With five planned, the reference is whole and nothing is spared.
        input.contexts[0].1 = 5;
        assert!(comparable(&input, "celslm-4x") && !comparable(&input, "celslm-8x"));
        // Without a reference, an arm must be whole.
        input.arms.retain(|a| a.kind != ArmKind::Reference);
        assert!(comparable(&input, "celslm-4x") && !comparable(&input, "celslm-8x"));
    }

    #[test]
    fn rows_in_the_wrong_place_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let input = fixture::run(dir.path());
        let path = |cell: &str| dir.path().join("cells").join(cell).join(EVALUATION_ROWS);
        let text = std::fs::read_to_string(path("celslm-8x")).unwrap();
        let first = text.lines().next().unwrap();
        std::fs::write(path("celslm-8x"), format!("{text}{first}\n")).unwrap();
        let error = read(&input).unwrap_err().to_string();
        assert!(
            error.contains("line 9: context `c0` is there twice"),
            "{error}"
        );
        std::fs::copy(path("kvtc-8x"), path("celslm-8x")).unwrap();
        let error = read(&input).unwrap_err().to_string();
        assert!(
            error.contains("line 1: it belongs to another cell: `kvtc-8x`"),
            "{error}"
        );
        let mut elsewhere = input;
        elsewhere.arms[0].cell_id = "../exact".into();
        assert!(read(&elsewhere).is_err());
    }
}
