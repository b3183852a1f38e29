//! Faults: what is wrong with an answer, and with which of them.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures::{StreamExt as _, stream};
use http::{HeaderValue, StatusCode, header};

use super::server::answer;
use super::{Asked, Protocol};

/// What is wrong with an answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Refused, in the store's own words for it.
    AccessDenied,
    /// Refused because of too many requests.
    Throttling,
    /// The same, with the header `Retry-After` (whole seconds).
    RetryAfter(Duration),
    /// Refused because the secret is marked for deletion.
    PendingDeletion,
    /// Refused with the store's own error for a trouble on its side.
    Unavailable,
    /// This status with a body that is no JSON, as a load balancer sends it.
    Status(u16),
    /// The first half of the right answer under the length of the whole; then the connection ends.
    Truncated,
    /// Status 200 with this body.
    Body(String),
    /// Status 200 with a JSON object of 3 MiB, whose length is not said before.
    Oversized,
    /// The right answer after this time.
    Slow(Duration),
}

/// What each store's API has words of its own for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    AccessDenied,
    Throttling,
    PendingDeletion,
    Unavailable,
}

/// Which answers have a fault.
#[derive(Debug)]
pub(super) struct Spoiling {
    fault: Fault,
    /// How many answers are still to be spoiled; `None` is all of them.
    left: Option<usize>,
    /// One answer in so many.
    every: usize,
    asked: usize,
}

impl Spoiling {
    pub(super) fn all(fault: Fault) -> Self {
        Self::every(fault, 1)
    }

    pub(super) fn every(fault: Fault, every: usize) -> Self {
        Self { fault, left: None, every, asked: 0 }
    }

    pub(super) fn times(fault: Fault, times: usize) -> Self {
        Self { fault, left: Some(times), every: 1, asked: 0 }
    }

    /// Counts an answer; returns what shall be wrong with it.
    pub(super) fn hit(&mut self) -> Option<Fault> {
        self.asked += 1;
        if !self.asked.is_multiple_of(self.every) {
            return None;
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        Some(self.fault.clone())
    }

    pub(super) fn is_over(&self) -> bool {
        self.left == Some(0)
    }
}

/// The answer with this fault; `right` gives the right one, where the fault needs it.
pub(super) async fn spoiled<P: Protocol>(
    fault: Fault,
    protocol: &P,
    asked: &Asked,
    right: impl Future<Output = Response>,
) -> Response {
    match fault {
        Fault::AccessDenied => protocol.refusal(asked, Refusal::AccessDenied),
        Fault::Throttling => protocol.refusal(asked, Refusal::Throttling),
        Fault::RetryAfter(pause) => {
            let mut answer = protocol.refusal(asked, Refusal::Throttling);
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(pause.as_secs()));
            answer
        }
        Fault::PendingDeletion => protocol.refusal(asked, Refusal::PendingDeletion),
        Fault::Unavailable => protocol.refusal(asked, Refusal::Unavailable),
        Fault::Status(status) => {
            let status = StatusCode::from_u16(status).expect("a test names statuses that exist");
            answer(status, "text/html", "<html><body>this is no JSON</body></html>")
        }
        Fault::Truncated => truncated(right.await).await,
        Fault::Body(text) => answer(StatusCode::OK, "application/json", text),
        Fault::Oversized => oversized(),
        Fault::Slow(pause) => {
            let right = right.await;
            tokio::time::sleep(pause).await;
            right
        }
    }
}

/// Keeps the head with the whole length, sends half of the body, then ends the connection.
async fn truncated(whole: Response) -> Response {
    let (mut head, body) = whole.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.expect("an answer that lies in memory can be read");
    head.headers.insert(header::CONTENT_LENGTH, body.len().into());
    let half = body.slice(..body.len() / 2);
    let end = stream::once(async {
        // Says "not yet" once: the server then sends what it has. At an error it would throw that away.
        tokio::task::yield_now().await;
        Err(std::io::Error::other("cut short on purpose"))
    });
    let half = stream::once(async { Ok::<_, Infallible>(half) }).map(|half| half.map_err(|never| match never {}));
    Response::from_parts(head, Body::from_stream(half.chain(end)))
}

/// A body in pieces, so that its reader has to count.
fn oversized() -> Response {
    let piece = Bytes::from("x".repeat(64 * 1024));
    let pieces = std::iter::repeat_n(piece, 48);
    let all = [Bytes::from(r#"{"padding":""#)].into_iter().chain(pieces).chain([Bytes::from(r#""}"#)]);
    answer(StatusCode::OK, "application/json", Body::from_stream(stream::iter(all.map(Ok::<_, Infallible>))))
}
