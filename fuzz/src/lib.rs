//! What the fuzz targets share: the peer whose data they play.
use tombolo::types::{ClusterId, ClusterName, MaxClusters};

/// The mesh's size in all targets.
pub const MAX: MaxClusters = MaxClusters::C255;

/// A cluster by name; the names are constants.
///
/// # Panics
/// If the name can be no cluster's.
#[must_use]
pub fn name(text: &str) -> ClusterName {
    text.parse().expect("a name of a cluster")
}

/// A cluster id; the numbers are constants.
///
/// # Panics
/// If no cluster of the mesh can have it.
#[must_use]
pub fn id(number: u32) -> ClusterId {
    ClusterId::new(number, MAX).expect("an id of a cluster")
}

/// An input of two parts: the key behind its prefix is the first line, the value is the rest.
#[must_use]
pub fn entry(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n');
    end.map_or((data, &[]), |end| (&data[..end], &data[end + 1..]))
}
