//! What a pod is told where its own identity gives nothing: role, audience, and what to grant.

use serde_json::json;

use super::{
    ROLE_ARN, annotate, at_key_vault, at_vault, by_pods, instance, next_second, role, subject, wait_to_be_told,
};
use crate::support::azure::{CLIENT, KeyVault, TENANT};
use crate::support::scene::Scene;
use crate::support::surroundings::Surroundings;
use crate::support::unique;
use crate::support::vault::Vault;

#[tokio::test]
async fn without_the_right_to_tokens_the_component_is_named() {
    let scene = Scene::set_with(|builder| instance(builder, json!({"identity": "pod"}))).await;
    let path = scene.store.seed("path", r#"{"A":"1"}"#).await;
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    let subject = subject(&scene, "default");
    assert!(note.contains("an operator has to apply rbac/pod-identity") && note.contains(&subject), "{note}");
    assert_eq!(scene.store.calls(&path), 0, "nothing is asked as anybody else");
}

#[tokio::test]
async fn an_account_without_a_role_is_told_to_name_one_and_is_served_when_it_does() {
    let scene = by_pods().await;
    scene.namespace.service_account("app").await;
    let path = scene.store.seed("path", r#"{"A":"1"}"#).await;
    let pod = scene.pod("web").service_account("app").asks(&path, "app").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    for want in [ROLE_ARN, "annotate service account", &subject(&scene, "app"), "sts.amazonaws.com"] {
        assert!(note.contains(want), "{want}: {note}");
    }
    let role = role("late");
    scene.store.trust(&role, &subject(&scene, "app"));
    annotate(&scene, "app", json!({ROLE_ARN: role})).await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
}

#[tokio::test]
async fn an_audience_that_the_policy_does_not_know_is_named_with_the_policy() {
    let surroundings = Surroundings::pod_identity().await;
    let vault = Vault::start(surroundings).await;
    let scene = at_vault(&vault, json!({"role": "any", "audience": "another"})).await;
    let request = json!({"provider": "vault", "path": "prod/any", "secretName": "app"}).to_string();
    let pod = scene.pod("web").request(&request).create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(note.contains("audience another") && note.contains("jasm-pod-tokens"), "{note}");
}

#[tokio::test]
async fn a_role_of_vault_that_is_not_bound_to_the_account_is_named_with_the_audience() {
    let surroundings = Surroundings::pod_identity().await;
    let vault = Vault::start(surroundings).await;
    let scene = at_vault(&vault, json!({"role": "nobodys"})).await;
    let request = json!({"provider": "vault", "path": "prod/any", "secretName": "app"}).to_string();
    let pod = scene.pod("web").request(&request).create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    for want in ["role nobodys", &subject(&scene, "default"), "audience is vault"] {
        assert!(note.contains(want), "{want}: {note}");
    }
}

#[tokio::test]
async fn an_account_without_an_application_at_azure_is_told_to_name_one() {
    let azure = KeyVault::start();
    let name = unique("case");
    azure.put(&name, "x");
    let scene = at_key_vault(&azure).await;
    scene.namespace.service_account("app").await;
    let request = json!({"provider": "azure-keyvault", "path": name, "secretName": "app"}).to_string();
    let pod = scene.pod("web").service_account("app").request(&request).create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    for want in ["azure.workload.identity/client-id", &subject(&scene, "app"), "api://AzureADTokenExchange"] {
        assert!(note.contains(want), "{want}: {note}");
    }
    annotate(&scene, "app", json!({"azure.workload.identity/client-id": CLIENT})).await;
    next_second().await;
    let pod = scene.pod("web-2").service_account("app").request(&request).create().await;
    let subject = subject(&scene, "app");
    let wanted = [CLIENT, TENANT, "federated credential", &subject, "api://AzureADTokenExchange"];
    wait_to_be_told(&scene, &pod, &wanted).await;
}

/// That the other instances of a node go on is `instances`' to show; here it is that of the same kind.
#[tokio::test]
async fn one_account_without_a_role_holds_up_no_other() {
    let scene = by_pods().await;
    let path = scene.store.seed("path", r#"{"A":"1"}"#).await;
    for number in 0..4 {
        let name = format!("nobody-{number}");
        let path = scene.store.seed(&name, "x").await;
        let pod = scene.pod(&name).asks(&path, &name).create().await;
        scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await;
    }
    super::account(&scene, "app").await;
    let pod = scene.pod("web").service_account("app").asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let told: Vec<_> = scene.namespace.wait_for_events(&pod, 1).await.into_iter().map(|event| event.reason).collect();
    assert_eq!(told, [Some("SecretSyncSuccess".to_owned())], "nor is told of the others' trouble");
}
