//! YAML as a tree that knows its lines, and a cursor that knows its field path, so that every
//! complaint can say where.
use std::{collections::HashSet, fmt, fmt::Write as _, path::Path};

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::parse::{ParseError, Refusal, quote};

/// A value with its place.
pub(super) type Node = Spanned<Tree>;

/// Any YAML value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tree {
    Null,
    Bool(bool),
    Integer(i128),
    Float,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Spanned<String>, Node)>),
}

impl Tree {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Float => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: Error>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Integer(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Integer(value.into()))
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Tree, E> {
        Ok(Tree::Integer(value))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Float)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = access.next_element()? {
            list.push(node);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = access.next_entry()? {
            map.push(entry);
        }
        Ok(Tree::Map(map))
    }
}

/// A node with the way to it.
#[derive(Debug, Clone)]
pub(super) struct At<'a> {
    file: &'a Path,
    node: &'a Node,
    /// Where the field's name stands, if the node is a field; else where the node stands.
    line: u64,
    path: String,
}

impl<'a> At<'a> {
    /// The root of a document.
    pub(super) const fn root(file: &'a Path, node: &'a Node, line: u64) -> Self {
        Self {
            file,
            node,
            line,
            path: String::new(),
        }
    }

    /// The complaint `refusal` about this node.
    pub(super) fn refuse(&self, refusal: Refusal) -> ParseError {
        ParseError {
            file: self.file.to_owned(),
            line: (self.line > 0).then_some(self.line),
            field: self.path.clone(),
            refusal,
        }
    }

    fn wrong_type(&self, expected: &'static str) -> ParseError {
        let found = self.node.value.kind();
        self.refuse(match self.node.value {
            Tree::Null => Refusal::Null,
            _ => Refusal::WrongType { expected, found },
        })
    }

    /// The field's text.
    pub(super) fn text(&self) -> Result<&'a str, ParseError> {
        match &self.node.value {
            Tree::Text(text) => Ok(text),
            _ => Err(self.wrong_type("a string (in quotes if it looks like something else)")),
        }
    }

    /// The field's text, or its number as text.
    pub(super) fn text_or_number(&self) -> Result<String, ParseError> {
        match &self.node.value {
            Tree::Integer(number) => Ok(number.to_string()),
            _ => self.text().map(str::to_owned),
        }
    }

    /// The field's truth value.
    pub(super) fn boolean(&self) -> Result<bool, ParseError> {
        match self.node.value {
            Tree::Bool(value) => Ok(value),
            _ => Err(self.wrong_type("true or false")),
        }
    }

    /// The field's whole number.
    pub(super) fn integer(&self) -> Result<i128, ParseError> {
        match self.node.value {
            Tree::Integer(number) => Ok(number),
            _ => Err(self.wrong_type("a whole number")),
        }
    }

    /// The list's elements.
    pub(super) fn list(&self) -> Result<Vec<Self>, ParseError> {
        let Tree::List(list) = &self.node.value else {
            return Err(self.wrong_type("a list"));
        };
        let element = |(i, node): (usize, &'a Node)| Self {
            file: self.file,
            node,
            line: node.referenced.line(),
            path: format!("{}[{i}]", self.path),
        };
        Ok(list.iter().enumerate().map(element).collect())
    }

    /// All fields with their names, whatever they are.
    pub(super) fn entries(&self) -> Result<Vec<(&'a str, Self)>, ParseError> {
        let Tree::Map(map) = &self.node.value else {
            return Err(self.wrong_type("a mapping"));
        };
        let mut entries = Vec::with_capacity(map.len());
        let mut names = HashSet::with_capacity(map.len());
        for (name, node) in map {
            let mut path = self.path.clone();
            if !path.is_empty() {
                path.push('.');
            }
            let shown = quote(&name.value);
            // Label keys contain dots themselves.
            let written = if shown.contains('.') {
                write!(path, "{shown:?}")
            } else {
                path.write_str(&shown)
            };
            debug_assert!(written.is_ok(), "writing to a string cannot fail");
            let at = Self {
                file: self.file,
                node,
                line: name.referenced.line(),
                path,
            };
            if !names.insert(name.value.as_str()) {
                return Err(at.refuse(Refusal::Duplicate));
            }
            entries.push((name.value.as_str(), at));
        }
        Ok(entries)
    }

    /// The mapping's fields, all of which must be `known`.
    pub(super) fn fields(&self, known: &[&str]) -> Result<Fields<'a>, ParseError> {
        self.fields_or(known, |_, field| Err(field.refuse(Refusal::UnknownField)))
    }

    /// The mapping's fields; those that are not `known` are for `other` to refuse.
    pub(super) fn fields_or(
        &self,
        known: &[&str],
        mut other: impl FnMut(&str, &Self) -> Result<(), ParseError>,
    ) -> Result<Fields<'a>, ParseError> {
        let entries = self.entries()?;
        for (name, field) in &entries {
            if !known.contains(name) {
                other(name, field)?;
            }
        }
        Ok(Fields {
            at: self.clone(),
            entries,
        })
    }
}

/// A mapping whose field names were checked.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    at: At<'a>,
    entries: Vec<(&'a str, At<'a>)>,
}

impl<'a> Fields<'a> {
    /// One field. Present with nothing in it counts as present: what that means is never guessed.
    pub(super) fn get(&self, name: &str) -> Option<&At<'a>> {
        self.entries
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, at)| at)
    }

    /// True if the field is there, whatever it holds.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// One field that must be there.
    pub(super) fn require(&self, name: &'static str) -> Result<&At<'a>, ParseError> {
        self.get(name)
            .ok_or_else(|| self.at.refuse(Refusal::Missing { name }))
    }

    /// True without any field.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
