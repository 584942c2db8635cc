//! Certificates are replaced under a live watch.
//! Goal: no event is lost and no stream dropped, new handshakes see the new files, and a bad set of
//! files changes nothing.
use std::{os::unix::fs::symlink, path::Path, time::Duration};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo::{
    serve,
    tls::{Paths, ServerTls},
};

use super::{
    tls::{Ca, Hello, Leaf, TlsFace, counts, write_server},
    within,
};

const RELOADS: usize = 10;
/// The reload that brings a key which does not fit.
const BAD: usize = 5;
/// 500 writes a second.
const WRITE_EVERY: Duration = Duration::from_millis(2);

/// As Kubernetes mounts a secret: each version a directory, and one symbolic link that is swapped.
fn mount(dir: &Path, version: usize, server: &Leaf, ca_pem: &str) -> Paths {
    let name = format!("..v{version}");
    std::fs::create_dir(dir.join(&name)).unwrap();
    write_server(&dir.join(&name), server, ca_pem);
    symlink(&name, dir.join("..tmp")).unwrap();
    std::fs::rename(dir.join("..tmp"), dir.join("..data")).unwrap();
    let at = |file: &str| {
        let path = dir.join(file);
        if !path.is_symlink() {
            symlink(Path::new("..data").join(file), &path).unwrap();
        }
        path
    };
    Paths {
        cert: at("server.crt"),
        key: at("server.key"),
        ca: at("ca.crt"),
    }
}

fn first(chain: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()
}

/// Until new handshakes are answered with this certificate.
async fn until_served(hello: &Hello, face: &TlsFace, server: &Leaf) {
    let expected = first(&server.chain);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let stream = hello.shake(face.address).await.unwrap();
        let (_, connection) = stream.get_ref();
        if connection.peer_certificates().unwrap()[0] == expected {
            return;
        }
        assert!(Instant::now() < deadline, "the new certificate is not used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_reloads_under_a_live_watch_lose_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let own = Ca::new("own");
    let mut server = own.server();
    let paths = mount(dir.path(), 0, &server, &own.pem);
    let tls = ServerTls::load(paths).unwrap();
    let registry = prometheus::Registry::new();
    tls.metrics().register(&registry).unwrap();
    let cancel = CancellationToken::new();
    let watching = tokio::spawn(tls.clone().watch(cancel.clone()));
    let face = TlsFace::start(&tls, serve::Limits::default()).await;
    let hello = Hello::new(&own, Some(own.client("admin-west")));

    let mut client = hello.client(face.address).await.unwrap();
    let options = etcd_client::WatchOptions::new().with_prefix();
    let mut stream = client.watch("k/", Some(options)).await.unwrap();
    within(stream.message()).await.unwrap();

    let (store, stop) = (face.face.cluster().clone(), cancel.child_token());
    let stopped = stop.clone();
    let writer = tokio::spawn(async move {
        let mut tick = tokio::time::interval(WRITE_EVERY);
        let mut written = 0_usize;
        while stopped.run_until_cancelled(tick.tick()).await.is_some() {
            let key = format!("k/{written:08}");
            store.put(key.into(), "x".into(), 0).unwrap();
            written += 1;
        }
        written
    });

    let mut at_reload = vec![face.face.cluster().revision()];
    for reload in 1..=RELOADS {
        let new = own.server();
        if reload == BAD {
            let bad = new.with_key_of(&own.server());
            mount(dir.path(), reload, &bad, &own.pem);
            let deadline = Instant::now() + Duration::from_secs(10);
            while !tls
                .refused()
                .is_some_and(|why| why.contains("key_mismatch"))
            {
                assert!(Instant::now() < deadline, "{:?}", tls.refused());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        } else {
            server = new;
            mount(dir.path(), reload, &server, &own.pem);
        }
        until_served(&hello, &face, &server).await;
        at_reload.push(face.face.cluster().revision());
    }
    assert_eq!(
        tls.refused(),
        None,
        "the good files that followed are in use"
    );
    assert!(
        at_reload.windows(2).all(|pair| pair[1] > pair[0]),
        "written between all reloads: {at_reload:?}"
    );
    stop.cancel();
    let written = writer.await.unwrap();

    let mut seen = 0;
    let mut revision = 1;
    while seen < written {
        let message = within(stream.message()).await.unwrap();
        for event in message.expect("the stream goes on").events() {
            let kv = event.kv().unwrap();
            assert_eq!(kv.key_str().unwrap(), format!("k/{seen:08}"));
            assert_eq!(kv.mod_revision(), revision + 1, "no revision is left out");
            revision = kv.mod_revision();
            seen += 1;
        }
    }
    assert!(counts(&registry, "tombolo_tls_reloads_refused_total")[0].0 == "key_mismatch");
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather());
    let taken = format!("tombolo_tls_reloads_total {}\n", RELOADS - 1);
    assert!(text.unwrap().contains(&taken));
    cancel.cancel();
    within(watching).await.unwrap();
    face.face.stop().await;
}
