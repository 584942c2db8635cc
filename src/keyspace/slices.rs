//! Endpoint slices: a zstd frame around a proto2 message. Only what decides whether a slice may be
//! taken is read; the rest is copied to the cache as it is.
//! Invariant: decoding takes at most [`ENDPOINT_SLICE_BYTES_MAX`] of memory and allocates nothing
//! per endpoint, whatever the value says.
use std::{
    io::Read as _,
    net::{Ipv4Addr, Ipv6Addr},
};

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::Rejection;
use crate::limits::{ENDPOINT_SLICE_BYTES_MAX, ENDPOINT_SLICE_FIELDS_MAX, VALUE_BYTES_MAX};

/// The largest window a frame may ask for; its memory is taken before any data comes.
const WINDOW_LOG_MAX: u32 = ENDPOINT_SLICE_BYTES_MAX.ilog2();

/// Field numbers of the slice.
const CLUSTER: u32 = 1;
const CLUSTER_ID: u32 = 2;
const NAMESPACE: u32 = 3;
const NAME: u32 = 4;
const ADDRESS_TYPE: u32 = 7;
const ENDPOINTS: u32 = 8;
/// Field number of an endpoint within [`ENDPOINTS`].
const ADDRESSES: u32 = 1;

/// An endpoint slice, `endpointslices/v1/<cluster>/<namespace>/<name>`. Its addresses were checked
/// and are not kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointSlice {
    /// Name of the cluster.
    pub cluster: String,
    /// Id of the cluster.
    pub cluster_id: u32,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name of the slice, not of its service.
    pub name: String,
    /// `IPv4` or `IPv6`.
    pub address_type: String,
}

impl EndpointSlice {
    /// Reads a value.
    ///
    /// # Errors
    /// [`Rejection::Oversize`] if the value is too long, compressed or not, or has too many fields;
    /// [`Rejection::Undecodable`] if it is no frame or no message; [`Rejection::InvalidField`] if the
    /// address type is unknown or an address is not of that type.
    pub fn decode(value: &[u8]) -> Result<Self, Rejection> {
        Self::decode_counting(value, &mut 0)
    }

    /// As [`Self::decode`]; adds to `bytes` how many the value expanded to, whatever comes of it.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_counting(value: &[u8], bytes: &mut usize) -> Result<Self, Rejection> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(Rejection::Oversize);
        }
        let mut message = Vec::new();
        let expanded = decompress(value, &mut message);
        *bytes += message.len();
        expanded?;
        let mut slice = Self::default();
        let mut fields = ENDPOINT_SLICE_FIELDS_MAX;
        for_each_field(&message, &mut fields, |_, field| {
            match field {
                Field::Bytes(CLUSTER, text) => slice.cluster = string(text),
                Field::Bytes(NAMESPACE, text) => slice.namespace = string(text),
                Field::Bytes(NAME, text) => slice.name = string(text),
                Field::Bytes(ADDRESS_TYPE, text) => slice.address_type = string(text),
                // Protobuf cuts off what a narrower type has no room for.
                Field::Number(CLUSTER_ID, id) => {
                    slice.cluster_id = u32::try_from(id & u64::from(u32::MAX)).unwrap_or_default();
                }
                Field::Bytes(..) | Field::Number(..) => {}
            }
            Ok(())
        })?;
        // The type may stand behind the endpoints.
        let parses = match slice.address_type.as_str() {
            "IPv4" => |text: &str| text.parse::<Ipv4Addr>().is_ok(),
            "IPv6" => |text: &str| text.parse::<Ipv6Addr>().is_ok(),
            _ => return Err(Rejection::InvalidField("addressType")),
        };
        let check = |_: &mut usize, field: Field<'_>| match field {
            Field::Bytes(ADDRESSES, address) if !str::from_utf8(address).is_ok_and(parses) => {
                Err(Rejection::InvalidField("endpoints.addresses"))
            }
            _ => Ok(()),
        };
        let mut fields = ENDPOINT_SLICE_FIELDS_MAX;
        for_each_field(&message, &mut fields, |fields, field| match field {
            Field::Bytes(ENDPOINTS, endpoint) => for_each_field(endpoint, fields, check),
            _ => Ok(()),
        })?;
        Ok(slice)
    }
}

fn string(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

fn decompress(value: &[u8], message: &mut Vec<u8>) -> Result<(), Rejection> {
    let undecodable = |error: std::io::Error| Rejection::Undecodable(format!("zstd: {error}"));
    let mut decoder = zstd::stream::read::Decoder::with_buffer(value).map_err(undecodable)?;
    decoder
        .window_log_max(WINDOW_LOG_MAX)
        .map_err(undecodable)?;
    let limit = ENDPOINT_SLICE_BYTES_MAX as u64 + 1;
    // What the header says may be wrong, but then nothing is written there.
    let declared = zstd::zstd_safe::get_frame_content_size(value);
    let declared = declared.unwrap_or_default().unwrap_or_default().min(limit);
    message.reserve_exact(usize::try_from(declared).unwrap_or_default());
    decoder
        .take(limit)
        .read_to_end(message)
        .map_err(undecodable)?;
    if message.len() > ENDPOINT_SLICE_BYTES_MAX {
        return Err(Rejection::Oversize);
    }
    Ok(())
}

/// A field by number. Other wire types are skipped.
enum Field<'a> {
    Bytes(u32, &'a [u8]),
    Number(u32, u64),
}

/// Reads a message field by field without building anything; takes each off `left`.
fn for_each_field<'a>(
    mut message: &'a [u8],
    left: &mut usize,
    mut each: impl FnMut(&mut usize, Field<'a>) -> Result<(), Rejection>,
) -> Result<(), Rejection> {
    let undecodable =
        |error: prost::DecodeError| Rejection::Undecodable(format!("protobuf: {error}"));
    while !message.is_empty() {
        *left = left.checked_sub(1).ok_or(Rejection::Oversize)?;
        let (number, wire_type) = decode_key(&mut message).map_err(undecodable)?;
        match wire_type {
            WireType::LengthDelimited => {
                let len = decode_varint(&mut message).map_err(undecodable)?;
                let Some((bytes, rest)) = usize::try_from(len)
                    .ok()
                    .and_then(|len| message.split_at_checked(len))
                else {
                    return Err(Rejection::Undecodable("protobuf: unexpected end".into()));
                };
                message = rest;
                each(left, Field::Bytes(number, bytes))?;
            }
            WireType::Varint => {
                let value = decode_varint(&mut message).map_err(undecodable)?;
                each(left, Field::Number(number, value))?;
            }
            other => {
                let context = DecodeContext::default();
                skip_field(other, number, &mut message, context).map_err(undecodable)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::encoding::{bytes, string, uint32};

    use super::*;
    use crate::types::{ClusterId, ClusterName, MaxClusters};

    /// A slice of west (id 2) with these addresses, before compression.
    fn message(address_type: &str, addresses: &[&str]) -> Vec<u8> {
        let mut message = Vec::new();
        for address in addresses {
            let mut endpoint = Vec::new();
            string::encode(ADDRESSES, &(*address).to_owned(), &mut endpoint);
            // A field that we don't read: `hostname`.
            string::encode(3, &"pod".to_owned(), &mut endpoint);
            bytes::encode(ENDPOINTS, &endpoint, &mut message);
        }
        let texts = [
            (CLUSTER, "west"),
            (NAMESPACE, "shop"),
            (NAME, "checkout-x"),
            (ADDRESS_TYPE, address_type),
        ];
        for (field, text) in texts {
            string::encode(field, &text.to_owned(), &mut message);
        }
        uint32::encode(CLUSTER_ID, &2, &mut message);
        message
    }

    fn compressed(message: &[u8]) -> Vec<u8> {
        zstd::encode_all(message, 3).unwrap()
    }

    fn read(message: &[u8]) -> Result<(), Rejection> {
        let west: ClusterName = "west".parse().unwrap();
        let id = ClusterId::new(2, MaxClusters::C255).unwrap();
        EndpointSlice::decode(&compressed(message))?.check(b"shop/checkout-x", &west, id)
    }

    #[test]
    fn slices_are_read_with_addresses_of_their_type_only() {
        assert_eq!(read(&message("IPv4", &["10.2.0.1", "10.2.0.2"])), Ok(()));
        assert_eq!(read(&message("IPv6", &["2001:db8::1"])), Ok(()));
        let addresses = Err(Rejection::InvalidField("endpoints.addresses"));
        assert_eq!(read(&message("IPv6", &["fe80::1%eth0"])), addresses);
        assert_eq!(read(&message("IPv4", &["10.2.0.1", "::1"])), addresses);
        let kind = Err(Rejection::InvalidField("addressType"));
        assert_eq!(read(&message("FQDN", &[])), kind);
        assert_eq!(read(&[]), kind);
    }

    #[test]
    fn a_slice_belongs_to_its_key_and_cluster() {
        let slice = EndpointSlice::decode(&compressed(&message("IPv4", &[]))).unwrap();
        let check = |key: &[u8], name: &str, id| {
            let id = ClusterId::new(id, MaxClusters::C255).unwrap();
            slice.check(key, &name.parse().unwrap(), id)
        };
        assert_eq!(check(b"shop/checkout-x", "west", 2), Ok(()));
        assert_eq!(check(b"shop/x", "west", 2), Err(Rejection::KeyMismatch));
        let foreign = check(b"shop/checkout-x", "east", 2);
        assert_eq!(foreign, Err(Rejection::ClusterMismatch));
        let id = check(b"shop/checkout-x", "west", 3);
        assert_eq!(id, Err(Rejection::ClusterIdMismatch(2)));
    }

    #[test]
    fn r23_what_expands_beyond_16_mib_is_dropped() {
        let bomb = compressed(&vec![0; ENDPOINT_SLICE_BYTES_MAX + 1]);
        assert!(bomb.len() < 10_000);
        assert_eq!(EndpointSlice::decode(&bomb), Err(Rejection::Oversize));
        // The frame's header asks for a window of gigabytes.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8];
        frame.extend_from_slice(&[0x01, 0x00, 0x00]);
        let refused = EndpointSlice::decode(&frame);
        assert!(
            matches!(refused, Err(Rejection::Undecodable(_))),
            "{refused:?}"
        );
    }

    #[test]
    fn a_slice_of_too_many_fields_is_dropped_wherever_they_are() {
        let fits = ["10.2.0.1"; ENDPOINT_SLICE_FIELDS_MAX / 3 - 2];
        assert_eq!(read(&message("IPv4", &fits)), Ok(()));
        let more = ["10.2.0.1"; ENDPOINT_SLICE_FIELDS_MAX / 3 + 1];
        assert_eq!(read(&message("IPv4", &more)), Err(Rejection::Oversize));
        let empty = [0x22, 0].repeat(ENDPOINT_SLICE_FIELDS_MAX + 1);
        assert_eq!(read(&empty), Err(Rejection::Oversize));
    }

    #[test]
    fn what_is_no_slice_is_undecodable() {
        let whole = compressed(&message("IPv4", &["10.2.0.1"]));
        let cut = &whole[..whole.len() - 3];
        for value in [
            &b""[..],
            b"{}",
            cut,
            &compressed(&[0x0a, 0xff]),
            &compressed(&[0x0f]),
        ] {
            let refused = EndpointSlice::decode(value);
            assert!(
                matches!(
                    &refused,
                    Err(Rejection::Undecodable(_) | Rejection::InvalidField(_))
                ),
                "{refused:?}"
            );
        }
    }
}
