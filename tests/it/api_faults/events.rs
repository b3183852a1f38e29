//! Events that the API server takes late or not at all: Secrets do not wait for them.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::{behind_proxy, events};
use crate::support::api_proxy::{Refusal, Trouble};
use crate::support::scene::Scene;
use crate::support::wait::eventually;

/// How many pods come at once.
const PODS: usize = 20;

/// All pods get their Secrets.
async fn sync(scene: &Scene) -> Vec<Pod> {
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let mut pods = Vec::new();
    for index in 0..PODS {
        let name = format!("web-{index}");
        pods.push(scene.pod(&name).asks(&path, &name).create().await);
    }
    for index in 0..PODS {
        scene.namespace.wait_for_data(&format!("web-{index}"), [("A", "1")]).await;
    }
    pods
}

#[tokio::test]
async fn secrets_appear_while_events_hang_and_events_follow() {
    let (proxy, scene) = behind_proxy().await;
    let hang = proxy.fail(events(), Trouble::BlackHole);
    let pods = sync(&scene).await;
    assert_eq!(scene.namespace.all_events().await, [], "none has come through");
    hang.hit(1).await;
    hang.heal();
    for pod in &pods {
        scene.namespace.wait_for_event(pod, "SecretSyncSuccess").await;
    }
}

#[tokio::test]
async fn secrets_do_not_wait_for_slow_events() {
    let (proxy, scene) = behind_proxy().await;
    let slow = proxy.fail(events(), Trouble::Delay(Duration::from_secs(5)));
    let pods = sync(&scene).await;
    let told = scene.namespace.all_events().await.len();
    assert!(told < PODS, "Events go one by one, and 5 s each: {told}");
    // Of whichever pod was served first.
    eventually("an Event that was slow", async || match scene.namespace.all_events().await.len() {
        0 => Err("none".to_owned()),
        _ => Ok(()),
    })
    .await;
    slow.heal();
    for pod in &pods {
        scene.namespace.wait_for_event(pod, "SecretSyncSuccess").await;
    }
}

#[tokio::test]
async fn events_that_are_forbidden_are_counted_and_not_tried_again() {
    let (proxy, scene) = behind_proxy().await;
    let revoked = proxy.fail(events(), Trouble::Refused(Refusal::NoRight));
    let pods = sync(&scene).await;
    scene.wait_for_metric(&format!("jasm_events_dropped_total {PODS}")).await;
    assert_eq!(revoked.count(), PODS, "each is tried once");
    revoked.heal();

    assert_eq!(scene.namespace.all_events().await, []);
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let later = scene.pod("later").asks(&path, "later").create().await;
    scene.namespace.wait_for_event(&later, "SecretSyncSuccess").await;
    assert_eq!(scene.namespace.events(&pods[0]).await, [], "what was dropped is gone");
}

#[tokio::test]
async fn events_that_come_too_fast_for_the_api_server_are_sent_again() {
    let (proxy, scene) = behind_proxy().await;
    let busy = proxy.fail(events().times(2), Trouble::Refused(Refusal::Overloaded { retry_after: 3600 }));
    let pods = sync(&scene).await;
    for pod in &pods {
        scene.namespace.wait_for_event(pod, "SecretSyncSuccess").await;
    }
    assert_eq!(busy.count(), 2);
    let metrics = scene.agent.get("/metrics").await.text();
    assert!(metrics.contains("jasm_events_dropped_total 0"), "{metrics}");
    assert_eq!(scene.namespace.all_events().await.len(), PODS, "each of them once");
}

/// Rather twice than not at all: each try has a name of its own.
#[tokio::test]
async fn an_event_whose_answer_is_lost_is_sent_again() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let lost = proxy.fail(events().times(1), Trouble::LostReply);
    let pod = scene.pod("web").asks(&path, "app").create().await;
    lost.hit(1).await;
    // Events are sent in their turn: what the agent still had to say of the first pod comes before this.
    let later = scene.pod("later").asks(&path, "later").create().await;
    scene.namespace.wait_for_event(&later, "SecretSyncSuccess").await;
    let events = scene.namespace.events(&pod).await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].note, events[1].note);
}
