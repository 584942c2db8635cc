//! Kubernetes objects to [`Policy`]. Total and strict: what is not enforced is refused with its
//! place and a way out, and with it the whole file, because leaving out a part of a rule can make
//! the rule wider.
//!
//! An object with the annotation `policy.tombolo.io/unsupported: fail-closed` is imported without
//! what is not enforced, so that it can only get narrower: an entry that allows something under a
//! condition that is not enforced is left out, its default deny stays; an entry that denies
//! something denies all that it may mean. What is misspelt or means nothing is refused all the same.
use std::{collections::HashSet, path::Path};

use self::import::Import;
pub(super) use self::refusal::quote;
pub use self::refusal::{ParseError, Refusal};
use super::{
    rule::{Kind, Policy},
    yaml::{At, Fields, Node},
};
use crate::limits;

mod cilium;
mod entry;
mod icmp;
mod import;
mod kubernetes;
mod peers;
mod ports;
mod refusal;
mod selector;

const KINDS: &[(&str, Kind, &str)] = &[
    ("CiliumNetworkPolicy", Kind::CiliumNetworkPolicy, CILIUM),
    (
        "CiliumClusterwideNetworkPolicy",
        Kind::CiliumClusterwideNetworkPolicy,
        CILIUM,
    ),
    ("NetworkPolicy", Kind::NetworkPolicy, KUBERNETES),
];
const CILIUM: &str = "cilium.io/v2";
const KUBERNETES: &str = "networking.k8s.io/v1";
/// Kinds that hold objects in `items`.
const LISTS: &[(&str, &str)] = &[
    ("List", "v1"),
    ("CiliumNetworkPolicyList", CILIUM),
    ("CiliumClusterwideNetworkPolicyList", CILIUM),
    ("NetworkPolicyList", KUBERNETES),
];
const METADATA: &[&str] = &[
    "name",
    "namespace",
    "labels",
    "annotations",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "ownerReferences",
    "finalizers",
    "selfLink",
];
/// All annotations that start like this are ours; others are other people's.
const ANNOTATIONS: &str = "policy.tombolo.io/";

/// Parses all documents of a file, YAML or JSON. Namespaces default to `default`.
///
/// # Errors
/// At the first thing that is not understood or not enforced.
pub fn parse(text: &str, file: &Path) -> Result<Vec<Policy>, ParseError> {
    parse_noting(text, file, &mut Vec::new())
}

/// As [`parse`]; appends to `narrowed` what is not enforced of policies that are imported
/// fail-closed, in the order of the file.
///
/// # Errors
/// As for [`parse`]; what was appended means nothing then.
pub fn parse_noting(
    text: &str,
    file: &Path,
    narrowed: &mut Vec<ParseError>,
) -> Result<Vec<Policy>, ParseError> {
    let whole = |line, refusal| ParseError {
        file: file.into(),
        line,
        field: String::new(),
        refusal,
    };
    let documents = documents(text).map_err(|(line, reason)| whole(line, Refusal::Yaml(reason)))?;
    let mut policies = Vec::new();
    let mut names = HashSet::new();
    for document in &documents {
        let root = At::root(file, document, document.referenced.line());
        for object in objects(root)? {
            let policy = policy(&object, narrowed)?;
            let name = (policy.kind, policy.namespace.clone(), policy.name.clone());
            if !names.insert(name) {
                return Err(object.refuse(Refusal::Duplicate));
            }
            policies.push(policy);
        }
    }
    if policies.is_empty() {
        return Err(whole(None, Refusal::Empty));
    }
    Ok(policies)
}

/// The documents, or the line of what is no YAML and why.
fn documents(text: &str) -> Result<Vec<Node>, (Option<u64>, String)> {
    let options = serde_saphyr::options! {
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: limits::POLICY_ALIASED_EVENTS_MAX,
        },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let line = error.location().map(|l| l.line()).filter(|l| *l > 0);
        let text = error.without_snippet().to_string();
        let reason = text.lines().next().unwrap_or_default();
        (line, quote(reason))
    })
}

/// The objects of a document: itself, or the elements of a list.
fn objects(root: At<'_>) -> Result<Vec<At<'_>>, ParseError> {
    // The kind first: complaints about the fields of another kind would mislead.
    let kind = kind_of(&root)?;
    let Some((_, version)) = LISTS.iter().find(|(list, _)| kind == Some(*list)) else {
        return Ok(vec![root]);
    };
    let fields = root.fields(&["apiVersion", "kind", "metadata", "items"])?;
    check_version(&fields, version)?;
    fields.require("items")?.list()
}

fn kind_of<'a>(object: &At<'a>) -> Result<Option<&'a str>, ParseError> {
    let entries = object.entries()?;
    let kind = entries.iter().find(|(name, _)| *name == "kind");
    kind.map(|(_, at)| at.text()).transpose()
}

fn check_version(object: &Fields<'_>, expected: &'static str) -> Result<(), ParseError> {
    let at = object.require("apiVersion")?;
    match at.text()? {
        version if version == expected => Ok(()),
        other => Err(at.refuse(Refusal::value(other, expected))),
    }
}

fn policy(root: &At<'_>, narrowed: &mut Vec<ParseError>) -> Result<Policy, ParseError> {
    let Some(text) = kind_of(root)? else {
        return Err(root.refuse(Refusal::Missing { name: "kind" }));
    };
    let Some((_, kind, version)) = KINDS.iter().find(|(name, ..)| *name == text) else {
        return Err(root.refuse(Refusal::Kind(quote(text))));
    };
    let kind = *kind;
    let specs: &[&str] = match kind {
        Kind::NetworkPolicy => &["spec"],
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => &["spec", "specs"],
    };
    let known = [&["apiVersion", "kind", "metadata", "status"], specs].concat();
    let object = root.fields(&known)?;
    check_version(&object, version)?;
    let metadata = object.require("metadata")?.fields(METADATA)?;
    let name = parse_name(metadata.require("name")?)?;
    let namespace = namespace(kind, &metadata)?;
    let Annotations { audit, fail_closed } = annotations(&metadata)?;
    let mut import = Import {
        fail_closed,
        narrowed,
    };
    let rules = match (kind, &namespace) {
        (Kind::NetworkPolicy, Some(namespace)) => vec![kubernetes::rule(&object, namespace)?],
        (_, namespace) => cilium::rules(root, &object, namespace.as_deref(), &mut import)?,
    };
    Ok(Policy {
        kind,
        namespace,
        name,
        audit,
        rules,
    })
}

fn namespace(kind: Kind, metadata: &Fields<'_>) -> Result<Option<String>, ParseError> {
    let at = metadata.get("namespace");
    match (kind, at) {
        (Kind::CiliumClusterwideNetworkPolicy, None) => Ok(None),
        (Kind::CiliumClusterwideNetworkPolicy, Some(at)) => {
            let reason = "a clusterwide policy has no namespace";
            let instead = "remove it, or write a CiliumNetworkPolicy";
            Err(at.refuse(Refusal::Misplaced { reason, instead }))
        }
        (_, None) => Ok(Some("default".to_owned())),
        (_, Some(at)) => parse_name(at).map(Some),
    }
}

fn parse_name(at: &At<'_>) -> Result<String, ParseError> {
    let text = at.text()?;
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if text.is_empty() || text.len() > 253 || !text.bytes().all(ok) {
        let expected = "a Kubernetes name (lower-case letters, digits, '-' and '.')";
        return Err(at.refuse(Refusal::value(text, expected)));
    }
    Ok(text.to_owned())
}

/// What our annotations say of a policy.
#[derive(Debug, Default)]
struct Annotations {
    audit: bool,
    fail_closed: bool,
}

fn annotations(metadata: &Fields<'_>) -> Result<Annotations, ParseError> {
    let mut read = Annotations::default();
    let Some(at) = metadata.get("annotations") else {
        return Ok(read);
    };
    for (name, at) in at.entries()? {
        let Some(ours) = name.strip_prefix(ANNOTATIONS) else {
            continue;
        };
        match (ours, at.text()?) {
            ("audit", "true") => read.audit = true,
            ("audit", "false") => {}
            ("audit", other) => {
                return Err(at.refuse(Refusal::value(other, "\"true\" or \"false\"")));
            }
            ("unsupported", "fail-closed") => read.fail_closed = true,
            ("unsupported", other) => {
                return Err(at.refuse(Refusal::value(other, "fail-closed")));
            }
            _ => return Err(at.refuse(Refusal::UnknownField)),
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests;
