//! Each name that the agent writes, one by one: nobody else adds, changes or removes it.

use http::Method;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::{Act, Before, REFUSED, Stage, Who, agents, annotated, labelled, merge, plain};
use crate::support::cluster::TestNamespace;
use crate::support::node::{AGENT_ACCOUNT, AgentNode, agents_secret};
use crate::support::surroundings::Surroundings;
use crate::support::{object, unique};

const ANNOTATIONS: [&str; 12] = [
    "source",
    "source-path",
    "source-version",
    "synced-at",
    "synced-through",
    "spec-since",
    "workload",
    "node",
    "probe",
    "last-replicated",
    "source-namespace",
    "whole",
];
const LABELS: [&str; 5] = ["managed-by", "replicated-from", "source", "source-kind", "record"];

/// Parts of metadata with one name under it, as `value`.
fn names(value: &Value) -> Vec<(String, Value)> {
    let of = |part: &str, name: &str| {
        let change = json!({"metadata": {part: {format!("jasm.codnod.io/{name}"): value}}});
        (format!("{part}/{name}"), change)
    };
    let labels = LABELS.iter().map(|name| of("labels", name));
    labels.chain(ANNOTATIONS.iter().map(|name| of("annotations", name))).collect()
}

/// A Secret with all of these names on it, as an administrator restored it.
async fn put_all(stage: &Stage) -> Secret {
    stage.put_before(Before::Nothing).await;
    let mut secret = plain(&json!({}));
    for (_, change) in names(&json!("x")) {
        merge(&mut secret, &change);
    }
    stage.namespace.add(secret).await
}

#[tokio::test]
async fn no_name_is_added_changed_or_removed_by_a_tenant() {
    let stage = Stage::set(Surroundings::get().await).await;
    for (what, value) in [("adds", json!("x")), ("adds nothing as", json!(""))] {
        for (name, change) in names(&value) {
            stage.put_before(Before::Plain).await;
            for act in [Act::Merge(change.clone()), Act::Update(change.clone())] {
                let (code, said) = stage.act(Who::Tenant, &act).await;
                assert!(code == 403 && said.contains(REFUSED), "{what} {name}: {code} {said}");
            }
            let mut new = plain(&json!({}));
            merge(&mut new, &change);
            stage.put_before(Before::Nothing).await;
            for act in [Act::Create(new.clone()), Act::Apply(new)] {
                let (code, said) = stage.act(Who::Tenant, &act).await;
                assert!(code == 403 && said.contains(REFUSED), "{what} {name} with something new: {code} {said}");
            }
        }
    }
    let all = put_all(&stage).await;
    for (what, value) in [("changes", json!("y")), ("removes", Value::Null)] {
        for (name, change) in names(&value) {
            for act in [Act::Merge(change.clone()), Act::Update(change.clone())] {
                let (code, said) = stage.act(Who::Tenant, &act).await;
                assert!(code == 403 && said.contains(REFUSED), "{what} {name}: {code} {said}");
            }
        }
    }
    assert_eq!(stage.namespace.secret("app").await, Some(all), "nothing was stored");
}

#[tokio::test]
async fn other_ways_to_write_are_no_way_around() {
    let stage = Stage::set(Surroundings::get().await).await;
    let marked = |more: Value| {
        let mut secret = plain(&json!({}));
        merge(&mut secret, &labelled(&json!("jasm")));
        merge(&mut secret, &more);
        secret
    };
    let generated = marked(json!({"metadata": {"name": null, "generateName": "app-"}}));
    let sent = [
        ("a generated name", Method::POST, "", generated),
        ("a dry run", Method::POST, "?dryRun=All", marked(json!({}))),
        ("fields that are not checked", Method::POST, "?fieldValidation=Ignore", marked(json!({"more": "x"}))),
    ];
    for (case, method, query, secret) in sent {
        let (code, said) = stage.send(Who::Tenant, method, query, "application/json", &secret.to_string()).await;
        assert!(code == 403 && said.contains(REFUSED), "case: {case}: {code} {said}");
    }
    assert!(stage.namespace.secret("app").await.is_none());
}

/// As docs/admission.md says: a role with everything in it has this as well. The built-in roles do not.
#[tokio::test]
async fn whoever_may_do_everything_in_a_namespace_may_release_there() {
    let stage = Stage::set(Surroundings::get().await).await;
    let everything = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    let _: k8s_openapi::api::rbac::v1::Role =
        stage.namespace.add(json!({"metadata": {"name": "everything"}, "rules": everything})).await;
    let _: k8s_openapi::api::rbac::v1::RoleBinding = stage
        .namespace
        .add(json!({
            "metadata": {"name": "everything"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "everything"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": Who::Wildcard.user()}],
        }))
        .await;
    stage.until_in_force(Who::Wildcard).await;
    stage.put_before(Before::Plain).await;
    let (code, said) = stage.act(Who::Wildcard, &Act::Merge(labelled(&json!("jasm")))).await;
    assert_eq!(code, 200, "{said}");
    stage.bind(Who::Viewer.user(), "edit").await;
    stage.until_in_force(Who::Viewer).await;
    let (code, said) = stage.act(Who::Viewer, &Act::Merge(annotated("node", &json!("x")))).await;
    assert!(code == 403 && said.contains(REFUSED), "{code} {said}");
}

/// Where everybody may look at the whole cluster.
#[tokio::test]
async fn an_account_that_is_called_like_the_agent_and_may_watch_all_pods_is_not_the_agent() {
    let surroundings = Surroundings::get().await;
    let stage = Stage::set(surroundings).await;
    let name = stage.namespace.name();
    stage.namespace.service_account(AGENT_ACCOUNT).await;
    let user = format!("system:serviceaccount:{name}:{AGENT_ACCOUNT}");
    let bindings: Api<k8s_openapi::api::rbac::v1::ClusterRoleBinding> = Api::all(surroundings.admin().await);
    let binding = json!({
        "metadata": {"name": unique("view")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": AGENT_ACCOUNT, "namespace": name}],
    });
    bindings.create(&PostParams::default(), &object(binding)).await.expect("a binding");
    let neighbour = TestNamespace::create(surroundings).await;
    let beside = Stage { namespace: neighbour.clone(), admin: surroundings.admin().await };
    beside.bind(&user, "admin").await;
    let node = AgentNode::create_in(surroundings, name).await;
    let client = node.client(surroundings).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), neighbour.name());
    crate::support::wait::eventually("its rights", async || {
        secrets.list(&Default::default()).await.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::all(client);
    pods.list(&Default::default()).await.expect("it sees all pods");
    let secret: Secret = object(agents_secret(node.name(), "app"));
    let error = secrets.create(&PostParams::default(), &secret).await.expect_err("refused").to_string();
    assert!(error.contains("jasm-agent-marker"), "{error}");
    assert!(neighbour.secret("app").await.is_none());
    // What it may: an object without any of these names.
    let mut theirs: Secret = object(agents("MQ=="));
    theirs.metadata.labels = None;
    theirs.metadata.annotations = None;
    let created = secrets.create(&PostParams::default(), &theirs).await;
    // The other policies take it for the agent, by its name: it is bound by all that bounds the agent.
    let error = created.expect_err("not of the agent's shape").to_string();
    assert!(error.contains("jasm-agent-shape"), "{error}");
    let _ = theirs.name_any();
}
