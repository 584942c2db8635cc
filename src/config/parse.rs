//! Values that more than one flag has, or that are more than a word.
use std::{path::PathBuf, time::Duration};

use crate::types::ClusterName;

/// The name of a cluster that has an id. Cilium calls a cluster `default` that is in no mesh.
pub(super) fn mesh_name(text: &str) -> Result<ClusterName, String> {
    if text == "default" {
        return Err("is the name of a cluster outside of any mesh; choose another one".to_owned());
    }
    text.parse()
        .map_err(|error: crate::types::ClusterNameError| error.to_string())
}

/// `etcd.config=FILE`
pub(super) fn etcd_config(text: &str) -> Result<PathBuf, &'static str> {
    let file = text.strip_prefix("etcd.config=").map(str::trim);
    let file = file.filter(|file| !file.is_empty());
    file.map(PathBuf::from).ok_or("must be etcd.config=FILE")
}

/// `host:port`, as a part of a URL.
pub(super) fn host_and_port(text: &str) -> Result<String, &'static str> {
    let wrong = "must be HOST:PORT, like 10.0.0.1:2379 or [2001:db8::1]:2379";
    let (host, port) = text.rsplit_once(':').ok_or(wrong)?;
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    let good = match bracketed {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(plain),
    };
    let port: u16 = port.parse().map_err(|_cause| wrong)?;
    (good && port != 0).then(|| text.to_owned()).ok_or(wrong)
}

/// Go's spelling: numbers with units, `15s`, `1h30m`, `500ms`; `0` needs none.
pub(crate) fn duration(text: &str) -> Result<Duration, &'static str> {
    let wrong = "is not a time like 15s, 10m or 1h30m";
    let mut total = Duration::ZERO;
    let mut rest = if text == "0" { "0s" } else { text };
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, more) = rest.split_at(digits);
        let letters = more.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, more) = more.split_at(letters);
        let number: u32 = number.parse().map_err(|_cause| wrong)?;
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(wrong),
        };
        let part = unit.checked_mul(number).ok_or(wrong)?;
        total = total.checked_add(part).ok_or(wrong)?;
        rest = more;
    }
    if text.is_empty() {
        return Err(wrong);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_spelled_as_in_go() {
        for (text, seconds) in [("15s", 15), ("10m", 600), ("1h30m", 5400), ("0", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for text in ["", "15", "s", "-1s", "1.5s", "1d", "4294967296s", "1s x"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn default_is_no_name_of_a_cluster_in_a_mesh() {
        assert!(mesh_name("default").is_err() && mesh_name("West").is_err());
        assert_eq!(mesh_name("default2").unwrap().as_str(), "default2");
    }

    #[test]
    fn an_advertised_address_has_a_host_and_a_port() {
        for text in ["10.0.0.1:2379", "node1.example:1", "[2001:db8::1]:2379"] {
            assert_eq!(host_and_port(text).as_deref(), Ok(text));
        }
        for text in [
            "",
            "10.0.0.1",
            ":2379",
            "h:0",
            "h:70000",
            "2001:db8::1:2379",
            "https://h:1",
        ] {
            assert!(host_and_port(text).is_err(), "{text}");
        }
    }
}
