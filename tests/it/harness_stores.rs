//! Tests of what stands in the stores' place: that it answers as they do.

mod parameters;
mod vault;

use axum::body::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::Value;

use crate::support::http::{Http, Reply};

/// Sends a request; a body of `null` is none.
async fn send(request: http::request::Builder, body: &Value) -> Reply {
    let body = if body.is_null() { Full::default() } else { Full::<Bytes>::from(body.to_string()) };
    let request: Request<Full<Bytes>> = request.body(body).expect("a front's URL is one");
    Http::new().send(request).await.expect("a whole answer")
}

fn body(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_default()
}
