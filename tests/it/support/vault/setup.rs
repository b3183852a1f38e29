//! What a Vault is given before a test uses it: engines, a policy, and the ways in which an agent may log in.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use super::super::cluster::TestNamespace;
use super::super::control_plane::ControlPlane;
use super::super::node::{AGENT_ACCOUNT, AGENT_NAMESPACE};
use super::super::object;
use super::super::wait::eventually;
use super::admin::Admin;
use super::{AUDIENCE, KV1, KV2, PODS, ROLE};

/// The service account with which Vault reviews tokens.
const REVIEWER: &str = "vault-reviewer";

/// Mounts both versions of the KV engine.
pub(super) async fn mount_engines(admin: &Admin) {
    for (path, version) in [(KV2, "2"), (KV1, "1")] {
        admin.post(&format!("sys/mounts/{path}"), json!({"type": "kv", "options": {"version": version}})).await;
    }
    upgraded(admin).await;
}

/// Waits until version 2 of the engine answers: it does so a moment after it was mounted or unsealed.
pub(super) async fn upgraded(admin: &Admin) {
    eventually("version 2 of the KV engine", async || admin.try_get(&format!("{KV2}/config")).await).await;
}

/// Lets agents log in with a token of Kubernetes, which Vault has reviewed by the API server.
pub(super) async fn enable_kubernetes(admin: &Admin, control_plane: &ControlPlane) {
    let authority = std::fs::read_to_string(control_plane.ca_file()).expect("the control plane wrote its authority");
    let config = json!({
        "kubernetes_host": control_plane.api_server(),
        "kubernetes_ca_cert": authority,
        "token_reviewer_jwt": reviewer(control_plane).await,
        "disable_local_ca_jwt": true,
    });
    admin.post("sys/auth/kubernetes", json!({"type": "kubernetes"})).await;
    admin.post("auth/kubernetes/config", config).await;
}

/// Lets agents log in with a role id and a secret id.
pub(super) async fn enable_approle(admin: &Admin) {
    admin.post("sys/auth/approle", json!({"type": "approle"})).await;
}

/// Sets both roles; their tokens end after `ttl` unless they are renewed.
pub(super) async fn set_roles(admin: &Admin, ttl: Duration) {
    let kubernetes = json!({
        "bound_service_account_names": [AGENT_ACCOUNT],
        "bound_service_account_namespaces": [AGENT_NAMESPACE],
        "audience": AUDIENCE,
        "token_policies": [ROLE],
        "token_ttl": ttl.as_secs(),
    });
    admin.post(&format!("auth/kubernetes/role/{ROLE}"), kubernetes).await;
    // For whichever service account of whichever pod.
    let pods = json!({
        "bound_service_account_names": "*",
        "bound_service_account_namespaces": "*",
        "audience": AUDIENCE,
        "token_policies": [ROLE],
        "token_ttl": ttl.as_secs(),
    });
    admin.post(&format!("auth/kubernetes/role/{PODS}"), pods).await;
    let approle = json!({"token_policies": [ROLE], "token_ttl": ttl.as_secs()});
    admin.post(&format!("auth/approle/role/{ROLE}"), approle).await;
}

/// A token of a service account that may review tokens and do nothing else.
async fn reviewer(control_plane: &ControlPlane) -> String {
    let namespace = TestNamespace::create(control_plane).await;
    namespace.service_account(REVIEWER).await;
    let bindings: Api<ClusterRoleBinding> = Api::all(control_plane.admin().await);
    let binding = json!({
        "metadata": {"name": format!("{REVIEWER}-{}", namespace.name())},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"},
        "subjects": [{"kind": "ServiceAccount", "name": REVIEWER, "namespace": namespace.name()}],
    });
    let bound = bindings.create(&PostParams::default(), &object(binding)).await;
    bound.unwrap_or_else(|error| panic!("no rights for {REVIEWER}: {error}"));
    let spec = TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let accounts: Api<ServiceAccount> = namespace.api();
    let reply = accounts.create_token_request(REVIEWER, &PostParams::default(), &request).await;
    let reply = reply.unwrap_or_else(|error| panic!("no token of {REVIEWER}: {error}"));
    reply.status.expect("the API server fills in the status of a token request").token
}
