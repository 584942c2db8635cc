//! Each limit of a client is run into: the refusal has a name, is counted, and ends with its cause.
use std::{convert::Infallible, net::SocketAddr, process::Command, time::Duration};

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tombolo::serve::{Limits, Server};
use tower::ServiceExt as _;

use super::{
    Face,
    site::{Site, is_root},
    tls::{Ca, Hello, TlsFace, channel_over, client_over, counts, write_server},
    within,
};

/// A face without TLS whose clients are called by `name`.
struct Plain {
    face: Face,
    address: SocketAddr,
    registry: prometheus::Registry,
}

impl Plain {
    async fn start(limits: Limits, name: fn(SocketAddr) -> String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accept = move |tcp: TcpStream| async move {
            let name = name(tcp.peer_addr().unwrap());
            Ok::<_, Infallible>((tcp, name))
        };
        let registry = prometheus::Registry::new();
        let face = Face::start_with(address.to_string(), |keyspaces, cancel| {
            let server = Server::new(keyspaces, "west".parse().unwrap(), limits);
            server.metrics().register(&registry).unwrap();
            tokio::spawn(server.run(listener, accept, cancel))
        });
        Self {
            face,
            address,
            registry,
        }
    }

    fn hits(&self) -> Vec<(String, String)> {
        counts(&self.registry, "tombolo_serve_limit_hits_total")
    }

    async fn connect(&self, from: &str) -> TcpStream {
        connect(self.address, from).await
    }

    /// True if a call over this connection is answered.
    async fn answers(&self, tcp: TcpStream) -> Option<etcd_client::Client> {
        let mut client = client_over(tcp).await.ok()?;
        within(client.get("x", None)).await.ok()?;
        Some(client)
    }

    async fn until_answers(&self, from: &str) -> etcd_client::Client {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(client) = self.answers(self.connect(from).await).await {
                return client;
            }
            assert!(tokio::time::Instant::now() < deadline, "still refused");
            tokio::task::yield_now().await;
        }
    }
}

async fn connect(to: SocketAddr, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::new(from.parse().unwrap(), 0))
        .unwrap();
    within(socket.connect(to)).await.unwrap()
}

fn limits() -> Limits {
    Limits::default()
}

fn hit(limit: &str, times: u64) -> Vec<(String, String)> {
    vec![(limit.to_owned(), times.to_string())]
}

fn refusal<T>(answer: Result<T, etcd_client::Error>) -> String {
    match answer {
        Err(etcd_client::Error::GRpcStatus(status)) => {
            assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
            status.message().to_owned()
        }
        Err(other) => panic!("not a status: {other}"),
        Ok(_) => panic!("not refused"),
    }
}

const A: &str = "127.0.0.1";
const B: &str = "127.0.0.2";

#[tokio::test]
async fn connections_are_limited_in_all_by_address_and_by_name() {
    let by_address =
        |from: SocketAddr| format!("remote-{}", from.ip().to_string().replace('.', "-"));
    let one_name = |_| "admin-west".to_owned();
    let two = Limits {
        connections: 1,
        ..limits()
    };
    let one_each = Limits {
        connections_per_client: 1,
        ..limits()
    };
    type Name = fn(SocketAddr) -> String;
    // (limits, names, who is refused while A has a connection, who is not, the limit's name)
    let rows: [(Limits, Name, &str, Option<&str>, &str); 3] = [
        (two, one_name, B, None, "connections"),
        (one_each, by_address, A, Some(B), "connections_per_address"),
        (one_each, one_name, B, None, "connections_per_name"),
    ];
    for (limits, name, refused, welcome, limit) in rows {
        let plain = Plain::start(limits, name).await;
        let key = "cilium/.heartbeat";
        let mut first = client_over(plain.connect(A).await).await.unwrap();
        within(first.get(key, None)).await.unwrap();
        let second = plain.connect(refused).await;
        assert!(plain.answers(second).await.is_none(), "{limit}");
        assert_eq!(plain.hits(), hit(limit, 1));
        if let Some(welcome) = welcome {
            let mut other = client_over(plain.connect(welcome).await).await.unwrap();
            within(other.get(key, None)).await.unwrap();
        }
        within(first.get(key, None)).await.unwrap();
        drop(first);
        if welcome.is_none() {
            plain.until_answers(refused).await;
        }
        plain.face.stop().await;
    }
}

#[tokio::test]
async fn streams_of_a_connection_are_limited() {
    let two = Limits {
        streams_per_connection: 2,
        ..limits()
    };
    let plain = Plain::start(two, |_| "admin-west".to_owned()).await;
    let mut client = client_over(plain.connect(A).await).await.unwrap();
    let mut first = within(client.watch("a", None)).await.unwrap();
    let mut second = within(client.watch("b", None)).await.unwrap();
    for stream in [&mut first, &mut second] {
        assert!(within(stream.message()).await.unwrap().unwrap().created());
    }
    let why = refusal(within(client.get("x", None)).await);
    assert!(
        why.starts_with("etcdserver: too many requests: 2 calls and streams are open"),
        "{why}"
    );
    assert_eq!(plain.hits(), hit("streams_per_connection", 1));
    // Another connection has streams of its own.
    assert!(plain.answers(plain.connect(A).await).await.is_some());
    drop(first);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while within(client.get("x", None)).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "still refused");
        tokio::task::yield_now().await;
    }
    plain.face.stop().await;
}

/// A call whose message never comes holds a place among its client's requests.
#[tokio::test]
async fn requests_of_a_client_are_limited_over_all_its_connections() {
    let one = Limits {
        requests_per_client: 1,
        ..limits()
    };
    let by_address = |from: SocketAddr| match from.ip().to_string().as_str() {
        A => "admin-west".to_owned(),
        _ => "remote-east".to_owned(),
    };
    let plain = Plain::start(one, by_address).await;
    let channel = channel_over(plain.connect(A).await).await.unwrap();
    let never = futures::stream::pending::<Result<Frame<Bytes>, tonic::Status>>();
    let request = tonic::codegen::http::Request::post("http://127.0.0.1/etcdserverpb.KV/Range")
        .header("content-type", "application/grpc")
        .body(tonic::body::Body::new(StreamBody::new(never)))
        .unwrap();
    let waiting = tokio::spawn(channel.oneshot(request));

    let mut client = client_over(plain.connect(A).await).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    let why = loop {
        let answer = within(client.get("x", None)).await;
        if answer.is_err() {
            break refusal(answer);
        }
        assert!(tokio::time::Instant::now() < deadline, "never refused");
    };
    assert!(
        why.starts_with("etcdserver: too many requests: 1 calls of this client are in work"),
        "{why}"
    );
    assert_eq!(plain.hits(), hit("requests_per_client", 1));
    let mut other = client_over(plain.connect(B).await).await.unwrap();
    within(other.get("cilium/.heartbeat", None)).await.unwrap();

    waiting.abort();
    while within(client.get("x", None)).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "still refused");
        tokio::task::yield_now().await;
    }
    plain.face.stop().await;
}

#[tokio::test]
async fn request_messages_are_limited_in_etcds_words() {
    let plain = Plain::start(limits(), |_| "admin-west".to_owned()).await;
    let mut client = client_over(plain.connect(A).await).await.unwrap();
    let before = plain.face.cluster().revision();
    let why = refusal(within(client.put("x", vec![0; 3 << 20], None)).await);
    assert_eq!(
        why,
        "grpc: received message larger than max (3145736 vs. 2097152)"
    );
    assert_eq!(plain.hits(), hit("request_bytes", 1));
    assert_eq!(plain.face.cluster().revision(), before);
    plain.face.stop().await;
}

/// Whoever opens connections and says nothing delays its own handshakes, but nobody else's.
#[tokio::test]
async fn stalled_handshakes_of_one_address_do_not_stop_another() {
    let dir = tempfile::tempdir().unwrap();
    let own = Ca::new("own");
    let paths = write_server(dir.path(), &own.server(), &own.pem);
    let tls = tombolo::tls::ServerTls::load(paths).unwrap();
    let face = TlsFace::start(&tls, limits()).await;
    let mut stalled = Vec::new();
    for _ in 0..tombolo::limits::HANDSHAKES_MAX {
        let mut tcp = connect(face.address, B).await;
        tcp.write_all(&[0x16, 0x03, 0x01]).await.unwrap();
        stalled.push(tcp);
    }
    let hello = Hello::new(&own, Some(own.client("admin-west")));
    let start = tokio::time::Instant::now();
    let mut client = hello.client(face.address).await.unwrap();
    within(client.get("x", None)).await.unwrap();
    assert!(
        start.elapsed() < tombolo::limits::HANDSHAKE_TIMEOUT / 2,
        "waited for others: {:?}",
        start.elapsed()
    );
    // The first of them is given up in time.
    drop(within(stalled[0].read(&mut [0; 16])).await);
    face.face.stop().await;
}

/// As containers start with fewer than a thousand watchers need.
#[tokio::test]
async fn an_agent_opens_as_many_files_as_the_hard_limit_lets_it() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let agent = site.command();
    let mut command = Command::new("prlimit");
    command.arg("--nofile=256:4096").arg(agent.get_program());
    let agent = site.start_with(command.args(agent.get_args()));
    within(site.client().await.get("x", None)).await.unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", agent.id())).unwrap();
    let limit = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<_> = limit.unwrap().split_whitespace().collect();
    assert_eq!(words[3..5], ["4096", "4096"], "{limits}");
}
