//! When a value is fetched anew, and when it is not.

use std::time::Duration;

use serde_json::json;

use crate::support::agent::AgentBuilder;
use crate::support::audit::{requests, tally};
use crate::support::scene::{ALLOW_ALL, Scene, annotation, calls, later_than};
use crate::support::wait::try_within;

#[tokio::test]
async fn a_changed_source_arrives_with_the_next_pod_and_keys_gone_there_vanish() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"KEPT":"1","GONE":"x"}"#).await;
    scene.pod("web-1").asks(&path, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("KEPT", "1"), ("GONE", "x")]).await;

    scene.store.put(&path, r#"{"KEPT":"2","NEW":"y"}"#).await;
    later_than(&first).await;
    let pod = scene.pod("web-2").asks(&path, "app").create().await;

    let second = scene.namespace.wait_for_data("app", [("KEPT", "2"), ("NEW", "y")]).await;
    let event = scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    assert!(event.note.as_deref().unwrap_or_default().contains("was updated"), "{:?}", event.note);
    let version = "jasm.codnod.io/source-version";
    assert_ne!(annotation(&first, version), annotation(&second, version));
    let took = [("update secrets (dry run)", 2), ("create secrets", 1), ("update secrets", 1)];
    assert_eq!(scene.calls().await, calls(took), "stale = probe + fetch + PUT");
    assert_eq!(scene.store.calls(&path), 2);
}

#[tokio::test]
async fn a_manual_edit_is_repaired_by_the_next_pod() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.pod("web-1").asks(&path, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    // "other" and "else" in base64.
    scene.namespace.edit_secret("app", json!({"data": {"A": "b3RoZXI=", "B": "ZWxzZQ=="}})).await;

    later_than(&first).await;
    scene.pod("web-2").asks(&path, "app").create().await;

    scene.namespace.wait_for_data("app", [("A", "1")]).await;
}

#[tokio::test]
async fn a_second_agent_takes_what_the_first_one_wrote() {
    let scene = Scene::set_with(|builder| builder.freshness("60s")).await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.pod("web-1").asks(&path, "app").create().await;
    scene.namespace.wait_for_secret("app").await;

    let builder = AgentBuilder::new(scene.surroundings, &scene.store).await.policy(ALLOW_ALL).freshness("60s");
    let mut second = builder.spawn();
    second.ready().await;
    let pod = scene.namespace.pod("web-2").on(builder.node()).asks(&path, "app").create().await;

    let event = scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    assert!(event.note.as_deref().unwrap_or_default().contains("is up to date"), "{:?}", event.note);
    assert_eq!(scene.store.calls(&path), 1);
    let all = requests(scene.surroundings, builder.node().name()).await;
    let here =
        all.iter().filter(|request| request.namespace == scene.namespace.name() && request.resource == "secrets");
    assert_eq!(tally(here), calls([("update secrets (dry run)", 1)]), "fresh = probe");
}

#[tokio::test]
async fn a_restarted_agent_probes_and_fetches_nothing() {
    let mut scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let running = scene.pod("running").asks(&path, "app").create().await;
    let starting = scene.pod("starting").asks(&path, "app").create().await;
    for pod in [&running, &starting] {
        scene.namespace.wait_for_event(pod, "SecretSyncSuccess").await;
    }
    scene.namespace.set_phase(&running, "Running").await;
    let (fetches, before) = (scene.store.calls(&path), scene.calls().await);

    scene.agent.terminate().await;
    let mut again = scene.builder.spawn();
    again.ready().await;
    scene.settle().await;

    assert_eq!(scene.store.calls(&path), fetches, "no fetch, also with --freshness 0s");
    let after = scene.calls().await;
    let probes = |calls: &std::collections::BTreeMap<String, usize>| calls.get("update secrets (dry run)").copied();
    assert_eq!(probes(&after), probes(&before).map(|count| count + 1), "one probe for both pods: {after:?}");
    assert_eq!(after.get("create secrets"), before.get("create secrets"));
    assert_eq!(after.get("update secrets"), before.get("update secrets"));
    assert_eq!(scene.namespace.events(&running).await.len(), 1, "a pod that runs is not told again");
    assert_eq!(scene.namespace.wait_for_events(&starting, 2).await.len(), 2, "a pod that still starts is");
}

/// What stands on the Secret is what the agent looks for, whatever characters the request has.
#[tokio::test]
async fn a_request_with_any_characters_is_fresh_for_the_next_pod_and_after_a_restart() {
    let mut scene = Scene::set_with(|builder| builder.freshness("60s")).await;
    let path = scene.store.seed("config", r#"{"my key":"1","a/b":{"c~d":"2"},"é%":"3"}"#).await;
    let keys = json!({"A": "my key", "B": "/a~1b/c~0d", "C": "é%"});
    let request =
        json!({"provider": "aws-secretsmanager", "path": path, "secretName": "app", "keys": keys}).to_string();
    scene.pod("web-1").request(&request).create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "1"), ("B", "2"), ("C", "3")]).await;
    let pod = scene.pod("web-2").request(&request).create().await;
    scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    scene.agent.terminate().await;
    let mut again = scene.builder.spawn();
    again.ready().await;
    scene.settle().await;
    assert_eq!(scene.namespace.wait_for_secret("app").await, first);
    assert_eq!(scene.store.calls(&path), 1);
    assert_eq!(scene.calls().await, calls([("update secrets (dry run)", 3), ("create secrets", 1)]));
}

#[tokio::test]
async fn there_is_one_watch_and_no_list() {
    let mut scene = Scene::set().await;
    scene.settle().await;
    scene.agent.terminate().await;
    let all = requests(scene.surroundings, scene.builder.node().name()).await;
    let of_pods = all.iter().filter(|request| request.resource == "pods");
    assert_eq!(tally(of_pods), calls([("watch pods", 1)]));
}

#[tokio::test]
async fn a_time_on_a_secret_that_lies_ahead_is_not_believed() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.pod("web-1").asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let ahead = json!({"metadata": {"annotations": {"jasm.codnod.io/synced-through": "2199-01-01T00:00:00Z"}}});
    scene.namespace.edit_secret("app", ahead).await;
    scene.store.put(&path, r#"{"A":"2"}"#).await;

    scene.pod("web-2").asks(&path, "app").create().await;

    scene.namespace.wait_for_data("app", [("A", "2")]).await;
}

/// The bill of a full node: what a start, a restart and a roll-out of everything cost.
#[tokio::test]
async fn two_hundred_pods_of_ten_workloads_with_ten_secrets_cost_ten_fetches_and_a_restart_none() {
    const WORKLOADS: usize = 10;
    const PODS: usize = 20;
    let mut scene = Scene::set_with(|builder| builder.freshness("60s")).await;
    let mut workloads = Vec::new();
    for number in 0..WORKLOADS {
        let name = format!("app-{number}");
        let path = scene.store.seed(&name, r#"{"A":"1"}"#).await;
        workloads.push((scene.namespace.workload("StatefulSet", &name).await, name, path));
    }
    let roll_out = async |scene: &Scene, round: &str| {
        for (workload, name, path) in &workloads {
            let pods: Vec<String> = (0..PODS).map(|number| format!("{name}-{round}-{number}")).collect();
            let pods = pods.iter().map(|pod| scene.pod(pod).owned_by(workload).asks(path, name).create());
            for pod in futures::future::join_all(pods).await {
                scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
            }
        }
    };
    roll_out(&scene, "first").await;
    let pods = WORKLOADS * PODS;
    assert_eq!(scene.store.total_calls(), WORKLOADS);
    assert_eq!(scene.calls().await, calls([("update secrets (dry run)", pods), ("create secrets", WORKLOADS)]));

    scene.agent.terminate().await;
    let mut again = scene.builder.spawn();
    again.ready().await;
    scene.settle().await;
    assert_eq!(scene.store.total_calls(), WORKLOADS + 1, "none but for what the wait asked for");
    let probes = pods + WORKLOADS;
    assert_eq!(scene.calls().await, calls([("update secrets (dry run)", probes), ("create secrets", WORKLOADS)]));

    // Pods that do not run are told once more: the Events of those that come now stand behind these.
    let told = try_within(Duration::from_secs(120), "the Events of the restart", async || {
        match scene.namespace.all_events().await.len() {
            told if told >= 2 * pods => Ok(()),
            told => Err(format!("{told} Events")),
        }
    });
    told.await.unwrap_or_else(|message| panic!("{message}"));

    // As if a minute had gone by.
    for (_, name, _) in &workloads {
        let past = json!({"metadata": {"annotations": {"jasm.codnod.io/synced-through": "2020-01-01T00:00:00Z"}}});
        scene.namespace.edit_secret(name, past).await;
    }
    roll_out(&scene, "second").await;
    assert_eq!(scene.store.total_calls(), 2 * WORKLOADS + 1, "one for each source");
    let writes =
        [("update secrets (dry run)", probes + pods), ("create secrets", WORKLOADS), ("update secrets", WORKLOADS)];
    assert_eq!(scene.calls().await, calls(writes), "not fresh and unchanged: one fetch and one PUT");
}
