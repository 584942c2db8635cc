//! `tombolo map`: how full the kernel's maps are.
use std::io::Write;

use clap::Subcommand;

use super::{Error, Output, client::Client, print};
use crate::enforcer::MapUse;

/// Maps of the datapath.
#[derive(Debug, Subcommand)]
pub(super) enum MapVerb {
    /// List them with their use and capacity; large ones are estimated to half a percent.
    #[command(visible_alias = "ls")]
    List(Output),
}

pub(super) async fn run(
    MapVerb::List(output): &MapVerb,
    client: &Client,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let maps: Vec<MapUse> = client.json("/v1/maps").await?;
    output.write(out, &maps, |maps| text(maps))
}

fn text(maps: &[MapUse]) -> String {
    let row = |map: &MapUse| {
        let tenths = u64::from(map.entries) * 1_000 / u64::from(map.capacity.max(1));
        vec![
            map.name.clone(),
            map.entries.to_string(),
            map.capacity.to_string(),
            format!("{}.{}%", tenths / 10, tenths % 10),
        ]
    };
    print::table(
        &["NAME", "ENTRIES", "CAPACITY", "USE"],
        maps.iter().map(row),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_told_in_tenths_of_a_percent() {
        let maps = [MapUse {
            name: "policy".to_owned(),
            entries: 1_049,
            capacity: 1_048_576,
        }];
        let expected = "NAME     ENTRIES   CAPACITY   USE\npolicy   1049      1048576    0.1%\n";
        assert_eq!(text(&maps), expected);
    }
}
