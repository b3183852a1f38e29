//! The one way to stores that speak HTTP: what holds for all of them stands here, once.
//!
//! `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` are honoured, and the certificates in `SSL_CERT_FILE` are trusted beside the
//! image's own. A connection is there within 3 s, an answer is read within 10 s in all and up to 1.5 MiB. No redirect is
//! followed: credentials go only where the operator said.

use std::{path::Path, sync::Arc, time::Duration};

use http::{HeaderMap, Request, StatusCode};
use reqwest::{Client, ClientBuilder, Url, redirect};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

use crate::{error::BoxError, secret_value::append};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// From the request to the last byte of the answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// For whoever gives out credentials, so that there is time left to tell that it was not the store that gave no answer.
#[cfg(any(feature = "aws", feature = "azure"))]
pub(super) const LOGIN_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read of an answer: more than any store's largest value.
const MAX_ANSWER_BYTES: usize = 1536 * 1024;
/// The certificates that come with the image.
const IMAGE_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What an answer may have without further ado.
const USUAL_ANSWER_BYTES: usize = 128 * 1024;
/// How many larger ones are in hand at a time.
const LARGE_ANSWERS: usize = 3;

/// A client with its connections; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Http {
    client: Client,
    large: Arc<Semaphore>,
}

/// What a server answered, whole.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Zeroizing<Vec<u8>>,
    /// The right to be large, given back with it.
    _large: Option<OwnedSemaphorePermit>,
}

impl Answer {
    /// How long the server wants to be left alone: `Retry-After` in seconds.
    #[cfg(feature = "vault")]
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }

    /// The body for an SDK: as soon as it has dropped the last of it, the memory is zeroized.
    #[cfg(any(test, feature = "aws", feature = "azure"))]
    pub(super) fn take_body(&mut self) -> bytes::Bytes {
        bytes::Bytes::from_owner(std::mem::take(&mut self.body))
    }
}

/// No answer. The text never quotes one.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("no connection")]
    Connect(#[source] BoxError),
    #[error("no answer in time")]
    Timeout,
    #[error("the answer is larger than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
    #[error("the connection broke")]
    Broken(#[source] BoxError),
}

impl Http {
    /// A client that trusts the image's certificates, those in `SSL_CERT_FILE`, and those in `ca_file`.
    ///
    /// # Errors
    /// A file of certificates that cannot be used.
    pub(super) fn new(ca_file: Option<&Path>) -> Result<Self, String> {
        Self::build(trusted(ca_file)?, |client| client)
    }

    /// One that goes by no proxy: for addresses on the node that give out credentials. A proxy would see the proof, or
    /// answer with credentials of its own.
    ///
    /// # Errors
    /// No client can be made.
    pub(super) fn direct() -> Result<Self, String> {
        Self::build(RootCertStore::empty(), ClientBuilder::no_proxy)
    }

    fn build(roots: RootCertStore, change: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never());
        let client = change(client).build().map_err(|error| format!("no HTTP client can be made: {error}"))?;
        Ok(Self { client, large: Arc::new(Semaphore::new(LARGE_ANSWERS)) })
    }

    /// Sends one request and reads the whole answer.
    pub(super) async fn send<B: Into<reqwest::Body>>(&self, request: Request<B>) -> Result<Answer, HttpError> {
        let request = reqwest::Request::try_from(request).map_err(HttpError::from)?;
        let mut response = self.client.execute(request).await?;
        let length = response.content_length().and_then(|length| usize::try_from(length).ok());
        if length.is_some_and(|length| length > MAX_ANSWER_BYTES) {
            return Err(HttpError::TooLarge);
        }
        let mut body = Zeroizing::new(Vec::with_capacity(length.unwrap_or_default()));
        let mut large = None;
        while let Some(chunk) = response.chunk().await? {
            let size = body.len() + chunk.len();
            if size > MAX_ANSWER_BYTES {
                return Err(HttpError::TooLarge);
            }
            if size.max(length.unwrap_or_default()) > USUAL_ANSWER_BYTES && large.is_none() {
                // Never closed.
                large = Arc::clone(&self.large).acquire_owned().await.ok();
            }
            append(&mut body, &chunk);
        }
        let headers = std::mem::take(response.headers_mut());
        Ok(Answer { status: response.status(), headers, body, _large: large })
    }
}

impl From<reqwest::Error> for HttpError {
    fn from(error: reqwest::Error) -> Self {
        // A URL names what is asked for, which the message has already.
        let error = error.without_url();
        if error.is_connect() {
            Self::Connect(error.into())
        } else if error.is_timeout() {
            Self::Timeout
        } else {
            Self::Broken(error.into())
        }
    }
}

fn trusted(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    // With `SSL_CERT_FILE` that file, else what the system has.
    let system = rustls_native_certs::load_native_certs();
    if let (Some(file), true) = (std::env::var_os("SSL_CERT_FILE"), system.certs.is_empty()) {
        return Err(format!("SSL_CERT_FILE: {} holds no certificate that can be read", file.display()));
    }
    roots.add_parsable_certificates(system.certs);
    let image = rustls_native_certs::load_certs_from_paths(Some(Path::new(IMAGE_CERTIFICATES)), None);
    roots.add_parsable_certificates(image.certs);
    if let Some(file) = ca_file {
        let own = rustls_native_certs::load_certs_from_paths(Some(file), None);
        if own.certs.is_empty() {
            let why = own.errors.first().map_or_else(|| "no certificate in it".to_owned(), ToString::to_string);
            return Err(format!("`caFile` {}: {why}", file.display()));
        }
        roots.add_parsable_certificates(own.certs);
    }
    Ok(roots)
}

/// Checks the address of a store. Without TLS only where the instance says so.
///
/// # Errors
/// What is wrong with it, to follow the name of the setting.
pub(super) fn check_address(address: &str, allow_insecure: bool) -> Result<Url, String> {
    let url = Url::parse(address).map_err(|error| format!("{address:?} is no URL: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("must be a plain URL: no user, password, query or fragment".to_owned());
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if allow_insecure => Ok(url),
        "http" => Err(format!(
            "{address:?} has no TLS: values and credentials could be read on the way; use https://, or say \
             `allowInsecure: true` for this instance"
        )),
        other => Err(format!("{address:?}: {other} is not among https and http")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret_value::wipe;

    #[test]
    fn an_answer_grows_and_its_memory_can_be_wiped() {
        let (mut body, mut want) = (Zeroizing::new(Vec::new()), Vec::new());
        for piece in [&b"hunter2"[..], b"", &[7; 5000], b"x"] {
            append(&mut body, piece);
            want.extend_from_slice(piece);
            assert_eq!(*body, want);
        }
        let mut answer = Answer { status: StatusCode::OK, headers: HeaderMap::new(), body, _large: None };
        let shared = answer.take_body();
        assert_eq!((&shared[..], answer.body.len()), (&want[..], 0));
        // Not ours alone, and so left as it is.
        wipe(shared.clone());
        assert_eq!(&shared[..], &want[..]);
        let alone = bytes::Bytes::from(want);
        let place = alone.as_ptr();
        let own = alone.try_into_mut().expect("nobody else holds it");
        assert_eq!(own.as_ptr(), place, "no copy is made, so that it is the memory itself that is wiped");
    }

    #[tokio::test]
    async fn a_redirect_is_an_answer_and_nobody_is_asked_who_it_points_to() {
        use tokio::{
            io::{AsyncReadExt, AsyncWriteExt},
            net::TcpListener,
        };
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let bind = async || TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (store, elsewhere) = (bind().await, bind().await);
        let address = |listener: &TcpListener| listener.local_addr().expect("it listens");
        let (url, other) = (format!("http://{}/secret", address(&store)), address(&elsewhere));
        let serve = async {
            let (mut socket, _) = store.accept().await.expect("a request");
            let _ = socket.read(&mut [0; 1024]).await.expect("its head");
            let head = format!("HTTP/1.1 307 Moved\r\nLocation: http://{other}/\r\nContent-Length: 0\r\n\r\n");
            socket.write_all(head.as_bytes()).await.expect("sent");
        };
        let http = Http::new(None).expect("a client");
        let request = Request::get(url).body(Vec::new()).expect("a request");
        let (answer, ()) = tokio::join!(http.send(request), serve);
        assert_eq!(answer.expect("an answer").status, StatusCode::TEMPORARY_REDIRECT);
        // A connection would be there by now: it is made before an answer is given back.
        let asked = futures::FutureExt::now_or_never(elsewhere.accept());
        assert!(asked.is_none(), "the other one was asked");
    }

    #[test]
    fn an_address_has_tls_unless_the_instance_says_otherwise() {
        let cases = [
            ("https://vault:8200", false, true),
            ("https://vault:8200/", false, true),
            ("http://vault:8200", false, false),
            ("http://127.0.0.1:8200", false, false),
            ("http://vault:8200", true, true),
            ("ftp://vault", true, false),
            ("vault:8200", true, false),
            ("https://user:word@vault", false, false),
            ("https://vault?x=y", false, false),
            ("", false, false),
        ];
        for (address, allow, want) in cases {
            assert_eq!(check_address(address, allow).is_ok(), want, "{address} {allow}");
        }
    }
}
