//! `tombolo certs`: a CA for one cluster, its certificates, and certificates for its peers.
//!
//! Keys are readable by their owner only; nothing is overwritten without `--force`.
use std::{
    fs::OpenOptions,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::types::ClusterName;

/// The common name of every server certificate, as Cilium's clustermesh-apiserver has it.
const SERVER_NAME: &str = "clustermesh-apiserver.cilium.io";

/// Certificates for this cluster and for its peers.
#[derive(Debug, Args)]
pub struct CertsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a CA and the certificates of this cluster (existing CA files are kept and used)
    Init(InitArgs),
    /// Make the certificate and peer file with which a peer connects to this cluster
    Issue(IssueArgs),
}

/// Arguments of `certs init`.
#[derive(Debug, Args)]
struct InitArgs {
    /// This cluster's name
    #[arg(long)]
    cluster_name: ClusterName,
    /// Directory for the files; made if missing
    #[arg(long)]
    dir: PathBuf,
    /// Further host name or address of the server; may be repeated
    #[arg(long = "san", value_name = "NAME|IP")]
    sans: Vec<String>,
    /// Days until the certificates expire; the CA lives ten times as long
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Overwrite existing files
    #[arg(long)]
    force: bool,
}

/// Arguments of `certs issue`.
#[derive(Debug, Args)]
struct IssueArgs {
    /// The directory that `certs init` filled
    #[arg(long)]
    dir: PathBuf,
    /// Name of the cluster that will connect
    #[arg(long)]
    peer: ClusterName,
    /// Directory for the files to hand to that cluster; made if missing
    #[arg(long)]
    out: PathBuf,
    /// Where the peer reaches this cluster; may be repeated
    #[arg(long = "endpoint", value_name = "URL", required = true)]
    endpoints: Vec<String>,
    /// Where the files will lie on the peer: its `--clustermesh-config` directory
    #[arg(long, default_value = "/var/lib/clustermesh")]
    config_path_prefix: PathBuf,
    /// Days until the certificate expires
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Overwrite existing files
    #[arg(long)]
    force: bool,
}

/// Runs the verb.
///
/// # Errors
/// If a file exists and `--force` is not given, or cannot be read or written.
pub fn run(args: CertsArgs) -> anyhow::Result<()> {
    let now = OffsetDateTime::now_utc();
    let written = match &args.command {
        Command::Init(args) => init(args, now)?,
        Command::Issue(args) => issue(args, now)?,
    };
    let mut out = std::io::stdout().lock();
    for path in written {
        writeln!(out, "{}", path.display())?;
    }
    Ok(())
}

fn init(args: &InitArgs, now: OffsetDateTime) -> anyhow::Result<Vec<PathBuf>> {
    let (dir, cluster) = (args.dir.as_path(), &args.cluster_name);
    let names = ["server", "admin", "local", "remote"];
    let all = names
        .iter()
        .flat_map(|n| [format!("{n}.crt"), format!("{n}.key")]);
    refuse_existing(dir, all, args.force)?;
    make_dir(dir)?;

    let mut written = Vec::new();
    let (ca_crt, ca_key) = (dir.join("ca.crt"), dir.join("ca.key"));
    if args.force || !(ca_crt.exists() || ca_key.exists()) {
        let key = KeyPair::generate().context("generate the CA's key")?;
        let mut params = params(
            &format!("{cluster} mesh CA"),
            now,
            args.days.saturating_mul(10),
        )?;
        params
            .distinguished_name
            .push(DnType::OrganizationName, cluster.as_str());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params
            .self_signed(&key)
            .context("sign the CA's certificate")?
            .pem();
        write(&ca_key, key.serialize_pem().as_bytes(), 0o600)?;
        write(&ca_crt, pem.as_bytes(), 0o644)?;
        written.extend([ca_crt, ca_key]);
    }
    let issuer = load_ca(dir)?.1;

    let mut server = params(SERVER_NAME, now, args.days)?;
    server.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let fixed = ["*.mesh.cilium.io", "localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let own = [SERVER_NAME.to_owned(), format!("{cluster}.mesh.cilium.io")];
    for name in own.iter().chain(&fixed).chain(&args.sans) {
        let san = san(name)?;
        if !server.subject_alt_names.contains(&san) {
            server.subject_alt_names.push(san);
        }
    }
    written.extend(issue_to(dir, "server", &server, &issuer)?);
    let admin = client(&format!("admin-{cluster}"), now, args.days)?;
    written.extend(issue_to(dir, "admin", &admin, &issuer)?);
    let local = client(&format!("local-{cluster}"), now, args.days)?;
    written.extend(issue_to(dir, "local", &local, &issuer)?);
    let remote = client("remote", now, args.days)?;
    written.extend(issue_to(dir, "remote", &remote, &issuer)?);
    Ok(written)
}

fn issue(args: &IssueArgs, now: OffsetDateTime) -> anyhow::Result<Vec<PathBuf>> {
    for endpoint in &args.endpoints {
        ensure!(
            endpoint.starts_with("https://"),
            "endpoint {endpoint:?} must begin with https://"
        );
    }
    let (ca_pem, issuer) = load_ca(&args.dir)?;
    let cluster = cluster_of(&args.dir)?;
    ensure!(
        cluster != args.peer,
        "peer {cluster} is this cluster itself"
    );
    let name = |suffix: &str| format!("{cluster}{suffix}");
    let files = [
        name("-ca.crt"),
        name("-client.crt"),
        name("-client.key"),
        name(".config"),
    ];
    refuse_existing(&args.out, files.iter().cloned(), args.force)?;
    make_dir(&args.out)?;

    let params = client(&format!("remote-{}", args.peer), now, args.days)?;
    let mut written = issue_to(&args.out, &name("-client"), &params, &issuer)?;
    let ca_path = args.out.join(&files[0]);
    write(&ca_path, ca_pem.as_bytes(), 0o644)?;

    let at = |file: &str| quoted(&args.config_path_prefix.join(file).display().to_string());
    let endpoints: Vec<String> = args.endpoints.iter().map(|e| quoted(e)).collect();
    let config = format!(
        "endpoints: [{}]\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
        endpoints.join(", "),
        at(&files[0]),
        at(&files[1]),
        at(&files[2]),
    );
    // Last, so that a peer that watches the directory finds the files it names.
    let config_path = args.out.join(&files[3]);
    write(&config_path, config.as_bytes(), 0o644)?;
    written.extend([ca_path, config_path]);
    Ok(written)
}

/// YAML's double-quoted form, which is JSON's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The cluster that `dir` was made for: the own part of the admin certificate's user.
fn cluster_of(dir: &Path) -> anyhow::Result<ClusterName> {
    let path = dir.join("admin.crt");
    let pem = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem)
        .with_context(|| format!("find a certificate in {}", path.display()))?;
    let user = crate::tls::CommonName::from_certificate(&block.contents)?;
    let name = user.as_str().strip_prefix("admin-");
    let name = name.with_context(|| format!("find the cluster's name in {}", path.display()))?;
    Ok(name.parse()?)
}

fn load_ca(dir: &Path) -> anyhow::Result<(String, Issuer<'static, KeyPair>)> {
    let read = |file: &str| {
        let path = dir.join(file);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let (pem, key) = (read("ca.crt")?, read("ca.key")?);
    let key = KeyPair::from_pem(&key).context("parse ca.key")?;
    let issuer = Issuer::from_ca_cert_pem(&pem, key).context("parse ca.crt")?;
    Ok((pem, issuer))
}

fn client(user: &str, now: OffsetDateTime, days: u32) -> anyhow::Result<CertificateParams> {
    let mut params = params(user, now, days)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn params(name: &str, now: OffsetDateTime, days: u32) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    // Clocks of two clusters may differ; an hour is generous.
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(i64::from(days));
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.use_authority_key_identifier_extension = true;
    let mut serial: [u8; 16] = rand::random();
    // RFC 5280 4.1.2.2: positive, so the top bit is clear; and not zero.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn san(name: &str) -> anyhow::Result<SanType> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let valid = |c: char| c.is_ascii_alphanumeric() || "*.-_".contains(c);
    ensure!(
        !name.is_empty() && name.chars().all(valid),
        "{name:?} is no host name or address"
    );
    let name = name
        .try_into()
        .with_context(|| format!("{name:?} is no host name or address"))?;
    Ok(SanType::DnsName(name))
}

fn issue_to(
    dir: &Path,
    file: &str,
    params: &CertificateParams,
    issuer: &Issuer<'_, KeyPair>,
) -> anyhow::Result<Vec<PathBuf>> {
    let key = KeyPair::generate().with_context(|| format!("generate the key of {file}"))?;
    let cert = params
        .signed_by(&key, issuer)
        .with_context(|| format!("sign {file}"))?;
    let (key_path, cert_path) = (
        dir.join(format!("{file}.key")),
        dir.join(format!("{file}.crt")),
    );
    write(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
    write(&cert_path, cert.pem().as_bytes(), 0o644)?;
    Ok(vec![cert_path, key_path])
}

fn refuse_existing(
    dir: &Path,
    files: impl Iterator<Item = String>,
    force: bool,
) -> anyhow::Result<()> {
    let there: Vec<String> = files.filter(|file| dir.join(file).exists()).collect();
    let (dir, list) = (dir.display(), there.join(", "));
    ensure!(
        force || there.is_empty(),
        "{dir} already has {list}; --force overwrites them"
    );
    Ok(())
}

fn make_dir(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("make directory {}", dir.display()))
}

/// Writes beside and renames, so that a watcher never sees half a file and the mode holds from the
/// first byte on.
fn write(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    let result = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    })();
    if result.is_err() {
        drop(std::fs::remove_file(&beside));
    }
    result.with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn init_args(dir: &Path) -> InitArgs {
        InitArgs {
            cluster_name: "west".parse().unwrap(),
            dir: dir.to_owned(),
            sans: vec!["192.0.2.7".to_owned(), "west.example".to_owned()],
            days: 30,
            force: false,
        }
    }

    fn issue_args(dir: &Path, out: &Path) -> IssueArgs {
        IssueArgs {
            dir: dir.to_owned(),
            peer: "east".parse().unwrap(),
            out: out.to_owned(),
            endpoints: vec!["https://west.example:2379".to_owned()],
            config_path_prefix: "/var/lib/clustermesh".into(),
            days: 30,
            force: false,
        }
    }

    fn names(path: &Path) -> (String, Vec<String>) {
        let pem = std::fs::read(path).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        let cert = block.parse_x509().unwrap();
        let cn = cert
            .subject()
            .iter_common_name()
            .next()
            .unwrap()
            .as_str()
            .unwrap()
            .to_owned();
        let sans = cert.subject_alternative_name().unwrap();
        let sans = sans.map_or_else(Vec::new, |ext| {
            ext.value
                .general_names
                .iter()
                .map(ToString::to_string)
                .collect()
        });
        (cn, sans)
    }

    #[test]
    fn init_makes_what_a_server_loads_and_issue_a_peer_file_with_its_certificate() {
        let root = tempfile::tempdir().unwrap();
        let (dir, out) = (root.path().join("west"), root.path().join("for-east"));
        init(&init_args(&dir), OffsetDateTime::now_utc()).unwrap();
        for (file, user) in [
            ("server", SERVER_NAME),
            ("admin", "admin-west"),
            ("local", "local-west"),
        ] {
            assert_eq!(names(&dir.join(format!("{file}.crt"))).0, user);
            let mode = std::fs::metadata(dir.join(format!("{file}.key")))
                .unwrap()
                .permissions();
            assert_eq!(mode.mode() & 0o777, 0o600);
        }
        let (_, sans) = names(&dir.join("server.crt"));
        for name in [
            "west.mesh.cilium.io",
            "*.mesh.cilium.io",
            "localhost",
            "west.example",
        ] {
            assert!(
                sans.iter().any(|san| san.contains(name)),
                "{name} in {sans:?}"
            );
        }
        let paths = crate::tls::Paths {
            cert: dir.join("server.crt"),
            key: dir.join("server.key"),
            ca: dir.join("ca.crt"),
        };
        crate::tls::ServerTls::load(paths).unwrap();

        issue(&issue_args(&dir, &out), OffsetDateTime::now_utc()).unwrap();
        assert_eq!(names(&out.join("west-client.crt")).0, "remote-east");
        assert_eq!(
            std::fs::read(out.join("west-ca.crt")).unwrap(),
            std::fs::read(dir.join("ca.crt")).unwrap()
        );
        assert_eq!(
            std::fs::read_to_string(out.join("west.config")).unwrap(),
            "endpoints: [\"https://west.example:2379\"]\n\
             trusted-ca-file: \"/var/lib/clustermesh/west-ca.crt\"\n\
             cert-file: \"/var/lib/clustermesh/west-client.crt\"\n\
             key-file: \"/var/lib/clustermesh/west-client.key\"\n"
        );
    }

    #[test]
    fn nothing_is_overwritten_without_force() {
        let root = tempfile::tempdir().unwrap();
        let (dir, now) = (root.path().join("west"), OffsetDateTime::now_utc());
        init(&init_args(&dir), now).unwrap();
        let key = std::fs::read(dir.join("server.key")).unwrap();
        let error = init(&init_args(&dir), now).unwrap_err().to_string();
        assert!(
            error.contains("server.crt") && error.contains("--force"),
            "{error}"
        );
        assert_eq!(std::fs::read(dir.join("server.key")).unwrap(), key);
        init(
            &InitArgs {
                force: true,
                ..init_args(&dir)
            },
            now,
        )
        .unwrap();
        assert_ne!(std::fs::read(dir.join("server.key")).unwrap(), key);
    }

    #[test]
    fn issue_refuses_the_own_name_plain_endpoints_and_bad_names() {
        let root = tempfile::tempdir().unwrap();
        let (dir, out) = (root.path().join("west"), root.path().join("out"));
        let now = OffsetDateTime::now_utc();
        init(&init_args(&dir), now).unwrap();
        let own = IssueArgs {
            peer: "west".parse().unwrap(),
            ..issue_args(&dir, &out)
        };
        assert!(issue(&own, now).is_err());
        let plain = IssueArgs {
            endpoints: vec!["http://x:1".to_owned()],
            ..issue_args(&dir, &out)
        };
        assert!(issue(&plain, now).is_err());
        assert!(san("no spaces").is_err());
    }
}
