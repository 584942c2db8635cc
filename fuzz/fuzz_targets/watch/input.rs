//! A byte string as what three members of a mesh say: every byte counts, and any string is valid.
use bytes::Bytes;
use tombolo::keyspace::{KeyEvent, Kind};

use crate::CLUSTERS;

/// What happens next.
#[derive(Debug)]
pub enum Op {
    /// A member's follower has these events, at once.
    Events {
        member: usize,
        events: Vec<KeyEvent>,
    },
    /// A peer's configuration is known, with this id.
    Connect {
        member: usize,
        id: u32,
        /// Only `10.0.0.0/24` is allowed to it.
        bounded: bool,
        /// It has all kinds of entries.
        offers_all: bool,
    },
    /// A peer's file is gone.
    Remove { member: usize },
}

pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn below(&mut self, end: usize) -> Option<usize> {
        Some(usize::from(self.byte()?) % end)
    }

    /// The next operation; `ids` are the members' present ones.
    pub fn op(&mut self, ids: [u32; 3]) -> Option<Op> {
        let member = self.below(CLUSTERS.len())?;
        match self.below(16)? {
            0 if member != 0 => Some(Op::Connect {
                member,
                id: 2 + u32::from(self.byte()? % 2),
                bounded: self.byte()? % 2 == 1,
                offers_all: self.byte()? % 4 != 0,
            }),
            1 if member != 0 => Some(Op::Remove { member }),
            count => {
                let count = 1 + count % 3;
                let events = (0..count).map_while(|_| self.event(member, ids)).collect();
                Some(Op::Events { member, events })
            }
        }
    }

    fn event(&mut self, member: usize, ids: [u32; 3]) -> Option<KeyEvent> {
        let what = self.below(8)?;
        let kind = Kind::ALL[self.below(Kind::ALL.len())?];
        Some(match what {
            0 => KeyEvent::BeginList { kind },
            1 => KeyEvent::EndList { kind },
            2 => {
                let (suffix, _) = self.entry(kind, member, ids)?;
                KeyEvent::Delete { kind, suffix }
            }
            damage => {
                let (suffix, value) = self.entry(kind, member, ids)?;
                let (mut suffix, mut value) = (suffix.to_vec(), value.to_vec());
                if damage == 3 {
                    self.damage(&mut value)?;
                } else if damage == 4 {
                    self.damage(&mut suffix)?;
                }
                KeyEvent::Upsert {
                    kind,
                    suffix: suffix.into(),
                    value: value.into(),
                    revision: 1,
                }
            }
        })
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) -> Option<()> {
        let at = self.below(bytes.len().max(1))?;
        match self.byte()? {
            0 => bytes.truncate(at),
            byte => bytes[at] = byte,
        }
        Some(())
    }

    /// A record of one of a few names and addresses, which the others use as well. Its variant may
    /// make it one that the member must not write.
    fn entry(&mut self, kind: Kind, member: usize, ids: [u32; 3]) -> Option<(Bytes, Bytes)> {
        let slot = self.below(4)?;
        let variant = self.below(12)?;
        let author = if variant == 11 {
            (member + 1) % 3
        } else {
            member
        };
        let (of, id) = (CLUSTERS[author], ids[author]);
        let (suffix, value) = match kind {
            Kind::Nodes => (format!("n{slot}"), node(of, id, slot, variant).into_bytes()),
            Kind::Identities => {
                let labels = format!("k8s:app=a{variant};k8s:io.cilium.k8s.policy.cluster={of};");
                (
                    ((ids[member] << 16) + slot as u32).to_string(),
                    labels.into_bytes(),
                )
            }
            Kind::Ips => ip(id, slot, variant),
            Kind::Services => {
                let shared = variant % 3 != 0;
                let value = format!(
                    r#"{{"cluster":"{of}","namespace":"shop","name":"s{slot}","frontends":{{}},"backends":{{"10.0.0.{slot}":{{}}}},"shared":{shared},"clusterID":{id}}}"#
                );
                (format!("shop/s{slot}"), value.into_bytes())
            }
            Kind::ServiceExports => {
                let kind = if variant == 1 { "Other" } else { "Headless" };
                let value = format!(
                    r#"{{"cluster":"{of}","namespace":"shop","name":"s{slot}","exportCreationTimestamp":"2025-05-02T09:30:00Z","ports":[],"type":"{kind}","sessionAffinity":"None"}}"#
                );
                (format!("shop/s{slot}"), value.into_bytes())
            }
            Kind::EndpointSlices => (format!("shop/s{slot}"), slice(of, id, slot, variant)),
        };
        Some((suffix.into(), value.into()))
    }
}

fn node(of: &str, id: u32, slot: usize, variant: usize) -> String {
    let (second, health) = (variant % 4, variant / 4);
    let cidr = if variant == 3 { "10.0.0.0" } else { "10.9.0.0" };
    format!(
        r#"{{"Name":"n{slot}","Cluster":"{of}","ClusterID":{id},"IPAddresses":[{{"Type":"InternalIP","IP":"10.0.0.{slot}"}},{{"Type":"ExternalIP","IP":"10.0.1.{second}"}}],"IPv4AllocCIDR":{{"IP":"{cidr}","Mask":"////+A=="}},"IPv4HealthIP":"10.0.1.{health}"}}"#
    )
}

fn ip(id: u32, slot: usize, variant: usize) -> (String, Vec<u8>) {
    let identity = match variant {
        0 => 0,
        1 => 1,
        2 => 6,
        3 => 70_000_000,
        _ => (id << 16) + 1,
    };
    let (address, mask, suffix) = match variant {
        4 | 5 => (
            format!("10.0.0.{slot}"),
            r#""/////w==""#,
            format!("10.0.0.{slot}/32"),
        ),
        6 => (
            format!("10.{slot}.0.0"),
            r#""//8AAA==""#,
            format!("10.{slot}.0.0/16"),
        ),
        7 => ("0.0.0.0".into(), r#""AAAAAA==""#, "0.0.0.0/0".into()),
        8 => (
            format!("2001:db8::{slot}"),
            "null",
            format!("2001:db8::{slot}"),
        ),
        _ => (format!("10.0.0.{slot}"), "null", format!("10.0.0.{slot}")),
    };
    let value = format!(r#"{{"IP":"{address}","Mask":{mask},"HostIP":"","ID":{identity}}}"#);
    (suffix, value.into_bytes())
}

fn slice(of: &str, id: u32, slot: usize, variant: usize) -> Vec<u8> {
    use prost::encoding::{string, uint32};
    let family = if variant == 1 { "FQDN" } else { "IPv4" };
    let mut message = Vec::new();
    let name = format!("s{slot}");
    for (field, text) in [(1, of), (3, "shop"), (4, &name), (7, family)] {
        string::encode(field, &text.to_owned(), &mut message);
    }
    uint32::encode(2, &id, &mut message);
    zstd::bulk::compress(&message, 1).expect("memory")
}
