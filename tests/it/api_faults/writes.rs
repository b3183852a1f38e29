//! Writes that are refused, lost or overtaken.

use serde_json::json;

use super::{SOON, behind_proxy, create, everything, probe, secrets, served_within, told, update};
use crate::support::agent::AgentBuilder;
use crate::support::api_proxy::{Refusal, Trouble};
use crate::support::scene::{ALLOW_ALL, Scene, calls, later_than};

// ---- 409 ----

#[tokio::test]
async fn a_create_that_another_agent_overtakes_leaves_one_secret_and_two_content_pods() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let other = AgentBuilder::new(scene.surroundings, &scene.store).await.policy(ALLOW_ALL);
    let mut faster = other.spawn();
    faster.ready().await;
    let held = proxy.fail(create(), Trouble::BlackHole);
    let ours = scene.pod("ours").asks(&path, "app").create().await;
    held.hit(1).await;
    let theirs = scene.namespace.pod("theirs").on(other.node()).asks(&path, "app").create().await;
    scene.namespace.wait_for_event(&theirs, "SecretSyncSuccess").await;
    held.heal();

    scene.namespace.wait_for_event(&ours, "SecretSyncSuccess").await;

    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let took = [("update secrets (dry run)", 2), ("create secrets", 1)];
    assert_eq!(scene.calls().await, calls(took), "the lost race costs a probe, and finds the value fresh");
    assert_eq!((told(&scene, &ours).await, told(&scene, &theirs).await), ((1, 0), (1, 0)));
}

#[tokio::test]
async fn an_update_that_somebody_overtakes_is_made_anew() {
    let (proxy, scene) = behind_proxy().await;
    let path = outdated(&scene).await;
    let held = proxy.fail(update(), Trouble::BlackHole);
    let pod = scene.pod("web-2").asks(&path, "app").create().await;
    held.hit(1).await;
    scene.namespace.edit_secret("app", json!({"data": {"A": "b3RoZXI="}})).await;
    held.heal();

    scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;

    scene.namespace.wait_for_data("app", [("A", "2")]).await;
    let took = [("update secrets (dry run)", 3), ("create secrets", 1), ("update secrets", 2)];
    assert_eq!(scene.calls().await, calls(took));
    assert_eq!((scene.store.calls(&path), told(&scene, &pod).await), (2, (1, 0)), "no fetch and no warning for it");
}

#[tokio::test]
async fn a_conflict_that_nobody_caused_costs_one_more_probe_and_write() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let exists = proxy.fail(create().times(1), Trouble::Refused(Refusal::AlreadyExists));
    let first = scene.pod("web-1").asks(&path, "app").create().await;
    let secret = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    assert_eq!(exists.count(), 1);

    scene.store.put(&path, r#"{"A":"2"}"#).await;
    later_than(&secret).await;
    let conflict = proxy.fail(update().times(1), Trouble::Refused(Refusal::Conflict));
    let second = scene.pod("web-2").asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "2")]).await;
    assert_eq!(conflict.count(), 1);

    for pod in [&first, &second] {
        scene.namespace.wait_for_event(pod, "SecretSyncSuccess").await;
        assert_eq!(told(&scene, pod).await, (1, 0));
    }
    let took = [("update secrets (dry run)", 4), ("create secrets", 1), ("update secrets", 1)];
    assert_eq!((scene.calls().await, scene.store.calls(&path)), (calls(took), 2));
}

#[tokio::test]
async fn conflicts_without_end_are_told_once_and_end_with_their_cause() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let conflicts = proxy.fail(create(), Trouble::Refused(Refusal::AlreadyExists));
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretWriteFailed").await;
    let note = event.note.unwrap_or_default();
    assert!(note.contains("is being changed by others"), "{note}");
    // A second look, which says nothing new.
    conflicts.hit(7).await;
    conflicts.heal();

    scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;

    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    assert_eq!(told(&scene, &pod).await, (1, 1));
}

// ---- 429, 503 ----

#[tokio::test]
async fn a_busy_api_server_is_asked_again_within_seconds_however_long_it_asks_to_wait() {
    for refusal in [
        Refusal::Overloaded { retry_after: 1 },
        Refusal::Overloaded { retry_after: 3600 },
        Refusal::Initializing { retry_after: 3600 },
    ] {
        let (proxy, scene) = behind_proxy().await;
        let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
        let busy = proxy.fail(secrets(), Trouble::Refused(refusal));
        let pod = scene.pod("web").asks(&path, "app").create().await;
        busy.hit(4).await;
        let event = scene.namespace.wait_for_event(&pod, "SecretWriteFailed").await;
        let note = event.note.unwrap_or_default();
        assert!(note.contains("HTTP 429") && note.contains("retries with backoff"), "{refusal:?}: {note}");
        busy.heal();

        served_within(SOON, &scene.namespace, "app", &scene.agent).await;

        scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
        assert_eq!(told(&scene, &pod).await, (1, 1), "{refusal:?}");
        assert_eq!(scene.calls().await.get("create secrets"), Some(&1), "{refusal:?}");
    }
}

#[tokio::test]
async fn an_api_server_that_refuses_everything_for_a_while_delays_pods_by_no_more_than_that() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let busy = proxy.fail(everything(), Trouble::Refused(Refusal::Overloaded { retry_after: 3600 }));
    proxy.cut_watches().await;
    scene.pod("web").asks(&path, "app").create().await;
    busy.hit(3).await;
    busy.heal();

    served_within(SOON, &scene.namespace, "app", &scene.agent).await;
}

#[tokio::test]
async fn an_api_server_that_is_unavailable_for_a_while_costs_one_warning() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let down = proxy.fail(secrets(), Trouble::Refused(Refusal::Unavailable));
    let pod = scene.pod("web").asks(&path, "app").create().await;
    down.hit(6).await;
    down.heal();

    scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;

    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let event = scene.namespace.wait_for_event(&pod, "SecretWriteFailed").await;
    let note = event.note.unwrap_or_default();
    assert!(note.contains("HTTP 503") && note.contains("retries with backoff"), "{note}");
    assert_eq!(told(&scene, &pod).await, (1, 1));
    assert_eq!(scene.calls().await, calls([("update secrets (dry run)", 1), ("create secrets", 1)]));
}

// ---- lost replies ----

#[tokio::test]
async fn a_create_whose_answer_is_lost_is_found_by_the_next_look() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let lost = proxy.fail(create().times(1), Trouble::LostReply);
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;

    assert_eq!(lost.count(), 1);
    assert!(event.note.as_deref().unwrap_or_default().contains("is up to date"), "{:?}", event.note);
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let took = [("update secrets (dry run)", 2), ("create secrets", 1)];
    assert_eq!((scene.calls().await, scene.store.calls(&path)), (calls(took), 1), "no second write, no second fetch");
}

#[tokio::test]
async fn an_update_whose_answer_is_lost_is_found_by_the_next_look() {
    let (proxy, scene) = behind_proxy().await;
    let path = outdated(&scene).await;
    let lost = proxy.fail(update().times(1), Trouble::LostReply);
    let pod = scene.pod("web-2").asks(&path, "app").create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;

    assert_eq!(lost.count(), 1);
    assert!(event.note.as_deref().unwrap_or_default().contains("is up to date"), "{:?}", event.note);
    scene.namespace.wait_for_data("app", [("A", "2")]).await;
    let took = [("update secrets (dry run)", 3), ("create secrets", 1), ("update secrets", 1)];
    assert_eq!((scene.calls().await, scene.store.calls(&path)), (calls(took), 2));
}

#[tokio::test]
async fn a_probe_whose_answer_never_comes_is_given_up_and_made_anew() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let hole = proxy.fail(probe().times(1), Trouble::BlackHole);
    let pod = scene.pod("web").asks(&path, "app").create().await;

    // The agent waits 10 s for an answer.
    served_within(SOON, &scene.namespace, "app", &scene.agent).await;

    hole.heal();
    scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    assert_eq!(told(&scene, &pod).await, (1, 1));
    assert_eq!(scene.calls().await, calls([("update secrets (dry run)", 1), ("create secrets", 1)]));
}

/// A Secret `app` with the value 1, whose source has the value 2 since, for pods that come now; the path of that source.
async fn outdated(scene: &Scene) -> String {
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.pod("web-1").asks(&path, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    scene.store.put(&path, r#"{"A":"2"}"#).await;
    later_than(&first).await;
    path
}
