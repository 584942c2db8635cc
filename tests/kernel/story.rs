//! The hands-on story, and that it notices when enforcement or the policy is broken.
//! The example is a program of its own, so that it can also be its own traffic inside the pods.
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tombolo::test_support::process::run;

/// One story at a time: its load counts connections a second.
static ALONE: Mutex<()> = Mutex::new(());
/// The whole story takes about a minute.
const STORY_LIMIT: Duration = Duration::from_secs(300);

/// Cargo builds examples beside the test binaries: `target/<profile>/{deps,examples}`.
fn example() -> PathBuf {
    let own = std::env::current_exe().expect("the test's own path");
    let profile = own
        .ancestors()
        .nth(2)
        .expect("target/<profile>/deps/<test>");
    let path = profile.join("examples/hands_on");
    assert!(
        path.exists(),
        "{} is missing: cargo build --examples",
        path.display()
    );
    path
}

/// Plays the story; true for success, and all that it printed.
fn play(options: &[&str]) -> (bool, String) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let temp = tempfile::tempdir().expect("a temporary directory");
    let dir = temp.path().join("story");
    let mut command = Command::new(example());
    command
        .arg("--tombolo")
        .arg(env!("CARGO_BIN_EXE_tombolo"))
        .arg("--dir")
        .arg(&dir);
    let output = run(command.args(options), STORY_LIMIT);
    let left = dir.exists();
    clean(&dir);
    let output = output.expect("the story ends in time");
    assert_eq!(
        left,
        !output.status.success(),
        "logs stay for failures only"
    );
    print(&format!("{}{}", output.stdout, output.stderr));
    (output.status.success(), output.stdout)
}

/// The story's own words; the test harness shows them if the test fails.
#[expect(clippy::print_stdout, reason = "the harness captures it")]
fn print(text: &str) {
    println!("{text}");
}

/// Ends what a killed story would leave.
fn clean(dir: &Path) {
    tombolo::test_support::lab::end_leftovers(dir).expect("clean up after the story");
}

fn fails_at(options: &[&str], step: &str) {
    let (success, text) = play(options);
    assert!(!success, "the story passed with {options:?}");
    let last = text.lines().last().unwrap_or_default();
    assert_eq!(last, format!("FAILED at step: {step}"));
}

#[test]
fn every_cell_of_the_story_is_right() {
    let (success, text) = play(&[]);
    assert!(success, "{}", text.lines().last().unwrap_or_default());
}

#[test]
fn a_plain_etcd_with_the_keys_of_cilium_is_enforced_the_same_way() {
    let (success, text) = play(&["--peer", "etcd"]);
    assert!(success, "{}", text.lines().last().unwrap_or_default());
}

#[test]
fn story_notices_detached_links() {
    fails_at(
        &["--fault", "detach-links"],
        "with the policy both strangers time out",
    );
}

#[test]
fn story_notices_a_wrong_label() {
    fails_at(
        &["--fault", "wrong-label"],
        "with the policy both employees get PONG",
    );
}
