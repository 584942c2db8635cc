//! What the numbers of rules stand for: written by the engine, read by events, metrics and status.
use std::{fmt, sync::Arc};

use serde::{Serialize, Serializer};

use super::{Direction, Kind, Origin};

/// The read side; all clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct RuleNames(Arc<dashmap::DashMap<u32, Arc<RuleName>>>);

/// One entry of a policy's rule, which is what has a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleName {
    /// Where its policy comes from.
    #[serde(serialize_with = "text")]
    pub origin: Origin,
    /// What kind of object the policy is.
    pub kind: Kind,
    /// Its namespace; `None` if it is clusterwide.
    pub namespace: Option<String>,
    /// Its name.
    pub policy: String,
    /// Which rule of the policy, `spec` before `specs`.
    pub rule: usize,
    /// Which way.
    pub direction: Direction,
    /// Whether it forbids.
    pub deny: bool,
    /// Which entry of the section that direction and `deny` name.
    pub entry: usize,
}

fn text<S: Serializer>(origin: &Origin, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(origin)
}

impl fmt::Display for RuleName {
    /// `shop/db rule 0 ingress[1] in policy.yaml`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        let section = match (self.direction, self.deny) {
            (Direction::Ingress, false) => "ingress",
            (Direction::Ingress, true) => "ingressDeny",
            (Direction::Egress, false) => "egress",
            (Direction::Egress, true) => "egressDeny",
        };
        let Self {
            origin,
            policy,
            rule,
            entry,
            ..
        } = self;
        write!(f, "{policy} rule {rule} {section}[{entry}] in {origin}")
    }
}

impl RuleNames {
    /// The rule with this number, if one in force has it.
    #[must_use]
    pub fn get(&self, number: u32) -> Option<Arc<RuleName>> {
        self.0.get(&number).map(|name| Arc::clone(&name))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives a number made from the name itself, so that it stays the same over restarts; 0 is no
    /// rule.
    pub(super) fn add(&self, name: RuleName) -> u32 {
        let text = format!("{} {name}", name.kind);
        // FNV-1a: stable by definition, unlike the standard hasher.
        let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        let mut number = hash.max(1);
        while self.0.contains_key(&number) {
            number = number.wrapping_add(1).max(1);
        }
        self.0.insert(number, Arc::new(name));
        number
    }

    pub(super) fn remove(&self, number: u32) {
        self.0.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_same_number_again_and_no_other_has_it_meanwhile() {
        let name = RuleName {
            origin: Origin::File("db.yaml".into()),
            kind: Kind::CiliumNetworkPolicy,
            namespace: Some("shop".into()),
            policy: "db".into(),
            rule: 0,
            direction: Direction::Ingress,
            deny: true,
            entry: 1,
        };
        let names = RuleNames::default();
        let number = names.add(name.clone());
        assert_eq!(number, 0x6d57_e80f, "of the hash, over versions");
        assert_ne!(names.add(name.clone()), number);
        let shown = names.get(number).map(|name| name.to_string());
        let expected = "shop/db rule 0 ingressDeny[1] in db.yaml";
        assert_eq!(shown.as_deref(), Some(expected));
        names.remove(number);
        assert_eq!(names.get(number), None);
        assert_eq!(names.add(name), number);
    }
}
