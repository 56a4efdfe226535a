//! A small made-up evaluation: three families, a reference, controls, a partial arm and one that
//! did not run.

use std::path::Path;

use super::row::{
    ArmIdentity, ArmKind, BytePart, CloudPart, ContextRow, EVALUATION_ROWS, EvaluationInput,
    LayerRow, QuestionRow,
};
use super::row::{EVALUATION_FILE_VERSION, EVALUATION_SCHEMA_VERSION};

/// Contexts of every arm that is whole.
pub(super) const CONTEXTS: usize = 8;
const QUESTIONS: usize = 5;
const LAYERS: u32 = 4;

/// What an arm does to a row, in units that make the figures easy to check.
#[derive(Clone, Copy)]
struct Effect {
    /// fp16 bytes over payload bytes; 0 for what is not encoded.
    ratio: f64,
    /// Lost F1 and added nats per token, before some wobble between questions.
    f1: f64,
    nll: f64,
    contexts: usize,
}

pub(super) fn run(dir: &Path) -> EvaluationInput {
    let mut input = EvaluationInput {
        schema_version: EVALUATION_FILE_VERSION,
        dir: dir.to_owned(),
        title: "Fixture evaluation".into(),
        description: "Three made-up families.".into(),
        notes: vec!["Made up.".into()],
        environment: vec![("cpu".into(), "none".into())],
        arms: Vec::new(),
        contexts: vec![("squad".into(), CONTEXTS as u64)],
    };
    let mut add = |kind, family: &str, name: &str, effect: (f64, f64, f64), contexts| {
        arm(dir, &mut input, kind, (family, name), effect, contexts);
    };
    let (reference, control, method) = (ArmKind::Reference, ArmKind::Control, ArmKind::Method);
    add(reference, "exact", "exact", (0.0, 0.0, 0.0), CONTEXTS);
    add(
        control,
        "no_context",
        "no_context",
        (0.0, 0.5, 2.8),
        CONTEXTS,
    );
    add(control, "zero_kv", "zero_kv", (0.0, 0.45, 2.9), CONTEXTS);
    for (name, effect, contexts) in [
        ("groups-2bit", (7.1, 0.08, 0.12), 0),
        ("groups-3bit", (5.2, 0.002, 0.008), CONTEXTS),
        ("groups-4bit", (3.8, 0.001, 0.002), CONTEXTS),
        ("groups-8bit", (1.9, 0.0, 0.001), CONTEXTS),
    ] {
        add(method, "groups", name, effect, contexts);
    }
    for (name, effect, contexts) in [
        ("kvtc-4x", (4.0, 0.001, 0.012), CONTEXTS),
        ("kvtc-8x", (8.0, 0.006, 0.025), CONTEXTS),
        ("kvtc-16x", (16.0, 0.07, 0.11), CONTEXTS),
        ("kvtc-32x", (32.0, 0.3, 0.9), 3),
    ] {
        add(method, "kvtc", name, effect, contexts);
    }
    for (name, effect) in [
        ("celslm-4x", (4.0, 0.0, 0.004)),
        ("celslm-8x", (8.0, 0.002, 0.007)),
        ("celslm-16x", (16.0, 0.02, 0.018)),
        ("celslm-32x", (32.0, 0.15, 0.25)),
    ] {
        add(method, "celslm", name, effect, CONTEXTS);
    }
    input
}

/// Sixteen families of six arms each, from lossless to useless, with the same reference.
pub(super) fn crowd(dir: &Path) -> EvaluationInput {
    let mut input = EvaluationInput {
        schema_version: EVALUATION_FILE_VERSION,
        dir: dir.to_owned(),
        title: "Fixture of many families".into(),
        description: String::new(),
        notes: Vec::new(),
        environment: Vec::new(),
        arms: Vec::new(),
        contexts: vec![("squad".into(), CONTEXTS as u64)],
    };
    let exact = (0.0, 0.0, 0.0);
    arm(
        dir,
        &mut input,
        ArmKind::Reference,
        ("exact", "exact"),
        exact,
        CONTEXTS,
    );
    for (name, effect) in [
        ("no_context", (0.0, 0.5, 2.8)),
        ("wrong_context", (0.0, 0.1, 0.35)),
    ] {
        arm(
            dir,
            &mut input,
            ArmKind::Control,
            (name, name),
            effect,
            CONTEXTS,
        );
    }
    let families = [
        "group_quant",
        "kivi",
        "cachegen",
        "cachegen_code",
        "kvtc",
        "turboquant",
        "svd",
        "merge",
        "streaming",
        "knorm",
        "snapkv",
        "expected_attention",
        "h2o",
        "random",
        "celslm",
        "celslm_progressive",
    ];
    for (index, family) in families.iter().enumerate() {
        // Later families lose as much at higher ratios.
        let strength = 2.0 + 1.3 * index as f64;
        for step in 0..6 {
            let ratio = 2f64.powf(1.0 + f64::from(step));
            let strain = ratio / strength;
            let loss = 0.002 * strain.powf(2.2);
            let effect = (ratio, loss.min(0.5), loss);
            let name = format!("{family}-{ratio}x");
            arm(
                dir,
                &mut input,
                ArmKind::Method,
                (family, &name),
                effect,
                CONTEXTS,
            );
        }
    }
    input
}

/// An arm of [`clouds`].
struct Clouded {
    kind: ArmKind,
    cloud: Option<CloudPart>,
    name: &'static str,
    /// F1 over the reference's, and by how much contexts vary about that.
    gain: (f64, f64),
    /// The same for nats a token.
    nats: (f64, f64),
    /// Of the context's KV, what part the edge computes and what part is sent.
    edge: f64,
    sent: f64,
    fit_s: Option<f64>,
    own_controls: &'static [&'static str],
}

/// Labels of the data sets of [`clouds`]. Of the second only likelihoods are taken.
pub(super) const SETS: [&str; 7] = [
    "squad",
    "continuation",
    "choice-arc-challenge",
    "choice-openbookqa",
    "gsm8k",
    "needle",
    "squad-xquad",
];

/// Arms in which the cloud's model takes part, over the first `sets` data sets.
pub(super) fn clouds(dir: &Path, sets: usize) -> EvaluationInput {
    let (informs, withheld) = (Some(CloudPart::Informs), Some(CloudPart::Withheld));
    let plain = Clouded {
        kind: ArmKind::Method,
        cloud: informs,
        name: "",
        gain: (0.0, 0.0),
        nats: (0.0, 0.0),
        edge: 0.0,
        sent: 1.0,
        fit_s: None,
        own_controls: &[],
    };
    let reference = Clouded {
        kind: ArmKind::Reference,
        cloud: None,
        name: "uncompressed",
        edge: 1.0,
        sent: 0.0,
        ..plain
    };
    let control = |name, gain, nats| Clouded {
        kind: ArmKind::Control,
        cloud: None,
        name,
        gain: (gain, 0.02),
        nats: (nats, 0.1),
        edge: 0.02,
        sent: 0.0,
        ..plain
    };
    let method = |name, gain, nats| Clouded {
        name,
        gain,
        nats,
        ..plain
    };
    let arms = [
        reference,
        control("no_context", -0.5, 2.8),
        control("wrong_context", -0.4, 2.9),
        Clouded {
            cloud: Some(CloudPart::Alone),
            sent: 0.0,
            ..method("cloud_alone", (0.2, 0.05), (-0.4, 0.05))
        },
        Clouded {
            edge: 0.2,
            sent: 0.01,
            ..method("text_handoff", (-0.25, 0.05), (0.9, 0.2))
        },
        Clouded {
            sent: 1.2,
            own_controls: &["notes_local"],
            ..method("notes_kv", (0.05, 0.02), (-0.1, 0.02))
        },
        Clouded {
            edge: 1.2,
            sent: 0.01,
            ..method("notes_local", (0.05, 0.02), (-0.1, 0.02))
        },
        Clouded {
            fit_s: Some(312.0),
            own_controls: &["self-depth-ridge-s4-l0"],
            ..method("depth-ridge-s4-l0", (-0.45, 0.1), (2.0, 0.3))
        },
        Clouded {
            cloud: withheld,
            edge: 1.0,
            sent: 0.0,
            fit_s: Some(290.0),
            ..method("self-depth-ridge-s4-l0", (-0.02, 0.01), (0.03, 0.01))
        },
        Clouded {
            edge: 1.0 / 3.0,
            sent: 2.0 / 3.0,
            fit_s: Some(9_400.0),
            ..method("all-trained-s4-l8", (0.01, 0.06), (-0.02, 0.1))
        },
        Clouded {
            own_controls: &["distilled-edge-r4-n60"],
            sent: 0.25,
            ..method("distilled-cloud-r4-n60", (0.1, 0.03), (-0.3, 0.05))
        },
        Clouded {
            cloud: withheld,
            sent: 0.25,
            ..method("distilled-edge-r4-n60", (0.02, 0.03), (-0.15, 0.05))
        },
    ];
    let mut input = EvaluationInput {
        schema_version: EVALUATION_FILE_VERSION,
        dir: dir.to_owned(),
        title: "Fixture of the cloud's part".into(),
        description: "Made-up arms in which the cloud's model takes part.".into(),
        notes: Vec::new(),
        environment: Vec::new(),
        arms: Vec::new(),
        contexts: SETS[..sets]
            .iter()
            .map(|set| ((*set).to_owned(), CONTEXTS as u64))
            .collect(),
    };
    for set in &SETS[..sets] {
        for (index, arm) in arms.iter().enumerate() {
            let cell = format!("{set}-{}", arm.name);
            input.arms.push(ArmIdentity {
                cell_id: cell.clone(),
                dataset: (*set).into(),
                kind: arm.kind,
                family: arm.name.into(),
                name: arm.name.into(),
                codec: None,
                artefact_bytes: if arm.fit_s.is_some() { 12_000_000 } else { 0 },
                cloud: arm.cloud,
                fit_s: arm.fit_s,
                tuned_per_context: arm.name.starts_with("distilled"),
                own_controls: arm
                    .own_controls
                    .iter()
                    .map(|name| (*name).to_owned())
                    .collect(),
            });
            let rows: Vec<_> = (0..CONTEXTS)
                .map(|context| clouded(&cell, arm, set, index, context))
                .collect();
            store(dir, &cell, &rows);
        }
    }
    input
}

fn clouded(cell: &str, arm: &Clouded, set: &str, index: usize, context: usize) -> ContextRow {
    // From −1 to 1, and another order for each arm.
    let place = (context * (2 * index + 3)) % CONTEXTS;
    let varied = |(middle, spread): (f64, f64)| {
        middle + spread * (2.0 * place as f64 / (CONTEXTS - 1) as f64 - 1.0)
    };
    let effect = Effect {
        ratio: 0.0,
        f1: -varied(arm.gain),
        nll: varied(arm.nats),
        contexts: CONTEXTS,
    };
    let mut row = row(cell, arm.kind, effect, context);
    row.edge_token_layers = (row.token_layers as f64 * arm.edge) as u64;
    row.payload_bytes = (row.fp16_bytes as f64 * arm.sent) as u64;
    row.message_bytes = row.payload_bytes;
    if arm.name.starts_with("distilled") {
        row.encode_ns = 75_000_000_000 + 1_000_000_000 * context as u64;
    }
    if set == "continuation" {
        for question in &mut row.questions {
            (question.answer, question.em, question.f1) = (None, None, None);
        }
    }
    row
}

/// Plans an arm over `squad` and writes its rows.
fn arm(
    dir: &Path,
    input: &mut EvaluationInput,
    kind: ArmKind,
    (family, name): (&str, &str),
    (ratio, f1, nll): (f64, f64, f64),
    contexts: usize,
) {
    input.arms.push(ArmIdentity {
        cell_id: name.into(),
        dataset: "squad".into(),
        kind,
        family: family.into(),
        name: name.into(),
        codec: (ratio > 0.0).then(|| format!("codec of {name}")),
        artefact_bytes: if family == "kvtc" { 1_500_000 } else { 0 },
        cloud: None,
        fit_s: None,
        tuned_per_context: false,
        own_controls: Vec::new(),
    });
    let effect = Effect {
        ratio,
        f1,
        nll,
        contexts,
    };
    write(dir, name, kind, effect);
}

fn write(dir: &Path, cell: &str, kind: ArmKind, effect: Effect) {
    if effect.contexts == 0 {
        return;
    }
    let rows = (0..effect.contexts).map(|context| row(cell, kind, effect, context));
    store(dir, cell, &rows.collect::<Vec<_>>());
}

fn store(dir: &Path, cell: &str, rows: &[ContextRow]) {
    let folder = dir.join("cells").join(cell);
    std::fs::create_dir_all(&folder).unwrap();
    let lines = rows
        .iter()
        .map(|row| serde_json::to_string(row).unwrap() + "\n");
    std::fs::write(folder.join(EVALUATION_ROWS), lines.collect::<String>()).unwrap();
}

fn row(cell: &str, kind: ArmKind, effect: Effect, context: usize) -> ContextRow {
    let tokens = 800 + 10 * context as u64;
    let fp16_bytes = tokens * 12_288;
    let payload_bytes = if effect.ratio > 0.0 {
        (fp16_bytes as f64 / effect.ratio) as u64
    } else {
        0
    };
    let sent = payload_bytes > 0;
    let layers = if sent { 0..LAYERS } else { 0..0 };
    ContextRow {
        schema_version: EVALUATION_SCHEMA_VERSION,
        cell_id: cell.into(),
        context_id: format!("c{context}"),
        context_tokens: tokens,
        held_token_layers: tokens * u64::from(LAYERS),
        token_layers: tokens * u64::from(LAYERS),
        fp16_bytes,
        payload_bytes,
        message_bytes: if sent { payload_bytes + 2_000 } else { 0 },
        edge_token_layers: match (kind, sent) {
            (_, true) => 0,
            (ArmKind::Control, false) => 4 * u64::from(LAYERS),
            (_, false) => tokens * u64::from(LAYERS),
        },
        parts: if sent {
            vec![
                BytePart {
                    part: "scales".into(),
                    bytes: payload_bytes / 8,
                },
                BytePart {
                    part: "symbols".into(),
                    bytes: payload_bytes - payload_bytes / 8,
                },
            ]
        } else {
            Vec::new()
        },
        encode_ns: if sent { 20_000_000 } else { 0 },
        decode_ns: if sent { 10_000_000 } else { 0 },
        layers: layers
            .map(|layer| {
                let error = effect.nll * f64::from(layer + 1);
                LayerRow {
                    layer,
                    k_mse: 2.0 * error,
                    k_variance: 4.0,
                    k_cosine: 1.0 - error / 4.0,
                    v_mse: 0.1 * error,
                    v_variance: 0.1,
                    v_cosine: 1.0 - error / 2.0,
                    attention_error: error / 10.0,
                }
            })
            .collect(),
        questions: (0..QUESTIONS)
            .map(|question| asked(kind, effect, context, question))
            .collect(),
    }
}

fn asked(kind: ArmKind, effect: Effect, context: usize, question: usize) -> QuestionRow {
    let exact = [1.0, 0.5, 0.0, 0.8, 1.0][(context + question) % 5];
    // From −1 to 1, zero over the questions of a context.
    let wobble = (question as f64 - 2.0) / 2.0;
    let f1 = (exact - effect.f1 * (1.0 + wobble)).clamp(0.0, 1.0);
    let nll_tokens = 2 + (question as u64 % 3);
    let per_token = 1.0 + 0.05 * context as f64 + effect.nll * (1.0 + 0.2 * wobble);
    let positions = nll_tokens;
    let reference = kind == ArmKind::Reference;
    QuestionRow {
        question_id: format!("q{question}"),
        answer: Some("an answer".into()),
        output_tokens: 3,
        em: Some(if f1 >= 1.0 { 1.0 } else { 0.0 }),
        f1: Some(f1),
        nll: per_token * nll_tokens as f64,
        nll_tokens,
        kl: (!reference).then_some(0.5 * effect.nll * positions as f64),
        top1: (!reference).then_some(if effect.nll > 0.05 && question == 0 {
            positions - 1
        } else {
            positions
        }),
        positions,
    }
}
