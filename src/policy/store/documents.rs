//! Files of policies as the documents that the cluster store keeps, one policy each.
use std::path::Path;

use super::{Error, Name};
use crate::policy::{Policy, parse};

/// A policy and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) name: Name,
    /// As it stood in the file, without the marker in front of it.
    pub(super) text: String,
}

/// The policies of one file.
///
/// # Errors
/// The first document that is refused or is not one policy.
pub(super) fn read(file: &Path, text: &str) -> Result<Vec<Document>, Error> {
    let mut documents = Vec::new();
    for (line, text) in split(text) {
        // As many lines in front of it as in the file, so that a complaint names the right one.
        let padded = "\n".repeat(line) + &text;
        let policies = parse(&padded, file)?;
        let [policy] = policies.as_slice() else {
            return Err(Error::NotOne {
                file: file.to_owned(),
                line: line + 1,
                count: policies.len(),
            });
        };
        documents.push(Document {
            name: Name::from(policy),
            text,
        });
    }
    if documents.is_empty() {
        // The parser's own words for a file without any.
        parse("", file)?;
    }
    Ok(documents)
}

/// The one policy of a text that the store holds under `name`.
pub(super) fn stored(name: &Name, text: &str) -> Result<Policy, String> {
    let refused = |error: crate::policy::ParseError| {
        let place = match (error.line, error.field.as_str()) {
            (Some(line), "") => format!("line {line}: "),
            (Some(line), field) => format!("line {line}: {field}: "),
            (None, "") => String::new(),
            (None, field) => format!("{field}: "),
        };
        format!("{place}{}; {}", error.refusal, error.refusal.next_step())
    };
    let path = name.to_string();
    let mut policies = parse(text, Path::new(&path)).map_err(refused)?;
    let policy = policies.pop().filter(|_| policies.is_empty());
    let policy = policy.ok_or("holds more than one policy; write each under its own key")?;
    let found = Name::from(&policy);
    if found != *name {
        return Err(format!(
            "holds {found}; write it under the key of that name"
        ));
    }
    Ok(policy)
}

/// The documents with the lines before them; documents of blanks and comments are left out. A marker
/// at the beginning of a line ends a document wherever it stands, in YAML.
fn split(text: &str) -> Vec<(usize, String)> {
    let mut documents: Vec<(usize, String)> = vec![(0, String::new())];
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = |marker| {
            let rest = line.strip_prefix(marker)?;
            rest.chars()
                .next()
                .is_none_or(char::is_whitespace)
                .then_some(rest)
        };
        match marker("---").or_else(|| marker("...")) {
            // What follows the marker on its line belongs to the document.
            Some(rest) if is_blank(rest) => documents.push((number + 1, String::new())),
            Some(rest) => documents.push((number, format!("   {rest}"))),
            None => {
                if let Some((_, document)) = documents.last_mut() {
                    document.push_str(line);
                }
            }
        }
    }
    documents.retain(|(_, document)| !document.lines().all(is_blank));
    documents
}

fn is_blank(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_keep_their_lines_and_comments() {
        let text =
            "# head\n---\na: 1 # one\nb: |\n  ---\n  x\n--- {c: 2}\n...\n---\n# nothing\n---\nd: 3";
        let expected = [
            (2, "a: 1 # one\nb: |\n  ---\n  x\n".to_owned()),
            (6, "    {c: 2}\n".to_owned()),
            (11, "d: 3".to_owned()),
        ];
        assert_eq!(split(text), expected);
        assert_eq!(split("----\n"), [(0, "----\n".to_owned())]);
        assert!(split("").is_empty());
    }
}
