//! A client that knows nothing but a proxy and an authority, as an environment names them.

use std::time::Duration;

use axum::body::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::connect_proxy::ConnectProxy;
use crate::support::http::Reply;
use crate::support::tls::Authority;

/// How long one exchange may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What went wrong, in words.
pub(super) type Trouble = String;

/// A connection for each request.
pub(super) struct Client<'a> {
    pub(super) proxy: &'a ConnectProxy,
    pub(super) authority: &'a Authority,
}

impl Client<'_> {
    /// Sends a request for `https://HOST/...` through a tunnel.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply, Trouble> {
        let host = request.uri().host().expect("a test's URLs have a host").to_owned();
        let exchange = async {
            let stream = tunnel(self.proxy, &host).await?;
            let name = ServerName::try_from(host).map_err(words)?;
            let stream = TlsConnector::from(self.authority.client()).connect(name, stream).await.map_err(words)?;
            exchange(stream, within(request)?).await
        };
        tokio::time::timeout(LIMIT, exchange).await.map_err(words)?
    }

    /// GETs a URL that begins with `https`.
    pub(super) async fn get(&self, url: &str) -> Result<Reply, Trouble> {
        self.send(Request::get(url).body(Full::default()).expect("a test's URL is one")).await
    }
}

/// Sends a request for `http://HOST/...` to the proxy itself.
pub(super) async fn plain(proxy: &ConnectProxy, request: Request<Full<Bytes>>) -> Result<Reply, Trouble> {
    let stream = TcpStream::connect(proxy.url().trim_start_matches("http://")).await.map_err(words)?;
    tokio::time::timeout(LIMIT, exchange(stream, request)).await.map_err(words)?
}

/// A connection to the host, as far as the proxy lets it.
pub(super) async fn tunnel(proxy: &ConnectProxy, host: &str) -> Result<TcpStream, Trouble> {
    let mut stream = TcpStream::connect(proxy.url().trim_start_matches("http://")).await.map_err(words)?;
    let asked = format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n");
    stream.write_all(asked.as_bytes()).await.map_err(words)?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.map_err(words)?);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if answer.starts_with("HTTP/1.1 200 ") { Ok(stream) } else { Err(answer) }
}

/// The request as it goes through a tunnel: its host in a header, and only the path in its first line.
fn within(mut request: Request<Full<Bytes>>) -> Result<Request<Full<Bytes>>, Trouble> {
    let host = request.uri().host().expect("a test's URLs have a host").parse().map_err(words)?;
    request.headers_mut().insert(header::HOST, host);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().map_err(words)?;
    Ok(request)
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Reply, Trouble>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
    let connection = tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await.map_err(words)?.into_parts();
    let body = body.collect().await.map_err(words)?.to_bytes();
    connection.abort();
    Ok(Reply { status: head.status, headers: head.headers, body })
}

fn words(error: impl std::error::Error) -> Trouble {
    std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
