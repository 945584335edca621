//! TLS as we use it: version 1.3, a raw Ed25519 key on both sides (RFC 7250), no tickets, no early data, no names.
//!
//! The dialing side gives up before it shows its own key when the other one is not the one it wants. The listening side
//! takes any key, which it then knows to be the peer's, and refuses in the protocol of the link.

use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName,
    Error, PeerMisbehaved, ServerConfig, ServerConnection, SignatureScheme,
};

use super::keys::{Fingerprint, KeyPair};

use crate::sync::lock;

/// What is spoken inside. Both sides must name it.
pub const ALPN: &[u8] = b"fs_mirror/1";
/// No name travels; the library wants one all the same.
const NO_NAME: &str = "fs-mirror";

/// The key of a peer whose handshake is over.
pub fn peer_of(connection: &rustls::CommonState) -> Option<Fingerprint> {
    match connection.peer_certificates()? {
        [key] => Fingerprint::of_spki(key),
        _ => None,
    }
}

fn fingerprint(
    key: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
) -> Result<Fingerprint, Error> {
    match Fingerprint::of_spki(key) {
        Some(print) if others.is_empty() => Ok(print),
        _ => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
    }
}

fn check_signature(
    message: &[u8],
    key: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    if signed.scheme != SignatureScheme::ED25519 {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    let key = SubjectPublicKeyInfoDer::from(key.as_ref());
    verify_tls13_signature_with_raw_key(message, &key, signed, algorithms)
}

fn no_tls12<T>() -> Result<T, Error> {
    Err(Error::General("TLS 1.2 is not spoken here".into()))
}

/// Which key the other side showed, for whoever has to say why it was not taken.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<Option<Fingerprint>>>);

impl Seen {
    pub fn get(&self) -> Option<Fingerprint> {
        *lock(&self.0)
    }
}

/// Takes one key.
#[derive(Debug)]
struct Pinned {
    wanted: Fingerprint,
    seen: Seen,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = fingerprint(key, others)?;
        *lock(&self.seen.0) = Some(shown);
        if shown != self.wanted {
            return Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ));
        }
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, key, signed, &self.algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Takes any key its owner has the private half of.
#[derive(Debug)]
struct Any {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Any {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        fingerprint(key, others).map(|_| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, key, signed, &self.algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn ours(key: &KeyPair) -> Arc<CertifiedKey> {
    let public = CertificateDer::from(key.spki().to_vec());
    Arc::new(CertifiedKey::new(vec![public], key.signer()))
}

/// What a side that listens needs for every connection.
pub fn server(key: &KeyPair) -> Result<Arc<ServerConfig>, Error> {
    let provider = provider();
    let verifier = Arc::new(Any {
        algorithms: provider.signature_verification_algorithms,
    });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(ours(key))));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

pub fn accept(config: &Arc<ServerConfig>) -> Result<rustls::Connection, Error> {
    Ok(ServerConnection::new(config.clone())?.into())
}

/// A connection that goes on only with the holder of this key, and the key that was shown.
pub fn connect(key: &KeyPair, wanted: Fingerprint) -> Result<(rustls::Connection, Seen), Error> {
    let provider = provider();
    let seen = Seen::default();
    let verifier = Arc::new(Pinned {
        wanted,
        seen: seen.clone(),
        algorithms: provider.signature_verification_algorithms,
    });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(ours(key))));
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    let name = ServerName::try_from(NO_NAME).map_err(|e| Error::General(e.to_string()))?;
    let connection = ClientConnection::new(Arc::new(config), name)?;
    Ok((connection.into(), seen))
}
