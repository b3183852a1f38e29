//! The agent dies at once (SIGKILL) with one of its requests done and unheard. The next one finds everything in order.

use k8s_openapi::api::core::v1::Pod;

use super::{behind_proxy, create, events, probe, update};
use crate::support::api_proxy::{ApiProxy, Match, Trouble};
use crate::support::scene::{Scene, later_than};

/// When the agent dies.
enum Moment {
    /// The API server has done this, and its answer is on the way.
    Asked(Match),
    /// So is the store's answer.
    Fetched,
}

/// Makes the pod, kills the agent at the moment, and starts the next one.
async fn die(proxy: &ApiProxy, scene: &mut Scene, path: &str, moment: Moment) -> Pod {
    let pod = async |scene: &Scene| scene.pod("web").asks(path, "app").create().await;
    let pod = match moment {
        Moment::Asked(request) => {
            let held = proxy.fail(request, Trouble::HeldReply);
            let pod = pod(scene).await;
            held.hit(1).await;
            scene.agent.kill();
            pod
        }
        Moment::Fetched => {
            let gate = scene.store.hold(path);
            let pod = pod(scene).await;
            gate.held(1).await;
            scene.agent.kill();
            pod
        }
    };
    scene.agent = scene.builder.spawn();
    scene.agent.ready().await;
    pod
}

/// Exactly so many writes were stored, and no other was tried.
async fn written(scene: &Scene, case: &str, creates: usize, updates: usize) {
    let calls = scene.calls().await;
    let count = |kind: &str| calls.get(kind).copied().unwrap_or_default();
    assert_eq!(
        (count("create secrets"), count("update secrets")),
        (creates, updates),
        "killed after {case}: {calls:?}"
    );
}

#[tokio::test]
async fn an_agent_killed_after_any_request_of_a_first_sync_leaves_its_successor_nothing_to_repair() {
    let moments = [
        ("the probe", Moment::Asked(probe())),
        ("the fetch", Moment::Fetched),
        ("the create", Moment::Asked(create())),
        ("the Event", Moment::Asked(events())),
    ];
    for (case, moment) in moments {
        let (proxy, mut scene) = behind_proxy().await;
        let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
        let is_stored = matches!(case, "the create" | "the Event");

        let pod = die(&proxy, &mut scene, &path, moment).await;

        scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
        scene.namespace.wait_for_data("app", [("A", "1")]).await;
        scene.settle().await;
        written(&scene, case, 1, 0).await;
        if is_stored {
            assert_eq!(scene.store.calls(&path), 1, "killed after {case}: what is stored is not fetched again");
        }
    }
}

#[tokio::test]
async fn an_agent_killed_after_any_request_of_an_update_leaves_its_successor_nothing_to_repair() {
    let moments = [
        ("the probe", Moment::Asked(probe())),
        ("the fetch", Moment::Fetched),
        ("the update", Moment::Asked(update())),
        ("the Event", Moment::Asked(events())),
    ];
    for (case, moment) in moments {
        let (proxy, mut scene) = behind_proxy().await;
        let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
        let before = scene.pod("before").asks(&path, "app").create().await;
        scene.namespace.wait_for_event(&before, "SecretSyncSuccess").await;
        let first = scene.namespace.wait_for_data("app", [("A", "1")]).await;
        scene.store.put(&path, r#"{"A":"2"}"#).await;
        later_than(&first).await;

        let pod = die(&proxy, &mut scene, &path, moment).await;

        scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
        scene.namespace.wait_for_data("app", [("A", "2")]).await;
        scene.settle().await;
        written(&scene, case, 1, 1).await;
    }
}
