//! The certificates that a peer file names.
use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use super::Check;
use crate::{
    cli::print,
    tls::{self, Reason, inspect},
};

/// A certificate that ends sooner is worth a warning: time enough to renew by hand.
const EXPIRES_SOON: Duration = Duration::from_secs(30 * 86_400);

impl Check<'_> {
    /// Those that some endpoint would use.
    pub(super) fn certificates(&mut self, now: SystemTime) {
        let connect = &self.file.connect;
        if !connect
            .endpoints
            .iter()
            .any(|endpoint| connect.uses_tls(endpoint))
        {
            return;
        }
        let tls = &connect.tls;
        match &tls.ca {
            Some(ca) => self.ca(ca, now),
            None if !tls.insecure_skip_verify => self.warning(
                "trusted-ca-file",
                "is missing, so the system's CAs vouch for the peer",
                "name the CA bundle of the peer",
            ),
            None => {}
        }
        match &tls.identity {
            Some((cert, key)) => self.client(cert, key, now),
            None if connect.user.is_none() => self.warning(
                "cert-file",
                "is missing, so the peer won't know who we are",
                "on the peer: tombolo certs issue; it makes certificate, key and file",
            ),
            None => {}
        }
    }

    fn ca(&mut self, ca: &Path, now: SystemTime) {
        match inspect::check_ca(ca) {
            Ok(()) => self.soon("trusted-ca-file", ca, now),
            Err(error) => self.tls_error("trusted-ca-file", error),
        }
    }

    fn client(&mut self, cert: &Path, key: &Path, now: SystemTime) {
        let name = match inspect::check_client(cert, key) {
            Ok(name) => name,
            Err(error) => {
                let of_key = match &error {
                    tls::Error::Missing { path }
                    | tls::Error::Read { path, .. }
                    | tls::Error::Pem { path, .. } => path == key,
                    error => error.reason() == Reason::KeyMismatch,
                };
                let key = if of_key { "key-file" } else { "cert-file" };
                return self.tls_error(key, error);
            }
        };
        self.soon("cert-file", cert, now);
        if let Some(own) = &self.around.own.name
            && name.as_str() != "remote"
            && name.as_str() != format!("remote-{own}")
        {
            let reason = format!("the certificate is for {name}");
            let next = format!(
                "peers know us as remote-{own} or remote; there: tombolo certs issue --peer {own}"
            );
            self.warning("cert-file", reason, next);
        }
        let Some(ca) = &self.file.connect.tls.ca else {
            return;
        };
        // A CA file that can't be used was told already.
        if inspect::check_ca(ca).is_ok()
            && let Err(error) = inspect::check_issuer(cert, ca, now)
        {
            let reason = format!("no CA in {} issued it: {}", ca.display(), error.reason());
            let next = "that may be meant, if the peer trusts the CA that did; else put its chain \
                        into cert-file, or take the file that the peer issued";
            self.warning("cert-file", reason, next);
        }
    }

    fn tls_error(&mut self, key: &str, error: tls::Error) {
        let next = error.reason().next_step();
        self.error(key, format!("{:#}", anyhow::Error::from(error)), next);
    }

    fn soon(&mut self, key: &str, path: &Path, now: SystemTime) {
        let soon = (now + EXPIRES_SOON).duration_since(SystemTime::UNIX_EPOCH);
        let soon = i64::try_from(soon.unwrap_or_default().as_secs()).unwrap_or(i64::MAX);
        let found = inspect::Certificate::all_of(path).unwrap_or_default();
        for certificate in found.iter().filter(|found| found.not_after < soon) {
            let until = print::date(certificate.not_after);
            let reason = format!("{} expires at {until}", certificate.subject);
            self.warning(key, reason, Reason::Expired.next_step());
        }
    }
}
