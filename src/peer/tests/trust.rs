//! Whom a peer's file lets in as our client, while nobody reaches the peer.
use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair};
use tokio::sync::{mpsc, watch};

use crate::{
    follower::Sink,
    peer::{
        ConfigFile, Dial, MemberEvent, Options, Random, Route, Timing,
        actor::{self, Desired},
        link::Context,
        shared::Shared,
    },
    tls::{ClientTrust, Paths, ServerTls},
    types::{ClusterId, ClusterName, MaxClusters},
};

/// A CA and its certificate.
fn ca() -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

fn trust(dir: &Path) -> ClientTrust {
    let (issuer, ca) = ca();
    let key = KeyPair::generate().unwrap();
    let mut server = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    server.distinguished_name = DistinguishedName::new();
    let cert = server.signed_by(&key, &issuer).unwrap().pem();
    let write = |name: &str, pem: &str| {
        let path = dir.join(name);
        fs::write(&path, pem).unwrap();
        path
    };
    let paths = Paths {
        cert: write("server.crt", &cert),
        key: write("server.key", &key.serialize_pem()),
        ca: write("ca.crt", &ca),
    };
    ServerTls::load(paths).unwrap().trust()
}

fn options(trust: ClientTrust, route: watch::Receiver<Route>) -> Options {
    Options {
        directory: "/none".into(),
        cluster: "own".parse().unwrap(),
        id: ClusterId::new(1, MaxClusters::C255).unwrap(),
        max_clusters: MaxClusters::C255,
        cache_ttl: None,
        trust: Some(trust),
        clock: || SystemTime::UNIX_EPOCH,
        timing: Timing::default(),
        dial: Dial::new(|_, _, _| Box::pin(std::future::pending())),
        random: Random::default(),
        route,
    }
}

/// Two clusters whose client certificates are from CAs of their own reach each other only if one of
/// them lets the other in first. A refused CA tells that the file was looked at.
#[tokio::test(start_paused = true)]
async fn ca_of_a_peer_vouches_for_it_before_anybody_reached_it() {
    let dir = tempfile::tempdir().unwrap();
    let trust = trust(dir.path());
    let west = dir.path().join("west-ca.crt");
    fs::write(&west, "no certificate").unwrap();
    let text = "endpoints: [https://west:1]\ntrusted-ca-file: west-ca.crt";
    let file = ConfigFile::parse(text, dir.path()).unwrap();
    let running = Desired::Running(Arc::new((dir.path().join("west"), file)));
    // Nobody has decided yet who dials.
    let (decide, route) = watch::channel(Route::Undecided);
    let (desired, wanted) = watch::channel(running);
    let (sender, _events) = mpsc::channel(9);
    let name: ClusterName = "west".parse().unwrap();
    let keys_of = name.clone();
    let context = Context {
        name,
        options: Arc::new(options(trust.clone(), route)),
        shared: Arc::new(Shared::default()),
        sink: Sink::new(sender, move |events| MemberEvent::Keys {
            name: keys_of.clone(),
            events,
        }),
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(actor::run(context, wanted));
    let look = Timing::default().trust_check + Duration::from_secs(1);
    tokio::time::sleep(look).await;
    assert_eq!(trust.refusals().len(), 1);
    fs::write(&west, ca().1).unwrap();
    tokio::time::sleep(look).await;
    assert!(trust.refusals().is_empty());
    // Dialled in vain, and then removed: nothing looks at the file any more.
    decide.send_replace(Route::Direct);
    tokio::time::sleep(look).await;
    fs::write(&west, "no certificate").unwrap();
    tokio::time::sleep(look).await;
    assert_eq!(trust.refusals().len(), 1);
    desired.send_replace(Desired::Removed);
    tokio::time::sleep(look).await;
    assert!(trust.refusals().is_empty());
}
