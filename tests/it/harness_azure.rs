//! Tests of the double of Azure Key Vault, and of the way to it: a proxy, and TLS under the real host names.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::connect_proxy::{ConnectProxy, Routes};
use crate::support::http::Reply;
use crate::support::own_thread::Server;
use crate::support::tls::{Authority, TlsListener};

/// How long one exchange may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What went wrong, in words.
type Trouble = String;

// ---- a client that knows nothing but a proxy and an authority, as the agent's environment names them ----

/// A connection for each request.
struct Client<'a> {
    proxy: &'a ConnectProxy,
    authority: &'a Authority,
}

impl Client<'_> {
    /// Sends a request for `https://HOST/...` through a tunnel.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply, Trouble> {
        let host = request.uri().host().expect("a test's URLs have a host").to_owned();
        let exchange = async {
            let stream = tunnel(self.proxy, &host).await?;
            let name = ServerName::try_from(host).map_err(words)?;
            let stream = TlsConnector::from(self.authority.client()).connect(name, stream).await.map_err(words)?;
            exchange(stream, request).await
        };
        tokio::time::timeout(LIMIT, exchange).await.map_err(words)?
    }

    async fn get(&self, url: &str) -> Result<Reply, Trouble> {
        self.send(Request::get(url).body(Full::default()).expect("a test's URL is one")).await
    }
}

/// A connection to the host, as far as the proxy lets it.
async fn tunnel(proxy: &ConnectProxy, host: &str) -> Result<TcpStream, Trouble> {
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

async fn exchange<S>(stream: S, mut request: Request<Full<Bytes>>) -> Result<Reply, Trouble>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let host = request.uri().authority().expect("a test's URLs have a host").to_string();
    request.headers_mut().insert(header::HOST, host.parse().map_err(words)?);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().map_err(words)?;
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

// ---- the proxy, and TLS ----

/// A server that answers every request with the host it was sent to, behind TLS.
fn echo(authority: &Authority) -> Server {
    let config = authority.server();
    Server::start(async |listener| {
        let app = Router::new().fallback(async |request: Request<axum::body::Body>| {
            request.headers().get(header::HOST).map(|host| host.as_bytes().to_vec()).unwrap_or_default()
        });
        axum::serve(TlsListener::new(listener, config), app).await.expect("a loopback server does not end by itself");
    })
}

fn to(host: &str, address: SocketAddr) -> Routes {
    Routes { tunnels: BTreeMap::from([(host.to_owned(), address)]), plain: BTreeMap::new() }
}

#[tokio::test]
async fn a_tunnel_carries_tls_under_each_name_of_the_certificate_and_under_no_other() {
    let authority = Authority::new(&["*.vault.azure.net", "login.microsoftonline.com", "127.0.0.1", "localhost"]);
    let server = echo(&authority);
    let proxy = ConnectProxy::start(to(Routes::REST, server.address()));
    let client = Client { proxy: &proxy, authority: &authority };

    for host in ["some.vault.azure.net", "login.microsoftonline.com", "127.0.0.1", "localhost"] {
        let reply = client.get(&format!("https://{host}/")).await;
        assert_eq!(reply.map(|reply| (reply.status, reply.text())), Ok((StatusCode::OK, host.to_owned())));
    }
    for host in ["vault.azure.net", "a.b.vault.azure.net", "example.com"] {
        let error = client.get(&format!("https://{host}/")).await.map(|reply| reply.text()).expect_err(host);
        assert!(error.contains("not valid for name"), "{host}: {error}");
    }
    let stranger = Authority::new(&["localhost"]);
    let error = Client { proxy: &proxy, authority: &stranger }.get("https://localhost/").await;
    let error = error.map(|reply| reply.text()).expect_err("a client that does not know the authority");
    assert!(error.starts_with("invalid peer certificate"), "{error}");
}

#[tokio::test]
async fn a_proxy_counts_each_host_and_leads_it_where_the_test_says() {
    let authority = Authority::new(&["*.vault.azure.net"]);
    let (one, other) = (echo(&authority), Server::start(async |_| std::future::pending().await));
    let mut routes = to("one.vault.azure.net", one.address());
    routes.plain.insert("169.254.169.254".to_owned(), other.address());
    let proxy = ConnectProxy::start(routes);
    let client = Client { proxy: &proxy, authority: &authority };

    for _ in 0..2 {
        assert!(client.get("https://one.vault.azure.net/").await.is_ok());
    }
    let refused = client.get("https://two.vault.azure.net/").await.map(|reply| reply.text());
    assert!(refused.as_ref().is_err_and(|error| error.starts_with("HTTP/1.1 502 ")), "{refused:?}");
    for target in ["http://two.vault.azure.net/", "/", "nonsense"] {
        let mut stream = TcpStream::connect(proxy.url().trim_start_matches("http://")).await.expect("a proxy");
        stream.write_all(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes()).await.expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer}");
    }

    assert_eq!(proxy.connections("one.vault.azure.net"), 2);
    assert_eq!(proxy.hosts(), ["one.vault.azure.net", "two.vault.azure.net"]);
}

#[tokio::test]
async fn a_client_that_hangs_in_its_handshake_holds_up_no_other() {
    let authority = Authority::new(&["localhost"]);
    let server = echo(&authority);
    let proxy = ConnectProxy::start(to(Routes::REST, server.address()));
    let _hangs = tunnel(&proxy, "localhost").await.expect("a tunnel");
    let reply = Client { proxy: &proxy, authority: &authority }.get("https://localhost/").await;
    assert_eq!(reply.map(|reply| reply.status), Ok(StatusCode::OK));
}

#[test]
fn the_authority_is_a_file_while_it_lives() {
    let authority = Authority::new(&["localhost"]);
    let file = authority.file();
    let text = std::fs::read_to_string(&file).expect("the file is there");
    assert!(text.starts_with("-----BEGIN CERTIFICATE-----"), "{text}");
    drop(authority);
    assert!(!file.exists());
}
