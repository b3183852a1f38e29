//! Takes one replica or master away: looked at first, then deleted in exactly the state that a node wrote.
//!
//! RBAC: `delete` on secrets and configmaps, which an admission policy confines to replicas (and, among masters, to masters).

use std::time::Duration;

use http::{Method, Request};
use kube::{Client, client::Body};
use serde::Deserialize;
use serde_json::{Value, json};

use super::plan::{Listed, Origin, Orphan, origin};
use crate::{error::BoxError, request::ObjectKind, target::Stored};

/// How the policy that lets a janitor delete begins its answer to a dry run.
const FOUND: &str = "jasm:replica ";
const NOT_OURS: &str = "jasm:not-a-replica";
const POLICY: &str = "ValidatingAdmissionPolicy 'jasm-janitor'";

/// For one look.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What stands under an orphan's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The orphan, in a state in which a node knew it.
    Orphan(Stored),
    /// Nothing, another object, or a replica of something else.
    Gone,
    /// It is there, and nothing shows that it is the orphan: why.
    Kept(String),
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Removed {
    /// It is deleted.
    Deleted,
    /// It is not there any more.
    Gone,
    /// It is there, and nothing shows that it is the orphan: why.
    Kept(String),
}

/// Deletes objects, by name and state.
#[derive(Clone)]
pub(super) struct Remover(Client);

impl Remover {
    pub(super) fn new(client: Client) -> Self {
        Self(client)
    }

    /// Looks at what stands under an orphan's name. A dry run that the policy always refuses, with what the object says of
    /// itself.
    pub(super) async fn judge(&self, orphan: &Orphan) -> Result<Judgement, BoxError> {
        let Orphan { kind, namespace, name, states, source, .. } = orphan;
        let dry_run = json!({"dryRun": ["All"]});
        let looked = self.send(*kind, namespace, name.as_str(), &dry_run);
        let (code, said) = tokio::time::timeout(TIMEOUT, looked).await??;
        let found = match (code, said) {
            (404, Said::Absent) => return Ok(Judgement::Gone),
            (403, Said::Policy(said)) => match said.strip_prefix(FOUND).and_then(Found::parse) {
                Some(found) => found,
                None if said.starts_with(NOT_OURS) => return Ok(Judgement::Gone),
                None => return Ok(Judgement::Kept(format!("the policy says {said}"))),
            },
            (200..300, _) => {
                return Ok(Judgement::Kept("the admission policy jasm-janitor is not in force".to_owned()));
            }
            (code, _) => return Ok(Judgement::Kept(format!("the API server answered {code}"))),
        };
        Ok(match origin(&found.source, source) {
            Origin::Another => Judgement::Gone,
            Origin::Unclear => Judgement::Kept("of which source it is cannot be told from its annotation".to_owned()),
            Origin::This if states.contains(&found.stored) => Judgement::Orphan(found.stored),
            Origin::This => Judgement::Kept("it was changed since a node wrote it".to_owned()),
        })
    }

    /// Deletes a replica in the state in which it was looked at: whatever it said then, it says still.
    pub(super) async fn replica(&self, orphan: &Orphan, state: &Stored) -> Result<Removed, BoxError> {
        self.delete(orphan.kind, &orphan.namespace, orphan.name.as_str(), state).await
    }

    /// Deletes a master in the state in which it was listed.
    pub(super) async fn master(&self, namespace: &str, master: &Listed) -> Result<Removed, BoxError> {
        self.delete(master.kind, namespace, master.name.as_str(), &master.stored).await
    }

    async fn delete(&self, kind: ObjectKind, namespace: &str, name: &str, state: &Stored) -> Result<Removed, BoxError> {
        let preconditions = json!({"uid": state.uid, "resourceVersion": state.resource_version});
        let (code, said) = self.send(kind, namespace, name, &json!({"preconditions": preconditions})).await?;
        Ok(match (code, said) {
            (200..300, _) => Removed::Deleted,
            (404, Said::Absent) => Removed::Gone,
            (409, _) => Removed::Kept("it was changed in the last moment".to_owned()),
            (403, Said::Policy(said)) => Removed::Kept(format!("the policy says {said}")),
            (code, _) => Removed::Kept(format!("the API server answered {code}")),
        })
    }

    async fn send(
        &self,
        kind: ObjectKind,
        namespace: &str,
        name: &str,
        options: &Value,
    ) -> Result<(u16, Said), BoxError> {
        let mut body = options.clone();
        body["apiVersion"] = json!("v1");
        body["kind"] = json!("DeleteOptions");
        let request = Request::builder()
            .method(Method::DELETE)
            .uri(format!("/api/v1/namespaces/{namespace}/{}/{name}", kind.plural()))
            .header("Content-Type", "application/json")
            .header("Accept", "application/json")
            .body(Body::from(body.to_string().into_bytes()))?;
        let reply = self.0.send(request).await?;
        let code = reply.status().as_u16();
        // A success may hold the object: nobody reads it.
        if (200..300).contains(&code) {
            return Ok((code, Said::Nothing));
        }
        let body = http_body_util::BodyExt::collect(http_body_util::Limited::new(reply.into_body(), 64 * 1024)).await?;
        let status: Status = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        Ok((code, status.said(name)))
    }
}

/// Who spoke.
enum Said {
    /// The janitor's policy, with these words.
    Policy(String),
    /// The API server: there is no such object.
    Absent,
    /// Nobody that matters.
    Nothing,
}

#[derive(Debug, Default, Deserialize)]
struct Status {
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
    name: String,
}

impl Status {
    fn said(&self, name: &str) -> Said {
        match self.message.split_once("denied request: ") {
            Some((by, said)) if by.contains(POLICY) => Said::Policy(said.to_owned()),
            // A proxy has a 404 of its own, and an API server one for a namespace.
            _ if self.reason == "NotFound" && self.details.name == name => Said::Absent,
            _ => Said::Nothing,
        }
    }
}

/// What a replica says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    stored: Stored,
    source: String,
}

impl Found {
    fn parse(said: &str) -> Option<Self> {
        let field = |name: &str| {
            said.split(' ')
                .filter_map(|pair| pair.split_once('='))
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value)
        };
        let (uid, version) = (field("uid")?.to_owned(), field("rv")?.to_owned());
        let stored = Stored { uid, resource_version: version };
        Some(Self { stored, source: field("source")?.to_owned() }).filter(|found| !found.source.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_policy_says_is_read_whole_or_not_at_all() {
        let stored = Stored { uid: "u".into(), resource_version: "7".into() };
        let want = Found { stored, source: "v1:aws:/a?keys=A=b".into() };
        assert_eq!(Found::parse("uid=u rv=7 source=v1:aws:/a?keys=A=b"), Some(want));
        for broken in ["", "uid=u rv=7", "uid=u source=s", "rv=7 source=s", "uid=u rv=7 source="] {
            assert_eq!(Found::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn only_the_api_servers_own_word_about_the_object_is_one() {
        let said = |text: &str| serde_json::from_str::<Status>(text).unwrap_or_default().said("app");
        assert!(matches!(said(r#"{"reason":"NotFound","details":{"name":"app","kind":"secrets"}}"#), Said::Absent));
        for other in
            ["<html>", "{}", r#"{"reason":"NotFound"}"#, r#"{"reason":"NotFound","details":{"name":"team-a"}}"#]
        {
            assert!(matches!(said(other), Said::Nothing), "{other}");
        }
    }
}
