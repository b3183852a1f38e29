//! Logins that give nothing: one for all who wait for it, and none that takes the time of the store.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};

use super::{account, annotate, at_key_vault, at_vault, by_pods, subject};
use crate::support::azure::{self, CLIENT, KeyVault};
use crate::support::front::{Fault, Gate};
use crate::support::scene::Scene;
use crate::support::store::WEB_IDENTITY;
use crate::support::surroundings::Surroundings;
use crate::support::vault::{LOGIN, PODS, Vault};

/// Pods of one account, each of which asks for another secret.
const PODS_AT_ONCE: usize = 10;

/// A service account that names the application.
async fn application(scene: &Scene) {
    scene.namespace.service_account("app").await;
    annotate(scene, "app", json!({"azure.workload.identity/client-id": CLIENT})).await;
}

/// The login is held until all pods wait for it, and fails. Ends when all were told.
async fn many_wait_for(gate: Gate, scene: &Scene, request: impl Fn(usize) -> Value) {
    let pods = join_all((0..PODS_AT_ONCE).map(|number| {
        let request = request(number).to_string();
        async move { scene.pod(&format!("web-{number}")).service_account("app").request(&request).create().await }
    }))
    .await;
    gate.held(1).await;
    // For the others to come to it; those that need longer find that it has failed.
    tokio::time::sleep(Duration::from_secs(1)).await;
    gate.release();
    for pod in &pods {
        scene.namespace.wait_for_event(pod, "SecretFetchFailed").await;
    }
}

#[tokio::test]
async fn a_role_that_is_refused_is_asked_for_once_by_all_who_wait_for_it() {
    let scene = by_pods().await;
    account(&scene, "app").await;
    let paths: Vec<String> = join_all((0..PODS_AT_ONCE).map(|_| scene.store.seed("path", r#"{"A":"1"}"#))).await;
    let request = |number: usize| json!({"provider": "aws-secretsmanager", "path": paths[number], "secretName": format!("app-{number}")});
    scene.store.fail(WEB_IDENTITY, Fault::AccessDenied);
    many_wait_for(scene.store.hold(WEB_IDENTITY), &scene, request).await;
    let logins = scene.store.calls(WEB_IDENTITY);
    assert!(logins < PODS_AT_ONCE, "{logins} exchanges for {PODS_AT_ONCE} pods of one account");
}

#[tokio::test]
async fn a_login_that_vault_refuses_is_one_for_all_who_wait_for_it() {
    let vault = Vault::start(Surroundings::pod_identity().await).await;
    let scene = at_vault(&vault, json!({"role": PODS})).await;
    scene.namespace.service_account("app").await;
    let request = |number: usize| json!({"provider": "vault", "path": format!("prod/app-{number}"), "secretName": format!("app-{number}")});
    vault.fail(LOGIN, Fault::AccessDenied);
    many_wait_for(vault.hold(LOGIN), &scene, request).await;
    let logins = vault.calls(LOGIN);
    assert!(logins < PODS_AT_ONCE, "{logins} logins for {PODS_AT_ONCE} pods of one account");
}

#[tokio::test]
async fn a_login_that_azure_refuses_is_one_for_all_who_wait_for_it() {
    let azure = KeyVault::start();
    let scene = at_key_vault(&azure).await;
    application(&scene).await;
    let request = |number: usize| json!({"provider": "azure-keyvault", "path": format!("app-{number}"), "secretName": format!("app-{number}")});
    azure.fail(azure::TOKEN, Fault::AccessDenied);
    many_wait_for(azure.hold(azure::TOKEN), &scene, request).await;
    let logins = azure.calls(azure::TOKEN);
    assert!(logins < PODS_AT_ONCE, "{logins} logins for {PODS_AT_ONCE} pods of one account");
}

/// The store itself was not asked, so that it is in no trouble.
#[tokio::test]
async fn a_token_service_that_does_not_answer_is_told_as_that() {
    let scene = by_pods().await;
    account(&scene, "app").await;
    let path = scene.store.seed("path", r#"{"A":"1"}"#).await;
    let gate = scene.store.hold(WEB_IDENTITY);
    let pod = scene.pod("web").service_account("app").asks(&path, "app").create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await;
    let note = event.note.unwrap_or_default();
    assert!(note.contains("whoever gives out credentials for it did not answer"), "{note}");
    assert_eq!((event.action.as_deref(), scene.store.calls(&path)), (Some("FetchLogin"), 0), "{note}");
    gate.release();
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
}

#[tokio::test]
async fn azures_login_that_does_not_answer_is_told_as_that() {
    let azure = KeyVault::start();
    azure.put("app", r#"{"A":"1"}"#);
    let scene = at_key_vault(&azure).await;
    application(&scene).await;
    azure.trust_subject(&subject(&scene, "app"));
    let gate = azure.hold(azure::TOKEN);
    let request = json!({"provider": "azure-keyvault", "path": "app", "secretName": "app"}).to_string();
    let pod = scene.pod("web").service_account("app").request(&request).create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await;
    let note = event.note.unwrap_or_default();
    assert!(note.contains("whoever gives out credentials for it did not answer"), "{note}");
    assert_eq!((event.action.as_deref(), azure.calls("app")), (Some("FetchLogin"), 0), "{note}");
    gate.release();
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
}

/// Vault asks the API server about the token, which is bound to a pod that is no more.
#[tokio::test]
async fn a_login_that_vault_refuses_for_a_pod_that_went_meanwhile_fails_no_other_pod() {
    let vault = Vault::start(Surroundings::pod_identity().await).await;
    let scene = at_vault(&vault, json!({"role": PODS})).await;
    scene.namespace.service_account("app").await;
    let ask = async |name: &str| {
        let path = vault.seed("prod/app", json!({"A": name})).await;
        let request = json!({"provider": "vault", "path": path, "secretName": name}).to_string();
        scene.pod(name).service_account("app").request(&request).create().await
    };
    vault.fail_times(LOGIN, 1, Fault::AccessDenied);
    let gate = vault.hold(LOGIN);
    let passes = ask("passes").await;
    gate.held(1).await;
    let stays = ask("stays").await;
    scene.namespace.delete_pod(&passes).await;
    // What the agent sees of this one it sees after that.
    let after = scene.pod("after").request("no request").create().await;
    scene.namespace.wait_for_event(&after, "AnnotationInvalid").await;
    gate.release();
    scene.namespace.wait_for_data("stays", [("A", "stays")]).await;
    let told: Vec<_> = scene.namespace.wait_for_events(&stays, 1).await.into_iter().map(|event| event.reason).collect();
    assert_eq!(told, [Some("SecretSyncSuccess".to_owned())]);
}
