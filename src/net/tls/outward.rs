#![forbid(unsafe_code)]
//! TLS towards servers: whose certificates are believed, and what is shown to those who ask.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    StreamOwned,
};

use super::{certificates, explain};

/// Where systems keep the authorities they believe.
const SYSTEM: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// What one needs to connect under TLS.
#[derive(Clone)]
pub struct Outward {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
}

impl fmt::Debug for Outward {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outward")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The files and names that say how.
#[derive(Debug, Clone, Copy)]
pub struct Ways<'a> {
    /// Whose signature the server must show; `None` is the system's.
    pub authorities: Option<&'a Path>,
    /// Shown if the server asks: certificate and key.
    pub identity: Option<(&'a Path, &'a Path)>,
    /// The name in the server's certificate.
    pub name: &'a str,
    /// `false` takes any certificate.
    pub verify: bool,
}

impl Outward {
    /// Reads the files.
    ///
    /// # Errors
    /// A line for the user: what cannot be read or used.
    pub fn load(ways: &Ways<'_>) -> Result<Outward, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = if ways.verify {
            builder.with_root_certificates(authorities(ways.authorities)?)
        } else {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anybody { provider }))
        };
        let config = match ways.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let told = |path: &Path, why: String| format!("{}: {why}", path.display());
                let chain_of = certificates(chain).map_err(|why| told(chain, why))?;
                let key_of = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| told(key, explain(&error, "private key (PEM)")))?;
                builder
                    .with_client_auth_cert(chain_of, key_of)
                    .map_err(|error| told(chain, error.to_string()))?
            }
        };
        let name = ServerName::try_from(ways.name.to_owned())
            .map_err(|_| format!("`{}` is no name that a certificate can have", ways.name))?;
        Ok(Outward {
            config: Arc::new(config),
            name,
        })
    }
}

impl Outward {
    /// Over a stream that blocks; the handshake comes with the first use.
    ///
    /// # Errors
    /// The configuration does not allow it.
    pub fn blocking<S: Read + Write>(&self, stream: S) -> io::Result<impl Read + Write + use<S>> {
        let connection = ClientConnection::new(self.config.clone(), self.name.clone())
            .map_err(io::Error::other)?;
        Ok(StreamOwned::new(connection, stream))
    }
}

fn authorities(path: Option<&Path>) -> Result<RootCertStore, String> {
    let path = match path {
        Some(path) => path,
        None => SYSTEM
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
            .ok_or("this system has no list of authorities: name one with `ca`")?,
    };
    let told = |why: String| format!("{}: {why}", path.display());
    let mut store = RootCertStore::empty();
    // A system's list may have some that nobody can use any more.
    let (added, _) = store.add_parsable_certificates(certificates(path).map_err(told)?);
    match added {
        0 => Err(told("no certificate of an authority in it".to_owned())),
        _ => Ok(store),
    }
}

/// Takes any certificate: what is sent is encrypted, for whoever answers.
#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
