//! The whole of a large range in one answer and in pages pinned to a revision, and what a key costs
//! in memory. Both servers get the keys over the wire; answers are counted and not decoded.
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use etcd_client::proto::PbRangeRequest;

use crate::{
    figure::{Figure, Runs, alternate},
    raw::{Field, Raw, field, fields},
    world::{self, Certificates, Server},
};

/// Keys in a page, as Cilium asks for them.
const PAGE_KEYS: i64 = 256;
/// What a key may cost in memory over its own bytes.
const KEY_BYTES_AIM: f64 = 100.0;
/// Numbers of the fields read.
const RANGE_KVS: u64 = 2;
const KV_KEY: u64 = 1;

pub(crate) fn measure(runtime: &tokio::runtime::Runtime, quick: bool) -> Result<Vec<Figure>> {
    let (runs, addresses) = if quick { (3, 10_000) } else { (5, 100_000) };
    let dir = tempfile::tempdir()?;
    let certs = Certificates::make(dir.path())?.east;
    let records = world::records(addresses)?;
    let bytes: usize = records.iter().map(|(k, v)| k.len() + v.len()).sum();
    let servers = Server::both(runtime, &certs, &dir.path().join("etcd"))?;
    let mut per_key = Vec::new();
    for server in &servers {
        let before = server.resident_bytes()?;
        runtime.block_on(world::load(&certs, server.url(), &records))?;
        let more = server.resident_bytes()?.saturating_sub(before);
        per_key.push(Runs::new(vec![
            (more as f64 - bytes as f64) / records.len() as f64,
        ]));
    }
    let [ours, theirs] = &servers;
    let mut figures = Vec::new();
    for (name, limit, aim) in [
        ("range-unlimited", 0, 3.0),
        ("range-pages-256", PAGE_KEYS, 10.0),
    ] {
        let read = |server: &Server| {
            let keys = read_all(&certs, server.url(), limit, records.len());
            runtime.block_on(keys)
        };
        let (ours, theirs) = alternate(runs, |_| read(ours), |_| read(theirs))?;
        let (ours, theirs) = (Runs::new(ours), Runs::new(theirs));
        let figure = Figure::beside("etcd", format!("store/{name}"), "k/s", &ours, &theirs);
        figures.push(figure.ratio_at_least(aim));
    }
    if let [ours, theirs] = &per_key[..] {
        let name = "store/memory-per-key";
        figures.push(Figure::beside("etcd", name, "B", ours, theirs).at_most(KEY_BYTES_AIM));
    }
    Ok(figures)
}

/// Thousand keys a second.
async fn read_all(certs: &std::path::Path, url: &str, limit: i64, expected: usize) -> Result<f64> {
    let mut client = Raw::connect(certs, url).await?;
    let mut request = PbRangeRequest {
        key: b"cilium/".to_vec(),
        range_end: b"cilium0".to_vec(),
        limit,
        ..PbRangeRequest::default()
    };
    let start = Instant::now();
    let mut keys = 0;
    loop {
        let answer = client.range(request.clone()).await?;
        let mut page = 0;
        let mut last: &[u8] = &[];
        for (number, value) in fields(&answer) {
            match (number, value) {
                (1, Field::Bytes(header)) if request.revision == 0 => {
                    request.revision = revision(header)?;
                }
                (RANGE_KVS, Field::Bytes(kv)) => {
                    page += 1;
                    last = kv;
                }
                _ => {}
            }
        }
        keys += page;
        if limit == 0 || page < usize::try_from(limit)? {
            break;
        }
        request.key = field(last, KV_KEY)
            .context("a key-value without key")?
            .to_vec();
        request.key.push(0);
    }
    let took = start.elapsed().as_secs_f64();
    ensure!(keys == expected, "{keys} keys were read, not {expected}");
    Ok(keys as f64 / took / 1e3)
}

fn revision(header: &[u8]) -> Result<i64> {
    let number = fields(header).find_map(|(number, field)| match field {
        Field::Number(value) if number == 3 => Some(value),
        _ => None,
    });
    Ok(number.context("a header without revision")?.cast_signed())
}
