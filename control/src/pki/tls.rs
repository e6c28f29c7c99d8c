//! TLS 1.3 with the cluster's certificates.
//!
//! A node's certificate can be replaced while the server runs: every new handshake uses the newest
//! one.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{ring as ring_provider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::sync::watch;

use super::{
    Identity, PkiError,
    verify::{ClientVerifier, CurrentVerifiers, ServerVerifier, Verifiers, provider},
};
use crate::host::WallClock;

/// gRPC is HTTP/2.
const ALPN: &[u8] = b"h2";

/// This node's TLS configuration as a server and as a client. Cheap to clone; [`Self::replace`]
/// affects all clones.
#[derive(Debug, Clone)]
pub struct Credentials {
    live: Arc<Live>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    renewal_client: Arc<ClientConfig>,
}

/// What the handshakes use now.
#[derive(Debug)]
struct Live {
    current: watch::Sender<Current>,
}

#[derive(Debug, Clone)]
struct Current {
    identity: Arc<Identity>,
    certified: Arc<CertifiedKey>,
    verifiers: Verifiers,
}

impl Credentials {
    pub fn new(identity: Arc<Identity>) -> Result<Self, PkiError> {
        let live = Arc::new(Live { current: watch::Sender::new(Current::new(identity)?) });
        let mut server = ServerConfig::builder_with_details(provider(), Arc::new(WallClock))
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| PkiError::new("set up TLS", e))?
            .with_client_cert_verifier(Arc::new(ClientVerifier(live.clone())))
            .with_cert_resolver(live.clone());
        server.alpn_protocols = vec![ALPN.to_vec()];
        let client = Arc::new(client_of(&live, false)?);
        let renewal_client = Arc::new(client_of(&live, true)?);
        Ok(Self { live, server: Arc::new(server), client, renewal_client })
    }

    pub fn identity(&self) -> Arc<Identity> {
        self.live.current().identity
    }

    /// Uses `identity` from the next handshake on, and trusts its roots.
    pub fn replace(&self, identity: Arc<Identity>) -> Result<(), PkiError> {
        let current = Current::new(identity)?;
        self.live.current.send_replace(current);
        Ok(())
    }

    /// Resolves when another identity than `known` is in use.
    pub async fn wait_until_replaced(&self, known: &Arc<Identity>) {
        let mut current = self.live.current.subscribe();
        // The sender is in `self`, so this resolves with a change only.
        let _ = current.wait_for(|current| !Arc::ptr_eq(&current.identity, known)).await;
    }

    /// Accepts expired certificates of clients, so that these can renew them. The RPC layer must
    /// refuse their other calls.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    pub fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    /// As [`Self::client`], and accepts a server whose certificate has expired. Only for the
    /// renewal, whose answer is verified by itself: see [`super::KeyRequest::finish`].
    pub fn renewal_client(&self) -> Arc<ClientConfig> {
        self.renewal_client.clone()
    }
}

fn client_of(live: &Arc<Live>, accept_expired: bool) -> Result<ClientConfig, PkiError> {
    let verifier = Arc::new(ServerVerifier { current: live.clone(), accept_expired });
    let mut client = client_builder()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(live.clone());
    client.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would use the certificate of the node's earlier role.
    client.resumption = Resumption::disabled();
    Ok(client)
}

impl Current {
    fn new(identity: Arc<Identity>) -> Result<Self, PkiError> {
        let key = ring_provider::sign::any_supported_type(&identity.key)
            .map_err(|e| PkiError::new("load the node's key", e))?;
        let certified = Arc::new(CertifiedKey::new(identity.chain.clone(), key));
        certified.keys_match().map_err(|e| PkiError::new("match the node's key and certificate", e))?;
        let verifiers = Verifiers::new(&identity.roots)?;
        Ok(Self { identity, certified, verifiers })
    }
}

impl Live {
    fn current(&self) -> Current {
        self.current.borrow().clone()
    }
}

impl CurrentVerifiers for Live {
    fn verifiers(&self) -> Verifiers {
        self.current().verifiers
    }
}

impl ResolvesServerCert for Live {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().certified)
    }
}

impl ResolvesClientCert for Live {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current().certified)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A client without a certificate that trusts only this CA. A joining node uses it after it has
/// checked the CA's digest, to request its first certificate.
pub fn pinned_client(ca_pem: &str) -> Result<Arc<ClientConfig>, PkiError> {
    let ca =
        CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| PkiError::new("read the CA certificate", e))?;
    let mut roots = RootCertStore::empty();
    roots.add(ca).map_err(|e| PkiError::new("trust the CA certificate", e))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|e| PkiError::new("trust the CA certificate", e))?;
    let mut client = client_builder()?.with_webpki_verifier(verifier).with_no_client_auth();
    client.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(client))
}

/// A client that does not verify the server. A joining node uses it only to fetch the CA's
/// certificate, and then checks that certificate's digest against the join token.
pub fn unverified_client() -> Result<Arc<ClientConfig>, PkiError> {
    let mut client =
        client_builder()?.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer)).with_no_client_auth();
    client.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(client))
}

fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, PkiError> {
    ClientConfig::builder_with_details(provider(), Arc::new(WallClock))
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| PkiError::new("set up TLS", e))
}

/// Accepts any certificate, but checks that the peer holds its private key.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not supported".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &ring_provider::default_provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring_provider::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
