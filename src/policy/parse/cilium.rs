//! The rules of CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy.
use super::{
    ParseError, Refusal, entry,
    import::{Import, Unsupported},
    selector::{self, Scope},
};
use crate::policy::{
    Direction, PerDirection,
    rule::{Grant, Rule},
    selector::Requirement,
    yaml::{At, Fields},
};

const KNOWN: &[&str] = &[
    "endpointSelector",
    "nodeSelector",
    "ingress",
    "ingressDeny",
    "egress",
    "egressDeny",
    "enableDefaultDeny",
    "labels",
    "description",
];
/// Nothing gets narrower or wider by it.
const UNSUPPORTED: &[Unsupported] = &[Unsupported {
    name: "log",
    reason: "values for the log are not reported",
    instead: "remove it; events name the rule",
}];

/// The rules of an object's `spec` and `specs`, at least one.
pub(super) fn rules(
    root: &At<'_>,
    object: &Fields<'_>,
    namespace: Option<&str>,
    import: &mut Import<'_>,
) -> Result<Vec<Rule>, ParseError> {
    let mut rules = Vec::new();
    if let Some(spec) = object.get("spec") {
        rules.push(rule(spec, namespace, import)?);
    }
    if let Some(specs) = object.get("specs") {
        for spec in specs.list()? {
            rules.push(rule(&spec, namespace, import)?);
        }
    }
    if rules.is_empty() {
        return Err(root.refuse(Refusal::Missing { name: "spec" }));
    }
    Ok(rules)
}

fn rule(at: &At<'_>, namespace: Option<&str>, import: &mut Import<'_>) -> Result<Rule, ParseError> {
    let fields = import.fields(at, KNOWN, UNSUPPORTED)?;
    if let Some(at) = fields.get("nodeSelector") {
        // Not even fail-closed: what the rule forbids a node to do would go on.
        let reason = "policies of nodes are not enforced";
        let instead = "write endpointSelector to protect workloads, or remove the policy";
        return Err(at.refuse(Refusal::Misplaced { reason, instead }));
    }
    let subject = selector::cilium(fields.require("endpointSelector")?)?;
    let mut scope = Scope {
        namespace,
        selects_init: false,
    };
    let subject = scope.subject(subject);
    let of_init = |r: &Requirement| r.source.as_deref() == Some("reserved") && r.key == "init";
    scope.selects_init = subject.requirements().iter().any(of_init);

    let ingress = section(&fields, Direction::Ingress, scope, import)?;
    let egress = section(&fields, Direction::Egress, scope, import)?;
    if ingress.is_none() && egress.is_none() {
        let reason = "has no entry in ingress, ingressDeny, egress or egressDeny";
        let instead = "write ingress: [{}] to drop everything that comes in, or remove it";
        return Err(at.refuse(Refusal::Misplaced { reason, instead }));
    }
    let default_deny = default_deny(
        &fields,
        PerDirection {
            ingress: ingress.is_some(),
            egress: egress.is_some(),
        },
    )?;
    Ok(Rule {
        subject,
        default_deny,
        ingress: ingress.unwrap_or_default(),
        egress: egress.unwrap_or_default(),
    })
}

/// What the allowing and the denying section of a direction say; `None` if both have no entry.
fn section(
    fields: &Fields<'_>,
    direction: Direction,
    scope: Scope<'_>,
    import: &mut Import<'_>,
) -> Result<Option<Vec<Grant>>, ParseError> {
    let sections = match direction {
        Direction::Ingress => [("ingress", false), ("ingressDeny", true)],
        Direction::Egress => [("egress", false), ("egressDeny", true)],
    };
    let mut grants = None;
    for (name, deny) in sections {
        let Some(at) = fields.get(name) else { continue };
        for at in at.list()? {
            let grant = entry::parse(&at, direction, deny, scope, import)?;
            grants.get_or_insert_with(Vec::new).extend(grant);
        }
    }
    Ok(grants)
}

/// Whether the rule drops what is not allowed, `implied` unless it says otherwise.
fn default_deny(
    fields: &Fields<'_>,
    implied: PerDirection<bool>,
) -> Result<PerDirection<bool>, ParseError> {
    let Some(at) = fields.get("enableDefaultDeny") else {
        return Ok(implied);
    };
    let fields = at.fields(&["ingress", "egress"])?;
    let said = |name, implied| fields.get(name).map_or(Ok(implied), At::boolean);
    Ok(PerDirection {
        ingress: said("ingress", implied.ingress)?,
        egress: said("egress", implied.egress)?,
    })
}
