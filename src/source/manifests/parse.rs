//! Text of a manifest file to objects. Pure.
use std::cell::RefCell;

use serde::de::DeserializeOwned;

use super::object::{Header, Object};

/// An object and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Located {
    /// Line of the document's first line, from 1.
    pub(super) line: u64,
    pub(super) object: Object,
}

/// All of a file that we use.
#[derive(Debug, Clone, Default)]
pub(super) struct Parsed {
    pub(super) objects: Vec<Located>,
    /// Documents of other kinds: line and `apiVersion/kind`.
    pub(super) ignored: Vec<(u64, String)>,
}

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub(super) struct ParseError {
    /// From 1; 0 if unknown.
    pub(super) line: u64,
    /// Names the field if the error is within one.
    pub(super) message: String,
}

/// Parses all documents; one bad one spoils the file, as half a file could mean anything.
pub(super) fn parse(text: &str) -> Result<Parsed, ParseError> {
    let mut parsed = Parsed::default();
    for (lines_before, document) in documents(text) {
        let header: Option<Header> = read(document, lines_before)?;
        let Some(Header { kind, api_version }) = header else {
            continue;
        };
        let core = api_version == "v1";
        let slice = api_version.starts_with("discovery.k8s.io/");
        let cilium = api_version.starts_with("cilium.io/");
        let object = match kind.as_str() {
            "Namespace" if core => read(document, lines_before)?.map(Object::Namespace),
            "Node" if core => read(document, lines_before)?.map(Object::Node),
            "Pod" if core => read(document, lines_before)?.map(Object::Pod),
            "Service" if core => read(document, lines_before)?.map(Object::Service),
            "EndpointSlice" if slice => read(document, lines_before)?.map(Object::EndpointSlice),
            "CiliumNode" if cilium => read(document, lines_before)?.map(Object::CiliumNode),
            _ => {
                parsed.ignored.push((
                    first_line(document, lines_before),
                    format!("{api_version}/{kind}"),
                ));
                continue;
            }
        };
        let line = first_line(document, lines_before);
        parsed
            .objects
            .extend(object.map(|object| Located { line, object }));
    }
    Ok(parsed)
}

/// Splits at the lines that begin a document, which stay with it; also the number of lines before.
/// YAML forbids such lines within any scalar, so text is enough to find them.
fn documents(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut bounds = vec![(0, 0)];
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let starts = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if starts && offset > 0 {
            bounds.push((index, offset));
        }
        offset += line.len();
    }
    let ends: Vec<usize> = bounds
        .iter()
        .skip(1)
        .map(|&(_, start)| start)
        .chain([text.len()])
        .collect();
    bounds
        .into_iter()
        .zip(ends)
        .map(move |((index, start), end)| (index, &text[start..end]))
}

/// The line of the first content, from 1.
fn first_line(document: &str, lines_before: usize) -> u64 {
    let skipped = document
        .lines()
        .take_while(|line| {
            let line = line.trim();
            line.is_empty() || line == "---" || line.starts_with('#')
        })
        .count();
    u64::try_from(lines_before + skipped + 1).unwrap_or(u64::MAX)
}

/// Reads one document; `None` if it is empty.
fn read<T: DeserializeOwned>(document: &str, lines_before: usize) -> Result<Option<T>, ParseError> {
    deserialize(document).or_else(|_| {
        // Once more, with lines as in the file, so that the error names the right ones.
        deserialize(&format!("{}{document}", "\n".repeat(lines_before)))
    })
}

fn deserialize<T: DeserializeOwned>(text: &str) -> Result<Option<T>, ParseError> {
    let path = RefCell::new(String::new());
    let result = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            *path.borrow_mut() = error.path().to_string();
            error.into_inner()
        })
    });
    result.map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let plain = error.without_snippet().to_string();
        let path = path.into_inner();
        let message = if path.is_empty() || path == "." || path == "?" {
            plain
        } else {
            format!("{path}: {plain}")
        };
        ParseError { line, message }
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[track_caller]
    fn check_error(text: &str, line: u64, parts: &[&str]) {
        let error = parse(text).unwrap_err();
        assert_eq!(error.line, line, "{error}");
        for part in parts {
            assert!(error.message.contains(part), "{error} lacks {part}");
        }
    }

    #[test]
    fn documents_keep_their_line_numbers() {
        let text = "# a comment\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n--- # b\n\n\
                    apiVersion: v1\nkind: Namespace\nmetadata:\n  name: b\n  labels:\n---\n---\n\
                    apiVersion: apps/v1\nkind: Deployment\n";
        let parsed = parse(text).unwrap();
        let found: Vec<_> = parsed
            .objects
            .iter()
            .map(|o| (o.line, o.object.key().to_string()))
            .collect();
        assert_eq!(
            found,
            [(3, "Namespace a".to_owned()), (6, "Namespace b".to_owned())]
        );
        assert_eq!(parsed.ignored, [(15, "apps/v1/Deployment".to_owned())]);
    }

    #[test]
    fn json_is_yaml() {
        let text = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"n"},
            "status":{"podIPs":[{"ip":"10.0.0.1"}],"podIP":""}}"#;
        assert_eq!(
            parse(text).unwrap().objects[0].object.key().to_string(),
            "Pod n/p"
        );
        assert!(parse("").unwrap().objects.is_empty());
    }

    #[test]
    fn errors_name_line_and_field() {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nstatus:\n  podIPs:\n  - ip: 10.0.0.1\n  - ip: 10.0.0.999\n";
        check_error(pod, 8, &["status.podIPs[1].ip", "10.0.0.999"]);
        check_error(
            &format!("---\nkind: Other\n---\n{pod}"),
            11,
            &["status.podIPs[1].ip"],
        );
        check_error("apiVersion: v1\nkind: Pod\nmetadata: 7\n", 3, &["metadata"]);
        check_error(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a/b}\n",
            3,
            &["metadata.name", "a/b"],
        );
        check_error("apiVersion: v1\nkind: [\n", 2, &["kind"]);
        let labels = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n    x: 'a;b'\n";
        check_error(labels, 6, &["metadata.labels", "a;b"]);
        let address = "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nstatus:\n  addresses:\n  - {type: Hostname, address: a}\n  - {type: InternalIP, address: b}\n";
        check_error(address, 7, &["status.addresses[1]", "InternalIP"]);
    }
}
