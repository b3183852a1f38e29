//! What the shipped admission policies refuse to the agent's own token, each by its name, and what they let pass.

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use crate::support::cluster::TestNamespace;
use crate::support::node::{AGENT_ACCOUNT, AGENT_NAMESPACE, AgentNode, agents_secret};
use crate::support::scene::annotation;
use crate::support::surroundings::Surroundings;
use crate::support::wait::eventually;

/// A Secret with everything that the agent writes.
fn valid(node: &AgentNode, name: &str) -> Value {
    let mut secret = agents_secret(node.name(), name);
    let rest = [
        ("source-path", "y"),
        ("source-version", "1"),
        ("synced-at", "2026-01-01T00:00:00Z"),
        ("synced-through", "2026-01-01T00:00:00Z"),
        ("spec-since", "2026-01-01T00:00:00Z"),
        ("workload", "pods-and-jobs"),
    ];
    for (key, value) in rest {
        secret["metadata"]["annotations"][format!("jasm.codnod.io/{key}")] = json!(value);
    }
    secret["data"] = json!({"A": "MQ=="});
    secret
}

/// `valid` with one thing set; `~1` is a slash in a name.
fn with(node: &AgentNode, place: &str, value: Value) -> Value {
    let mut secret = valid(node, "new");
    let (parent, key) = place.rsplit_once('/').expect("a place has a slash");
    let key = key.replace("~1", "/");
    let parent =
        if parent.is_empty() { &mut secret } else { secret.pointer_mut(parent).expect("a part of the Secret") };
    parent[key] = value;
    secret
}

async fn create(secrets: &Api<Secret>, secret: Value) -> Result<Secret, kube::Error> {
    let secret: Secret = serde_json::from_value(secret).expect("a Secret");
    secrets.create(&PostParams::default(), &secret).await
}

/// The policy that refused, and its message.
fn refusal(outcome: Result<Secret, kube::Error>) -> String {
    match outcome {
        Ok(_) => "nobody: it was accepted".to_owned(),
        Err(kube::Error::Api(status)) => status.message,
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_secret_of_another_shape_is_refused() {
    let surroundings = Surroundings::get().await;
    let namespace = TestNamespace::create(surroundings).await;
    let node = AgentNode::create(surroundings).await;
    let secrets: Api<Secret> = Api::namespaced(node.client(surroundings).await, namespace.name());
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"}]);
    let cases = [
        (
            "another controller's label",
            "/metadata/labels/argocd.argoproj.io~1secret-type",
            json!("cluster"),
            "shape labels",
        ),
        ("no marker", "/metadata/labels", json!({"app.kubernetes.io/managed-by": "jasm"}), "shape labels"),
        ("the marker alone", "/metadata/labels", json!({"jasm.codnod.io/managed-by": "jasm"}), "shape labels"),
        ("another value of the marker", "/metadata/labels/jasm.codnod.io~1managed-by", json!("x"), "shape labels"),
        (
            "another annotation",
            "/metadata/annotations/replicator.v1.mittwald.de~1replicate-to",
            json!("*"),
            "shape an annotation",
        ),
        (
            "an annotation under our prefix",
            "/metadata/annotations/jasm.codnod.io~1new",
            json!("x"),
            "shape an annotation",
        ),
        (
            "a value with a blank",
            "/metadata/annotations/jasm.codnod.io~1workload",
            json!("a b"),
            "shape an annotation's value",
        ),
        (
            "a long value",
            "/metadata/annotations/jasm.codnod.io~1workload",
            json!("x".repeat(1025)),
            "shape an annotation's value",
        ),
        ("a time that is none", "/metadata/annotations/jasm.codnod.io~1spec-since", json!("soon"), "shape a time"),
        ("another kind of source", "/metadata/annotations/jasm.codnod.io~1source", json!("v2:x"), "shape annotations"),
        ("a service account's token", "/type", json!("kubernetes.io/service-account-token"), "jasm:shape"),
        ("a bootstrap token", "/type", json!("bootstrap.kubernetes.io/token"), "shape the type"),
        ("a finalizer", "/metadata/finalizers", json!(["x.y/z"]), "shape finalizers"),
        ("an owner", "/metadata/ownerReferences", owner, "shape ownerReferences"),
        ("a generated name", "/metadata/generateName", json!("x-"), "shape generateName"),
        ("immutable", "/immutable", json!(true), "shape immutable"),
        ("not immutable, but said so", "/immutable", json!(false), "shape immutable"),
        ("another node", "/metadata/annotations/jasm.codnod.io~1node", json!("other"), "node annotation"),
        ("a probe", "/metadata/annotations/jasm.codnod.io~1probe", json!("true"), "probe-on-create"),
    ];
    for (case, place, value, want) in cases {
        let mut secret = with(&node, place, value);
        // What the API server itself asks of such a type, and one more rule that it breaks.
        if case == "a service account's token" {
            secret["metadata"]["annotations"]["kubernetes.io/service-account.name"] = json!("default");
        }
        let said = refusal(create(&secrets, secret).await);
        assert!(said.contains("ValidatingAdmissionPolicy 'jasm-agent-") && said.contains(want), "case: {case}: {said}");
    }
    assert!(create(&secrets, valid(&node, "new")).await.is_ok(), "and as it is, it passes");
}

#[tokio::test]
async fn protected_namespaces_and_tokens_without_a_node_are_refused() {
    let surroundings = Surroundings::get().await;
    let namespace = TestNamespace::create(surroundings).await;
    let node = AgentNode::create(surroundings).await;
    let client = node.client(surroundings).await;
    for protected in ["kube-system", "kube-public", AGENT_NAMESPACE] {
        let said = refusal(create(&Api::namespaced(client.clone(), protected), valid(&node, "new")).await);
        assert!(said.contains("'jasm-agent-namespaces'") && said.contains("jasm:namespace"), "{protected}: {said}");
    }
    // A token of no pod, and one of the Node without a pod, which names the node all the same.
    let of_the_node = ["--bound-object-kind=Node", &format!("--bound-object-name={}", node.name())];
    for bound_to in [&[][..], &of_the_node] {
        let command = [&["create", "token", AGENT_ACCOUNT, "--namespace", AGENT_NAMESPACE], bound_to].concat();
        let token = surroundings.kubectl(&command).expect("a token");
        std::fs::write(node.folder().join("token"), token.trim()).expect("the node's token file");
        let client = node.client(surroundings).await;
        let said = refusal(create(&Api::namespaced(client, namespace.name()), valid(&node, "new")).await);
        assert!(said.contains("'jasm-agent-node'") && said.contains("not bound to a pod"), "{bound_to:?}: {said}");
    }
}

#[tokio::test]
async fn only_marked_secrets_are_overwritten_and_a_probe_is_never_stored() {
    let surroundings = Surroundings::get().await;
    let namespace = TestNamespace::create(surroundings).await;
    let node = AgentNode::create(surroundings).await;
    let secrets: Api<Secret> = Api::namespaced(node.client(surroundings).await, namespace.name());
    let foreign = namespace.add_secret("foreign", &[("A", "theirs")]).await;
    let put = async |name: &str, secret: Value| {
        let secret: Secret = serde_json::from_value(secret).expect("a Secret");
        refusal(secrets.replace(name, &PostParams::default(), &secret).await)
    };

    let said = put("foreign", valid(&node, "foreign")).await;
    assert!(said.contains("'jasm-agent-ownership'") && said.ends_with("jasm:not-ours"), "{said}");
    let mut imitated = valid(&node, "imitated");
    imitated["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "jasm"});
    let _: Secret = namespace.add(imitated).await;
    let said = put("imitated", valid(&node, "imitated")).await;
    assert!(said.ends_with("jasm:not-ours"), "the recommended label is no marker: {said}");

    create(&secrets, valid(&node, "ours")).await.expect("created");
    let before = namespace.wait_for_secret("ours").await;
    let mut probe = with(&node, "/metadata/annotations/jasm.codnod.io~1probe", json!("true"));
    probe["metadata"]["name"] = json!("ours");
    let said = put("ours", probe).await;
    assert!(said.contains("jasm:probe rv="), "{said}");
    assert_eq!(namespace.wait_for_secret("ours").await, before, "not stored, though it was no dry run");
    assert_eq!(namespace.wait_for_secret("foreign").await, foreign);
    assert!(put("ours", valid(&node, "ours")).await.contains("accepted"), "what is marked may be replaced");
    // As an administrator may have left it who gave it to the agent.
    namespace.edit_secret("ours", json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}})).await;
    assert!(put("ours", valid(&node, "ours")).await.contains("accepted"), "the label for people may be missing");
}

/// What others put on a managed Secret, and what the API server itself never changes.
#[tokio::test]
async fn only_data_and_own_annotations_of_a_managed_secret_change() {
    let surroundings = Surroundings::get().await;
    let namespace = TestNamespace::create(surroundings).await;
    let node = AgentNode::create(surroundings).await;
    let secrets: Api<Secret> = Api::namespaced(node.client(surroundings).await, namespace.name());
    let put = async |secret: Value| {
        let name = secret["metadata"]["name"].as_str().expect("a name").to_owned();
        let secret: Secret = serde_json::from_value(secret).expect("a Secret");
        refusal(secrets.replace(&name, &PostParams::default(), &secret).await)
    };
    // One that is there: the garbage collector runs.
    let owner: ConfigMap = namespace.add(json!({"metadata": {"name": "owner"}})).await;
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid()}]);
    let many: serde_json::Map<String, Value> =
        (0..3000).map(|number| (format!("example.com/{number}"), json!(""))).collect();
    let cases = [
        ("label", json!({"metadata": {"labels": {"team": "a"}}}), ",labels"),
        ("people", json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}}), ",labels"),
        ("annotation", json!({"metadata": {"annotations": {"reloader": "x"}}}), ",annotations"),
        ("annotations", json!({"metadata": {"annotations": many}}), ",annotations"),
        ("finalizer", json!({"metadata": {"finalizers": ["example.com/stays"]}}), ",finalizers"),
        ("owner", json!({"metadata": {"ownerReferences": owner}}), ",ownerReferences"),
        ("immutable", json!({"immutable": true}), "immutable"),
    ];
    for (case, change, want) in cases {
        create(&secrets, valid(&node, case)).await.expect("created");
        let before = namespace.edit_secret(case, change).await;
        let mut newer = valid(&node, case);
        newer["data"] = json!({"A": "Mg=="});
        let said = put(newer).await;
        let refused = if case == "immutable" {
            said.contains("field is immutable")
        } else {
            said.contains("'jasm-agent-ownership'") && said.ends_with(&format!("jasm:others {want}"))
        };
        assert!(refused, "case: {case}: {said}");
        assert_eq!(namespace.wait_for_secret(case).await, before, "case: {case}");
        // A probe is answered all the same, and says it.
        let mut probe = valid(&node, case);
        probe["metadata"]["annotations"]["jasm.codnod.io/probe"] = json!("true");
        if case != "immutable" {
            let said = put(probe).await;
            assert!(
                said.contains("jasm:probe rv=") && said.ends_with(&format!(" others={want}")),
                "case: {case}: {said}"
            );
        }
    }
    create(&secrets, valid(&node, "type")).await.expect("created");
    let mut other = valid(&node, "type");
    other["type"] = json!("kubernetes.io/basic-auth");
    other["data"] = json!({"username": "eA=="});
    let said = put(other).await;
    assert!(said.contains("type: Invalid value") && said.contains("field is immutable"), "{said}");
    let mut newer = valid(&node, "type");
    newer["data"] = json!({"B": "Mg=="});
    newer["metadata"]["annotations"]["jasm.codnod.io/source-version"] = json!("2");
    assert!(put(newer).await.contains("accepted"), "that is what the agent is for");
    let after = namespace.wait_for_data("type", [("B", "2")]).await;
    assert_eq!(annotation(&after, "jasm.codnod.io/source-version"), "2");
}

#[tokio::test]
async fn an_update_of_another_nodes_secret_has_the_writers_node_on_it() {
    let surroundings = Surroundings::get().await;
    let namespace = TestNamespace::create(surroundings).await;
    let (one, other) = (AgentNode::create(surroundings).await, AgentNode::create(surroundings).await);
    let by_one: Api<Secret> = Api::namespaced(one.client(surroundings).await, namespace.name());
    let by_other: Api<Secret> = Api::namespaced(other.client(surroundings).await, namespace.name());
    create(&by_one, valid(&one, "app")).await.expect("created");
    let put = async |secret: Value| {
        let secret: Secret = serde_json::from_value(secret).expect("a Secret");
        refusal(by_other.replace("app", &PostParams::default(), &secret).await)
    };
    let said = put(valid(&one, "app")).await;
    assert!(said.contains("'jasm-agent-node'") && said.contains("not the node of the token"), "{said}");
    let mut nobodys = valid(&other, "app");
    nobodys["metadata"]["annotations"].as_object_mut().expect("annotations").remove("jasm.codnod.io/node");
    let said = put(nobodys).await;
    assert!(said.contains("ValidatingAdmissionPolicy 'jasm-agent-"), "{said}");
    let before = namespace.wait_for_secret("app").await;
    assert_eq!(annotation(&before, "jasm.codnod.io/node"), one.name());
    assert!(put(valid(&other, "app")).await.contains("accepted"));
    let after = namespace.wait_for_secret("app").await;
    assert_eq!(annotation(&after, "jasm.codnod.io/node"), other.name());
}

/// What the API server's own check of the expressions finds.
#[tokio::test]
async fn every_expression_fits_the_type_of_a_secret() {
    assert_expressions_fit(Surroundings::get().await).await;
}

/// # Panics
/// When one does not fit the types of what its policy matches.
pub(crate) async fn assert_expressions_fit(surroundings: &Surroundings) {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(surroundings.admin().await);
    let checked = eventually("the API server to check all policies", async || {
        let mut all = policies.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
        all.retain(|policy| policy.name_any().starts_with("jasm-agent-"));
        let checked =
            all.iter().all(|policy| policy.status.as_ref().is_some_and(|status| status.type_checking.is_some()));
        if checked && all.len() == 5 { Ok(all) } else { Err(format!("{} policies", all.len())) }
    })
    .await;
    for policy in checked {
        let found = policy.status.as_ref().and_then(|status| status.type_checking.as_ref());
        let warnings = found.and_then(|checking| checking.expression_warnings.clone()).unwrap_or_default();
        assert!(warnings.is_empty(), "{}: {warnings:?}", policy.name_any());
    }
}
