//! Listings for people: columns on a terminal.

use std::io::{self, Write};

use chrono::{DateTime, SecondsFormat, Utc};

/// Writes rows under their headings, each column as wide as its widest cell.
pub fn write<const N: usize>(
    out: &mut impl Write,
    headings: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let rows: Vec<[String; N]> = rows
        .iter()
        .map(|row| row.each_ref().map(|cell| shown(cell)))
        .collect();
    let headings = headings.map(str::to_owned);
    let mut widths = headings.each_ref().map(|cell| cell.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in std::iter::once(&headings).chain(&rows) {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// A time as it stands in a listing; `-` when there is none.
pub fn time(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(
        || "-".to_owned(),
        |time| time.to_rfc3339_opts(SecondsFormat::Secs, true),
    )
}

/// Names are chosen by clients. One with control or direction characters must not move the
/// operator's cursor or rewrite the line it stands in.
fn shown(cell: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    cell.chars()
        .map(|c| if hidden(c) { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_hostile_names_are_tamed() {
        let rows = [
            ["ünï".to_owned(), "1".to_owned()],
            ["\u{1b}[2J\r\nx\u{202e}y".to_owned(), String::new()],
        ];
        let mut out = Vec::new();
        write(&mut out, ["NAME", "N"], &rows).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "NAME       N\nünï        1\n\u{fffd}[2J\u{fffd}\u{fffd}x\u{fffd}y\n"
        );
    }
}
