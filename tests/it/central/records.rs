//! Who uses which source: one list, one metric, one question to the audit log.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::Value;

use super::{FRESH, Second, master_of, masters, seed, settled};
use crate::support::cluster::TestNamespace;
use crate::support::scene::{Scene, later_than};
use crate::support::wait::eventually;

/// What the nodes' records say of one source, sorted.
async fn recorded(source: &str) -> Vec<(String, Value)> {
    let only = ListParams::default().labels("jasm.codnod.io/record=replicas");
    let records = masters::<ConfigMap>().await.list(&only).await.expect("a list of records");
    let mut found = Vec::new();
    for record in records {
        let texts = record.data.iter().flatten().map(|(_, text)| serde_json::from_str(text).expect("JSON"));
        let replicas: Vec<Value> = texts.collect();
        let node = record.annotations()["jasm.codnod.io/node"].clone();
        found.extend(replicas.into_iter().filter(|one| one["source"] == source).map(|one| (node.clone(), one)));
    }
    found.sort_by_key(|(node, one)| (node.clone(), one["namespace"].to_string(), one["name"].to_string()));
    found
}

#[tokio::test]
async fn each_node_records_what_it_wrote_and_uses() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let second = Second::start(&scene, |builder| builder.freshness(FRESH)).await;
    let far = TestNamespace::create(scene.surroundings).await;
    let path = scene.store.seed("recorded", r#"{"A":"1"}"#).await;
    let pod = scene.pod("web").asks(&path, "app").create().await;
    scene.namespace.wait_for_secret("app").await;
    second.pod(&far, "web").asks(&path, "copy").create().await;
    far.wait_for_secret("copy").await;
    // On the second node, too, where nothing is written.
    second.pod(&scene.namespace, "shares").asks(&path, "app").create().await;

    let source = format!("v1:aws-secretsmanager:{path}");
    let (here, there) = (scene.builder.node().name(), second.builder.node().name());
    let name = |one: &Value| format!("{} {}/{}", one["kind"], one["namespace"], one["name"]).replace('"', "");
    let (app, copy) = (format!("Secret {}/app", scene.namespace.name()), format!("Secret {}/copy", far.name()));
    let mut wanted = vec![(here.to_owned(), app.clone()), (there.to_owned(), app), (there.to_owned(), copy)];
    wanted.sort();
    let found = eventually("three entries in the records", async || {
        let found = recorded(&source).await;
        let mut names: Vec<(String, String)> = found.iter().map(|(node, one)| (node.clone(), name(one))).collect();
        names.sort();
        if names == wanted { Ok(found) } else { Err(format!("{names:?}")) }
    })
    .await;
    for (node, one) in &found {
        let place = [&scene.namespace, &far].into_iter().find(|it| one["namespace"] == it.name()).expect("one of ours");
        let secret = place.wait_for_secret(one["name"].as_str().expect("a name")).await;
        assert_eq!(one["uid"].as_str(), secret.uid().as_deref(), "{node}");
        assert_eq!(one["resourceVersion"].as_str(), secret.resource_version().as_deref(), "{node}");
        assert_eq!(one["master"], master_of(&path).await.name_any());
        assert_eq!(one["inUse"], true);
    }

    scene.namespace.delete_pod(&pod).await;
    eventually("the entry to be out of use", async || {
        let found = recorded(&source).await;
        let ours = found.iter().find(|(node, _)| node == here).map(|(_, one)| one["inUse"].clone());
        if ours == Some(Value::Bool(false)) { Ok(()) } else { Err(format!("{ours:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_restarted_agent_keeps_its_nodes_record() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let path = scene.store.seed("kept", r#"{"A":"1"}"#).await;
    let pod = scene.pod("web").asks(&path, "app").create().await;
    scene.namespace.wait_for_secret("app").await;
    let source = format!("v1:aws-secretsmanager:{path}");
    let in_use = async |want: bool| {
        eventually(&format!("inUse: {want}"), async || {
            let found = recorded(&source).await;
            match found.as_slice() {
                [(_, one)] if one["inUse"] == want && one["uid"] != "" => Ok(one.clone()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    };
    let before = in_use(true).await;
    scene.namespace.delete_pod(&pod).await;
    in_use(false).await;
    let mut again = scene.builder.spawn();
    again.ready().await;
    scene.settle().await;
    let after = in_use(false).await;
    assert_eq!((&after["uid"], &after["at"]), (&before["uid"], &before["at"]));
}

#[tokio::test]
async fn one_metric_says_which_namespace_uses_which_master() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let path = seed(&scene, "metric", r#"{"A":"1"}"#).await;
    let one = scene.pod("one").asks(&path, "app").create().await;
    scene.pod("two").asks(&path, "app").create().await;
    let line =
        |count: u8| format!("jasm_replicas{{namespace=\"{}\",master=\"sm-{path}\"}} {count}", scene.namespace.name());
    scene.wait_for_metric(&line(2)).await;
    scene.namespace.delete_pod(&one).await;
    scene.wait_for_metric(&line(1)).await;
}

/// The commands of docs/central-mode.md, as they stand there.
#[tokio::test]
async fn the_documented_questions_are_answered() {
    let scene = Scene::central(|builder| builder.freshness(FRESH)).await;
    let path = seed(&scene, "asked", r#"{"A":"1"}"#).await;
    scene.pod("web").asks(&path, "app").create().await;
    scene.namespace.wait_for_secret("app").await;
    let node = scene.builder.node().name();
    let page = include_str!("../../../docs/central-mode.md");
    let commands: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    let list = commands.iter().find(|command| command.contains("record=replicas")).expect("the list of uses");
    let (used, master) = (format!("Secret.{}.app", scene.namespace.name()), format!("\"master\":\"sm-{path}\""));
    eventually("the list of uses", async || {
        let said = scene.surroundings.bash(list).unwrap_or_else(|error| panic!("{error}"));
        let is_ours = |line: &str| line.contains(&used) && line.contains(&master) && line.contains(node);
        if said.lines().any(is_ours) { Ok(()) } else { Err(said) }
    })
    .await;
    let audit = commands.iter().find(|command| command.contains("audit.log")).expect("the question to the audit log");
    settled(&scene).await;
    let log = scene.surroundings.audit_log().display().to_string();
    let said = scene.surroundings.bash(&audit.replace("audit.log", &log)).unwrap_or_else(|error| panic!("{error}"));
    for asked in ["get", "create"] {
        let want = format!("{node} {asked} {}", master_of(&path).await.name_any());
        assert!(said.lines().any(|line| line.ends_with(&want)), "{want} is not in\n{said}");
    }
}

/// Else a janitor would take the replica for one that somebody changed.
#[tokio::test]
async fn a_record_has_the_newest_state_of_what_several_pods_share() {
    let scene = Scene::central(|builder| builder).await;
    let path = scene.store.seed("shared", r#"{"A":"1"}"#).await;
    let mut last = None;
    for number in 0..4 {
        if let Some(before) = last.take() {
            later_than(&before).await;
        }
        let pod = scene.pod(&format!("web-{number}")).asks(&path, "app").create().await;
        scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
        last = Some(scene.namespace.wait_for_secret("app").await);
    }
    let version = scene.namespace.wait_for_secret("app").await.resource_version();
    eventually("the replica's state in the record", async || {
        let found = recorded(&format!("v1:aws-secretsmanager:{path}")).await;
        let known = found.first().and_then(|(_, one)| one["resourceVersion"].as_str().map(ToOwned::to_owned));
        if known == version { Ok(()) } else { Err(format!("{known:?}, not {version:?}")) }
    })
    .await;
}
