//! From the store to the master, and from there to whoever asked.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use serde_json::json;

use super::{FRESH, MASTERS, Second, calls, master_of, masters, masters_of, seed};
use crate::support::cluster::TestNamespace;
use crate::support::scene::{self, Scene, annotation, later_than};

fn labels(secret: &Secret) -> serde_json::Value {
    json!(secret.labels())
}

#[tokio::test]
async fn a_source_is_fetched_once_for_three_namespaces_on_two_nodes() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let second = Second::start(&scene, |builder| builder.freshness(FRESH)).await;
    let (near, far) =
        (TestNamespace::create(scene.surroundings).await, TestNamespace::create(scene.surroundings).await);
    let path = scene.store.seed("shared", r#"{"A":"1","B":"2"}"#).await;
    scene.pod("web").asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "1"), ("B", "2")]).await;
    near.pod("web").on(scene.builder.node()).asks(&path, "other").create().await;
    near.wait_for_data("other", [("A", "1"), ("B", "2")]).await;
    let keys = json!({"provider": "aws-secretsmanager", "path": path, "secretName": "app", "keys": {"X": "B"}});
    second.pod(&far, "web").request(&keys.to_string()).create().await;
    far.wait_for_data("app", [("X", "2")]).await;

    assert_eq!(scene.store.calls(&path), 1, "one fetch");
    let master = master_of(&path).await;
    let node = scene.builder.node();
    let made = scene::calls([("get secrets", 2), ("create secrets", 1)]);
    assert_eq!(calls(&scene, node, MASTERS).await, made, "a look at the master for each, and one write");
    let replica = scene::calls([("update secrets (dry run)", 1), ("create secrets", 1)]);
    assert_eq!(calls(&scene, node, scene.namespace.name()).await, replica);
    assert_eq!(calls(&scene, node, near.name()).await, replica);
    assert_eq!(calls(&scene, second.builder.node(), MASTERS).await, scene::calls([("get secrets", 1)]));
    assert_eq!(calls(&scene, second.builder.node(), far.name()).await, replica);
    assert_eq!(master.annotations()["jasm.codnod.io/node"], node.name());
}

#[tokio::test]
async fn masters_and_replicas_say_what_they_are() {
    let scene = Scene::central(|builder| builder).await;
    let path = seed(&scene, "told", r#"{"A":"1"}"#).await;
    scene.pod("web").asks(&path, "app").create().await;
    let replica = scene.namespace.wait_for_secret("app").await;
    let master = master_of(&path).await;
    assert_eq!(master.name_any(), format!("sm-{path}"));
    assert_eq!(
        labels(&master),
        json!({
            "jasm.codnod.io/managed-by": "jasm", "app.kubernetes.io/managed-by": "jasm",
            "jasm.codnod.io/source-kind": "secretsmanager",
        })
    );
    assert_eq!(
        labels(&replica),
        json!({
            "jasm.codnod.io/managed-by": "jasm", "app.kubernetes.io/managed-by": "jasm",
            "jasm.codnod.io/replicated-from": MASTERS, "jasm.codnod.io/source": "secretsmanager",
        })
    );
    let source = format!("v1:aws-secretsmanager:{path}");
    for secret in [&master, &replica] {
        assert_eq!(annotation(secret, "jasm.codnod.io/source"), source);
        assert_eq!(annotation(secret, "jasm.codnod.io/source-path"), path);
        assert_eq!(annotation(secret, "jasm.codnod.io/node"), scene.builder.node().name());
        assert!(!annotation(secret, "jasm.codnod.io/synced-at").is_empty());
    }
    let version = |secret| annotation(secret, "jasm.codnod.io/source-version").to_owned();
    assert!(!version(&master).is_empty());
    assert_eq!(version(&master), version(&replica));
    assert_eq!(annotation(&replica, "jasm.codnod.io/source-namespace"), MASTERS);
    assert_eq!(
        annotation(&replica, "jasm.codnod.io/last-replicated"),
        annotation(&replica, "jasm.codnod.io/synced-at")
    );
    // The source as it is: what becomes of it is each replica's own.
    let value = &master.data.as_ref().expect("data")["value"].0;
    assert_eq!(value, br#"{"A":"1"}"#);
}

#[tokio::test]
async fn an_update_arrives_everywhere_with_one_new_pod() {
    let scene = Scene::central(|builder| builder).await;
    let second = Second::start(&scene, |builder| builder).await;
    let far = TestNamespace::create(scene.surroundings).await;
    let path = scene.store.seed("updated", r#"{"A":"old"}"#).await;
    scene.pod("web").asks(&path, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "old")]).await;
    let pod = second.pod(&far, "web").asks(&path, "copy").create().await;
    far.wait_for_data("copy", [("A", "old")]).await;

    later_than(&first).await;
    later_than(&far.wait_for_secret("copy").await).await;
    scene.store.put(&path, r#"{"A":"new"}"#).await;
    let before = scene.store.calls(&path);
    let elsewhere = TestNamespace::create(scene.surroundings).await;
    elsewhere.pod("newcomer").on(scene.builder.node()).asks(&path, "app").create().await;
    elsewhere.wait_for_data("app", [("A", "new")]).await;
    scene.namespace.wait_for_data("app", [("A", "new")]).await;
    far.wait_for_data("copy", [("A", "new")]).await;
    assert_eq!(scene.store.calls(&path), before + 1, "by one fetch");
    let events = far.wait_for_events(&pod, 2).await;
    let note = events.last().and_then(|event| event.note.clone()).unwrap_or_default();
    assert!(note.starts_with("Secret copy was updated from"), "{note}");
}

#[tokio::test]
async fn a_value_that_is_older_than_its_pod_is_fetched_anew_and_the_master_replaced() {
    let scene = Scene::central(|builder| builder).await;
    let path = scene.store.seed("stale", r#"{"A":"1"}"#).await;
    scene.pod("one").asks(&path, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let uid = master_of(&path).await.uid();
    later_than(&first).await;
    scene.store.put(&path, r#"{"A":"2","B":"3"}"#).await;
    scene.pod("two").asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "2"), ("B", "3")]).await;
    assert_eq!((scene.store.calls(&path), master_of(&path).await.uid()), (2, uid), "the same object");
    let made = scene::calls([("get secrets", 2), ("create secrets", 1), ("update secrets", 1)]);
    assert_eq!(calls(&scene, scene.builder.node(), MASTERS).await, made);
}

#[tokio::test]
async fn fifty_pods_at_once_are_one_fetch_and_one_look_at_the_master() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let path = scene.store.seed("burst", r#"{"A":"1"}"#).await;
    let gate = scene.store.hold(&path);
    let names: Vec<String> = (0..50).map(|number| format!("web-{number}")).collect();
    futures::future::join_all(names.iter().map(|name| scene.pod(name).asks(&path, name).create())).await;
    gate.held(1).await;
    scene.wait_for_calls([("update secrets (dry run)", 50)]).await;
    gate.release();
    for name in &names {
        scene.namespace.wait_for_data(name, [("A", "1")]).await;
    }
    assert_eq!(scene.store.calls(&path), 1);
    let made = scene::calls([("get secrets", 1), ("create secrets", 1)]);
    assert_eq!(calls(&scene, scene.builder.node(), MASTERS).await, made);
}

#[tokio::test]
async fn a_restart_costs_a_probe_for_each_replica_and_nothing_else() {
    let scene = Scene::central(|builder| builder).await;
    let path = scene.store.seed("again", r#"{"A":"1"}"#).await;
    scene.pod("web").asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let before = calls(&scene, scene.builder.node(), MASTERS).await;
    let mut again = scene.builder.spawn();
    again.ready().await;
    scene.wait_for_calls([("update secrets (dry run)", 2), ("create secrets", 1)]).await;
    assert_eq!(scene.store.calls(&path), 1);
    assert_eq!(calls(&scene, scene.builder.node(), MASTERS).await, before);
}

/// What an agent missed while it was not there, it makes up for.
#[tokio::test]
async fn a_replica_that_was_left_behind_while_its_agent_was_away_is_refreshed() {
    let scene = Scene::central(|builder| builder).await;
    let mut second = Second::start(&scene, |builder| builder).await;
    let far = TestNamespace::create(scene.surroundings).await;
    let path = scene.store.seed("missed", r#"{"A":"old"}"#).await;
    second.pod(&far, "web").asks(&path, "copy").create().await;
    let old = far.wait_for_data("copy", [("A", "old")]).await;
    second.agent.terminate().await;

    later_than(&old).await;
    scene.store.put(&path, r#"{"A":"new"}"#).await;
    scene.pod("web").asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "new")]).await;
    let fetched = scene.store.calls(&path);
    second.agent = second.builder.spawn();
    second.agent.ready().await;
    far.wait_for_data("copy", [("A", "new")]).await;
    assert_eq!(scene.store.calls(&path), fetched, "from the master");
}

#[tokio::test]
async fn that_there_is_a_master_admits_nobody() {
    let scene = Scene::central(|builder| builder).await;
    let denied = TestNamespace::create(scene.surroundings).await;
    let path = scene.store.seed("denied", r#"{"A":"1"}"#).await;
    scene.pod("web").asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let before = scene.policy_digest().await;
    scene.builder.write_policy(&format!(
        "rules: [{{namespaces: [{}], serviceAccounts: ['*'], providers: ['*'], paths: ['**']}}]",
        scene.namespace.name()
    ));
    crate::support::wait::eventually("the new policy", async || {
        let now = scene.policy_digest().await;
        if now == before { Err(now) } else { Ok(()) }
    })
    .await;
    let pod = denied.pod("web").on(scene.builder.node()).asks(&path, "app").create().await;
    denied.wait_for_event(&pod, "PolicyDenied").await;
    assert!(denied.secret("app").await.is_none());
    assert_eq!(calls(&scene, scene.builder.node(), denied.name()).await, scene::calls([]));
}

#[tokio::test]
async fn a_replica_without_a_name_of_its_own_is_called_like_its_master() {
    let scene = Scene::central(|builder| builder).await;
    let path = format!("{}/Db", scene.store.seed("unnamed", "{}").await);
    scene.store.put(&path, r#"{"A":"1"}"#).await;
    let request = json!({"provider": "aws-secretsmanager", "path": path}).to_string();
    scene.pod("web").request(&request).create().await;
    let name = crate::support::wait::eventually("the master", async || {
        let found = masters_of::<Secret>(&path).await;
        found.first().map(|master| master.name_any()).ok_or_else(|| "none".to_owned())
    })
    .await;
    assert!(name.starts_with("sm-unnamed-") && name.len() > path.len() + 3, "{name}");
    scene.namespace.wait_for_data(&name, [("A", "1")]).await;
}

#[tokio::test]
async fn entries_of_ecs_for_one_secret_become_one_replica() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let path = scene.store.seed("ecs", r#"{"user":"app","password":"p","more":"x"}"#).await;
    let arn = scene.store.arn(&path).await;
    let entry = |key: &str, name: &str| json!({"provider": "aws-secretsmanager", "path": format!("{arn}:{key}::"), "secretName": "db", "dataKey": name});
    let entries = json!([entry("user", "DB_USER"), entry("password", "DB_PASSWORD")]);
    scene.pod("web").request(&entries.to_string()).create().await;
    scene.namespace.wait_for_data("db", [("DB_USER", "app"), ("DB_PASSWORD", "p")]).await;
    assert_eq!(scene.store.calls(&arn), 1);
    let master = master_of(&arn).await;
    // By what the store calls it: the random end of the ARN is in the hash alone.
    assert!(master.name_any().starts_with(&format!("sm-{path}-")), "{}", master.name_any());
    assert_eq!(master.name_any().len(), format!("sm-{path}-").len() + 8);

    // A second namespace finds it by the ARN, though its name cannot be told from that.
    let other = TestNamespace::create(scene.surroundings).await;
    other.pod("web").on(scene.builder.node()).request(&entries.to_string()).create().await;
    other.wait_for_data("db", [("DB_USER", "app"), ("DB_PASSWORD", "p")]).await;
    assert_eq!(scene.store.calls(&arn), 1);
    assert_eq!(masters::<Secret>().await.get(&master.name_any()).await.expect("it").uid(), master.uid());
}
