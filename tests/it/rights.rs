//! What a thief of the agent's token could do with it: overwrite what is marked, and read nothing.

mod granted;
mod hostile;

use http::{Method, Request};
use kube::client::Body;
use serde_json::{Value, json};

use crate::support::canary::{Canary, random_values};
use crate::support::cluster::TestNamespace;
use crate::support::node::{AGENT_ACCOUNT, AGENT_NAMESPACE, AgentNode, agents_secret};
use crate::support::scene::Scene;
use crate::support::wait::eventually;

/// Two Secrets with values to look for: one of the agent's, one of somebody else.
struct Treasure {
    scene: Scene,
    /// The thief's: a node without an agent, so that the audit log tells his requests from an agent's.
    node: AgentNode,
    thief: kube::Client,
    canary: Canary,
}

impl Treasure {
    async fn hide() -> Self {
        let scene = Scene::set().await;
        let values = random_values(4);
        let source = json!({"A": values[0], "B": values[1]}).to_string();
        let path = scene.store.seed("treasure", &source).await;
        scene.pod("web").asks(&path, "managed").create().await;
        scene.namespace.wait_for_secret("managed").await;
        scene.namespace.add_secret("foreign", &[("A", values[2].as_str()), ("B", values[3].as_str())]).await;
        let node = AgentNode::create(scene.surroundings).await;
        let thief = node.client(scene.surroundings).await;
        Self { scene, node, thief, canary: Canary::new(values) }
    }

    /// Sends a request with the agent's token; returns status and body.
    async fn send(&self, method: Method, query: &str, name: Option<&str>, kind: &str, body: &str) -> (u16, Vec<u8>) {
        let name = name.map(|name| format!("/{name}")).unwrap_or_default();
        let uri = format!("/api/v1/namespaces/{}/secrets{name}{query}", self.scene.namespace.name());
        let request = Request::builder().method(method).uri(uri).header("Content-Type", kind);
        let request = request.body(Body::from(body.as_bytes().to_vec())).expect("a request");
        let reply = self.thief.send(request).await.expect("the API server answers");
        let status = reply.status().as_u16();
        let body = http_body_util::BodyExt::collect(reply.into_body()).await.expect("a whole body").to_bytes();
        (status, body.to_vec())
    }
}

/// A Secret that every policy lets pass.
fn valid(node: &AgentNode, namespace: &TestNamespace, name: &str) -> Value {
    let mut secret = agents_secret(node.name(), name);
    secret["metadata"]["namespace"] = json!(namespace.name());
    secret
}

/// Bodies that are wrong in one way each.
fn hostile(valid: &Value) -> Vec<String> {
    let mut bodies =
        vec![String::new(), "{".to_owned(), "null".to_owned(), "[]".to_owned(), "\"x\"".to_owned(), "\u{0}".to_owned()];
    let changes: &[(&str, Value)] = &[
        ("/data", json!("x")),
        ("/data", json!({"A": 1})),
        ("/data", json!({"A": "not base64"})),
        ("/data", json!({"A/B": "eA=="})),
        ("/data", json!(["eA=="])),
        ("/stringData", json!({"A": 1})),
        ("/immutable", json!("x")),
        ("/immutable", json!(true)),
        ("/type", json!(7)),
        ("/type", json!("kubernetes.io/tls")),
        ("/type", json!("kubernetes.io/service-account-token")),
        ("/kind", json!("ConfigMap")),
        ("/apiVersion", json!("v2")),
        ("/metadata", json!("x")),
        ("/metadata/labels", json!("x")),
        ("/metadata/labels", json!({"a": {"b": "c"}})),
        ("/metadata/labels", json!({"argocd.argoproj.io/secret-type": "cluster"})),
        ("/metadata/annotations", json!([1])),
        ("/metadata/name", json!("other")),
        ("/metadata/namespace", json!("kube-system")),
        ("/metadata/generateName", json!("x-")),
        ("/metadata/uid", json!("00000000-0000-0000-0000-000000000000")),
        ("/metadata/resourceVersion", json!("1")),
        ("/metadata/resourceVersion", json!("x")),
        ("/metadata/creationTimestamp", json!("yesterday")),
        ("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")),
        ("/metadata/finalizers", json!(["x.y/z"])),
        ("/metadata/finalizers", json!("x")),
        ("/metadata/ownerReferences", json!([{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"}])),
        ("/metadata/managedFields", json!([{"manager": "x", "fieldsV1": "x"}])),
        ("/unknown", json!({"a": "b"})),
    ];
    bodies.extend(changes.iter().map(|(place, value)| {
        let mut body = valid.clone();
        let (parent, key) = place.rsplit_once('/').expect("a place has a slash");
        let parent =
            if parent.is_empty() { &mut body } else { body.pointer_mut(parent).expect("a part of the Secret") };
        parent[key] = value.clone();
        body.to_string()
    }));
    bodies
}

#[tokio::test]
async fn no_write_with_the_agents_token_gives_back_a_stored_value() {
    let treasure = Treasure::hide().await;
    let stored = treasure.scene.namespace.wait_for_secret("managed").await;
    let mut refused = 0;
    let mut sent = 0;
    for name in ["foreign", "managed"] {
        let valid = valid(&treasure.node, &treasure.scene.namespace, name);
        // What would be stored goes last: a valid write over a managed Secret is what the agent is for.
        for query in ["?dryRun=All", "?dryRun=All&fieldValidation=Strict&pretty=true", ""] {
            for body in hostile(&valid) {
                for (method, at) in [(Method::POST, None), (Method::PUT, Some(name))] {
                    let (status, reply) = treasure.send(method.clone(), query, at, "application/json", &body).await;
                    treasure
                        .canary
                        .assert_absent(&format!("the reply {status} to {method} {query} of {name}: {body}"), reply);
                    if status < 400 && query.is_empty() {
                        // The agent's own kind of write: put back what the next ones shall not give away.
                        treasure.scene.namespace.edit_secret("managed", json!({"data": stored.data})).await;
                    }
                    sent += 1;
                    refused += usize::from(status >= 400);
                }
            }
        }
    }
    assert!(sent >= 100 && refused >= 100, "{refused} of {sent} refused");
    for name in ["foreign", "managed"] {
        let data = treasure.scene.namespace.data(name).await;
        let found = treasure.canary.search(&data["A"]);
        assert!(!found.is_empty(), "{name} still holds its value, and the search would find it");
    }
}

#[tokio::test]
async fn no_other_content_type_gives_back_a_stored_value() {
    let treasure = Treasure::hide().await;
    let kinds = [
        "application/yaml",
        "application/vnd.kubernetes.protobuf",
        "application/cbor",
        "text/plain",
        "",
        "application/apply-patch+yaml",
        "application/json-patch+json",
    ];
    for name in ["foreign", "managed"] {
        let body = valid(&treasure.node, &treasure.scene.namespace, name).to_string();
        for kind in kinds {
            for text in [body.as_str(), "a: [", "k8s\u{0}\u{1}"] {
                let (status, reply) = treasure.send(Method::PUT, "?dryRun=All", Some(name), kind, text).await;
                treasure.canary.assert_absent(&format!("the reply {status} to {kind} of {name}"), reply);
            }
        }
    }
}

#[tokio::test]
async fn the_agents_token_reads_lists_patches_and_deletes_no_secret() {
    let treasure = Treasure::hide().await;
    for name in ["foreign", "managed"] {
        for (method, at, kind) in [
            (Method::GET, Some(name), "application/json"),
            (Method::GET, None, "application/json"),
            (Method::DELETE, Some(name), "application/json"),
            (Method::DELETE, None, "application/json"),
            (Method::PATCH, Some(name), "application/merge-patch+json"),
            (Method::PATCH, Some(name), "application/apply-patch+yaml"),
        ] {
            let (status, reply) = treasure.send(method.clone(), "", at, kind, "{}").await;
            assert_eq!(status, 403, "{method} {at:?}");
            treasure.canary.assert_absent(&format!("the reply to {method}"), reply);
        }
    }
}

/// Why the agent has no `patch`, and that the tests above would find a leak.
#[tokio::test]
async fn with_patch_granted_the_same_search_finds_values() {
    let treasure = Treasure::hide().await;
    let malformed = r#"[{"op": "add", "path": "/immutable", "value": "x"}]"#;
    let patch = || treasure.send(Method::PATCH, "", Some("foreign"), "application/json-patch+json", malformed);
    let (status, reply) = patch().await;
    assert_eq!(status, 403);
    treasure.canary.assert_absent("the reply without the right", reply);

    let namespace = &treasure.scene.namespace;
    let _: k8s_openapi::api::rbac::v1::Role = namespace
        .add(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "patch"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["patch"]}],
        }))
        .await;
    let _: k8s_openapi::api::rbac::v1::RoleBinding = namespace
        .add(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "patch"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "patch"},
            "subjects": [{"kind": "ServiceAccount", "name": AGENT_ACCOUNT, "namespace": AGENT_NAMESPACE}],
        }))
        .await;
    let leaked = eventually("the right to be in force", async || match patch().await {
        (403, _) => Err("a refusal by RBAC".to_owned()),
        (_, reply) => Ok(treasure.canary.search(&reply)),
    })
    .await;
    assert!(!leaked.is_empty(), "a malformed patch quotes the stored Secret");
}
