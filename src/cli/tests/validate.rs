//! `policy validate` as typed, without an agent.
use super::*;

const GOOD: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {}
  ingress: [{fromEntities: [host]}, {}]
  ingressDeny: [{fromEntities: [world]}]
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: all, annotations: {policy.tombolo.io/audit: 'true'}}
specs:
- {endpointSelector: {}, egressDeny: [{toCIDR: [10.0.0.0/8]}], enableDefaultDeny: {egress: false}}
- {endpointSelector: {}, ingress: [{}]}
";
const LAYER_7: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http}
spec:
  endpointSelector: {}
  ingress:
  - toPorts:
    - ports: [{port: '80', protocol: TCP}]
      rules: {http: [{}]}
";

/// A directory of its own with these files.
fn files(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// Exit code and output; the directory's name reads `DIR`.
fn validate(dir: &tempfile::TempDir, names: &str, more: &str) -> (ExitCode, String) {
    let path = dir.path().display().to_string();
    let names: Vec<_> = names
        .split(' ')
        .map(|name| format!("{path}/{name}"))
        .collect();
    let words = format!("policy validate {}{more}", names.join(" "));
    let (result, text) = run_words(&words, Path::new("/nowhere/a.sock"));
    (result.unwrap(), text.replace(&path, "DIR"))
}

#[test]
fn says_what_files_hold_without_an_agent() {
    let dir = files(&[("good.yaml", GOOD)]);
    let (code, text) = validate(&dir, "good.yaml", "");
    assert_eq!(
        text,
        "\
📄 DIR/good.yaml
  ✅ CiliumNetworkPolicy shop/web: 1 rule, ingress default deny (+1 -1), egress open
  ✅ CiliumClusterwideNetworkPolicy all: 2 rules, ingress default deny (+0 -0), egress open (-1), audited only
"
    );
    assert_eq!(code, ExitCode::SUCCESS);
}

#[test]
fn one_refused_file_fails_and_the_others_are_told_all_the_same() {
    let dir = files(&[("a.yaml", LAYER_7), ("b.yaml", GOOD)]);
    let (code, text) = validate(&dir, "a.yaml b.yaml", "");
    let refused = "\
📄 DIR/a.yaml
  ❌ line 9: spec.ingress[0].toPorts[0].rules: requests are not looked into (layer 7)
     💡 remove it if the whole port may be allowed, or annotate the policy with \
        policy.tombolo.io/unsupported: fail-closed
📄 DIR/b.yaml
  ✅ CiliumNetworkPolicy shop/web";
    assert!(text.starts_with(refused), "{text}");
    assert_eq!(code, ExitCode::FAILURE);
}

#[test]
fn fail_closed_policies_pass_and_say_what_they_leave_out() {
    let annotations = "{annotations: {policy.tombolo.io/unsupported: fail-closed}, name: http";
    let dir = files(&[("a.yaml", &LAYER_7.replace("{name: http", annotations))]);
    let (code, text) = validate(&dir, "a.yaml", "");
    assert_eq!(
        text,
        "\
📄 DIR/a.yaml
  ✅ CiliumNetworkPolicy default/http: 1 rule, ingress default deny (+0 -0), egress open
  ⚠️  fail-closed: line 9: spec.ingress[0].toPorts[0].rules: requests are not looked into (layer 7)
"
    );
    assert_eq!(code, ExitCode::SUCCESS);
}

#[test]
fn a_directory_stands_for_the_files_that_the_agent_would_read() {
    let dir = files(&[
        ("b.yml", GOOD),
        ("a.json", ""),
        (".hidden.yaml", ""),
        ("notes.txt", ""),
    ]);
    let (code, text) = validate(&dir, ".", "");
    let files: Vec<_> = text.lines().filter(|line| line.starts_with('📄')).collect();
    assert_eq!(files, ["📄 DIR/./a.json", "📄 DIR/./b.yml"]);
    assert_eq!(code, ExitCode::FAILURE);
}

#[test]
fn what_cannot_be_read_is_refused_with_its_reason() {
    let dir = files(&[("notes.txt", "")]);
    let max = usize::try_from(crate::limits::POLICY_FILE_BYTES_MAX).unwrap();
    std::fs::write(dir.path().join("large.yaml"), vec![b' '; max + 1]).unwrap();
    std::fs::write(dir.path().join("bytes.yaml"), [0xff, 0xfe]).unwrap();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    for (name, reason) in [
        ("missing.yaml", "No such file"),
        ("large.yaml", "larger than 1048576 bytes"),
        ("bytes.yaml", "not UTF-8 text"),
        ("empty", "no file that ends in .yaml"),
    ] {
        let (code, text) = validate(&dir, name, "");
        assert!(text.contains(reason) && text.contains("💡"), "{text}");
        assert_eq!(code, ExitCode::FAILURE, "{name}");
    }
}

#[test]
fn json_has_the_same_in_fields() {
    let dir = files(&[("a.yaml", LAYER_7), ("b.yaml", GOOD)]);
    let (code, text) = validate(&dir, "a.yaml b.yaml", " -o json");
    assert_eq!(code, ExitCode::FAILURE);
    let reports: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(reports[0]["ok"], false);
    assert_eq!(reports[0]["error"]["line"], 9);
    let field = "spec.ingress[0].toPorts[0].rules";
    assert_eq!(reports[0]["error"]["field"], field);
    assert_eq!(reports[0]["policies"], serde_json::json!([]));
    assert_eq!(reports[1]["error"], serde_json::Value::Null);
    let policy = serde_json::json!({
        "kind": "CiliumNetworkPolicy",
        "namespace": "shop",
        "name": "web",
        "audit": false,
        "rules": 1,
        "ingress": {"default-deny": true, "allow": 1, "deny": 1},
        "egress": {"default-deny": false, "allow": 0, "deny": 0},
    });
    assert_eq!(reports[1]["policies"][0], policy);
    assert_eq!(
        reports[1]["policies"][1]["namespace"],
        serde_json::Value::Null
    );
}
