//! With the programs of both releases: one after the other on a node, and at a time on two.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{Asker, CASES, HASH, fetches, secrets};
use crate::support::agent::{AgentBuilder, program};
use crate::support::audit::{requests, tally};
use crate::support::cluster::TestNamespace;
use crate::support::node::AgentNode;
use crate::support::scene::{ALLOW_ALL, Scene, calls, later_than};
use crate::support::wait::eventually;

const SYNC: &str = "jasm.codnod.io/secret-sync";
const PROBE: &str = "update secrets (dry run)";

/// The program of the previous release.
fn previous() -> PathBuf {
    PathBuf::from(std::env::var_os("JASM_PREVIOUS_AGENT").expect("JASM_PREVIOUS_AGENT names a program"))
}

/// What the agent on a node asked for in the test's namespace, Events aside.
async fn calls_of(scene: &Scene, node: &AgentNode) -> BTreeMap<String, usize> {
    let all = requests(scene.surroundings, node.name()).await;
    tally(all.iter().filter(|request| request.namespace == scene.namespace.name() && request.resource != "events"))
}

/// As [`Scene::settle`], for any node.
async fn settle(scene: &Scene, node: &AgentNode) {
    let path = scene.store.seed("settle", r#"{"settled":"yes"}"#).await;
    let elsewhere = TestNamespace::create(scene.surroundings).await;
    elsewhere.pod("settle").on(node).asks(&path, "settle").create().await;
    elsewhere.wait_for_secret("settle").await;
}

/// A request in all its fields.
fn request(path: &str, name: &str, fields: Value) -> String {
    let mut request = json!({"provider": "aws-secretsmanager", "path": path, "secretName": name});
    for (field, value) in fields.as_object().expect("fields") {
        request[field] = value.clone();
    }
    request.to_string()
}

#[tokio::test]
#[ignore = "needs the previous release's program: JASM_PREVIOUS_AGENT"]
async fn the_previous_release_writes_what_is_recorded() {
    let scene = Scene::set_with(|builder| builder.program(&previous())).await;
    for asker in Asker::all(&scene).await {
        asker.pod(&scene.namespace, scene.builder.node(), "web").create().await;
        let secret = scene.namespace.wait_for_secret(asker.case.name).await;
        let (record, file) = (asker.record(&secret, scene.builder.node()), asker.case.file());
        if !file.exists() {
            let text = serde_json::to_string_pretty(&record).expect("JSON");
            std::fs::write(&file, text + "\n").unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
        assert_eq!(record, asker.case.recorded(), "case: {}", asker.case.name);
    }
}

/// Upgrade and rollback, twice: the next agent finds what the other one wrote, and goes on with it.
#[tokio::test]
#[ignore = "needs the previous release's program: JASM_PREVIOUS_AGENT"]
async fn agents_of_both_releases_take_turns_on_a_node() {
    let mut scene = Scene::set_with(|builder| builder.program(&previous())).await;
    let askers = Asker::all(&scene).await;
    let turns = [previous(), program(), previous(), program()];
    for (turn, program) in turns.iter().enumerate() {
        if turn > 0 {
            let (left, made) = (secrets(&scene, &askers).await, scene.calls().await);
            scene.agent.terminate().await;
            scene.builder.set_program(program);
            scene.agent = scene.builder.spawn();
            scene.agent.ready().await;
            scene.settle().await;
            assert_eq!(secrets(&scene, &askers).await, left, "turn {turn}: not a byte of them changed");
            assert_eq!(fetches(&scene, &askers), [turn; CASES.len()], "turn {turn}: nothing is fetched for nothing");
            let mut since = scene.calls().await;
            let probes = since.remove(PROBE).unwrap_or_default() - made.get(PROBE).copied().unwrap_or_default();
            assert!((CASES.len()..=turn * CASES.len()).contains(&probes), "turn {turn}: {probes} probes");
            assert_eq!(since, without_probes(made), "turn {turn}: and nothing but probes");
            for secret in &left {
                later_than(secret).await;
            }
        }
        let value = json!({"TURN": turn.to_string()}).to_string();
        for asker in &askers {
            asker.store(&scene.store, &value).await;
            asker.pod(&scene.namespace, scene.builder.node(), &turn.to_string()).create().await;
            scene.namespace.wait_for_data(asker.case.name, [("TURN", turn.to_string())]).await;
        }
        assert_eq!(fetches(&scene, &askers), [turn + 1; CASES.len()], "turn {turn}: one for each value");
    }
    let want = calls([("create secrets", CASES.len()), ("update secrets", (turns.len() - 1) * CASES.len())]);
    assert_eq!(without_probes(scene.calls().await), want);
}

fn without_probes(mut calls: BTreeMap<String, usize>) -> BTreeMap<String, usize> {
    calls.remove(PROBE);
    calls
}

#[tokio::test]
#[ignore = "needs the previous release's program: JASM_PREVIOUS_AGENT"]
async fn agents_of_both_releases_share_a_secret_from_two_nodes() {
    let mut scene = Scene::set().await;
    let builder = AgentBuilder::new(scene.surroundings, &scene.store).await.policy(ALLOW_ALL).program(&previous());
    let mut other = builder.spawn();
    other.ready().await;
    let path = scene.store.seed("config", r#"{"ROUND":"0"}"#).await;

    let gate = scene.store.hold(&path);
    let here = scene.pod("here").asks(&path, "app").create().await;
    let there = scene.namespace.pod("there").on(builder.node()).asks(&path, "app").create().await;
    gate.held(2).await;
    for node in [scene.builder.node(), builder.node()] {
        eventually("a probe on each node", async || match calls_of(&scene, node).await {
            made if made == calls([(PROBE, 1)]) => Ok(()),
            made => Err(format!("{made:?} on {}", node.name())),
        })
        .await;
    }
    gate.release();
    for pod in [&here, &there] {
        scene.namespace.wait_for_event(pod, "SecretSyncSuccess").await;
    }
    assert_eq!(scene.store.calls(&path), 2, "one fetch on each node");
    let mut last = unmoved(&scene, &builder, None).await;

    for round in 1..=6 {
        scene.store.put(&path, &json!({"ROUND": round.to_string()}).to_string()).await;
        later_than(&last).await;
        let node = if round % 2 == 0 { scene.builder.node() } else { builder.node() };
        let pod = scene.namespace.pod(&format!("web-{round}")).on(node).asks(&path, "app").create().await;
        scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
        let secret = scene.namespace.wait_for_data("app", [("ROUND", round.to_string())]).await;
        assert_eq!(scene.store.calls(&path), 2 + round, "round {round}");
        assert_eq!(secret.uid(), last.uid(), "round {round}");
        last = unmoved(&scene, &builder, Some(&secret)).await;
    }
    // Each has seen a Secret of the other: three updates on either node, and one of two creates that came too late.
    for node in [scene.builder.node(), builder.node()] {
        let made = without_probes(calls_of(&scene, node).await);
        assert_eq!(made, calls([("create secrets", 1), ("update secrets", 3)]), "{}", node.name());
    }

    scene.agent.terminate().await;
    other.terminate().await;
    scene.agent = scene.builder.spawn();
    let mut other = builder.spawn();
    scene.agent.ready().await;
    other.ready().await;
    unmoved(&scene, &builder, Some(&last)).await;
    assert_eq!(scene.store.calls(&path), 8, "no fetch after a restart of both");
}

/// The Secret, once both agents have worked on all that they saw.
async fn unmoved(scene: &Scene, other: &AgentBuilder, before: Option<&Secret>) -> Secret {
    settle(scene, scene.builder.node()).await;
    settle(scene, other.node()).await;
    let secret = scene.namespace.wait_for_secret("app").await;
    if let Some(before) = before {
        assert_eq!(&secret, before, "it does not go back and forth");
    }
    secret
}

/// docs/upgrade.md: what is new in annotations meets an agent that does not know it.
#[tokio::test]
#[ignore = "needs the previous release's program: JASM_PREVIOUS_AGENT"]
async fn the_previous_release_refuses_what_it_does_not_know_and_leaves_what_is_there() {
    let scene = Scene::set().await;
    let mut builder = AgentBuilder::new(scene.surroundings, &scene.store).await.policy(ALLOW_ALL).program(&previous());
    let mut other = builder.spawn();
    other.ready().await;
    let namespace = &scene.namespace;
    let path = scene.store.seed("config", r#"{"username":"app","password":"made-up-1"}"#).await;
    let (deployment, set) = namespace.deployment("web").await;
    let pod =
        |name: &str, node: &AgentNode| namespace.pod(name).on(node).owned_by(&set).label("pod-template-hash", HASH);
    let news = [
        ("keys", json!({"keys": {"DB_PASSWORD": "password"}})),
        ("raw", json!({"format": "raw", "dataKey": "config.json"})),
        ("stage", json!({"version": "AWSCURRENT"})),
        ("login", json!({"type": "kubernetes.io/basic-auth"})),
    ];
    let mut left = BTreeMap::new();
    for (name, fields) in &news {
        pod(&format!("{name}-here"), scene.builder.node())
            .request(&request(&path, name, fields.clone()))
            .create()
            .await;
        left.insert(*name, namespace.wait_for_secret(name).await);
    }
    let mut refused = Vec::new();
    let list = format!("[{}]", request(&path, "list", json!({})));
    for (name, text) in
        news.iter().map(|(name, fields)| (*name, request(&path, name, fields.clone()))).chain([("list", list)])
    {
        let pod = pod(&format!("{name}-there"), builder.node()).request(&text).create().await;
        namespace.wait_for_event(&pod, "AnnotationInvalid").await;
        refused.push(pod);
    }
    // An annotation on the workload is not seen at all.
    namespace.annotate_workload(&deployment, SYNC, &request(&path, "inherited", json!({}))).await;
    let silent = pod("silent", builder.node()).create().await;
    settle(&scene, builder.node()).await;
    assert!(namespace.events(&silent).await.is_empty());
    assert_eq!(namespace.secret("inherited").await, None);
    for (name, secret) in &left {
        assert_eq!(&namespace.wait_for_secret(name).await, secret, "{name} is as it was");
    }

    // An upgrade serves them: they are newer than what is there, so that it is fetched again, and the same.
    other.terminate().await;
    builder.set_program(&program());
    let mut other = builder.spawn();
    other.ready().await;
    for pod in refused.iter().chain([&silent]) {
        namespace.wait_for_event(pod, "SecretSyncSuccess").await;
    }
    for (name, secret) in &mut left {
        let now = namespace.wait_for_secret(name).await;
        assert_eq!((now.uid(), &now.data), (secret.uid(), &secret.data), "{name}");
        *secret = now;
    }
    other.terminate().await;
    builder.set_program(&previous());
    let mut other = builder.spawn();
    other.ready().await;

    // The way back: the fields are taken out of the annotation, and a newer pod asks.
    for (name, secret) in &left {
        later_than(secret).await;
        let pod = pod(&format!("{name}-back"), builder.node()).request(&request(&path, name, json!({}))).create().await;
        if *name == "login" {
            let event = namespace.wait_for_event(&pod, "SecretConflict").await;
            assert!(event.note.as_deref().is_some_and(|note| note.contains("another type")), "{event:?}");
            assert_eq!(&namespace.wait_for_secret(name).await, secret, "a type is never changed");
        } else {
            namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
            let taken = namespace.wait_for_data(name, [("username", "app"), ("password", "made-up-1")]).await;
            assert_eq!(taken.uid(), secret.uid());
        }
    }
    // On the newer release's node the pods that ask with the fields are older now, and follow.
    let back: Vec<Secret> = futures::future::join_all(left.keys().map(|name| namespace.wait_for_secret(name))).await;
    settle(&scene, scene.builder.node()).await;
    let later: Vec<Secret> = futures::future::join_all(left.keys().map(|name| namespace.wait_for_secret(name))).await;
    assert_eq!(later, back);
}

/// Values that the previous release made no Secret of.
#[tokio::test]
#[ignore = "needs the previous release's program: JASM_PREVIOUS_AGENT"]
async fn a_value_that_the_previous_release_cannot_use_stays_in_its_secret() {
    let scene = Scene::set().await;
    let builder = AgentBuilder::new(scene.surroundings, &scene.store).await.policy(ALLOW_ALL).program(&previous());
    let mut other = builder.spawn();
    other.ready().await;
    let text = scene.store.seed("text", "made-up-1").await;
    scene.pod("here").asks(&text, "text").create().await;
    let secret = scene.namespace.wait_for_data("text", [("value", "made-up-1")]).await;
    later_than(&secret).await;
    let pod = scene.namespace.pod("there").on(builder.node()).asks(&text, "text").create().await;
    scene.namespace.wait_for_event(&pod, "SecretInvalid").await;
    assert_eq!(scene.namespace.wait_for_secret("text").await, secret);
}

/// CHANGELOG.md, "Changed": an annotation that both read gives other data.
#[tokio::test]
#[ignore = "needs the previous release's program: JASM_PREVIOUS_AGENT"]
async fn bytes_that_are_a_json_object_become_one_key_with_the_first_pod_on_a_new_agent() {
    let scene = Scene::set().await;
    let builder = AgentBuilder::new(scene.surroundings, &scene.store).await.policy(ALLOW_ALL).program(&previous());
    let mut other = builder.spawn();
    other.ready().await;
    let object = r#"{"A":"1"}"#;
    let path = scene.store.seed("bytes", "x").await;
    scene.store.put_binary(&path, object.as_bytes()).await;
    scene.namespace.pod("there").on(builder.node()).asks(&path, "app").create().await;
    let secret = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    later_than(&secret).await;
    scene.pod("here").asks(&path, "app").create().await;
    let secret = scene.namespace.wait_for_data("app", [("value", object)]).await;
    later_than(&secret).await;
    // What asks for the keys is a field that the previous release does not know.
    let json = request(&path, "app", json!({"format": "json"}));
    scene.pod("json").request(&json).create().await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let pod = scene.namespace.pod("json-there").on(builder.node()).request(&json).create().await;
    scene.namespace.wait_for_event(&pod, "AnnotationInvalid").await;
}
