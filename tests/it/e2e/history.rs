//! What became of the pods of a namespace, from one watch: nothing that a pod ever showed is missed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::{TryStreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use kube::ResourceExt as _;
use kube::api::{ListParams, LogParams};
use kube::runtime::{WatchStreamExt as _, watcher};

use super::PATIENCE;
use super::cluster::OwnNamespace;
use crate::support::wait::try_within;

/// One pod's history.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// When the watch told that it has a node.
    pub(super) bound: Option<SystemTime>,
    /// All its containers ran.
    pub(super) running: bool,
    /// Why containers waited, all reasons there ever were.
    pub(super) reasons: BTreeSet<String>,
}

/// The histories, by pod.
pub(super) struct History {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    watching: tokio::task::JoinHandle<()>,
}

impl History {
    /// Begins to watch.
    pub(super) fn of(namespace: &OwnNamespace) -> Self {
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let pods = watcher(namespace.api::<Pod>(), watcher::Config::default()).default_backoff().applied_objects();
        let record = Arc::clone(&seen);
        let watching = tokio::spawn(async move {
            pin_mut!(pods);
            // An error is followed by a new watch.
            loop {
                if let Ok(Some(pod)) = pods.try_next().await {
                    note(record.lock().expect("no panic while it is held").entry(pod.name_any()).or_default(), &pod);
                }
            }
        });
        Self { seen, watching }
    }

    /// All pods so far.
    pub(super) fn all(&self) -> BTreeMap<String, Seen> {
        self.seen.lock().expect("no panic while it is held").clone()
    }

    /// Waits until `count` pods have run, and returns their histories.
    pub(super) async fn running(&self, count: usize) -> BTreeMap<String, Seen> {
        try_within(2 * PATIENCE, "all pods to run", async || {
            let all = self.all();
            let running = all.values().filter(|pod| pod.running).count();
            let waiting = || all.iter().filter(|(_, pod)| !pod.running).take(5).collect::<Vec<_>>();
            if running >= count { Ok(all.clone()) } else { Err(format!("{running} of {count}; not {:?}", waiting())) }
        })
        .await
        .unwrap_or_else(|message| panic!("{message}"))
    }

    /// Pods whose Secret was not there when the kubelet looked: by what they showed, and by the kubelet's Events, since
    /// a status that the next look mends is never sent.
    pub(super) async fn misses(&self, namespace: &OwnNamespace) -> BTreeSet<String> {
        let missed = |pod: &Seen| pod.reasons.contains("CreateContainerConfigError");
        let shown = self.all().into_iter().filter(|(_, pod)| missed(pod)).map(|(name, _)| name);
        let events = namespace.api::<Event>().list(&ListParams::default()).await.expect("a list of Events");
        let failed = events.items.into_iter().filter(|event| {
            let reason = event.reason.as_deref();
            let missing =
                event.message.as_deref().is_some_and(|text| text.contains("secret") && text.contains("not found"));
            matches!(reason, Some("Failed" | "FailedMount")) && missing
        });
        shown.chain(failed.filter_map(|event| event.involved_object.name)).collect()
    }
}

/// Asserts that hardly a pod missed its Secret: at most one in ten. The kubelet and the agent race for milliseconds on a
/// machine that others use too; an agent that is too late, or away, is so for all pods of that time.
pub(super) fn hardly_any(misses: &BTreeSet<String>, of: usize) {
    assert!(misses.len() <= of / 10, "the kubelet looked for Secrets of {of} pods that were not there: {misses:?}");
}

impl Drop for History {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

fn note(seen: &mut Seen, pod: &Pod) {
    if seen.bound.is_none() && pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) {
        seen.bound = Some(SystemTime::now());
    }
    let Some(status) = &pod.status else { return };
    let containers = || status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for waiting in containers().filter_map(|one| one.state.as_ref()?.waiting.as_ref()) {
        seen.reasons.extend(waiting.reason.clone());
    }
    let started = |one: &ContainerStatus| {
        let state = one.state.as_ref();
        state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    seen.running |= status.container_statuses.as_ref().is_some_and(|all| !all.is_empty() && all.iter().all(started));
}

/// What a pod's main container printed, and when it began to.
pub(super) struct Printed {
    pub(super) first: SystemTime,
    pub(super) lines: Vec<String>,
}

impl OwnNamespace {
    /// What a pod printed, once it has said all it has to: its last line is `done`.
    pub(super) async fn printed(&self, pod: &str) -> Printed {
        let parameters = LogParams { timestamps: true, ..LogParams::default() };
        try_within(PATIENCE, &format!("the log of {pod}"), async || {
            let log = self.api::<Pod>().logs(pod, &parameters).await.map_err(|error| error.to_string())?;
            let lines: Vec<(&str, &str)> = log.lines().filter_map(|line| line.split_once(' ')).collect();
            match (lines.first(), lines.last()) {
                (Some((first, _)), Some((_, "done"))) => {
                    let first: jiff::Timestamp = first.parse().map_err(|error| format!("{error}"))?;
                    let lines = lines.iter().map(|(_, line)| (*line).to_owned()).collect();
                    Ok(Printed { first: first.into(), lines })
                }
                _ => Err(format!("{} lines, the last not `done`", lines.len())),
            }
        })
        .await
        .unwrap_or_else(|message| panic!("{message}"))
    }

    /// From the moment that the pod had a node to the first line of its container.
    pub(super) async fn start_of(&self, pod: &str, history: &BTreeMap<String, Seen>) -> Duration {
        let bound = history.get(pod).and_then(|seen| seen.bound).unwrap_or_else(|| panic!("{pod} was never bound"));
        since(bound, self.printed(pod).await.first)
    }
}

/// From one moment to another. The second may come from the node's clock, the first from ours.
///
/// # Panics
/// When the clocks are more than a second apart: then no figure means anything.
pub(super) fn since(from: SystemTime, to: SystemTime) -> Duration {
    to.duration_since(from).unwrap_or_else(|before| {
        assert!(before.duration() <= Duration::from_secs(1), "the clocks differ by {before:?}");
        Duration::ZERO
    })
}
