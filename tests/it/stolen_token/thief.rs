//! Sends what the thief wants, and compares the API server's reason.

use http::{Method, Request};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::client::Body;
use serde_json::{Value, json};

use crate::support::canary::{Canary, random_values};
use crate::support::cluster::TestNamespace;
use crate::support::node::{AGENT_ACCOUNT, AGENT_NAMESPACE, AgentNode, agents_secret};
use crate::support::surroundings::Surroundings;

/// What the API server has to answer.
#[derive(Debug, Clone)]
pub(super) enum Want {
    /// It does what it is asked.
    Done,
    /// No role grants this verb on this resource: `create`, `pods/exec` or `roles.rbac.authorization.k8s.io`.
    Rbac(&'static str, &'static str),
    /// No role lets it act as somebody else. The API server's words for that differ by its version.
    Impersonation,
    /// No role grants this path, which is that of no resource.
    Path,
    /// This policy refuses, with these words.
    Policy(&'static str, &'static str),
    /// More than one policy refuses, and the API server tells of any.
    Policies,
    /// The API server itself refuses, with this status and these words.
    Itself(u16, &'static str),
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) name: &'static str,
    pub(super) want: Want,
    method: Method,
    path: String,
    body: String,
    headers: Vec<(&'static str, &'static str)>,
}

/// A request with a JSON body; `Null` is none.
pub(super) fn attempt(name: &'static str, method: Method, path: String, body: Value, want: Want) -> Attempt {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    Attempt { name, want, method, path, body, headers: vec![("content-type", kind)] }
}

impl Attempt {
    /// With another header, or another content type.
    pub(super) fn with(mut self, header: &'static str, value: &'static str) -> Self {
        self.headers.retain(|(name, _)| *name != header);
        self.headers.push((header, value));
        self
    }
}

/// Somebody with the agent's token and nothing else, and what he is after.
pub(super) struct Thief {
    /// The node that the token names.
    pub(super) node: AgentNode,
    /// Has the Secrets `managed` (of an agent) and `foreign`, the pod `victim` on another node, and the Deployment `app`.
    pub(super) namespace: TestNamespace,
    client: kube::Client,
    canary: Canary,
    foreign: Secret,
    managed: Secret,
}

impl Thief {
    pub(super) async fn with_a_token() -> Self {
        let surroundings = Surroundings::get().await;
        let namespace = TestNamespace::create(surroundings).await;
        let (node, other) = (AgentNode::create(surroundings).await, AgentNode::create(surroundings).await);
        let values = random_values(2);
        let mut managed = agents_secret(other.name(), "managed");
        managed["stringData"] = json!({"A": values[0]});
        let managed = namespace.add(managed).await;
        let foreign = namespace.add_secret("foreign", &[("A", &values[1])]).await;
        let _: Pod = namespace.pod("victim").on(&other).create().await;
        namespace.workload("Deployment", "app").await;
        let client = node.client(surroundings).await;
        Self { node, namespace, client, canary: Canary::new(values), foreign, managed }
    }

    /// Below the namespace; `group` is empty or as in `apps/v1`.
    pub(super) fn path(&self, group: &str, rest: &str) -> String {
        below(self.namespace.name(), group, rest)
    }

    pub(super) fn secret(&self, name: &str) -> String {
        self.path("", &format!("secrets/{name}"))
    }

    /// Tries, and compares; the error says what was answered instead. No answer may hold a value.
    pub(super) async fn fails_at(&self, attempt: &Attempt) -> Result<(), String> {
        let mut request = Request::builder().method(attempt.method.clone()).uri(&attempt.path);
        for (name, value) in &attempt.headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(attempt.body.clone().into_bytes())).expect("a request");
        let reply = self.client.send(request).await.expect("the API server answers");
        let code = reply.status().as_u16();
        let body = http_body_util::BodyExt::collect(reply.into_body()).await.expect("a whole body").to_bytes();
        self.canary.assert_absent(&format!("the answer {code} to the attempt to {}", attempt.name), &body);
        let message = match serde_json::from_slice::<Value>(&body) {
            Ok(status) => status["message"].as_str().unwrap_or_default().to_owned(),
            // Texts stand in protobuf as they are.
            Err(_) => String::from_utf8_lossy(&body).into_owned(),
        };
        attempt.want.compare(code, &message)
    }

    /// # Panics
    /// When the Secrets that he was after are no longer what they were.
    pub(super) async fn assert_nothing_is_changed(&self) {
        for (name, before) in [("foreign", &self.foreign), ("managed", &self.managed)] {
            let now = self.namespace.wait_for_secret(name).await;
            assert_eq!(now.metadata.resource_version, before.metadata.resource_version, "{name} was changed");
        }
    }
}

/// The path of something in a namespace.
pub(super) fn below(namespace: &str, group: &str, rest: &str) -> String {
    let root = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}") };
    format!("{root}/namespaces/{namespace}/{rest}")
}

impl Want {
    fn compare(&self, code: u16, message: &str) -> Result<(), String> {
        let user = format!("User \"system:serviceaccount:{AGENT_NAMESPACE}:{AGENT_ACCOUNT}\"");
        let fits = match self {
            Self::Done => (200..300).contains(&code),
            Self::Rbac(verb, resource) => {
                let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
                let (group, subresource) = match group.split_once('/') {
                    Some((group, subresource)) => (group, format!("/{subresource}")),
                    None => (group, String::new()),
                };
                let said =
                    format!("{user} cannot {verb} resource \"{resource}{subresource}\" in API group \"{group}\"");
                code == 403 && message.contains(&said)
            }
            Self::Impersonation => code == 403 && message.contains(&format!("{user} cannot impersonate")),
            Self::Path => code == 403 && message.contains(&format!("{user} cannot get path ")),
            Self::Policy(policy, said) => {
                let policy = format!("ValidatingAdmissionPolicy '{policy}' with binding '{policy}' denied request: ");
                code == 403 && message.split_once(&policy).is_some_and(|(_, rest)| rest.starts_with(said))
            }
            Self::Policies => code == 403 && message.contains("ValidatingAdmissionPolicy 'jasm-agent-"),
            Self::Itself(status, said) => code == *status && message.contains(said),
        };
        match fits {
            true => Ok(()),
            false if code < 300 => Err(format!("accepted with {code}, in place of {self:?}")),
            false => Err(format!("{code} {message:?}, in place of {self:?}")),
        }
    }
}
