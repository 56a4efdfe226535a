//! `bytes`: what crossed the link.

use super::{Data, View, kb};
use crate::table::{Column, Table, Value};

/// Bytes and packets per request, and how far the KV cache was compressed.
#[derive(Debug, Clone, Copy)]
pub struct Bytes;

impl View for Bytes {
    fn name(&self) -> &'static str {
        "bytes"
    }

    fn about(&self) -> &'static str {
        "bytes and packets per request, compression, and private bytes that left the edge"
    }

    fn table(&self, data: &Data) -> Table {
        let cells: Vec<_> = data.cells.iter().filter(|c| c.summary.ok > 0).collect();
        let rows = cells
            .iter()
            .map(|cell| {
                let s = &cell.summary;
                // A system that fetches no KV has no KV size, not one of zero.
                let kv = |bytes: Option<f64>| kb(bytes.filter(|_| s.nominal_ratio.is_some()));
                vec![
                    Value::Text(data.variant(cell)),
                    Value::Text(cell.identity.link.clone()),
                    kb(s.uplink_bytes),
                    kb(s.downlink_bytes),
                    kb(s.uplink_payload_bytes),
                    kb(s.downlink_payload_bytes),
                    Value::number(s.uplink_packets, 0),
                    Value::number(s.downlink_packets, 0),
                    kv(s.kv_fp16_bytes),
                    kv(s.kv_payload_bytes),
                    Value::number(s.wire_ratio, 3),
                    Value::number(s.nominal_ratio, 3),
                    Value::number(s.private_uplink_bytes, 0),
                ]
            })
            .collect();
        Table {
            title: "Bytes per request".to_owned(),
            columns: vec![
                Column::text("system"),
                Column::text("link"),
                Column::figure("uplink", "kB"),
                Column::figure("downlink", "kB"),
                Column::figure("uplink payload", "kB"),
                Column::figure("downlink payload", "kB"),
                Column::figure("uplink packets", ""),
                Column::figure("downlink packets", ""),
                Column::figure("KV as fp16", "kB"),
                Column::figure("KV encoded", "kB"),
                Column::figure("wire ratio", ""),
                Column::figure("nominal ratio", ""),
                Column::figure("private uplink", "bytes"),
            ],
            rows,
            notes: vec![if cells.is_empty() {
                "No request was answered.".to_owned()
            } else {
                "Means over the answered requests. Uplink and downlink are IP bytes, headers and retransmissions included; payload is messages alone. Wire ratio: fp16 bytes of the KV served / downlink bytes. Nominal ratio: fp16 bytes / encoded bytes, scales included."
                    .to_owned()
            }],
        }
    }
}
