//! The way to the double: a proxy, and TLS under the real host names.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Router;
use http::{Request, StatusCode, header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::client::{Client, tunnel};
use crate::support::connect_proxy::{ConnectProxy, Routes};
use crate::support::own_thread::Server;
use crate::support::tls::{Authority, TlsListener};

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
