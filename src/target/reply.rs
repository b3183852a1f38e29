//! One pure function that tells every reply of the API server apart, by verb, code, reason, causes and message.
//!
//! Its test vectors are recorded real replies (`tests/golden/replies/`).

use serde::Deserialize;

use super::{error::TargetError, held::Held};
use crate::{annotations::quoted, error::BoxError};

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// POST.
    Create,
    /// PUT, a probe or a change.
    Update,
}

/// What the API server said to it.
#[derive(Debug)]
pub(super) enum Reply {
    /// 2xx.
    Accepted,
    /// A probe found a Secret of ours.
    Ours(Held),
    /// PUT to a name that is free.
    Absent,
    /// POST to a name that is taken.
    Exists,
    /// PUT of a state that is no longer the newest.
    Changed,
    /// The namespace is gone or going, and with it the pod.
    NamespaceGone,
    /// Anything else.
    Refused(TargetError),
}

/// The parts of `metav1.Status` that tell replies apart.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    message: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    details: Details,
}

#[derive(Debug, Default, Deserialize)]
struct Details {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    field: String,
    #[serde(default)]
    message: String,
}

impl Status {
    /// The message, shortened, for logs and operators.
    pub(super) fn said(&self) -> String {
        self.message.chars().take(300).collect()
    }
}

/// Which admission policy refused, if one did.
pub(super) fn refusing_policy(status: &Status) -> Option<&str> {
    policy_of(&status.message).map(|(policy, _)| policy)
}

/// What a body without a readable Status becomes: code and verb still count.
pub(super) fn read_status(body: &[u8]) -> Status {
    serde_json::from_slice(body).unwrap_or_default()
}

/// Tells a reply apart. `target` is namespace and name, for messages.
pub(super) fn classify(verb: Verb, code: u16, status: Status, target: &str) -> Reply {
    let in_namespace = status.details.kind == "namespaces";
    match code {
        200..300 => Reply::Accepted,
        401 => Reply::Refused(TargetError::Unauthenticated),
        403 => forbidden(status, target),
        404 if verb == Verb::Create || in_namespace => Reply::NamespaceGone,
        404 => Reply::Absent,
        409 if status.reason == "AlreadyExists" => Reply::Exists,
        // A conflict about anything else (a quota that is being counted, say) passes.
        409 if status.details.kind.is_empty() || status.details.kind == "secrets" => Reply::Changed,
        422 => Reply::Refused(invalid(&status, target)),
        400 | 413 => {
            Reply::Refused(TargetError::Invalid { target: target.to_owned(), fields: "its size or form".to_owned() })
        }
        _ => Reply::Refused(unexpected(code, status, target)),
    }
}

fn forbidden(status: Status, target: &str) -> Reply {
    if status.details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating") {
        return Reply::NamespaceGone;
    }
    let target = target.to_owned();
    let message = status.message;
    let refused = if let Some((policy, said)) = policy_of(&message) {
        return by_policy(policy, said, target);
    } else if let Some(webhook) = between(&message, "admission webhook \"", "\" denied the request") {
        TargetError::Forbidden {
            target,
            by: format!("the admission webhook {}", quoted(webhook)),
            source: said_at_length(&message),
        }
    } else if message.contains("exceeded quota: ") {
        TargetError::Quota { target }
    } else if let Some((verb, rest)) =
        message.split_once(" cannot ").and_then(|(_, rest)| rest.split_once(" resource \""))
    {
        let resource = rest.split('"').next().unwrap_or_default();
        TargetError::Rbac { verb: word(verb), resource: word(resource) }
    } else {
        TargetError::Forbidden { target, by: "the API server".to_owned(), source: said_at_length(&message) }
    };
    Reply::Refused(refused)
}

/// Policy and message of `... ValidatingAdmissionPolicy 'NAME' with binding 'NAME' denied request: MESSAGE`.
fn policy_of(message: &str) -> Option<(&str, &str)> {
    let (head, said) = message.split_once(" denied request: ")?;
    Some((between(head, "ValidatingAdmissionPolicy '", "'")?, said))
}

fn by_policy(policy: &str, said: &str, target: String) -> Reply {
    if !policy.starts_with(super::admission::POLICY_PREFIX) {
        let by = format!("the admission policy {}", quoted(policy));
        return Reply::Refused(TargetError::Forbidden { target, by, source: said_at_length(said) });
    }
    if let Some(told) = said.strip_prefix("jasm:probe ") {
        return match Held::parse(told) {
            Some(held) => Reply::Ours(held),
            None => Reply::Refused(TargetError::Unreadable { target }),
        };
    }
    Reply::Refused(match said {
        "jasm:not-ours" => TargetError::NotOurs { target },
        "jasm:probe-unreadable" => TargetError::Unreadable { target },
        _ => TargetError::OwnPolicy { target, policy: word(policy), said: said.chars().take(200).collect() },
    })
}

/// Only field names go on: a message of the API server may quote what was sent.
fn invalid(status: &Status, target: &str) -> TargetError {
    let target = target.to_owned();
    let causes = &status.details.causes;
    let about = |field: &str| causes.iter().find(|cause| cause.field == field);
    if about("type").is_some() {
        return TargetError::TypeDiffers { target };
    }
    if about("data").is_some_and(|cause| cause.message.contains("immutable")) {
        return TargetError::Immutable { target };
    }
    let mut fields: Vec<String> = causes.iter().map(|cause| quoted(&cause.field)).collect();
    fields.dedup();
    fields.truncate(5);
    let fields = if fields.is_empty() { "an unnamed field".to_owned() } else { fields.join(", ") };
    TargetError::Invalid { target, fields }
}

fn unexpected(code: u16, status: Status, target: &str) -> TargetError {
    let target = target.to_owned();
    match between(&status.message, "failed calling webhook \"", "\"") {
        Some(webhook) => TargetError::Forbidden {
            target,
            by: format!("the admission webhook {}, which could not be called,", quoted(webhook)),
            source: said_at_length(&status.message),
        },
        None => TargetError::Busy { target, code, source: said_at_length(&status.message) },
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(found, _)| found)
}

fn word(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).take(64).collect()
}

/// For the log only.
fn said_at_length(message: &str) -> BoxError {
    message.chars().take(300).collect::<String>().into()
}
