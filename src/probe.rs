//! `/livez`, `/readyz`, `/healthz` and `/metrics`, served by a thread of its own, so that they answer when the async side
//! does not.
//!
//! tiny_http has neither timeouts nor limits, and half-open requests would pile up as threads. So the timeout is set on
//! the listener, from which Linux hands it to every accepted socket. It bounds the wait for a connection too, and an
//! accept that fails, for whatever reason, is the end of a tiny_http server: then the next one takes over the listener.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};
use tiny_http::{Header, Method, Request, Response, Server};

/// For a client to go on sending its request, and to take the answer.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(3);
/// After an accept that failed otherwise than by time.
const PAUSE: Duration = Duration::from_millis(100);
/// How often the async side shows that it runs.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// How old its last sign may be.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(15);
const BACKLOG: i32 = 16;

/// The last sign of life of the async side.
#[derive(Debug)]
pub struct Heartbeat {
    since: Instant,
    millis: AtomicU64,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { since: Instant::now(), millis: AtomicU64::new(0) }
    }
}

impl Heartbeat {
    /// Gives a sign of life every second; to be run on the async side.
    pub async fn beat(&self) {
        loop {
            let millis = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.millis.store(millis, Ordering::Relaxed);
            tokio::time::sleep(HEARTBEAT).await;
        }
    }

    fn is_alive(&self, now: Instant) -> bool {
        let last = self.since + Duration::from_millis(self.millis.load(Ordering::Relaxed));
        now.saturating_duration_since(last) <= HEARTBEAT_LIMIT
    }
}

/// What the endpoints tell.
pub struct Probes {
    /// Behind `/livez` and `/healthz`.
    pub heartbeat: Arc<Heartbeat>,
    /// Behind `/readyz`: what the agent still waits for, or `None`.
    pub unready: Box<dyn Fn() -> Option<&'static str> + Send + Sync>,
    /// Behind `/metrics`.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
}

/// Binds the address. Answers come once [`serve`] runs.
///
/// # Errors
/// The address is taken, or not of this machine.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_read_timeout(Some(SOCKET_TIMEOUT))?;
    socket.set_write_timeout(Some(SOCKET_TIMEOUT))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Answers from threads of its own, which end with the program.
///
/// # Errors
/// No thread could be started.
pub fn serve(listener: TcpListener, probes: Probes) -> io::Result<()> {
    let probes = Arc::new(probes);
    let run = move || {
        loop {
            if let Err(error) = serve_until_idle(&listener, &probes) {
                tracing::warn!(%error, "the probes cannot be served; trying again");
                thread::sleep(PAUSE);
            }
        }
    };
    thread::Builder::new().name("probe".to_owned()).spawn(run).map(|_| ())
}

/// Returns when nobody came for a while; who is still connected is served on, by a thread that ends with him.
fn serve_until_idle(listener: &TcpListener, probes: &Arc<Probes>) -> io::Result<()> {
    let server = Server::from_listener(listener.try_clone()?, None).map_err(io::Error::other)?;
    let ended = loop {
        match server.recv() {
            Ok(request) => answer(request, probes),
            Err(error) => break error,
        }
    };
    let probes = Arc::clone(probes);
    let linger = move || {
        while let Ok(Some(request)) = server.recv_timeout(2 * SOCKET_TIMEOUT) {
            answer(request, &probes);
        }
    };
    thread::Builder::new().name("probe-rest".to_owned()).spawn(linger)?;
    if ended.kind() == io::ErrorKind::WouldBlock { Ok(()) } else { Err(ended) }
}

fn answer(request: Request, probes: &Probes) {
    let path = request.url().split('?').next().unwrap_or_default();
    let (code, text) = match (request.method(), path) {
        (Method::Get | Method::Head, "/livez" | "/healthz") if probes.heartbeat.is_alive(Instant::now()) => {
            (200, "ok\n".to_owned())
        }
        (Method::Get | Method::Head, "/livez" | "/healthz") => (503, "the agent's event loop is stuck\n".to_owned()),
        (Method::Get | Method::Head, "/readyz") => match (probes.unready)() {
            None => (200, "ok\n".to_owned()),
            Some(what) => (503, format!("{what}\n")),
        },
        (Method::Get | Method::Head, "/metrics") => (200, (probes.metrics)()),
        (Method::Get | Method::Head, _) => (404, "not found; try /livez, /readyz, /healthz or /metrics\n".to_owned()),
        _ => (405, "only GET and HEAD\n".to_owned()),
    };
    let kind = match path {
        "/metrics" => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    };
    let mut response = Response::from_string(text).with_status_code(code);
    if let Ok(header) = Header::from_bytes("Content-Type", kind) {
        response.add_header(header);
    }
    // A client that went away needs no answer.
    let _ = request.respond(response);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heart_that_stopped_is_told_after_fifteen_seconds() {
        let heartbeat = Heartbeat::default();
        let beaten = heartbeat.since;
        assert!(heartbeat.is_alive(beaten + Duration::from_secs(15)));
        assert!(!heartbeat.is_alive(beaten + Duration::from_secs(16)));
        heartbeat.millis.store(10_000, Ordering::Relaxed);
        assert!(heartbeat.is_alive(beaten + Duration::from_secs(25)));
    }
}
