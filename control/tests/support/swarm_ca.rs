//! Certificates as swarm makes them: ECDSA P-256, CN=swarm-ca roots, node certificates with role and node id as SANs.
#![allow(dead_code, reason = "not every test file uses everything")]

use std::{fs, path::Path, time::Duration};

use control::certs::Files;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, date_time_ymd,
};

/// A swarm's root CA.
pub(crate) struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pub(crate) pem: String,
}

/// What a node's certificate says.
#[derive(Clone, Debug)]
pub(crate) struct Spec<'a> {
    pub(crate) node: &'a str,
    /// `manager` or `worker`.
    pub(crate) role: &'a str,
    /// What the SAN says.
    pub(crate) san_role: &'a str,
    /// From now.
    pub(crate) valid_for: Duration,
    /// PEM of intermediates.
    pub(crate) intermediates: &'a str,
}

pub(crate) fn manager(node: &str) -> Spec<'_> {
    Spec { node, role: "manager", san_role: "manager", valid_for: Duration::from_secs(90 * 86400), intermediates: "" }
}

pub(crate) fn worker(node: &str) -> Spec<'_> {
    Spec { role: "worker", san_role: "worker", ..manager(node) }
}

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = Default::default();
        params.distinguished_name.push(DnType::CommonName, "swarm-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// The other CA's certificate signed by this one, as swarm makes it while the root CA is rotated.
    pub(crate) fn cross_sign(&self, other: &Ca) -> String {
        other.params.signed_by(&other.key, &self.issuer()).unwrap().pem()
    }

    /// Writes a node's certificate, its key and this CA into `directory`, as the engine does.
    pub(crate) fn issue(&self, directory: &Path, spec: &Spec<'_>) -> Files {
        let mut params =
            CertificateParams::new(vec![format!("swarm-{}", spec.san_role), spec.node.to_owned()]).unwrap();
        params.distinguished_name = Default::default();
        params.distinguished_name.push(DnType::OrganizationName, "cluster1");
        params.distinguished_name.push(DnType::OrganizationalUnitName, format!("swarm-{}", spec.role));
        params.distinguished_name.push(DnType::CommonName, spec.node);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let now = date_time_ymd(1970, 1, 1) + std::time::UNIX_EPOCH.elapsed().unwrap();
        params.not_before = now - Duration::from_secs(3600);
        // A second is the smallest unit; nothing is valid for no time at all.
        params.not_after = now + spec.valid_for - Duration::from_secs(2);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        let headers = "-----BEGIN PRIVATE KEY-----\nkek-version: 0\n\
                       raft-dek: EiAXfBD6TcH+pXs1aB1qnzOP0OKD2qc/3LNz7nJ7j5welQ==\n\n";
        let key = key.serialize_pem().replace("\r\n", "\n").replace("-----BEGIN PRIVATE KEY-----\n", headers);
        let files = Files::of_swarm(directory);
        fs::create_dir_all(directory.join("certificates")).unwrap();
        replace(&files.key, &key);
        replace(&files.cert, &(certificate.pem() + spec.intermediates));
        replace(&files.ca, &self.pem);
        files
    }
}

/// As the engine does it: whole or not at all.
pub(crate) fn replace(path: &Path, text: &str) {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, path).unwrap();
}
