//! Label selectors as written, and what a policy's place adds to them.
use std::collections::BTreeSet;

use super::{ParseError, Refusal};
use crate::policy::{
    selector::{NAMESPACE_KEY, NAMESPACE_LABELS, Operator, Requirement, Selector},
    yaml::At,
};

/// What a label key says: the source, `None` for any, and the key itself.
type Key = (Option<String>, String);

/// Labels of source `reserved` that identities have.
const RESERVED: &[&str] = &[
    "host",
    "world",
    "world-ipv4",
    "world-ipv6",
    "unmanaged",
    "health",
    "init",
    "remote-node",
    "kube-apiserver",
    "ingress",
];

/// Where the selectors of a rule stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    /// The policy's namespace; `None` for a clusterwide one.
    pub(super) namespace: Option<&'a str>,
    /// Whether the rule is about endpoints that have no labels yet, by name.
    pub(super) selects_init: bool,
}

impl Scope<'_> {
    /// Whom a rule is about: in the policy's namespace, whatever the selector says of namespaces.
    pub(super) fn subject(&self, mut requirements: Vec<Requirement>) -> Selector {
        if let Some(namespace) = self.namespace {
            requirements.retain(|r| !r.concerns(|k| k == NAMESPACE_KEY));
            requirements.push(Requirement::k8s(NAMESPACE_KEY, namespace));
        }
        Selector::new(requirements)
    }

    /// A peer selector: in the policy's namespace, or in any one if the policy has none, unless it
    /// speaks of namespaces itself or only of reserved identities, which are in none.
    pub(super) fn peer(&self, mut requirements: Vec<Requirement>) -> Selector {
        let mentions = |of: fn(&str) -> bool| requirements.iter().any(|r| r.concerns(of));
        let in_namespaces = mentions(|k| k == NAMESPACE_KEY);
        let by_their_labels = mentions(|k| k.starts_with(NAMESPACE_LABELS));
        let reserved = Selector::new(requirements.clone()).is_reserved();
        if in_namespaces || reserved {
            return Selector::new(requirements);
        }
        match self.namespace {
            Some(namespace) if !by_their_labels => {
                requirements.push(Requirement::k8s(NAMESPACE_KEY, namespace));
            }
            None if !self.selects_init => requirements.push(in_any_namespace()),
            Some(_) | None => {}
        }
        Selector::new(requirements)
    }
}

/// True of all pods and of nothing else.
pub(super) fn in_any_namespace() -> Requirement {
    Requirement {
        key: NAMESPACE_KEY.to_owned(),
        source: Some("k8s".to_owned()),
        operator: Operator::Exists,
    }
}

/// A selector in Cilium's syntax: keys may name a source.
pub(super) fn cilium(at: &At<'_>) -> Result<Vec<Requirement>, ParseError> {
    selector(at, &cilium_key)
}

/// A selector in Kubernetes' syntax; `prefix` goes before every key.
pub(super) fn kubernetes(at: &At<'_>, prefix: &str) -> Result<Vec<Requirement>, ParseError> {
    selector(at, &|at: &At<'_>, text: &str| {
        let key = checked_key(at, text)?;
        Ok((Some("k8s".to_owned()), format!("{prefix}{key}")))
    })
}

fn selector(
    at: &At<'_>,
    key_of: &dyn Fn(&At<'_>, &str) -> Result<Key, ParseError>,
) -> Result<Vec<Requirement>, ParseError> {
    let fields = at.fields(&["matchLabels", "matchExpressions"])?;
    let mut requirements = Vec::new();
    if let Some(labels) = fields.get("matchLabels") {
        for (name, at) in labels.entries()? {
            let (source, key) = key_of(&at, name)?;
            let operator = Operator::In(BTreeSet::from([value(&at)?]));
            requirements.push(Requirement {
                key,
                source,
                operator,
            });
        }
    }
    if let Some(expressions) = fields.get("matchExpressions") {
        for at in expressions.list()? {
            let fields = at.fields(&["key", "operator", "values"])?;
            let name = fields.require("key")?;
            let (source, key) = key_of(name, name.text()?)?;
            let values = fields.get("values");
            let operator = operator(&at, fields.require("operator")?, values)?;
            requirements.push(Requirement {
                key,
                source,
                operator,
            });
        }
    }
    Ok(requirements)
}

fn operator(
    expression: &At<'_>,
    operator: &At<'_>,
    values: Option<&At<'_>>,
) -> Result<Operator, ParseError> {
    let read: BTreeSet<String> = match values {
        Some(at) => at.list()?.iter().map(value).collect::<Result<_, _>>()?,
        None => BTreeSet::new(),
    };
    match (operator.text()?, read.is_empty()) {
        ("In", false) => Ok(Operator::In(read)),
        ("NotIn", false) => Ok(Operator::NotIn(read)),
        ("Exists", true) => Ok(Operator::Exists),
        ("DoesNotExist", true) => Ok(Operator::DoesNotExist),
        ("In" | "NotIn", true) => Err(expression.refuse(Refusal::Missing { name: "values" })),
        ("Exists" | "DoesNotExist", false) => {
            let reason = "values mean nothing with this operator";
            let instead = "remove them, or write In or NotIn";
            let refusal = Refusal::Misplaced { reason, instead };
            Err(values.unwrap_or(expression).refuse(refusal))
        }
        (other, _) => {
            let expected = "In, NotIn, Exists or DoesNotExist";
            Err(operator.refuse(Refusal::value(other, expected)))
        }
    }
}

/// `source:key`, where no source and `any` both mean any.
fn cilium_key(at: &At<'_>, text: &str) -> Result<Key, ParseError> {
    let (source, key) = match text.split_once(':') {
        None => (None, text),
        Some(("any", key)) => (None, key),
        Some(("reserved", key)) if !RESERVED.contains(&key) => {
            let expected = "a reserved label that identities have (such as reserved:host)";
            return Err(at.refuse(Refusal::value(text, expected)));
        }
        // What is no workload is selected by toCIDR and fromCIDR alone.
        Some((source, key)) if is_source(source) && !matches!(source, "cidr" | "fqdn") => {
            (Some(source), key)
        }
        Some(_) => {
            let expected = "a label key with the source of a workload's labels, such as k8s or any";
            return Err(at.refuse(Refusal::value(text, expected)));
        }
    };
    let key = checked_key(at, key)?;
    Ok((source.map(str::to_owned), key.to_owned()))
}

/// Sources are names that whoever makes the labels chooses.
fn is_source(text: &str) -> bool {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    (1..=63).contains(&text.len()) && text.bytes().all(ok)
}

fn checked_key<'t>(at: &At<'_>, text: &'t str) -> Result<&'t str, ParseError> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    // A prefix of 253, a slash and a name of 63 characters.
    if text.is_empty() || text.len() > 317 || !text.bytes().all(ok) {
        return Err(at.refuse(Refusal::value(text, "a label key")));
    }
    Ok(text)
}

fn value(at: &At<'_>) -> Result<String, ParseError> {
    let text = at.text()?;
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.len() > 63 || !text.bytes().all(ok) {
        let expected = "a label value (at most 63 letters, digits, '-', '_' and '.')";
        return Err(at.refuse(Refusal::value(text, expected)));
    }
    Ok(text.to_owned())
}
