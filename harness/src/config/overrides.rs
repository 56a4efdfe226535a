//! `--set path=value`: one value of the file, replaced on the command line.

use toml::Value;

use super::ConfigError;

/// A parsed `--set` argument.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    argument: String,
    path: Vec<String>,
    value: Value,
}

impl Override {
    /// Reads `a.b=c`. The path is dotted, a number selects an entry of an array
    /// (`scenario.0.links=["none"]`). The value is TOML; a bare word that is not TOML is taken as
    /// a string, so that `--set models.edge=smollm2` needs no second pair of quotes.
    ///
    /// # Errors
    /// [`ConfigError::Set`] when there is no `=`, the path has an empty step, or the value is
    /// neither TOML nor a bare word.
    pub fn parse(argument: &str) -> Result<Self, ConfigError> {
        let fail = |message: String| ConfigError::Set {
            argument: argument.to_owned(),
            message,
        };
        let Some((path, raw)) = argument.split_once('=') else {
            return Err(fail(
                "no `=`; write path=value, for example generation.max_tokens=16".to_owned(),
            ));
        };
        let path: Vec<String> = path.trim().split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(fail(
                "the path has an empty step; write it as section.key".to_owned(),
            ));
        }
        let raw = raw.trim();
        let value = match toml::from_str::<toml::Table>(&format!("value = {raw}")) {
            Ok(mut table) if table.len() == 1 => table.remove("value"),
            _ if is_bare_word(raw) => Some(Value::String(raw.to_owned())),
            _ => None,
        };
        let Some(value) = value else {
            return Err(fail(format!(
                "`{raw}` is not a TOML value; quote strings, write lists as [\"a\", \"b\"]"
            )));
        };
        Ok(Self {
            argument: argument.to_owned(),
            path,
            value,
        })
    }

    /// The argument, as given.
    #[must_use]
    pub fn argument(&self) -> &str {
        &self.argument
    }

    /// Whether this override decides the value at `path`, which a later check found wrong.
    pub(super) fn covers(&self, path: &[String]) -> bool {
        let shorter = self.path.len().min(path.len());
        self.path[..shorter] == path[..shorter]
    }

    /// Puts the value in, making the tables on the way. Whether the path means anything is for
    /// the typed configuration to say, with the same error as for a key in the file.
    pub(super) fn apply(&self, table: &mut toml::Table) -> Result<(), ConfigError> {
        let fail = |message: String| ConfigError::Set {
            argument: self.argument.clone(),
            message,
        };
        let (last, steps) = self
            .path
            .split_last()
            .ok_or_else(|| fail("no path".into()))?;
        let Some((first, steps)) = steps.split_first() else {
            table.insert(last.clone(), self.value.clone());
            return Ok(());
        };
        let mut at = table
            .entry(first.clone())
            .or_insert_with(|| Value::Table(toml::Table::new()));
        for step in steps {
            at = descend(at, step).map_err(fail)?;
        }
        match at {
            Value::Table(inner) => {
                inner.insert(last.clone(), self.value.clone());
            }
            other => *descend(other, last).map_err(fail)? = self.value.clone(),
        }
        Ok(())
    }
}

fn descend<'a>(at: &'a mut Value, step: &str) -> Result<&'a mut Value, String> {
    match at {
        Value::Table(table) => Ok(table
            .entry(step.to_owned())
            .or_insert_with(|| Value::Table(toml::Table::new()))),
        Value::Array(entries) => {
            let count = entries.len();
            let index: usize = step.parse().map_err(|_| {
                format!("`{step}` is not a number, and the array has {count} entries")
            })?;
            entries
                .get_mut(index)
                .ok_or_else(|| format!("no entry {index}; the array has {count}, counted from 0"))
        }
        other => Err(format!(
            "`{step}` looks inside a {}, which has no keys",
            other.type_str()
        )),
    }
}

fn is_bare_word(raw: &str) -> bool {
    raw.starts_with(|c: char| c.is_ascii_alphabetic())
        && raw
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(base: &str, argument: &str) -> Result<toml::Table, String> {
        let mut table: toml::Table = toml::from_str(base).unwrap();
        Override::parse(argument)
            .and_then(|o| o.apply(&mut table))
            .map_err(|e| e.to_string())?;
        Ok(table)
    }

    #[test]
    fn values_are_toml_and_bare_words_are_strings() {
        for (argument, value) in [
            ("a=3", "3"),
            ("a=[1, 2]", "[1, 2]"),
            ("a=\"x\"", "\"x\""),
            ("a=slow-20m", "\"slow-20m\""),
            ("a=true", "true"),
            ("a={ b = 1 }", "{ b = 1 }"),
        ] {
            let expected: toml::Table = toml::from_str(&format!("a = {value}")).unwrap();
            assert_eq!(applied("", argument).unwrap(), expected, "{argument}");
        }
    }

    #[test]
    fn paths_reach_into_tables_and_arrays() {
        let base = "[[scenario]]\nname = 'a'\n[grid]\nlinks = ['x', 'y']";
        let table = applied(base, "scenario.0.links=['z']").unwrap();
        assert_eq!(table["scenario"][0]["links"][0].as_str(), Some("z"));
        let table = applied(base, "grid.links.1=q").unwrap();
        assert_eq!(table["grid"]["links"][1].as_str(), Some("q"));
        let table = applied(base, "x.y.z=1").unwrap();
        assert_eq!(table["x"]["y"]["z"].as_integer(), Some(1));
    }

    #[test]
    fn faults_name_the_argument() {
        for (argument, part) in [
            ("novalue", "no `=`"),
            ("a..b=1", "empty step"),
            ("a=[1,", "not a TOML value"),
            ("a=1\nb=2", "not a TOML value"),
            ("grid.links.7=q", "no entry 7; the array has 1"),
            ("grid.links.x.y=q", "`x` is not a number"),
            ("grid.n.k=1", "which has no keys"),
        ] {
            let error = applied("[grid]\nlinks = ['x']\nn = 3", argument).unwrap_err();
            assert!(error.contains(part), "{argument}: {error}");
            assert!(error.starts_with(&format!("--set {argument}")), "{error}");
        }
    }
}
