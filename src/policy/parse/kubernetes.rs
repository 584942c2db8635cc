//! The rule of a networking.k8s.io/v1 NetworkPolicy.
use super::{
    ParseError, Refusal, peers, ports,
    selector::{self, Scope, in_any_namespace},
};
use crate::policy::{
    Direction, PerDirection,
    rule::{Grant, Peer, Peers, Rule},
    selector::{NAMESPACE_KEY, NAMESPACE_LABELS, Operator, Requirement, Selector},
    yaml::{At, Fields},
};

/// The rule of an object's `spec`.
pub(super) fn rule(object: &Fields<'_>, namespace: &str) -> Result<Rule, ParseError> {
    let spec = object.require("spec")?;
    let fields = spec.fields(&["podSelector", "policyTypes", "ingress", "egress"])?;
    let scope = Scope {
        namespace: Some(namespace),
        selects_init: false,
    };
    let pods = selector::kubernetes(fields.require("podSelector")?, "")?;
    let ingress = section(&fields, Direction::Ingress, namespace)?;
    let egress = section(&fields, Direction::Egress, namespace)?;
    let default_deny = match policy_types(&fields)? {
        Some(types) => types,
        None => PerDirection {
            ingress: true,
            egress: !egress.is_empty(),
        },
    };
    Ok(Rule {
        subject: scope.subject(pods),
        default_deny,
        ingress,
        egress,
    })
}

/// The directions named; `None` if none is, which leaves it to what the policy holds.
fn policy_types(fields: &Fields<'_>) -> Result<Option<PerDirection<bool>>, ParseError> {
    let mut types = None;
    let Some(at) = fields.get("policyTypes") else {
        return Ok(None);
    };
    for at in at.list()? {
        let types = types.get_or_insert(PerDirection {
            ingress: false,
            egress: false,
        });
        match at.text()? {
            "Ingress" => types.ingress = true,
            "Egress" => types.egress = true,
            other => return Err(at.refuse(Refusal::value(other, "Ingress or Egress"))),
        }
    }
    Ok(types)
}

fn section(
    fields: &Fields<'_>,
    direction: Direction,
    namespace: &str,
) -> Result<Vec<Grant>, ParseError> {
    let (name, of_peers) = match direction {
        Direction::Ingress => ("ingress", "from"),
        Direction::Egress => ("egress", "to"),
    };
    let Some(at) = fields.get(name) else {
        return Ok(Vec::new());
    };
    let grant = |at: &At<'_>| grant(at, of_peers, namespace);
    at.list()?.iter().map(grant).collect()
}

/// Without peers or ports, or with empty lists of them, an entry allows all of these.
fn grant(at: &At<'_>, of_peers: &str, namespace: &str) -> Result<Grant, ParseError> {
    let fields = at.fields(&[of_peers, "ports"])?;
    let list = |name| fields.get(name).map_or(Ok(Vec::new()), At::list);
    let mut peers = Vec::new();
    for at in list(of_peers)? {
        peers.push(peer(&at, namespace)?);
    }
    let mut listed = Vec::new();
    for at in list("ports")? {
        listed.extend(ports::kubernetes_port(&at)?);
    }
    listed.sort_unstable();
    listed.dedup();
    Ok(Grant {
        deny: false,
        peers: if peers.is_empty() {
            Peers::Any
        } else {
            Peers::Of(peers)
        },
        ports: listed,
    })
}

fn peer(at: &At<'_>, namespace: &str) -> Result<Peer, ParseError> {
    let fields = at.fields(&["podSelector", "namespaceSelector", "ipBlock"])?;
    let (pods, namespaces) = (fields.get("podSelector"), fields.get("namespaceSelector"));
    if let Some(block) = fields.get("ipBlock") {
        if pods.or(namespaces).is_some() {
            let other = "podSelector or namespaceSelector";
            return Err(block.refuse(Refusal::Conflict { other }));
        }
        return peers::cidr_rule(&block.fields(&["cidr", "except"])?);
    }
    let mut requirements = match pods {
        Some(at) => selector::kubernetes(at, "")?,
        None => Vec::new(),
    };
    match (namespaces, pods) {
        (Some(at), _) => requirements.extend(in_namespaces(at)?),
        (None, Some(_)) => requirements.push(Requirement::k8s(NAMESPACE_KEY, namespace)),
        (None, None) => {
            let reason = "is an empty peer";
            let instead = "write podSelector, namespaceSelector or ipBlock, or remove it";
            return Err(at.refuse(Refusal::Misplaced { reason, instead }));
        }
    }
    Ok(Peer::Labels(Selector::new(requirements)))
}

/// Pods of the namespaces selected. A selector that only says which labels a namespace must not
/// have is true of what is in no namespace at all, too: that is not meant.
fn in_namespaces(at: &At<'_>) -> Result<Vec<Requirement>, ParseError> {
    let mut requirements = selector::kubernetes(at, NAMESPACE_LABELS)?;
    let has_label = |r: &Requirement| matches!(r.operator, Operator::In(_) | Operator::Exists);
    if !requirements.iter().any(has_label) {
        requirements.push(in_any_namespace());
    }
    Ok(requirements)
}
