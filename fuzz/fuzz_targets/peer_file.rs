//! Peer files: what is accepted names an endpoint, and every refusal has a text.
#![no_main]
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tombolo::peer::ConfigFile;

fuzz_target!(
    |text: &str| match ConfigFile::parse(text, Path::new("/dir")) {
        Ok(file) => {
            assert!(!file.connect.endpoints.is_empty());
            let aliases = &file.connect.host_aliases;
            assert!(
                aliases
                    .iter()
                    .all(|(host, ips)| !host.is_empty() && !ips.is_empty())
            );
            if let Some(ca) = file.ca_file() {
                assert!(ca.is_absolute());
            }
            assert!(
                file.unknown
                    .iter()
                    .all(|key| *key == key.to_ascii_lowercase())
            );
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
);
