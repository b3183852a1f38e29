//! The store is down while pods start, or slow while a Secret is outdated.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use tokio::time::sleep;

use super::cluster::{Cluster, kubectl};
use super::history::{History, since};
use super::pods::How;
use super::{median, report, seconds, store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn pods_start_by_themselves_after_the_store_is_back() {
    const DOWN: Duration = Duration::from_secs(20);
    let cluster = Cluster::installed().await;
    let namespace = cluster.namespace().await;
    let history = History::of(&namespace);
    let names: Vec<String> = (0..10).map(|number| format!("pod-{number}")).collect();
    let paths: Vec<String> = names.iter().map(|name| namespace.path(name)).collect();
    store::put(paths.iter().map(|path| (path, "value".to_owned())));
    cluster.close_store().await;
    for (number, (name, path)) in names.iter().zip(&paths).enumerate() {
        let how = if number % 2 == 0 { How::Env } else { How::Volume };
        namespace.pod(name, how, name, Some(path)).await;
    }
    sleep(DOWN).await;
    assert!(history.all().values().all(|pod| !pod.running), "a pod runs without its Secret");
    cluster.reset_store().await;
    let back = std::time::SystemTime::now();
    history.running(names.len()).await;
    let misses = history.misses(&namespace).await;
    assert!(
        names.iter().all(|name| misses.contains(name)),
        "not every pod is seen to have missed its Secret: {misses:?}"
    );
    let events = kubectl(&["get", "events", "-n", namespace.name(), "--field-selector", "reason=SecretFetchFailed"]);
    assert!(events.contains("did not answer"), "no Event says that the store did not answer");
    let (mut env, mut volume) = (Vec::new(), Vec::new());
    for (number, name) in names.iter().enumerate() {
        let printed = namespace.printed(name).await;
        assert!(printed.lines.iter().any(|line| line.ends_with("=value")), "{name} has no value");
        let waited = since(back, printed.first);
        if number % 2 == 0 { env.push(waited) } else { volume.push(waited) }
    }
    for (kind, mut waits) in [("environment", env), ("volume", volume)] {
        let middle = median(&mut waits);
        let (first, last) = (waits[0], waits[waits.len() - 1]);
        report(&format!(
            "store down for {DOWN:?}, {kind}: pods started {} (first), {} (median), {} (last) after it was back",
            seconds(first),
            seconds(middle),
            seconds(last)
        ));
    }
}

/// The kubelet does not wait for an update of a Secret that is there: how many containers get the old value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn how_many_pods_start_with_the_old_value_of_an_outdated_secret() {
    const PODS: usize = 50;
    let cluster = Cluster::installed().await;
    let namespace = cluster.namespace().await;
    let names: Vec<String> = (0..PODS).map(|number| format!("pod-{number}")).collect();
    let paths: Vec<String> = names.iter().map(|name| namespace.path(name)).collect();
    let generation = async |value: String, latency: u64, pause: Duration| {
        store::put(paths.iter().map(|path| (path, value.clone())));
        cluster.slow_store(Duration::from_millis(latency)).await;
        let history = History::of(&namespace);
        for (name, path) in names.iter().zip(&paths) {
            namespace.pod(name, How::Both, name, Some(path)).await;
            sleep(pause).await;
        }
        history.running(PODS).await;
        let mut old = (0, 0);
        for name in &names {
            let lines = namespace.printed(name).await.lines;
            old.0 += usize::from(!lines.contains(&format!("env={value}")));
            old.1 += usize::from(!lines.contains(&format!("volume={value}")));
        }
        namespace.clear().await;
        old
    };
    // The Secrets come to be with the first pods, so that none of them can be old.
    let first = generation("first".to_owned(), 0, Duration::ZERO).await;
    assert_eq!(first, (0, 0), "pods without the only value there ever was");
    for (pace, pause) in [("at once", Duration::ZERO), ("one each 0.3 s", Duration::from_millis(300))] {
        for latency in [20, 100, 300] {
            let old = generation(format!("after-{latency}-{pace}"), latency, pause).await;
            report(&format!(
                "outdated Secrets, store answers after {latency} ms, {PODS} pods {pace}: {} started with the old \
                 environment, {} with the old volume",
                old.0, old.1
            ));
        }
    }
    cluster.reset_store().await;
    let events = kubectl(&["get", "events", "-n", namespace.name(), "--field-selector", "reason=SecretSyncSuccess"]);
    assert!(events.contains("started before"), "no Event of an update says that earlier containers keep the old value");
    let left = namespace.api::<Pod>().list(&ListParams::default()).await.expect("a list of pods");
    assert!(left.items.is_empty());
}
