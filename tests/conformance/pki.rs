//! Certificates of one cluster's etcd: a CA, the server, and a client for each etcd user.
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};

/// Files in a directory of its own; gone when dropped.
pub(crate) struct Pki(tempfile::TempDir);

impl Pki {
    /// A server at `address`, and clients with these common names.
    pub(crate) fn new(address: IpAddr, clients: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(dir.path().join("ca.crt"), pem).unwrap();
        let issuer = Issuer::new(params, key);
        for name in clients.iter().chain(&["server"]) {
            issue(dir.path(), &issuer, name, address);
        }
        Self(dir)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }
}

/// Writes `<name>.crt` and `<name>.key`, fit for server and client.
fn issue(dir: &Path, issuer: &Issuer<'_, KeyPair>, name: &str, address: IpAddr) {
    let names = vec!["localhost".to_owned(), address.to_string()];
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let pem = params.signed_by(&key, issuer).unwrap().pem();
    std::fs::write(dir.join(format!("{name}.crt")), pem).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}
