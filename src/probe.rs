//! `/livez`, `/readyz`, `/healthz` and `/metrics`, served by a thread of its own, so that they answer when the async side
//! does not.
//!
//! Every pod of the cluster can reach them, so that everything is bounded: connections, the head of a request, and the
//! time for all of it. Bodies are never read: a server that drains what `Content-Length` says can be ended by one request.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, sync::Semaphore};

/// For a connection, from its start to its end: one request, one answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(3);
/// More wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// The least that hyper allows for the head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// After an accept that failed.
const PAUSE: Duration = Duration::from_millis(100);
/// How often the async side shows that it runs.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How old its last sign may be.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(15);

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
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers from a thread with a runtime of its own, which ends with the program.
///
/// # Errors
/// No thread or runtime could be started.
pub fn serve(listener: TcpListener, probes: Probes) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || runtime.block_on(accept_all(listener, Arc::new(probes)));
    thread::Builder::new().name("probe".to_owned()).spawn(run).map(|_| ())
}

async fn accept_all(listener: TcpListener, probes: Arc<Probes>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the probes cannot be served"),
    };
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await;
        match listener.accept().await {
            Ok((socket, _)) => {
                let connection = tokio::time::timeout(CONNECTION_TIMEOUT, one_request(socket, Arc::clone(&probes)));
                tokio::spawn(async move {
                    // A client that is slow, or went away, needs no answer.
                    let _ = connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a request for a probe could not be taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn one_request(socket: TcpStream, probes: Arc<Probes>) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let probes = Arc::clone(&probes);
        async move { Ok::<_, Infallible>(answer(&request, &probes)) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(socket), service)
        .await
}

fn answer(request: &Request<Incoming>, probes: &Probes) -> Response<Full<Bytes>> {
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, text) = match request.uri().path() {
        _ if !get => (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned()),
        "/livez" | "/healthz" if probes.heartbeat.is_alive(Instant::now()) => (StatusCode::OK, "ok\n".to_owned()),
        "/livez" | "/healthz" => (StatusCode::SERVICE_UNAVAILABLE, "the agent's event loop is stuck\n".to_owned()),
        "/readyz" => match (probes.unready)() {
            None => (StatusCode::OK, "ok\n".to_owned()),
            Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("{what}\n")),
        },
        "/metrics" => (StatusCode::OK, (probes.metrics)()),
        _ => (StatusCode::NOT_FOUND, "not found; try /livez, /readyz, /healthz or /metrics\n".to_owned()),
    };
    let kind = match request.uri().path() {
        "/metrics" => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
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
