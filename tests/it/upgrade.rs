//! From one release to the next and back: Secrets of the other release are taken as they are.
//!
//! `tests/golden/secrets/` holds Secrets as the previous release's agent wrote them, and `tests/golden/annotation.yaml` what
//! pods asked it with. Missing are the fields that the API server fills in; node, times, version and path are made up,
//! and take the place of a run's own.
//!
//! Tests with both programs need that release's program, as `git worktree add` and `cargo build` make it:
//! `JASM_PREVIOUS_AGENT=PROGRAM cargo test --test it -- --ignored upgrade`. A case without a file is recorded then.

mod both;

use std::path::PathBuf;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::support::cluster::{PodBuilder, TestNamespace, Workload};
use crate::support::control_plane::project;
use crate::support::node::AgentNode;
use crate::support::scene::{Scene, annotation, calls, later_than};
use crate::support::store::Store;
use crate::support::unique;

const HASH: &str = "5d4f6c7b8";
/// What stands in the place of a run's own node, times and version.
const NODE: &str = "node-1";
const TIME: &str = "2026-11-01T12:00:00Z";
const VERSION: &str = "11111111-2222-4333-8444-555555555555";
const TIMES: [&str; 3] = ["jasm.codnod.io/synced-at", "jasm.codnod.io/synced-through", "jasm.codnod.io/spec-since"];
/// What the API server adds to an object, and where it lies.
const NOT_RECORDED: [&str; 5] = ["namespace", "uid", "resourceVersion", "creationTimestamp", "managedFields"];

/// One way in which a pod asked an agent of the previous release.
#[derive(Debug)]
struct Case {
    /// Of the golden file, and of the Secret.
    name: &'static str,
    /// What stands in the path before the part that each test has of its own.
    prefix: &'static str,
    /// What is stored there.
    value: &'static str,
    /// Whose pods ask: a kind of workload, or nobody's.
    workload: Option<&'static str>,
}

const CASES: [Case; 4] = [
    Case {
        name: "bare-pod",
        prefix: "/",
        value: r#"{"DB_HOST":"db.internal","DB_PORT":5432,"RATIO":1.10,"NOTE":"caf\u00e9\n","NONE":null,"MORE":{"a":[1, 2]}}"#,
        workload: None,
    },
    Case {
        name: "arn",
        prefix: "arn:aws:secretsmanager:us-east-1:123456789012:secret:",
        value: r#"{"TOKEN":"made-up-1"}"#,
        workload: None,
    },
    Case { name: "deployment", prefix: "/", value: r#"{"PASSWORD":"made-up-2"}"#, workload: Some("Deployment") },
    Case { name: "cron-job", prefix: "", value: r#"{"KEY":"made-up-3","EMPTY":""}"#, workload: Some("CronJob") },
];

impl Case {
    fn file(&self) -> PathBuf {
        project().join("tests/golden/secrets").join(format!("{}.json", self.name))
    }

    /// In the golden file, the part of the path that each test has of its own.
    fn made_up(&self) -> String {
        format!("prod/codnod/{}", self.name)
    }

    /// The Secret as the previous release wrote it.
    fn recorded(&self) -> Value {
        let file = self.file();
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{} is no JSON: {error}", file.display()))
    }
}

/// Who asks in a test's namespace, from a place in the store that is the test's alone.
struct Asker {
    case: &'static Case,
    own: String,
    owner: Option<Workload>,
}

impl Asker {
    /// One for each case, with its workload and its value.
    async fn all(scene: &Scene) -> Vec<Self> {
        let mut askers = Vec::new();
        for case in &CASES {
            let owner = match case.workload {
                None => None,
                Some("Deployment") => Some(scene.namespace.deployment("web").await.1),
                Some(_) => {
                    let cron = scene.namespace.workload("CronJob", "nightly").await;
                    Some(scene.namespace.owned_workload("Job", "nightly-29384720", Some(&cron)).await)
                }
            };
            let asker = Self { case, own: format!("prod/{}", unique(case.name)), owner };
            asker.store(&scene.store, case.value).await;
            askers.push(asker);
        }
        askers
    }

    fn path(&self) -> String {
        format!("{}{}", self.case.prefix, self.own)
    }

    /// Sets the value. The store knows a secret by its name, whoever asks by its ARN.
    async fn store(&self, store: &Store, value: &str) {
        let name = self.case.prefix.rsplit(':').next().unwrap_or_default();
        store.put(&format!("{name}{}", self.own), value).await;
    }

    /// A pod that asks in the words of the previous release.
    fn pod<'a>(&self, namespace: &'a TestNamespace, node: &AgentNode, name: &str) -> PodBuilder<'a> {
        let text = include_str!("../golden/annotation.yaml");
        let text = text.replace("/prod/codnod/config", &self.path()).replace("app-credentials", self.case.name);
        let pod = namespace.pod(&format!("{}-{name}", self.case.name)).on(node).request(&text);
        match &self.owner {
            None => pod,
            Some(owner) if self.case.workload == Some("Deployment") => {
                pod.owned_by(owner).label("pod-template-hash", HASH)
            }
            Some(owner) => pod.owned_by(owner),
        }
    }

    /// A Secret of this run, as it stands in the golden files.
    fn record(&self, secret: &Secret, node: &AgentNode) -> Value {
        let mut record = serde_json::to_value(secret).expect("a Secret is JSON");
        let metadata = record["metadata"].as_object_mut().expect("a Secret has metadata");
        metadata.retain(|field, _| !NOT_RECORDED.contains(&field.as_str()));
        let annotations = metadata["annotations"].as_object_mut().expect("a Secret of ours has annotations");
        for (key, value) in annotations {
            let text = value.as_str().unwrap_or_default();
            let whole_seconds = text.len() == TIME.len() && text.parse::<Timestamp>().is_ok();
            let stable = match key.as_str() {
                time if TIMES.contains(&time) && whole_seconds => TIME.to_owned(),
                "jasm.codnod.io/node" if text == node.name() => NODE.to_owned(),
                "jasm.codnod.io/source-version" if text.len() == VERSION.len() => VERSION.to_owned(),
                _ => text.replace(&self.own, &self.case.made_up()),
            };
            *value = json!(stable);
        }
        record
    }

    /// Makes the recorded Secret, as an agent of the previous release left it that had seen this pod last.
    async fn plant(&self, namespace: &TestNamespace, pod: &Pod) -> Secret {
        let mut secret = self.case.recorded();
        let at = pod.metadata.creation_timestamp.as_ref().map(|time| time.0).expect("a pod has a time of creation");
        let annotations = secret["metadata"]["annotations"].as_object_mut().expect("a Secret of ours has annotations");
        for (key, value) in annotations {
            let text = value.as_str().unwrap_or_default();
            let fitting = match key.as_str() {
                time if TIMES.contains(&time) => at.to_string(),
                _ => text.replace(&self.case.made_up(), &self.own),
            };
            *value = json!(fitting);
        }
        namespace.add(secret).await
    }
}

/// The Secrets of all askers, whole.
async fn secrets(scene: &Scene, askers: &[Asker]) -> Vec<Secret> {
    let mut secrets = Vec::new();
    for asker in askers {
        secrets.push(scene.namespace.wait_for_secret(asker.case.name).await);
    }
    secrets
}

/// How often each asker's value was fetched.
fn fetches(scene: &Scene, askers: &[Asker]) -> Vec<usize> {
    askers.iter().map(|asker| scene.store.calls(&asker.path())).collect()
}

/// The one fetch, and the data.
#[tokio::test]
async fn the_annotation_of_the_previous_release_makes_the_same_secret() {
    let scene = Scene::set().await;
    for asker in Asker::all(&scene).await {
        asker.pod(&scene.namespace, scene.builder.node(), "web").create().await;
        let secret = scene.namespace.wait_for_secret(asker.case.name).await;
        assert_eq!(asker.record(&secret, scene.builder.node()), asker.case.recorded(), "case: {}", asker.case.name);
    }
}

/// The times in the golden files are replaced by the pod's: an agent writes the newest pod that it had seen.
#[tokio::test]
async fn secrets_of_the_previous_release_are_fresh_and_stay_as_they_are_until_the_next_pod() {
    let mut scene = Scene::set().await;
    let askers = Asker::all(&scene).await;
    scene.agent.terminate().await;
    let mut planted = Vec::new();
    for asker in &askers {
        let pod = asker.pod(&scene.namespace, scene.builder.node(), "old").create().await;
        planted.push(asker.plant(&scene.namespace, &pod).await);
    }

    scene.agent = scene.builder.spawn();
    scene.agent.ready().await;
    scene.settle().await;

    assert_eq!(secrets(&scene, &askers).await, planted, "not a byte of them changed");
    assert_eq!(fetches(&scene, &askers), [0; CASES.len()]);
    assert_eq!(scene.calls().await, calls([("update secrets (dry run)", CASES.len())]), "fresh = probe");

    for (asker, secret) in askers.iter().zip(&planted) {
        asker.store(&scene.store, r#"{"NEW":"made-up-4"}"#).await;
        later_than(secret).await;
        asker.pod(&scene.namespace, scene.builder.node(), "new").create().await;
        let updated = scene.namespace.wait_for_data(asker.case.name, [("NEW", "made-up-4")]).await;
        assert_eq!(updated.uid(), secret.uid(), "{} is the same object", asker.case.name);
        for unchanged in ["jasm.codnod.io/source", "jasm.codnod.io/workload"] {
            assert_eq!(annotation(&updated, unchanged), annotation(secret, unchanged), "case: {}", asker.case.name);
        }
    }
    assert_eq!(fetches(&scene, &askers), [1; CASES.len()]);
    let took = [("update secrets (dry run)", 2 * CASES.len()), ("update secrets", CASES.len())];
    assert_eq!(scene.calls().await, calls(took), "stale = probe + fetch + PUT");
}
