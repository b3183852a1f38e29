//! The HTTP side of a front.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::serve::{Listener, ListenerExt as _};
use http::{HeaderValue, StatusCode, header};
use http_body_util::Full;
use tokio::net::TcpListener;

use super::fault::{Fault, spoiled};
use super::{Asked, Book, Protocol, Shared};

/// A listener whose connections do not wait for more before they send.
pub(super) fn prompt(listener: TcpListener) -> impl Listener<Addr = SocketAddr> {
    listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    })
}

/// Serves for good.
pub(super) async fn serve<P: Protocol>(listener: impl Listener<Addr = SocketAddr>, shared: Arc<Shared<P>>) {
    let app = Router::new().fallback(respond::<P>).with_state(shared);
    axum::serve(listener, app).await.expect("a loopback server does not end by itself");
}

/// One request: note it, find its answer, hold that at a gate where there is one.
async fn respond<P: Protocol>(State(front): State<Arc<Shared<P>>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return answer(StatusCode::BAD_REQUEST, "text/plain", "the request was cut short");
    };
    let asked = front.protocol.read(&head, &body);
    let fault = front.book.note(&asked);
    let right = front.protocol.right(&asked, Request::from_parts(head, Full::from(body)));
    let answer = match fault {
        Some(fault) => spoiled(fault, &front.protocol, &asked, right).await,
        None => right.await,
    };
    front.book.pass(&asked).await;
    answer
}

impl Book {
    /// Counts a request; returns what shall be wrong with its answer.
    fn note(&self, asked: &Asked) -> Option<Fault> {
        let mut entries = self.open();
        entries.calls.push(asked.clone());
        let key = asked.keys().find(|key| entries.faults.contains_key(*key))?;
        let spoiling = entries.faults.get_mut(key)?;
        let fault = spoiling.hit();
        if spoiling.is_over() {
            entries.faults.remove(key);
        }
        fault
    }

    /// Returns when no gate stands in the way of the answer.
    async fn pass(&self, asked: &Asked) {
        let gate = {
            let entries = self.open();
            asked.keys().find_map(|key| entries.gates.get(key)).map(Arc::clone)
        };
        if let Some(gate) = gate {
            gate.pass().await;
        }
    }
}

/// An answer of ours in whole.
pub(crate) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
