#![forbid(unsafe_code)]
//! TLS on connections: what the server shows of itself and asks of clients.
//!
//! Only this folder names the TLS crate. A [`Keyring`] is made from files and made anew from the same
//! files when they have changed; connections that are agreed keep what they were agreed under. Their
//! tickets end with the old files, so that nobody comes in on a certificate that is no longer trusted.

// OpenSSL's names for cipher suites.
mod ciphers;

// TLS towards servers.
mod outward;

// One connection under TLS.
mod session;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoClientAuth, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme, version,
};

use super::address::reason;
use crate::settings::{self, EndpointTls};

pub use outward::{Outward, Ways};
pub use session::{News, Secured};

/// Values of `ssl_keyformat`.
const PEM: u32 = 1;
const DER: u32 = 2;

/// The server's certificates, and whose certificates it accepts.
pub struct Keyring {
    settings: settings::Tls,
    terms: Mutex<Arc<Terms>>,
}

/// What is offered to clients, by what their listener asks of them.
struct Terms {
    /// As `ssl_verify_mode` says.
    default: Arc<ServerConfig>,
    /// `btls:`
    basic: Arc<ServerConfig>,
    /// `mtls:`
    mutual: Arc<ServerConfig>,
}

impl fmt::Debug for Keyring {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").finish_non_exhaustive()
    }
}

impl Keyring {
    /// Reads the files that `settings` name; `None` without `-Z`.
    ///
    /// # Errors
    /// A line for the user: what cannot be read, used or agreed to.
    pub fn load(settings: &settings::Tls) -> Result<Option<Keyring>, String> {
        if !settings.enabled {
            return Ok(None);
        }
        Ok(Some(Keyring {
            terms: Mutex::new(Arc::new(Terms::read(settings)?)),
            settings: settings.clone(),
        }))
    }

    /// Reads the files again, for connections to come.
    ///
    /// # Errors
    /// As [`load`](Keyring::load); what was known before stays.
    pub fn reload(&self) -> Result<(), String> {
        let terms = Arc::new(Terms::read(&self.settings)?);
        *self.terms.lock().unwrap_or_else(PoisonError::into_inner) = terms;
        Ok(())
    }

    /// For a connection through such a listener; `None` leaves it in the clear.
    pub(super) fn terms(&self, listener: EndpointTls) -> Option<Arc<ServerConfig>> {
        let terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        match listener {
            EndpointTls::Plain => None,
            EndpointTls::Default => Some(terms.default.clone()),
            EndpointTls::Basic => Some(terms.basic.clone()),
            EndpointTls::Mutual => Some(terms.mutual.clone()),
        }
    }
}

/// Whether clients are to show a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    Never,
    /// Who shows none may come in, who shows a wrong one may not.
    Optional,
    Required,
}

impl Terms {
    fn read(settings: &settings::Tls) -> Result<Terms, String> {
        let provider = Arc::new(CryptoProvider {
            cipher_suites: ciphers::suites(settings.ciphers.as_deref())?,
            ..ring::default_provider()
        });
        let identity = Arc::new(SingleCertAndKey::from(identity(settings, &provider)?));
        let authorities = Arc::new(authorities(settings)?);
        let make = |ask| -> Result<Arc<ServerConfig>, String> {
            let versions: &[_] = match settings.min_version {
                3 => &[&version::TLS13],
                _ => &[&version::TLS13, &version::TLS12],
            };
            let refused = |error: &dyn fmt::Display| format!("Error setting up TLS: {error}");
            let mut config = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(versions)
                .map_err(|error| refused(&error))?
                .with_client_cert_verifier(
                    verifier(ask, &authorities, &provider).map_err(|error| refused(&error))?,
                )
                .with_cert_resolver(identity.clone());
            // What can be resumed is in the hands of the client, sealed: it costs no memory here.
            // Each listener's terms have a seal of their own, or a ticket got without a certificate
            // would open the door that asks for one.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            if settings.session_cache {
                config.ticketer = ring::Ticketer::new().map_err(|error| refused(&error))?;
            } else {
                config.send_tls13_tickets = 0;
            }
            Ok(Arc::new(config))
        };
        Ok(Terms {
            default: make(match settings.verify_mode {
                0 => Ask::Never,
                1 => Ask::Optional,
                // "Once" is about renegotiation, which there is none of.
                _ => Ask::Required,
            })?,
            basic: make(Ask::Never)?,
            mutual: make(Ask::Required)?,
        })
    }
}

fn shown(path: Option<&Path>) -> String {
    path.map_or("(null)".to_owned(), |path| path.display().to_string())
}

/// Why a PEM file cannot be used. None of its contents are repeated: it may hold a key.
fn explain(error: &pem::Error, what: &str) -> String {
    match error {
        pem::Error::Io(error) => reason(error),
        pem::Error::NoItemsFound => format!("no {what} in it"),
        _ => "damaged PEM".to_owned(),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .and_then(|found: Vec<_>| match found.len() {
            0 => Err(pem::Error::NoItemsFound),
            _ => Ok(found),
        });
    found.map_err(|error| explain(&error, "certificate (PEM)"))
}

/// The private key; without a file of its own it is looked for beside the certificates.
fn key(settings: &settings::Tls) -> Result<PrivateKeyDer<'static>, String> {
    let path = settings.key.as_deref().or(settings.chain_cert.as_deref());
    let told = |why: String| {
        format!(
            "Error loading the key: {} : {why}",
            shown(settings.key.as_deref())
        )
    };
    let path = path.ok_or_else(|| told("no file named, see -o ssl_key".to_owned()))?;
    match settings.key_format {
        PEM => PrivateKeyDer::from_pem_file(path)
            .map_err(|error| told(explain(&error, "private key (PEM, not encrypted)"))),
        DER => {
            let bytes = std::fs::read(path).map_err(|error| told(reason(&error)))?;
            PrivateKeyDer::try_from(bytes).map_err(|error| told(error.to_owned()))
        }
        other => Err(told(format!(
            "ssl_keyformat {other} is not known: 1 is PEM, 2 is DER"
        ))),
    }
}

/// The certificate and the key that belongs to it.
fn identity(settings: &settings::Tls, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let path = settings.chain_cert.as_deref();
    let chain = match path {
        Some(path) => certificates(path),
        None => Err("no file named, see -o ssl_chain_cert".to_owned()),
    };
    let chain = chain.map_err(|why| {
        format!(
            "Error loading the certificate chain: {} : {why}",
            shown(path)
        )
    })?;
    let key = key(settings)?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        Error::InconsistentKeys(_) => format!(
            "Error loading the key: {} : it is that of another certificate",
            shown(settings.key.as_deref())
        ),
        Error::InvalidCertificate(_) => format!("Error validating the certificate: {error}"),
        _ => format!(
            "Error loading the key: {} : {error}",
            shown(settings.key.as_deref())
        ),
    })
}

/// Who signs the certificates that clients may show.
fn authorities(settings: &settings::Tls) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let Some(path) = settings.ca_cert.as_deref() else {
        return Ok(store);
    };
    let told = |why: String| {
        format!(
            "Error loading the CA certificate: {} : {why}",
            path.display()
        )
    };
    for certificate in certificates(path).map_err(&told)? {
        store
            .add(certificate)
            .map_err(|error| told(error.to_string()))?;
    }
    Ok(store)
}

fn verifier(
    ask: Ask,
    authorities: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    if ask == Ask::Never {
        return Ok(Arc::new(NoClientAuth));
    }
    if authorities.is_empty() {
        return Ok(Arc::new(TrustNobody {
            mandatory: ask == Ask::Required,
            provider: provider.clone(),
        }));
    }
    let mut builder =
        WebPkiClientVerifier::builder_with_provider(authorities.clone(), provider.clone());
    if ask == Ask::Optional {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| error.to_string())
}

/// Certificates are asked for, but no authority is named: none can be right.
#[derive(Debug)]
struct TrustNobody {
    mandatory: bool,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for TrustNobody {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Err(CertificateError::UnknownIssuer.into())
    }

    // Only asked about certificates that have been found right.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(CertificateError::UnknownIssuer.into())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(CertificateError::UnknownIssuer.into())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn refused(change: impl FnOnce(&mut settings::Tls)) -> String {
        let mut settings = settings::Tls {
            enabled: true,
            ..settings::Tls::default()
        };
        change(&mut settings);
        match Keyring::load(&settings) {
            Err(message) => message,
            Ok(keyring) => panic!("{keyring:?}"),
        }
    }

    #[test]
    fn unusable_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let own = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["b".to_owned()]).unwrap();
        fs::write(path("cert"), own.cert.pem()).unwrap();
        fs::write(path("key"), own.signing_key.serialize_pem()).unwrap();
        fs::write(path("other"), other.signing_key.serialize_pem()).unwrap();
        let der = other.signing_key.serialize_der();
        fs::write(path("der"), &der).unwrap();
        let shown = |name: &str| path(name).display().to_string();
        let cases: [(&str, &str, Option<&str>, u32, String); 8] = [
            (
                "none",
                "key",
                None,
                1,
                format!(
                    "Error loading the certificate chain: {} : No such file or directory",
                    shown("none")
                ),
            ),
            (
                "key",
                "key",
                None,
                1,
                format!(
                    "Error loading the certificate chain: {} : no certificate (PEM) in it",
                    shown("key")
                ),
            ),
            (
                "cert",
                "none",
                None,
                1,
                format!(
                    "Error loading the key: {} : No such file or directory",
                    shown("none")
                ),
            ),
            (
                "cert",
                "cert",
                None,
                1,
                format!(
                    "Error loading the key: {} : no private key (PEM, not encrypted) in it",
                    shown("cert")
                ),
            ),
            (
                "cert",
                "other",
                None,
                1,
                format!(
                    "Error loading the key: {} : it is that of another certificate",
                    shown("other")
                ),
            ),
            (
                "cert",
                "der",
                None,
                2,
                format!(
                    "Error loading the key: {} : it is that of another certificate",
                    shown("der")
                ),
            ),
            (
                "cert",
                "key",
                Some("key"),
                1,
                format!(
                    "Error loading the CA certificate: {} : no certificate (PEM) in it",
                    shown("key")
                ),
            ),
            (
                "cert",
                "key",
                None,
                3,
                format!(
                    "Error loading the key: {} : ssl_keyformat 3 is not known: 1 is PEM, 2 is DER",
                    shown("key")
                ),
            ),
        ];
        for (chain, key, authority, format, message) in cases {
            let said = refused(|settings| {
                settings.chain_cert = Some(path(chain));
                settings.key = Some(path(key));
                settings.ca_cert = authority.map(path);
                settings.key_format = format;
            });
            assert_eq!(said, message);
        }
        assert_eq!(
            refused(|_| {}),
            "Error loading the certificate chain: (null) : no file named, see -o ssl_chain_cert"
        );
    }

    #[test]
    fn a_key_may_stand_beside_its_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("both");
        let own = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        fs::write(&path, own.cert.pem() + &own.signing_key.serialize_pem()).unwrap();
        let keyring = Keyring::load(&settings::Tls {
            enabled: true,
            chain_cert: Some(path),
            ..settings::Tls::default()
        });
        assert!(keyring.unwrap().is_some());
        assert!(Keyring::load(&settings::Tls::default()).unwrap().is_none());
    }
}
