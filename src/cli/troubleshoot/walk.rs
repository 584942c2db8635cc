//! The layers of one endpoint, each tried by the code that a session uses.
use std::time::{Duration, SystemTime};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Own, State, Step};
use crate::{
    cli::print,
    etcd::{self, Class, Client, Endpoint},
    follower::Subject,
    keyspace::{self, ClusterConfig, Kind},
    limits,
    peer::{ConfigFile, Layer, inspect::subject},
    tls::{
        ClientTls, Reason,
        inspect::{self, Certificate, Session},
    },
    types::ClusterName,
};

/// The layers above the file.
const LAYERS: [Layer; 7] = [
    Layer::Resolve,
    Layer::Tcp,
    Layer::Tls,
    Layer::Authorization,
    Layer::ClusterConfig,
    Layer::Canaries,
    Layer::Heartbeat,
];

pub(super) struct Walk<'a> {
    pub(super) peer: &'a ClusterName,
    pub(super) file: &'a ConfigFile,
    pub(super) own: &'a Own,
    /// Longest wait for each answer.
    pub(super) patience: Duration,
}

/// What the server let us read.
struct Read {
    client: Client,
    config: Option<bytes::Bytes>,
    heartbeat: Option<bytes::Bytes>,
}

/// The step that failed.
type Failed = Box<Step>;

impl Walk<'_> {
    /// One step for each layer; those above the first that failed are not reached.
    pub(super) async fn steps(&self, endpoint: &Endpoint) -> Vec<Step> {
        let mut steps = Vec::new();
        // On the heap: the future holds connections.
        if let Err(failed) = Box::pin(self.climb(endpoint, &mut steps)).await {
            let layer = failed.layer;
            let above = LAYERS.into_iter().filter(|above| *above > layer);
            let above = above.map(|layer| Step {
                state: State::NotReached,
                ..Step::good(layer, "not reached")
            });
            steps.push(*failed);
            steps.extend(above);
        }
        steps
    }

    async fn climb(&self, endpoint: &Endpoint, steps: &mut Vec<Step>) -> Result<(), Failed> {
        let Endpoint { host, port, .. } = endpoint;
        let addresses = self
            .within(etcd::resolve(&self.file.connect, endpoint))
            .await;
        let addresses = addresses.map_err(|text| {
            let next = format!(
                "getent hosts {host}; or give its address in cilium-host-aliases of the file"
            );
            Step::bad(Layer::Resolve, text, next)
        })?;
        let shown: Vec<_> = addresses.iter().map(|a| a.ip().to_string()).collect();
        let text = match host.parse::<std::net::IpAddr>() {
            Ok(_) => format!("{host} is an address"),
            Err(_) => format!("{host} is {}", shown.join(", ")),
        };
        steps.push(Step::good(Layer::Resolve, text));

        let tcp = self.within(etcd::dial(&addresses)).await;
        let tcp = tcp.map_err(|text| {
            let next = format!(
                "nc -vz {host} {port}; does the peer's agent run and listen there, does a firewall \
                 let this host pass?"
            );
            Step::bad(Layer::Tcp, format!("dial {endpoint}: {text}"), next)
        })?;
        let reached = tcp
            .peer_addr()
            .map_or_else(|_| endpoint.to_string(), |a| a.to_string());
        steps.push(Step::good(
            Layer::Tcp,
            format!("connection established to {reached}"),
        ));

        let tls = if self.file.connect.uses_tls(endpoint) {
            self.tls(endpoint, tcp).await?
        } else {
            Step::good(Layer::Tls, "not used, the endpoint is plaintext")
        };
        let read = Box::pin(self.read(endpoint, tls, steps)).await?;
        let config = self.cluster_config(read.config.as_deref())?;
        steps.push(Step::good(
            Layer::ClusterConfig,
            print::remote_config(&config),
        ));
        steps.push(self.canaries(&read.client, &config).await?);
        steps.push(heartbeat(read.heartbeat.as_deref())?);
        Ok(())
    }

    /// The result in time, or what hindered it.
    async fn within<T, E: Into<anyhow::Error>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, String> {
        match tokio::time::timeout(self.patience, future).await {
            Ok(result) => result.map_err(|error| format!("{:#}", error.into())),
            Err(_) => Err(self.silence()),
        }
    }

    fn silence(&self) -> String {
        format!("no answer within {} s", self.patience.as_secs())
    }

    async fn tls(&self, endpoint: &Endpoint, tcp: tokio::net::TcpStream) -> Result<Step, Failed> {
        let options = &self.file.connect.tls;
        let client = ClientTls::new(options.clone());
        // TLS 1.3 servers refuse a client's certificate after the handshake, at once.
        let refusal = self.patience.min(Duration::from_secs(1));
        let probed = client.probe(tcp, &endpoint.host, refusal);
        let session = match tokio::time::timeout(self.patience, probed).await {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => {
                let refused = error.alert();
                let hung_up = matches!(error.reason(), Reason::Closed | Reason::NotTls);
                let text = format!("{:#}", anyhow::Error::from(error));
                let text = match refused {
                    Some(alert) => format!("the server refused us with the alert {alert}"),
                    None if hung_up => format!("{text}; does this port speak TLS at all?"),
                    None => text,
                };
                return Err(self.tls_failed(endpoint, text, self.seen(endpoint).await));
            }
            Err(_) => {
                let text = format!("shake hands with {endpoint}: {}", self.silence());
                return Err(self.tls_failed(endpoint, text, Vec::new()));
            }
        };
        let Session {
            version,
            suite,
            chain,
        } = session;
        let verified = if options.insecure_skip_verify {
            "server not verified (insecure-skip-tls-verify)"
        } else {
            "server verified"
        };
        let text = format!("{version}, ciphersuite {suite}, {verified}");
        Ok(Step::good(Layer::Tls, text).with(self.certificates(&chain)))
    }

    /// What the server presents to whoever does not look at it closely.
    async fn seen(&self, endpoint: &Endpoint) -> Vec<Certificate> {
        let look = async {
            let addresses = etcd::resolve(&self.file.connect, endpoint).await.ok()?;
            let tcp = etcd::dial(&addresses).await.ok()?;
            let client = ClientTls::new(self.file.connect.tls.clone());
            Some(client.presented(tcp, &endpoint.host).await)
        };
        let seen = tokio::time::timeout(self.patience, look).await;
        seen.ok().flatten().unwrap_or_default()
    }

    /// A failed handshake. A certificate of ours that is no good is the reason rather than what the
    /// server said to it.
    fn tls_failed(&self, endpoint: &Endpoint, text: String, seen: Vec<Certificate>) -> Failed {
        let options = &self.file.connect.tls;
        let ours = options.identity.as_ref();
        let ours = ours.and_then(|(cert, key)| inspect::check_client(cert, key).err());
        let ca = options
            .ca
            .as_ref()
            .and_then(|ca| inspect::check_ca(ca).err());
        let text = match ours.or(ca) {
            Some(error) => format!("{:#} ({text})", anyhow::Error::from(error)),
            None => text,
        };
        let mut next = format!("openssl s_client -connect {endpoint} -alpn h2");
        if let Some(ca) = &options.ca {
            next.push_str(&format!(" -CAfile {}", ca.display()));
        }
        if let Some((cert, key)) = &options.identity {
            let (cert, key) = (cert.display(), key.display());
            next.push_str(&format!(" -cert {cert} -key {key}"));
        }
        next.push_str("; tombolo config check on the peer's file tells what is wrong with ours");
        Box::new(Step::bad(Layer::Tls, text, next).with(self.certificates(&seen)))
    }

    fn certificates(&self, server: &[Certificate]) -> Vec<String> {
        let tls = &self.file.connect.tls;
        let of = |path| Certificate::all_of(path).unwrap_or_default();
        let client = tls.identity.as_ref().map(|(cert, _)| of(cert));
        let ca = tls.ca.as_ref().map(|ca| of(ca));
        let lines = |role: &'static str, chain: Vec<Certificate>| {
            let line =
                move |certificate| format!("🔑 {role}: {}", print::certificate(&certificate));
            chain.into_iter().map(line)
        };
        let client = lines("client", client.unwrap_or_default());
        let ca = lines("trusted CA", ca.unwrap_or_default());
        lines("server", server.to_vec())
            .chain(client)
            .chain(ca)
            .collect()
    }

    /// Reads what every session reads. Only an answer proves that the handshake led to an etcd, so
    /// `tls` joins the steps here.
    async fn read(
        &self,
        endpoint: &Endpoint,
        tls: Step,
        steps: &mut Vec<Step>,
    ) -> Result<Read, Failed> {
        let first = async {
            let client = Client::connect(&self.file.connect, endpoint).await?;
            let heartbeat = client.get(keyspace::HEARTBEAT).await;
            Ok((client, heartbeat))
        };
        let first = tokio::time::timeout(self.patience, first).await;
        let (client, heartbeat) = match first {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) if is_answer(&error) => {
                steps.push(tls);
                return Err(self.denied(error));
            }
            Ok(Err(error)) => return Err(self.no_etcd(endpoint, error.into(), tls)),
            Err(_) => {
                let error = anyhow::anyhow!(self.silence()).context("ask for the heartbeat");
                return Err(self.no_etcd(endpoint, error, tls));
            }
        };
        let heartbeat = match heartbeat {
            Ok(heartbeat) => heartbeat,
            Err(error) if is_answer(&error) => {
                steps.push(tls);
                return Err(self.denied(error));
            }
            Err(error) => return Err(self.no_etcd(endpoint, error.into(), tls)),
        };
        steps.push(tls);
        let (config, version) = self.may_read(&client).await?;
        let id = client.cluster_id().unwrap_or_default();
        let mut details = vec![format!("ℹ️  Etcd cluster ID: {id:x}")];
        details.extend(version.map(|version| format!("ℹ️  Etcd server version: {version}")));
        let text = format!(
            "may read the cluster-config and the entries of {}",
            self.peer
        );
        steps.push(Step::good(Layer::Authorization, text).with(details));
        Ok(Read {
            client,
            config,
            heartbeat,
        })
    }

    /// Reads the cluster-config and asks for a key in the tree that it says the entries are in.
    async fn may_read(
        &self,
        client: &Client,
    ) -> Result<(Option<bytes::Bytes>, Option<String>), Failed> {
        let reads = async {
            let config = client.get(&keyspace::cluster_config_key(self.peer)).await?;
            let decoded = config
                .as_deref()
                .and_then(|value| ClusterConfig::decode(value).ok());
            let layout = subject(self.peer, &decoded.unwrap_or_default()).layout;
            for kind in Kind::BASIC {
                client.get(&layout.prefix(kind, self.peer)).await?;
            }
            client.get(&keyspace::synced_prefix(self.peer)).await?;
            Ok(config)
        };
        let config = match tokio::time::timeout(self.patience, reads).await {
            Ok(Ok(config)) => config,
            Ok(Err(error)) => return Err(self.denied(error)),
            Err(_) => {
                let text = format!("read the keyspace: {}", self.silence());
                return Err(Box::new(Step::bad(
                    Layer::Authorization,
                    text,
                    self.ask_peer(),
                )));
            }
        };
        // The role of a peer may not ask in every etcd, and nothing depends on the answer.
        let version = self.within(client.version()).await.ok();
        Ok((config, version))
    }

    fn denied(&self, error: etcd::Error) -> Failed {
        let text = format!("{:#}", anyhow::Error::from(error));
        Box::new(Step::bad(Layer::Authorization, text, self.ask_peer()))
    }

    fn ask_peer(&self) -> String {
        let user = self
            .user()
            .unwrap_or_else(|| "remote-<this cluster>".to_owned());
        format!(
            "we are {user} there; on an etcd of {}: etcdctl user get {user}; on a tombolo its log \
             names the refused certificate",
            self.peer
        )
    }

    fn user(&self) -> Option<String> {
        let (cert, key) = self.file.connect.tls.identity.as_ref()?;
        Some(inspect::check_client(cert, key).ok()?.to_string())
    }

    /// Connected, but nobody there speaks as an etcd does.
    fn no_etcd(&self, endpoint: &Endpoint, error: anyhow::Error, tls: Step) -> Failed {
        let mut failed = self.tls_failed(endpoint, format!("{error:#}"), Vec::new());
        failed.details = tls.details;
        if !self.file.connect.uses_tls(endpoint) {
            failed.next_step = Some(format!(
                "curl http://{endpoint}/version; the endpoint is plaintext: if the peer wants TLS, \
                 write https://"
            ));
        }
        failed
    }

    fn cluster_config(&self, value: Option<&[u8]>) -> Result<ClusterConfig, Failed> {
        let key = keyspace::cluster_config_key(self.peer);
        let look = format!("on the peer: etcdctl get {key}");
        let failed =
            |text: String, next: String| Err(Box::new(Step::bad(Layer::ClusterConfig, text, next)));
        let Some(value) = value else {
            let text = format!("{key} is not there");
            let next = format!(
                "does the peer call itself {}? The name of its file here must be its cluster's; \
                 on the peer: etcdctl get --prefix {}",
                self.peer,
                keyspace::layout::CLUSTER_CONFIG_PREFIX
            );
            return failed(text, next);
        };
        let config = match ClusterConfig::decode(value) {
            Ok(config) => config,
            Err(rejection) => return failed(rejection.to_string(), look),
        };
        let id = match config.accept(self.own.max_for(&config)) {
            Ok(id) => id,
            Err(rejection) => return failed(rejection.to_string(), look),
        };
        if let Some(pinned) = self.file.cluster_id.filter(|pinned| *pinned != id) {
            let text =
                format!("the peer's id is {id}, but its file here says cluster-id: {pinned}");
            return failed(
                text,
                format!("{look}; correct the file only if that is meant"),
            );
        }
        if let Some(holder) = self.own.holder(id.get(), self.peer) {
            let text = format!("id {id} belongs to {holder}");
            return failed(
                text,
                "give one of the clusters another --cluster-id".to_owned(),
            );
        }
        Ok(config)
    }

    async fn canaries(&self, client: &Client, config: &ClusterConfig) -> Result<Step, Failed> {
        let Subject {
            layout,
            kinds,
            canaries,
            ..
        } = subject(self.peer, config);
        if !canaries {
            let text = "the peer writes none; its entries count as they come";
            return Ok(Step::good(Layer::Canaries, text));
        }
        let mut there = Vec::new();
        let mut absent = Vec::new();
        for kind in kinds {
            let key = layout.canary(kind, self.peer);
            let found = self.within(client.get(&key)).await.map_err(|text| {
                let text = format!("read {key}: {text}");
                Step::bad(Layer::Canaries, text, self.ask_peer())
            })?;
            if found.is_some() {
                &mut there
            } else {
                &mut absent
            }
            .push(kind.segment());
        }
        if absent.is_empty() {
            return Ok(Step::good(Layer::Canaries, there.join(", ")));
        }
        let text = format!("missing: {}", absent.join(", "));
        let next = format!(
            "the peer has not published everything yet; there: tombolo health, and etcdctl get \
             --prefix {}",
            keyspace::synced_prefix(self.peer)
        );
        Err(Box::new(Step::bad(Layer::Canaries, text, next)))
    }
}

/// An etcd said this, be it bad news; anything else came from below it.
fn is_answer(error: &etcd::Error) -> bool {
    match error {
        etcd::Error::Call { class, source, .. } => {
            *class != Class::Transient || source.to_string().contains("etcdserver")
        }
        etcd::Error::NoHeader | etcd::Error::OtherCluster { .. } => true,
        _ => false,
    }
}

/// The beat's own time is all that a single look can go by.
fn heartbeat(value: Option<&[u8]>) -> Result<Step, Failed> {
    let look = format!(
        "on the peer: etcdctl get {}, twice, a minute apart",
        keyspace::HEARTBEAT
    );
    let Some(value) = value else {
        let text = format!("{} is not there", keyspace::HEARTBEAT);
        return Err(Box::new(Step::bad(Layer::Heartbeat, text, look)));
    };
    let text = String::from_utf8_lossy(value);
    let Ok(beat) = OffsetDateTime::parse(&text, &Rfc3339) else {
        return Ok(Step::good(Layer::Heartbeat, "there, without a time"));
    };
    let age = OffsetDateTime::from(SystemTime::now()) - beat;
    let seconds = age.whole_seconds();
    if u64::try_from(seconds).is_ok_and(|age| age > limits::HEARTBEAT_STALE.as_secs()) {
        let text = format!(
            "the last one is {} old",
            print::duration(seconds.unsigned_abs())
        );
        let next = format!("{look}; if it changes, the clocks of the two hosts disagree: date -u");
        return Err(Box::new(Step::bad(Layer::Heartbeat, text, next)));
    }
    let text = format!(
        "the last one is {} old",
        print::duration(seconds.max(0).unsigned_abs())
    );
    Ok(Step::good(Layer::Heartbeat, text))
}
