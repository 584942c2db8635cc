use std::collections::HashMap;

use super::{Direction, PolicyEntry, PolicyKey, Votes, verdict};
use crate::types::{EndpointId, IdentityId};

fn key(identity: u32, protocol: u8, port: u16, port_bits: u8) -> PolicyKey {
    PolicyKey {
        endpoint: EndpointId(1),
        identity: IdentityId(identity),
        direction: Direction::Ingress,
        protocol,
        port,
        port_bits,
    }
}

#[test]
fn deny_beats_allow_on_every_pair_of_levels() {
    let levels = [
        key(7, 6, 80, 16),
        key(7, 6, 64, 10),
        key(7, 6, 0, 0),
        key(7, 0, 0, 0),
        key(0, 6, 80, 16),
        key(0, 6, 64, 10),
        key(0, 6, 0, 0),
        key(0, 0, 0, 0),
    ];
    for (i, level) in levels.iter().enumerate() {
        let rule = u32::try_from(i).unwrap();
        let entry = |votes, rule| PolicyEntry { votes, rule };
        let mut map = HashMap::from([(*level, entry(Votes::ALLOW, rule))]);
        let found = verdict(|k| map.get(k).copied(), &levels[0]);
        assert_eq!((found.votes, found.rule), (Votes::ALLOW, rule));
        assert_eq!(
            verdict(|k| map.get(k).copied(), &key(8, 17, 81, 16)).passes(true),
            i == 7,
            "only the entry for anything matches another identity and port"
        );
        for deny in levels.iter().filter(|l| *l != level) {
            map.insert(*deny, entry(Votes::DENY, 9));
            let found = verdict(|k| map.get(k).copied(), &levels[0]);
            assert_eq!(found.rule, 9);
            assert!(!found.passes(false));
            map.remove(deny);
        }
    }
}

#[test]
fn without_a_match_default_deny_decides() {
    let none = verdict(|_| None, &key(7, 6, 80, 16));
    assert_eq!(none.rule, 0);
    assert!(none.passes(false));
    assert!(!none.passes(true));
}

#[test]
fn what_is_only_audited_neither_opens_nor_closes() {
    let exact = key(7, 6, 80, 16);
    let of = |votes| verdict(|k| (*k == exact).then_some(PolicyEntry { votes, rule: 1 }), &exact);
    let audited = of(Votes::AUDIT_ALLOW);
    assert!(!audited.passes(true), "an audited allow opens nothing");
    assert!(audited.passes_audited(true));
    let denied = of(Votes::AUDIT_DENY);
    assert!(denied.passes(false), "an audited deny closes nothing");
    assert!(!denied.passes_audited(false));
}
