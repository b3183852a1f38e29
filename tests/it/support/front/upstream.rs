//! The real store behind a front.

use axum::body::{Body, Bytes};
use axum::response::Response;
use http::{HeaderName, Request, StatusCode, header};
use http_body_util::Full;

use super::super::http::{Http, Reply};
use super::super::say;
use super::server::answer;

/// Headers that are about one connection, and not about what is said on it.
const OF_THE_CONNECTION: [HeaderName; 4] =
    [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// A server that knows the right answers.
#[derive(Debug)]
pub(crate) struct Upstream {
    url: String,
    http: Http,
}

impl Upstream {
    /// `url`: as in `http://127.0.0.1:PORT`.
    pub(crate) fn new(url: &str) -> Self {
        Self { url: url.to_owned(), http: Http::new() }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Asks it the same. The error is an answer that says that there was none.
    pub(crate) async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Reply, Response> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        head.uri = format!("{}{path}", self.url).parse().expect("a server's URL and a request's path are a URL");
        OF_THE_CONNECTION.iter().for_each(|name| {
            head.headers.remove(name);
        });
        self.http.send(Request::from_parts(head, body)).await.map_err(|error| {
            say(&format!("the store behind a front gave no answer: {error}"));
            answer(StatusCode::BAD_GATEWAY, "text/plain", "the store behind the front did not answer")
        })
    }
}

/// What the real store said, to be sent on.
pub(crate) fn passed_on(reply: Reply) -> Response {
    let mut answer = Response::new(Body::from(reply.body));
    *answer.status_mut() = reply.status;
    for (name, value) in &reply.headers {
        if !OF_THE_CONNECTION.contains(name) {
            answer.headers_mut().append(name, value.clone());
        }
    }
    answer
}
