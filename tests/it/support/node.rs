//! A node as the API server sees it: the Node, an agent pod bound to it, and a token that is bound to that pod.

use std::path::{Path, PathBuf};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::control_plane::ControlPlane;
use super::{object, unique};

/// Where the agent's pods run.
pub(crate) const AGENT_NAMESPACE: &str = "jasm-system";
/// The agent's service account in that namespace.
pub(crate) const AGENT_ACCOUNT: &str = "jasm-agent";

/// A node with an agent's identity on it. The API server puts the node's name into each request made with its token.
#[derive(Debug)]
pub(crate) struct AgentNode {
    name: String,
    pod: Pod,
    folder: PathBuf,
    kubeconfig: PathBuf,
}

impl AgentNode {
    /// Creates the Node and the agent's pod on it, and writes a kubeconfig with a token of one hour.
    pub(crate) async fn create(control_plane: &ControlPlane) -> Self {
        Self::create_in(control_plane, AGENT_NAMESPACE).await
    }

    /// The same for an agent that is installed in another namespace.
    pub(crate) async fn create_in(control_plane: &ControlPlane, namespace: &str) -> Self {
        let name = unique("node");
        let admin = control_plane.admin().await;
        let node: Node = object(json!({"metadata": {"name": name}}));
        let nodes: Api<Node> = Api::all(admin.clone());
        nodes.create(&PostParams::default(), &node).await.unwrap_or_else(|error| panic!("no node {name}: {error}"));
        let pods: Api<Pod> = Api::namespaced(admin.clone(), namespace);
        let pod = pods.create(&PostParams::default(), &object(agent_pod(&name))).await;
        let pod = pod.unwrap_or_else(|error| panic!("no agent pod on {name}: {error}"));
        let token = bound_token(admin, &pod, None).await;
        let folder = control_plane.folder(&name);
        let kubeconfig = write_kubeconfig(control_plane, namespace, &folder, &token);
        Self { name, pod, folder, kubeconfig }
    }

    /// The node's name, unique in the run.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The folder for the agent's files; it goes with the control plane.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The kubeconfig of the agent's identity, with `tokenFile`; its namespace is [`AGENT_NAMESPACE`].
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Writes a token of the agent for another audience than the API server's, as in `vault`, and returns its file. It
    /// is bound to the agent's pod, and a later call replaces it: a rotation.
    pub(crate) async fn token_file_for(&self, control_plane: &ControlPlane, audience: &str) -> PathBuf {
        let token = bound_token(control_plane.admin().await, &self.pod, Some(audience)).await;
        let file = self.folder.join(format!("token-{audience}"));
        std::fs::write(&file, token).unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
        file
    }

    /// A client with the agent's token: what a thief of the token could do.
    pub(crate) async fn client(&self, control_plane: &ControlPlane) -> kube::Client {
        control_plane.client(&self.kubeconfig).await
    }
}

/// Asks for a token of the agent that is bound to its pod; without an audience it is for the API server.
async fn bound_token(admin: kube::Client, pod: &Pod, audience: Option<&str>) -> String {
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: audience.into_iter().map(ToOwned::to_owned).collect(),
            expiration_seconds: Some(3600),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name_any()),
                uid: pod.uid(),
            }),
        },
        ..TokenRequest::default()
    };
    let namespace = pod.namespace().expect("the API server says where a pod is");
    let accounts: Api<ServiceAccount> = Api::namespaced(admin, &namespace);
    let reply = accounts.create_token_request(AGENT_ACCOUNT, &PostParams::default(), &request).await;
    let reply = reply.unwrap_or_else(|error| panic!("no token of {AGENT_ACCOUNT} for pod {}: {error}", pod.name_any()));
    reply.status.expect("the API server fills in the status of a token request").token
}

/// Valid under the `restricted` Pod Security level, which the namespace may enforce.
fn agent_pod(node: &str) -> Value {
    json!({
        "metadata": {"name": format!("jasm-agent-{node}")},
        "spec": {
            "nodeName": node,
            "serviceAccountName": AGENT_ACCOUNT,
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "agent",
                "image": "registry.k8s.io/pause:3.10",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}

/// Writes the token and a kubeconfig that points to it (JSON is YAML).
fn write_kubeconfig(control_plane: &ControlPlane, namespace: &str, folder: &Path, token: &str) -> PathBuf {
    let (token_file, kubeconfig) = (folder.join("token"), folder.join("kubeconfig"));
    let content = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "agent",
        "contexts": [{"name": "agent", "context": {"cluster": "test", "user": "agent", "namespace": namespace}}],
        "clusters": [{"name": "test", "cluster": {
            "server": control_plane.api_server(),
            "certificate-authority": control_plane.ca_file(),
        }}],
        "users": [{"name": "agent", "user": {"tokenFile": token_file}}],
    });
    for (file, text) in [(&token_file, token), (&kubeconfig, content.to_string().as_str())] {
        std::fs::write(file, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
    }
    kubeconfig
}

/// A Secret without data as the agent on this node writes it, which every policy lets pass.
pub(crate) fn agents_secret(node: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "labels": {"jasm.codnod.io/managed-by": "jasm", "app.kubernetes.io/managed-by": "jasm"},
            "annotations": {"jasm.codnod.io/source": "v1:x:y", "jasm.codnod.io/node": node},
        },
        "type": "Opaque",
    })
}
