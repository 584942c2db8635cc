//! Reads and writes JSON as Go's standard library does, for the record types of this module.
//!
//! Reading is lenient in the same places as Go (field names in any case, unknown fields, `null`,
//! duplicates, broken UTF-8) and strict in the same places (types, ranges, trailing text). Writing
//! yields Go's bytes: declaration order, no white space, map keys sorted, HTML characters escaped.
//! Nesting is bounded by the types; unknown fields are skipped without recursion.
use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData, net::IpAddr, str};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Go ignores surplus bits in the last character, and always pads.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// A type with a Go JSON form.
pub(super) trait Wire: Sized + Default {
    /// Reads one value; `None` for `null`, which leaves a field as it was.
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error>;

    /// Appends the JSON text.
    fn write(&self, out: &mut Vec<u8>);

    /// True if Go's `omitempty` leaves the value out.
    fn is_zero(&self) -> bool {
        false
    }
}

/// Decodes a whole document; a `null` document is the zero value.
pub(super) fn decode<T: Wire>(value: &[u8]) -> Result<T, serde_json::Error> {
    let text = match str::from_utf8(value) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(replace_invalid(value)),
    };
    match decode_text(&text) {
        // Go turns half a surrogate pair into U+FFFD; serde_json refuses it.
        Err(error) if error.is_syntax() && has_surrogate(&text) => {
            decode_text(&replace_lone_surrogates(&text)).or(Err(error))
        }
        result => result,
    }
}

/// Encodes a whole document.
pub(super) fn encode<T: Wire>(record: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    record.write(&mut out);
    out
}

fn decode_text<T: Wire>(text: &str) -> Result<T, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let record = T::read(&mut deserializer)?;
    deserializer.end()?;
    Ok(record.unwrap_or_default())
}

/// One U+FFFD for each byte that belongs to no character, as Go counts them.
fn replace_invalid(value: &[u8]) -> String {
    let mut text = String::with_capacity(value.len() + 16);
    for chunk in value.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

fn has_surrogate(text: &str) -> bool {
    text.contains("\\ud") || text.contains("\\uD")
}

fn replace_lone_surrogates(text: &str) -> String {
    let unit = |rest: &str| {
        let hex = rest.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(hex, 16).ok()
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let low = rest.get(6..).and_then(unit);
        let (piece, len) = match unit(rest) {
            Some(0xd800..=0xdbff) if matches!(low, Some(0xdc00..=0xdfff)) => (&rest[..12], 12),
            Some(0xd800..=0xdfff) => ("\\ufffd", 6),
            _ => {
                let escaped = rest[1..].chars().next().map_or(0, char::len_utf8);
                (&rest[..1 + escaped], 1 + escaped)
            }
        };
        out.push_str(piece);
        rest = &rest[len..];
    }
    out.push_str(rest);
    out
}

/// Reads the value behind a key into a field; `null` leaves it alone.
pub(super) fn read_into<'de, T: Wire, A: MapAccess<'de>>(
    field: &mut T,
    map: &mut A,
) -> Result<(), A::Error> {
    if let Some(value) = map.next_value_seed(Seed::<T>(PhantomData))? {
        *field = value;
    }
    Ok(())
}

struct Seed<T>(PhantomData<T>);

impl<'de, T: Wire> DeserializeSeed<'de> for Seed<T> {
    type Value = Option<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<T>, D::Error> {
        T::read(deserializer)
    }
}

/// Finds the field that a key names: exact first, then without regard to case.
pub(super) struct FieldName(pub(super) &'static [&'static str]);

impl<'de> DeserializeSeed<'de> for FieldName {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldName {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        let exact = self.0.iter().find(|name| **name == key);
        let found = exact.or_else(|| self.0.iter().find(|name| same_folded(name, key)));
        Ok(found.copied())
    }
}

/// Go folds by Unicode: two letters outside ASCII fold into it.
fn same_folded(name: &str, key: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(name.chars().map(fold))
}

/// Gives a struct its Go form: `"Name" => field`, or `"Name" => field omitempty`.
macro_rules! go_struct {
    (@omit) => { false };
    (@omit omitempty) => { true };
    ($type:ident { $($name:literal => $field:ident $($omit:ident)?,)+ }) => {
        impl $crate::keyspace::gojson::Wire for $type {
            fn read<'de, D: serde::Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Option<Self>, D::Error> {
                struct Fields;
                impl<'de> serde::de::Visitor<'de> for Fields {
                    type Value = Option<$type>;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_unit<E>(self) -> Result<Self::Value, E> {
                        Ok(None)
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(
                        self,
                        mut map: A,
                    ) -> Result<Self::Value, A::Error> {
                        use $crate::keyspace::gojson::{FieldName, read_into};
                        const NAMES: &[&str] = &[$($name),+];
                        let mut record = <$type>::default();
                        while let Some(name) = map.next_key_seed(FieldName(NAMES))? {
                            match name {
                                $(Some($name) => read_into(&mut record.$field, &mut map)?,)+
                                _ => drop(map.next_value::<serde::de::IgnoredAny>()?),
                            }
                        }
                        Ok(Some(record))
                    }
                }
                deserializer.deserialize_any(Fields)
            }

            fn write(&self, out: &mut Vec<u8>) {
                let start = out.len();
                $(if !(go_struct!(@omit $($omit)?)
                    && $crate::keyspace::gojson::Wire::is_zero(&self.$field))
                {
                    out.push(if out.len() == start { b'{' } else { b',' });
                    out.extend_from_slice(concat!("\"", $name, "\":").as_bytes());
                    $crate::keyspace::gojson::Wire::write(&self.$field, out);
                })+
                if out.len() == start {
                    out.push(b'{');
                }
                out.push(b'}');
            }
        }
    };
}
pub(super) use go_struct;

/// A scalar: one visitor method that takes it, and `null`.
macro_rules! scalar_read {
    ($type:ty, $expecting:literal, |$value:ident: $raw:ty| $method:ident => $body:expr) => {
        fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
            struct Scalar;
            impl Visitor<'_> for Scalar {
                type Value = Option<$type>;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str($expecting)
                }

                fn visit_unit<E>(self) -> Result<Self::Value, E> {
                    Ok(None)
                }

                fn $method<E: serde::de::Error>(self, $value: $raw) -> Result<Self::Value, E> {
                    $body.map(Some)
                }
            }
            deserializer.deserialize_any(Scalar)
        }
    };
}

macro_rules! unsigned {
    ($($type:ty, $expecting:literal;)+) => {$(
        impl Wire for $type {
            scalar_read!($type, $expecting, |value: u64| visit_u64 => {
                <$type>::try_from(value).map_err(|_| E::custom(concat!("number is not ", $expecting)))
            });

            fn write(&self, out: &mut Vec<u8>) {
                write_text(self, out);
            }

            fn is_zero(&self) -> bool {
                *self == 0
            }
        }
    )+};
}

unsigned! {
    u8, "an 8-bit unsigned number";
    u16, "a 16-bit unsigned number";
    u32, "a 32-bit unsigned number";
}

impl Wire for bool {
    scalar_read!(bool, "true or false", |value: bool| visit_bool => Ok(value));

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if *self { b"true" } else { b"false" });
    }

    fn is_zero(&self) -> bool {
        !self
    }
}

/// A pointer to a bool: present or not.
impl Wire for Option<bool> {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        Ok(Some(bool::read(deserializer)?))
    }

    fn write(&self, out: &mut Vec<u8>) {
        write_pointer(self.as_ref(), out);
    }

    fn is_zero(&self) -> bool {
        self.is_none()
    }
}

impl Wire for String {
    scalar_read!(String, "a string", |value: &str| visit_str => Ok(value.to_owned()));

    fn write(&self, out: &mut Vec<u8>) {
        write_string(self, out);
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

/// Text, empty if unset. An IPv4-mapped address is its IPv4 address.
impl Wire for Option<IpAddr> {
    scalar_read!(Option<IpAddr>, "an IP address", |value: &str| visit_str => match value {
        "" => Ok(None),
        text => parse_ip(text).map(Some).ok_or_else(|| E::custom("invalid IP address")),
    });

    fn write(&self, out: &mut Vec<u8>) {
        out.push(b'"');
        if let Some(ip) = self {
            write_text(&ip.to_canonical(), out);
        }
        out.push(b'"');
    }
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

/// The bytes of an address mask, base64 on the wire; unset is `null`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mask(pub Option<Box<[u8]>>);

impl Mask {
    /// The mask of a prefix length within 4 or 16 bytes.
    #[must_use]
    pub fn new(ones: u8, bytes: usize) -> Self {
        let byte = |index: usize| {
            let ones = usize::from(ones).saturating_sub(index * 8).min(8);
            u8::try_from(0xff00_u16 >> ones & 0xff).unwrap_or(0)
        };
        Self(Some((0..bytes).map(byte).collect()))
    }

    /// Prefix length and total bits, if the mask is 4 or 16 bytes of ones followed by zeros.
    #[must_use]
    pub fn size(&self) -> Option<(u8, u8)> {
        let bytes = self.0.as_deref()?;
        if !matches!(bytes.len(), 4 | 16) {
            return None;
        }
        let ones: u32 = bytes.iter().map(|b| b.count_ones()).sum();
        let ones = u8::try_from(ones).ok()?;
        let bits = u8::try_from(bytes.len() * 8).ok()?;
        (Self::new(ones, bytes.len()) == *self).then_some((ones, bits))
    }
}

impl Wire for Mask {
    scalar_read!(Mask, "a base64 mask", |value: &str| visit_str => {
        // Go's decoder skips line breaks.
        let text: Cow<'_, str> = if value.contains(['\r', '\n']) {
            value.replace(['\r', '\n'], "").into()
        } else {
            value.into()
        };
        let bytes = BASE64.decode(text.as_ref());
        bytes.map(|bytes| Mask(Some(bytes.into()))).map_err(|error| E::custom(error))
    });

    fn write(&self, out: &mut Vec<u8>) {
        match &self.0 {
            None => out.extend_from_slice(b"null"),
            Some(bytes) => write_string(&BASE64.encode(bytes), out),
        }
    }
}

/// Slices: `nil` is `null`, and an empty one `[]`.
impl<T: Wire> Wire for Option<Vec<T>> {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        Ok(Some(Vec::read(deserializer)?))
    }

    fn write(&self, out: &mut Vec<u8>) {
        write_pointer(self.as_ref(), out);
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        struct Items<T>(PhantomData<T>);
        impl<'de, T: Wire> Visitor<'de> for Items<T> {
            type Value = Option<Vec<T>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element_seed(Seed::<T>(PhantomData))? {
                    items.push(item.unwrap_or_default());
                }
                Ok(Some(items))
            }
        }
        deserializer.deserialize_any(Items(PhantomData))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        for (index, item) in self.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            item.write(out);
        }
        out.push(b']');
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

/// A map key: any text, or an address.
pub(super) trait WireKey: Ord + Sized {
    /// The key that a text means; `None` rejects the document.
    fn from_text(text: &str) -> Option<Self>;
    /// The text form.
    fn to_text(&self) -> Cow<'_, str>;
}

impl WireKey for String {
    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }

    fn to_text(&self) -> Cow<'_, str> {
        self.as_str().into()
    }
}

impl WireKey for IpAddr {
    fn from_text(text: &str) -> Option<Self> {
        parse_ip(text)
    }

    fn to_text(&self) -> Cow<'_, str> {
        self.to_string().into()
    }
}

struct KeySeed<K>(PhantomData<K>);

impl<'de, K: WireKey> DeserializeSeed<'de> for KeySeed<K> {
    type Value = K;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<K, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<K: WireKey> Visitor<'_> for KeySeed<K> {
    type Value = K;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map key")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<K, E> {
        K::from_text(text).ok_or_else(|| E::custom("invalid IP address as map key"))
    }
}

/// Maps: `nil` is `null`, and an empty one `{}`.
impl<K: WireKey, V: Wire> Wire for Option<BTreeMap<K, V>> {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        Ok(Some(BTreeMap::read(deserializer)?))
    }

    fn write(&self, out: &mut Vec<u8>) {
        write_pointer(self.as_ref(), out);
    }
}

impl<K: WireKey, V: Wire> Wire for BTreeMap<K, V> {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        struct Entries<K, V>(PhantomData<(K, V)>);
        impl<'de, K: WireKey, V: Wire> Visitor<'de> for Entries<K, V> {
            type Value = Option<BTreeMap<K, V>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key_seed(KeySeed::<K>(PhantomData))? {
                    let value = map.next_value_seed(Seed::<V>(PhantomData))?;
                    entries.insert(key, value.unwrap_or_default());
                }
                Ok(Some(entries))
            }
        }
        deserializer.deserialize_any(Entries(PhantomData))
    }

    fn write(&self, out: &mut Vec<u8>) {
        // Go sorts map keys as text, whatever they are here.
        let mut entries: Vec<_> = self
            .iter()
            .map(|(key, value)| (key.to_text(), value))
            .collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        out.push(b'{');
        for (index, (key, value)) in entries.into_iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_string(&key, out);
            out.push(b':');
            value.write(out);
        }
        out.push(b'}');
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

/// A value that Go may hold as `nil`.
pub(super) fn write_pointer<T: Wire>(value: Option<&T>, out: &mut Vec<u8>) {
    match value {
        Some(value) => value.write(out),
        None => out.extend_from_slice(b"null"),
    }
}

fn write_text(value: &impl fmt::Display, out: &mut Vec<u8>) {
    use std::io::Write as _;
    // Writing to a vector can't fail.
    write!(out, "{value}").ok();
}

/// Escapes what Go's default encoder escapes, HTML characters included.
fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                write_text(&format_args!("\\u{:04x}", u32::from(c)), out);
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}
