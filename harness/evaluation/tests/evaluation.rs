//! Evaluations of a random-weight model: what must hold whatever a model says.

use celslm_datasets::{AnswerForm, Document, Framing, Prompt, Question};
use celslm_evaluation::arm::{
    CloudAlone, Coded, Mapped, NoContext, NotesKv, NotesLocal, RandomKv, TextHandoff, WrongContext,
    ZeroKv,
};
use celslm_evaluation::{Arm, Case, Evaluator, Sensitivity, Settings};
use celslm_kv::align::{TokenAlignment, TokenSpans, by_offsets};
use celslm_kv::{BlockSpec, CodecConfig, KvChunk};
use celslm_model::synthetic::SyntheticModel;
use celslm_model::{BatchItem, KeyRetention, KvCache, LoadedModel};
use celslm_reports::evaluation::{ContextRow, QuestionRow};

fn model() -> LoadedModel {
    model_with_merges(&[])
}

fn model_with_merges(merges: &[(&str, &str)]) -> LoadedModel {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let model = SyntheticModel {
        architecture: "qwen2",
        num_layers: 3,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 32,
        quantised: false,
        seed: 8,
    };
    model.write_with_merges(&path, merges).unwrap();
    LoadedModel::load(&path).unwrap()
}

fn document(id: &str, answers: [&str; 3]) -> Document {
    let ask = |(index, answer): (usize, &&str)| Question {
        id: format!("q{index}"),
        text: format!("What is the word number {index} of the list?"),
        answers: vec![(*answer).to_owned()],
        answerable: true,
        form: AnswerForm::Span,
    };
    Document {
        id: id.to_owned(),
        title: id.to_owned(),
        kind: "list".to_owned(),
        instruction: None,
        framing: Framing::Message,
        answer_tokens: None,
        text: format!("{id} ").repeat(40),
        questions: answers.iter().enumerate().map(ask).collect(),
    }
}

fn settings(batch: usize) -> Settings {
    fn sizes(_: &BlockSpec, _: &str, chunks: &[KvChunk]) -> Result<u64, String> {
        Ok(chunks
            .iter()
            .map(|chunk| chunk.payload.len() as u64 + 50)
            .sum())
    }
    Settings {
        max_tokens: 6,
        chunk_tokens: 64,
        batch,
        now_ns: || 0,
        message_bytes: sizes,
    }
}

fn rows(
    model: &LoadedModel,
    batch: usize,
    document: &Document,
    arms: &[&dyn Arm],
) -> Vec<ContextRow> {
    let evaluator = Evaluator {
        cloud: Some(model),
        model,
        settings: settings(batch),
    };
    let other = crate::document("pebble", ["a", "b", "c"]);
    let case = Case::new(&evaluator, document, &other, || true)
        .unwrap()
        .unwrap();
    std::iter::once(None)
        .chain(arms.iter().map(|arm| Some(*arm)))
        .map(|arm| evaluator.row("cell", &case, arm).unwrap())
        .collect()
}

fn coded(id: &str) -> Coded {
    Coded {
        chain: id.parse::<CodecConfig>().unwrap().build(),
    }
}

#[test]
fn an_exact_codec_is_the_reference_and_a_coarse_one_is_not() {
    let model = model();
    let document = document("lantern", ["lantern", "a lantern", "the third lantern"]);
    let (exact, coarse) = (coded("identity"), coded("group_quant-2b-g32"));
    let rows = rows(&model, 2, &document, &[&exact, &coarse]);
    let [reference, exact, coarse] = &rows[..] else {
        panic!("three rows");
    };
    assert_eq!(reference.questions.len(), 3);
    for (own, same) in reference.questions.iter().zip(&exact.questions) {
        assert_eq!((&own.answer, own.nll), (&same.answer, same.nll));
        assert_eq!(same.top1, Some(same.positions));
        assert!(same.kl.unwrap() < 1e-5, "but for rounding to f32");
        assert_eq!((own.kl, own.top1), (None, None));
        assert!(own.nll > 0.0 && own.nll_tokens > 0);
    }
    assert!(
        exact
            .layers
            .iter()
            .all(|l| l.k_mse == 0.0 && l.v_mse == 0.0 && l.attention_error < 1e-9)
    );
    assert_eq!(exact.payload_bytes, exact.fp16_bytes);
    assert_eq!((exact.edge_token_layers, coarse.edge_token_layers), (0, 0));
    assert_eq!(reference.edge_token_layers, reference.token_layers);
    assert!(exact.message_bytes > exact.payload_bytes);
    assert_eq!(exact.held_token_layers, exact.token_layers);
    let kl: f64 = coarse.questions.iter().filter_map(|q| q.kl).sum();
    assert!(kl > 0.0);
    for layer in &coarse.layers {
        assert!(
            layer.k_mse > 0.0 && layer.k_mse < layer.k_variance,
            "{layer:?}"
        );
        assert!(layer.k_cosine > 0.5 && layer.k_cosine < 1.0, "{layer:?}");
        assert!(layer.attention_error > 0.0, "{layer:?}");
    }
    let parts: u64 = coarse.parts.iter().map(|part| part.bytes).sum();
    assert_eq!(parts, coarse.payload_bytes);
}

/// Would fail if the cache that an answer is generated from had seen the gold answer.
#[test]
fn an_answer_does_not_depend_on_the_gold_answer() {
    let model = model();
    let coarse = coded("group_quant-3b-g32");
    let answers = |gold: [&str; 3]| -> Vec<Vec<Option<String>>> {
        let document = document("lantern", gold);
        let rows = rows(&model, 3, &document, &[&coarse, &NoContext]);
        rows.iter()
            .map(|row| row.questions.iter().map(|q| q.answer.clone()).collect())
            .collect()
    };
    let short = answers(["x", "y", "z"]);
    let long = answers([
        "quite another answer",
        "lantern lantern lantern",
        "of many words and more",
    ]);
    assert_eq!(short, long);
    assert!(
        short[0].iter().flatten().any(|answer| !answer.is_empty()),
        "{short:?}"
    );
}

#[test]
fn results_do_not_depend_on_what_is_computed_together() {
    let model = model();
    let coarse = coded("group_quant-2b-g32");
    let mut document = document("lantern", ["lantern", "a lantern", "the third lantern"]);
    for form in [
        AnswerForm::Span,
        AnswerForm::Solution,
        AnswerForm::Options(options()),
        AnswerForm::Options(options()[..2].to_vec()),
    ] {
        document.questions[1].form = form;
        let alone = rows(&model, 1, &document, &[&coarse]);
        assert_eq!(alone, rows(&model, 3, &document, &[&coarse]));
    }
}

fn options() -> Vec<String> {
    [
        "a lantern",
        "lantern lantern pebble",
        "x",
        "the word of the list",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// The option that is chosen has the least nats a token of all options read alone, whichever of
/// them is right. Would fail if an option were read behind another one.
#[test]
fn the_likeliest_option_is_chosen() {
    let model = model();
    let mut readings = Vec::new();
    for right in options() {
        let mut document = document("lantern", [&right, &right, &right]);
        // One question stays without options, so that both kinds share a batch.
        for question in &mut document.questions[..2] {
            question.form = AnswerForm::Options(options());
        }
        let found = rows(&model, 3, &document, &[&NoContext]);
        readings.push((right, found));
    }
    for arm in 0..2 {
        for question in 0..2 {
            let row =
                |reading: &(String, Vec<ContextRow>)| reading.1[arm].questions[question].clone();
            let per_token = |row: &QuestionRow| row.nll / row.nll_tokens as f64;
            let least = readings
                .iter()
                .min_by(|a, b| per_token(&row(a)).total_cmp(&per_token(&row(b))))
                .unwrap();
            for reading in &readings {
                let row = row(reading);
                assert_eq!(row.answer.as_deref(), Some(least.0.as_str()));
                let right = f64::from(u8::from(reading.0 == least.0));
                assert_eq!((row.em, row.f1), (Some(right), Some(right)));
                assert_eq!(row.output_tokens, 0);
            }
        }
        let generated = &readings[0].1[arm].questions[2];
        assert!(generated.output_tokens > 0);
    }
}

/// Beside other forms of answer in one batch, and however short the experiment's answers are.
#[test]
fn solutions_are_as_long_as_the_data_set_says() {
    let model = model();
    let mut document = document("lantern", ["lantern", "lantern", "lantern"]);
    document.questions[1].form = AnswerForm::Solution;
    let tokens = |document: &Document| -> Vec<u64> {
        let rows = rows(&model, 3, document, &[&NoContext]);
        let row = &rows[0];
        row.questions.iter().map(|q| q.output_tokens).collect()
    };
    let short = tokens(&document);
    document.answer_tokens = Some(11);
    let long = tokens(&document);
    assert!(
        short.contains(&6) && long.iter().any(|t| *t > 6),
        "{short:?} {long:?}"
    );
    assert!(long.iter().all(|t| *t <= 11));
}

/// A continuation is nothing but likelihood: that of its tokens in one pass over the whole text.
#[test]
fn a_continuation_goes_on_where_its_context_stops() {
    let model = model();
    let gold = " and the lantern went out";
    let mut document = document("lantern", [gold, gold, gold]);
    document.framing = Framing::Open;
    document.text = document.text.trim().to_owned();
    document.questions.truncate(1);
    document.questions[0].form = AnswerForm::Continuation;
    let evaluated = rows(
        &model,
        3,
        &document,
        &[&NoContext, &WrongContext, &CloudAlone],
    );
    let row = &evaluated[0].questions[0];
    assert_eq!((row.answer.as_deref(), row.em, row.f1), (None, None, None));
    assert_eq!(row.output_tokens, 0);

    let rendered = model.template.context(&document.text).unwrap();
    let open = rendered.strip_suffix("<|im_end|>\n").unwrap();
    let context = model.tokenizer.encode(open).unwrap();
    let gold = model.tokenizer.encode(gold).unwrap();
    let all: Vec<u32> = context.iter().chain(&gold).copied().collect();
    let shape = model.decoder.kv_shape();
    let mut cache = KvCache::new(shape, None, all.len(), KeyRetention::RotatedOnly).unwrap();
    let mut items = [BatchItem {
        tokens: &all[..all.len() - 1],
        cache: &mut cache,
        logits: false,
    }];
    let logits = model.decoder.forward_all_logits(&mut items).unwrap();
    let nll: f64 = gold[1..]
        .iter()
        .zip(&logits[context.len()..])
        .map(|(token, logits)| {
            let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
            sum.ln() - f64::from(logits[*token as usize])
        })
        .sum();
    assert_eq!(row.nll_tokens, gold.len() as u64 - 1);
    assert!((row.nll - nll).abs() < 1e-3 * nll, "{} {nll}", row.nll);
    // The controls read something else, and the same model in the cloud the same.
    for control in &evaluated[1..3] {
        assert!((control.questions[0].nll - nll).abs() > 1e-3 * nll);
        assert!(control.context_tokens > 0 && control.held_token_layers > 0);
    }
    assert_eq!(evaluated[3].questions[0].nll, row.nll);

    let evaluator = Evaluator {
        model: &model,
        cloud: None,
        settings: settings(2),
    };
    for change in [
        (|d: &mut Document| d.framing = Framing::Message) as fn(&mut Document),
        |d| d.questions[0].form = AnswerForm::Span,
        |d| d.questions[0].answers[0].clear(),
    ] {
        let mut wrong = document.clone();
        change(&mut wrong);
        let error = Case::new(&evaluator, &wrong, &document, || true).err();
        let error = error.unwrap().to_string();
        assert!(error.contains("question q0 of lantern has"), "{error}");
    }
}

#[test]
fn a_selection_holds_less_and_controls_hold_something_else() {
    let model = model();
    let document = document("lantern", ["lantern", "a lantern", "the third lantern"]);
    for id in [
        "snapkv-k25",
        "expected_attention-k25",
        "h2o-k25",
        "random-k25-s0",
    ] {
        let half = coded(&format!("{id}+identity"));
        let rows = rows(&model, 3, &document, &[&half]);
        let row = &rows[1];
        let held = row.held_token_layers as f64 / row.token_layers as f64;
        assert!((0.2..0.3).contains(&held), "{id}: {held}");
        assert!(
            row.layers.iter().all(|l| l.k_mse == 0.0),
            "{id}: what is held is exact"
        );
        assert!(row.layers.iter().any(|l| l.attention_error > 0.0), "{id}");
        assert!(row.payload_bytes < row.fp16_bytes / 3, "{id}");
    }
    let rows = rows(&model, 3, &document, &[&NoContext, &WrongContext]);
    for control in &rows[1..] {
        assert_eq!(control.message_bytes, 0);
        assert_eq!(control.edge_token_layers, control.held_token_layers);
        let kl: f64 = control.questions.iter().filter_map(|q| q.kl).sum();
        assert!(kl > 0.0);
    }
    assert_ne!(rows[1].held_token_layers, rows[2].held_token_layers);
}

#[test]
fn sensitivities_are_measured_for_every_place() {
    let model = model();
    let document = document("lantern", ["lantern", "a lantern", "the third lantern"]);
    let evaluator = Evaluator {
        cloud: None,
        model: &model,
        settings: settings(3),
    };
    let case = Case::new(&evaluator, &document, &document, || true)
        .unwrap()
        .unwrap();
    let mut found = Sensitivity::new(model.decoder.kv_shape());
    assert_eq!(found.measurements(), 12);
    let mut asked = 0;
    let mut two = || {
        asked += 1;
        asked <= 2
    };
    assert!(!found.add(&evaluator, &case, 0.1, &mut two).unwrap());
    assert_eq!(found.contexts(), 0, "half a context does not count");
    assert!(found.add(&evaluator, &case, 0.1, || true).unwrap());
    assert!(
        found
            .by_layer()
            .all(|places| places.len() == 4 && places.iter().all(|x| *x > 0.0))
    );
    let factors = found.factors();
    assert_eq!((factors.len(), factors[0].len()), (3, 128));
    let logs: f64 = factors.iter().flatten().map(|x| f64::from(x.ln())).sum();
    assert!(logs.abs() < 0.1, "{logs}");
    // Both channels of a rotated pair matter alike.
    assert_eq!(factors[1][0], factors[1][16]);
    assert_ne!(factors[1][0], factors[1][1]);
}

/// A bridge from the model to itself, which a ridge finds to be the identity.
fn straight(model: &LoadedModel) -> celslm_kv::Bridge {
    between(model, model, TokenAlignment::Same)
}

/// A bridge between two models.
fn between(cloud: &LoadedModel, edge: &LoadedModel, tokens: TokenAlignment) -> celslm_kv::Bridge {
    use celslm_kv::align::{Alignment as _, BridgeEnd, BridgeFitter, Depth, FitOptions};
    let end = |model: &LoadedModel| BridgeEnd {
        fingerprint: model.decoder.fingerprint(),
        shape: model.decoder.kv_shape(),
    };
    let (from, to) = (end(cloud), end(edge));
    let map = Depth::default()
        .layer_map(from.shape.num_layers, to.shape.num_layers, None)
        .unwrap();
    let mut options = FitOptions::new("depth", "none", 0, "test");
    options.tokens = tokens;
    let mut fitter = BridgeFitter::new(from, to, &map, options).unwrap();
    for context in 0..10 {
        let text: String = (0..60)
            .map(|i| format!("word{} ", (i * 7919 + context * 104_729) % 977))
            .collect();
        let (from, to) = (cloud.context_spans(&text), edge.context_spans(&text));
        let (from, to) = (from.unwrap(), to.unwrap());
        let kv = |model: &LoadedModel, spans: &TokenSpans| {
            let block = model.decoder.context_kv(&spans.tokens, || true);
            block.unwrap().unwrap()
        };
        let source = kv(cloud, &from);
        // Whatever the bridge is to say: what it was fitted on is of no matter here.
        let source = TokenAlignment::Offsets.aligned(&from, &to, &source);
        fitter.add(&source.unwrap(), &kv(edge, &to)).unwrap();
    }
    fitter.finish().unwrap()
}

/// The edge's tokens are longer than the cloud's single bytes.
#[test]
fn a_mapped_arm_brings_the_clouds_rows_to_the_edges_tokens() {
    let cloud = model();
    let edge = model_with_merges(&[("a", "n"), ("t", "e"), ("Ġ", "l"), ("an", "te")]);
    let evaluator = Evaluator {
        model: &edge,
        cloud: Some(&cloud),
        settings: settings(2),
    };
    let closed = document("lantern", ["lantern", "a lantern", "the third lantern"]);
    let mut open = closed.clone();
    open.framing = Framing::Open;
    open.questions.truncate(1);
    open.questions[0].form = AnswerForm::Continuation;
    open.questions[0].answers = vec![" lantern lantern".to_owned()];
    let other = document("pebble", ["a", "b", "c"]);
    let mapped = |tokens| Mapped {
        bridge: std::sync::Arc::new(between(&cloud, &edge, tokens)),
        sinks: 0,
        shallow_layers: 0,
        own_kv: false,
    };
    let offsets = mapped(TokenAlignment::Offsets);
    let same = mapped(TokenAlignment::Same);
    for document in [closed, open] {
        let case = Case::new(&evaluator, &document, &other, || true)
            .unwrap()
            .unwrap();
        let error = evaluator.row("cell", &case, Some(&same)).unwrap_err();
        let error = format!("{:#}", std::error::Error::source(&error).unwrap());
        assert!(error.contains("other tokens"), "{error}");
        let row = evaluator.row("cell", &case, Some(&offsets)).unwrap();
        assert_eq!(row.context_tokens as usize, case.tokens().len());
        assert!(row.questions.iter().all(|q| q.nll.is_finite()));

        let spans = |model: &LoadedModel| {
            let placed = model.template.placed(&Prompt::system(&document)).unwrap();
            let placed = match document.framing {
                Framing::Message => placed,
                Framing::Open => placed.open(),
            };
            model.spans(placed).unwrap()
        };
        let (from, to) = (spans(&cloud), spans(&edge));
        assert_eq!(to.tokens, case.tokens());
        assert!(from.tokens.len() > to.tokens.len());
        let source = cloud.decoder.context_kv(&from.tokens, || true);
        let source = source.unwrap().unwrap();
        let source = source.gather_tokens(&by_offsets(&from, &to)).unwrap();
        let expected = offsets.bridge.map(&source).unwrap();
        let served = offsets.serve(&evaluator, &case).unwrap();
        assert_eq!(served.decoded.unwrap().layers, expected.layers());
    }
}

/// A bridge from the model's hidden states to its own KV, which is linear in them.
fn from_states(model: &LoadedModel) -> celslm_kv::Bridge {
    use celslm_kv::align::mapping::Joint;
    use celslm_kv::align::{BridgeEnd, BridgeFitter, FitOptions, Storage};
    use celslm_kv::{MappingConfig, SourceKind};
    let end = BridgeEnd {
        fingerprint: model.decoder.fingerprint(),
        shape: model.decoder.kv_shape(),
    };
    let joint = Joint {
        stride: 1,
        source: SourceKind::States,
        ..Joint::default()
    };
    let states = model.decoder.states_shape().unwrap();
    let mut options =
        FitOptions::new("all", "none", 0, "test").with_mapping(MappingConfig::Joint(joint));
    options.storage = Storage::F16;
    options.states = Some(states);
    let map = vec![(0..states.num_layers).collect(); end.shape.num_layers];
    let mut fitter = BridgeFitter::new(end, end, &map, options).unwrap();
    for context in 0..10 {
        // Every letter, since what was never seen cannot be mapped.
        let text: String = (0..900)
            .map(
                |i: usize| match (i * i * 31 + i * 7919 + context * 104_729) % 977 {
                    letter @ 0..832 => char::from(b'A' + (letter % 58) as u8),
                    _ => ' ',
                },
            )
            .collect();
        let tokens = model.context_tokens(&text).unwrap();
        let read = |kind| {
            let block = model.decoder.context_source(kind, &tokens, || true);
            block.unwrap().unwrap()
        };
        fitter
            .add(&read(SourceKind::States), &read(SourceKind::Kv))
            .unwrap();
    }
    fitter.finish().unwrap()
}

#[test]
fn a_mapped_arm_reads_the_states_that_its_bridge_reads() {
    let model = model();
    let mapped = Mapped {
        bridge: std::sync::Arc::new(from_states(&model)),
        sinks: 4,
        shallow_layers: 0,
        own_kv: false,
    };
    let document = document("lantern", ["lantern", "a lantern", "the third lantern"]);
    let found = rows(&model, 8, &document, &[&mapped, &ZeroKv]);
    let nll = |row: &ContextRow| -> Vec<f64> { row.questions.iter().map(|q| q.nll).collect() };
    let away = |row: &ContextRow| -> f64 {
        let pairs = nll(row).into_iter().zip(nll(&found[0]));
        pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
    };
    for layer in &found[1].layers {
        assert!(layer.v_mse < 0.1 * layer.v_variance, "{layer:?}");
    }
    let (mapped, zeros) = (away(&found[1]), away(&found[2]));
    assert!(mapped > 0.0 && mapped * 4.0 < zeros, "{mapped} {zeros}");
}

#[test]
fn a_mapped_arm_is_the_reference_where_nothing_is_mapped_and_near_it_where_the_map_is_straight() {
    let model = model();
    let bridge = std::sync::Arc::new(straight(&model));
    let mapped = |sinks, shallow_layers| Mapped {
        bridge: bridge.clone(),
        sinks,
        shallow_layers,
        own_kv: false,
    };
    let document = document("lantern", ["lantern", "a lantern", "the third lantern"]);
    let own = [mapped(10_000, 0), mapped(0, 3)];
    let (whole, part) = (mapped(0, 0), mapped(4, 1));
    let random = RandomKv { seed: 1 };
    let arms: [&dyn Arm; 7] = [
        &CloudAlone,
        &own[0],
        &own[1],
        &whole,
        &part,
        &ZeroKv,
        &random,
    ];
    let found = rows(&model, 8, &document, &arms);
    let nll = |row: &ContextRow| -> Vec<f64> { row.questions.iter().map(|q| q.nll).collect() };
    let reference = nll(&found[0]);
    for exact in &found[1..4] {
        assert_eq!(nll(exact), reference);
    }
    let away = |row: &ContextRow| -> f64 {
        let pairs = nll(row).into_iter().zip(reference.clone());
        pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
    };
    let away: Vec<f64> = found[4..].iter().map(away).collect();
    // Sinks are what no map hits: without them the answers are further off.
    let [no_sinks, straight, blank @ ..] = &away[..] else {
        panic!("four arms");
    };
    assert!(*straight > 0.0 && straight * 4.0 < *no_sinks, "{away:?}");
    assert!(blank.iter().all(|x| straight * 4.0 < *x), "{away:?}");
    // What the edge computes: everything, nothing of it, or some tokens or layers.
    let edge: Vec<u64> = found.iter().map(|row| row.edge_token_layers).collect();
    let tokens = found[0].context_tokens;
    let expected = [
        3 * tokens,
        0,
        3 * tokens,
        3 * tokens,
        0,
        tokens + 2 * 4,
        3 * 4,
        3 * 4,
    ];
    assert_eq!(edge, expected);
    // Bytes of what is mapped, and of nothing else.
    let bytes: Vec<u64> = found.iter().map(|row| row.payload_bytes).collect();
    let (all, tokens) = (found[0].fp16_bytes, found[0].context_tokens);
    assert_eq!(bytes[..5], [0, 0, 0, 0, all]);
    assert_eq!(bytes[5], all / tokens * (tokens - 4) * 2 / 3);
    // The first layer is the edge's own; what follows is nearly that.
    assert_eq!(found[5].layers[0].k_mse, 0.0);
    for layer in &found[5].layers[1..] {
        assert!(layer.k_mse < 0.1 * layer.k_variance, "{layer:?}");
    }
    for row in &found[6..] {
        for layer in &row.layers {
            assert!(layer.k_mse > 0.5 * layer.k_variance, "{layer:?}");
        }
    }
}

const NOTES: usize = 24;

fn notes_arms() -> (TextHandoff, NotesKv, NotesLocal) {
    (
        TextHandoff {
            notes_tokens: NOTES,
        },
        NotesKv {
            notes_tokens: NOTES,
        },
        NotesLocal {
            notes_tokens: NOTES,
        },
    )
}

/// Notes that are handed over as KV are the same computation as notes that the edge prefills, with
/// another account; notes alone are less than the context.
#[test]
fn notes_are_handed_over_as_text_or_as_kv() {
    let model = model();
    let (text, kv, local) = notes_arms();
    let plain = document("lantern", ["lantern", "a lantern", "the third lantern"]);
    let mut open = plain.clone();
    open.framing = Framing::Open;
    open.questions.truncate(1);
    open.questions[0].form = AnswerForm::Continuation;
    open.questions[0].answers = vec![" lantern lantern".to_owned()];
    let layers = model.decoder.kv_shape().num_layers as u64;
    for document in [plain, open] {
        let found = rows(&model, 8, &document, &[&text, &kv, &local]);
        let [reference, text, kv, local] = &found[..] else {
            panic!("four rows");
        };
        assert_eq!(kv.questions, local.questions);
        assert_ne!(kv.questions, reference.questions);
        assert_ne!(text.questions, reference.questions);
        let held: Vec<u64> = found.iter().map(|row| row.held_token_layers).collect();
        assert_eq!(held[2], held[3]);
        // Notes take tokens beside the context, and fewer than it in its place.
        assert!(held[1] < held[0] && held[0] < held[2], "{held:?}");
        // Byte-level tokens, and headings around them.
        assert!(held[2] <= held[0] + layers * (4 * NOTES as u64 + 12));
        let edge: Vec<u64> = found.iter().map(|row| row.edge_token_layers).collect();
        assert_eq!(edge, [held[0], held[1], 0, held[3]]);
        let per_token = reference.fp16_bytes / reference.context_tokens;
        assert_eq!(kv.payload_bytes, per_token * held[2] / layers);
        // An open message has nothing around its text.
        let around = match document.framing {
            Framing::Message => Prompt::system(&document).len() - document.text.trim().len(),
            Framing::Open => 0,
        };
        assert!(local.payload_bytes > 0);
        assert_eq!(text.payload_bytes, local.payload_bytes + around as u64);
        assert!(text.payload_bytes < reference.fp16_bytes / 10);
        assert_eq!(reference.payload_bytes, 0);
    }
}

/// Would fail if notes were written behind a question, or behind its answer.
#[test]
fn notes_do_not_depend_on_questions() {
    let model = model();
    let (text, kv, _) = notes_arms();
    let first = |document: &Document| -> Vec<(u64, u64, QuestionRow)> {
        let rows = rows(&model, 8, document, &[&kv, &text, &CloudAlone]);
        let first = |row: &ContextRow| {
            let question = row.questions[0].clone();
            (row.held_token_layers, row.message_bytes, question)
        };
        rows.iter().map(first).collect()
    };
    let own = document("lantern", ["lantern", "a", "b"]);
    let mut other = own.clone();
    other.questions.truncate(2);
    other.questions[1].text = "Where is the third lantern of this list, and why?".to_owned();
    other.questions[1].answers = vec!["by the quay".to_owned()];
    assert_eq!(first(&own), first(&other));
}

#[test]
fn arms_of_the_cloud_say_that_its_model_is_missing() {
    let model = model();
    let evaluator = Evaluator {
        model: &model,
        cloud: None,
        settings: settings(2),
    };
    let (document, other) = (
        document("lantern", ["a", "b", "c"]),
        document("pebble", ["a", "b", "c"]),
    );
    let case = Case::new(&evaluator, &document, &other, || true)
        .unwrap()
        .unwrap();
    let (text, kv, local) = notes_arms();
    let arms: [&dyn Arm; 4] = [&CloudAlone, &text, &kv, &local];
    for arm in arms {
        let error = evaluator.row("cell", &case, Some(arm)).unwrap_err();
        assert!(error.to_string().contains("cloud's model"), "{error}");
    }
}
