//! Answers that the API server did not give, in its own words: `harness_proxy` compares them with real ones.

use http::{Response, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use super::super::node::{AGENT_ACCOUNT, AGENT_NAMESPACE};
use super::rule::Asked;
use super::server::{Answer, BoxError};

/// A refusal in the words that fit the request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Refusal {
    /// 403, as RBAC says it about the agent.
    NoRight,
    /// 404, to a POST into a namespace that is gone.
    NoNamespace,
    /// 409, to a POST of what is there.
    AlreadyExists,
    /// 409, to a PUT of a state that is not the newest.
    Conflict,
    /// 410, to a watch from a state that is gone.
    Expired,
    /// 429 with `Retry-After` in seconds, in plain text: an API server that has too much to do.
    Overloaded {
        /// In seconds.
        retry_after: u32,
    },
    /// 429 with `Retry-After` in seconds, as a Status: an API server whose cache is being filled.
    Initializing {
        /// In seconds.
        retry_after: u32,
    },
    /// 422, to a watch that begins with a list: an API server of Kubernetes 1.30.
    NoStreamingLists,
    /// 503.
    Unavailable,
    /// Any code, with a message that quotes all that was sent.
    Echo {
        /// The answer's status.
        code: u16,
        /// How the message begins.
        said: &'static str,
    },
}

impl Refusal {
    /// The whole answer to a request with this body.
    pub(super) fn answer(self, asked: &Asked, body: &[u8]) -> Result<Answer, BoxError> {
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        let mut object = Object::of(&asked.path);
        if matches!(self, Self::AlreadyExists) {
            // The path of a POST is that of the collection.
            object.name = sent["metadata"]["name"].as_str().unwrap_or_default();
        }
        let code = self.code();
        let mut answer = Response::builder().status(code);
        if let Self::Overloaded { retry_after } | Self::Initializing { retry_after } = self {
            answer = answer.header(header::RETRY_AFTER, retry_after);
        }
        let mut status = self.status(asked, &object);
        if let (Self::Echo { said, .. }, Some(status)) = (self, &mut status) {
            status["message"] = json!(format!("{said}{}", String::from_utf8_lossy(body)));
        }
        let (content_type, body) = match status {
            Some(status) => ("application/json", status.to_string()),
            None => ("text/plain; charset=utf-8", "Too many requests, please try again later.\n".to_owned()),
        };
        let body = Full::from(body).map_err(|never| match never {}).boxed_unsync();
        Ok(answer.header(header::CONTENT_TYPE, content_type).body(body)?)
    }

    fn code(self) -> u16 {
        match self {
            Self::NoRight => 403,
            Self::NoNamespace => 404,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Expired => 410,
            Self::Overloaded { .. } | Self::Initializing { .. } => 429,
            Self::NoStreamingLists => 422,
            Self::Unavailable => 503,
            Self::Echo { code, .. } => code,
        }
    }

    /// The `metav1.Status`, where the API server sends one.
    fn status(self, asked: &Asked, object: &Object<'_>) -> Option<Value> {
        let Object { group, resource, namespace, name } = *object;
        let subject = if name.is_empty() { kind(object) } else { format!("{} \"{name}\"", kind(object)) };
        let (reason, message, details) = match self {
            Self::NoRight => {
                let (account, verb) =
                    (format!("system:serviceaccount:{AGENT_NAMESPACE}:{AGENT_ACCOUNT}"), verb(asked, name));
                let place = match namespace {
                    "" => "at the cluster scope".to_owned(),
                    namespace => format!("in the namespace \"{namespace}\""),
                };
                let said = format!(
                    "{subject} is forbidden: User \"{account}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {place}"
                );
                ("Forbidden", said, about(group, resource, name))
            }
            Self::NoNamespace => {
                ("NotFound", format!("namespaces \"{namespace}\" not found"), about("", "namespaces", namespace))
            }
            Self::AlreadyExists => ("AlreadyExists", format!("{subject} already exists"), about(group, resource, name)),
            Self::Conflict => {
                let said = format!(
                    "Operation cannot be fulfilled on {subject}: the object has been modified; please apply your changes to the latest version and try again"
                );
                ("Conflict", said, about(group, resource, name))
            }
            Self::Expired => return Some(expired()),
            Self::Overloaded { .. } => return None,
            Self::Initializing { retry_after } => {
                ("TooManyRequests", "storage is (re)initializing".to_owned(), json!({"retryAfterSeconds": retry_after}))
            }
            Self::NoStreamingLists => {
                let said = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
                ("Invalid", said.to_owned(), json!({"group": "meta.k8s.io", "kind": "ListOptions"}))
            }
            Self::Echo { .. } => ("", String::new(), Value::Null),
            Self::Unavailable => {
                ("ServiceUnavailable", "the server is currently unable to handle the request".to_owned(), Value::Null)
            }
        };
        let mut status = status(self.code(), reason, &message);
        if !details.is_null() {
            status["details"] = details;
        }
        Some(status)
    }
}

/// The Status of 410, which a watch gets as its answer or in an event.
pub(super) fn expired() -> Value {
    status(410, "Expired", "too old resource version: 1 (2)")
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    })
}

/// The `details` of a Status; what is empty is left out.
fn about(group: &str, resource: &str, name: &str) -> Value {
    let fields = [("name", name), ("group", group), ("kind", resource)];
    fields
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect()
}

/// The resource with its group, as the API server names it in messages.
fn kind(object: &Object<'_>) -> String {
    match object.group {
        "" => object.resource.to_owned(),
        group => format!("{}.{group}", object.resource),
    }
}

/// What RBAC calls what was asked.
fn verb(asked: &Asked, name: &str) -> &'static str {
    match asked.method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ if asked.is_watch() => "watch",
        _ if name.is_empty() => "list",
        _ => "get",
    }
}

/// What a path is about; empty where it does not say.
struct Object<'a> {
    group: &'a str,
    resource: &'a str,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Object<'a> {
    /// `/api/v1/namespaces/NAMESPACE/secrets/NAME` or `/apis/GROUP/VERSION/...`.
    fn of(path: &'a str) -> Self {
        let mut parts = path.trim_start_matches('/').split('/');
        let group = if parts.next() == Some("apis") { parts.next().unwrap_or_default() } else { "" };
        let rest: Vec<_> = parts.skip(1).collect();
        let (namespace, rest) = match rest.as_slice() {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let at = |index: usize| rest.get(index).copied().unwrap_or_default();
        Self { group, resource: at(0), namespace, name: at(1) }
    }
}
