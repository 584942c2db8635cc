use std::collections::HashMap;

use super::{Direction, PolicyEntry, PolicyKey, Verdict, verdict};
use crate::types::{EndpointId, IdentityId};

fn key(identity: u32, protocol: u8, port: u16) -> PolicyKey {
    PolicyKey {
        endpoint: EndpointId(1),
        identity: IdentityId(identity),
        direction: Direction::Ingress,
        protocol,
        port,
    }
}

#[test]
fn deny_beats_allow_on_every_pair_of_levels() {
    let levels = [
        key(7, 6, 80),
        key(7, 6, 0),
        key(7, 0, 0),
        key(0, 6, 80),
        key(0, 6, 0),
        key(0, 0, 0),
    ];
    for (i, level) in levels.iter().enumerate() {
        let rule = u32::try_from(i).unwrap();
        let mut map = HashMap::from([(*level, PolicyEntry { deny: false, rule })]);
        assert_eq!(
            verdict(|k| map.get(k).copied(), &levels[0]),
            Verdict::Allow { rule }
        );
        assert_eq!(
            verdict(|k| map.get(k).copied(), &key(8, 17, 81)).passes(true),
            i == 5,
            "only the entry for anything matches another identity and port"
        );
        for deny in levels.iter().filter(|l| *l != level) {
            map.insert(
                *deny,
                PolicyEntry {
                    deny: true,
                    rule: 9,
                },
            );
            let found = verdict(|k| map.get(k).copied(), &levels[0]);
            assert_eq!(found, Verdict::Deny { rule: 9 });
            assert!(!found.passes(false));
            map.remove(deny);
        }
    }
}

#[test]
fn without_a_match_default_deny_decides() {
    let none = verdict(|_| None, &key(7, 6, 80));
    assert_eq!(none, Verdict::NoMatch);
    assert!(none.passes(false));
    assert!(!none.passes(true));
}
