//! A team's namespace beside the masters', and who writes there.

use std::fmt;

use http::{Method, Request};
use kube::client::Body;
use serde_json::{Value, json};

use crate::support::cluster::TestNamespace;
use crate::support::node::{AGENT_ACCOUNT, AGENT_NAMESPACE, AgentNode, agents_secret};
use crate::support::surroundings::{MASTERS_NAMESPACE, Surroundings};
use crate::support::wait::eventually;

/// The kinds of store that labels name.
pub(super) const STORES: [&str; 5] = ["secretsmanager", "ssm", "vault", "azure-keyvault", "file"];
/// In all annotations that hold one.
pub(super) const TIME: &str = "2026-01-01T00:00:00Z";
/// A team's member: the built-in role `admin` in the team's namespace.
pub(super) const TENANT: &str = "alice";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Secret,
    ConfigMap,
}

impl Kind {
    pub(super) const BOTH: [Self; 2] = [Self::Secret, Self::ConfigMap];

    pub(super) fn resource(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::ConfigMap => "configmaps",
        }
    }
}

/// What the agent writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// From a store for a pod, without a master.
    Direct,
    Replica,
    Master,
    /// Of one agent: which replicas are there.
    Record,
}

/// Where it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    Team,
    Masters,
    /// Any namespace, by its name.
    Named(&'static str),
}

/// The API server's answer.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) said: String,
}

impl Answer {
    /// # Panics
    /// When it was refused.
    pub(super) fn accepted(&self, case: impl fmt::Display) {
        assert!((200..300).contains(&self.code), "case: {case}: {} {}", self.code, self.said);
    }

    /// # Panics
    /// When this policy did not refuse, with these words.
    pub(super) fn refused(&self, by: &str, words: &str, case: impl fmt::Display) {
        let policy = format!("ValidatingAdmissionPolicy '{by}' with binding '{by}' denied request: ");
        let rest = self.said.split_once(&policy).map(|(_, rest)| rest);
        let fits = self.code == 403 && rest.is_some_and(|rest| rest.starts_with(words));
        assert!(fits, "case: {case}: {} {}, in place of {by}: {words}", self.code, self.said);
    }

    /// # Panics
    /// When RBAC did not refuse.
    pub(super) fn beyond_rights(&self, case: impl fmt::Display) {
        assert!(self.code == 403 && self.said.contains(" cannot "), "case: {case}: {} {}", self.code, self.said);
    }
}

pub(super) struct Stage {
    pub(super) surroundings: &'static Surroundings,
    pub(super) team: TestNamespace,
    pub(super) masters: TestNamespace,
    pub(super) node: AgentNode,
    agent: kube::Client,
    admin: kube::Client,
}

impl Stage {
    pub(super) async fn set() -> Self {
        let surroundings = Surroundings::central().await;
        let team = TestNamespace::create(surroundings).await;
        let masters = TestNamespace::shared(surroundings, MASTERS_NAMESPACE).await;
        let node = AgentNode::create(surroundings).await;
        let agent = node.client(surroundings).await;
        Self { surroundings, team, masters, node, agent, admin: surroundings.admin().await }
    }

    /// Gives the tenant his rights in the team's namespace.
    pub(super) async fn with_tenant(self) -> Self {
        let bind = format!("kubectl create rolebinding {TENANT} --clusterrole=admin --user={TENANT}");
        self.surroundings.bash(&format!("{bind} -n {}", self.team.name())).unwrap_or_else(|error| panic!("{error}"));
        eventually("the tenant's rights", async || {
            match self.as_tenant(Method::GET, &self.path(Kind::Secret, At::Team, ""), "", "").await {
                Answer { code: 200, .. } => Ok(()),
                answer => Err(format!("{answer:?}")),
            }
        })
        .await;
        self
    }

    /// An object of that shape, with all that it has to have.
    pub(super) fn object(&self, kind: Kind, shape: Shape, name: &str) -> Value {
        let mut object = agents_secret(self.node.name(), name);
        let more = match shape {
            Shape::Direct => json!({}),
            Shape::Replica => json!({"replicated-from": "ssm-config", "source": "ssm"}),
            Shape::Master => json!({"source-kind": "ssm"}),
            Shape::Record => json!({"record": "replicas"}),
        };
        for (key, value) in more.as_object().expect("labels") {
            object["metadata"]["labels"][format!("jasm.codnod.io/{key}")] = value.clone();
        }
        if shape == Shape::Record {
            object["metadata"]["annotations"].as_object_mut().expect("annotations").remove("jasm.codnod.io/source");
        }
        object["kind"] = json!(format!("{kind:?}"));
        object["data"] = json!({"A": "MQ=="});
        if kind == Kind::ConfigMap {
            object.as_object_mut().expect("an object").remove("type");
        }
        object
    }

    /// The same with all that annotations may say.
    pub(super) fn whole(&self, kind: Kind, shape: Shape, name: &str) -> Value {
        let all = [
            ("source-path", "/a"),
            ("source-version", "7"),
            ("synced-at", TIME),
            ("synced-through", TIME),
            ("spec-since", TIME),
            ("last-replicated", TIME),
            ("workload", "pods-and-jobs"),
            ("source-namespace", MASTERS_NAMESPACE),
            ("whole", "true"),
        ];
        let set = |object, (key, value): (&str, &str)| with(object, &annotation(key), json!(value));
        all.into_iter().fold(self.object(kind, shape, name), set)
    }

    pub(super) fn path(&self, kind: Kind, at: At, rest: &str) -> String {
        let namespace = match at {
            At::Team => self.team.name(),
            At::Masters => self.masters.name(),
            At::Named(name) => name,
        };
        format!("/api/v1/namespaces/{namespace}/{}{rest}", kind.resource())
    }

    /// With the agent's token.
    pub(super) async fn create(&self, kind: Kind, at: At, object: &Value) -> Answer {
        send(&self.agent, None, Method::POST, &self.path(kind, at, ""), "application/json", &object.to_string()).await
    }

    /// With the agent's token.
    pub(super) async fn put(&self, kind: Kind, at: At, object: &Value) -> Answer {
        self.put_by(&self.agent, kind, at, object).await
    }

    /// With the token of an agent on another node.
    pub(super) async fn put_by(&self, agent: &kube::Client, kind: Kind, at: At, object: &Value) -> Answer {
        let path = self.path(kind, at, &format!("/{}", object["metadata"]["name"].as_str().expect("a name")));
        send(agent, None, Method::PUT, &path, "application/json", &object.to_string()).await
    }

    /// With the agent's token: any request without a body.
    pub(super) async fn ask(&self, method: Method, path: &str) -> Answer {
        send(&self.agent, None, method, path, "application/merge-patch+json", "{}").await
    }

    /// As the team's member.
    pub(super) async fn as_tenant(&self, method: Method, path: &str, content: &str, body: &str) -> Answer {
        send(&self.admin, Some(TENANT), method, path, content, body).await
    }

    /// As an administrator.
    pub(super) async fn as_admin(&self, method: Method, path: &str, body: &Value) -> Answer {
        let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        send(&self.admin, None, method, path, content, &body.to_string()).await
    }

    /// The administrator's object, in place of what has its name.
    pub(super) async fn lay_down(&self, kind: Kind, at: At, object: &Value) {
        let name = object["metadata"]["name"].as_str().expect("a name");
        self.as_admin(Method::DELETE, &self.path(kind, at, &format!("/{name}")), &json!({})).await;
        self.as_admin(Method::POST, &self.path(kind, at, ""), object).await.accepted(name);
    }
}

/// The agent of an installed control plane, its account for those who bind it.
pub(super) fn account() -> String {
    format!("{AGENT_NAMESPACE}:{AGENT_ACCOUNT}")
}

pub(super) async fn send(
    client: &kube::Client,
    impersonated: Option<&str>,
    method: Method,
    path: &str,
    content: &str,
    body: &str,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("Content-Type", content);
    if let Some(user) = impersonated {
        request = request.header("Impersonate-User", user);
    }
    let request = request.body(Body::from(body.as_bytes().to_vec())).expect("a request");
    let reply = client.send(request).await.expect("the API server answers");
    let code = reply.status().as_u16();
    let body = http_body_util::BodyExt::collect(reply.into_body()).await.expect("a whole body").to_bytes();
    let said = match serde_json::from_slice::<Value>(&body) {
        Ok(status) if code >= 300 => status["message"].as_str().unwrap_or_default().to_owned(),
        _ => String::from_utf8_lossy(&body).into_owned(),
    };
    Answer { code, said }
}

/// The object with one thing set; `~1` is a slash in a name, and `null` takes it off.
pub(super) fn with(mut object: Value, place: &str, value: Value) -> Value {
    let (parent, key) = place.rsplit_once('/').expect("a place has a slash");
    let parent =
        if parent.is_empty() { &mut object } else { object.pointer_mut(parent).expect("a part of the object") };
    let parent = parent.as_object_mut().expect("an object");
    match value {
        Value::Null => drop(parent.remove(&key.replace("~1", "/"))),
        value => drop(parent.insert(key.replace("~1", "/"), value)),
    }
    object
}

/// Where a label of ours stands.
pub(super) fn label(key: &str) -> String {
    format!("/metadata/labels/jasm.codnod.io~1{key}")
}

/// Where an annotation of ours stands.
pub(super) fn annotation(key: &str) -> String {
    format!("/metadata/annotations/jasm.codnod.io~1{key}")
}
