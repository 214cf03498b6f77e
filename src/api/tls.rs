//! The listener behind TLS, and whoever on the same machine asks it.
//!
//! A handshake is part of its own connection, never of the accepting: who connects and says nothing keeps
//! nobody waiting. The certificate is looked at again at every handshake, so that one which was renewed is
//! shown without a restart; where the new files cannot be used, the old certificate is kept and it is said.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use axum::serve::Listener;
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::Sleep,
};
use tokio_rustls::{Accept, TlsAcceptor, TlsConnector, server::TlsStream};

use crate::{
    config::HttpTls,
    fault::{Code, Fault, Result},
};

/// How long a client may take to shake hands: a few round trips over the widest area. Then it is gone.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A listener whose connections are encrypted.
pub(super) struct Secured {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Secured {
    pub(super) fn new(tcp: TcpListener, tls: &HttpTls) -> Result<Self> {
        let shown = Shown::new(tls.clone())?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Fault::new(Code::Internal, "set TLS up").because(error))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shown));
        Ok(Self { tcp, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}

impl Listener for Secured {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (tcp, peer) = Listener::accept(&mut self.tcp).await;
        let deadline = Box::pin(tokio::time::sleep(HANDSHAKE_TIMEOUT));
        (Connection::Greeting(Box::new(self.acceptor.accept(tcp)), deadline), peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// One client's connection.
pub(super) enum Connection {
    /// The handshake is not done yet.
    Greeting(Box<Accept<TcpStream>>, Pin<Box<Sleep>>),
    /// It is.
    Open(Box<TlsStream<TcpStream>>),
}

impl Connection {
    /// The encrypted stream, once hands are shaken.
    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Pin<&mut TlsStream<TcpStream>>>> {
        if let Self::Greeting(accept, deadline) = self {
            let shaken = match Pin::new(accept.as_mut()).poll(context) {
                Poll::Ready(shaken) => shaken,
                Poll::Pending => {
                    ready!(deadline.as_mut().poll(context));
                    Err(io::Error::from(io::ErrorKind::TimedOut))
                }
            };
            let stream =
                shaken.inspect_err(|error| tracing::debug!(%error, "TLS handshake with a client"))?;
            *self = Self::Open(Box::new(stream));
        }
        match self {
            Self::Open(stream) => Poll::Ready(Ok(Pin::new(stream.as_mut()))),
            Self::Greeting(..) => Poll::Pending,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.get_mut().poll_open(context))?.poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.get_mut().poll_open(context))?.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.get_mut().poll_open(context))?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.get_mut().poll_open(context))?.poll_shutdown(context)
    }
}

/// The certificate that is shown, and when its files were written.
#[derive(Debug)]
struct Shown {
    tls: HttpTls,
    current: Mutex<(SystemTime, Arc<CertifiedKey>)>,
}

impl Shown {
    fn new(tls: HttpTls) -> Result<Self> {
        let current = Mutex::new((written(&tls)?, Arc::new(certified(&tls)?)));
        Ok(Self { tls, current })
    }

    fn renewed(&self) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match written(&self.tls) {
            Ok(since) if since == current.0 => (),
            // Both files may not be there yet: it is tried again at the next handshake.
            Ok(since) => match certified(&self.tls) {
                Ok(certified) => *current = (since, Arc::new(certified)),
                Err(fault) => {
                    tracing::warn!(code = %fault.code(), "keep the old certificate: {}", fault.message())
                }
            },
            Err(fault) => {
                tracing::warn!(code = %fault.code(), "keep the old certificate: {}", fault.message())
            }
        }
        Arc::clone(&current.1)
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.renewed())
    }
}

/// When the newer of the two files was written.
fn written(tls: &HttpTls) -> Result<SystemTime> {
    let of = |path: &Path, key| {
        std::fs::metadata(path).and_then(|facts| facts.modified()).map_err(|error| wrong(key, path, error))
    };
    Ok(of(&tls.certificate, "tls_certificate")?.max(of(&tls.key, "tls_key")?))
}

fn certified(tls: &HttpTls) -> Result<CertifiedKey> {
    let chain = chain(&tls.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| wrong("tls_key", &tls.key, error))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| wrong("tls_key", &tls.key, error))
}

/// The certificates in a file, the listener's own first.
fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |error| wrong("tls_certificate", path, error);
    let chain = CertificateDer::pem_file_iter(path).map_err(wrong)?;
    let chain = chain.collect::<std::result::Result<Vec<_>, _>>().map_err(wrong)?;
    if chain.is_empty() {
        let message = format!("http.tls_certificate: there is no certificate in {}", path.display());
        return Err(Fault::new(Code::ConfigInvalid, message));
    }
    Ok(chain)
}

fn wrong(key: &str, path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Fault {
    Fault::new(Code::ConfigInvalid, format!("http.{key}: use {}", path.display()))
        .because(error)
        .remedied_by("name a certificate and its own key, each a file of PEM that the daemon may read")
}

/// Connects to a listener on this machine that must show exactly the certificate the settings name: then
/// neither an authority nor a host name has to vouch for it.
///
/// # Errors
/// Whoever answers shows another certificate, or the file cannot be read.
pub async fn connect_pinned(
    tcp: TcpStream,
    tls: &HttpTls,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let peer = tcp.peer_addr().map_err(|error| Fault::new(Code::Internal, "connect").because(error))?;
    let provider = Arc::new(ring::default_provider());
    let pinned =
        Pinned { certificate: chain(&tls.certificate)?.swap_remove(0), provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Fault::new(Code::Internal, "set TLS up").because(error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    let name = ServerName::IpAddress(peer.ip().into());
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|error| {
        let certificate = tls.certificate.display();
        Fault::new(Code::ConfigInvalid, format!("speak TLS with {peer} as the holder of {certificate}"))
            .because(error)
            .remedied_by("name the settings the daemon was started with, and nothing else on its port")
    })
}

/// Accepts one certificate.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        if *shown == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("it shows another certificate than http.tls_certificate names".into()))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
