//! `tombolo policy validate`: whether files hold policies that would be enforced, without an agent.
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    limits,
    policy::{self, Grant, ParseError, Policy, directory::is_policy_file},
};

/// Say what policy files hold, or why they are refused. The exit code is 1 if any is refused.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ValidateArgs {
    /// Files, directories with files as for --policy-dir, or - for the standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    pub(in crate::cli) output: crate::cli::Output,
}

/// What one file holds, or why it is refused.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::cli) struct FileReport {
    file: PathBuf,
    ok: bool,
    policies: Vec<PolicyReport>,
    /// What is not enforced of policies that are imported fail-closed.
    narrowed: Vec<Complaint>,
    error: Option<Complaint>,
}

/// One policy of a file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct PolicyReport {
    kind: String,
    namespace: Option<String>,
    name: String,
    audit: bool,
    rules: usize,
    ingress: Section,
    egress: Section,
}

/// What the rules of a policy say in one direction.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Section {
    default_deny: bool,
    /// How many entries allow something.
    allow: usize,
    /// How many entries deny something.
    deny: usize,
}

/// What is wrong, where, and what to do about it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Complaint {
    line: Option<u64>,
    field: String,
    reason: String,
    next_step: String,
}

/// Why a file could not be parsed at all.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("larger than {} bytes", limits::POLICY_FILE_BYTES_MAX)]
    TooLarge,
    #[error("not UTF-8 text")]
    NotText,
    #[error("holds no file that ends in .yaml, .yml or .json")]
    NoFiles,
}

impl Unreadable {
    const fn next_step(&self) -> &'static str {
        match self {
            Self::Io(_) => "check that it exists and may be read",
            Self::TooLarge => "split it into several files",
            Self::NotText => "save it as UTF-8",
            Self::NoFiles => "name the directory of the policies",
        }
    }
}

/// Looks at all files named, directories in the order of their files' names.
pub(in crate::cli) fn run(args: &ValidateArgs) -> Vec<FileReport> {
    let mut reports = Vec::new();
    for path in &args.files {
        match listed(path) {
            Ok(files) => reports.extend(files.iter().map(|file| report(file))),
            Err(error) => reports.push(FileReport::unreadable(path, &error)),
        }
    }
    reports
}

/// The files that `path` stands for.
fn listed(path: &Path) -> Result<BTreeSet<PathBuf>, Unreadable> {
    if !path.is_dir() {
        return Ok(BTreeSet::from([path.to_owned()]));
    }
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        if is_policy_file(&file) {
            files.insert(file);
        }
    }
    if files.is_empty() {
        return Err(Unreadable::NoFiles);
    }
    Ok(files)
}

fn report(file: &Path) -> FileReport {
    let text = match read(file) {
        Ok(text) => text,
        Err(error) => return FileReport::unreadable(file, &error),
    };
    let mut narrowed = Vec::new();
    match policy::parse_noting(&text, file, &mut narrowed) {
        Ok(policies) => FileReport {
            file: file.to_owned(),
            ok: true,
            policies: policies.iter().map(PolicyReport::new).collect(),
            narrowed: narrowed.iter().map(Complaint::new).collect(),
            error: None,
        },
        Err(error) => FileReport::refused(file, Complaint::new(&error)),
    }
}

fn read(file: &Path) -> Result<String, Unreadable> {
    let mut bytes = Vec::new();
    let max = limits::POLICY_FILE_BYTES_MAX;
    let source: &mut dyn Read = match file.to_str() {
        Some("-") => &mut io::stdin().lock(),
        _ => &mut File::open(file)?,
    };
    source.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(Unreadable::TooLarge);
    }
    String::from_utf8(bytes).map_err(|_error| Unreadable::NotText)
}

impl FileReport {
    fn refused(file: &Path, error: Complaint) -> Self {
        Self {
            file: file.to_owned(),
            ok: false,
            policies: Vec::new(),
            narrowed: Vec::new(),
            error: Some(error),
        }
    }

    fn unreadable(file: &Path, error: &Unreadable) -> Self {
        let complaint = Complaint {
            line: None,
            field: String::new(),
            reason: error.to_string(),
            next_step: error.next_step().to_owned(),
        };
        Self::refused(file, complaint)
    }
}

impl Complaint {
    fn new(error: &ParseError) -> Self {
        Self {
            line: error.line,
            field: error.field.clone(),
            reason: error.refusal.to_string(),
            next_step: error.refusal.next_step().into_owned(),
        }
    }

    /// Where and what, on one line.
    fn text(&self) -> String {
        let line = self.line.map(|line| format!("line {line}: "));
        let field = match self.field.as_str() {
            "" => String::new(),
            field => format!("{field}: "),
        };
        format!("{}{field}{}", line.unwrap_or_default(), self.reason)
    }
}

impl PolicyReport {
    fn new(policy: &Policy) -> Self {
        let mut report = Self {
            kind: policy.kind.to_string(),
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            audit: policy.audit,
            rules: policy.rules.len(),
            ingress: Section::default(),
            egress: Section::default(),
        };
        for rule in &policy.rules {
            report.ingress.add(rule.default_deny.ingress, &rule.ingress);
            report.egress.add(rule.default_deny.egress, &rule.egress);
        }
        report
    }

    fn text(&self) -> String {
        let Self {
            kind, name, rules, ..
        } = self;
        let namespace = self.namespace.as_ref().map(|n| format!("{n}/"));
        let namespace = namespace.unwrap_or_default();
        let s = if *rules == 1 { "" } else { "s" };
        let audit = if self.audit { ", audited only" } else { "" };
        let (ingress, egress) = (self.ingress.text(), self.egress.text());
        format!(
            "{kind} {namespace}{name}: {rules} rule{s}, ingress {ingress}, egress {egress}{audit}"
        )
    }
}

impl Section {
    fn add(&mut self, default_deny: bool, grants: &[Grant]) {
        self.default_deny |= default_deny;
        let denies = grants.iter().filter(|grant| grant.deny).count();
        self.deny += denies;
        self.allow += grants.len() - denies;
    }

    /// What happens to packets: with default deny those allowed pass, else all but those denied.
    fn text(&self) -> String {
        let Self { allow, deny, .. } = self;
        match self.default_deny {
            true => format!("default deny (+{allow} -{deny})"),
            false if *deny > 0 => format!("open (-{deny})"),
            false => "open".to_owned(),
        }
    }
}

/// True if any file is refused.
pub(in crate::cli) fn any_refused(reports: &[FileReport]) -> bool {
    reports.iter().any(|report| !report.ok)
}

/// The reports for people.
pub(in crate::cli) fn text(reports: &[FileReport]) -> String {
    let mut text = String::new();
    for report in reports {
        let mut line = |line: String| {
            let written = writeln!(text, "{line}");
            debug_assert!(written.is_ok(), "writing to a string cannot fail");
        };
        line(format!("📄 {}", report.file.display()));
        for policy in &report.policies {
            line(format!("  ✅ {}", policy.text()));
        }
        for narrowed in &report.narrowed {
            line(format!("  ⚠️  fail-closed: {}", narrowed.text()));
        }
        if let Some(error) = &report.error {
            line(format!("  ❌ {}", error.text()));
            line(format!("     💡 {}", error.next_step));
        }
    }
    text
}
