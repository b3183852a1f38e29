//! The HTTP side of a store.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::serve::ListenerExt as _;
use http::{StatusCode, header};
use http_body_util::Full;
use tokio::net::TcpListener;

use super::super::http::Http;
use super::super::say;
use super::aws::{self, Asked, Fault, Protocol};
use super::{Backend, Call, GET, NO_PANIC, Shared};

/// Serves for good.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let front = Arc::new(Front { shared, http: Http::new() });
    let app = Router::new().fallback(respond).with_state(front);
    axum::serve(listener, app).await.expect("a loopback server does not end by itself");
}

struct Front {
    shared: Arc<Shared>,
    http: Http,
}

/// One request: note it, find its answer, hold that at a gate where there is one.
async fn respond(State(front): State<Arc<Front>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return aws::answer(StatusCode::BAD_REQUEST, "text/plain", "the request was cut short");
    };
    let asked = Asked::read(&head, &body);
    let fault = front.note(&asked);
    let right = front.right(&asked, Request::from_parts(head, Full::from(body)));
    let answer = match fault {
        Some(fault) => aws::spoiled(fault, &asked, right).await,
        None => right.await,
    };
    front.pass(&asked).await;
    answer
}

impl Front {
    /// Counts a request; returns what shall be wrong with its answer.
    fn note(&self, asked: &Asked) -> Option<Fault> {
        let mut state = self.shared.state();
        state.calls.push(Call {
            action: asked.action.clone(),
            secret: asked.secret.clone(),
            credential: asked.credential.clone(),
        });
        let key = keys(asked).find(|key| state.faults.contains_key(*key))?.to_owned();
        let spoiling = state.faults.get_mut(&key)?;
        let fault = spoiling.fault.clone();
        spoiling.asked += 1;
        if spoiling.asked % spoiling.every != 0 {
            return None;
        }
        match &mut spoiling.left {
            None => return Some(fault),
            Some(left) => *left = left.saturating_sub(1),
        }
        if spoiling.left == Some(0) {
            state.faults.remove(&key);
        }
        Some(fault)
    }

    /// Returns when no gate stands in the way of the answer.
    async fn pass(&self, asked: &Asked) {
        let gate = {
            let state = self.shared.state();
            keys(asked).find_map(|key| state.gates.get(key)).map(Arc::clone)
        };
        if let Some(gate) = gate {
            gate.pass().await;
        }
    }

    /// The answer without any fault.
    async fn right(&self, asked: &Asked, request: http::Request<Full<axum::body::Bytes>>) -> Response {
        if asked.protocol == Protocol::PodIdentity {
            return self.pod_identity(&asked.credential);
        }
        match &self.shared.backend {
            Backend::Emulator { url } => self.forward(url, asked, request).await,
            Backend::Stub { latency, .. } => self.stub(*latency, asked).await,
        }
    }

    fn pod_identity(&self, token: &str) -> Response {
        let Some(served) = self.shared.state().pod_identity.clone() else {
            return aws::answer(StatusCode::NOT_FOUND, "text/plain", "no Pod Identity in this test");
        };
        match std::fs::read_to_string(&served.token_file) {
            Ok(wanted) if wanted.trim() == token => aws::pod_credentials(&served.access_key, served.lifetime),
            _ => aws::answer(StatusCode::UNAUTHORIZED, "text/plain", "this is not the token in the token file"),
        }
    }

    async fn stub(&self, latency: Duration, asked: &Asked) -> Response {
        let Backend::Stub { secrets, .. } = &self.shared.backend else { unreachable!("called for a stub") };
        tokio::time::sleep(latency).await;
        match (asked.action.as_str(), &asked.secret) {
            (GET, Some(path)) => aws::secret_answer(path, secrets.lock().expect(NO_PANIC).get(path).cloned()),
            ("GetCallerIdentity", _) => aws::caller_identity(),
            (action, _) => aws::refusal(asked.protocol, "InvalidAction", &format!("a stub has no {action}")),
        }
    }

    /// Asks the emulator the same and passes on what it says.
    async fn forward(&self, url: &str, asked: &Asked, request: http::Request<Full<axum::body::Bytes>>) -> Response {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        head.uri = format!("{url}{path}").parse().expect("the emulator's URL and a request's path are a URL");
        for name in [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
            head.headers.remove(name);
        }
        let reply = match self.http.send(http::Request::from_parts(head, body)).await {
            Ok(reply) => reply,
            Err(error) => {
                say(&format!("{} got no answer from the emulator: {error}", asked.action));
                return aws::answer(StatusCode::BAD_GATEWAY, "text/plain", "the emulator did not answer");
            }
        };
        // AWS answers a missing secret with 400, the emulator with 404.
        let missing = asked.protocol == Protocol::Json && reply.status == StatusCode::NOT_FOUND;
        let mut answer = Response::new(self.body(asked, reply.body));
        *answer.status_mut() = if missing { StatusCode::BAD_REQUEST } else { reply.status };
        for (name, value) in &reply.headers {
            if ![header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(name) {
                answer.headers_mut().append(name, value.clone());
            }
        }
        answer
    }

    fn body(&self, asked: &Asked, body: axum::body::Bytes) -> Body {
        let lifetime = self.shared.state().web_identity_lifetime;
        match lifetime {
            Some(lifetime) if asked.action == "AssumeRoleWithWebIdentity" => {
                aws::with_expiry(&String::from_utf8_lossy(&body), lifetime).into()
            }
            _ => body.into(),
        }
    }
}

/// The keys under which a request may be held or spoiled, the most particular first.
fn keys(asked: &Asked) -> impl Iterator<Item = &str> {
    let secret = if asked.action == GET { asked.secret.as_deref() } else { None };
    secret.into_iter().chain([asked.action.as_str()])
}
