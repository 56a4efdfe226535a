//! Aligned columns for lists, and printing that a closed pipe does not disturb.

use std::io::Write as _;

/// Writes to standard output. A reader that has seen enough, such as `head`, is no error.
pub(crate) fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    // Nothing can be told to a reader that is gone.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints rows with every column but the last padded to its widest entry, behind `indent`.
pub(crate) fn print<const N: usize>(indent: &str, rows: &[[String; N]]) {
    show(&render(indent, rows));
}

fn render<const N: usize>(indent: &str, rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width - cell.chars().count() + 2));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_aligned() {
        let rows = [["a", "long", "x"], ["éé", "b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(super::render("  ", &rows), "  a   long  x\n  éé  b\n");
    }
}
