//! Identity labels and their one-line text form, `source:key=value;…`, sorted by key.
use std::{borrow::Cow, fmt};

/// One label. The source says who set it (`k8s`, `reserved`, …).
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Label {
    /// Who set it. Nearly always a word that need not be stored.
    pub source: Cow<'static, str>,
    /// Its key; may contain dots and slashes.
    pub key: String,
    /// Its value; may be empty.
    pub value: String,
}

/// Labels sorted bytewise by key (the source is not part of the order). As written by a peer a key
/// may occur twice; labels that we make hold each key once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Labels(Vec<Label>);

/// Why labels can't be written as text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("label {0:?} contains ';', which has no escape in the keyspace")]
pub struct LabelError(String);

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.key)?;
        if self.value.is_empty() {
            Ok(())
        } else {
            write!(f, "={}", self.value)
        }
    }
}

impl Labels {
    /// Sorts by key; a key given twice keeps its last value.
    ///
    /// # Errors
    /// If a source, key or value contains `;`.
    pub fn new(labels: impl IntoIterator<Item = Label>) -> Result<Self, LabelError> {
        let mut map = std::collections::BTreeMap::new();
        for label in labels {
            if [&*label.source, &label.key, &label.value]
                .iter()
                .any(|t| t.contains(';'))
            {
                return Err(LabelError(label.to_string()));
            }
            map.insert(label.key.clone(), label);
        }
        Ok(Self(map.into_values().collect()))
    }

    /// Parses the keyspace's text form; total: any text yields labels, empty segments are skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut labels: Vec<Label> = text
            .split(';')
            .filter(|s| !s.is_empty())
            .map(parse_label)
            .collect();
        labels.sort_by(|a, b| a.key.cmp(&b.key));
        // A mesh keeps tens of thousands of these.
        labels.shrink_to_fit();
        Self(labels)
    }

    /// The labels, sorted by key.
    #[must_use]
    pub fn as_slice(&self) -> &[Label] {
        &self.0
    }

    /// All labels with this key.
    pub fn with_key<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Label> {
        let start = self.0.partition_point(|l| l.key.as_str() < key);
        self.0[start..].iter().take_while(move |l| l.key == key)
    }

    /// Approximate heap size in bytes.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let text = |l: &Label| l.source.len() + l.key.len() + l.value.len();
        self.0.iter().map(|l| size_of::<Label>() + text(l)).sum()
    }
}

fn parse_label(segment: &str) -> Label {
    let (source, rest) = if let Some(rest) = segment.strip_prefix('$') {
        ("reserved", rest)
    } else if let Some(rest) = segment.strip_prefix("reserved.") {
        ("reserved", rest)
    } else {
        segment.split_once(':').unwrap_or(("unspec", segment))
    };
    let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
    let source = match source {
        "k8s" => "k8s".into(),
        "reserved" => "reserved".into(),
        other => Cow::Owned(other.to_owned()),
    };
    Label {
        source,
        key: key.into(),
        value: value.into(),
    }
}

/// The text form, always with `=` and a final `;`.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Label { source, key, value } in &self.0 {
            write!(f, "{source}:{key}={value};")?;
        }
        Ok(())
    }
}

impl serde::Serialize for Labels {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ToString::to_string))
    }
}

#[cfg(test)]
mod tests {
    use super::Labels;

    #[test]
    fn text_round_trips_sorted_by_key() {
        let text = "k8s:app=checkout;k8s:io.cilium.k8s.policy.cluster=west;";
        assert_eq!(Labels::parse(text).to_string(), text);
        let unsorted = "k8s:b=1;any:a=x=y:z";
        assert_eq!(Labels::parse(unsorted).to_string(), "any:a=x=y:z;k8s:b=1;");
    }

    #[test]
    fn odd_segments_parse_as_cilium_does() {
        assert_eq!(Labels::parse("$host;;").to_string(), "reserved:host=;");
        assert_eq!(
            Labels::parse("reserved.world").to_string(),
            "reserved:world=;"
        );
        assert_eq!(Labels::parse("plain=1").to_string(), "unspec:plain=1;");
    }
}
