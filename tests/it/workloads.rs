//! Annotations on workloads, for pods that have none.

use serde_json::json;

use crate::support::scene::{Scene, annotation, calls};
use crate::support::surroundings::Surroundings;

const HASH: &str = "5d4f6c7b8";
const SYNC: &str = "jasm.codnod.io/secret-sync";

fn request(path: &str, name: &str) -> String {
    json!({"provider": "aws-secretsmanager", "path": path, "secretName": name}).to_string()
}

#[tokio::test]
async fn each_kind_of_workload_asks_for_its_pods() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let namespace = &scene.namespace;
    let (deployment, set) = namespace.deployment("deployment").await;
    let cron = namespace.workload("CronJob", "cron").await;
    let due = namespace.owned_workload("Job", "cron-29384720", Some(&cron)).await;
    let plain = [
        ("ReplicaSet", "set"),
        ("StatefulSet", "stateful"),
        ("DaemonSet", "daemon"),
        ("Job", "job"),
        ("Job", "job-29384720"),
    ];
    for (kind, name) in plain {
        let workload = namespace.workload(kind, name).await;
        namespace.annotate_workload(&workload, SYNC, &request(&path, name)).await;
        scene.pod(name).owned_by(&workload).create().await;
        namespace.wait_for_data(name, [("A", "1")]).await;
    }
    namespace.annotate_workload(&deployment, SYNC, &request(&path, "deployment")).await;
    scene.pod("deployment").owned_by(&set).label("pod-template-hash", HASH).create().await;
    namespace.annotate_workload(&cron, SYNC, &request(&path, "cron")).await;
    scene.pod("cron").owned_by(&due).create().await;
    for (name, workload) in [("deployment", "apps/Deployment/deployment"), ("cron", "batch/CronJob/cron")] {
        let secret = namespace.wait_for_data(name, [("A", "1")]).await;
        assert_eq!(annotation(&secret, "jasm.codnod.io/workload"), workload);
    }
    // A Job that is called like a CronJob's, beside a CronJob that is not its own.
    let stranger = namespace.workload("CronJob", "migrate").await;
    namespace.annotate_workload(&stranger, SYNC, &request(&path, "strangers")).await;
    let migrate = namespace.workload("Job", "migrate-29384720").await;
    namespace.annotate_workload(&migrate, SYNC, &request(&path, "migrate")).await;
    scene.pod("migrate").owned_by(&migrate).create().await;
    namespace.wait_for_data("migrate", [("A", "1")]).await;
    assert_eq!(namespace.secret("strangers").await, None);
    let calls = scene.calls().await;
    for (kind, count) in
        [("get deployments.apps", 1), ("get cronjobs.batch", 1), ("get replicasets.apps", 1), ("get jobs.batch", 4)]
    {
        assert_eq!(calls.get(kind), Some(&count), "{kind}: the top by its name, then one read: {calls:?}");
    }
}

#[tokio::test]
async fn the_pods_own_annotation_wins_and_costs_no_read() {
    let scene = Scene::set().await;
    let (theirs, own) =
        (scene.store.seed("theirs", r#"{"A":"1"}"#).await, scene.store.seed("own", r#"{"B":"2"}"#).await);
    let (deployment, set) = scene.namespace.deployment("web").await;
    scene.namespace.annotate_workload(&deployment, SYNC, &request(&theirs, "app")).await;
    let pod = scene.pod("web").owned_by(&set).label("pod-template-hash", HASH).asks(&own, "app").create().await;
    scene.namespace.wait_for_data("app", [("B", "2")]).await;
    // Told after the answer, which is after the audit log's line.
    scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    assert_eq!(scene.calls().await, calls([("update secrets (dry run)", 1), ("create secrets", 1)]));
}

#[tokio::test]
async fn an_own_annotation_that_comes_and_goes_gives_way_to_the_workloads_and_back() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let stateful = scene.namespace.workload("StatefulSet", "db").await;
    scene.namespace.annotate_workload(&stateful, SYNC, &request(&path, "inherited")).await;
    let pod = scene.pod("db-0").owned_by(&stateful).create().await;
    scene.namespace.wait_for_data("inherited", [("A", "1")]).await;
    scene.namespace.annotate(&pod, SYNC, &request(&path, "own")).await;
    scene.namespace.wait_for_data("own", [("A", "1")]).await;
    let secrets = scene.namespace.api::<k8s_openapi::api::core::v1::Secret>();
    secrets.delete("inherited", &Default::default()).await.expect("an administrator may delete it");
    scene.namespace.remove_annotation(&pod, SYNC).await;
    scene.namespace.wait_for_data("inherited", [("A", "1")]).await;
    let reads = scene.calls().await.get("get statefulsets.apps").copied();
    assert_eq!(reads, Some(1), "the workload was read once for this pod");
}

/// The old answer is for old pods: the time between edit and pod does not matter.
#[tokio::test]
async fn a_roll_out_right_after_an_edit_of_the_deployment_finds_the_edit() {
    let scene = Scene::set().await;
    let (deployment, set) = scene.namespace.deployment("web").await;
    for round in 0..5 {
        let path = scene.store.seed("config", &json!({"ROUND": round.to_string()}).to_string()).await;
        let name = format!("app-{round}");
        scene.namespace.annotate_workload(&deployment, SYNC, &request(&path, &name)).await;
        let pod = format!("web-{round}");
        scene.pod(&pod).owned_by(&set).label("pod-template-hash", HASH).create().await;
        scene.namespace.wait_for_data(&name, [("ROUND", round.to_string())]).await;
    }
}

#[tokio::test]
async fn pods_of_one_workload_share_one_read_and_status_changes_cost_nothing() {
    let scene = Scene::set().await;
    let (_, set) = scene.namespace.deployment("quiet").await;
    let names: Vec<String> = (0..20).map(|number| format!("quiet-{number}")).collect();
    let pods = futures::future::join_all(
        names.iter().map(|name| scene.pod(name).owned_by(&set).label("pod-template-hash", HASH).create()),
    )
    .await;
    scene.settle().await;
    let reads = scene.calls().await;
    let count = reads.get("get deployments.apps").copied().unwrap_or_default();
    assert!((1..20).contains(&count), "shared: {reads:?}");
    for pod in &pods {
        scene.namespace.set_phase(pod, "Running").await;
    }
    scene.settle().await;
    assert_eq!(scene.calls().await, reads);
}

#[tokio::test]
async fn a_restarted_agent_reads_each_workload_once() {
    let mut scene = Scene::set().await;
    let (_, set) = scene.namespace.deployment("quiet").await;
    for number in 0..10 {
        let name = format!("quiet-{number}");
        scene.pod(&name).owned_by(&set).label("pod-template-hash", HASH).create().await;
    }
    scene.settle().await;
    let reads =
        |calls: std::collections::BTreeMap<String, usize>| calls.get("get deployments.apps").copied().unwrap_or(0);
    let before = reads(scene.calls().await);
    scene.agent.terminate().await;
    let mut again = scene.builder.spawn();
    again.ready().await;
    scene.settle().await;
    assert_eq!(reads(scene.calls().await), before + 1);
}

#[tokio::test]
async fn a_mistake_on_a_workload_says_where_it_stands() {
    let scene = Scene::set().await;
    let stateful = scene.namespace.workload("StatefulSet", "db").await;
    scene.namespace.annotate_workload(&stateful, SYNC, "provider: [").await;
    let pod = scene.pod("db-0").owned_by(&stateful).create().await;
    let event = scene.namespace.wait_for_event(&pod, "AnnotationInvalid").await;
    assert!(
        event.note.as_deref().is_some_and(|note| note.contains("(of apps/StatefulSet/db) is not YAML")),
        "{event:?}"
    );
}

#[tokio::test]
async fn policy_decides_by_the_pod_also_where_the_workload_asks() {
    let rule = r#"rules: [{namespaces: ["*"], serviceAccounts: [web], providers: ["*"], paths: ["**"]}]"#;
    let scene = Scene::set_with(|builder| builder.policy(rule)).await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let stateful = scene.namespace.workload("StatefulSet", "db").await;
    scene.namespace.annotate_workload(&stateful, SYNC, &request(&path, "app")).await;
    let pod = scene.pod("db-0").owned_by(&stateful).create().await;
    scene.namespace.wait_for_event(&pod, "PolicyDenied").await;
    assert_eq!(scene.store.calls(&path), 0);
}

#[tokio::test]
async fn switched_off_no_workload_is_read_and_names_are_told_apart_by_names() {
    let scene = Scene::set_with(|builder| builder.env("JASM_WORKLOAD_ANNOTATIONS", "false")).await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let other = scene.store.seed("other", r#"{"B":"2"}"#).await;
    let (deployment, set) = scene.namespace.deployment("web").await;
    scene.namespace.annotate_workload(&deployment, SYNC, &request(&path, "inherited")).await;
    scene.pod("quiet").owned_by(&set).label("pod-template-hash", HASH).create().await;
    scene.pod("own").owned_by(&set).label("pod-template-hash", HASH).asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let stateful = scene.namespace.workload("StatefulSet", "db").await;
    let pod = scene.pod("db-0").owned_by(&stateful).asks(&other, "app").create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretConflict").await;
    assert!(event.note.as_deref().is_some_and(|note| note.contains("held by apps/Deployment/web")), "{event:?}");
    scene.settle().await;
    let calls = scene.calls().await;
    assert!(calls.keys().all(|kind| kind.contains("secrets")), "no read: {calls:?}");
    assert_eq!(scene.namespace.secret("inherited").await, None);
}

/// The component takes away exactly what the switch makes unnecessary.
#[tokio::test]
async fn the_component_pods_only_takes_the_rights_away_with_the_switch() {
    let surroundings = Surroundings::get().await;
    let rendered =
        surroundings.kubectl(&["kustomize", "tests/layers/pods-only"]).unwrap_or_else(|error| panic!("{error}"));
    let role = rendered.split("---\n").find(|object| object.contains("kind: ClusterRole\n")).expect("the role");
    assert!(role.contains("- secrets") && role.contains("- pods") && role.contains("- events"), "{role}");
    assert!(!role.contains("apps") && !role.contains("batch"), "{role}");
    let agent = rendered.split("---\n").find(|object| object.contains("kind: DaemonSet\n")).expect("the agent");
    assert!(agent.contains("name: JASM_WORKLOAD_ANNOTATIONS\n          value: \"false\""), "{agent}");
}
