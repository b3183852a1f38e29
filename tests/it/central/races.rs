//! Two agents at one master, and at one replica.

use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;

use super::{FRESH, Second, master_of, masters_of};
use crate::support::scene::{Scene, annotation};
use crate::support::store::{Fault, Store};
use crate::support::wait::eventually;

const ROUNDS: usize = 200;
/// Rounds that are under way together.
const AT_ONCE: usize = 20;

/// The emulator takes few writes at once.
async fn seed_all(scene: &Scene) -> Vec<String> {
    let mut paths = Vec::new();
    for _ in 0..AT_ONCE {
        paths.push(scene.store.seed("race", r#"{"A":"1","B":"2"}"#).await);
    }
    paths
}

#[tokio::test]
async fn two_agents_that_race_for_a_master_two_hundred_times_make_one_each_time() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let second = Second::start(&scene, |builder| builder.freshness(FRESH)).await;
    for batch in 0..ROUNDS / AT_ONCE {
        let paths = seed_all(&scene).await;
        let round = async |number: usize| {
            let path = &paths[number];
            // Both have to ask the store, whoever comes first.
            let gate = scene.store.hold(path);
            let (one, two) = (format!("one-{batch}-{number}"), format!("two-{batch}-{number}"));
            let first = scene.pod(&one).asks(path, &one).create();
            let other = second.pod(&scene.namespace, &two).asks(path, &two).create();
            tokio::join!(first, other);
            gate.held(2).await;
            gate.release();
            for name in [&one, &two] {
                scene.namespace.wait_for_data(name, [("A", "1"), ("B", "2")]).await;
            }
            assert_eq!((masters_of::<Secret>(path).await.len(), scene.store.calls(path)), (1, 2), "{path}");
        };
        join_all((0..AT_ONCE).map(round)).await;
    }
}

#[tokio::test]
async fn two_agents_that_race_for_one_replica_two_hundred_times_leave_it_whole() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let second = Second::start(&scene, |builder| builder.freshness(FRESH)).await;
    for batch in 0..ROUNDS / AT_ONCE {
        let paths = seed_all(&scene).await;
        let round = async |number: usize| {
            let path = &paths[number];
            let name = format!("app-{batch}-{number}");
            let ours = scene.pod(&format!("one-{name}")).asks(path, &name).create();
            let theirs = second.pod(&scene.namespace, &format!("two-{name}")).asks(path, &name).create();
            let (ours, theirs) = tokio::join!(ours, theirs);
            scene.namespace.wait_for_data(&name, [("A", "1"), ("B", "2")]).await;
            for pod in [&ours, &theirs] {
                scene.namespace.wait_for_event(pod, "SecretSyncSuccess").await;
            }
            let replica = scene.namespace.wait_for_data(&name, [("A", "1"), ("B", "2")]).await;
            assert_eq!(masters_of::<Secret>(path).await.len(), 1, "{path}");
            assert_eq!(replica.labels()["jasm.codnod.io/replicated-from"], super::MASTERS);
        };
        join_all((0..AT_ONCE).map(round)).await;
    }
}

/// Who comes late with an older value does not put it over a newer one.
#[tokio::test]
async fn a_slow_fetch_does_not_replace_what_came_after_it() {
    let scene = Scene::central(|builder| builder).await;
    // A way of its own to the same secrets, on which nothing is held.
    let way = Store::start(scene.surroundings).await;
    let second = Second::start(&scene, |builder| builder.env("AWS_ENDPOINT_URL", way.url())).await;
    let path = scene.store.seed("slow", r#"{"A":"old"}"#).await;
    let gate = scene.store.hold(&path);
    let pod = scene.pod("slow").asks(&path, "slow").create().await;
    gate.held(1).await;
    later(pod.metadata.creation_timestamp.expect("a time").0, 0).await;
    scene.store.put(&path, r#"{"A":"new"}"#).await;
    second.pod(&scene.namespace, "quick").asks(&path, "quick").create().await;
    scene.namespace.wait_for_data("quick", [("A", "new")]).await;
    gate.release();
    scene.namespace.wait_for_data("slow", [("A", "new")]).await;
    let master = master_of(&path).await;
    assert_eq!(master.data.as_ref().expect("data")["value"].0, br#"{"A":"new"}"#);
    assert_eq!(annotation(&master, "jasm.codnod.io/node"), second.builder.node().name(), "who was first");
}

/// Who asked earlier does not win by having seen a newer pod.
#[tokio::test]
async fn a_value_that_was_asked_for_earlier_does_not_replace_one_that_was_asked_for_later() {
    let scene = Scene::central(|builder| builder).await;
    let way = Store::start(scene.surroundings).await;
    let second = Second::start(&scene, |builder| builder.env("AWS_ENDPOINT_URL", way.url())).await;
    let path = scene.store.seed("early", r#"{"A":"old"}"#).await;
    way.fail(&path, Fault::Unavailable);
    let older = second.pod(&scene.namespace, "older").asks(&path, "older").create().await;
    let created = older.metadata.creation_timestamp.expect("a time").0;
    later(created, 1).await;
    let gate = scene.store.hold(&path);
    scene.pod("newer").asks(&path, "newer").create().await;
    gate.held(1).await;
    // Two seconds, by clocks that tell whole ones.
    later(jiff::Timestamp::now(), 2).await;
    scene.store.put(&path, r#"{"A":"new"}"#).await;
    way.heal(&path);
    scene.namespace.wait_for_data("older", [("A", "new")]).await;
    gate.release();
    scene.namespace.wait_for_data("newer", [("A", "new")]).await;
    let master = master_of(&path).await;
    assert_eq!(master.data.as_ref().expect("data")["value"].0, br#"{"A":"new"}"#);
}

async fn later(than: jiff::Timestamp, seconds: i64) {
    eventually("a later second", async || match jiff::Timestamp::now().as_second() {
        now if now > than.as_second() + seconds => Ok(()),
        now => Err(now.to_string()),
    })
    .await;
}
