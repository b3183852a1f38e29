//! What the admission policies allow in central mode: each shape in its place, for Secrets and ConfigMaps alike.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::MASTERS;
use crate::support::cluster::TestNamespace;
use crate::support::node::AgentNode;
use crate::support::surroundings::Surroundings;
use crate::support::unique;

/// An object of the agent's, with these labels beside the marker.
fn object(kind: &str, node: &AgentNode, name: &str, labels: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": kind,
        "metadata": {
            "name": name,
            "labels": {"jasm.codnod.io/managed-by": "jasm", "app.kubernetes.io/managed-by": "jasm"},
            "annotations": {"jasm.codnod.io/source": "v1:x:y", "jasm.codnod.io/node": node.name()},
        },
    });
    if kind == "Secret" {
        object["type"] = json!("Opaque");
    }
    for (label, value) in labels.as_object().expect("labels") {
        object["metadata"]["labels"][label] = value.clone();
    }
    object
}

/// What the API server says to a create of it with this client; `accepted` where it takes it, which it then has to give back.
async fn create(client: &kube::Client, namespace: &str, object: &Value) -> String {
    let said = match object["kind"].as_str() {
        Some("Secret") => create_as::<Secret>(client, namespace, object).await.err(),
        _ => create_as::<ConfigMap>(client, namespace, object).await.err(),
    };
    said.map_or_else(|| "accepted".to_owned(), |error| error.to_string())
}

async fn create_as<K>(client: &kube::Client, namespace: &str, object: &Value) -> kube::Result<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object.clone()).expect("an object");
    Api::<K>::namespaced(client.clone(), namespace).create(&PostParams::default(), &object).await
}

fn replica() -> Value {
    json!({"jasm.codnod.io/replicated-from": MASTERS, "jasm.codnod.io/source": "ssm"})
}

fn master() -> Value {
    json!({"jasm.codnod.io/source-kind": "ssm"})
}

fn record() -> Value {
    json!({"jasm.codnod.io/record": "replicas"})
}

#[tokio::test]
async fn each_shape_is_for_its_place() {
    let surroundings = Surroundings::central().await;
    let (node, elsewhere) = (AgentNode::create(surroundings).await, TestNamespace::create(surroundings).await);
    let client = node.client(surroundings).await;
    let (labels, place) = ("jasm:shape labels must be", "jasm:shape masters and records are in");
    let cases = [
        ("plain", json!({}), "accepted", place),
        ("replica", replica(), "accepted", place),
        ("master", master(), place, "accepted"),
        ("record", record(), place, "accepted"),
        ("half a replica", json!({"jasm.codnod.io/replicated-from": MASTERS}), labels, labels),
        ("the other half", json!({"jasm.codnod.io/source": "ssm"}), labels, labels),
        (
            "replica of nothing",
            json!({"jasm.codnod.io/replicated-from": "", "jasm.codnod.io/source": "ssm"}),
            labels,
            labels,
        ),
        ("master of another kind", json!({"jasm.codnod.io/source-kind": "other"}), labels, labels),
        ("another record", json!({"jasm.codnod.io/record": "other"}), labels, labels),
        (
            "master and record",
            json!({"jasm.codnod.io/source-kind": "ssm", "jasm.codnod.io/record": "replicas"}),
            labels,
            labels,
        ),
        ("a label of others", json!({"x": "y"}), labels, labels),
    ];
    for kind in ["Secret", "ConfigMap"] {
        for (case, extra, outside, among) in &cases {
            // A record is a ConfigMap.
            let (outside, among) = match (kind, *case) {
                ("Secret", "record") => (&labels, &labels),
                _ => (outside, among),
            };
            for (namespace, want) in [(elsewhere.name(), outside), (MASTERS, among)] {
                let said = create(&client, namespace, &object(kind, &node, &unique("shape"), extra.clone())).await;
                assert!(said.contains(want), "{kind}, {case}, in {namespace}: {said}");
                if said != "accepted" {
                    assert!(said.contains("'jasm-agent-shape'"), "{kind}, {case}, in {namespace}: {said}");
                }
            }
        }
    }
}

#[tokio::test]
async fn config_maps_are_held_to_every_policy() {
    let surroundings = Surroundings::central().await;
    let (node, namespace) = (AgentNode::create(surroundings).await, TestNamespace::create(surroundings).await);
    let client = node.client(surroundings).await;
    let changed = |place: &str, value: Value| {
        let mut map = object("ConfigMap", &node, &unique("map"), replica());
        *map.pointer_mut(place).expect("a place") = value;
        map
    };
    let probe = {
        let mut map = object("ConfigMap", &node, &unique("map"), json!({}));
        map["metadata"]["annotations"]["jasm.codnod.io/probe"] = json!("true");
        map
    };
    let cases = [
        ("kube-system", object("ConfigMap", &node, "map", replica()), "jasm-agent-namespaces"),
        ("jasm-system", object("ConfigMap", &node, "map", replica()), "jasm-agent-namespaces"),
        (namespace.name(), changed("/metadata/annotations/jasm.codnod.io~1node", json!("other")), "jasm-agent-node"),
        (namespace.name(), changed("/metadata/annotations", json!({"x": "y"})), "jasm-agent-shape"),
        (namespace.name(), probe, "jasm-agent-ownership"),
    ];
    for (namespace, map, policy) in cases {
        let said = create(&client, namespace, &map).await;
        assert!(said.contains(&format!("'{policy}'")), "{policy}: {said}");
    }
    let theirs: ConfigMap = namespace.add(json!({"metadata": {"name": "theirs"}, "data": {"a": "b"}})).await;
    let mut ours: ConfigMap =
        serde_json::from_value(object("ConfigMap", &node, "theirs", replica())).expect("a ConfigMap");
    ours.metadata.resource_version = theirs.resource_version();
    let maps: Api<ConfigMap> = Api::namespaced(client, namespace.name());
    let error = maps.replace("theirs", &PostParams::default(), &ours).await.expect_err("refused").to_string();
    assert!(error.contains("'jasm-agent-ownership'") && error.contains("jasm:not-ours"), "{error}");
}

#[tokio::test]
async fn a_record_is_its_nodes_and_masters_stay_what_they_are() {
    let surroundings = Surroundings::central().await;
    let (node, other) = (AgentNode::create(surroundings).await, AgentNode::create(surroundings).await);
    let name = unique("record");
    let maps: Api<ConfigMap> = Api::namespaced(node.client(surroundings).await, MASTERS);
    let made: ConfigMap = serde_json::from_value(object("ConfigMap", &node, &name, record())).expect("a ConfigMap");
    let made = maps.create(&PostParams::default(), &made).await.expect("a record");
    maps.replace(&name, &PostParams::default(), &made).await.expect("its own node");
    let from_there: Api<ConfigMap> = Api::namespaced(other.client(surroundings).await, MASTERS);
    for (case, node, labels, policy) in [
        ("another node", &other, record(), "jasm:node the record is of another node"),
        ("a master of it", &node, master(), "jasm:shape the labels of a master or record stay"),
    ] {
        let api = if case == "another node" { &from_there } else { &maps };
        let theirs: ConfigMap = serde_json::from_value(object("ConfigMap", node, &name, labels)).expect("a ConfigMap");
        let error = api.replace(&name, &PostParams::default(), &theirs).await.expect_err(case).to_string();
        assert!(error.contains(policy), "case: {case}: {error}");
    }
    let patched = maps.delete(&name, &DeleteParams::default()).await.expect_err("no right").to_string();
    assert!(patched.contains("cannot delete resource"), "{patched}");
}

#[tokio::test]
async fn nobody_else_marks_a_replica_a_master_or_a_record() {
    let surroundings = Surroundings::central().await;
    let namespace = TestNamespace::create(surroundings).await;
    let node = AgentNode::create(surroundings).await;
    // As somebody who may do everything in his namespace but release.
    namespace.service_account("tenant").await;
    let binding = json!({
        "metadata": {"name": "tenant"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "ServiceAccount", "name": "tenant", "namespace": namespace.name()}],
    });
    let _: k8s_openapi::api::rbac::v1::RoleBinding = namespace.add(binding).await;
    let tenant = impersonating(surroundings, &format!("system:serviceaccount:{}:tenant", namespace.name())).await;
    for kind in ["Secret", "ConfigMap"] {
        for label in [
            "jasm.codnod.io/managed-by",
            "jasm.codnod.io/replicated-from",
            "jasm.codnod.io/source",
            "jasm.codnod.io/source-kind",
            "jasm.codnod.io/record",
        ] {
            let mut theirs = object(kind, &node, &unique("marked"), json!({}));
            theirs["metadata"]["annotations"] = json!({});
            theirs["metadata"]["labels"] = json!({label: "jasm"});
            let said = create(&tenant, namespace.name(), &theirs).await;
            assert!(said.contains("'jasm-agent-marker'"), "{kind} {label}: {said}");
        }
        for annotation in ["last-replicated", "source-namespace", "whole"] {
            let mut theirs = object(kind, &node, &unique("marked"), json!({}));
            theirs["metadata"]["labels"] = json!({});
            theirs["metadata"]["annotations"] = json!({format!("jasm.codnod.io/{annotation}"): "true"});
            let said = create(&tenant, namespace.name(), &theirs).await;
            assert!(said.contains("'jasm-agent-marker'"), "{kind} {annotation}: {said}");
        }
        let mut plain = object(kind, &node, &unique("plain"), json!({}));
        plain["metadata"]["labels"] = json!({"app": "x"});
        plain["metadata"]["annotations"] = json!({});
        assert_eq!(create(&tenant, namespace.name(), &plain).await, "accepted", "{kind}: theirs as ever");
    }
    let secrets: Api<Secret> = Api::namespaced(tenant, MASTERS);
    let read = secrets.list(&Default::default()).await.expect_err("no right").to_string();
    assert!(read.contains("cannot list resource \"secrets\""), "{read}");
}

/// An agent's token reads masters, and no Secret elsewhere.
#[tokio::test]
async fn masters_are_all_that_an_agents_token_reads() {
    let surroundings = Surroundings::central().await;
    let (node, namespace) = (AgentNode::create(surroundings).await, TestNamespace::create(surroundings).await);
    namespace.add_secret("theirs", &[("a", "b")]).await;
    let client = node.client(surroundings).await;
    let read = |namespace: &str| {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        async move { secrets.list(&Default::default()).await.map(|_| ()) }
    };
    read(MASTERS).await.expect("masters");
    for elsewhere in [namespace.name(), "jasm-system", "kube-system"] {
        let error = read(elsewhere).await.expect_err(elsewhere).to_string();
        assert!(error.contains("cannot list resource \"secrets\""), "{elsewhere}: {error}");
    }
    let maps: Api<ConfigMap> = Api::namespaced(client, namespace.name());
    let error = maps.get("kube-root-ca.crt").await.expect_err("no right").to_string();
    assert!(error.contains("cannot get resource \"configmaps\""), "{error}");
}

async fn impersonating(surroundings: &Surroundings, user: &str) -> kube::Client {
    crate::support::control_plane::client_as(surroundings.kubeconfig(), user)
        .await
        .unwrap_or_else(|error| panic!("no client as {user}: {error}"))
}
