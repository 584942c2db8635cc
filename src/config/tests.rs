use clap::Parser as _;

use super::*;

#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    socket: SocketArg,
    #[command(flatten)]
    args: Args,
}

fn load(args: &[&str]) -> Result<Config, Vec<(String, String)>> {
    let command = Command::parse_from(std::iter::once("agent").chain(args.iter().copied()));
    Config::load(&command.args, &command.socket).map_err(|error| {
        error
            .problems
            .into_iter()
            .map(|p| (p.key, p.message))
            .collect()
    })
}

const MINIMAL: [&str; 4] = [
    "--cluster-name=cluster1",
    "--cluster-id=101",
    "--node-name=n1",
    "--debug",
];

#[test]
fn defaults_are_as_documented_and_none_points_into_examples() {
    let config = load(&MINIMAL).unwrap();
    assert_eq!(config.cluster_name.as_str(), "cluster1");
    assert_eq!(config.cluster_id.get(), 101);
    assert_eq!(config.listen.to_string(), "0.0.0.0:2379");
    assert_eq!(
        config.prometheus_serve_addr.unwrap().to_string(),
        "0.0.0.0:9962"
    );
    assert_eq!(config.health_addr.unwrap().to_string(), "0.0.0.0:9880");
    assert_eq!(config.socket_path, Path::new("/run/tombolo/tombolo.sock"));
    assert_eq!(config.clustermesh_config, Path::new("/var/lib/clustermesh"));
    assert_eq!(
        config.tls_key_file,
        Path::new("/var/lib/tombolo/certs/server.key")
    );
    assert_eq!(
        (config.manifests_dir.as_ref(), config.policy_dir.as_ref()),
        (None, None)
    );
    assert!(config.policy_default_local_cluster && config.debug);
    assert_eq!(config.enable_policy, Enforcement::Default);
    assert_eq!(config.max_request_bytes, 1_572_864);
    assert_eq!(config.max_txn_ops, 128);
    assert_eq!(config.export_policy, None);
    assert_eq!(config.datapath, Datapath::default());
    assert_eq!(config.datapath.sizes.conntrack, 262_144);
    assert_eq!(config.clustermesh_cache_ttl, None);
    assert!(!format!("{config:?}").contains("certs-example"));
}

#[test]
fn every_flag_is_a_key_with_an_environment_variable() {
    let command = <Command as clap::CommandFactory>::command();
    let socket = SocketArg::default();
    let args = Args::default();
    let keys: Vec<_> = args.given(&socket).iter().map(|(key, _)| *key).collect();
    for arg in command.get_arguments() {
        let Some(long) = arg.get_long().filter(|long| *long != "help") else {
            continue;
        };
        assert!(long == "config-dir" || keys.contains(&long), "{long}");
        let env = format!("TOMBOLO_{}", long.to_uppercase().replace('-', "_"));
        assert_eq!(
            arg.get_env().and_then(|env| env.to_str()),
            Some(env.as_str())
        );
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        assert!(!help.contains("certs-example"), "{long}");
    }
    assert_eq!(command.get_arguments().count(), keys.len() + 1);
}

#[test]
fn all_problems_are_reported_at_once_each_with_its_key() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cluster-idd"), "7").unwrap();
    std::fs::write(dir.path().join("listen"), "nowhere\n").unwrap();
    std::fs::create_dir(dir.path().join("bpf-root")).unwrap();
    let dir = dir.path().to_str().unwrap();
    let socket = "/".repeat(108);
    let problems = load(&[
        "--config-dir",
        dir,
        "--cluster-id=0",
        "--max-connected-clusters=300",
        "--node-name=a/b",
        "--health-port=70000",
        "--debug=yes",
        "--log-format=xml",
        "--socket-path",
        &socket,
    ])
    .unwrap_err();
    let keys: Vec<_> = problems.iter().map(|(key, _)| key.as_str()).collect();
    let expected = [
        "cluster-name",
        "cluster-id",
        "max-connected-clusters",
        "node-name",
        "socket-path",
        "bpf-root",
        "listen",
        "health-port",
        "log-format",
        "debug",
        "cluster-idd",
    ];
    assert_eq!(keys, expected);
    assert!(
        problems[0]
            .1
            .contains("--cluster-name or TOMBOLO_CLUSTER_NAME")
    );
    assert!(problems[1].1.contains("1..=255"), "{}", problems[1].1);
    assert!(
        problems[6].1.contains("/listen)"),
        "names the file: {}",
        problems[6].1
    );
    assert!(problems[10].1.starts_with("unknown key"));
    let missing = load(&["--config-dir=/nowhere", MINIMAL[0], MINIMAL[1]]).unwrap_err();
    assert_eq!(missing[0].0, "config-dir");
}

#[test]
fn flag_beats_directory_beats_default() {
    let dir = tempfile::tempdir().unwrap();
    for (key, value) in [
        ("cluster-id", "9\n"),
        ("listen", "127.0.0.1:1"),
        ("..data", "x"),
        ("debug", ""),
    ] {
        std::fs::write(dir.path().join(key), value).unwrap();
    }
    std::fs::write(dir.path().join("policy-default-local-cluster"), "false").unwrap();
    std::fs::write(dir.path().join("prometheus-serve-addr"), "off").unwrap();
    let mut args = vec!["--config-dir", dir.path().to_str().unwrap()];
    args.extend(MINIMAL);
    args.push("--listen=");
    let config = load(&args).unwrap();
    assert_eq!(config.cluster_id.get(), 101);
    assert_eq!(
        config.listen.to_string(),
        "127.0.0.1:1",
        "an empty flag is not given"
    );
    assert_eq!(config.prometheus_serve_addr, None);
    assert!(!config.policy_default_local_cluster);
}

#[test]
fn enforcement_is_one_of_three_words() {
    let load = |word| load(&[&MINIMAL[..], &[word]].concat());
    let mode = load("--enable-policy=always").unwrap().enable_policy;
    assert_eq!(mode, Enforcement::Always);
    let problem = (
        "enable-policy".into(),
        "\"sometimes\": must be default, always or never".into(),
    );
    assert_eq!(load("--enable-policy=sometimes"), Err(vec![problem]));
}

#[test]
fn larger_meshes_allow_larger_ids() {
    let [name, _, node, _] = MINIMAL;
    let ids = |max: &'static str, id: &'static str| load(&[name, node, max, id]).is_ok();
    assert!(ids("--max-connected-clusters=511", "--cluster-id=511"));
    assert!(!ids("--max-connected-clusters=511", "--cluster-id=512"));
    assert!(!ids("--max-connected-clusters=255", "--cluster-id=256"));
}

#[test]
fn the_local_listener_is_off_or_out_of_reach_for_other_hosts() {
    let local = |text: &str| {
        let flag = format!("--local-listen={text}");
        load(&[&MINIMAL[..], &[flag.as_str()]].concat())
    };
    assert_eq!(load(&MINIMAL).unwrap().local_listen, None);
    assert_eq!(local("off").unwrap().local_listen, None);
    let unix = Some(LocalListen::Unix("/run/t/etcd.sock".into()));
    for text in ["unix:/run/t/etcd.sock", "unix:///run/t/etcd.sock"] {
        assert_eq!(local(text).unwrap().local_listen, unix, "{text}");
    }
    for text in ["127.0.0.1:2378", "127.9.9.9:1", "[::1]:2378"] {
        let loopback = Some(LocalListen::Loopback(text.parse().unwrap()));
        assert_eq!(local(text).unwrap().local_listen, loopback, "{text}");
    }
    for (text, reason) in [
        ("0.0.0.0:2378", "asks for no certificate; write unix:/"),
        ("[::]:2378", "asks for no certificate; write unix:/"),
        ("192.0.2.1:2378", "asks for no certificate; write unix:/"),
        (":2378", "neither unix:/path nor a loopback address; write"),
        (
            "localhost:2378",
            "neither unix:/path nor a loopback address; write",
        ),
        ("unix:etcd.sock", "is no absolute path; write"),
        (&format!("unix:/{}", "x".repeat(107)), "name a shorter one"),
    ] {
        let problems = local(text).unwrap_err();
        assert_eq!(problems[0].0, "local-listen", "{text}");
        assert!(problems[0].1.contains(reason), "{text}: {}", problems[0].1);
    }
}

#[test]
fn an_external_cluster_store_needs_its_file_and_only_it_does() {
    let load = |flags: &[&str]| load(&[&MINIMAL[..], flags].concat());
    assert_eq!(load(&[]).unwrap().kvstore, Kvstore::Embedded);
    let config = PathBuf::from("/etc/tombolo/etcd.yaml");
    let file = "--kvstore-opt=etcd.config=/etc/tombolo/etcd.yaml";
    let kvstore = load(&["--kvstore=etcd", file]).unwrap().kvstore;
    assert_eq!(kvstore, Kvstore::Etcd { config });
    for flags in [
        &["--kvstore=etcd"][..],
        &["--kvstore=consul"],
        &["--kvstore=embedded", file],
        &[file],
        &["--kvstore=etcd", "--kvstore-opt=etcd.config="],
        &["--kvstore=etcd", "--kvstore-opt=etcd.address=x"],
    ] {
        let problems = load(flags).unwrap_err();
        assert_eq!(problems.len(), 1, "{flags:?}: {problems:?}");
        assert!(problems[0].0.starts_with("kvstore"), "{problems:?}");
    }
}

#[test]
fn limits_of_requests_are_numbers_up_to_a_ceiling() {
    let load = |flag: &str| load(&[&MINIMAL[..], &[flag]].concat());
    for bytes in [1, 65_536, 10_485_760] {
        let config = load(&format!("--max-request-bytes={bytes}")).unwrap();
        assert_eq!((config.max_request_bytes, config.max_txn_ops), (bytes, 128));
    }
    for count in [1, 129, 10_000] {
        let config = load(&format!("--max-txn-ops={count}")).unwrap();
        assert_eq!(config.max_txn_ops, count);
        assert_eq!(config.max_request_bytes, 1_572_864);
    }
    for (key, ceiling) in [("max-request-bytes", 10_485_760), ("max-txn-ops", 10_000)] {
        let above = format!("{}", ceiling + 1);
        for text in ["0", "-1", "1.5MiB", "1e3", "18446744073709551616", &above] {
            let problems = load(&format!("--{key}={text}")).unwrap_err();
            let message = format!("{text:?}: must be a number from 1 to {ceiling}");
            assert_eq!(problems, [(key.to_owned(), message)]);
        }
    }
}

#[test]
fn the_export_policy_is_a_file_or_none() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("export-policy"),
        "/etc/tombolo/export.yaml\n",
    )
    .unwrap();
    let dir = format!("--config-dir={}", dir.path().display());
    let load = |flags: &[&str]| load(&[&MINIMAL[..], flags].concat()).unwrap();
    for (flags, file) in [
        (&["--export-policy="][..], None),
        (&["--export-policy=views.yaml"], Some("views.yaml")),
        (&[&dir], Some("/etc/tombolo/export.yaml")),
        (&[&dir, "--export-policy=views.yaml"], Some("views.yaml")),
    ] {
        let export_policy = load(flags).export_policy;
        assert_eq!(export_policy, file.map(PathBuf::from), "{flags:?}");
    }
}

#[test]
fn cache_ttl_is_a_duration_as_go_writes_them_and_zero_is_never() {
    let ttl = |text: &str| {
        let flag = format!("--clustermesh-cache-ttl={text}");
        load(&[&MINIMAL[..], &[&*flag]].concat()).map(|config| config.clustermesh_cache_ttl)
    };
    for (text, seconds) in [("90s", 90), ("15m", 900), ("1h30m", 5400)] {
        assert_eq!(ttl(text), Ok(Some(Duration::from_secs(seconds))), "{text}");
    }
    for text in ["0", "0s", ""] {
        assert_eq!(ttl(text), Ok(None), "{text:?}");
    }
    for text in ["15", "m", "1d", "-1s", "99999999999999999999h", "5m 3s"] {
        let problems = ttl(text).unwrap_err();
        assert_eq!(problems[0].0, "clustermesh-cache-ttl", "{text}");
    }
}

#[test]
fn a_kvstore_source_is_neither_the_cluster_store_nor_beside_manifests() {
    let load = |flags: &[&str]| load(&[&MINIMAL[..], flags].concat());
    let source = "--kvstore-source=etcd.config=/etc/cilium.yaml";
    let config = load(&[source]).unwrap();
    assert_eq!(config.kvstore_source, Some("/etc/cilium.yaml".into()));
    let store = [
        "--kvstore=etcd",
        "--kvstore-opt=etcd.config=/etc/cilium.yaml",
    ];
    let both = load(&[&store[..], &[source]].concat()).unwrap_err();
    assert_eq!(both.len(), 1);
    assert!(both[0].1.contains("--kvstore-opt"), "{}", both[0].1);
    let both = load(&["--manifests-dir=/m", source]).unwrap_err();
    assert_eq!((both.len(), both[0].0.as_str()), (1, "kvstore-source"));
    assert!(both[0].1.contains("--manifests-dir"), "{}", both[0].1);
    assert!(load(&["--kvstore-source=/etc/cilium.yaml"]).is_err());
}

#[test]
fn what_other_nodes_need_has_defaults() {
    let config = load(&MINIMAL).unwrap();
    assert_eq!(config.advertise_address, None);
    assert_eq!(
        config.tls_local_cert_file,
        Path::new("/var/lib/tombolo/certs/local.crt")
    );
    assert_eq!(config.per_cluster_ready_timeout.as_secs(), 15);
    assert_eq!(config.global_ready_timeout.as_secs(), 600);
}

#[test]
fn sizes_of_maps_have_bounds_that_the_refusal_names() {
    let with = |flag: &str| load(&[&MINIMAL[..], &[flag]].concat());
    let sizes = with("--bpf-ct-max=1024").unwrap().datapath.sizes;
    assert_eq!(sizes.conntrack, 1024);
    assert_eq!(sizes.policy, MapSizes::default().policy);
    for key in [
        "bpf-ct-max",
        "bpf-policy-map-max",
        "bpf-ipcache-max",
        "bpf-fragments-max",
    ] {
        for value in ["1023", "16777217", "-1", "many"] {
            let problems = with(&format!("--{key}={value}")).unwrap_err();
            let expected = format!("{value:?}: must be a number from 1024 to 16777216");
            assert_eq!(problems, [(key.to_owned(), expected)]);
        }
    }
}

#[test]
fn the_datapath_flags_are_words() {
    let with = |flag: &str| load(&[&MINIMAL[..], &[flag]].concat());
    let datapath = |flag| with(flag).unwrap().datapath;
    assert_eq!(
        datapath("--attach-mode=clsact").attach_mode,
        AttachMode::Clsact
    );
    assert!(datapath("--allow-localhost=always").allow_localhost);
    assert!(!datapath("--allow-localhost=policy").allow_localhost);
    assert!(datapath("--policy-audit-mode").audit);
    for flag in ["--attach-mode=xdp", "--allow-localhost=never"] {
        let problems = with(flag).unwrap_err();
        let key = flag.trim_start_matches("--").split('=').next().unwrap();
        assert_eq!((problems.len(), problems[0].0.as_str()), (1, key));
    }
}
