//! CiliumNetworkPolicy text to [`Policy`]. Total and strict: what is not enforced is refused with
//! its place and a way out, and with it the whole file, because leaving out a part of a rule can
//! make the rule wider.
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    PerDirection,
    rule::{Grant, Kind, Peer, Peers, Policy, Port, Rule},
    selector::{NAMESPACE_KEY, NAMESPACE_LABELS, Operator, Requirement, Selector},
    yaml::{At, Fields, Node},
};
use crate::limits;

/// Why a file was refused, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy file {place}: {refusal}; {next}", place = self.place(), next = refusal.next_step())]
pub struct ParseError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1, where it is known.
    pub line: Option<u64>,
    /// Path of the field within its document, such as `spec.ingress[0].toPorts[0].rules`; empty
    /// for the document as a whole.
    pub field: String,
    /// What is wrong with it.
    pub refusal: Refusal,
}

impl ParseError {
    fn place(&self) -> String {
        let mut place = self.file.display().to_string();
        if let Some(line) = self.line {
            place = format!("{place}:{line}");
        }
        if self.field.is_empty() {
            place
        } else {
            format!("{place}: {}", self.field)
        }
    }
}

/// What can be wrong with a policy file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The text is no YAML.
    #[error("not readable as YAML: {0}")]
    Yaml(String),
    /// The file has no document in it. Writers truncate first, so this is not "no policies".
    #[error("holds no document")]
    Empty,
    /// Another kind of object.
    #[error("{0:?} objects are not enforced")]
    Kind(String),
    /// A field that policies do not have.
    #[error("unknown field")]
    UnknownField,
    /// A field or value that exists in Cilium, but not here.
    #[error("not supported")]
    Unsupported {
        /// What to write instead.
        instead: &'static str,
    },
    /// A mapping without a field that it needs.
    #[error("{name} is missing")]
    Missing {
        /// The field.
        name: &'static str,
    },
    /// A field with nothing after the colon.
    #[error("has no value")]
    Null,
    /// A value of another type.
    #[error("must be {expected}, not {found}")]
    WrongType {
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A list that must not be empty.
    #[error("must not be an empty list")]
    EmptyList {
        /// What to write instead.
        instead: &'static str,
    },
    /// The same thing twice.
    #[error("given twice")]
    Duplicate,
    /// Two fields that exclude each other.
    #[error("can't be combined with {other}")]
    Conflict {
        /// The other field.
        other: &'static str,
    },
    /// A value outside what is possible.
    #[error("{value:?} is not {expected}")]
    Value {
        /// The value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A list that is too long.
    #[error("has {count} elements, more than {max}")]
    TooMany {
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

impl Refusal {
    /// What the operator can do about it.
    #[must_use]
    pub const fn next_step(&self) -> &'static str {
        match self {
            Self::Yaml(_) => "correct the text at this place",
            Self::Empty => "delete the file to withdraw its policies",
            Self::Kind(_) => "write a cilium.io/v2 CiliumNetworkPolicy, or move the file away",
            Self::UnknownField => "check its spelling and indentation, or remove it",
            Self::Unsupported { instead } | Self::EmptyList { instead } => instead,
            Self::Missing { .. } => "add it",
            Self::Null => "give it a value, or remove the whole field",
            Self::WrongType { .. } | Self::Value { .. } => "correct the value",
            Self::Duplicate => "keep one of them",
            Self::Conflict { .. } => "make two entries of it",
            Self::TooMany { .. } => "split it into several entries",
        }
    }
}

const KIND: &str = "CiliumNetworkPolicy";
const NOT_YET: &str =
    "remove it; only ingress allow rules by labels, entities and ports are enforced";
const METADATA: &[&str] = &[
    "name",
    "namespace",
    "labels",
    "annotations",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
    "ownerReferences",
    "finalizers",
];
const SPEC_UNSUPPORTED: &[(&str, &str)] = &[
    ("egress", NOT_YET),
    ("ingressDeny", NOT_YET),
    ("egressDeny", NOT_YET),
    (
        "nodeSelector",
        "use endpointSelector; policies for nodes are not enforced",
    ),
    ("log", NOT_YET),
];
const ENTRY_UNSUPPORTED: &[(&str, &str)] = &[
    ("fromCIDR", NOT_YET),
    ("fromCIDRSet", NOT_YET),
    ("fromNodes", "use fromEntities: [remote-node]"),
    ("fromGroups", NOT_YET),
    (
        "fromRequires",
        "write the requirement into each selector of fromEndpoints",
    ),
    ("icmps", NOT_YET),
    ("authentication", NOT_YET),
];
const L7: &str = "remove it if the whole port may be allowed; requests are not looked into";
const PORTS_UNSUPPORTED: &[(&str, &str)] = &[
    ("rules", L7),
    ("listener", L7),
    ("serverNames", L7),
    ("terminatingTLS", L7),
    ("originatingTLS", L7),
];

/// Parses all documents of a file, YAML or JSON. Namespaces default to `default`.
///
/// # Errors
/// At the first thing that is not understood or not enforced.
pub fn parse(text: &str, file: &Path) -> Result<Vec<Policy>, ParseError> {
    let documents: Vec<Node> = serde_saphyr::from_multiple(text).map_err(|error| {
        let line = error.location().map(|l| l.line()).filter(|l| *l > 0);
        let text = error.without_snippet().to_string();
        let reason = text.lines().next().unwrap_or_default().to_owned();
        ParseError {
            file: file.into(),
            line,
            field: String::new(),
            refusal: Refusal::Yaml(reason),
        }
    })?;
    let mut policies: Vec<Policy> = Vec::with_capacity(documents.len());
    for document in &documents {
        let root = At::root(file, document, document.referenced.line());
        let policy = parse_document(&root)?;
        if policies
            .iter()
            .any(|p| p.name == policy.name && p.namespace == policy.namespace)
        {
            return Err(root.refuse(Refusal::Duplicate));
        }
        policies.push(policy);
    }
    if policies.is_empty() {
        let refusal = Refusal::Empty;
        return Err(ParseError {
            file: file.into(),
            line: None,
            field: String::new(),
            refusal,
        });
    }
    Ok(policies)
}

fn parse_document(root: &At<'_>) -> Result<Policy, ParseError> {
    // The kind first: complaints about the fields of another kind would mislead.
    let entries = root.entries()?;
    if let Some((_, at)) = entries.iter().find(|(name, _)| *name == "kind") {
        let kind = at.text()?;
        if kind != KIND {
            return Err(at.refuse(Refusal::Kind(kind.to_owned())));
        }
    }
    let object = root.fields(
        &["apiVersion", "kind", "metadata", "spec", "specs", "status"],
        &[],
    )?;
    object.require("kind")?;
    let version = object.require("apiVersion")?;
    let value = version.text()?;
    if value != "cilium.io/v2" {
        let value = value.to_owned();
        return Err(version.refuse(Refusal::Value {
            value,
            expected: "cilium.io/v2",
        }));
    }
    let metadata = object.require("metadata")?.fields(METADATA, &[])?;
    let name = parse_name(metadata.require("name")?)?;
    let namespace = match metadata.get("namespace") {
        Some(at) => parse_name(at)?,
        None => "default".to_owned(),
    };
    let mut rules = Vec::new();
    if let Some(spec) = object.get("spec") {
        rules.push(parse_rule(spec, &namespace)?);
    }
    if let Some(specs) = object.get("specs") {
        for spec in specs.list()? {
            rules.push(parse_rule(&spec, &namespace)?);
        }
    }
    if rules.is_empty() {
        return Err(root.refuse(Refusal::Missing { name: "spec" }));
    }
    Ok(Policy {
        kind: Kind::CiliumNetworkPolicy,
        namespace: Some(namespace),
        name,
        audit: false,
        rules,
    })
}

fn parse_name(at: &At<'_>) -> Result<String, ParseError> {
    let text = at.text()?;
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if text.is_empty() || text.len() > 253 || !text.bytes().all(ok) {
        let expected = "a Kubernetes name (lower-case letters, digits, '-' and '.')";
        return Err(at.refuse(Refusal::Value {
            value: text.to_owned(),
            expected,
        }));
    }
    Ok(text.to_owned())
}

fn parse_rule(at: &At<'_>, namespace: &str) -> Result<Rule, ParseError> {
    let known = [
        "endpointSelector",
        "ingress",
        "enableDefaultDeny",
        "labels",
        "description",
    ];
    let fields = at.fields(&known, SPEC_UNSUPPORTED)?;
    let mut subject = parse_selector(fields.require("endpointSelector")?)?;
    // A namespaced policy protects its own namespace, whatever its selector says.
    subject.retain(|r| !r.concerns(|k| k == NAMESPACE_KEY));
    subject.push(Requirement::k8s(NAMESPACE_KEY, namespace));

    let section = fields.require("ingress")?;
    let entries = section.list()?;
    if entries.is_empty() {
        let instead = "write [{}] to drop everything, or remove the policy";
        return Err(section.refuse(Refusal::EmptyList { instead }));
    }
    let mut ingress = Vec::with_capacity(entries.len());
    for entry in &entries {
        ingress.extend(parse_entry(entry, namespace)?);
    }
    let deny = match fields.get("enableDefaultDeny") {
        Some(at) => parse_default_deny(at)?,
        None => true,
    };
    Ok(Rule {
        subject: Selector::new(subject),
        default_deny: PerDirection {
            ingress: deny,
            egress: false,
        },
        ingress,
        egress: Vec::new(),
    })
}

fn parse_default_deny(at: &At<'_>) -> Result<bool, ParseError> {
    let fields = at.fields(&["ingress", "egress"], &[])?;
    if let Some(egress) = fields.get("egress")
        && egress.boolean()?
    {
        return Err(egress.refuse(Refusal::Unsupported { instead: NOT_YET }));
    }
    fields.get("ingress").map_or(Ok(true), At::boolean)
}

/// `None` for the entry `{}`, which allows nothing.
fn parse_entry(at: &At<'_>, namespace: &str) -> Result<Option<Grant>, ParseError> {
    let fields = at.fields(
        &["fromEndpoints", "fromEntities", "toPorts"],
        ENTRY_UNSUPPORTED,
    )?;
    if fields.is_empty() {
        return Ok(None);
    }
    let peers = parse_peers(&fields, namespace)?;
    let mut ports = BTreeSet::new();
    if let Some(section) = fields.get("toPorts") {
        let elements = section.list()?;
        if elements.is_empty() {
            let instead = "remove it to allow all ports, or list the ports";
            return Err(section.refuse(Refusal::EmptyList { instead }));
        }
        for element in elements {
            parse_ports(&element, &mut ports)?;
        }
    }
    Ok(Some(Grant {
        deny: false,
        peers,
        ports: ports.into_iter().collect(),
    }))
}

fn parse_peers(fields: &Fields<'_>, namespace: &str) -> Result<Peers, ParseError> {
    match (fields.get("fromEndpoints"), fields.get("fromEntities")) {
        (None, None) => Ok(Peers::Any),
        (Some(_), Some(entities)) => Err(entities.refuse(Refusal::Conflict {
            other: "fromEndpoints",
        })),
        (Some(selectors), None) => {
            let peer = |at: &At<'_>| {
                let requirements = parse_selector(at)?;
                Ok(Peer::Labels(in_own_namespace(requirements, namespace)))
            };
            selectors
                .list()?
                .iter()
                .map(peer)
                .collect::<Result<_, _>>()
                .map(Peers::Of)
        }
        (None, Some(entities)) => {
            let mut peers = Vec::new();
            let mut any = false;
            for at in entities.list()? {
                match parse_entity(&at)? {
                    Some(of) => peers.extend(of),
                    None => any = true,
                }
            }
            Ok(if any { Peers::Any } else { Peers::Of(peers) })
        }
    }
}

/// The peers of an entity; `None` for everybody.
fn parse_entity(at: &At<'_>) -> Result<Option<Vec<Peer>>, ParseError> {
    let reserved: &[&str] = match at.text()? {
        "all" => return Ok(None),
        "none" => &[],
        "world" => &["world", "world-ipv4", "world-ipv6"],
        "world-ipv4" => &["world-ipv4"],
        "world-ipv6" => &["world-ipv6"],
        "host" => &["host"],
        "remote-node" => &["remote-node"],
        "kube-apiserver" => &["kube-apiserver"],
        "init" => &["init"],
        "ingress" => &["ingress"],
        "unmanaged" => &["unmanaged"],
        "health" => &["health"],
        "cluster" => &[
            "host",
            "remote-node",
            "init",
            "ingress",
            "health",
            "unmanaged",
            "kube-apiserver",
        ],
        other => {
            let expected = "an entity";
            return Err(at.refuse(Refusal::Value {
                value: other.to_owned(),
                expected,
            }));
        }
    };
    let labels = |name: &&str| Peer::Labels(Selector::new([Requirement::reserved(name)]));
    let mut peers: Vec<Peer> = reserved.iter().map(labels).collect();
    if at.text()? == "cluster" {
        peers.push(Peer::LocalCluster);
    }
    Ok(Some(peers))
}

/// Confines a peer selector to the policy's namespace unless it speaks about namespaces itself.
fn in_own_namespace(mut requirements: Vec<Requirement>, namespace: &str) -> Selector {
    let of_namespaces = |k: &str| k == NAMESPACE_KEY || k.starts_with(NAMESPACE_LABELS);
    let mentioned = requirements.iter().any(|r| r.concerns(of_namespaces));
    if !mentioned && !Selector::new(requirements.clone()).is_reserved() {
        requirements.push(Requirement::k8s(NAMESPACE_KEY, namespace));
    }
    Selector::new(requirements)
}

fn parse_selector(at: &At<'_>) -> Result<Vec<Requirement>, ParseError> {
    let fields = at.fields(&["matchLabels", "matchExpressions"], &[])?;
    let mut requirements = Vec::new();
    if let Some(labels) = fields.get("matchLabels") {
        for (name, value) in labels.entries()? {
            let (source, key) = parse_key(&value, name)?;
            let operator = Operator::In(BTreeSet::from([parse_value(&value)?]));
            requirements.push(Requirement {
                key,
                source,
                operator,
            });
        }
    }
    if let Some(expressions) = fields.get("matchExpressions") {
        for expression in expressions.list()? {
            requirements.push(parse_expression(&expression)?);
        }
    }
    Ok(requirements)
}

fn parse_expression(at: &At<'_>) -> Result<Requirement, ParseError> {
    let fields = at.fields(&["key", "operator", "values"], &[])?;
    let name = fields.require("key")?;
    let (source, key) = parse_key(name, name.text()?)?;
    let operator = fields.require("operator")?;
    let values = match fields.get("values") {
        Some(values) => values
            .list()?
            .iter()
            .map(parse_value)
            .collect::<Result<BTreeSet<_>, _>>()?,
        None => BTreeSet::new(),
    };
    let operator = match (operator.text()?, values.is_empty()) {
        ("In", false) => Operator::In(values),
        ("NotIn", false) => Operator::NotIn(values),
        ("Exists", true) => Operator::Exists,
        ("DoesNotExist", true) => Operator::DoesNotExist,
        ("In" | "NotIn", true) => {
            return Err(fields.at().refuse(Refusal::Missing { name: "values" }));
        }
        ("Exists" | "DoesNotExist", false) => {
            let instead = "remove the values; with this operator only the key counts";
            let at = fields.get("values").unwrap_or_else(|| fields.at());
            return Err(at.refuse(Refusal::Unsupported { instead }));
        }
        (other, _) => {
            let expected = "In, NotIn, Exists or DoesNotExist";
            return Err(operator.refuse(Refusal::Value {
                value: other.to_owned(),
                expected,
            }));
        }
    };
    Ok(Requirement {
        key,
        source,
        operator,
    })
}

/// `source:key`, where no source and `any` both mean any.
fn parse_key(at: &At<'_>, text: &str) -> Result<(Option<String>, String), ParseError> {
    let (source, key) = match text.split_once(':') {
        None | Some(("any", _)) => (None, text.strip_prefix("any:").unwrap_or(text)),
        Some((source @ ("k8s" | "reserved" | "container" | "unspec"), key)) => (Some(source), key),
        Some(_) => {
            let expected = "a label key with source k8s, any, reserved, container or unspec";
            return Err(at.refuse(Refusal::Value {
                value: text.to_owned(),
                expected,
            }));
        }
    };
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    if key.is_empty() || key.len() > 317 || !key.bytes().all(ok) {
        let expected = "a label key";
        return Err(at.refuse(Refusal::Value {
            value: text.to_owned(),
            expected,
        }));
    }
    Ok((source.map(str::to_owned), key.to_owned()))
}

fn parse_value(at: &At<'_>) -> Result<String, ParseError> {
    let text = at.text()?;
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.len() > 63 || !text.bytes().all(ok) {
        let expected = "a label value (at most 63 letters, digits, '-', '_' and '.')";
        return Err(at.refuse(Refusal::Value {
            value: text.to_owned(),
            expected,
        }));
    }
    Ok(text.to_owned())
}

fn parse_ports(at: &At<'_>, ports: &mut BTreeSet<Port>) -> Result<(), ParseError> {
    let fields = at.fields(&["ports"], PORTS_UNSUPPORTED)?;
    let section = fields.require("ports")?;
    let elements = section.list()?;
    if elements.is_empty() {
        let instead = "remove toPorts to allow all ports, or list the ports";
        return Err(section.refuse(Refusal::EmptyList { instead }));
    }
    if elements.len() > limits::POLICY_PORTS_MAX {
        let (count, max) = (elements.len(), limits::POLICY_PORTS_MAX);
        return Err(section.refuse(Refusal::TooMany { count, max }));
    }
    for element in &elements {
        let instead = "list the ports one by one";
        let fields = element.fields(&["port", "protocol"], &[("endPort", instead)])?;
        let port = parse_port(fields.require("port")?)?;
        let protocols: &[u8] = match fields.get("protocol").map(At::text).transpose()? {
            Some("TCP") => &[6],
            Some("UDP") => &[17],
            Some("SCTP") => &[132],
            None | Some("ANY") => &[6, 17, 132],
            Some(other) => {
                let expected = "TCP, UDP, SCTP or ANY";
                let value = other.to_owned();
                let at = fields.get("protocol").unwrap_or(element);
                return Err(at.refuse(Refusal::Value { value, expected }));
            }
        };
        ports.extend(protocols.iter().map(|protocol| Port::Range {
            protocol: *protocol,
            first: port,
            last: port,
        }));
    }
    Ok(())
}

fn parse_port(at: &At<'_>) -> Result<u16, ParseError> {
    let text = at.text_or_number()?;
    if text.bytes().any(|b| b.is_ascii_alphabetic()) {
        let instead = "write the port's number; names of ports are not resolved";
        return Err(at.refuse(Refusal::Unsupported { instead }));
    }
    match text.parse::<u16>() {
        Ok(0) => {
            let instead = "remove toPorts to allow all ports, or list the ports";
            Err(at.refuse(Refusal::Unsupported { instead }))
        }
        Ok(port) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        Ok(_) | Err(_) => {
            let expected = "a port number, 1 to 65535";
            Err(at.refuse(Refusal::Value {
                value: text,
                expected,
            }))
        }
    }
}

#[cfg(test)]
mod tests;
