//! TLS for the servers of a test: an authority, a certificate from it, and a listener. Keys are made anew each time.

use std::fs::DirBuilder;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use axum::serve::Listener;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::unique;

/// What both sides offer in the handshake.
const HTTP: &[u8] = b"http/1.1";
/// The authority's certificate in its folder.
const FILE: &str = "ca.pem";
/// Why nothing here fails.
const MADE_HERE: &str = "keys and certificates that were made here fit";

/// The authority, with one server's certificate. Its file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Authority {
    folder: PathBuf,
    certificate: CertificateDer<'static>,
    server: Arc<ServerConfig>,
}

impl Authority {
    /// An authority with a certificate for `names`: host names, wildcards such as `*.example.com`, IP addresses.
    pub(crate) fn new(names: &[&str]) -> Self {
        let issuer = issuer();
        let key = KeyPair::generate().expect(MADE_HERE);
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())
            .expect("a test's host names are such");
        params.distinguished_name.push(DnType::CommonName, "a server of a test");
        let leaf = params.signed_by(&key, &issuer).expect(MADE_HERE);
        let server = server(leaf.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()));

        let folder = std::env::temp_dir().join(unique(&format!("jasm-it-{}-ca", std::process::id())));
        let written = DirBuilder::new().mode(0o700).create(&folder);
        let written = written.and_then(|()| std::fs::write(folder.join(FILE), issuer.pem()));
        written.unwrap_or_else(|error| panic!("cannot write to {}: {error}", folder.display()));
        Self { folder, certificate: issuer.der().clone(), server: Arc::new(server) }
    }

    /// The authority's certificate (PEM), for `SSL_CERT_FILE`.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// For a server of one of the names.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For a client that believes nobody but this authority.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect(MADE_HERE);
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let mut config = builder.expect(MADE_HERE).with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![HTTP.to_vec()];
        Arc::new(config)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn issuer() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "the authority of a test");
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect(MADE_HERE)).expect(MADE_HERE)
}

fn server(certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.expect(MADE_HERE).with_no_client_auth();
    let mut config = builder.with_single_cert(vec![certificate], key).expect(MADE_HERE);
    config.alpn_protocols = vec![HTTP.to_vec()];
    config
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A listener whose connections have their handshake behind them. One that hangs in its handshake holds up no other.
pub(crate) struct TlsListener {
    address: SocketAddr,
    ready: mpsc::UnboundedReceiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    /// Takes over `listener`, on the runtime that calls this. A handshake that fails is a connection that closes.
    pub(crate) fn new(listener: TcpListener, config: Arc<ServerConfig>) -> Self {
        let address = listener.local_addr().expect("a bound socket has an address");
        let (done, ready) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(config);
            loop {
                let (stream, peer) = listener.accept().await.expect("a loopback socket accepts");
                let _ = stream.set_nodelay(true);
                let (acceptor, done) = (acceptor.clone(), done.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = done.send((stream, peer));
                    }
                });
            }
        });
        Self { address, ready }
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        self.ready.recv().await.expect("the loop above keeps its end of the channel")
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
