//! The HTTP side of a proxy.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use http::request::Parts;
use http::{Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use super::super::control_plane::client;
use super::rule::{Asked, Trouble};
use super::{Shared, refusal};

/// Any error. One that reaches a connection ends it.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// What an answer holds, whole or piece by piece.
pub(super) type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;
/// What the agent gets.
pub(super) type Answer = Response<AnswerBody>;

/// Headers that are about one connection, and not about what is said on it.
const OF_THE_CONNECTION: [header::HeaderName; 4] =
    [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// Serves for good. `kubeconfig`: the way to the API server, without credentials.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, kubeconfig: PathBuf) {
    let api = client(&kubeconfig).await.expect("the proxy's kubeconfig names the API server");
    let front = Arc::new(Front { shared, api });
    loop {
        let (stream, _) = listener.accept().await.expect("a loopback socket accepts");
        tokio::spawn(connection(stream, Arc::clone(&front)));
    }
}

async fn connection(stream: TcpStream, front: Arc<Front>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let front = Arc::clone(&front);
        async move { front.respond(request).await.map_err(std::io::Error::other) }
    });
    // An error is trouble that was asked for, or an agent that went away.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

struct Front {
    shared: Arc<Shared>,
    /// Adds nothing to a request but the API server's address.
    api: kube::Client,
}

impl Front {
    /// One request: note it, and what befalls it.
    async fn respond(&self, request: Request<Incoming>) -> Result<Answer, BoxError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let asked = Asked::read(&head);
        let Some(rule) = self.shared.note(&asked) else {
            return self.forward(&asked, head, body).await;
        };
        match &rule.trouble {
            Trouble::LostReply => {
                whole(self.forward(&asked, head, body).await?).await?;
                rule.hit();
                Err("the answer is lost".into())
            }
            Trouble::HeldReply => {
                let answer = whole(self.forward(&asked, head, body).await?).await?;
                rule.hit();
                rule.over().await;
                Ok(answer)
            }
            before => {
                rule.hit();
                match before {
                    Trouble::Refused(refusal) => return refusal.answer(&asked, &body),
                    Trouble::ExpiredInStream => return expired_in_stream(),
                    Trouble::BlackHole => rule.over().await,
                    Trouble::Delay(pause) => tokio::time::sleep(*pause).await,
                    _ => return Err("the connection is cut".into()),
                }
                self.forward(&asked, head, body).await
            }
        }
    }

    /// Asks the API server the same and passes on what it says, as it comes.
    async fn forward(&self, asked: &Asked, head: Parts, body: Bytes) -> Result<Answer, BoxError> {
        let mut request = Request::builder().method(head.method).uri(head.uri).body(kube::client::Body::from(body))?;
        *request.headers_mut() = head.headers;
        OF_THE_CONNECTION.iter().for_each(|name| {
            request.headers_mut().remove(name);
        });
        let mut answer = self
            .api
            .send(request)
            .await?
            .map(|body| body.map_err(|error| -> BoxError { Box::new(error) }).boxed_unsync());
        OF_THE_CONNECTION.iter().for_each(|name| {
            answer.headers_mut().remove(name);
        });
        if asked.is_watch() && answer.status().is_success() {
            return Ok(answer.map(|body| self.shared.state().watches.open(body)));
        }
        Ok(answer)
    }
}

/// The same answer, once all of it is there.
async fn whole(answer: Answer) -> Result<Answer, BoxError> {
    let (head, body) = answer.into_parts();
    let body = Full::from(body.collect().await?.to_bytes());
    Ok(Response::from_parts(head, body.map_err(|never| match never {}).boxed_unsync()))
}

/// How the API server answers a watch from a state that is gone.
fn expired_in_stream() -> Result<Answer, BoxError> {
    let event = json!({"type": "ERROR", "object": refusal::expired()});
    let body = Full::from(format!("{event}\n")).map_err(|never| match never {}).boxed_unsync();
    Ok(Response::builder().header(header::CONTENT_TYPE, "application/json").body(body)?)
}
