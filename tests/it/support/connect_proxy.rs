//! A forward proxy of one test, as `HTTPS_PROXY` and `HTTP_PROXY` name it: it leads hosts of the internet to servers on
//! loopback, and counts what it was asked for. Nothing goes anywhere else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::own_thread::Server;

/// How long the head of a request may be, in bytes.
const HEAD_LIMIT: usize = 16 * 1024;

/// Where hosts really are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes {
    /// Tunnels (`CONNECT`) to these hosts; [`Routes::REST`] stands for all that are not named. Others get a 502.
    pub(crate) tunnels: BTreeMap<String, SocketAddr>,
    /// Plain requests for these hosts. Others get a 400.
    pub(crate) plain: BTreeMap<String, SocketAddr>,
}

impl Routes {
    /// All hosts that are not named.
    pub(crate) const REST: &'static str = "*";
}

/// A running proxy. It ends, with its tunnels, when this is dropped.
#[derive(Debug)]
pub(crate) struct ConnectProxy {
    shared: Arc<Shared>,
    server: Server,
}

#[derive(Debug)]
struct Shared {
    routes: Routes,
    asked: Mutex<BTreeMap<String, usize>>,
}

impl Shared {
    fn asked(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.asked.lock().expect("nothing panics while it holds the counts")
    }
}

impl ConnectProxy {
    /// A proxy on a free port.
    pub(crate) fn start(routes: Routes) -> Self {
        let shared = Arc::new(Shared { routes, asked: Mutex::default() });
        let served = Arc::clone(&shared);
        let server = Server::start(move |listener| serve(listener, served));
        Self { shared, server }
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> &str {
        self.server.url()
    }

    /// How many connections to this host were asked for, given or refused.
    pub(crate) fn connections(&self, host: &str) -> usize {
        self.shared.asked().get(host).copied().unwrap_or_default()
    }

    /// All hosts that were asked for.
    pub(crate) fn hosts(&self) -> Vec<String> {
        self.shared.asked().keys().cloned().collect()
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.expect("a loopback socket accepts");
        let shared = Arc::clone(&shared);
        // An error is a client that went away.
        tokio::spawn(async move { connection(stream, &shared).await.ok() });
    }
}

/// One connection: its first request says where it goes, and all that follows goes there too.
async fn connection(mut client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let Some(head) = head(&mut client).await? else {
        return client.write_all(answer("400 Bad Request").as_bytes()).await;
    };
    let (to, tunnel) = match Asked::read(&head) {
        Some(Asked::Tunnel(host)) => {
            *shared.asked().entry(host.clone()).or_default() += 1;
            let tunnels = &shared.routes.tunnels;
            (tunnels.get(&host).or_else(|| tunnels.get(Routes::REST)).ok_or("502 Bad Gateway"), true)
        }
        Some(Asked::Plain(host)) => {
            *shared.asked().entry(host.clone()).or_default() += 1;
            (shared.routes.plain.get(&host).ok_or("400 Bad Request"), false)
        }
        None => (Err("400 Bad Request"), false),
    };
    let to = match to {
        Ok(to) => to,
        Err(refusal) => return client.write_all(answer(refusal).as_bytes()).await,
    };
    let mut server = TcpStream::connect(to).await?;
    server.set_nodelay(true)?;
    if tunnel {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    } else {
        server.write_all(&head).await?;
    }
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}

fn answer(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

/// The head of the first request, with what of its body came along; nothing where there is no end to it.
async fn head(client: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD_LIMIT || client.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(head))
}

/// What the first line of a head asks for; the host is without its port.
#[derive(Debug)]
enum Asked {
    Tunnel(String),
    Plain(String),
}

impl Asked {
    fn read(head: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
        let mut words = line.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let host = |authority: &str| authority.rsplit_once(':').map_or(authority, |(host, _)| host).to_owned();
        if method == "CONNECT" {
            return Some(Self::Tunnel(host(target)));
        }
        Some(Self::Plain(host(target.strip_prefix("http://")?.split('/').next()?)))
    }
}
