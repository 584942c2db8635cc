//! One version of one key as one shared allocation: etcd's `mvccpb.KeyValue` in protobuf encoding,
//! made once at the put and copied from there into every answer and event that carries it.
//! Always true: the bytes are a valid message whose first field is the key; they never change.
//! A deletion is a record, too, as in etcd: the key and its revision, with version 0.
use std::fmt;

use bytes::Bytes;
use triomphe::ThinArc;

use super::KeyValue;

/// Field tags, `number << 3 | wire type`.
const KEY: u8 = 0x0a;
const CREATE_REVISION: u8 = 0x10;
const MOD_REVISION: u8 = 0x18;
const VERSION: u8 = 0x20;
const VALUE: u8 = 0x2a;
const LEASE: u8 = 0x30;

/// A version of a key, or its deletion. Clones share the bytes; the handle is one pointer.
#[derive(Clone)]
pub struct Record(ThinArc<(), u8>);

/// What a record says; the meaning of each is [`KeyValue`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Fields<'a> {
    pub(super) key: &'a [u8],
    pub(super) create_revision: i64,
    pub(super) mod_revision: i64,
    pub(super) version: i64,
    pub(super) value: &'a [u8],
    pub(super) lease: i64,
}

impl Record {
    /// A present key.
    pub(super) fn new(fields: &Fields<'_>) -> Self {
        // Tags and numbers take at most this much.
        let mut bytes = Vec::with_capacity(fields.key.len() + fields.value.len() + 56);
        put_bytes(&mut bytes, KEY, fields.key);
        put_number(&mut bytes, CREATE_REVISION, fields.create_revision);
        put_number(&mut bytes, MOD_REVISION, fields.mod_revision);
        put_number(&mut bytes, VERSION, fields.version);
        put_bytes(&mut bytes, VALUE, fields.value);
        put_number(&mut bytes, LEASE, fields.lease);
        Self(ThinArc::from_header_and_slice((), &bytes))
    }

    /// The deletion of a key.
    pub(super) fn tombstone(key: &[u8], mod_revision: i64) -> Self {
        Self::new(&Fields {
            key,
            mod_revision,
            ..Fields::default()
        })
    }

    /// The whole message.
    #[must_use]
    pub fn encoded(&self) -> &[u8] {
        &self.0.slice
    }

    /// The message without its value, as what precedes the value and what follows it.
    #[must_use]
    pub fn encoded_without_value(&self) -> (&[u8], &[u8]) {
        let bytes = self.encoded();
        let value = self.value();
        if value.is_empty() {
            return (bytes, &[]);
        }
        let end = offset(bytes, value) + value.len();
        let tag = 1 + varint_len(value.len() as u64);
        (&bytes[..end - value.len() - tag], &bytes[end..])
    }

    /// Never empty.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        let (len, rest) = take_varint(&self.encoded()[1..]);
        rest.split_at(as_len(len)).0
    }

    /// Empty for a deletion, and for keys put without a value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        self.fields().value
    }

    /// Revision of the change that the record stands for.
    #[must_use]
    pub fn mod_revision(&self) -> i64 {
        self.fields().mod_revision
    }

    /// The lease the key dies with; 0 for none.
    #[must_use]
    pub fn lease(&self) -> i64 {
        self.fields().lease
    }

    /// True for the deletion of a key.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.fields().version == 0
    }

    /// Key and value length in bytes.
    pub(super) fn len_bytes(&self) -> usize {
        let fields = self.fields();
        fields.key.len() + fields.value.len()
    }

    /// Everything in one pass.
    pub(super) fn fields(&self) -> Fields<'_> {
        let mut fields = Fields::default();
        let mut rest = self.encoded();
        while let Some((tag, after)) = rest.split_first() {
            let (number, after) = take_varint(after);
            rest = after;
            match *tag {
                KEY => (fields.key, rest) = after.split_at(as_len(number)),
                VALUE => (fields.value, rest) = after.split_at(as_len(number)),
                CREATE_REVISION => fields.create_revision = number.cast_signed(),
                MOD_REVISION => fields.mod_revision = number.cast_signed(),
                VERSION => fields.version = number.cast_signed(),
                LEASE => fields.lease = number.cast_signed(),
                _ => debug_assert!(false, "tag {tag} is not ours"),
            }
        }
        fields
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fields().fmt(f)
    }
}

impl AsRef<[u8]> for Record {
    fn as_ref(&self) -> &[u8] {
        self.encoded()
    }
}

impl From<&Record> for KeyValue {
    /// Key and value share the record's allocation.
    fn from(record: &Record) -> Self {
        let fields = record.fields();
        let all = record.encoded();
        let bytes = Bytes::from_owner(record.clone());
        let slice = |part: &[u8]| {
            if part.is_empty() {
                return Bytes::new();
            }
            let from = offset(all, part);
            bytes.slice(from..from + part.len())
        };
        Self {
            key: slice(fields.key),
            value: slice(fields.value),
            create_revision: fields.create_revision,
            mod_revision: fields.mod_revision,
            version: fields.version,
            lease: fields.lease,
        }
    }
}

/// Where `part`, which was cut from `whole`, begins.
fn offset(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - whole.as_ptr().addr()
}

/// Protobuf leaves out what is empty.
fn put_bytes(buffer: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        buffer.push(tag);
        put_varint(buffer, bytes.len() as u64);
        buffer.extend_from_slice(bytes);
    }
}

/// Protobuf leaves out zero.
fn put_number(buffer: &mut Vec<u8>, tag: u8, number: i64) {
    if number != 0 {
        buffer.push(tag);
        put_varint(buffer, number.cast_unsigned());
    }
}

/// Seven bits a byte, the lowest first; the eighth says that another byte follows.
fn put_varint(buffer: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        buffer.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    buffer.push(number.to_le_bytes()[0]);
}

/// The number at the front, and what follows it.
fn take_varint(bytes: &[u8]) -> (u64, &[u8]) {
    let mut number = 0;
    for (n, byte) in bytes.iter().enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return (number, &bytes[n + 1..]);
        }
    }
    (number, &[])
}

/// How many bytes a number takes.
fn varint_len(number: u64) -> usize {
    let bits = u64::BITS - (number | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Lengths were `usize` when they were written.
fn as_len(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn a_record_yields_what_it_was_made_of(
            key in vec(any::<u8>(), 1..300),
            value in vec(any::<u8>(), 0..20_000),
            numbers in any::<[i64; 4]>(),
        ) {
            let [create_revision, mod_revision, version, lease] = numbers;
            let (key, value) = (&key[..], &value[..]);
            let fields = Fields { key, create_revision, mod_revision, version, value, lease };
            let record = Record::new(&fields);
            prop_assert_eq!(record.fields(), fields);
            prop_assert_eq!(record.key(), key);
            let kv = KeyValue::from(&record);
            prop_assert_eq!((&kv.key[..], &kv.value[..]), (key, value));
            let (before, after) = record.encoded_without_value();
            let bare = Record::new(&Fields { value: &[], ..fields });
            prop_assert_eq!([before, after].concat(), bare.encoded());
        }
    }

    #[test]
    fn a_tombstone_has_its_key_and_revision_only() {
        let record = Record::tombstone(b"a", 300);
        assert!(record.is_tombstone());
        assert_eq!(record.encoded(), [0x0a, 1, b'a', 0x18, 0xac, 0x02]);
    }

    #[test]
    fn a_handle_is_one_pointer_also_when_it_is_optional() {
        assert_eq!(size_of::<Option<Record>>(), size_of::<usize>());
    }
}
