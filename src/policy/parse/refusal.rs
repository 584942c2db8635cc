//! Why a policy is refused: where, what is wrong, and what to do about it.
use std::{borrow::Cow, path::PathBuf};

/// Longest piece of a file that is repeated in a complaint, in characters.
const QUOTE_MAX: usize = 80;
/// Imports a policy without what is not enforced.
const FAIL_CLOSED: &str = "policy.tombolo.io/unsupported: fail-closed";

/// Why a file was refused, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy file {place}: {refusal}; {next}", place = self.place(), next = refusal.next_step())]
pub struct ParseError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1, where it is known.
    pub line: Option<u64>,
    /// Path of the field within its document, such as `spec.ingress[0].toPorts[0].rules`; empty
    /// for the document as a whole.
    pub field: String,
    /// What is wrong with it.
    pub refusal: Refusal,
}

impl ParseError {
    fn place(&self) -> String {
        let mut place = self.file.display().to_string();
        if let Some(line) = self.line {
            place = format!("{place}:{line}");
        }
        if self.field.is_empty() {
            place
        } else {
            format!("{place}: {}", self.field)
        }
    }
}

/// What can be wrong with a policy file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The text is no YAML.
    #[error("not readable as YAML: {0}")]
    Yaml(String),
    /// The file has no policy in it. Writers truncate first, so this is not "no policies".
    #[error("holds no policy")]
    Empty,
    /// Another kind of object.
    #[error("{0:?} objects are not enforced")]
    Kind(String),
    /// A field that policies do not have.
    #[error("unknown field")]
    UnknownField,
    /// A part of the language that is not enforced here. The annotation
    /// `policy.tombolo.io/unsupported: fail-closed` imports the policy all the same.
    #[error("{reason}")]
    Unsupported {
        /// What is not done.
        reason: &'static str,
        /// What to write instead.
        instead: &'static str,
    },
    /// Something that means nothing in this place, or not what it seems to.
    #[error("{reason}")]
    Misplaced {
        /// What is wrong with it.
        reason: &'static str,
        /// What to write instead.
        instead: &'static str,
    },
    /// A mapping without a field that it needs.
    #[error("{name} is missing")]
    Missing {
        /// The field.
        name: &'static str,
    },
    /// A field with nothing after the colon.
    #[error("has no value")]
    Null,
    /// A value of another type.
    #[error("must be {expected}, not {found}")]
    WrongType {
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// The same thing twice.
    #[error("given twice")]
    Duplicate,
    /// Two fields that exclude each other.
    #[error("can't be combined with {other}")]
    Conflict {
        /// The other field.
        other: &'static str,
    },
    /// A value outside what is possible.
    #[error("{value:?} is not {expected}")]
    Value {
        /// The value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A list that is too long.
    #[error("has {count} elements, more than {max}")]
    TooMany {
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

impl Refusal {
    /// `value` is not what it should be.
    pub(super) fn value(value: &str, expected: &'static str) -> Self {
        let value = quote(value);
        Self::Value { value, expected }
    }

    /// What the operator can do about it.
    #[must_use]
    pub fn next_step(&self) -> Cow<'static, str> {
        let next = match self {
            Self::Yaml(_) => "correct the text at this place",
            Self::Empty => "delete the file to withdraw its policies",
            Self::Kind(_) => {
                "write a CiliumNetworkPolicy, a CiliumClusterwideNetworkPolicy or a NetworkPolicy, \
                 or move the file away"
            }
            Self::UnknownField => "check its spelling and indentation, or remove it",
            Self::Unsupported { instead, .. } => {
                return format!("{instead}, or annotate the policy with {FAIL_CLOSED}").into();
            }
            Self::Misplaced { instead, .. } => instead,
            Self::Missing { .. } => "add it",
            Self::Null => "give it a value, or remove the whole field",
            Self::WrongType { .. } | Self::Value { .. } => "correct the value",
            Self::Duplicate => "keep one of them",
            Self::Conflict { .. } => "make two entries of it",
            Self::TooMany { .. } => "split it into several entries",
        };
        Cow::Borrowed(next)
    }
}

/// The start of what a file says, short enough for a log line.
pub(in crate::policy) fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
