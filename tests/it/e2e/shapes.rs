//! The ways in which pods take Secrets and are made.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::json;

use super::cluster::{Cluster, OwnNamespace, kubectl};
use super::history::History;
use super::pods::{How, asks, spec};
use super::{report, store};

/// A namespace with one source, at the path and under the Secret name that are returned.
async fn one_source() -> (OwnNamespace, String, &'static str) {
    let namespace = Cluster::installed().await.namespace().await;
    let path = namespace.path("shape");
    store::put([(&path, "value".to_owned())]);
    (namespace, path, "shape")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn an_init_container_has_the_secret() {
    let (namespace, path, secret) = one_source().await;
    let mut spec = spec(How::Env, secret);
    let mut init = spec["containers"][0].clone();
    init["name"] = json!("init");
    init["command"] = json!(["sh", "-c", r#"[ "$V" = value ]"#]);
    spec["initContainers"] = json!([init]);
    namespace
        .create::<Pod>(json!({"metadata": {"name": "pod", "annotations": asks(&path, secret)}, "spec": spec}))
        .await;
    // The main container starts only after the first has ended well.
    assert!(namespace.printed("pod").await.lines.contains(&"env=value".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn two_containers_have_the_same_secret() {
    let (namespace, path, secret) = one_source().await;
    let mut spec = spec(How::Volume, secret);
    let mut second = spec["containers"][0].clone();
    second["name"] = json!("second");
    second["command"] = json!(["sh", "-c", r#"[ "$(cat /secret/V)" = value ] && exec sleep infinity"#]);
    spec["containers"].as_array_mut().expect("a list").push(second);
    namespace
        .create::<Pod>(json!({"metadata": {"name": "pod", "annotations": asks(&path, secret)}, "spec": spec}))
        .await;
    kubectl(&["wait", "-n", namespace.name(), "--for=condition=Ready", "--timeout=60s", "pod/pod"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn a_sub_path_of_the_volume_has_the_value() {
    let (namespace, path, secret) = one_source().await;
    let mut spec = spec(How::Volume, secret);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "secret", "mountPath": "/secret/V", "subPath": "V"}]);
    namespace
        .create::<Pod>(json!({"metadata": {"name": "pod", "annotations": asks(&path, secret)}, "spec": spec}))
        .await;
    assert!(namespace.printed("pod").await.lines.contains(&"volume=value".to_owned()));
}

/// With `optional: true` the kubelet does not wait: it is a race, which the agent usually wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn an_optional_secret_never_holds_a_pod_up() {
    const PODS: usize = 10;
    let (namespace, _, _) = one_source().await;
    let history = History::of(&namespace);
    let names: Vec<String> = (0..PODS).map(|number| format!("pod-{number}")).collect();
    let paths: Vec<String> = names.iter().map(|name| namespace.path(name)).collect();
    store::put(paths.iter().map(|path| (path, "value".to_owned())));
    for (name, path) in names.iter().zip(&paths) {
        let mut spec = spec(How::Env, name);
        spec["containers"][0]["envFrom"][0]["secretRef"]["optional"] = json!(true);
        namespace
            .create::<Pod>(json!({"metadata": {"name": name, "annotations": asks(path, name)}, "spec": spec}))
            .await;
    }
    // One whose Secret never comes.
    let mut alone = spec(How::Env, "never");
    alone["containers"][0]["envFrom"][0]["secretRef"]["optional"] = json!(true);
    let annotations = asks(&namespace.path("nothing-there"), "never");
    namespace.create::<Pod>(json!({"metadata": {"name": "never", "annotations": annotations}, "spec": alone})).await;
    history.running(PODS + 1).await;
    assert!(namespace.printed("never").await.lines.contains(&"env=".to_owned()));
    let mut with = 0;
    for name in &names {
        with += usize::from(namespace.printed(name).await.lines.contains(&"env=value".to_owned()));
    }
    report(&format!("optional: true: {with} of {PODS} pods at once started with the value, the others without"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn a_stateful_set_starts_one_pod_after_the_other() {
    let (namespace, path, secret) = one_source().await;
    namespace
        .create::<StatefulSet>(json!({
            "metadata": {"name": "set"},
            "spec": {
                "replicas": 2,
                "serviceName": "set",
                "selector": {"matchLabels": {"app": "set"}},
                "template": {
                    "metadata": {"labels": {"app": "set"}, "annotations": asks(&path, secret)},
                    "spec": spec(How::Both, secret),
                },
            },
        }))
        .await;
    kubectl(&["rollout", "status", "-n", namespace.name(), "statefulset/set", "--timeout=90s"]);
    for pod in ["set-0", "set-1"] {
        assert!(namespace.printed(pod).await.lines.contains(&"env=value".to_owned()), "{pod}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn a_cron_job_has_the_secret_in_each_of_its_jobs() {
    let (namespace, path, secret) = one_source().await;
    let mut spec = spec(How::Env, secret);
    spec["restartPolicy"] = json!("Never");
    spec["containers"][0]["command"] = json!(["sh", "-c", "echo env=$V; echo done"]);
    namespace
        .create::<CronJob>(json!({
            "metadata": {"name": "cron"},
            "spec": {
                "schedule": "0 0 1 1 *",
                "jobTemplate": {"spec": {"backoffLimit": 0, "template": {
                    "metadata": {"labels": {"app": "cron"}, "annotations": asks(&path, secret)}, "spec": spec,
                }}},
            },
        }))
        .await;
    for job in ["first", "second"] {
        kubectl(&["create", "job", "-n", namespace.name(), job, "--from=cronjob/cron"]);
        kubectl(&["wait", "-n", namespace.name(), "--for=condition=Complete", "--timeout=60s", &format!("job/{job}")]);
    }
    let pods = namespace.api::<Pod>().list(&ListParams::default().labels("app=cron")).await.expect("a list of pods");
    assert_eq!(pods.items.len(), 2, "one pod for each job");
    for pod in pods {
        assert!(namespace.printed(&pod.name_any()).await.lines.contains(&"env=value".to_owned()), "{}", pod.name_any());
    }
}
