//! The other ways at AWS: EKS Pod Identity, and roles that the agent takes on.

use serde_json::json;

use super::{instance, role, subject};
use crate::support::scene::{Scene, annotation};
use crate::support::store::{ASSUME_ROLE, POD_IDENTITY};

#[tokio::test]
async fn eks_pod_identity_is_asked_once_for_each_account_with_a_token_of_it() {
    let scene = Scene::pod_identity(|builder, store| {
        store.trust("unused", "unused");
        instance(builder, json!({"identity": "pod", "eksPodIdentity": true}))
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &store.pod_identity_url())
    })
    .await;
    let path = scene.store.seed("path", r#"{"A":"nobody's"}"#).await;
    for name in ["one", "two"] {
        scene.namespace.service_account(name).await;
        scene.store.put_for(&subject(&scene, name), &path, &json!({"A": name}).to_string());
    }
    scene.store.trust("eks", &subject(&scene, "one"));
    for number in 0..5 {
        let name = format!("one-{number}");
        scene.pod(&name).service_account("one").asks(&path, &name).create().await;
        scene.namespace.wait_for_data(&name, [("A", "one")]).await;
    }
    assert_eq!(scene.store.calls(POD_IDENTITY), 1);
    let pod = scene.pod("two").service_account("two").asks(&path, "two").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    for want in ["EKS Pod Identity association", &subject(&scene, "two"), "pods.eks.amazonaws.com"] {
        assert!(note.contains(want), "{want}: {note}");
    }
    scene.store.trust("eks", &subject(&scene, "two"));
    scene.namespace.wait_for_data("two", [("A", "two")]).await;
}

#[tokio::test]
async fn where_nothing_of_eks_listens_on_the_node_that_is_told() {
    let scene = Scene::pod_identity(|builder, _| {
        instance(builder, json!({"identity": "pod", "eksPodIdentity": true}))
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:9/v1/credentials")
    })
    .await;
    let pod = scene.pod("web").asks("a/b", "app").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(note.contains("that the Pod Identity agent runs on the node"), "{note}");
}

/// Without any right to tokens.
#[tokio::test]
async fn an_instance_takes_on_a_role_of_its_own() {
    let role = role("team-a");
    let scene = Scene::set_with_store(|builder, store| {
        store.trust(&role, "external-1");
        let one = json!({"roleArn": role, "externalId": "external-1"});
        instance(builder, one).env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test")
    })
    .await;
    let path = scene.store.seed("path", r#"{"A":"1"}"#).await;
    for name in ["one", "two"] {
        scene.pod(name).asks(&path, name).create().await;
        scene.namespace.wait_for_data(name, [("A", "1")]).await;
    }
    let holders = scene.store.holders(&path);
    assert!(!holders.is_empty() && holders.iter().all(|holder| *holder == role), "{holders:?}");
    assert_eq!(scene.store.calls(ASSUME_ROLE), 1);
    let secret = scene.namespace.wait_for_secret("one").await;
    assert_eq!(annotation(&secret, "jasm.codnod.io/source"), format!("v1:aws-secretsmanager:{path}"));
    scene.store.distrust(&role);
    scene.store.fail_times(&path, 1, crate::support::store::Fault::Status(401));
    let pod = scene.pod("three").asks(&path, "three").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(note.contains(&role) && note.contains("sts:AssumeRole") && note.contains("externalId"), "{note}");
}

/// Without any right to tokens: the agent says for whom it asks, and the store believes it.
#[tokio::test]
async fn sessions_say_for_which_namespace_and_account_they_are_and_are_not_shared() {
    let role = role("all");
    let scene = Scene::set_with_store(|builder, store| {
        store.trust(&role, "");
        let tagged = json!({"roleArn": role, "sessionTags": ["namespace", "serviceAccount"]});
        instance(builder, tagged).env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test")
    })
    .await;
    let path = scene.store.seed("path", r#"{"A":"nobody's"}"#).await;
    let holder = |name: &str| {
        format!("{role} kubernetes-namespace={} kubernetes-service-account={name}", scene.namespace.name())
    };
    for name in ["one", "two"] {
        scene.namespace.service_account(name).await;
        scene.store.put_for(&holder(name), &path, &json!({"A": name}).to_string());
    }
    for number in 0..10 {
        let account = if number % 2 == 0 { "one" } else { "two" };
        let name = format!("{account}-{number}");
        scene.pod(&name).service_account(account).asks(&path, &name).create().await;
        scene.namespace.wait_for_data(&name, [("A", account)]).await;
    }
    assert_eq!(scene.store.calls(ASSUME_ROLE), 2);
    let secret = scene.namespace.wait_for_secret("one-0").await;
    assert_eq!(annotation(&secret, "jasm.codnod.io/source"), format!("v1:aws-secretsmanager:{path}?as=name/one"));
}
