//! The install itself: what admits it, what it costs, what it leaves.

use std::collections::BTreeSet;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt as _;
use kube::api::ListParams;

use super::cluster::{Cluster, OVERLAY, OwnNamespace, SYSTEM, install, kubectl, restarts, roll_out};
use super::history::History;
use super::node::{Memory, agent_memory, on_node};
use super::pods::How;
use super::{report, store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn pod_security_admits_the_default_install_without_a_warning() {
    let cluster = Cluster::prepared().await;
    kubectl(&["delete", "-k", OVERLAY, "--ignore-not-found"]);
    let warnings = install("daemonset");
    // kubectl itself says one thing, about the order of the objects.
    let unknown = warnings.lines().find(|line| line.contains("Warning") && !line.contains("Sorting order"));
    assert_eq!(unknown, None, "kubectl apply -k daemonset");
    let level =
        ["get", "namespace", SYSTEM, "-o", "jsonpath={.metadata.labels.pod-security\\.kubernetes\\.io/enforce}"];
    assert_eq!(kubectl(&level), "restricted");
    assert!(cluster.agents().await.iter().all(|agent| restarts(agent) == 0));
    let found = on_node(
        "pid=$(pidof jasm-agent); grep -E '^(Uid|Gid|NoNewPrivs|Seccomp|CapEff):' /proc/$pid/status; grep ' / / ' /proc/$pid/mountinfo",
    );
    let lines: BTreeSet<String> =
        found.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for wanted in [
        "Uid: 65532 65532 65532 65532",
        "Gid: 65532 65532 65532 65532",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "CapEff: 0000000000000000",
    ] {
        assert!(lines.contains(wanted), "the agent's process lacks {wanted:?}: {lines:?}");
    }
    // mountinfo: id, parent, device, root, mount point, options
    let root = lines.iter().find(|line| line.contains(" / / ")).expect("a mount of /");
    assert!(root.split(' ').nth(5).is_some_and(|options| options.split(',').any(|one| one == "ro")), "{root}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn the_agent_is_small() {
    let cluster = Cluster::installed().await;
    let room =
        kubectl(&["get", "nodes", "-l", "jasm.codnod.io/e2e", "-o", "jsonpath={.items[0].status.allocatable.pods}"]);
    let room: usize = room.parse().expect("a number of pods");
    assert!(room >= 130, "the node takes {room} pods, and this test needs 130: raise the kubelet's maxPods");
    let namespace = cluster.namespace().await;
    kubectl(&["rollout", "restart", "-n", SYSTEM, "daemonset/jasm-agent"]);
    roll_out();
    let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let say = |when: &str, memory: &Memory| {
        let [cgroup, peak, resident] = [memory.cgroup, memory.peak, memory.resident].map(mb);
        report(&format!("memory of the agent's cgroup {when}: {cgroup}, at most {peak}; of the process: {resident}"));
    };
    say("idle (goal 15 MB)", &agent_memory());
    burst(&namespace, 100, "value").await;
    say("after 100 syncs (goal 32 MB)", &agent_memory());
    namespace.clear().await;

    let large = "x".repeat(1024 * 1024 - 100);
    burst(&namespace, 100, &large).await;
    say("after 100 pods x 1 MiB at once, limit 64Mi", &agent_memory());
    assert_eq!(restarts(&cluster.agent().await), 0, "the agent was killed");
}

/// Pods at once, each with a secret of its own; returns when each Secret is there.
async fn burst(namespace: &OwnNamespace, count: usize, value: &str) {
    let round = value.len();
    let names: Vec<String> = (0..count).map(|number| format!("pod-{round}-{number}")).collect();
    let paths: Vec<String> = names.iter().map(|name| namespace.path(name)).collect();
    // What kubectl carries at a time stays small.
    for some in paths.chunks(20) {
        store::put(some.iter().map(|path| (path, value.to_owned())));
    }
    let history = History::of(namespace);
    join_all(names.iter().zip(&paths).map(|(name, path)| namespace.pod(name, How::Volume, name, Some(path)))).await;
    history.running(count).await;
    let secrets =
        namespace.api::<Secret>().list_metadata(&ListParams::default()).await.expect("a list of Secrets").items;
    let there: BTreeSet<String> = secrets.iter().map(|secret| secret.name_any()).collect();
    assert!(names.iter().all(|name| there.contains(name)), "a Secret is missing");
}

/// What an operator reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn describe_says_whose_a_secret_is() {
    let namespace = Cluster::installed().await.namespace().await;
    let path = namespace.path("config");
    store::put([(&path, "value".to_owned())]);
    namespace.pod("web", How::Env, "app-credentials", Some(&path)).await;
    namespace.printed("web").await;
    let secret = kubectl(&["describe", "secret", "-n", namespace.name(), "app-credentials"]);
    for wanted in [
        "app.kubernetes.io/managed-by=jasm",
        "jasm.codnod.io/managed-by=jasm",
        "jasm.codnod.io/source-version:",
        "jasm.codnod.io/synced-at:",
        "jasm.codnod.io/workload:",
        "jasm.codnod.io/node:",
        &format!("jasm.codnod.io/source-path: {path}"),
        "V:  5 bytes",
    ] {
        assert!(secret.contains(wanted), "describe secret lacks {wanted:?}:\n{secret}");
    }
    let pod = kubectl(&["describe", "pod", "-n", namespace.name(), "web"]);
    let event = format!("Secret app-credentials was created from aws-secretsmanager {path}");
    assert!(pod.contains(&event), "describe pod lacks {event:?}:\n{pod}");
    report(&format!("kubectl describe secret:\n{secret}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn delete_leaves_the_secrets_and_nothing_else() {
    let cluster = Cluster::installed().await;
    let namespace = cluster.namespace().await;
    let path = namespace.path("kept");
    store::put([(&path, "value".to_owned())]);
    namespace.pod("pod", How::Env, "kept", Some(&path)).await;
    namespace.printed("pod").await;
    let before = ours();
    assert!(before.iter().any(|name| name.contains("jasm")), "nothing of ours is found while it is installed");
    kubectl(&["delete", "-k", OVERLAY]);
    assert_eq!(ours(), BTreeSet::new(), "left behind");
    let kept = namespace.api::<Secret>().get_metadata("kept").await;
    assert!(kept.is_ok_and(|secret| secret.metadata.deletion_timestamp.is_none()), "the Secret is gone");
    namespace.api::<Pod>().get("pod").await.expect("the pod stays");
}

/// Every object of a type that the install has, by name; the tests' own objects have other names.
fn ours() -> BTreeSet<String> {
    let kinds = "namespaces,priorityclasses,clusterroles,clusterrolebindings,\
        validatingadmissionpolicies,validatingadmissionpolicybindings";
    let cluster_wide = kubectl(&["get", kinds, "-o", "name"]);
    let namespaced = "daemonsets,pods,configmaps,serviceaccounts,roles,rolebindings,controllerrevisions";
    let namespaced = kubectl(&["get", namespaced, "-A", "-l", "app.kubernetes.io/name=jasm", "-o", "name"]);
    let own = |line: &&str| line.contains("jasm") && !line.ends_with("/jasm-e2e");
    cluster_wide.lines().chain(namespaced.lines()).filter(own).map(str::to_owned).collect()
}
