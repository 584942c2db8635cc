use super::*;

const DOCUMENT: &str = "\
# what the shop needs
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec: {endpointSelector: {}, ingress: [{}]}
";

#[test]
fn policies_are_applied_shown_and_deleted() {
    let agent = Agent::start();
    let file = agent.dir.path().join("p.yaml");
    std::fs::write(&file, DOCUMENT).unwrap();
    let apply = format!("policy apply -f {}", file.display());
    let said = agent.says(&apply);
    let revision = said
        .strip_prefix("CiliumNetworkPolicy/shop/web created (revision ")
        .and_then(|rest| rest.strip_suffix(")\n"))
        .unwrap_or_else(|| panic!("{said}"));
    assert_eq!(
        agent.says(&apply),
        format!("CiliumNetworkPolicy/shop/web unchanged (revision {revision})\n")
    );
    assert_eq!(
        agent.says("policy get"),
        format!(
            "\
KIND                  NAMESPACE   NAME   REVISION   NODES   ORIGIN
CiliumNetworkPolicy   default     db     5          1/2     cluster store
CiliumNetworkPolicy   shop        web    {revision}          1/2     cluster store
"
        )
    );
    assert_eq!(
        agent.says("policy get shop/web -o yaml"),
        format!("---\n{DOCUMENT}")
    );
    let json: serde_json::Value =
        serde_json::from_str(&agent.says("policy get web -o json")).unwrap();
    assert_eq!(json["cluster"][0]["applied"][0], "node1");
    assert_eq!(json["cluster"][0]["behind"][0], "node2");
    agent.fails("policy get nothing");
    let deleted = agent.fails("policy delete cnp/shop/web ccnp/nothing");
    let (first, second) = deleted.split_once('\n').unwrap();
    assert!(
        first.starts_with("CiliumNetworkPolicy/shop/web deleted (revision "),
        "{deleted}"
    );
    assert_eq!(
        second,
        "CiliumClusterwideNetworkPolicy/_/nothing not found\n"
    );
    agent.says(&apply);
    let text = agent.says(&format!("policy delete -f {}", file.display()));
    assert!(text.contains("shop/web deleted"), "{text}");
}

#[test]
fn refused_policies_name_file_line_and_field() {
    let agent = Agent::start();
    let file = agent.dir.path().join("p.yaml");
    let words = format!("policy apply -f {}", file.display());
    let refused = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let (result, _) = run_words(&words, &agent.path());
        result.unwrap_err().to_string()
    };
    let error = refused(&format!("{DOCUMENT}---\n{DOCUMENT}  typo: 1\n"));
    let place = format!("policy file {}:12: spec", file.display());
    assert!(error.contains(&place) || error.contains("YAML"), "{error}");
    let error = refused(&DOCUMENT.replace("ingress", "ingres"));
    let place = format!(
        "policy file {}:5: spec.ingres: unknown field",
        file.display()
    );
    assert!(error.starts_with(&place), "{error}");
    let (result, _) = run_words("policy delete web", &agent.path());
    let error = result.unwrap_err().to_string();
    assert!(error.contains("\"web\" names no policy"), "{error}");
    let (result, _) = run_words("policy apply -f /nowhere", &agent.path());
    let error = result.unwrap_err().to_string();
    assert!(
        error.starts_with("read policy file /nowhere: No such file"),
        "{error}"
    );
}

#[test]
fn apply_waits_for_every_live_node() {
    let agent = Agent::start();
    let file = agent.dir.path().join("p.yaml");
    std::fs::write(&file, DOCUMENT).unwrap();
    let words = format!("policy apply --wait 1s -f {}", file.display());
    let (result, _) = run_words(&words, &agent.path());
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("node2 lacks CiliumNetworkPolicy/shop/web"),
        "{error}"
    );
    assert!(!error.contains("node1"), "{error}");
}

#[test]
fn status_says_which_policies_are_in_force() {
    let text = Agent::start().fails("status");
    let line = "Policies:               0 in files of this node, 0 in the cluster store, revision 8 \
                (revision 9 is being applied)\n";
    assert!(text.contains(line), "{text}");
}

#[test]
fn trace_names_the_deciding_rule_and_its_file() {
    let agent = Agent::start();
    let trace = |src: &str, port: &str| {
        let words = format!(
            "policy trace --src {src} --dst k8s:app=db,io.kubernetes.pod.namespace=default --dport {port}"
        );
        let (result, text) = run_words(&words, &agent.path());
        (result.unwrap(), text)
    };
    let (code, text) = trace("identity:6619136", "6379");
    assert_eq!(code, ExitCode::SUCCESS, "{text}");
    for part in [
        "identity 6619136 of cluster1 (k8s:app=employee",
        "Egress: allowed, no rule is about it, and nothing is dropped by default\n",
        "Ingress: allowed by default/db rule 0 ingress[0] in db.yaml\n",
        "default/db rule 0 ingress[0] in db.yaml admits 6619136 (k8s:app=employee",
        "\nVerdict: allowed\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    // The employee of the other cluster is judged by that one on its way out.
    let (code, text) = trace("identity:6684673", "6379/TCP");
    assert_eq!(code, ExitCode::FAILURE, "{text}");
    assert!(text.contains("Egress: judged by cluster2"), "{text}");
    let denied = "Ingress: denied, no rule allows it, and what none allows is dropped\n";
    assert!(text.contains(denied), "{text}");
    let (code, _) = trace("ip:192.0.2.1", "80");
    assert_eq!(code, ExitCode::FAILURE);
    let words = "policy trace --src identity:70000 --dst ip:192.0.2.1 --dport 80";
    let (result, _) = run_words(words, &agent.path());
    let error = result.unwrap_err();
    assert!(error.to_string().starts_with("no such identity"), "{error}");
    assert_eq!(error.exit_code(), ExitCode::from(2));
    let words = "policy trace --src ip:192.0.2.2 --dst ip:192.0.2.1 --dport 80 -o json";
    let (result, text) = run_words(words, &agent.path());
    assert_eq!(result.unwrap(), ExitCode::from(2), "nobody judges it");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["verdict"], "unknown");
}
