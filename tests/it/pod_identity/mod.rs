//! Stores that are asked as each pod's own service account, or told for whom the agent asks.

mod accounts;
mod aws;
mod logins;
mod refusals;
mod starts;
mod tokens;

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use crate::support::agent::AgentBuilder;
use crate::support::azure::{KeyVault, TENANT};
use crate::support::scene::Scene;
use crate::support::store::Store;
use crate::support::vault::Vault;

const KIND: &str = "aws-secretsmanager";
const ROLE_ARN: &str = "eks.amazonaws.com/role-arn";

/// One instance, with `more` of settings; the agent has no credentials of its own.
fn instance(builder: AgentBuilder, more: Value) -> AgentBuilder {
    let mut instance = json!({"name": KIND, "kind": KIND, "region": "us-east-1", "allowInsecure": true});
    instance.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    let builder = builder.without_env("AWS_ACCESS_KEY_ID").without_env("AWS_SECRET_ACCESS_KEY");
    builder.providers(&json!({"providers": [instance]}).to_string())
}

/// An agent that asks as pods, at a double with a token service of its own.
async fn by_pods() -> Scene {
    Scene::pod_identity(|builder, store| {
        store.trust("unused", "unused");
        instance(builder, json!({"identity": "pod"}))
    })
    .await
}

/// The same at Vault, by this way in.
async fn at_vault(vault: &Vault, kubernetes: Value) -> Scene {
    let (address, auth) = (vault.url(), json!({"kubernetes": kubernetes}));
    let instance = json!({
        "name": "vault", "kind": "vault", "address": address, "allowInsecure": true, "concurrency": 32, "identity": "pod", "auth": auth,
    });
    Scene::pod_identity(|builder, _| builder.providers(&json!({"providers": [instance]}).to_string())).await
}

/// The same at Azure Key Vault.
async fn at_key_vault(azure: &KeyVault) -> Scene {
    let (kind, auth) = ("azure-keyvault", json!({"workloadIdentity": {"tenantId": TENANT}}));
    let instance = json!({"name": kind, "kind": kind, "vaultUrl": azure.url(), "concurrency": 32, "identity": "pod", "auth": auth});
    Scene::pod_identity(|builder, _| {
        let builder = builder.providers(&json!({"providers": [instance]}).to_string());
        azure.environment().iter().fold(builder, |builder, (name, value)| builder.env(name, value))
    })
    .await
}

fn role(name: &str) -> String {
    format!("arn:aws:iam::123456789012:role/{name}")
}

fn subject(scene: &Scene, name: &str) -> String {
    format!("system:serviceaccount:{}:{name}", scene.namespace.name())
}

/// A service account that names a role of its own, which trusts it.
async fn account(scene: &Scene, name: &str) -> String {
    let role = role(&format!("{}-{name}", scene.namespace.name()));
    scene.store.trust(&role, &subject(scene, name));
    scene.namespace.service_account(name).await;
    annotate(scene, name, json!({ROLE_ARN: role})).await;
    role
}

async fn annotate(scene: &Scene, name: &str, annotations: Value) {
    let accounts: Api<ServiceAccount> = scene.namespace.api();
    let patch = json!({"metadata": {"annotations": annotations}});
    accounts.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("annotated");
}

/// The UID of a service account.
async fn uid(scene: &Scene, name: &str) -> String {
    let accounts: Api<ServiceAccount> = scene.namespace.api();
    accounts.get(name).await.expect("an account").uid().expect("a UID")
}

/// Requests of this kind that the agent made in the test's namespace.
async fn requests(scene: &Scene, kind: &str) -> usize {
    scene.calls().await.get(kind).copied().unwrap_or_default()
}

fn exchanges(store: &Store) -> usize {
    store.calls(crate::support::store::WEB_IDENTITY)
}

/// A pod that comes after this is newer than all that came before: times of the API server have whole seconds.
async fn next_second() {
    let now = jiff::Timestamp::now().as_second();
    crate::support::wait::eventually("the next second", async || match jiff::Timestamp::now().as_second() {
        later if later > now => Ok(()),
        _ => Err("the same".to_owned()),
    })
    .await;
}

/// Waits until a pod is told all of this in one Event: what was so a moment ago may be told before.
async fn wait_to_be_told(scene: &Scene, pod: &Pod, wanted: &[&str]) {
    crate::support::wait::eventually(&format!("an Event with {wanted:?}"), async || {
        let notes: Vec<String> = scene.namespace.events(pod).await.into_iter().filter_map(|event| event.note).collect();
        let is_told = notes.iter().any(|note| wanted.iter().all(|want| note.contains(want)));
        if is_told { Ok(()) } else { Err(format!("{notes:?}")) }
    })
    .await;
}
