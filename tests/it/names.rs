//! Whose a Secret's name is: foreign Secrets, two specs for one name, lost races.

use serde_json::json;

use crate::support::scene::{Scene, annotation, calls, later_than};

const HASH: &str = "5d4f6c7b8";

#[tokio::test]
async fn a_foreign_secret_is_left_alone() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"ours"}"#).await;
    let foreign = scene.namespace.add_secret("app", &[("A", "theirs")]).await;

    let pod = scene.pod("web").asks(&path, "app").create().await;

    let event = scene.namespace.wait_for_event(&pod, "SecretConflict").await;
    let note = event.note.unwrap_or_default();
    let name = format!("{}/app", scene.namespace.name());
    assert!(note.contains(&name) && note.contains("choose another secretName"), "{note}");
    assert_eq!(scene.namespace.wait_for_secret("app").await, foreign, "not a byte of it changed");
    assert_eq!(scene.calls().await, calls([("update secrets (dry run)", 1)]));
}

#[tokio::test]
async fn a_foreign_secret_that_appears_during_the_fetch_is_left_alone() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"ours"}"#).await;
    let gate = scene.store.hold(&path);
    let pod = scene.pod("web").asks(&path, "app").create().await;
    gate.held(1).await;
    let foreign = scene.namespace.add_secret("app", &[("A", "theirs")]).await;
    gate.release();

    scene.namespace.wait_for_event(&pod, "SecretConflict").await;

    assert_eq!(scene.namespace.wait_for_secret("app").await, foreign);
}

/// A write would take it away, and the agent cannot put back what it may not read.
#[tokio::test]
async fn what_others_put_on_a_secret_stays_and_the_pod_is_told() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.pod("web-1").asks(&path, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let label = json!({"metadata": {"labels": {"team": "a"}, "annotations": {"reloader": "x"}}});
    let labelled = scene.namespace.edit_secret("app", label).await;
    scene.store.put(&path, r#"{"A":"2"}"#).await;
    later_than(&first).await;

    let pod = scene.pod("web-2").asks(&path, "app").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretConflict").await.note.unwrap_or_default();
    assert!(note.contains("carries labels, annotations of others") && note.contains("remove them"), "{note}");
    assert_eq!(scene.namespace.wait_for_secret("app").await, labelled, "not a byte of it changed");
    let took = [("update secrets (dry run)", 2), ("create secrets", 1)];
    assert_eq!(scene.calls().await, calls(took), "the probe tells it, and nothing is tried");

    let bare = json!({"metadata": {"labels": {"team": null}, "annotations": {"reloader": null}}});
    scene.namespace.edit_secret("app", bare).await;
    scene.pod("web-3").asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "2")]).await;
}

#[tokio::test]
async fn a_race_that_is_lost_costs_one_more_probe_and_write() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.pod("web-1").asks(&path, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    scene.store.put(&path, r#"{"A":"2"}"#).await;
    later_than(&first).await;
    let gate = scene.store.hold(&path);
    scene.pod("web-2").asks(&path, "app").create().await;
    gate.held(1).await;
    scene.wait_for_calls([("update secrets (dry run)", 2), ("create secrets", 1)]).await;
    // Somebody is faster between the probe and the write.
    scene
        .namespace
        .edit_secret("app", json!({"metadata": {"annotations": {"jasm.codnod.io/synced-at": "2026-01-01T00:00:00Z"}}}))
        .await;
    gate.release();

    scene.namespace.wait_for_data("app", [("A", "2")]).await;

    let took = [("update secrets (dry run)", 3), ("create secrets", 1), ("update secrets", 2)];
    assert_eq!(scene.calls().await, calls(took));
    assert_eq!(scene.store.calls(&path), 2, "the value is fetched once");
}

#[tokio::test]
async fn a_deployment_changes_its_source_with_a_newer_pod_and_an_older_one_does_not_change_it_back() {
    let scene = Scene::set().await;
    let (_, set) = scene.namespace.deployment("web").await;
    let old_path = scene.store.seed("old", r#"{"A":"old"}"#).await;
    let new_path = scene.store.seed("new", r#"{"A":"new"}"#).await;
    let old =
        scene.pod("web-old").owned_by(&set).label("pod-template-hash", HASH).asks(&old_path, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "old")]).await;
    assert_eq!(annotation(&first, "jasm.codnod.io/workload"), "apps/Deployment/web");
    later_than(&first).await;

    scene.pod("web-new").owned_by(&set).label("pod-template-hash", HASH).asks(&new_path, "app").create().await;
    let second = scene.namespace.wait_for_data("app", [("A", "new")]).await;
    let took = [("update secrets (dry run)", 2), ("create secrets", 1), ("update secrets", 1)];
    assert_eq!(scene.calls().await, calls(took), "other source of ours = probe + fetch + PUT");

    // A new agent replays both pods, in whatever order.
    let mut again = scene.builder.spawn();
    again.ready().await;
    scene.settle().await;
    let told = scene.namespace.wait_for_events(&old, 2).await;
    let notes: Vec<_> = told.iter().filter_map(|event| event.note.as_deref()).collect();
    assert!(notes.iter().any(|note| note.contains("follows another pod")), "{notes:?}");
    let third = scene.namespace.wait_for_data("app", [("A", "new")]).await;
    assert_eq!(third.metadata.resource_version, second.metadata.resource_version);
}

#[tokio::test]
async fn another_deployments_name_is_refused_until_that_deployment_is_gone() {
    let scene = Scene::set().await;
    let (holder, holders_set) = scene.namespace.deployment("first").await;
    let (_, other_set) = scene.namespace.deployment("second").await;
    let one = scene.store.seed("one", r#"{"A":"1"}"#).await;
    let two = scene.store.seed("two", r#"{"A":"2"}"#).await;
    scene.pod("first").owned_by(&holders_set).label("pod-template-hash", HASH).asks(&one, "app").create().await;
    let held = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    later_than(&held).await;

    let pod =
        scene.pod("second").owned_by(&other_set).label("pod-template-hash", HASH).asks(&two, "app").create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretConflict").await;
    assert!(event.note.as_deref().unwrap_or_default().contains("apps/Deployment/first"), "{:?}", event.note);
    assert_eq!(scene.namespace.wait_for_secret("app").await, held);

    scene.namespace.delete_workload(&holder).await;
    scene.namespace.wait_for_data("app", [("A", "2")]).await;
}

#[tokio::test]
async fn a_name_that_a_bare_pod_once_used_goes_to_a_newer_deployment() {
    let scene = Scene::set().await;
    let (_, set) = scene.namespace.deployment("web").await;
    let staging = scene.store.seed("staging", r#"{"A":"1"}"#).await;
    let prod = scene.store.seed("prod", r#"{"A":"2"}"#).await;
    let trial = scene.pod("trial").asks(&staging, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    scene.namespace.delete_pod(&trial).await;
    later_than(&first).await;

    scene.pod("web").owned_by(&set).label("pod-template-hash", HASH).asks(&prod, "app").create().await;
    let second = scene.namespace.wait_for_data("app", [("A", "2")]).await;
    assert_eq!(annotation(&second, "jasm.codnod.io/workload"), "apps/Deployment/web");
}

#[tokio::test]
async fn an_immutable_secret_of_ours_with_another_value_stays_and_says_so() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.pod("web-1").asks(&path, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    scene.namespace.edit_secret("app", json!({"immutable": true})).await;
    scene.store.put(&path, r#"{"A":"2"}"#).await;
    later_than(&first).await;

    let pod = scene.pod("web-2").asks(&path, "app").create().await;

    let event = scene.namespace.wait_for_event(&pod, "SecretConflict").await;
    assert!(event.note.as_deref().unwrap_or_default().contains("immutable"), "{:?}", event.note);
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
}
