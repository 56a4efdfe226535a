//! Samples as Polars frames, and the summary of a cell.
//!
//! Everything that is not raw is derived here, once:
//!
//! | column | definition |
//! |---|---|
//! | `ttft_ms` | first token − scheduled (a late start counts) |
//! | `ttft_from_sent_ms` | first token − sent |
//! | `tpot_ms` | (last − first) / (n − 1), null when n < 2 |
//! | `itl_ms` | every gap between two tokens |
//! | `e2e_ms` | last token − scheduled |
//! | `ntpot_ms` | `e2e_ms` / n |
//! | `parts_sum_ms`, `parts_gap` | sum of the exposed parts; its distance from TTFT as a share of TTFT |
//! | `wire_ratio` | `kv_fp16_bytes` / `downlink_bytes`, where KV was fetched |
//! | `nominal_ratio` | `kv_fp16_bytes` / `kv_payload_bytes`, where KV was fetched |
//!
//! Throughput, goodput and what else belongs to a load and not to a request is
//! defined in [`level`](crate::level).

use std::path::Path;

use polars::prelude::*;

use crate::cell::CellIdentity;
use crate::error::ReportError;
use crate::level::Level;
use crate::quality::{Score, score};
use crate::sample::{PART_NAMES, SCHEMA_VERSION, Sample};

/// Requests below which a p99 says nothing: with fewer than 459, the largest
/// value lies below the true p99 with a probability above 1%.
pub const P99_MIN_REQUESTS: usize = 459;

/// One row per sample: every raw field and the derived columns. Parts become
/// two columns each, `part_<name>_exposed_ms` and `part_<name>_overlapped_ms`,
/// 0 where a system has no such part.
///
/// # Errors
/// When Polars refuses the frame.
pub fn samples_frame(samples: &[Sample]) -> Result<DataFrame, ReportError> {
    raw(samples)
        .and_then(derived)
        .map_err(ReportError::frame("the frame of samples"))
}

fn raw(samples: &[Sample]) -> PolarsResult<DataFrame> {
    macro_rules! column {
        ($field:ident) => {
            column!(stringify!($field), |s: &Sample| s.$field.clone())
        };
        ($name:expr, $value:expr) => {
            Column::new($name.into(), samples.iter().map($value).collect::<Vec<_>>())
        };
    }
    let mut columns = vec![
        column!(schema_version),
        column!(cell_id),
        column!(scenario),
        column!(order),
        column!(repetition),
        column!(warmup),
        column!(excluded),
        column!(seed),
        column!(system),
        column!(link),
        column!(alignment),
        column!(mapping),
        column!(codec),
        column!(schedule),
        column!(dataset),
        column!(contract),
        column!(compute),
        column!(device),
        column!(load),
        column!(round),
        column!(offered_rps),
        column!(edge),
        column!(conversation),
        column!(turn),
        column!(document_id),
        column!(question_id),
        column!(context_id),
        column!(outcome),
        column!(error_kind),
        column!(error),
        column!(degraded),
        column!(scheduled_ns),
        column!(sent_ns),
        column!(context_tokens),
        column!(prompt_tokens),
        column!(output_tokens),
        column!(uplink_bytes),
        column!(downlink_bytes),
        column!(uplink_packets),
        column!(downlink_packets),
        column!(uplink_payload_bytes),
        column!(downlink_payload_bytes),
        column!(kv_fp16_bytes),
        column!(kv_payload_bytes),
        column!(private_uplink_bytes),
        column!(edge_prefill_token_layers),
        column!(edge_peak_kv_bytes),
        column!(edge_cache_hit),
        column!(cloud_store_hit),
        column!(output_text),
        column!(answerable),
        column!(em),
        column!(f1),
        column!(token_exact),
    ];

    // Lists go through builders, so that their type is right when all are empty.
    let tokens = samples.iter().map(|s| s.token_ns.len()).sum();
    let mut token_ns = ListPrimitiveChunkedBuilder::<UInt64Type>::new(
        "token_ns".into(),
        samples.len(),
        tokens,
        DataType::UInt64,
    );
    let mut itl_ms = ListPrimitiveChunkedBuilder::<Float64Type>::new(
        "itl_ms".into(),
        samples.len(),
        tokens,
        DataType::Float64,
    );
    let mut output_ids = ListPrimitiveChunkedBuilder::<UInt32Type>::new(
        "output_ids".into(),
        samples.len(),
        tokens,
        DataType::UInt32,
    );
    let mut gold = ListStringChunkedBuilder::new("gold".into(), samples.len(), samples.len());
    for sample in samples {
        token_ns.append_slice(&sample.token_ns);
        let gaps: Vec<f64> = sample
            .token_ns
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) as f64 / 1e6)
            .collect();
        itl_ms.append_slice(&gaps);
        output_ids.append_slice(&sample.output_ids);
        gold.append_values_iter(sample.gold.iter().map(String::as_str));
    }
    columns.push(token_ns.finish().into_column());
    columns.push(itl_ms.finish().into_column());
    columns.push(output_ids.finish().into_column());
    columns.push(gold.finish().into_column());

    for name in PART_NAMES {
        let part = |s: &Sample| s.parts.iter().find(|p| p.name == name).cloned();
        columns.push(column!(format!("part_{name}_exposed_ms"), |s| part(s)
            .map_or(0.0, |p| p.exposed_ns as f64 / 1e6)));
        columns.push(column!(format!("part_{name}_overlapped_ms"), |s| part(s)
            .map_or(0.0, |p| p.overlapped_ns as f64 / 1e6)));
    }
    DataFrame::new(samples.len(), columns)
}

fn derived(raw: DataFrame) -> PolarsResult<DataFrame> {
    let signed = |name: &str| col(name).cast(DataType::Int64);
    let real = |name: &str| col(name).cast(DataType::Float64);
    let first = || col("token_ns").list().first().cast(DataType::Int64);
    let last = || col("token_ns").list().last().cast(DataType::Int64);
    let ms = |ns: Expr| ns.cast(DataType::Float64) / lit(1e6);
    let fetched = || col("kv_payload_bytes").gt(lit(0u64));
    let where_true =
        |condition: Expr, value: Expr| when(condition).then(value).otherwise(lit(NULL));

    let parts_sum = PART_NAMES
        .iter()
        .map(|name| col(format!("part_{name}_exposed_ms")))
        .fold(lit(0.0), |sum, part| sum + part);

    raw.lazy()
        .with_columns([
            ms(first() - signed("scheduled_ns")).alias("ttft_ms"),
            ms(first() - signed("sent_ns")).alias("ttft_from_sent_ms"),
            where_true(
                col("output_tokens").gt_eq(lit(2u32)),
                ms(last() - first()) / (real("output_tokens") - lit(1.0)),
            )
            .alias("tpot_ms"),
            ms(last() - signed("scheduled_ns")).alias("e2e_ms"),
            parts_sum.alias("parts_sum_ms"),
            where_true(
                fetched().and(col("downlink_bytes").gt(lit(0u64))),
                real("kv_fp16_bytes") / real("downlink_bytes"),
            )
            .alias("wire_ratio"),
            where_true(fetched(), real("kv_fp16_bytes") / real("kv_payload_bytes"))
                .alias("nominal_ratio"),
        ])
        .with_columns([
            where_true(
                col("output_tokens").gt(lit(0u32)),
                col("e2e_ms") / real("output_tokens"),
            )
            .alias("ntpot_ms"),
            where_true(
                col("ttft_ms").gt(lit(0.0)),
                when(col("parts_sum_ms").gt(col("ttft_ms")))
                    .then(col("parts_sum_ms") - col("ttft_ms"))
                    .otherwise(col("ttft_ms") - col("parts_sum_ms"))
                    / col("ttft_ms"),
            )
            .alias("parts_gap"),
        ])
        .collect()
}

/// The median and the tail of one latency, ms.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Quantiles {
    /// Median.
    pub p50: Option<f64>,
    /// 95th percentile.
    pub p95: Option<f64>,
    /// 99th percentile; `None` with fewer than [`P99_MIN_REQUESTS`] requests.
    pub p99: Option<f64>,
}

/// Mean of one TTFT part over the requests of a cell, ms.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PartMean {
    /// What added to TTFT.
    pub exposed_ms: f64,
    /// What was hidden behind another part.
    pub overlapped_ms: f64,
}

/// The figures of one cell. Latencies, bytes and scores are over answered
/// requests that are no warm-ups; `None` where there is none.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CellSummary {
    /// Requests made, without warm-ups and cool-downs.
    pub requests: usize,
    /// Of those, answered.
    pub ok: usize,
    /// Of those, failed.
    pub failures: usize,
    /// Warm-ups, which count in nothing else.
    pub warmups: usize,
    /// Requests of the cool-down, which count in nothing else.
    pub cooldowns: usize,
    /// Whether any request ran on a link that missed its target.
    pub degraded: bool,
    /// Load levels; with more than one, no time is stated here, as it would mix
    /// them. 0 for a cell that made its requests one after the other.
    pub levels: usize,
    /// Time to first token.
    pub ttft_ms: Quantiles,
    /// Its mean, which is what the parts add up to.
    pub ttft_mean_ms: Option<f64>,
    /// Time to first token without the wait before it was sent.
    pub ttft_from_sent_ms: Quantiles,
    /// Time per output token.
    pub tpot_ms: Quantiles,
    /// Gaps between tokens, pooled; `p99` is never stated.
    pub itl_ms: Quantiles,
    /// Time to the last token.
    pub e2e_ms: Quantiles,
    /// Median of `e2e_ms` per token.
    pub ntpot_p50_ms: Option<f64>,
    /// Mean of each part, in the order of [`PART_NAMES`].
    pub parts: [PartMean; PART_NAMES.len()],
    /// Largest distance between the sum of the parts and TTFT, share of TTFT.
    pub parts_gap_max: Option<f64>,
    /// Mean IP bytes edge to cloud.
    pub uplink_bytes: Option<f64>,
    /// Mean IP bytes cloud to edge.
    pub downlink_bytes: Option<f64>,
    /// Mean packets edge to cloud.
    pub uplink_packets: Option<f64>,
    /// Mean packets cloud to edge.
    pub downlink_packets: Option<f64>,
    /// Mean message bytes edge to cloud.
    pub uplink_payload_bytes: Option<f64>,
    /// Mean message bytes cloud to edge.
    pub downlink_payload_bytes: Option<f64>,
    /// Mean fp16 size of the KV served.
    pub kv_fp16_bytes: Option<f64>,
    /// Mean encoded size of it.
    pub kv_payload_bytes: Option<f64>,
    /// Mean of `kv_fp16_bytes / downlink_bytes`, where KV was fetched.
    pub wire_ratio: Option<f64>,
    /// Mean of `kv_fp16_bytes / kv_payload_bytes`, where KV was fetched.
    pub nominal_ratio: Option<f64>,
    /// Mean private bytes that left the edge.
    pub private_uplink_bytes: Option<f64>,
    /// Mean token-layers prefilled at the edge.
    pub edge_prefill_token_layers: Option<f64>,
    /// Largest KV cache at the edge.
    pub edge_peak_kv_bytes: Option<u64>,
    /// Share of requests whose context was in the edge's cache.
    pub edge_cache_hit_share: Option<f64>,
    /// Share of requests whose context was in the cloud's store.
    pub cloud_store_hit_share: Option<f64>,
    /// Requests whose tokens had to equal `edge_only`'s.
    pub exact_checked: usize,
    /// Of those, equal.
    pub exact_equal: usize,
    /// Exact match, 0 to 1.
    pub em: Option<Score>,
    /// Word F1, 0 to 1.
    pub f1: Option<Score>,
}

/// Summarises one cell from its samples and their [`samples_frame`].
///
/// # Errors
/// When Polars refuses the query.
pub fn summarise(samples: &[Sample], frame: &DataFrame) -> Result<CellSummary, ReportError> {
    let counted = || samples.iter().filter(|s| s.counted());
    let measured = || samples.iter().filter(|s| s.measured());
    let ok = measured().count();
    let row = aggregate(frame).map_err(ReportError::frame("the summary of a cell"))?;
    let figure = |name: &str| -> Result<Option<f64>, ReportError> {
        row.column(name)
            .and_then(|c| c.f64().map(|values| values.get(0)))
            .map_err(ReportError::frame("a column of the summary"))
    };
    let quantiles = |name: &str| -> Result<Quantiles, ReportError> {
        Ok(Quantiles {
            p50: figure(&format!("{name}_p50"))?,
            p95: figure(&format!("{name}_p95"))?,
            p99: if ok >= P99_MIN_REQUESTS && name != "itl_ms" {
                figure(&format!("{name}_p99"))?
            } else {
                None
            },
        })
    };
    let mut parts = [PartMean::default(); PART_NAMES.len()];
    for (part, name) in parts.iter_mut().zip(PART_NAMES) {
        part.exposed_ms = figure(&format!("part_{name}_exposed_ms"))?.unwrap_or(0.0);
        part.overlapped_ms = figure(&format!("part_{name}_overlapped_ms"))?.unwrap_or(0.0);
    }
    Ok(CellSummary {
        requests: counted().count(),
        ok,
        failures: counted().filter(|s| !s.ok()).count(),
        warmups: samples.iter().filter(|s| s.warmup).count(),
        cooldowns: samples.iter().filter(|s| !s.warmup && !s.counted()).count(),
        degraded: counted().any(|s| s.degraded),
        levels: 0,
        ttft_ms: quantiles("ttft_ms")?,
        ttft_mean_ms: figure("ttft_mean_ms")?,
        ttft_from_sent_ms: quantiles("ttft_from_sent_ms")?,
        tpot_ms: quantiles("tpot_ms")?,
        itl_ms: quantiles("itl_ms")?,
        e2e_ms: quantiles("e2e_ms")?,
        ntpot_p50_ms: figure("ntpot_ms_p50")?,
        parts,
        parts_gap_max: figure("parts_gap_max")?,
        uplink_bytes: figure("uplink_bytes")?,
        downlink_bytes: figure("downlink_bytes")?,
        uplink_packets: figure("uplink_packets")?,
        downlink_packets: figure("downlink_packets")?,
        uplink_payload_bytes: figure("uplink_payload_bytes")?,
        downlink_payload_bytes: figure("downlink_payload_bytes")?,
        kv_fp16_bytes: figure("kv_fp16_bytes")?,
        kv_payload_bytes: figure("kv_payload_bytes")?,
        wire_ratio: figure("wire_ratio")?,
        nominal_ratio: figure("nominal_ratio")?,
        private_uplink_bytes: figure("private_uplink_bytes")?,
        edge_prefill_token_layers: figure("edge_prefill_token_layers")?,
        edge_peak_kv_bytes: measured().map(|s| s.edge_peak_kv_bytes).max(),
        edge_cache_hit_share: figure("edge_cache_hit")?,
        cloud_store_hit_share: figure("cloud_store_hit")?,
        exact_checked: measured().filter(|s| s.token_exact.is_some()).count(),
        exact_equal: measured().filter(|s| s.token_exact == Some(true)).count(),
        em: score(measured(), |s| s.em),
        f1: score(measured(), |s| s.f1),
    })
}

/// TTFT, TPOT and end-to-end time of the measured samples at one offered rate;
/// `ok` is how many there are.
pub(crate) fn level_quantiles(
    frame: &DataFrame,
    offered_rps: Option<f64>,
    ok: usize,
) -> Result<[Quantiles; 3], ReportError> {
    let rate = col("offered_rps");
    let at_rate = match offered_rps {
        Some(value) => rate.eq(lit(value)),
        None => rate.is_null(),
    };
    let row = frame
        .clone()
        .lazy()
        .filter(at_rate)
        .collect()
        .and_then(|level| aggregate(&level))
        .map_err(ReportError::frame("the figures of a load level"))?;
    let of = |name: &str| -> Result<Quantiles, ReportError> {
        let figure = |quantile: &str| {
            row.column(&format!("{name}_{quantile}"))
                .and_then(|c| c.f64().map(|values| values.get(0)))
                .map_err(ReportError::frame("the figures of a load level"))
        };
        Ok(Quantiles {
            p50: figure("p50")?,
            p95: figure("p95")?,
            p99: if ok >= P99_MIN_REQUESTS {
                figure("p99")?
            } else {
                None
            },
        })
    };
    Ok([of("ttft_ms")?, of("tpot_ms")?, of("e2e_ms")?])
}

/// The load levels of a run: one row per cell and level, in plan order and by
/// rising rate. Times are ms, rates per second.
///
/// # Errors
/// When Polars refuses the frame.
pub fn levels_frame(levels: &[(&CellIdentity, &Level)]) -> Result<DataFrame, ReportError> {
    macro_rules! column {
        ($name:expr, |$id:ident, $l:ident| $value:expr) => {
            Column::new(
                $name.into(),
                levels.iter().map(|&($id, $l)| $value).collect::<Vec<_>>(),
            )
        };
    }
    macro_rules! identity {
        ($($field:ident),+) => { vec![$(column!(stringify!($field), |id, _l| id.$field.clone())),+] };
    }
    let mut columns = vec![column!("schema_version", |_id, _l| SCHEMA_VERSION)];
    columns.extend(identity!(
        cell_id, scenario, system, link, alignment, mapping, codec, schedule, dataset, contract,
        compute, device, load
    ));
    columns.extend([
        column!("offered_rps", |_id, l| l.offered_rps),
        column!("rounds", |_id, l| l.rounds as u64),
        column!("n", |_id, l| l.requests as u64),
        column!("ok", |_id, l| l.ok as u64),
        column!("failures", |_id, l| l.failed() as u64),
        column!("refused", |_id, l| l.refused() as u64),
        column!("excluded", |_id, l| l.excluded as u64),
        column!("dropped_arrivals", |_id, l| l.dropped_arrivals),
        column!("span_s", |_id, l| l.span_s),
        column!("throughput_rps", |_id, l| l.throughput_rps()),
        column!("throughput_tok_s", |_id, l| l.throughput_tok_s()),
        column!("goodput_rps", |_id, l| l.goodput_rps()),
        column!("good_share", |_id, l| l.good_share()),
        column!("within_ttft", |_id, l| l.within_ttft.map(|n| n as u64)),
        column!("with_tpot", |_id, l| l.with_tpot as u64),
        column!("within_tpot", |_id, l| l.within_tpot.map(|n| n as u64)),
        column!("meets_slo", |_id, l| l.meets()),
        column!("p99_supported", |_id, l| l.ok >= P99_MIN_REQUESTS),
    ]);
    macro_rules! quantiles {
        ($($field:ident),+) => {
            $(columns.extend([
                column!(quantile_name(stringify!($field), "p50"), |_id, l| l.$field.p50),
                column!(quantile_name(stringify!($field), "p95"), |_id, l| l.$field.p95),
                column!(quantile_name(stringify!($field), "p99"), |_id, l| l.$field.p99),
            ]);)+
        };
    }
    quantiles!(ttft_ms, tpot_ms, e2e_ms);
    columns.extend([
        column!("max_in_flight", |_id, l| l.max_in_flight),
        column!("send_delay_p99_ms", |_id, l| l.send_delay_p99_ms),
        column!("state", |_id, l| l.state.words()),
    ]);
    DataFrame::new(levels.len(), columns).map_err(ReportError::frame("the load levels"))
}

impl CellSummary {
    /// The same without any time, for a cell whose requests ran at several loads.
    pub(crate) fn without_times(self) -> Self {
        Self {
            ttft_ms: Quantiles::default(),
            ttft_mean_ms: None,
            ttft_from_sent_ms: Quantiles::default(),
            tpot_ms: Quantiles::default(),
            itl_ms: Quantiles::default(),
            e2e_ms: Quantiles::default(),
            ntpot_p50_ms: None,
            parts: [PartMean::default(); PART_NAMES.len()],
            ..self
        }
    }
}

/// One row of quantiles and means over the measured samples.
fn aggregate(frame: &DataFrame) -> PolarsResult<DataFrame> {
    let quantile = |e: Expr, q: f64| {
        e.quantile(lit(q), QuantileMethod::Linear)
            .cast(DataType::Float64)
    };
    let mean = |name: &str| col(name).cast(DataType::Float64).mean();
    let mut columns = vec![
        mean("ttft_ms").alias("ttft_mean_ms"),
        col("parts_gap").max().alias("parts_gap_max"),
    ];
    for name in [
        "ttft_ms",
        "ttft_from_sent_ms",
        "tpot_ms",
        "e2e_ms",
        "ntpot_ms",
    ] {
        for (suffix, q) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
            columns.push(quantile(col(name), q).alias(format!("{name}_{suffix}")));
        }
    }
    for name in [
        "uplink_bytes",
        "downlink_bytes",
        "uplink_packets",
        "downlink_packets",
        "uplink_payload_bytes",
        "downlink_payload_bytes",
        "kv_fp16_bytes",
        "kv_payload_bytes",
        "wire_ratio",
        "nominal_ratio",
        "private_uplink_bytes",
        "edge_prefill_token_layers",
        "edge_cache_hit",
        "cloud_store_hit",
    ] {
        columns.push(mean(name));
    }
    for name in PART_NAMES {
        columns.push(mean(&format!("part_{name}_exposed_ms")));
        columns.push(mean(&format!("part_{name}_overlapped_ms")));
    }
    let measured = frame.clone().lazy().filter(
        col("outcome")
            .eq(lit("ok"))
            .and(col("warmup").not())
            .and(col("excluded").is_null()),
    );
    let row = measured.clone().select(columns).collect()?;
    // Gaps are pooled over requests, so they have rows of their own.
    let gaps = measured
        .select([col("itl_ms").explode(ExplodeOptions {
            empty_as_null: false,
            keep_nulls: false,
        })])
        .select([
            quantile(col("itl_ms"), 0.5).alias("itl_ms_p50"),
            quantile(col("itl_ms"), 0.95).alias("itl_ms_p95"),
        ])
        .collect()?;
    row.hstack(gaps.columns())
}

/// The summary of a run: one row per cell, in plan order. Scores are 0 to 1,
/// times ms, sizes bytes.
///
/// # Errors
/// When Polars refuses the frame.
pub fn summary_frame(cells: &[(&CellIdentity, &CellSummary)]) -> Result<DataFrame, ReportError> {
    macro_rules! column {
        ($name:expr, |$id:ident, $s:ident| $value:expr) => {
            Column::new(
                $name.into(),
                cells.iter().map(|&($id, $s)| $value).collect::<Vec<_>>(),
            )
        };
    }
    macro_rules! identity {
        ($($field:ident),+) => { vec![$(column!(stringify!($field), |id, _s| id.$field.clone())),+] };
    }
    macro_rules! count {
        ($name:expr, $field:ident) => {
            column!($name, |_id, s| s.$field as u64)
        };
    }
    let mut columns = vec![column!("schema_version", |_id, _s| SCHEMA_VERSION)];
    columns.extend(identity!(
        cell_id, scenario, system, link, alignment, mapping, codec, schedule, dataset, contract,
        compute, device, load
    ));
    columns.extend([
        count!("n", requests),
        count!("ok", ok),
        count!("failures", failures),
        count!("warmups", warmups),
        count!("cooldowns", cooldowns),
        count!("levels", levels),
        column!("degraded", |_id, s| s.degraded),
        column!("p99_supported", |_id, s| s.ok >= P99_MIN_REQUESTS),
        column!("ttft_mean_ms", |_id, s| s.ttft_mean_ms),
    ]);
    macro_rules! quantiles {
        ($($field:ident),+) => {
            $(columns.extend([
                column!(quantile_name(stringify!($field), "p50"), |_id, s| s.$field.p50),
                column!(quantile_name(stringify!($field), "p95"), |_id, s| s.$field.p95),
                column!(quantile_name(stringify!($field), "p99"), |_id, s| s.$field.p99),
            ]);)+
        };
    }
    quantiles!(ttft_ms, ttft_from_sent_ms, tpot_ms, itl_ms, e2e_ms);
    macro_rules! figures {
        ($($field:ident),+ $(,)?) => {
            columns.extend([$(column!(stringify!($field), |_id, s| s.$field)),+])
        };
    }
    figures!(
        ntpot_p50_ms,
        uplink_bytes,
        downlink_bytes,
        uplink_packets,
        downlink_packets,
        uplink_payload_bytes,
        downlink_payload_bytes,
        kv_fp16_bytes,
        kv_payload_bytes,
        wire_ratio,
        nominal_ratio,
        private_uplink_bytes,
        edge_prefill_token_layers,
        edge_peak_kv_bytes,
        edge_cache_hit_share,
        cloud_store_hit_share,
        parts_gap_max,
    );
    for (index, name) in PART_NAMES.iter().enumerate() {
        let stated = |s: &CellSummary| s.ok > 0 && s.levels <= 1;
        columns.push(column!(format!("part_{name}_exposed_ms"), |_id, s| stated(
            s
        )
        .then(|| s.parts[index].exposed_ms)));
        columns.push(column!(format!("part_{name}_overlapped_ms"), |_id, s| {
            stated(s).then(|| s.parts[index].overlapped_ms)
        }));
    }
    macro_rules! scores {
        ($($field:ident),+) => {
            $(columns.extend([
                column!(stringify!($field), |_id, s| s.$field.map(|x| x.mean)),
                column!(concat!(stringify!($field), "_low"), |_id, s| s.$field.and_then(|x| x.interval).map(|i| i.0)),
                column!(concat!(stringify!($field), "_high"), |_id, s| s.$field.and_then(|x| x.interval).map(|i| i.1)),
            ]);)+
        };
    }
    scores!(em, f1);
    columns.extend([
        count!("exact_checked", exact_checked),
        column!("exact_share", |_id, s| (s.exact_checked > 0)
            .then(|| s.exact_equal as f64 / s.exact_checked as f64)),
    ]);
    DataFrame::new(cells.len(), columns).map_err(ReportError::frame("the summary"))
}

/// `ttft_ms`, `p50` → `ttft_p50_ms`: the unit stays last.
fn quantile_name(field: &str, quantile: &str) -> String {
    let stem = field.strip_suffix("_ms").unwrap_or(field);
    format!("{stem}_{quantile}_ms")
}

/// Writes a frame as Parquet. The file's key-value metadata carry
/// `celslm.schema_version` and `celslm.kind`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_parquet(mut frame: DataFrame, path: &Path, kind: &str) -> Result<(), ReportError> {
    let mut bytes = Vec::new();
    let metadata = KeyValueMetadata::from_static(vec![
        (
            "celslm.schema_version".to_owned(),
            SCHEMA_VERSION.to_string(),
        ),
        ("celslm.kind".to_owned(), kind.to_owned()),
    ]);
    ParquetWriter::new(&mut bytes)
        .with_key_value_metadata(Some(metadata))
        .finish(&mut frame)
        .map_err(ReportError::frame("a Parquet file"))?;
    crate::files::write(path, &bytes)
}

/// Writes a frame as CSV with a header; a null is an empty field.
///
/// # Errors
/// When the file cannot be written.
pub fn write_csv(mut frame: DataFrame, path: &Path) -> Result<(), ReportError> {
    let mut bytes = Vec::new();
    CsvWriter::new(&mut bytes)
        .finish(&mut frame)
        .map_err(ReportError::frame("a CSV file"))?;
    crate::files::write(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, MS};

    fn summary(samples: &[Sample]) -> CellSummary {
        summarise(samples, &samples_frame(samples).unwrap()).unwrap()
    }

    fn value(frame: &DataFrame, name: &str, row: usize) -> Option<f64> {
        frame.column(name).unwrap().f64().unwrap().get(row)
    }

    #[test]
    fn derived_columns_by_hand() {
        let frame = samples_frame(&[fixture::sample()]).unwrap();
        assert_eq!(value(&frame, "ttft_ms", 0), Some(100.0));
        assert_eq!(value(&frame, "ttft_from_sent_ms", 0), Some(98.0));
        assert_eq!(value(&frame, "tpot_ms", 0), Some(10.0));
        assert_eq!(value(&frame, "e2e_ms", 0), Some(120.0));
        assert_eq!(value(&frame, "ntpot_ms", 0), Some(40.0));
        assert_eq!(value(&frame, "parts_sum_ms", 0), Some(100.0));
        assert_eq!(value(&frame, "parts_gap", 0), Some(0.0));
        assert_eq!(value(&frame, "wire_ratio", 0), Some(1.0 / 1.1));
        assert_eq!(value(&frame, "nominal_ratio", 0), Some(1.0));
    }

    #[test]
    fn what_is_not_defined_is_null() {
        let mut sample = fixture::sample();
        sample.token_ns.truncate(1);
        sample.output_tokens = 1;
        sample.kv_payload_bytes = 0;
        sample.kv_fp16_bytes = 0;
        let mut silent = sample.clone();
        silent.token_ns.clear();
        silent.output_tokens = 0;
        let frame = samples_frame(&[sample, silent]).unwrap();
        assert_eq!(value(&frame, "ttft_ms", 0), Some(100.0));
        assert_eq!(value(&frame, "tpot_ms", 0), None);
        for name in ["wire_ratio", "nominal_ratio"] {
            assert_eq!(value(&frame, name, 0), None);
        }
        for name in ["ttft_ms", "tpot_ms", "e2e_ms", "ntpot_ms", "parts_gap"] {
            assert_eq!(value(&frame, name, 1), None, "{name}");
        }
    }

    #[test]
    fn a_gap_counts_in_both_directions() {
        let mut more = fixture::sample();
        more.parts[0].exposed_ns += 4 * MS;
        let mut less = fixture::sample();
        less.parts[2].exposed_ns -= 6 * MS;
        let summary = summary(&[more, less]);
        assert!((summary.parts_gap_max.unwrap() - 0.06).abs() < 1e-12);
    }

    #[test]
    fn percentiles_are_linear_between_ranks() {
        // TTFT 100, 200, 300, 400: p50 at rank 1.5, p95 at rank 2.85.
        let samples: Vec<Sample> = (1..=4)
            .map(|i| {
                let mut s = fixture::sample();
                s.token_ns = vec![s.scheduled_ns + i * 100 * MS];
                s.output_tokens = 1;
                s
            })
            .collect();
        let summary = summary(&samples);
        assert_eq!(summary.ttft_ms.p50, Some(250.0));
        assert!((summary.ttft_ms.p95.unwrap() - 385.0).abs() < 1e-9);
        assert_eq!(summary.ttft_ms.p99, None);
        assert_eq!(summary.tpot_ms.p50, None);
        assert_eq!(summary.itl_ms.p50, None);
    }

    #[test]
    fn p99_needs_459_requests() {
        let many = vec![fixture::sample(); P99_MIN_REQUESTS];
        assert_eq!(summary(&many).ttft_ms.p99, Some(100.0));
        assert_eq!(summary(&many[1..]).ttft_ms.p99, None);
    }

    #[test]
    fn warmups_and_failures_count_in_no_figure() {
        let mut warmup = fixture::sample();
        warmup.warmup = true;
        warmup.excluded = Some("warmup".into());
        warmup.token_ns[0] = warmup.sent_ns;
        let mut failed = fixture::sample();
        failed.outcome = "failed".into();
        failed.error_kind = Some("cloud_lost".into());
        failed.downlink_bytes = 9;
        failed.em = None;
        failed.f1 = None;
        let summary = summary(&[warmup, fixture::sample(), failed]);
        assert_eq!(
            (
                summary.requests,
                summary.ok,
                summary.failures,
                summary.warmups
            ),
            (2, 1, 1, 1)
        );
        assert_eq!(summary.ttft_ms.p50, Some(100.0));
        assert_eq!(summary.downlink_bytes, Some(1_100_000.0));
        assert_eq!(summary.itl_ms.p95, Some(10.0));
    }

    #[test]
    fn empty_and_failed_cells_have_no_figures() {
        assert_eq!(summary(&[]), CellSummary::default());
        let mut failed = fixture::sample();
        failed.outcome = "failed".into();
        failed.error_kind = Some("x".into());
        failed.token_ns.clear();
        failed.output_tokens = 0;
        let summary = summary(&[failed]);
        assert_eq!((summary.requests, summary.failures), (1, 1));
        assert_eq!(summary.ttft_ms, Quantiles::default());
        assert_eq!(summary.f1, None);
    }

    #[test]
    fn files_carry_the_schema_version() {
        let dir = tempfile::tempdir().unwrap();
        let samples = [fixture::sample(), fixture::sample()];
        let path = dir.path().join("samples.parquet");
        let frame = samples_frame(&samples).unwrap();
        write_parquet(frame.clone(), &path, "samples").unwrap();
        let mut reader = ParquetReader::new(std::fs::File::open(&path).unwrap());
        let metadata = reader.get_metadata().unwrap().key_value_metadata().clone();
        assert!(
            metadata
                .unwrap()
                .iter()
                .any(|kv| kv.key == "celslm.schema_version" && kv.value.as_deref() == Some("2"))
        );
        assert!(reader.finish().unwrap().equals_missing(&frame));

        let identity = CellIdentity::of(&samples[0]);
        let cell = summary(&samples);
        let path = dir.path().join("summary.csv");
        let frame = summary_frame(&[(&identity, &cell)]).unwrap();
        write_csv(frame, &path).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let mut lines = text.lines();
        let header: Vec<_> = lines.next().unwrap().split(',').collect();
        let row: Vec<_> = lines.next().unwrap().split(',').collect();
        let get = |name: &str| row[header.iter().position(|h| *h == name).unwrap()];
        assert_eq!(get("schema_version"), "2");
        assert_eq!(get("ttft_p50_ms"), "100.0");
        assert_eq!(get("ttft_p99_ms"), "");
        assert_eq!(get("p99_supported"), "false");
        assert_eq!(get("exact_share"), "1.0");
        assert_eq!(lines.next(), None);
    }
}
