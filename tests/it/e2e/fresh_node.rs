//! Pods that were bound before the node had an agent.

use std::time::SystemTime;

use super::cluster::{Cluster, OVERLAY, SYSTEM, install, kubectl};
use super::history::History;
use super::pods::How;
use super::{PATIENCE, median, report, seconds, store};
use crate::support::wait::try_within;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn pods_that_were_there_before_the_agents_image_are_served() {
    const PODS: usize = 20;
    let cluster = Cluster::prepared().await;
    let namespace = cluster.namespace().await;
    // As on a node whose registry takes its time: the agent's pod is there, its image is not.
    kubectl(&["delete", "-k", OVERLAY, "--ignore-not-found"]);
    kubectl(&["apply", "-k", "tests/e2e/without-image"]);
    let names: Vec<String> = (0..PODS).map(|number| format!("pod-{number}")).collect();
    let paths: Vec<String> = names.iter().map(|name| namespace.path(name)).collect();
    store::put(paths.iter().map(|path| (path, "value".to_owned())));
    let history = History::of(&namespace);
    for (number, (name, path)) in names.iter().zip(&paths).enumerate() {
        let how = if number % 2 == 0 { How::Env } else { How::Volume };
        namespace.pod(name, how, name, Some(path)).await;
    }
    try_within(PATIENCE, "all pods to wait for their Secrets", async || {
        let waiting = history.misses(&namespace).await.len();
        if waiting == PODS { Ok(()) } else { Err(format!("{waiting} of {PODS}")) }
    })
    .await
    .unwrap_or_else(|message| panic!("{message}"));
    kubectl(&["delete", "pods", "-n", SYSTEM, "--all", "--wait=false"]);
    install(OVERLAY);
    let ready = ready_since(&cluster).await;
    history.running(PODS).await;
    let (mut env, mut volume) = (Vec::new(), Vec::new());
    for (number, name) in names.iter().enumerate() {
        // Pods are served from the first list on, and the kubelet looks at the agent's readiness only every 5 s.
        let waited = namespace.printed(name).await.first.duration_since(ready).unwrap_or_default();
        if number % 2 == 0 { env.push(waited) } else { volume.push(waited) }
    }
    for (kind, mut waits) in [("environment", env), ("volume", volume)] {
        let middle = median(&mut waits);
        let each: Vec<String> = waits.iter().map(|wait| format!("{:.1}", wait.as_secs_f64())).collect();
        report(&format!(
            "fresh node, {kind}: started {} s after the agent was ready (median {})",
            each.join(" "),
            seconds(middle)
        ));
    }
}

/// Since when the agent is ready, to the second.
async fn ready_since(cluster: &Cluster) -> SystemTime {
    let agent = cluster.agent().await;
    let conditions = agent.status.and_then(|status| status.conditions).unwrap_or_default();
    let ready = conditions.into_iter().find(|one| one.type_ == "Ready").and_then(|one| one.last_transition_time);
    ready.expect("a ready pod says since when").0.into()
}
