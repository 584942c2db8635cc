use super::*;
use crate::{
    admin::wire::monitor::{Line, Packet, Provenance, Rule},
    enforcer::events::{Action, Kind},
};

fn packet() -> Packet {
    Packet {
        time_ns: 1,
        flow: 0x28c6_44b8,
        action: Action::Deny,
        reason: "Policy denied".to_owned(),
        direction: "ingress".to_owned(),
        endpoint: 3833,
        ifindex: 5,
        source_identity: 38354,
        destination_identity: 6_587_186,
        source: "10.1.0.3".parse().unwrap(),
        destination: "10.1.0.2".parse().unwrap(),
        source_port: 42728,
        destination_port: 6379,
        protocol: 6,
        tcp_flags: 2,
        icmp_type: 0,
        bytes: 74,
        source_known: Provenance::default(),
        destination_known: Provenance::default(),
        rule: None,
    }
}

#[test]
fn events_are_printed_in_the_guides_shape() {
    let line = |line: Line| print::monitor::line(&line, false);
    assert_eq!(
        line(Line::Drop(packet())),
        "xx drop (Policy denied) flow 0x28c644b8 to endpoint 3833, ifindex 5, \
         identity 38354->6587186: 10.1.0.3:42728 -> 10.1.0.2:6379 tcp SYN\n"
    );
    let egress = Packet {
        reason: "Invalid source ip".to_owned(),
        direction: "egress".to_owned(),
        source: "fd00::1".parse().unwrap(),
        protocol: 58,
        ..packet()
    };
    assert_eq!(
        line(Line::Drop(egress.clone())),
        "xx drop (Invalid source ip) flow 0x28c644b8 from endpoint 3833, ifindex 5, \
         identity 38354->6587186: fd00::1 -> 10.1.0.2 icmpv6\n"
    );
    let verdict = Packet {
        action: Action::Audit,
        tcp_flags: 0x12,
        ..packet()
    };
    assert_eq!(
        line(Line::PolicyVerdict(verdict)),
        "Policy verdict log: flow 0x28c644b8 local EP ID 3833, remote ID 38354, proto 6, ingress, \
         action audit, 10.1.0.3:42728 -> 10.1.0.2:6379 tcp SYN, ACK\n"
    );
    assert_eq!(
        line(Line::Trace(egress)),
        "<- endpoint 3833 flow 0x28c644b8, identity 38354->6587186 state new ifindex 5: \
         fd00::1 -> 10.1.0.2 icmpv6\n"
    );
}

#[test]
fn verbose_lines_say_whence_everybody_is_known() {
    let packet = Packet {
        source_known: Provenance {
            labels: vec!["k8s:app=employee".to_owned()],
            cluster: Some("cluster2".to_owned()),
            revision: Some(88_120),
            age_ms: Some(12),
        },
        rule: Some(Rule {
            number: 7,
            name: Some("shop/db rule 0 ingressDeny[1] in db.yaml".to_owned()),
            origin: Some("db.yaml".to_owned()),
        }),
        ..packet()
    };
    let text = print::monitor::line(&Line::Drop(packet), true);
    let (_, below) = text.split_once('\n').unwrap();
    assert_eq!(
        below,
        "   └  source: identity 38354 of cluster2: k8s:app=employee (learned 12ms ago, revision 88120)\n   \
         └  destination: identity 6587186: labels not known\n   \
         └  rule: shop/db rule 0 ingressDeny[1] in db.yaml\n"
    );
}

/// The lines of an agent's stream.
async fn next(lines: &mut client::Lines) -> Line {
    let text = lines.next().await.unwrap().unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn monitor_streams_what_is_asked_for_with_its_provenance() {
    let agent = Agent::start();
    agent.runtime.block_on(async {
        let client = client::Client::new(agent.path());
        let query = "type=drop&type=trace";
        let mut lines = client.lines("/v1/monitor", query).await.unwrap();
        let event = Event {
            source_identity: IdentityId(6_684_673),
            destination_identity: IdentityId(1),
            rule: 9,
            ..drop_event()
        };
        for kind in [Kind::PolicyVerdict, Kind::Trace] {
            let event = Event {
                kind,
                ..event.clone()
            };
            agent.events.source.send(event).unwrap();
        }
        let line = next(&mut lines).await;
        let Line::Trace(packet) = &line else {
            panic!("{line:?}")
        };
        assert_eq!(packet.destination_known.labels, ["reserved:host"]);
        let known = &packet.source_known;
        assert_eq!(known.labels[0], "k8s:app=employee");
        assert_eq!(known.cluster.as_deref(), Some("cluster2"));
        assert_eq!(known.revision, Some(7));
        assert!(known.age_ms.is_some_and(|age| age < 60_000));
        let rule = packet.rule.as_ref().unwrap();
        assert_eq!((rule.number, &rule.name), (9, &None), "not in force");
        // Whoever asks for something else is told.
        let error = match client.lines("/v1/monitor", "type=l7").await {
            Err(error) => error.to_string(),
            Ok(_) => panic!("l7 is nothing that is told"),
        };
        assert!(error.starts_with("type=l7 is not a filter"), "{error}");
    });
}

#[test]
fn monitor_says_what_it_lost() {
    let agent = Agent::start();
    agent.runtime.block_on(async {
        let client = client::Client::new(agent.path());
        let mut lines = client.lines("/v1/monitor", "").await.unwrap();
        let source = &agent.events.source;
        assert_eq!(
            source.receiver_count(),
            1,
            "subscribed before the answer begins"
        );
        source.send(drop_event()).unwrap();
        assert!(matches!(next(&mut lines).await, Line::Drop(_)));
        // More than socket buffers and channel hold: every event is either sent or counted.
        let mut owed = 20_000;
        for _ in 0..owed {
            source.send(drop_event()).unwrap();
        }
        let mut lost = 0;
        while owed > 0 {
            match next(&mut lines).await {
                Line::Lost { count } => {
                    owed -= count;
                    lost += count;
                }
                _ => owed -= 1,
            }
        }
        assert!(lost > 0);
        // Shutdown ends the stream, else the server would wait for its reader.
        agent.tasks.shutdown();
        assert_eq!(lines.next().await.unwrap(), None);
    });
}

/// Goal: a reader that goes away, however it does, is not reported for any longer.
#[test]
fn what_nobody_listens_to_any_more_is_not_wanted() {
    let agent = Agent::start();
    agent.runtime.block_on(async {
        let client = client::Client::new(agent.path());
        let mut wanted = agent.events.listeners.wanted();
        let query = "type=policy-verdict";
        let lines = client.lines("/v1/monitor", query).await.unwrap();
        assert!(wanted.borrow_and_update().verdicts && !wanted.borrow().traces);
        drop(lines);
        let gone = wanted.wait_for(|wanted| !wanted.verdicts);
        let gone = tokio::time::timeout(Duration::from_secs(10), gone).await;
        gone.expect("in time").unwrap();
    });
}
