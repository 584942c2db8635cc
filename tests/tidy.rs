//! Holds the borders that the compiler does not: who may use which crate, what may be committed.
//! Looks at tracked files only. Every rule reports all its offenders at once.
use std::{path::Path, process::Command};

/// What only some modules may name. A module is a file `src/<module>.rs` and the folder beside it.
struct Border {
    /// Any of these, as whole words or paths.
    words: &'static [&'static str],
    modules: &'static [&'static str],
    why: &'static str,
}

const BORDERS: &[Border] = &[
    Border {
        words: &["tonic"],
        modules: &["etcd", "serve"],
        why: "gRPC becomes domain types at the edge",
    },
    Border {
        words: &["axum"],
        modules: &["admin"],
        why: "HTTP is the admin's only",
    },
    Border {
        words: &["aya", "aya_obj", "unsafe"],
        modules: &["enforcer/kernel"],
        why: "one module talks to the kernel",
    },
    Border {
        words: &["rustls", "tokio_rustls"],
        modules: &["tls"],
        why: "one module decides who is trusted",
    },
    Border {
        words: &[
            "env::var",
            "env::var_os",
            "env::vars",
            "env::vars_os",
            "env::set_var",
            "env::remove_var",
        ],
        modules: &["config"],
        why: "one module reads the environment",
    },
    Border {
        words: &["tokio::spawn", "task::spawn", "task::spawn_local"],
        modules: &["lifecycle"],
        why: "a task has a name, a span and a reported result",
    },
    Border {
        words: &[
            "SystemTime::now",
            "OffsetDateTime::now_utc",
            "OffsetDateTime::now_local",
        ],
        modules: &["telemetry", "tls", "admin", "cli"],
        why: "elsewhere the time comes in as an argument",
    },
    Border {
        words: &["crate::mesh", "crate::{mesh"],
        modules: &[
            "admin", "app", "enforcer", "policy", "publish", "mesh", "cli",
        ],
        why: "mesh takes key events and gives deltas; those who feed it don't know it",
    },
    Border {
        words: &["crate::peer"],
        modules: &["admin", "app", "peer", "cli"],
        why: "peer and mesh share key events only",
    },
];

/// Longest file that is still read as one thing.
const LINES_MAX: usize = 1000;

#[test]
fn modules_keep_to_their_borders() {
    let mut offenders = Vec::new();
    for (path, text) in tracked() {
        let Some(module) = path
            .strip_prefix("src/")
            .and_then(|p| p.strip_suffix(".rs"))
        else {
            continue;
        };
        if is_test(module) {
            continue;
        }
        for (number, line) in code(&text) {
            for border in BORDERS {
                let inside = |m: &&str| {
                    module.strip_prefix(*m).is_some_and(|rest| {
                        rest.is_empty() || rest.starts_with('/') || rest.starts_with('_')
                    })
                };
                let word = border.words.iter().find(|w| names(line, w));
                if let Some(word) = word
                    && !border.modules.iter().any(inside)
                {
                    let Border { modules, why, .. } = border;
                    offenders.push(format!(
                        "{path}:{number}: {word} outside {modules:?}: {why}"
                    ));
                }
            }
        }
    }
    report(&offenders);
}

#[test]
fn the_policy_evaluator_knows_nothing_of_the_code_under_test() {
    let own = ["naive", "model", "coverage"].map(|f| format!("tests/kernel/policy/{f}.rs"));
    let files = tracked();
    assert!(
        own.iter()
            .all(|own| files.iter().any(|(path, _)| path == own))
    );
    let mut offenders = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| own.contains(path)) {
        for (number, line) in code(text) {
            if ["tombolo", "street"].iter().any(|word| names(line, word)) {
                offenders.push(format!("{path}:{number}: the evaluator must stand alone"));
            }
        }
    }
    report(&offenders);
}

#[test]
fn open_ends_name_their_issue() {
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ];
    let mut offenders = Vec::new();
    for (path, text) in tracked() {
        if path == "LICENSE" {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            for mark in marks {
                let Some(at) = line.find(mark).filter(|_| names(line, mark)) else {
                    continue;
                };
                let rest = &line[at + mark.len()..];
                let number_follows = rest
                    .strip_prefix("(#")
                    .is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()));
                if !number_follows {
                    offenders.push(format!("{path}:{number}: write {mark}(#issue)"));
                }
            }
        }
    }
    report(&offenders);
}

#[test]
fn files_stay_short() {
    let offenders: Vec<_> = tracked()
        .into_iter()
        .filter(|(path, _)| !path.ends_with("Cargo.lock"))
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(path, lines)| format!("{path}: {lines} lines, more than {LINES_MAX}"))
        .collect();
    report(&offenders);
}

#[test]
fn no_keys_and_no_binaries_are_committed() {
    let mut offenders = Vec::new();
    for path in paths() {
        if [".key", ".p12", ".pfx", ".jks"]
            .iter()
            .any(|end| path.ends_with(end))
        {
            offenders.push(format!("{path}: looks like a private key"));
        }
        let Ok(bytes) = std::fs::read(&path) else {
            continue;
        };
        let Ok(text) = String::from_utf8(bytes) else {
            offenders.push(format!("{path}: not text"));
            continue;
        };
        let key = |line: &str| {
            let line = line.trim();
            line.starts_with("-----BEGIN") && line.ends_with("PRIVATE KEY-----")
        };
        if text.lines().any(key) {
            offenders.push(format!("{path}: holds a private key"));
        }
    }
    report(&offenders);
}

#[test]
fn rust_files_begin_with_what_they_are_for() {
    let mut offenders = Vec::new();
    for (path, text) in tracked() {
        let module = path.trim_end_matches(".rs");
        if path.ends_with(".rs") && !is_test(module) && !text.starts_with("//!") {
            offenders.push(format!("{path}: no module documentation at its top"));
        }
    }
    report(&offenders);
}

#[test]
fn words_are_found_whole() {
    for (line, word, expected) in [
        ("use tonic::Status;", "tonic", true),
        ("use tonic_prost::X;", "tonic", false),
        ("let not_tonic = 1;", "tonic", false),
        ("std::env::var(\"X\")", "env::var", true),
        ("std::env::var_os(\"X\")", "env::var", false),
        ("#![expect(unsafe_code)]", "unsafe", false),
        ("a.spawn(x); tokio::spawn(y)", "tokio::spawn", true),
        ("tonics tonic", "tonic", true),
    ] {
        assert_eq!(names(line, word), expected, "{word} in {line}");
    }
}

/// Tests may do what the process may not.
fn is_test(module: &str) -> bool {
    let (folder, name) = module.rsplit_once('/').unwrap_or(("", module));
    let tests = ["tests", "proptests", "test_support"];
    tests.contains(&name) || folder.split('/').any(|f| tests.contains(&f))
}

/// Numbered lines without comments, up to the tests at the end of the file.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = (1..).zip(text[..end].lines());
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// True if `word` stands in `line` and is not a part of a longer identifier.
fn names(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(part);
        let after = line[at + word.len()..].chars().next().is_some_and(part);
        !before && !after
    })
}

fn paths() -> Vec<String> {
    let git = Command::new("git")
        .args(["ls-files", "-z"])
        .output()
        .expect("git is installed");
    assert!(
        git.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&git.stderr)
    );
    let list = String::from_utf8(git.stdout).expect("file names are UTF-8");
    let paths: Vec<String> = list
        .split('\0')
        .filter(|p| !p.is_empty() && Path::new(p).is_file())
        .map(Into::into)
        .collect();
    assert!(
        paths.iter().any(|p| p == "src/lib.rs"),
        "runs in the package's folder"
    );
    paths
}

/// All tracked text files with their content.
fn tracked() -> Vec<(String, String)> {
    let read = |path: String| std::fs::read_to_string(&path).ok().map(|text| (path, text));
    paths().into_iter().filter_map(read).collect()
}

fn report(offenders: &[String]) {
    assert!(offenders.is_empty(), "\n{}\n", offenders.join("\n"));
}
