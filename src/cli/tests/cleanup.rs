use super::*;

#[test]
fn cleanup_spares_a_running_agent_unless_forced() {
    let agent = Agent::start();
    let map = agent.dir.path().join("tombolo/v2/policy");
    std::fs::create_dir_all(map.parent().unwrap()).unwrap();
    std::fs::write(&map, "").unwrap();
    let words = format!("cleanup --bpf-root={}", agent.dir.path().display());

    let (refused, output) = run_words(&words, &agent.path());
    let refused = refused.unwrap_err();
    assert!(
        refused.to_string().contains("an agent listens"),
        "{refused}"
    );
    assert_eq!(refused.exit_code(), ExitCode::FAILURE);
    assert!(map.exists() && output.is_empty());

    let line = format!("map {}\n", map.display());
    let told = agent.says(&format!("{words} --dry-run"));
    assert!(told.starts_with(&format!("Would remove {line}")), "{told}");
    assert!(map.exists());

    let done = agent.says(&format!("{words} --force"));
    assert!(done.starts_with(&format!("Removed {line}")), "{done}");
    assert!(!agent.dir.path().join("tombolo").exists());
}

#[test]
fn cleanup_needs_no_agent_and_names_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    // A socket without a listener, and none at all.
    let socket = dir.path().join("a.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let words = format!("cleanup --bpf-root={}", dir.path().display());
    for socket in [socket, dir.path().join("none")] {
        let (result, output) = run_words(&words, &socket);
        assert_eq!(result.unwrap(), ExitCode::SUCCESS);
        assert!(
            output.starts_with("Nothing of Tombolo's below "),
            "{output}"
        );
    }
    // What lies where links are is unlinked, which no directory can be.
    std::fs::create_dir_all(dir.path().join("tombolo/v1/links/odd")).unwrap();
    let (result, _) = run_words(&words, &dir.path().join("none"));
    let error = result.unwrap_err();
    assert!(error.to_string().contains("v1/links/odd: "), "{error}");
    assert_eq!(error.exit_code(), ExitCode::FAILURE);
}
