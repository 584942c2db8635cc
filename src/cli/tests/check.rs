//! Goal: every finding of `config check` is made by the fault that it is about, and by that alone.
//! Method: a good file that is spoilt in one way for each.
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use time::{Duration as Days, OffsetDateTime};

use super::*;

/// A good peer file with its certificates, in a directory of its own beside an empty one for peers.
struct Files {
    dir: tempfile::TempDir,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

const GOOD: &str = "endpoints: [\"https://west.example:2379\"]\ntrusted-ca-file: ca.crt\n\
                    cert-file: c.crt\nkey-file: c.key\n";

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("peers")).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(dir.path().join("ca.crt"), pem).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        let files = Self { dir, issuer };
        files.write("west.config", GOOD);
        files.client(|_| {});
        files
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn add(&self, line: &str) {
        self.write("west.config", &format!("{GOOD}{line}\n"));
    }

    /// Our certificate at the peer.
    fn client(&self, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let common = rcgen::DnType::CommonName;
        params.distinguished_name.push(common, "remote-cluster1");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        self.write(
            "c.crt",
            &params.signed_by(&key, &self.issuer).unwrap().pem(),
        );
        self.write("c.key", &key.serialize_pem());
    }

    /// What is found without an agent: exit code, text and `severity key: reason` lines.
    fn check(&self, file: &str) -> (ExitCode, Vec<String>) {
        self.check_at(
            file,
            Path::new("/nowhere/a.sock"),
            "--cluster-name=cluster1 --cluster-id=101",
        )
    }

    fn check_at(&self, files: &str, socket: &Path, more: &str) -> (ExitCode, Vec<String>) {
        let dir = self.dir.path().display();
        let files: Vec<_> = files
            .split(' ')
            .map(|file| format!("{dir}/{file}"))
            .collect();
        let files = files.join(" ");
        let more = if more.is_empty() {
            String::new()
        } else {
            format!(" {more}")
        };
        let words = format!("config check {files} --clustermesh-config={dir}/peers{more} -o json");
        let (result, text) = run_words(&words, socket);
        let reports: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let findings = reports
            .iter()
            .flat_map(|report| report["findings"].as_array().unwrap());
        let line = |finding: &serde_json::Value| {
            let part = |name: &str| finding[name].as_str().unwrap().to_owned();
            assert!(!part("next-step").is_empty(), "{finding}");
            format!("{} {}: {}", part("severity"), part("key"), part("reason"))
        };
        (result.unwrap(), findings.map(line).collect())
    }

    /// One finding of this severity and key, whose reason has these words.
    fn only(&self, severity: &str, key: &str, words: &str) {
        let (code, findings) = self.check("west.config");
        let [finding] = findings.as_slice() else {
            panic!("one finding about {key}: {findings:#?}");
        };
        assert!(
            finding.starts_with(&format!("{severity} {key}: ")),
            "{finding}"
        );
        assert!(finding.contains(words), "{finding}");
        let expected = if severity == "error" {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        };
        assert_eq!(code, expected, "{finding}");
    }
}

#[test]
fn a_good_file_has_no_finding_and_says_so() {
    let files = Files::new();
    assert_eq!(files.check("west.config"), (ExitCode::SUCCESS, Vec::new()));
    let path = files.dir.path().join("west.config");
    let words = format!(
        "config check {} --clustermesh-config=/nowhere",
        path.display()
    );
    let (result, text) = run_words(&words, Path::new("/nowhere/a.sock"));
    assert_eq!(result.unwrap(), ExitCode::SUCCESS);
    assert_eq!(
        text,
        format!("📄 {}\n  ✅ can be used for peer west\n", path.display())
    );
}

#[test]
fn text_names_key_reason_and_next_step() {
    let files = Files::new();
    files.add("cluster-id: 101\nnonsense: 1");
    let path = files.dir.path().join("west.config");
    let words = format!(
        "config check {} --cluster-id=101 --clustermesh-config=/nowhere",
        path.display()
    );
    let (result, text) = run_words(&words, Path::new("/nowhere/a.sock"));
    assert_eq!(result.unwrap(), ExitCode::FAILURE);
    let expected = format!(
        "📄 {}
  ⚠️  nonsense: means nothing here
     💡 correct its spelling, or take it out
  ❌ cluster-id: 101 is the id of this cluster
     💡 give one of the clusters another --cluster-id
",
        path.display()
    );
    assert_eq!(text, expected);
}

#[test]
fn files_that_say_nothing_are_refused_by_the_key_to_blame() {
    let files = Files::new();
    for (text, key, words) in [
        ("- a\nendpoints:", "file", "YAML"),
        ("endpoint: [https://a:1]\n", "endpoints", "no such key"),
        ("endpoints: []\n", "endpoints", "none listed"),
        ("endpoints: [https://a]\n", "endpoints", "https://host:port"),
        (
            "endpoints: [https://a:1]\ncert-file: c.crt\n",
            "cert-file",
            "both or neither",
        ),
        (
            "endpoints: [https://a:1]\ntrusted-ca-file: [a]\n",
            "trusted-ca-file",
            "a text",
        ),
        (
            "endpoints: [https://a:1]\ncluster-id: 512\n",
            "cluster-id",
            "512",
        ),
        (
            "endpoints: [https://a:1]\nallowed-cidrs: [10.0.0.0/33]\n",
            "allowed-cidrs",
            "10.0.0.0/33",
        ),
        (
            "endpoints: [https://a:1]\ncilium-host-aliases: 1\n",
            "cilium-host-aliases",
            "hostname",
        ),
    ] {
        files.write("west.config", text);
        files.only("error", key, words);
    }
    std::fs::remove_file(files.dir.path().join("west.config")).unwrap();
    files.only("error", "file", "not found");
    files.write("West_1.config", GOOD);
    let (code, findings) = files.check("West_1.config");
    assert_eq!((code, findings.len()), (ExitCode::FAILURE, 1));
    assert!(findings[0].starts_with("error name: "), "{findings:?}");
}

#[test]
fn names_clash_with_ourselves_and_with_other_files() {
    let files = Files::new();
    files.write("cluster1.config", GOOD);
    let (code, findings) = files.check("cluster1.config");
    assert_eq!(code, ExitCode::FAILURE);
    assert_eq!(findings, ["error name: cluster1 is this cluster itself"]);
    // A file of the same name would be replaced; another one would stand beside it.
    files.write("peers/west.config", GOOD);
    assert_eq!(files.check("west.config").0, ExitCode::SUCCESS);
    files.write("peers/west", GOOD);
    files.only("error", "name", "peers/west, too");
    std::fs::remove_file(files.dir.path().join("peers/west")).unwrap();
    files.write("west", GOOD);
    let (code, findings) = files.check("west.config west");
    assert_eq!(code, ExitCode::FAILURE);
    assert!(
        findings
            .iter()
            .all(|f| f.starts_with("error name: west is named by ")),
        "{findings:?}"
    );
}

#[test]
fn ids_clash_with_ours_with_other_files_and_with_live_peers() {
    let files = Files::new();
    files.add("cluster-id: 101");
    files.only("error", "cluster-id", "101 is the id of this cluster");
    files.add("cluster-id: 7");
    files.write("peers/north", "endpoints: [https://n:1]\ncluster-id: 7\n");
    files.only("error", "cluster-id", "7 is the id of peer north");
    std::fs::remove_file(files.dir.path().join("peers/north")).unwrap();
    let agent = Agent::start();
    files.add("cluster-id: 102");
    let (code, findings) = files.check_at("west.config", &agent.path(), "");
    assert_eq!(code, ExitCode::FAILURE);
    assert_eq!(
        findings,
        ["error cluster-id: 102 is the id of peer cluster2"]
    );
    files.add("cluster-id: 256");
    let (_, findings) = files.check_at("west.config", &agent.path(), "");
    assert!(findings[0].contains("256 is above 255"), "{findings:?}");
}

#[test]
fn ranges_overlap_with_ours_and_with_other_peers() {
    let files = Files::new();
    files.add("allowed-cidrs: [10.70.0.0/16]");
    files.write(
        "peers/north",
        "endpoints: [https://n:1]\nallowed-cidrs: [10.70.3.0/24]\n",
    );
    files.only(
        "error",
        "allowed-cidrs",
        "10.70.0.0/16 overlaps 10.70.3.0/24, which peer north",
    );
    std::fs::remove_file(files.dir.path().join("peers/north")).unwrap();
    let agent = Agent::start();
    for (range, expected) in [
        ("10.61.0.0/16", "10.61.0.0/24, a pod CIDR of this cluster"),
        (
            "10.62.0.128/25",
            "10.62.0.0/24, a pod CIDR of peer cluster2",
        ),
        ("10.0.1.0/24", "10.0.1.1, a node of this cluster"),
    ] {
        files.add(&format!("allowed-cidrs: [{range}]"));
        let (code, findings) = files.check_at("west.config", &agent.path(), "");
        assert_eq!(code, ExitCode::FAILURE);
        assert_eq!(
            findings,
            [format!("error allowed-cidrs: {range} overlaps {expected}")]
        );
    }
}

#[test]
fn endpoints_and_keys_that_are_surely_not_meant_are_warned_of() {
    let files = Files::new();
    files.add("trustedcafile: x");
    files.only("warning", "trustedcafile", "means nothing");
    files.add("insecure-skip-tls-verify: true");
    files.only("warning", "insecure-skip-tls-verify", "whoever answers");
    files.write("west.config", &GOOD.replace("https", "http"));
    files.only("warning", "endpoints", "plaintext");
    let twice = "endpoints: [\"https://west.example:2379\", \"https://west.example:2379\"]";
    let (_, rest) = GOOD.split_once('\n').unwrap();
    files.write("west.config", &format!("{twice}\n{rest}"));
    files.only("warning", "endpoints", "listed twice");
    files.write("west.config", GOOD);
    files.write("peers/north", "endpoints: [https://west.example:2379]\n");
    files.only("warning", "endpoints", "endpoint of peer north");
}

#[test]
fn cas_are_readable_valid_and_may_issue() {
    let files = Files::new();
    let ca = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        files.write("ca.crt", &params.self_signed(&key).unwrap().pem());
    };
    let now = OffsetDateTime::now_utc();
    ca(&|params| params.not_after = now - Days::days(1));
    files.only("error", "trusted-ca-file", "expired");
    ca(&|params| params.is_ca = IsCa::NoCa);
    files.only("error", "trusted-ca-file", "wrong_key_usage");
    files.write("ca.crt", "no PEM");
    files.only("error", "trusted-ca-file", "find a certificate in");
    std::fs::remove_file(files.dir.path().join("ca.crt")).unwrap();
    files.only("error", "trusted-ca-file", "no such file");
    files.write(
        "west.config",
        &GOOD.replace("trusted-ca-file: ca.crt\n", ""),
    );
    files.only("warning", "trusted-ca-file", "is missing");
    let files = Files::new();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    files.write("ca.crt", &params.self_signed(&key).unwrap().pem());
    files.only("warning", "cert-file", "ca.crt issued it");
}

#[test]
fn client_certificates_are_held_to_what_the_peer_will_ask() {
    let files = Files::new();
    let now = OffsetDateTime::now_utc();
    files.client(|params| params.not_after = now - Days::days(1));
    files.only("error", "cert-file", "expired");
    files.client(|params| params.not_before = now + Days::days(1));
    files.only("error", "cert-file", "not_yet_valid");
    files.client(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    files.only("error", "cert-file", "wrong_key_usage");
    files.client(|params| params.not_after = now + Days::days(5));
    files.only("warning", "cert-file", "expires at");
    files.client(|params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        let common = rcgen::DnType::CommonName;
        params.distinguished_name.push(common, "admin-west");
    });
    files.only("warning", "cert-file", "is for admin-west");
    files.client(|params| params.distinguished_name = rcgen::DistinguishedName::new());
    files.only("error", "cert-file", "common_name");
    files.client(|_| {});
    files.write("c.key", &KeyPair::generate().unwrap().serialize_pem());
    files.only("error", "key-file", "key_mismatch");
    files.write("c.key", "no PEM");
    files.only("error", "key-file", "private key");
    std::fs::remove_file(files.dir.path().join("c.key")).unwrap();
    files.only("error", "key-file", "no such file");
    let without = GOOD.replace("cert-file: c.crt\nkey-file: c.key\n", "");
    files.write("west.config", &without);
    files.only("warning", "cert-file", "won't know who we are");
}

#[test]
fn connect_tells_the_first_layer_that_fails() {
    let files = Files::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    files.write(
        "west.config",
        &GOOD.replace("west.example:2379", &format!("127.0.0.1:{port}")),
    );
    assert_eq!(files.check("west.config").0, ExitCode::SUCCESS);
    let socket = Path::new("/nowhere/a.sock");
    let (code, findings) = files.check_at("west.config", socket, "--connect");
    assert_eq!(code, ExitCode::FAILURE);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(
        findings[0].starts_with("error tcp: https://127.0.0.1:"),
        "{findings:?}"
    );
}
