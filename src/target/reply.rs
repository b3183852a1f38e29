//! One pure function that tells every reply of the API server apart, by verb, code, reason, causes and message.
//!
//! Its test vectors are recorded real replies (`tests/golden/replies.jsonl`).

use serde::{Deserialize, Serialize};

use super::{
    error::TargetError,
    held::{Held, kinds},
};
use crate::{annotations::quoted, error::BoxError, request::ObjectKind};

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
    /// 2xx: what is stored now.
    Accepted(Stored),
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

/// Which object it is, in which state; empty where the reply did not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// What tells it from an earlier object of the same name.
    #[serde(default)]
    pub uid: String,
    /// What tells this state from others.
    #[serde(default)]
    pub resource_version: String,
}

impl Stored {
    /// How late the state is among all states of objects of its kind, also across deletions (KEP-5504); `None` where that is not
    /// known.
    pub fn revision(&self) -> Option<u64> {
        self.resource_version.parse().ok()
    }
}

/// The parts of `metav1.Status` that tell replies apart; of an object that was stored, its metadata.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    metadata: Stored,
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
        shortened(&self.message)
    }
}

/// Which admission policy refused, if one did.
pub(super) fn refusing_policy(status: &Status) -> Option<&str> {
    policy_of(&status.message).map(|(policy, _)| policy)
}

/// Whether this policy refused a token of this account, and nobody else.
pub(super) fn refuses_tokens(policy: &str, account: &str, status: &Status) -> bool {
    let by = format!("serviceaccounts \"{account}\" is forbidden: ValidatingAdmissionPolicy '{policy}' with binding '");
    status.message.starts_with(&by)
}

/// Verb and resource that RBAC refused, if it did: `User "U" cannot VERB resource "R" in API group ..`.
pub(super) fn refused_by_rbac(status: &Status) -> Option<(&str, &str)> {
    let (verb, rest) = status.message.split_once(" cannot ")?.1.split_once(" resource \"")?;
    Some((verb, rest.split('"').next().unwrap_or_default()))
}

/// What a body without a readable Status becomes: code and verb still count.
pub(super) fn read_status(body: &[u8]) -> Status {
    serde_json::from_slice(body).unwrap_or_default()
}

/// Tells a reply apart. `target` is kind, namespace and name, for messages.
///
/// Who spoke comes first: policies and webhooks choose the code of their refusals.
pub(super) fn classify(verb: Verb, code: u16, status: &Status, target: &str) -> Reply {
    let message = status.message.as_str();
    if (200..300).contains(&code) {
        return Reply::Accepted(status.metadata.clone());
    }
    if let Some((policy, said)) = policy_of(message) {
        return by_policy(policy, said, target);
    }
    if let Some(error) = by_webhook(message, target) {
        return Reply::Refused(error);
    }
    let invalid_form = || "its size or form".to_owned();
    match code {
        401 => Reply::Refused(TargetError::Unauthenticated),
        403 => forbidden(status, target),
        404 if verb == Verb::Create || status.details.kind == "namespaces" => Reply::NamespaceGone,
        404 => Reply::Absent,
        409 if status.reason == "AlreadyExists" => Reply::Exists,
        // A conflict about anything else (a quota that is being counted, say) passes.
        409 if is_about_ours(&status.details.kind) => Reply::Changed,
        422 => Reply::Refused(invalid(status, target)),
        400 | 413 => Reply::Refused(TargetError::Invalid { target: target.to_owned(), fields: invalid_form() }),
        _ => Reply::Refused(TargetError::Busy { target: target.to_owned(), code, source: for_the_log(message) }),
    }
}

/// What a read that gave nothing means; `None` where there is nothing.
pub(super) fn classify_read(code: u16, body: &[u8], target: &str) -> Option<TargetError> {
    let status = read_status(body);
    match code {
        404 => None,
        401 => Some(TargetError::Unauthenticated),
        403 => match refused_by_rbac(&status) {
            Some((verb, resource)) => Some(TargetError::Rbac { verb: word(verb), resource: word(resource) }),
            None => {
                let (target, by) = (target.to_owned(), "the API server".to_owned());
                Some(TargetError::Forbidden { target, by, source: for_the_log(&status.message) })
            }
        },
        _ => Some(TargetError::Busy { target: target.to_owned(), code, source: for_the_log(&status.message) }),
    }
}

fn forbidden(status: &Status, target: &str) -> Reply {
    if status.details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating") {
        return Reply::NamespaceGone;
    }
    let target = target.to_owned();
    let message = status.message.as_str();
    let refused = if message.contains("exceeded quota: ") {
        TargetError::Quota { target }
    } else if let Some((verb, resource)) = refused_by_rbac(status) {
        TargetError::Rbac { verb: word(verb), resource: word(resource) }
    } else {
        TargetError::Forbidden { target, by: "the API server".to_owned(), source: for_the_log(message) }
    };
    Reply::Refused(refused)
}

/// Policy and message of `secrets "NAME" is forbidden: ValidatingAdmissionPolicy 'P' with binding 'B' denied request: SAID`.
///
/// Read from the start: what a policy says may imitate another policy.
fn policy_of(message: &str) -> Option<(&str, &str)> {
    let (_name, rest) = of_ours(message)?.split_once("\" is forbidden: ValidatingAdmissionPolicy '")?;
    let (policy, rest) = rest.split_once("' with binding '")?;
    let (_binding, said) = rest.split_once("' denied request: ")?;
    Some((policy, said))
}

/// What follows the resource at the start of a message about a Secret or ConfigMap.
fn of_ours(message: &str) -> Option<&str> {
    [ObjectKind::Secret, ObjectKind::ConfigMap]
        .into_iter()
        .find_map(|kind| message.strip_prefix(kind.plural())?.strip_prefix(" \""))
}

fn is_about_ours(kind: &str) -> bool {
    kind.is_empty() || [ObjectKind::Secret, ObjectKind::ConfigMap].iter().any(|ours| ours.plural() == kind)
}

fn by_policy(policy: &str, said: &str, target: &str) -> Reply {
    let target = target.to_owned();
    if !policy.starts_with(super::admission::POLICY_PREFIX) {
        let by = format!("the admission policy {}", quoted(policy));
        return Reply::Refused(TargetError::Forbidden { target, by, source: left_out() });
    }
    if let Some(told) = said.strip_prefix("jasm:probe ") {
        return match Held::parse(told) {
            Some(held) => Reply::Ours(held),
            None => Reply::Refused(TargetError::Unreadable { target }),
        };
    }
    let shortened = |said: &str| said.chars().take(200).collect();
    if let Some(said) = said.strip_prefix("jasm:namespace ") {
        return Reply::Refused(TargetError::NamespaceClosed { target, said: shortened(said) });
    }
    if let Some(others) = said.strip_prefix("jasm:others ") {
        return Reply::Refused(TargetError::Decorated { target, kinds: kinds(others) });
    }
    Reply::Refused(match said {
        "jasm:not-ours" => TargetError::NotOurs { target },
        "jasm:probe-unreadable" => TargetError::Unreadable { target },
        _ => TargetError::OwnPolicy { target, policy: word(policy), said: shortened(said) },
    })
}

fn by_webhook(message: &str, target: &str) -> Option<TargetError> {
    let target = target.to_owned();
    if let Some((webhook, _)) =
        message.strip_prefix("admission webhook \"").and_then(|rest| rest.split_once("\" denied the request"))
    {
        let by = format!("the admission webhook {}", quoted(webhook));
        return Some(TargetError::Forbidden { target, by, source: left_out() });
    }
    let (webhook, _) = message.split_once("failed calling webhook \"")?.1.split_once('"')?;
    Some(TargetError::WebhookDown { target, webhook: quoted(webhook), source: left_out() })
}

/// Only field names go on: a message of the API server may quote what was sent.
fn invalid(status: &Status, target: &str) -> TargetError {
    let target = target.to_owned();
    let causes = &status.details.causes;
    let about = |field: &str| causes.iter().find(|cause| cause.field == field);
    if about("type").is_some() {
        return TargetError::TypeDiffers { target };
    }
    if ["data", "immutable"].iter().any(|field| about(field).is_some_and(|cause| cause.message.contains("immutable"))) {
        return TargetError::Immutable { target };
    }
    let mut fields: Vec<String> = causes.iter().map(|cause| quoted(&cause.field)).collect();
    fields.dedup();
    fields.truncate(5);
    let fields = if fields.is_empty() { "an unnamed field".to_owned() } else { fields.join(", ") };
    TargetError::Invalid { target, fields }
}

fn word(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).take(64).collect()
}

/// A policy or webhook of somebody else's sees the value, and may quote it.
fn left_out() -> BoxError {
    "its words are left out: they may quote what was sent".into()
}

/// For the log only: what others wrote.
fn for_the_log(message: &str) -> BoxError {
    shortened(message).into()
}

fn shortened(message: &str) -> String {
    message.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Recorded {
        case: String,
        verb: String,
        code: u16,
        want: String,
        body: Box<serde_json::value::RawValue>,
    }

    fn label(reply: &Reply) -> &'static str {
        match reply {
            Reply::Accepted(_) => "accepted",
            Reply::Ours(_) => "ours",
            Reply::Absent => "absent",
            Reply::Exists => "exists",
            Reply::Changed => "changed",
            Reply::NamespaceGone => "namespace-gone",
            Reply::Refused(error) => error.action(),
        }
    }

    fn recorded() -> Vec<(Recorded, Reply)> {
        let read = |line| {
            let recorded: Recorded = serde_json::from_str(line).expect("a recorded reply");
            let verb = if recorded.verb == "POST" { Verb::Create } else { Verb::Update };
            let reply =
                classify(verb, recorded.code, &read_status(recorded.body.get().as_bytes()), "Secret team-a/app");
            (recorded, reply)
        };
        include_str!("../../tests/golden/replies.jsonl").lines().map(read).collect()
    }

    /// Replies of kube-apiserver v1.37.2, as they came over the wire.
    #[test]
    fn recorded_replies_are_told_apart() {
        let all = recorded();
        assert!(all.len() > 100);
        for (recorded, reply) in all {
            assert_eq!(label(&reply), recorded.want, "case: {}: {reply:?}", recorded.case);
        }
    }

    #[test]
    fn what_others_wrote_stays_in_the_source() {
        for (recorded, reply) in recorded() {
            if let Reply::Refused(error) = reply {
                let text = error.to_string();
                for foreign in ["no secrets here", "secrets come from", "dial tcp"] {
                    let whole = crate::error::chain(&error);
                    assert!(!whole.contains(foreign), "case: {}: not in the log either: {whole}", recorded.case);
                }
                for foreign in
                    ["no secrets here", "secrets come from", "dial tcp", "keepalive", "system:serviceaccount"]
                {
                    assert!(!text.contains(foreign), "case: {}: {text}", recorded.case);
                }
            }
        }
    }

    #[test]
    fn a_probe_tells_what_the_secret_says_of_itself() {
        let (_, reply) = recorded().into_iter().find(|(recorded, _)| recorded.case == "probe-ours").expect("recorded");
        let Reply::Ours(held) = reply else { panic!("{reply:?}") };
        assert_eq!(held.source, "v1:aws-secretsmanager:/prod/codnod/config");
        assert_eq!(held.workload.map(|workload| workload.to_string()).as_deref(), Some("apps/Deployment/web"));
        assert!(held.synced_through.is_some() && held.spec_since.is_some() && !held.version.is_empty());
    }

    #[test]
    fn a_body_that_is_no_status_still_counts_by_its_code() {
        for (code, want) in
            [(200, "accepted"), (404, "absent"), (502, "WriteBusy"), (409, "changed"), (429, "WriteBusy")]
        {
            for body in ["", "<html>", "[]", "null"] {
                let reply = classify(Verb::Update, code, &read_status(body.as_bytes()), "Secret team-a/app");
                assert_eq!(label(&reply), want, "{code} {body:?}");
            }
        }
    }
}
