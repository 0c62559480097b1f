//! Reads certificates and keys from PEM files as swarm writes them.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};

use crate::bounded;

/// Where a node's certificate, its key and the swarm's root CA are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The node's certificate, and intermediate ones after a rotation of the root CA (`--relay-cert`).
    pub cert: PathBuf,
    /// Its private key (`--relay-key`).
    pub key: PathBuf,
    /// The swarm's root CA certificates: one, or several while they are rotated (`--relay-ca`).
    pub ca: PathBuf,
}

impl Files {
    /// The engine's own, in its swarm directory (`/var/lib/docker/swarm`).
    pub fn of_swarm(directory: &Path) -> Self {
        let certificates = directory.join("certificates");
        Self {
            cert: certificates.join("swarm-node.crt"),
            key: certificates.join("swarm-node.key"),
            ca: certificates.join("swarm-root-ca.crt"),
        }
    }
}

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {why}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// An autolocked manager's key.
    #[error(
        "{0}: the key is encrypted (the swarm is autolocked); give the relay a certificate and key of its own that the \
         swarm's root CA has signed (--relay-cert, --relay-key), or switch autolock off (docker swarm update \
         --autolock=false)"
    )]
    Locked(PathBuf),
    /// Certificate and key do not fit, or TLS refuses them.
    #[error("{cert} with key {key}: {source}")]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What TLS says.
        source: rustls::Error,
    },
}

impl CertError {
    pub(super) fn content(path: &Path, why: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), why: why.into() }
    }
}

fn blocks(path: &Path) -> Result<Vec<pem::Pem>, CertError> {
    let text =
        bounded::read(path, bounded::SMALL).map_err(|source| CertError::Read { path: path.to_owned(), source })?;
    pem::parse_many(&text).map_err(|error| CertError::content(path, format!("not PEM: {error}")))
}

/// All certificates of a file, in its order; at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let found: Vec<_> = blocks(path)?
        .into_iter()
        .filter(|block| block.tag() == "CERTIFICATE")
        .map(|block| CertificateDer::from(block.into_contents()))
        .collect();
    if found.is_empty() {
        return Err(CertError::content(path, "there is no certificate in it"));
    }
    Ok(found)
}

/// The private key of a file. Managers' key files carry headers of their own (`raft-dek`, `kek-version`).
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, CertError> {
    for block in blocks(path)? {
        // RFC 1421's way of saying that a key in the older forms is encrypted.
        let encrypted = block.headers().get("Proc-Type").is_some_and(|value| value.contains("ENCRYPTED"));
        return match block.tag() {
            "ENCRYPTED PRIVATE KEY" => Err(CertError::Locked(path.to_owned())),
            _ if encrypted => Err(CertError::Locked(path.to_owned())),
            "PRIVATE KEY" => Ok(PrivatePkcs8KeyDer::from(block.into_contents()).into()),
            "EC PRIVATE KEY" => Ok(PrivateSec1KeyDer::from(block.into_contents()).into()),
            "RSA PRIVATE KEY" => Ok(PrivatePkcs1KeyDer::from(block.into_contents()).into()),
            _ => continue,
        };
    }
    Err(CertError::content(path, "there is no private key in it"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    // What an engine's manager wrote with autolock on (shortened).
    const LOCKED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nkek-version: 25\n\
        raft-dek: CAESMLf1CY2JDwmn6MGfgDb7Dtn3oU5Xa5IJ38r535De16eontWMhALEuWj3ISdsqmPWjxoYcWBxRX2nZLYRaG4YPi8fk/ra6ZKxf6Gk\n\
        \nMIHeMEkGCSqGSIb3DQEFDTA8MBsGCSqGSIb3DQEFDDAOBAi0S/VBu3JDBgICCAAw\n-----END ENCRYPTED PRIVATE KEY-----\n";
    const LOCKED_OLDER: &str = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\
        DEK-Info: AES-256-CBC,00112233445566778899aabbccddeeff\nkek-version: 7\n\nMIHe\n-----END EC PRIVATE KEY-----\n";

    fn read(text: &str) -> Result<PrivateKeyDer<'static>, CertError> {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("swarm-node.key");
        fs::write(&path, text).unwrap();
        key(&path)
    }

    fn block(tag: &str, headers: &str) -> String {
        format!("-----BEGIN {tag}-----\n{headers}AAECAw==\n-----END {tag}-----\n")
    }

    #[test]
    fn keys_come_in_three_forms_and_with_headers() {
        let headers = "kek-version: 0\nraft-dek: EiAXfBD6TcH+pXs1aB1qnzOP0OKD2qc/3LNz7nJ7j5welQ==\n\n";
        assert!(
            matches!(read(&block("PRIVATE KEY", headers)), Ok(PrivateKeyDer::Pkcs8(key)) if key.secret_pkcs8_der() == [0, 1, 2, 3])
        );
        assert!(matches!(read(&block("EC PRIVATE KEY", headers)), Ok(PrivateKeyDer::Sec1(_))));
        assert!(matches!(read(&block("RSA PRIVATE KEY", "")), Ok(PrivateKeyDer::Pkcs1(_))));
        let after_parameters = block("EC PARAMETERS", "") + &block("EC PRIVATE KEY", "");
        assert!(matches!(read(&after_parameters), Ok(PrivateKeyDer::Sec1(_))));
    }

    #[test]
    fn an_autolocked_key_is_refused_with_the_remedy() {
        for text in [LOCKED, LOCKED_OLDER] {
            let why = read(text).unwrap_err().to_string();
            assert!(why.contains("autolock") && why.contains("--relay-key"), "{why}");
        }
    }

    #[test]
    fn nonsense_is_named() {
        for text in ["", "no PEM at all", &block("CERTIFICATE", "")] {
            let why = read(text).unwrap_err().to_string();
            assert!(why.contains("swarm-node.key"), "{why}");
        }
        let missing = certificates(Path::new("/nonexistent/swarm-node.crt")).unwrap_err().to_string();
        assert!(missing.contains("cannot read /nonexistent/swarm-node.crt"), "{missing}");
    }
}
