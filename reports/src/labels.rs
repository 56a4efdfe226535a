//! Short names for cells.

use std::collections::{BTreeMap, BTreeSet};

use crate::cell::CellIdentity;

/// Whether a dimension says that it does not apply.
fn absent(value: &str) -> bool {
    matches!(value, "" | "-" | "none" | "n/a")
}

/// Names cells by what differs between them: a dimension that is the same
/// everywhere is left out. What was not computed live is always marked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Labels {
    load: bool,
    device: bool,
    schedule: bool,
    contract: bool,
    dataset: bool,
    scenario: bool,
    /// Cells whose name and link another cell shares; they carry their id.
    ambiguous: BTreeSet<String>,
}

impl Labels {
    pub(crate) fn new<'a>(cells: impl Iterator<Item = &'a CellIdentity> + Clone) -> Self {
        let varies = |field: fn(&CellIdentity) -> &str| {
            let values: BTreeSet<&str> = cells
                .clone()
                .map(field)
                .filter(|value| !absent(value))
                .collect();
            values.len() > 1
        };
        let mut labels = Self {
            load: varies(|c| &c.load),
            device: varies(|c| &c.device),
            schedule: varies(|c| &c.schedule),
            contract: varies(|c| &c.contract),
            dataset: varies(|c| &c.dataset),
            scenario: varies(|c| &c.scenario),
            ambiguous: BTreeSet::new(),
        };
        let mut named: BTreeMap<(String, &str), &str> = BTreeMap::new();
        for cell in cells {
            if let Some(twin) = named.insert((labels.variant(cell), &cell.link), &cell.cell_id) {
                labels.ambiguous.insert(twin.to_owned());
                labels.ambiguous.insert(cell.cell_id.clone());
            }
        }
        labels
    }

    /// The cell without its link.
    pub(crate) fn variant(&self, cell: &CellIdentity) -> String {
        self.named(cell, self.load)
    }

    /// The cell without its link and load.
    pub(crate) fn unloaded(&self, cell: &CellIdentity) -> String {
        self.named(cell, false)
    }

    fn named(&self, cell: &CellIdentity, with_load: bool) -> String {
        let mut label = self.method(cell);
        if self.schedule && !absent(&cell.schedule) {
            label.push(' ');
            label.push_str(&cell.schedule);
        }
        if self.contract && !absent(&cell.contract) {
            label.push(' ');
            label.push_str(&cell.contract);
        }
        if with_load {
            label.push_str(&format!(" at {}", cell.load));
        }
        let with_id = self.ambiguous.contains(&cell.cell_id);
        self.finish(label, cell, with_id)
    }

    /// The cell without what cannot change its answers: link, schedule and
    /// cache contract; and without its load, unless `with_load`.
    pub(crate) fn pooled(&self, cell: &CellIdentity, with_load: bool) -> String {
        let mut label = self.method(cell);
        if self.load && with_load {
            label.push_str(&format!(" at {}", cell.load));
        }
        self.finish(label, cell, false)
    }

    fn method(&self, cell: &CellIdentity) -> String {
        let mut label = cell.system.clone();
        let alignment: Vec<&str> = [cell.alignment.as_str(), &cell.mapping]
            .into_iter()
            .filter(|v| !absent(v))
            .collect();
        if !alignment.is_empty() {
            label.push(' ');
            // "identity/identity" says no more than "identity".
            if alignment.len() == 2 && alignment[0] == alignment[1] {
                label.push_str(alignment[0]);
            } else {
                label.push_str(&alignment.join("/"));
            }
        }
        if !absent(&cell.codec) {
            label.push_str(" + ");
            label.push_str(match cell.codec.as_str() {
                // Two dimensions have a method "identity"; the codec's is named
                // by what it sends.
                "identity" => "fp16",
                codec => codec,
            });
        }
        label
    }

    fn finish(&self, mut label: String, cell: &CellIdentity, with_id: bool) -> String {
        if self.dataset {
            label.push_str(" on ");
            label.push_str(&cell.dataset);
        }
        if self.scenario && !absent(&cell.scenario) {
            label.push_str(&format!(" ({})", cell.scenario));
        }
        if self.device && !absent(&cell.device) {
            label.push_str(&format!(" as {}", cell.device));
        }
        if cell.compute != "live" {
            label.push_str(&format!(" [{}]", cell.compute));
        }
        if with_id {
            label.push_str(&format!(" #{}", cell.cell_id));
        }
        label
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn cell(change: impl FnOnce(&mut CellIdentity)) -> CellIdentity {
        let mut identity = CellIdentity::of(&fixture::sample());
        change(&mut identity);
        identity
    }

    #[test]
    fn only_what_differs_is_named() {
        let edge = cell(|c| {
            c.cell_id = "e".into();
            c.system = "edge_only".into();
            for field in [
                &mut c.alignment,
                &mut c.mapping,
                &mut c.codec,
                &mut c.schedule,
            ] {
                *field = "none".into();
            }
        });
        let whole = cell(|_| {});
        let ridge = cell(|c| {
            c.cell_id = "r".into();
            c.alignment = "depth".into();
            c.mapping = "ridge".into();
            c.codec = "group_quant4".into();
            c.compute = "replayed".into();
        });
        let labels = Labels::new([&edge, &whole, &ridge].into_iter());
        assert_eq!(labels.variant(&edge), "edge_only");
        assert_eq!(labels.variant(&whole), "ce_lslm identity + fp16");
        assert_eq!(
            labels.variant(&ridge),
            "ce_lslm depth/ridge + group_quant4 [replayed]"
        );

        let sequential = cell(|c| {
            c.cell_id = "s".into();
            c.schedule = "sequential".into();
        });
        let labels = Labels::new([&whole, &sequential].into_iter());
        assert_eq!(
            labels.variant(&sequential),
            "ce_lslm identity + fp16 sequential"
        );
        assert_eq!(
            labels.pooled(&sequential, true),
            labels.pooled(&whole, true)
        );

        let busy = cell(|c| {
            c.cell_id = "b".into();
            c.load = "closed-8".into();
        });
        let labels = Labels::new([&whole, &busy].into_iter());
        assert_eq!(labels.variant(&busy), "ce_lslm identity + fp16 at closed-8");
        assert_eq!(labels.unloaded(&busy), labels.unloaded(&whole));
        assert_eq!(labels.pooled(&busy, false), labels.pooled(&whole, false));
        assert_ne!(labels.pooled(&busy, true), labels.pooled(&whole, true));
    }

    #[test]
    fn twins_carry_their_ids() {
        let one = cell(|c| c.cell_id = "one".into());
        let two = cell(|c| c.cell_id = "two".into());
        let elsewhere = cell(|c| {
            c.cell_id = "three".into();
            c.link = "other".into();
        });
        let labels = Labels::new([&one, &two, &elsewhere].into_iter());
        assert_eq!(labels.variant(&one), "ce_lslm identity + fp16 #one");
        assert_eq!(labels.variant(&two), "ce_lslm identity + fp16 #two");
        assert_eq!(labels.variant(&elsewhere), "ce_lslm identity + fp16");
    }
}
