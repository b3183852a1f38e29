//! A plain HTTP client: for the agent's port, the store and the emulator behind it.

use std::time::Duration;

use axum::body::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;

/// How long one request may take, headers and body.
const LIMIT: Duration = Duration::from_secs(30);

/// What a server answered.
pub(crate) struct Reply {
    /// The status line's code.
    pub(crate) status: StatusCode,
    /// The headers, as sent.
    pub(crate) headers: HeaderMap,
    /// The whole body.
    pub(crate) body: Bytes,
}

impl Reply {
    /// The body as text; bytes that are no UTF-8 are replaced.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A client that keeps its connections. It belongs to the runtime that used it first, so that each test makes its own.
#[derive(Debug, Clone)]
pub(crate) struct Http(Client<HttpConnector, Full<Bytes>>);

impl Http {
    /// A client with no connection yet.
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        // A connection for each request, as the kubelet does it: none is closed under a request.
        Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
    }

    /// GETs one URL. The error says what went wrong, in words.
    pub(crate) async fn get(&self, url: &str) -> Result<Reply, String> {
        let request = Request::get(url).body(Full::default()).map_err(|error| format!("{url} is no URL: {error}"))?;
        self.send(request).await
    }

    /// Sends one request and reads the whole answer. The error says what went wrong, in words.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply, String> {
        let url = request.uri().to_string();
        let exchange = async {
            let (head, body) = self.0.request(request).await.map_err(|error| chain(&error))?.into_parts();
            let body = body.collect().await.map_err(|error| chain(&error))?.to_bytes();
            Ok::<_, String>(Reply { status: head.status, headers: head.headers, body })
        };
        match tokio::time::timeout(LIMIT, exchange).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(format!("no answer from {url}: {error}")),
            Err(_) => Err(format!("no answer from {url} within {LIMIT:?}")),
        }
    }
}

/// An error with all its causes: the outermost alone says only "client error".
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
