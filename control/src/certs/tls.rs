//! TLS made of the swarm's certificates.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};

use super::{
    files::{self, CertError, Files},
    identity::Identity,
};

/// The name that only managers' certificates carry.
pub fn server_name() -> ServerName<'static> {
    const NAME: &str = "swarm-manager";
    ServerName::try_from(NAME).unwrap_or_else(|_| unreachable!("{NAME} is a DNS name"))
}

/// Whom this node trusts.
///
/// # Errors
/// When the file can't be read or holds something that can't be a root CA.
pub fn root_store(path: &Path) -> Result<RootCertStore, CertError> {
    let mut roots = RootCertStore::empty();
    for certificate in files::certificates(path)? {
        roots.add(certificate).map_err(|error| CertError::content(path, format!("not a CA's certificate: {error}")))?;
    }
    Ok(roots)
}

/// A node's certificate and key with the root CAs it trusts, as TLS settings.
#[derive(Debug)]
pub struct Credentials {
    /// Who this node is.
    pub me: Identity,
    /// Takes clients with a certificate of the swarm; HTTP/2 only, TLS 1.3 only, no resumption.
    pub server: Arc<ServerConfig>,
    /// Shows this node's certificate and takes servers of the swarm; to be asked for [`server_name`].
    pub client: Arc<ClientConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Credentials {
    /// Reads and checks all three files.
    ///
    /// # Errors
    /// What is wrong with which file, and the remedy.
    pub fn load(files: &Files) -> Result<Self, CertError> {
        let chain = files::certificates(&files.cert)?;
        let key = files::key(&files.key)?;
        let roots = Arc::new(root_store(&files.ca)?);
        let leaf = chain.first().map_or(&[][..], |leaf| leaf);
        let me = Identity::of(leaf).map_err(|why| CertError::content(&files.cert, why))?;
        let unusable = |source| CertError::Unusable { cert: files.cert.clone(), key: files.key.clone(), source };

        let provider = provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| CertError::content(&files.ca, error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unusable)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would skip the verification of the client.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(unusable)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Self { me, server: Arc::new(server), client: Arc::new(client), verifier })
    }

    /// Whether a client that showed `chain` would be let in now.
    ///
    /// # Errors
    /// Why not: expired, or signed by a root CA that is trusted no more.
    pub fn still_trusts(&self, chain: &[CertificateDer<'static>], now: UnixTime) -> Result<(), rustls::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verifier.verify_client_cert(leaf, intermediates, now).map(drop)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
