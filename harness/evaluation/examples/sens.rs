#![allow(missing_docs)]
use celslm_datasets::*;
use celslm_evaluation::*;
fn main() {
    celslm_model::set_threads(2).unwrap();
    let a: Vec<String> = std::env::args().collect();
    let model = celslm_model::LoadedModel::load(std::path::Path::new(&a[1])).unwrap();
    let config = DatasetConfig::Recall(RecallConfig {
        path: a[2].clone().into(),
        documents: Some(a[3].parse().unwrap()),
        questions_per_document: Some(6),
        words: 500,
        cue_words: 8,
        span_words: 6,
    });
    let set = load(&config, None, 5).unwrap();
    fn now() -> u64 {
        0
    }
    fn mb(_: &celslm_kv::BlockSpec, _: &str, _: &[celslm_kv::KvChunk]) -> Result<u64, String> {
        Ok(0)
    }
    let e = Evaluator {
        model: &model,
        settings: Settings {
            max_tokens: 32,
            chunk_tokens: 256,
            batch: 8,
            now_ns: now,
            message_bytes: mb,
        },
    };
    let docs = set.documents();
    let mut sums = Sensitivity::new(model.decoder.kv_shape());
    for d in docs {
        let case = Case::new(&e, d, d, || true).unwrap().unwrap();
        let row = e.row("x", &case, None).unwrap();
        let f1: f64 =
            row.questions.iter().map(|q| q.f1.unwrap()).sum::<f64>() / row.questions.len() as f64;
        let n: f64 = row.questions.iter().map(|q| q.nll).sum::<f64>()
            / row
                .questions
                .iter()
                .map(|q| q.nll_tokens as f64)
                .sum::<f64>();
        eprintln!(
            "{} f1 {f1:.3} nll {n:.3} {:?}",
            d.id, row.questions[0].answer
        );
        sums.add(&e, &case, 0.1, || true).unwrap();
        std::fs::write(&a[4], serde_json::to_string(&sums.factors(0.3)).unwrap()).unwrap();
        for (l, s) in sums.by_layer().enumerate() {
            println!(
                "{l} {}",
                s.iter()
                    .map(|x| format!("{x:.3}"))
                    .collect::<Vec<_>>()
                    .join(" ")
            );
        }
    }
}
