//! `config.resolved.toml`: the configuration with every default and every link written out. It is
//! an experiment file itself: `celslm run results/quick/config.resolved.toml` repeats the run.

use toml::{Table, Value};

use crate::config::Config;
use crate::plan::Inputs;

/// Longest value that is shown when a key has changed.
const SHOWN_CHARS: usize = 60;

/// The configuration with everything that a run of it would use.
#[must_use]
pub fn resolved_config(config: &Config, inputs: &Inputs) -> Config {
    let devices = &inputs.devices;
    Config {
        schema_version: Some(crate::SCHEMA_VERSION),
        links: inputs.links.clone(),
        devices: [&devices.edge, &devices.cloud]
            .into_iter()
            .chain(&devices.replay)
            // The host is what it is, wherever the copy is run.
            .filter(|device| !device.is_host())
            .map(|device| (device.name.clone(), device.clone()))
            .collect(),
        ..config.clone()
    }
}

/// The keys that differ between two configurations, each as `key: old → new`.
#[must_use]
pub fn changed_keys(old: &Table, new: &Table) -> Vec<String> {
    let mut changes = Vec::new();
    compare("", old, new, &mut changes);
    changes
}

fn compare(path: &str, old: &Table, new: &Table, changes: &mut Vec<String>) {
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let at = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        compare_values(&at, old.get(key), new.get(key), changes);
    }
}

fn compare_values(at: &str, old: Option<&Value>, new: Option<&Value>, changes: &mut Vec<String>) {
    match (old, new) {
        (Some(Value::Table(old)), Some(Value::Table(new))) => compare(at, old, new, changes),
        // Lists of tables, such as scenarios, are compared entry by entry.
        (Some(Value::Array(old)), Some(Value::Array(new)))
            if old.len() == new.len()
                && old.iter().chain(new).all(Value::is_table)
                && !old.is_empty() =>
        {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                compare_values(&format!("{at}.{index}"), Some(old), Some(new), changes);
            }
        }
        (old, new) if old == new => {}
        (old, new) => changes.push(format!("{at}: {} → {}", shown(old), shown(new))),
    }
}

fn shown(value: Option<&Value>) -> String {
    let text = value.map_or_else(|| "absent".to_owned(), ToString::to_string);
    if text.chars().count() <= SHOWN_CHARS {
        return text;
    }
    text.chars().take(SHOWN_CHARS).chain("…".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_named_by_key() {
        let old: Table =
            toml::from_str("a = 1\n[b]\nc = [1, 2]\nd = 'x'\n[[s]]\nname = 'p'\n[[s]]\nname = 'q'")
                .unwrap();
        let new: Table = toml::from_str(
            "a = 1\n[b]\nc = [1, 3]\ne = true\n[[s]]\nname = 'p'\n[[s]]\nname = 'r'",
        )
        .unwrap();
        assert_eq!(
            changed_keys(&old, &new),
            [
                "b.c: [1, 2] → [1, 3]",
                "b.d: \"x\" → absent",
                "b.e: absent → true",
                "s.1.name: \"q\" → \"r\"",
            ]
        );
        assert!(changed_keys(&old, &old).is_empty());
    }
}
