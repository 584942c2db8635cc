//! The layouts of version 1, and what their rows are today.
use super::copy::Convert;

/// What a map is filled with.
pub(super) enum Origin {
    /// The former map itself: its rows mean the same.
    Shared,
    /// The rows of a former map.
    Rows(&'static str, Convert),
    /// Nothing.
    Nothing,
}

/// Where the rows of the map `name` come from.
pub(super) fn origin(name: &str) -> Origin {
    match name {
        "ipcache_exact" | "ipcache_lpm" | "ratelimit" => Origin::Shared,
        "endpoints" => Origin::Rows("endpoints", endpoint),
        "policy" => Origin::Rows("policy", policy),
        "config" => Origin::Rows("config", config),
        "conntrack_v4" => Origin::Rows("conntrack", flow_v4),
        "conntrack_v6" => Origin::Rows("conntrack", flow_v6),
        _ => Origin::Nothing,
    }
}

type Row = (Vec<u8>, Vec<u8>);

/// Endpoint, identity, flags, number of addresses; addresses. Which levels have entries is not
/// known row by row: all that version 1 could have are asked until the agent has counted them.
fn endpoint(key: &[u8], value: &[u8]) -> Option<Row> {
    const LEVELS: u32 = 1 | 1 << 16 | 1 << 17;
    let (head, addresses) = value.split_at_checked(16)?;
    let slot = 0_u32.to_ne_bytes();
    let levels = [LEVELS; 4].map(u32::to_ne_bytes).concat();
    let value = [head, &slot, &levels, &[0; 4], addresses].concat();
    Some((key.to_vec(), value))
}

/// Endpoint, identity, port, protocol, direction: all ports were port 0.
fn policy(key: &[u8], value: &[u8]) -> Option<Row> {
    let mut key: [u8; 12] = key.try_into().ok()?;
    let port_bits = if key[8..10] == [0; 2] { 0 } else { 16 };
    key[11] = key[11] << 7 | port_bits;
    Some((key.to_vec(), value.to_vec()))
}

/// Epoch; the flags were padding.
fn config(key: &[u8], value: &[u8]) -> Option<Row> {
    Some((key.to_vec(), value.to_vec()))
}

fn flow_v4(key: &[u8], value: &[u8]) -> Option<Row> {
    let (key, value) = flow(key, value)?;
    let mapped = key[4..16].ends_with(&[0xff; 2]) && key[4..14] == [0; 10];
    mapped.then(|| {
        let (remote, local) = (&key[16..20], &key[32..36]);
        ([&key[..4], remote, local, &key[36..]].concat(), value)
    })
}

fn flow_v6(key: &[u8], value: &[u8]) -> Option<Row> {
    let (key, value) = flow(key, value)?;
    let mapped = key[4..16].ends_with(&[0xff; 2]) && key[4..14] == [0; 10];
    (!mapped).then(|| (key.to_vec(), value))
}

/// From source, destination, ports, protocol, direction, endpoint to the endpoint's view. An echo
/// had its id on both sides; now the side that is asked has the request's type. Flows count as
/// answered: what was opened and forgotten goes with its idle time.
fn flow(key: &[u8], value: &[u8]) -> Option<([u8; 44], Vec<u8>)> {
    const REPLIED: u8 = 1;
    const DENIED: u8 = 8;
    let old: &[u8; 44] = key.try_into().ok()?;
    let value: &[u8; 16] = value.try_into().ok()?;
    let (proto, direction) = (old[36], old[37]);
    let mut destination_port = [old[34], old[35]];
    match proto {
        1 => destination_port = 8_u16.to_be_bytes(),
        58 => destination_port = 128_u16.to_be_bytes(),
        _ => {}
    }
    let (source, destination, source_port) = (&old[..16], &old[16..32], &old[32..34]);
    let (remote, local, remote_port, local_port) = match direction {
        0 => (source, destination, source_port, &destination_port[..]),
        _ => (destination, source, &destination_port[..], source_port),
    };
    let new = [
        &old[40..44],
        remote,
        local,
        remote_port,
        local_port,
        &[proto, 0, 0, 0],
    ]
    .concat();
    let denied = value[12] & 1 != 0;
    let mut epoch = u32::from_ne_bytes(*value[8..].first_chunk()?);
    if denied {
        epoch = epoch.wrapping_sub(1);
    }
    let flags = REPLIED | if denied { DENIED } else { 0 };
    // Rule and identity are not known.
    let value = [
        &value[..8],
        &epoch.to_ne_bytes(),
        &[0; 8],
        &[direction, flags, 0, 0],
    ]
    .concat();
    Some((new.try_into().ok()?, value))
}
