//! Secrets: to read them, and to write what is not for the agent to write.

use http::Method;
use serde_json::{Value, json};

use super::super::thief::{Attempt, Thief, Want, attempt, below};
use super::Row;
use crate::support::node::{AGENT_NAMESPACE, agents_secret};
use Want::{Itself, Policies, Policy, Rbac};

pub(super) fn reads(thief: &Thief) -> Vec<Row> {
    let get = |name, path: String, want| (name, Method::GET, path, Value::Null, want);
    let managed = "fieldSelector=metadata.name%3Dmanaged";
    vec![
        get("read somebody's Secret", thief.secret("foreign"), Rbac("get", "secrets")),
        get("read a Secret of the agent's", thief.secret("managed"), Rbac("get", "secrets")),
        get("list the Secrets of a namespace", thief.path("", "secrets"), Rbac("list", "secrets")),
        get("list the Secrets of the cluster", "/api/v1/secrets".to_owned(), Rbac("list", "secrets")),
        get("list the Secrets of kube-system", below("kube-system", "", "secrets"), Rbac("list", "secrets")),
        get("list the Secrets beside the agent", below(AGENT_NAMESPACE, "", "secrets"), Rbac("list", "secrets")),
        get(
            "list by marker",
            thief.path("", "secrets?labelSelector=jasm.codnod.io/managed-by"),
            Rbac("list", "secrets"),
        ),
        get("list one by name", thief.path("", &format!("secrets?{managed}")), Rbac("list", "secrets")),
        get("watch the Secrets of the cluster", "/api/v1/secrets?watch=1".to_owned(), Rbac("watch", "secrets")),
        get("watch one by name", thief.path("", &format!("secrets?watch=1&{managed}")), Rbac("watch", "secrets")),
        get("watch by the old path", thief.secret("managed").replace("/v1/", "/v1/watch/"), Rbac("watch", "secrets")),
    ]
}

/// The same read in other clothes.
pub(super) fn other_forms(thief: &Thief) -> Vec<Attempt> {
    let metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    let of = |name, path, want| attempt(name, Method::GET, path, Value::Null, want);
    vec![
        of("read metadata only", thief.secret("managed"), Rbac("get", "secrets")).with("accept", metadata),
        of("list as kubectl does", thief.path("", "secrets"), Rbac("list", "secrets")).with("accept", table),
        of("read as protobuf", thief.secret("managed"), Rbac("get", "secrets"))
            .with("accept", "application/vnd.kubernetes.protobuf"),
    ]
}

pub(super) fn patches(thief: &Thief) -> Vec<Attempt> {
    let patch = |name, kind, secret: &str, body: Value| {
        attempt(name, Method::PATCH, thief.secret(secret), body, Rbac("patch", "secrets")).with("content-type", kind)
    };
    let malformed = json!([{"op": "add", "path": "/immutable", "value": "x"}]);
    let applied = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "managed"}});
    let merge = "application/merge-patch+json";
    vec![
        patch("patch with nothing, which returns the object", merge, "foreign", json!({})),
        patch(
            "mark somebody's Secret",
            merge,
            "foreign",
            json!({"metadata": {"labels": {"jasm.codnod.io/managed-by": "jasm"}}}),
        ),
        patch("patch so that the error quotes the object", "application/json-patch+json", "managed", malformed),
        patch("patch strategically", "application/strategic-merge-patch+json", "managed", json!({})),
        patch("apply", "application/apply-patch+yaml", "managed?fieldManager=x&force=true", applied),
    ]
}

/// New Secrets in the wrong place, or in somebody else's name.
pub(super) fn others_places(thief: &Thief) -> Vec<Row> {
    let create = |name, path, body, want| (name, Method::POST, path, body, want);
    let own = thief.node.name();
    let namespaces = || Policy("jasm-agent-namespaces", "jasm:namespace");
    let mut nameless = agents_secret(own, "new");
    nameless["metadata"]["annotations"].as_object_mut().expect("annotations").remove("jasm.codnod.io/node");
    vec![
        create("write into kube-system", below("kube-system", "", "secrets"), agents_secret(own, "new"), namespaces()),
        create("write into kube-public", below("kube-public", "", "secrets"), agents_secret(own, "new"), namespaces()),
        create(
            "write into kube-node-lease",
            below("kube-node-lease", "", "secrets"),
            agents_secret(own, "new"),
            namespaces(),
        ),
        create(
            "write beside the agent",
            below(AGENT_NAMESPACE, "", "secrets"),
            agents_secret(own, "new"),
            namespaces(),
        ),
        create(
            "write beside the agent under the name of its own check",
            below(AGENT_NAMESPACE, "", "secrets"),
            agents_secret(own, "jasm-admission-check"),
            namespaces(),
        ),
        create(
            "write under another node's name",
            thief.path("", "secrets"),
            agents_secret("another-node", "new"),
            Policy("jasm-agent-node", "jasm:node annotation"),
        ),
        create("write under no node's name", thief.path("", "secrets"), nameless, Policies),
    ]
}

/// Secrets that other controllers would act on.
pub(super) fn shapes(thief: &Thief) -> Vec<Attempt> {
    let shape = |said| Policy("jasm-agent-shape", said);
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "victim", "uid": "x"}]);
    let rows = [
        (
            "get a service account's token made",
            "/type",
            json!("kubernetes.io/service-account-token"),
            shape("jasm:shape"),
        ),
        ("plant a bootstrap token", "/type", json!("bootstrap.kubernetes.io/token"), shape("jasm:shape the type")),
        ("plant a Helm release", "/type", json!("helm.sh/release.v1"), shape("jasm:shape the type")),
        ("write without the marker", "/metadata/labels", json!({}), shape("jasm:shape labels")),
        (
            "write with somebody's marker",
            "/metadata/labels/app.kubernetes.io~1managed-by",
            json!("Helm"),
            shape("jasm:shape labels"),
        ),
        (
            "plant a cluster for Argo CD",
            "/metadata/labels/argocd.argoproj.io~1secret-type",
            json!("cluster"),
            shape("jasm:shape labels"),
        ),
        (
            "have it copied elsewhere",
            "/metadata/annotations/replicator.v1.mittwald.de~1replicate-to",
            json!("*"),
            shape("jasm:shape an annotation"),
        ),
        ("set a finalizer", "/metadata/finalizers", json!(["x.y/z"]), shape("jasm:shape finalizers")),
        ("set an owner", "/metadata/ownerReferences", owner, shape("jasm:shape ownerReferences")),
        ("make it immutable", "/immutable", json!(true), shape("jasm:shape immutable")),
        ("have a name generated", "/metadata/generateName", json!("x-"), shape("jasm:shape generateName")),
        (
            "store a probe",
            "/metadata/annotations/jasm.codnod.io~1probe",
            json!("true"),
            Policy("jasm-agent-ownership", "jasm:probe-on-create"),
        ),
    ];
    let of = |(name, place, value, want): (_, &str, Value, _)| {
        let mut body = with(agents_secret(thief.node.name(), "new"), place, value);
        if body["type"] == "kubernetes.io/service-account-token" {
            // What the API server itself asks of such a type.
            body["metadata"]["annotations"]["kubernetes.io/service-account.name"] = json!("default");
        }
        attempt(name, Method::POST, thief.path("", "secrets"), body, want)
    };
    rows.map(of).into()
}

/// Existing Secrets, by way of the one verb that changes them.
pub(super) fn over_others(thief: &Thief) -> Vec<Row> {
    let own = |name: &str| agents_secret(thief.node.name(), name);
    let put = |name, secret: &str, body, want| (name, Method::PUT, thief.secret(secret), body, want);
    let shape = |said| Policy("jasm-agent-shape", said);
    let not_ours = || Policy("jasm-agent-ownership", "jasm:not-ours");
    let probe = with(own("foreign"), "/metadata/annotations/jasm.codnod.io~1probe", json!("true"));
    vec![
        put("overwrite somebody's Secret", "foreign", own("foreign"), not_ours()),
        put("overwrite it as a dry run", "foreign?dryRun=All", own("foreign"), not_ours()),
        put("ask the policies about it", "foreign?dryRun=All", probe, not_ours()),
        put(
            "overwrite under another node's name",
            "managed",
            agents_secret("another-node", "managed"),
            Policy("jasm-agent-node", "jasm:node annotation"),
        ),
        put(
            "release a Secret of the agent's",
            "managed",
            with(own("managed"), "/metadata/labels", json!({})),
            shape("jasm:shape labels"),
        ),
        put("freeze it", "managed", with(own("managed"), "/immutable", json!(true)), shape("jasm:shape immutable")),
        put(
            "keep it from being deleted",
            "managed",
            with(own("managed"), "/metadata/finalizers", json!(["x.y/z"])),
            shape("jasm:shape finalizers"),
        ),
        put(
            "have it deleted with an object that is gone",
            "managed",
            with(
                own("managed"),
                "/metadata/ownerReferences",
                json!([{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"}]),
            ),
            shape("jasm:shape ownerReferences"),
        ),
        put(
            "change its type",
            "managed",
            with(own("managed"), "/type", json!("kubernetes.io/basic-auth")),
            Itself(422, "field is immutable"),
        ),
        put("create by an update", "absent", own("absent"), Itself(404, "not found")),
    ]
}

/// The Secret with one thing set; `~1` is a slash in a name.
fn with(mut secret: Value, place: &str, value: Value) -> Value {
    let (parent, key) = place.rsplit_once('/').expect("a place has a slash");
    let parent =
        if parent.is_empty() { &mut secret } else { secret.pointer_mut(parent).expect("a part of the Secret") };
    parent[key.replace("~1", "/")] = value;
    secret
}
