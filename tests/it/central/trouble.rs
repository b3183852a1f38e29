//! What goes wrong with masters and replicas, and what is left of it.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use serde_json::json;

use super::{FRESH, MASTERS, calls, master_of, masters, masters_of, seed};
use crate::support::api_proxy::{ApiProxy, Match, Refusal, Trouble};
use crate::support::cluster::TestNamespace;
use crate::support::scene::{Scene, later_than};
use crate::support::surroundings::Surroundings;
use crate::support::wait::eventually;

async fn behind_proxy() -> (ApiProxy, Scene) {
    let proxy = ApiProxy::start(Surroundings::central().await);
    let scene = Scene::central(|builder| builder.through(&proxy)).await;
    (proxy, scene)
}

#[tokio::test]
async fn a_master_that_is_deleted_by_hand_takes_nothing_with_it_and_comes_back_with_the_next_pod() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let path = scene.store.seed("deleted", r#"{"A":"1"}"#).await;
    scene.pod("one").asks(&path, "app").create().await;
    let replica = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let master = master_of(&path).await;
    masters::<Secret>().await.delete(&master.name_any(), &DeleteParams::default()).await.expect("deleted");
    scene.settle().await;
    assert_eq!(scene.namespace.secret("app").await.as_ref(), Some(&replica), "the replica stays as it is");
    let other = TestNamespace::create(scene.surroundings).await;
    other.pod("two").on(scene.builder.node()).asks(&path, "app").create().await;
    other.wait_for_data("app", [("A", "1")]).await;
    assert_ne!(master_of(&path).await.uid(), master.uid(), "a new one");
    assert_eq!(scene.store.calls(&path), 2);
}

#[tokio::test]
async fn a_replica_that_is_edited_by_hand_is_repaired_from_the_master_by_the_next_newer_pod() {
    let scene = Scene::central(|builder| builder).await;
    let path = scene.store.seed("edited", r#"{"A":"1"}"#).await;
    scene.pod("one").asks(&path, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    scene.namespace.edit_secret("app", json!({"stringData": {"A": "by hand", "B": "more"}})).await;
    later_than(&first).await;
    // Somebody else's pod makes the master new enough; this one's value comes from there.
    let other = TestNamespace::create(scene.surroundings).await;
    other.pod("web").on(scene.builder.node()).asks(&path, "app").create().await;
    other.wait_for_data("app", [("A", "1")]).await;
    scene.pod("two").asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
}

#[tokio::test]
async fn a_namespace_that_comes_back_under_its_name_gets_its_replica_anew() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let path = scene.store.seed("comes-back", r#"{"A":"1"}"#).await;
    let namespace = TestNamespace::create(scene.surroundings).await;
    namespace.pod("web").on(scene.builder.node()).asks(&path, "app").create().await;
    let before = namespace.wait_for_data("app", [("A", "1")]).await;
    let again = namespace.recreate(scene.surroundings).await;
    assert!(again.secret("app").await.is_none());
    again.pod("web").on(scene.builder.node()).asks(&path, "app").create().await;
    let after = again.wait_for_data("app", [("A", "1")]).await;
    assert_ne!(after.uid(), before.uid());
    assert_eq!(scene.store.calls(&path), 1, "from the master");
}

#[tokio::test]
async fn while_masters_cannot_be_read_pods_wait_nothing_is_lost_and_they_are_served_after() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("unreadable", r#"{"A":"1"}"#).await;
    scene.pod("before").asks(&path, "before").create().await;
    let before = scene.namespace.wait_for_data("before", [("A", "1")]).await;
    let of_masters = format!("/namespaces/{MASTERS}/");
    for (name, refusal) in [("no-right", Refusal::NoRight), ("unavailable", Refusal::Unavailable)] {
        let outage = proxy.fail(Match::path(&of_masters), Trouble::Refused(refusal));
        let fetched = scene.store.calls(&path);
        let pod = scene.pod(name).asks(&path, name).create().await;
        let event = scene.namespace.wait_for_event(&pod, "SecretWriteFailed").await;
        let note = event.note.clone().unwrap_or_default();
        if matches!(refusal, Refusal::NoRight) {
            assert!(note.contains("may not get secrets in namespace jasm-masters"), "{note}");
            assert!(note.contains("daemonset/components/central"), "{note}");
        }
        assert_eq!(scene.store.calls(&path), fetched, "the store is not asked in place of the master");
        assert_eq!(scene.namespace.secret("before").await.as_ref(), Some(&before));
        assert_eq!(scene.agent.get("/readyz").await.status, 200, "it stays ready");
        if matches!(refusal, Refusal::Unavailable) {
            // For as long as an outage may last: retries go on, and nothing is given up or lost.
            tokio::time::sleep(std::time::Duration::from_secs(60)).await;
            assert_eq!(scene.namespace.secret("before").await.as_ref(), Some(&before));
            assert_eq!(scene.store.calls(&path), fetched);
        }
        outage.heal();
        crate::support::wait::try_within(
            std::time::Duration::from_secs(60),
            &format!("the Secret {name}"),
            async || scene.namespace.secret(name).await.ok_or_else(|| scene.agent.tail()),
        )
        .await
        .unwrap_or_else(|message| panic!("{message}"));
    }
}

#[tokio::test]
async fn masters_elsewhere_are_told_and_nothing_is_written() {
    let scene = Scene::central(|builder| builder.env("JASM_MASTERS_NAMESPACE", "no-such-namespace")).await;
    let path = scene.store.seed("nowhere", r#"{"A":"1"}"#).await;
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretWriteFailed").await;
    let note = event.note.clone().unwrap_or_default();
    assert!(note.contains("in namespace no-such-namespace, where masters are"), "{note}");
    assert!(scene.namespace.secret("app").await.is_none());
    assert_eq!(scene.store.total_calls(), 0);
}

#[tokio::test]
async fn what_stands_in_a_masters_place_is_left_alone() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let path = seed(&scene, "taken", r#"{"A":"1"}"#).await;
    let theirs =
        json!({"metadata": {"name": format!("sm-{path}"), "namespace": MASTERS}, "stringData": {"value": "x"}});
    let theirs: Secret = serde_json::from_value(theirs).expect("a Secret");
    let theirs = masters::<Secret>().await.create(&Default::default(), &theirs).await.expect("created");
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretConflict").await;
    let note = event.note.clone().unwrap_or_default();
    assert!(note.starts_with(&format!("Secret {MASTERS}/sm-{path} exists and is not managed by JASM")), "{note}");
    let now = masters::<Secret>().await.get(&theirs.name_any()).await.expect("it");
    assert_eq!(now.resource_version(), theirs.resource_version());
    assert!(scene.namespace.secret("app").await.is_none());
    assert_eq!(scene.store.calls(&path), 0);
}

#[tokio::test]
async fn a_source_that_is_gone_leaves_master_and_replicas_as_they_are() {
    let scene = Scene::central(|builder| builder).await;
    let path = scene.store.seed("gone", r#"{"A":"1"}"#).await;
    scene.pod("one").asks(&path, "app").create().await;
    let replica = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let master = master_of(&path).await;
    later_than(&replica).await;
    scene.store.delete(&path).await;
    let pod = scene.pod("two").asks(&path, "app").create().await;
    scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await;
    assert_eq!(scene.namespace.secret("app").await.as_ref(), Some(&replica));
    assert_eq!(master_of(&path).await, master);
    let changed = calls(&scene, scene.builder.node(), MASTERS).await.get("update secrets").copied();
    assert_eq!(changed, None);
    eventually("one master", async || match masters_of::<Secret>(&path).await.len() {
        1 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
}

/// A pod in the masters' own namespace would get a copy beside them.
#[tokio::test]
async fn a_pod_among_the_masters_is_not_served() {
    let scene = Scene::central(|builder| builder).await;
    let path = scene.store.seed("among", r#"{"A":"1"}"#).await;
    let among = TestNamespace::shared(scene.surroundings, MASTERS).await;
    let name = crate::support::unique("among");
    let request = json!({"provider": "aws-secretsmanager", "path": path, "secretName": name}).to_string();
    let pod = among.pod(&name).on(scene.builder.node()).request(&request).restricted().create().await;
    let event = among.wait_for_event(&pod, "SecretWriteFailed").await;
    let note = event.note.clone().unwrap_or_default();
    assert!(note.contains("masters are in this namespace"), "{note}");
    assert!(among.secret(&name).await.is_none());
    assert_eq!(scene.store.calls(&path), 0);
    among.delete_pod(&pod).await;
}
