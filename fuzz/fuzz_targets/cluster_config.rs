//! Cluster configurations: what decodes is written so that it decodes to the same, and is accepted
//! with an id of the mesh only.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tombolo::{keyspace::ClusterConfig, types::MaxClusters};

fuzz_target!(|value: &[u8]| {
    if let Ok(config) = ClusterConfig::decode(value) {
        assert_eq!(
            ClusterConfig::decode(&config.encode()).as_ref(),
            Ok(&config)
        );
        for max in [MaxClusters::C255, MaxClusters::C511] {
            if let Ok(id) = config.accept(max) {
                assert_eq!(id.get(), config.id);
                assert!((1..=max.max_id()).contains(&config.id));
            }
        }
    }
});
