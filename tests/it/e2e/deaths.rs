//! The agent is killed, stopped, out of memory, or replaced, while pods want their Secrets.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::sleep;

use super::cluster::{Cluster, OVERLAY, OwnNamespace, SYSTEM, install, kubectl, restarts, roll_out};
use super::history::{History, hardly_any};
use super::node::{AGENT_CGROUP, on_node, signal_agent, try_on_node};
use super::pods::{How, asks};
use super::{PATIENCE, report, seconds, store};
use crate::support::wait::try_within;

/// SC-007: an agent that died serves again within this time.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// Waits until the agent's container was started `count` times more than `before`, and is ready.
async fn restarted(cluster: &Cluster, before: i32, limit: Duration) -> Result<Pod, String> {
    try_within(limit, "the kubelet to start the agent again", async || {
        let agent = cluster.agent().await;
        if restarts(&agent) > before { Ok(agent) } else { Err(format!("{} restarts", restarts(&agent))) }
    })
    .await
}

/// Creates a pod with a secret of its own; returns how long it takes until it runs.
async fn served(namespace: &OwnNamespace, history: &History, name: &str) -> Duration {
    let path = namespace.path(name);
    store::put([(&path, "value".to_owned())]);
    let created = Instant::now();
    namespace.pod(name, How::Env, name, Some(&path)).await;
    try_within(PATIENCE, &format!("{name} to run"), async || {
        if history.all().get(name).is_some_and(|pod| pod.running) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await
    .unwrap_or_else(|message| panic!("{message}"));
    created.elapsed()
}

/// A fresh container, whose last crash the kubelet does not remember.
async fn fresh_agent(cluster: &Cluster) -> Pod {
    kubectl(&["rollout", "restart", "-n", SYSTEM, "daemonset/jasm-agent"]);
    roll_out();
    cluster.agent().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn a_killed_agent_is_back_and_serves_what_came_meanwhile() {
    let cluster = Cluster::installed().await;
    let namespace = cluster.namespace().await;
    let history = History::of(&namespace);
    fresh_agent(&cluster).await;
    let path = namespace.path("meanwhile");
    store::put([(&path, "value".to_owned())]);
    signal_agent("KILL");
    let killed = Instant::now();
    namespace.pod("meanwhile", How::Env, "meanwhile", Some(&path)).await;
    restarted(&cluster, 0, BACK_WITHIN).await.unwrap_or_else(|message| panic!("{message}"));
    history.running(1).await;
    let took = killed.elapsed();
    report(&format!("agent killed (SIGKILL): a pod that was created then runs {} later", seconds(took)));
    assert!(took < BACK_WITHIN, "the pod waited {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn an_agent_without_memory_is_back_and_serves_what_came_meanwhile() {
    let cluster = Cluster::installed().await;
    let namespace = cluster.namespace().await;
    let history = History::of(&namespace);
    fresh_agent(&cluster).await;
    // A file in memory counts for the cgroup that writes it, and cannot be taken back from it: the limit is full, and
    // the kernel ends the largest program in there.
    // It counts for the whole pod: gone before the kubelet starts the next container, or that does not start.
    let fill = r#"
cgroup=$cgroup sh -c 'echo $$ > $cgroup/cgroup.procs; dd if=/dev/zero of=/dev/shm/fill bs=64k count=1024' || true
rm -f /dev/shm/fill
"#;
    let names: Vec<String> = (0..10).map(|number| format!("pod-{number}")).collect();
    let paths: Vec<String> = names.iter().map(|name| namespace.path(name)).collect();
    store::put(paths.iter().map(|path| (path, "value".to_owned())));
    let full = Instant::now();
    on_node(&format!("{AGENT_CGROUP}{fill}"));
    for (name, path) in names.iter().zip(&paths) {
        namespace.pod(name, How::Volume, name, Some(path)).await;
    }
    let agent = restarted(&cluster, 0, BACK_WITHIN).await.unwrap_or_else(|message| panic!("{message}"));
    let last = agent.status.and_then(|status| status.container_statuses?.first()?.last_state.clone()?.terminated);
    assert_eq!(last.and_then(|ended| ended.reason).as_deref(), Some("OOMKilled"), "why the agent ended");
    history.running(names.len()).await;
    let took = full.elapsed();
    report(&format!("agent out of memory (OOMKilled): 10 pods that were created then run {} later", seconds(took)));
    assert!(took < BACK_WITHIN, "the pods waited {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn three_kills_in_a_row_meet_the_backoff_of_the_kubelet() {
    let cluster = Cluster::installed().await;
    fresh_agent(&cluster).await;
    for kill in 0..3 {
        signal_agent("KILL");
        let killed = Instant::now();
        restarted(&cluster, kill, PATIENCE).await.unwrap_or_else(|message| panic!("{message}"));
        report(&format!("kill {} in a row: the agent is ready {} later", kill + 1, seconds(killed.elapsed())));
    }
    fresh_agent(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn a_stuck_agent_is_restarted_by_its_liveness_probe() {
    let cluster = Cluster::installed().await;
    let name = fresh_agent(&cluster).await.name_any();
    signal_agent("STOP");
    let stopped = Instant::now();
    // Three probes of 10 s each, and the time that the kubelet grants to end.
    restarted(&cluster, 0, 2 * PATIENCE).await.unwrap_or_else(|message| panic!("{message}"));
    report(&format!(
        "agent stuck (SIGSTOP): killed by its liveness probe and ready {} later",
        seconds(stopped.elapsed())
    ));
    let events = kubectl(&["get", "events", "-n", SYSTEM, "--field-selector", &format!("involvedObject.name={name}")]);
    assert!(events.contains("Liveness probe failed"), "no Event of a failed liveness probe");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn a_rolling_update_makes_no_pod_wait() {
    let cluster = Cluster::installed().await;
    let namespace = cluster.namespace().await;
    let history = History::of(&namespace);
    let before = fresh_agent(&cluster).await.name_any();
    let without = stream(&namespace, &history, "quiet").await;
    kubectl(&["rollout", "restart", "-n", SYSTEM, "daemonset/jasm-agent"]);
    let (mut during, mut rounds) = (Duration::ZERO, 0);
    loop {
        during = during.max(stream(&namespace, &history, &format!("update-{rounds}")).await);
        rounds += 1;
        if !cluster.agents().await.iter().any(|pod| pod.name_any() == before) {
            break;
        }
        assert!(rounds < 5, "the agent was not replaced while the pods came");
    }
    roll_out();
    let misses = history.misses(&namespace).await;
    report(&format!(
        "bind to container start of {STREAM} pods, one each 0.4 s: longest {}; during a rolling update {} ({} looked too early)",
        seconds(without),
        seconds(during),
        misses.len()
    ));
    // Without any agent for two seconds, five pods would.
    let in_update = misses.into_iter().filter(|name| name.starts_with("update")).collect();
    hardly_any(&in_update, STREAM * rounds);
}

/// How many pods a stream has.
const STREAM: usize = 20;

/// Creates a pod each 0.4 s; returns the longest time from bind to container start.
async fn stream(namespace: &OwnNamespace, history: &History, prefix: &str) -> Duration {
    let names: Vec<String> = (0..STREAM).map(|number| format!("{prefix}-{number}")).collect();
    let paths: Vec<String> = names.iter().map(|name| namespace.path(name)).collect();
    store::put(paths.iter().map(|path| (path, "value".to_owned())));
    for (name, path) in names.iter().zip(&paths) {
        namespace.pod(name, How::Env, name, Some(path)).await;
        sleep(Duration::from_millis(400)).await;
    }
    let mut longest = Duration::ZERO;
    for name in &names {
        namespace.printed(name).await;
        longest = longest.max(namespace.start_of(name, &history.all()).await);
    }
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn logs_reach_the_journal_and_a_stuck_journal_holds_nothing_up() {
    let cluster = Cluster::installed().await;
    let namespace = cluster.namespace().await;
    let history = History::of(&namespace);
    install("tests/e2e/journald");
    served(&namespace, &history, "logged").await;
    let journal = "chroot /proc/1/root journalctl -t jasm -o json --no-pager";
    let wanted = [("NAMESPACE", namespace.name()), ("POD", "logged"), ("SECRET", "logged"), ("OUTCOME", "created")];
    try_within(PATIENCE, "the sync in the journal", async || {
        let records = on_node(journal);
        let records = records.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let fits = |record: &serde_json::Value| wanted.iter().all(|(field, value)| record[*field] == **value);
        let found = records.clone().find(fits).ok_or_else(|| format!("{} other records", records.count()))?;
        let node = cluster.node();
        if found["NODE"] == *node { Ok(()) } else { Err(format!("NODE={}, not {node}", found["NODE"])) }
    })
    .await
    .unwrap_or_else(|message| panic!("{message}"));

    // More lines than the socket holds: one that waited for journald would be stuck in the middle.
    let queue: usize = on_node("cat /proc/sys/net/unix/max_dgram_qlen").trim().parse().expect("a number");
    let agent = cluster.agent().await.name_any();
    let log = || kubectl(&["logs", "-n", SYSTEM, &agent]);
    let stuck = StoppedJournal::stop();
    // Each edit of an annotation is a refusal, and that a line.
    let refused = || log().matches(r#""reason":"PolicyDenied""#).count();
    namespace.pod("refused", How::Env, "refused", Some("/elsewhere")).await;
    let mut edits = 0;
    while refused() < queue + 10 {
        assert!(edits < 10 * (queue + 10), "{edits} edits made {} lines: the agent is stuck", refused());
        for _ in 0..20 {
            edits += 1;
            let edit = json!({"metadata": {"annotations": asks(&format!("/elsewhere/{edits}"), "refused")}});
            let patched = namespace.api::<Pod>().patch("refused", &PatchParams::default(), &Patch::Merge(edit)).await;
            patched.expect("an edited pod");
        }
    }
    let took = served(&namespace, &history, "unlogged").await;
    assert!(log().contains(r#""pod":"unlogged""#), "stderr lacks what the journal did not take");
    drop(stuck);
    report(&format!(
        "journald stopped, more than {} lines logged: a pod is served and runs {} after its creation",
        queue + 10,
        seconds(took)
    ));
    namespace.clear().await;

    on_node(&format!("mv {SOCKET} {SOCKET}.away"));
    let missing = RestoredSocket;
    served(&namespace, &history, "without").await;
    try_within(PATIENCE, "the agent to say that there is no journal", async || {
        let said = log().contains("log lines do not reach the journal");
        if said { Ok(()) } else { Err("nothing of it on stderr".to_owned()) }
    })
    .await
    .unwrap_or_else(|message| panic!("{message}"));
    drop(missing);
    kubectl(&["delete", "-k", "tests/e2e/journald"]);
    install(OVERLAY);
}

/// journald's socket, as the node's root sees it.
const SOCKET: &str = "/proc/1/root/run/systemd/journal/socket";

/// journald does not read while this lives.
struct StoppedJournal;

impl StoppedJournal {
    fn stop() -> Self {
        on_node("kill -STOP $(pidof systemd-journald)");
        Self
    }
}

impl Drop for StoppedJournal {
    fn drop(&mut self) {
        let _ = try_on_node("kill -CONT $(pidof systemd-journald)");
    }
}

/// The socket that was moved away is back when this is gone.
struct RestoredSocket;

impl Drop for RestoredSocket {
    fn drop(&mut self) {
        let _ = try_on_node(&format!("mv {SOCKET}.away {SOCKET}"));
    }
}
