//! A namespace that goes, or is gone, at one write or another. (`failures` has the one that goes during a fetch.)

use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use serde_json::Value;

use super::{behind_proxy, create, events, update};

use crate::support::api_proxy::{ApiProxy, Refusal, Trouble};
use crate::support::scene::{Scene, later_than};

/// The sync ended in peace, and said nothing that a pod's owner would read as a failure.
async fn ended_quietly(scene: &Scene) {
    scene.wait_for_log("its quiet end", |line| line["outcome"] == "namespace_gone").await;
    assert!(!scene.agent.log().iter().any(|line| line["outcome"] == "failed"), "{}", scene.agent.tail());
    assert!(!scene.agent.log().iter().any(|line| line["level"] == "ERROR"), "{}", scene.agent.tail());
}

#[tokio::test]
async fn a_namespace_that_goes_before_the_create_is_no_failure() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let held = proxy.fail(create(), Trouble::BlackHole);
    scene.pod("web").asks(&path, "app").create().await;
    held.hit(1).await;
    scene.namespace.terminate().await;
    held.heal();

    ended_quietly(&scene).await;
}

#[tokio::test]
async fn a_namespace_that_is_gone_at_the_create_is_no_failure() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let _gone = proxy.fail(create(), Trouble::Refused(Refusal::NoNamespace));
    scene.pod("web").asks(&path, "app").create().await;

    ended_quietly(&scene).await;
}

/// A stale Secret whose update is held, so that something can befall it.
async fn held_update(proxy: &ApiProxy, scene: &Scene, befalls: impl AsyncFnOnce(&Scene)) {
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.pod("web-1").asks(&path, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    later_than(&first).await;
    let held = proxy.fail(update(), Trouble::BlackHole);
    scene.pod("web-2").asks(&path, "app").create().await;
    held.hit(1).await;
    befalls(scene).await;
    held.heal();
}

#[tokio::test]
async fn a_namespace_that_goes_before_the_update_with_its_secret_is_no_failure() {
    let (proxy, scene) = behind_proxy().await;
    held_update(&proxy, &scene, async |scene| {
        scene.namespace.terminate().await;
        // As the namespace controller does it, in its own time.
        let _ = scene.namespace.api::<Secret>().delete("app", &DeleteParams::default()).await;
    })
    .await;

    ended_quietly(&scene).await;
}

#[tokio::test]
async fn an_event_into_a_namespace_that_goes_is_dropped_and_counted() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let held = proxy.fail(events(), Trouble::BlackHole);
    scene.pod("web").asks(&path, "app").create().await;
    held.hit(1).await;
    scene.namespace.terminate().await;
    held.heal();

    scene.wait_for_metric("jasm_events_dropped_total 1").await;
    // The one at the start is about the test's store, which has no TLS.
    let warned = |line: &Value| line["level"] == "WARN" && line["message"] != "not for production";
    assert!(!scene.agent.log().iter().any(warned), "{}", scene.agent.tail());
}
