//! Annotated pod in, Secret out, with the calls that it takes.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::json;

use crate::support::cluster::TestNamespace;
use crate::support::scene::{Scene, annotation, calls, later_than};

#[tokio::test]
async fn an_annotated_pod_gets_all_keys_of_its_secret_and_an_event() {
    let scene = Scene::set().await;
    let path =
        scene.store.seed("config", r#"{"DB_HOST":"db.local","DB_USER":"app","DB_PASSWORD":"s3cret-\u00e9"}"#).await;

    let pod = scene.pod("web").asks(&path, "app-credentials").create().await;

    let want = [("DB_HOST", "db.local"), ("DB_USER", "app"), ("DB_PASSWORD", "s3cret-é")];
    let secret = scene.namespace.wait_for_data("app-credentials", want).await;
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
    let event = scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    assert_eq!(event.type_.as_deref(), Some("Normal"));
    assert_eq!(event.reporting_controller.as_deref(), Some("jasm.codnod.io/agent"));
    let note = format!("Secret app-credentials was created from aws-secretsmanager {path}");
    assert_eq!(event.note.as_deref(), Some(note.as_str()));
    let took = [("update secrets (dry run)", 1), ("create secrets", 1)];
    assert_eq!(scene.calls().await, calls(took), "new = probe + fetch + POST");
    assert_eq!(scene.store.calls(&path), 1);
}

#[tokio::test]
async fn the_secret_says_where_it_is_from_and_nothing_else() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.pod("web").asks(&path, "app").create().await;
    let secret = scene.namespace.wait_for_secret("app").await;

    let labels: Vec<_> = secret.labels().iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(labels, ["app.kubernetes.io/managed-by=jasm", "jasm.codnod.io/managed-by=jasm"]);
    let keys: Vec<_> = secret.annotations().keys().map(|key| key.trim_start_matches("jasm.codnod.io/")).collect();
    let want =
        ["node", "source", "source-path", "source-version", "spec-since", "synced-at", "synced-through", "workload"];
    assert_eq!(keys, want);
    assert_eq!(annotation(&secret, "jasm.codnod.io/source"), format!("v1:aws-secretsmanager:{path}"));
    assert_eq!(annotation(&secret, "jasm.codnod.io/node"), scene.builder.node().name());
    assert_eq!(annotation(&secret, "jasm.codnod.io/workload"), "pods-and-jobs");
    assert!(secret.metadata.finalizers.is_none() && secret.metadata.owner_references.is_none());
    assert!(secret.immutable.is_none());
}

#[tokio::test]
async fn each_namespace_gets_a_copy_of_its_own_and_no_other_namespace_does() {
    let scene = Scene::set().await;
    let path = scene.store.seed("shared", r#"{"A":"1"}"#).await;
    let other = TestNamespace::create(scene.surroundings).await;
    scene.pod("web").asks(&path, "app").create().await;
    other.pod("web").on(scene.builder.node()).asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    other.wait_for_data("app", [("A", "1")]).await;

    let everywhere: Api<Secret> = Api::all(scene.surroundings.admin().await);
    let all = everywhere.list(&ListParams::default()).await.expect("an administrator may list Secrets");
    let source = format!("v1:aws-secretsmanager:{path}");
    let ours = all.iter().filter(|secret| annotation(secret, "jasm.codnod.io/source") == source);
    let mut places: Vec<_> = ours.map(|secret| secret.namespace().unwrap_or_default()).collect();
    let mut want = [scene.namespace.name().to_owned(), other.name().to_owned()];
    places.sort();
    want.sort();
    assert_eq!(places, want);
}

#[tokio::test]
async fn pods_that_ask_for_nothing_or_cannot_use_it_cost_nothing() {
    let scene = Scene::set().await;
    let path = scene.store.seed("never", r#"{"A":"1"}"#).await;
    scene.pod("plain").create().await;
    scene.pod("other-annotation").annotation("jasm.codnod.io/else", "x").create().await;
    scene.pod("mirror").asks(&path, "app").annotation("kubernetes.io/config.mirror", "x").create().await;
    scene.pod("succeeded").asks(&path, "app").phase("Succeeded").create().await;
    scene.pod("failed").asks(&path, "app").phase("Failed").create().await;
    let terminating = scene.pod("terminating").create().await;
    scene.namespace.begin_delete_pod(&terminating).await;
    let request = json!({"provider": "aws-secretsmanager", "path": path, "secretName": "app"}).to_string();
    scene.namespace.annotate(&terminating, "jasm.codnod.io/secret-sync", &request).await;

    scene.settle().await;

    assert_eq!((scene.calls().await, scene.store.calls(&path)), (calls([]), 0));
    assert_eq!(scene.namespace.secret("app").await, None);
}

#[tokio::test]
async fn changes_of_a_pods_status_cost_nothing() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let denied = scene.pod("broken").request("nonsense").create().await;
    scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    scene.namespace.wait_for_event(&denied, "AnnotationInvalid").await;
    let before = scene.calls().await;

    for pod in [&pod, &denied] {
        scene.namespace.set_phase(pod, "Running").await;
        for restarts in 0..10 {
            let status = json!({"containerStatuses": [{
                "name": "app", "image": "x", "imageID": "", "ready": true, "restartCount": restarts,
            }]});
            scene.namespace.set_status(pod, status).await;
        }
    }
    scene.settle().await;

    assert_eq!((scene.calls().await, scene.store.calls(&path)), (before, 1));
    assert_eq!(scene.namespace.events(&pod).await.len(), 1, "one Event, not one for each status");
    assert_eq!(scene.namespace.events(&denied).await.len(), 1);
}

#[tokio::test]
async fn twenty_pods_at_once_that_share_a_secret_are_one_fetch() {
    let scene = Scene::set_with(|builder| builder.freshness("60s")).await;
    let path = scene.store.seed("shared", r#"{"A":"1"}"#).await;
    let names: Vec<String> = (0..20).map(|number| format!("web-{number}")).collect();
    let pods = futures::future::join_all(names.iter().map(|name| scene.pod(name).asks(&path, "app").create())).await;
    for pod in &pods {
        scene.namespace.wait_for_event(pod, "SecretSyncSuccess").await;
    }
    assert_eq!(scene.store.calls(&path), 1);
    let took = [("update secrets (dry run)", 20), ("create secrets", 1)];
    assert_eq!(scene.calls().await, calls(took), "one new, nineteen fresh");
}

#[tokio::test]
async fn twenty_secrets_at_once_from_one_source_share_a_fetch() {
    let scene = Scene::set_with(|builder| builder.freshness("60s")).await;
    let path = scene.store.seed("shared", r#"{"A":"1"}"#).await;
    let gate = scene.store.hold(&path);
    let names: Vec<String> = (0..20).map(|number| format!("web-{number}")).collect();
    futures::future::join_all(names.iter().map(|name| scene.pod(name).asks(&path, name).create())).await;
    gate.held(1).await;
    // All have probed, so that all wait for the one fetch.
    scene.wait_for_calls([("update secrets (dry run)", 20)]).await;
    gate.release();
    for name in &names {
        scene.namespace.wait_for_data(name, [("A", "1")]).await;
    }
    // The probe's answer may still have been on its way to the agent, and an answer of the store that is late is asked for again.
    let asked = scene.store.calls(&path);
    assert!(asked <= 3, "{asked} fetches for twenty Secrets");
}

#[tokio::test]
async fn an_edited_annotation_is_synced_and_a_removed_one_leaves_the_secret() {
    let scene = Scene::set().await;
    let first = scene.store.seed("first", r#"{"A":"1"}"#).await;
    let second = scene.store.seed("second", r#"{"B":"2"}"#).await;
    let pod = scene.pod("web").asks(&first, "one").create().await;
    scene.namespace.wait_for_data("one", [("A", "1")]).await;

    let request = json!({"provider": "aws-secretsmanager", "path": second, "secretName": "two"}).to_string();
    scene.namespace.annotate(&pod, "jasm.codnod.io/secret-sync", &request).await;
    scene.namespace.wait_for_data("two", [("B", "2")]).await;

    scene.namespace.remove_annotation(&pod, "jasm.codnod.io/secret-sync").await;
    scene.settle().await;
    scene.namespace.wait_for_data("one", [("A", "1")]).await;
    scene.namespace.wait_for_data("two", [("B", "2")]).await;
}

#[tokio::test]
async fn an_edit_of_the_path_alone_changes_the_secret() {
    let scene = Scene::set().await;
    let first = scene.store.seed("first", r#"{"A":"1"}"#).await;
    let second = scene.store.seed("second", r#"{"A":"2"}"#).await;
    let pod = scene.pod("web").asks(&first, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let created = scene.namespace.wait_for_secret("app").await;
    later_than(&created).await;

    let request = json!({"provider": "aws-secretsmanager", "path": second, "secretName": "app"}).to_string();
    scene.namespace.annotate(&pod, "jasm.codnod.io/secret-sync", &request).await;
    scene.namespace.wait_for_data("app", [("A", "2")]).await;

    // And a new agent, which knows nothing of the edit, leaves it.
    let edited = scene.namespace.wait_for_secret("app").await;
    let mut again = scene.builder.spawn();
    again.ready().await;
    scene.settle().await;
    assert_eq!(scene.namespace.wait_for_secret("app").await, edited);
}
