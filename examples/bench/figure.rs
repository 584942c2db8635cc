//! What a group measures: runs of two candidates in turn, their median and spread, one line each.
use std::{fs::OpenOptions, io::Write as _, path::Path};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The values of one candidate, ascending; an odd number of them, so that the median is one.
#[derive(Debug)]
pub(crate) struct Runs(Vec<f64>);

impl Runs {
    /// Of values in any order.
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn spread(&self) -> [f64; 2] {
        let end = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
        [end(self.0.first()), end(self.0.last())]
    }
}

/// Runs both `runs` times in turn, and who goes first changes from run to run: a slow minute of
/// the machine, or what one leaves behind for the next, meets both.
pub(crate) fn alternate<T>(
    runs: usize,
    mut ours: impl FnMut(usize) -> Result<T>,
    mut theirs: impl FnMut(usize) -> Result<T>,
) -> Result<(Vec<T>, Vec<T>)> {
    let (mut our_values, mut their_values) = (Vec::new(), Vec::new());
    for run in 0..runs {
        if run % 2 == 0 {
            our_values.push(ours(run)?);
        }
        their_values.push(theirs(run)?);
        if run % 2 == 1 {
            our_values.push(ours(run)?);
        }
    }
    Ok((our_values, their_values))
}

/// One figure, as a line of JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    name: String,
    /// Median.
    value: f64,
    unit: &'static str,
    /// What it is compared with.
    peer: &'static str,
    /// Its median.
    peer_value: f64,
    /// `value / peer_value`.
    ratio: Option<f64>,
    aim: Option<f64>,
    met: Option<bool>,
    /// Lowest and highest run.
    spread: [f64; 2],
    /// The peer's.
    peer_spread: [f64; 2],
}

impl Figure {
    /// A figure beside the peer's for the same work, without an aim.
    pub(crate) fn beside(
        peer: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        ours: &Runs,
        theirs: &Runs,
    ) -> Self {
        let (value, peer_value) = (ours.median(), theirs.median());
        Self {
            name: name.into(),
            value,
            unit,
            peer,
            peer_value,
            ratio: (peer_value > 0.0).then(|| value / peer_value),
            aim: None,
            met: None,
            spread: ours.spread(),
            peer_spread: theirs.spread(),
        }
    }

    /// The aim is this many times the peer's value, or more.
    pub(crate) fn ratio_at_least(self, aim: f64) -> Self {
        let met = self.ratio.map(|ratio| ratio >= aim);
        self.aimed(aim, met)
    }

    /// The aim is this part of the peer's value, or less.
    pub(crate) fn ratio_at_most(self, aim: f64) -> Self {
        let met = self.ratio.map(|ratio| ratio <= aim);
        self.aimed(aim, met)
    }

    /// The aim is this value or less, whatever the peer's is.
    pub(crate) fn at_most(self, aim: f64) -> Self {
        let met = Some(self.value <= aim);
        self.aimed(aim, met)
    }

    fn aimed(self, aim: f64, met: Option<bool>) -> Self {
        Self {
            aim: Some(aim),
            met,
            ..self
        }
    }

    /// The line above the rows.
    pub(crate) fn header() -> String {
        format!(
            "{:<30} {:>9} {:<22} {:<4} {:<13} {:>9} {:<20} {:>6} {:>10} {}",
            "name",
            "value",
            "(low to high)",
            "unit",
            "peer",
            "value",
            "(low to high)",
            "ratio",
            "difference",
            "aim"
        )
    }

    /// A row of the table.
    pub(crate) fn row(&self) -> String {
        // A tenth of a nanosecond, a microsecond: the unit decides what a digit is worth.
        let digits = if self.unit == "ns" { 1 } else { 3 };
        let spread = |[low, high]: [f64; 2]| format!("({low:.digits$} to {high:.digits$})");
        let aim = match (self.aim, self.met) {
            (Some(aim), Some(true)) => format!("{aim} met"),
            (Some(aim), _) => format!("{aim} missed"),
            (None, _) => String::new(),
        };
        let ratio = self.ratio.map_or_else(|| "-".into(), |r| format!("{r:.3}"));
        format!(
            "{:<30} {:>9.digits$} {:<22} {:<4} {:<13} {:>9.digits$} {:<20} {:>6} {:>+10.digits$} {aim}",
            self.name,
            self.value,
            spread(self.spread),
            self.unit,
            self.peer,
            self.peer_value,
            spread(self.peer_spread),
            ratio,
            self.value - self.peer_value
        )
    }

    /// Appends the figure to a file.
    pub(crate) fn append(&self, path: &Path) -> Result<()> {
        let line = serde_json::to_string(self).context("encode a figure")?;
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| writeln!(file, "{line}"))
            .with_context(|| format!("write {}", path.display()))
    }
}
