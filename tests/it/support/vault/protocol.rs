//! Vault's wire forms: reading requests, and its words for refusals.

use axum::body::Bytes;
use axum::response::Response;
use http::request::Parts;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use super::super::front::{Asked, Protocol, Refusal, Upstream, answer, header, passed_on};
use super::{KV1, KV2};

/// Reads of values.
pub(crate) const READ: &str = "read";
/// Logins by whichever auth method; the credential is the JWT or the secret id.
pub(crate) const LOGIN: &str = "login";
/// Renewals of the sender's own token.
pub(crate) const RENEW: &str = "renew";
/// Questions about the sender's own token.
pub(crate) const LOOKUP: &str = "lookup";
/// Questions about mounts, by `sys/internal/ui/mounts`.
pub(crate) const MOUNT: &str = "mount";
/// Stands in the text of each refusal for want of rights.
pub(crate) const PERMISSION_DENIED_TEXT: &str = "permission denied";

/// What answers in Vault's place: Vault.
#[derive(Debug)]
pub(crate) struct Api(pub(super) Upstream);

impl Protocol for Api {
    fn read(&self, head: &Parts, body: &[u8]) -> Asked {
        let path = head.uri.path().trim_start_matches("/v1/");
        let (action, subject) = about(&head.method, path);
        let token = header(&head.headers, "x-vault-token").to_owned();
        let credential = if action == LOGIN { shown_at_login(body) } else { token };
        Asked {
            action: action.to_owned(),
            subjects: subject.into_iter().map(ToOwned::to_owned).collect(),
            credential,
            headers: head.headers.clone(),
        }
    }

    async fn right(&self, _: &Asked, request: Request<Full<Bytes>>) -> Response {
        self.0.ask(request).await.map_or_else(|answer| answer, passed_on)
    }

    fn refusal(&self, asked: &Asked, refusal: Refusal) -> Response {
        let errors = |status, text: String| json_answer(status, &json!({"errors": [text]}));
        match refusal {
            Refusal::AccessDenied => {
                errors(StatusCode::FORBIDDEN, format!("1 error occurred:\n\t* {PERMISSION_DENIED_TEXT}\n\n"))
            }
            Refusal::Throttling => {
                let path = asked.subjects.first().unwrap_or(&asked.action);
                errors(StatusCode::TOO_MANY_REQUESTS, format!("request path {path:?}: rate limit quota exceeded"))
            }
            Refusal::PendingDeletion => json_answer(StatusCode::NOT_FOUND, &deleted()),
            Refusal::Unavailable => errors(StatusCode::SERVICE_UNAVAILABLE, "Vault is sealed".to_owned()),
        }
    }
}

/// The action, and the secret's path below its mount where the request is about one. A path on the wire is not decoded.
fn about<'a>(method: &Method, path: &'a str) -> (&'static str, Option<&'a str>) {
    if let Some(auth) = path.strip_prefix("auth/") {
        let action = match auth {
            "token/renew-self" => RENEW,
            "token/lookup-self" => LOOKUP,
            _ if auth.contains("/login") => LOGIN,
            _ => "auth",
        };
        return (action, None);
    }
    if path.starts_with("sys/") {
        return (if path.starts_with("sys/internal/ui/mounts") { MOUNT } else { "sys" }, None);
    }
    let action = match *method {
        Method::GET => READ,
        Method::DELETE => "delete",
        Method::PUT | Method::POST | Method::PATCH => "write",
        _ => "list",
    };
    let version_2 = [format!("{KV2}/data/"), format!("{KV2}/metadata/")];
    let subject = version_2.iter().find_map(|prefix| path.strip_prefix(prefix.as_str()));
    (action, subject.or_else(|| path.strip_prefix(KV1)?.strip_prefix('/')))
}

fn shown_at_login(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let shown = ["jwt", "secret_id"].iter().find_map(|field| body[*field].as_str());
    shown.unwrap_or_default().to_owned()
}

/// How Vault answers for a version that was deleted.
fn deleted() -> Value {
    let metadata = json!({
        "created_time": "2026-01-01T00:00:00Z",
        "custom_metadata": null,
        "deletion_time": "2026-01-01T00:00:01Z",
        "destroyed": false,
        "version": 1,
    });
    json!({"request_id": "0", "lease_id": "", "renewable": false, "data": {"data": null, "metadata": metadata}})
}

fn json_answer(status: StatusCode, body: &Value) -> Response {
    answer(status, "application/json", body.to_string())
}
