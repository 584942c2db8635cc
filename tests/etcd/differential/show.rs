//! Outcomes for people: bytes as text, and of two values only the part that differs.
use std::fmt::Debug;

/// Lines of context around a difference.
const CONTEXT: usize = 12;
/// Longest byte string that is shown whole.
const BYTES_MAX: usize = 40;

/// The value over many lines.
pub(super) fn pretty(value: &impl Debug) -> String {
    bytes_as_text(&format!("{value:#?}"))
}

/// Where two values differ, with a few lines around it.
pub(super) fn difference(names: [&str; 2], values: [&impl Debug; 2]) -> String {
    let [a, b] = values.map(pretty);
    let (a, b): (Vec<_>, Vec<_>) = (a.lines().collect(), b.lines().collect());
    let same = |pair: &(&&str, &&str)| pair.0 == pair.1;
    let head = a.iter().zip(&b).take_while(same).count();
    let left = a.len().min(b.len()) - head;
    let tail = a.iter().rev().zip(b.iter().rev());
    let tail = tail.take_while(same).count().min(left);
    let part = |name: &str, lines: &[&str]| {
        let from = head.saturating_sub(CONTEXT);
        let to = (lines.len() - tail + CONTEXT).min(lines.len());
        format!("--- {name}\n{}\n", lines[from..to].join("\n"))
    };
    part(names[0], &a) + &part(names[1], &b)
}

/// `[97, 47, 49]`, over any number of lines, as `"a/1"`.
fn bytes_as_text(debug: &str) -> String {
    let mut text = String::with_capacity(debug.len());
    let mut rest = debug;
    while let Some(start) = rest.find('[') {
        text.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find(']').map_or(rest.len(), |end| end + 1);
        let numbers = rest[1..end].trim_end_matches(']').split(',');
        let numbers = numbers.map(str::trim).filter(|number| !number.is_empty());
        let bytes: Option<Vec<u8>> = numbers.map(|number| number.parse().ok()).collect();
        match bytes.filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => {
                let shown = &bytes[..bytes.len().min(BYTES_MAX)];
                text.push_str(&format!("\"{}\"", shown.escape_ascii()));
                if bytes.len() > BYTES_MAX {
                    text.push_str(&format!(" and {} more", bytes.len() - BYTES_MAX));
                }
                rest = &rest[end..];
            }
            None => {
                text.push('[');
                rest = &rest[1..];
            }
        }
    }
    text + rest
}
