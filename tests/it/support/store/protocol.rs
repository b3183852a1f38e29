//! The right answers of a store, from the emulator, from this program or from both.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use http::request::Parts;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};

use super::super::front::{Asked, Protocol, Refusal, Upstream, answer, passed_on};
use super::GET;
use super::aws::{self, Form, POD_IDENTITY};
use super::parameters::{self, GET_PARAMETERS};
use super::sts::{ASSUME_ROLE, Sts, WEB_IDENTITY};

/// What answers in AWS's place.
#[derive(Debug)]
pub(crate) struct Aws {
    pub(super) backend: Backend,
    settings: Mutex<Settings>,
}

/// Who knows the values.
#[derive(Debug)]
pub(super) enum Backend {
    /// The emulator, shared by all stores of a run.
    Emulator(Box<Upstream>),
    /// This program, after a pause: for the benchmark, since the emulator manages only some 180 requests a second.
    Stub { latency: Duration, secrets: Mutex<BTreeMap<String, String>> },
}

#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) pod_identity: Option<PodIdentity>,
    pub(super) web_identity_lifetime: Option<Duration>,
    pub(super) sts: Option<Sts>,
}

/// What the Pod Identity endpoint hands out.
#[derive(Debug, Clone)]
pub(super) struct PodIdentity {
    pub(super) token_file: PathBuf,
    pub(super) access_key: String,
    pub(super) lifetime: Duration,
}

impl Protocol for Aws {
    fn read(&self, head: &Parts, body: &[u8]) -> Asked {
        aws::read(head, body)
    }

    async fn right(&self, asked: &Asked, request: Request<Full<Bytes>>) -> Response {
        if asked.action == POD_IDENTITY {
            return self.pod_identity(&asked.credential);
        }
        let request = match self.by_sts(asked, request).await {
            Ok(answer) => return answer,
            Err(request) => request,
        };
        match &self.backend {
            Backend::Emulator(emulator) if asked.action == GET_PARAMETERS => {
                parameters::by_name(emulator, asked, request).await
            }
            Backend::Emulator(emulator) => self.forward(emulator, asked, request).await,
            Backend::Stub { latency, secrets } => {
                tokio::time::sleep(*latency).await;
                stub(secrets, asked)
            }
        }
    }

    fn refusal(&self, asked: &Asked, refusal: Refusal) -> Response {
        aws::refusal(asked, refusal)
    }
}

impl Aws {
    pub(super) fn new(backend: Backend) -> Self {
        Self { backend, settings: Mutex::default() }
    }

    pub(super) fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().expect("nothing panics while it holds the store's settings")
    }

    /// What the double's own token service answers, or the value that a holder alone is given; else the request again.
    async fn by_sts(&self, asked: &Asked, request: Request<Full<Bytes>>) -> Result<Response, Request<Full<Bytes>>> {
        if self.settings().sts.is_none() {
            return Err(request);
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap_or_else(|never| match never {}).to_bytes();
        let mut settings = self.settings();
        let sts = settings.sts.get_or_insert_default();
        if [WEB_IDENTITY, ASSUME_ROLE].contains(&asked.action.as_str()) {
            return Ok(sts.answer(asked, &body));
        }
        let path = asked.subjects.first().map(String::as_str).unwrap_or_default();
        match sts.own_value(&asked.credential, path) {
            Some(value) if asked.action == GET => Ok(aws::secret_answer(path, Some(value.clone()))),
            _ => Err(Request::from_parts(head, Full::new(body))),
        }
    }

    fn pod_identity(&self, token: &str) -> Response {
        if let Some(sts) = &mut self.settings().sts {
            return sts.at_eks(token);
        }
        let Some(served) = self.settings().pod_identity.clone() else {
            return answer(StatusCode::NOT_FOUND, "text/plain", "no Pod Identity in this test");
        };
        match std::fs::read_to_string(&served.token_file) {
            Ok(wanted) if wanted.trim() == token => aws::pod_credentials(&served.access_key, served.lifetime),
            _ => answer(StatusCode::UNAUTHORIZED, "text/plain", "this is not the token in the token file"),
        }
    }

    /// Asks the emulator the same and passes on what it says.
    async fn forward(&self, emulator: &Upstream, asked: &Asked, request: Request<Full<Bytes>>) -> Response {
        let mut reply = match emulator.ask(request).await {
            Ok(reply) => reply,
            Err(answer) => return answer,
        };
        // AWS answers a missing secret with 400, the emulator with 404.
        if Form::of(asked) == Form::Json && reply.status == StatusCode::NOT_FOUND {
            reply.status = StatusCode::BAD_REQUEST;
        }
        let mut answer = passed_on(reply);
        let lifetime = self.settings().web_identity_lifetime;
        if let Some(lifetime) = lifetime.filter(|_| asked.action == "AssumeRoleWithWebIdentity") {
            let body = std::mem::take(answer.body_mut());
            let xml = axum::body::to_bytes(body, usize::MAX).await.expect("an answer in memory can be read");
            *answer.body_mut() = Body::from(aws::with_expiry(&String::from_utf8_lossy(&xml), lifetime));
        }
        answer
    }
}

fn stub(secrets: &Mutex<BTreeMap<String, String>>, asked: &Asked) -> Response {
    match (asked.action.as_str(), asked.subjects.first()) {
        (GET, Some(path)) => aws::secret_answer(path, super::open(secrets).get(path).cloned()),
        ("GetCallerIdentity", _) => aws::caller_identity(),
        (action, _) => aws::refused(asked, "InvalidAction", &format!("a stub has no {action}")),
    }
}
