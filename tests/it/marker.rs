//! Who sets and changes the marker and the agent's annotations: the agent, and whoever may `release`. Nobody else's write is
//! refused for anything else, and no write that leaves them as they are.

use http::{Method, Request};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::client::Body;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use crate::support::cluster::TestNamespace;
use crate::support::control_plane::ControlPlane;
use crate::support::node::{AGENT_ACCOUNT, AGENT_NAMESPACE, AgentNode, agents_secret};
use crate::support::surroundings::Surroundings;
use crate::support::wait::{eventually, try_within};
use crate::support::{object, unique};

const REFUSED: &str =
    "ValidatingAdmissionPolicy 'jasm-agent-marker' with binding 'jasm-agent-marker' denied request: jasm:marker";
const MARKER: &str = "jasm.codnod.io/managed-by";
/// All that the agent writes as annotations, and what it asks by, below `jasm.codnod.io/`.
pub(crate) const ANNOTATIONS: [&str; 12] = [
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
/// The marker, and what tells replicas, masters and records apart, below `jasm.codnod.io/`.
pub(crate) const LABELS: [&str; 5] = ["managed-by", "replicated-from", "source", "source-kind", "record"];
/// The garbage collector works in rounds, and looks for new kinds every 30 s.
const COLLECTED: std::time::Duration = std::time::Duration::from_secs(90);

/// Who writes. Each has the rights of its kind, and none of them is an administrator of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// The built-in role `admin` in the namespace: all that a team has.
    Tenant,
    /// Writes Secrets of all namespaces.
    Backup,
    /// The same, and may release.
    Releaser,
    /// May release the Secret `app` alone.
    OneReleaser,
    /// A controller with Secrets of its own.
    CertManager,
    /// What makes tokens of service accounts.
    ControllerManager,
    /// What deletes owned objects.
    GarbageCollector,
}

impl Who {
    fn user(self) -> &'static str {
        match self {
            Self::Tenant => "alice",
            Self::Backup => "system:serviceaccount:backup:backup",
            Self::Releaser => "bob",
            Self::OneReleaser => "carol",
            Self::CertManager => "system:serviceaccount:cert-manager:cert-manager",
            Self::ControllerManager => "system:kube-controller-manager",
            Self::GarbageCollector => "system:serviceaccount:kube-system:generic-garbage-collector",
        }
    }
}

/// What the Secret `app` is before.
#[derive(Debug, Clone, Copy)]
enum Before {
    Nothing,
    Plain,
    Ours,
    /// The agent's, and somebody has made it immutable.
    Immutable,
    Tls,
    /// A token of a service account.
    Token,
}

/// What is done to it.
#[derive(Debug, Clone)]
enum Act {
    Create(Value),
    /// A dry run of it.
    TryCreate(Value),
    /// GET, a merge of this into the object, and PUT: what most controllers do.
    Update(Value),
    /// PUT of just this.
    Replace(Value),
    Merge(Value),
    /// A dry run of it.
    TryMerge(Value),
    Strategic(Value),
    Json(Value),
    /// Server-side apply, by force.
    Apply(Value),
    Delete,
    DeleteAll,
}

fn agents(data: &str) -> Value {
    let mut secret = agents_secret("node-1", "app");
    secret["metadata"]["annotations"]["jasm.codnod.io/synced-through"] = json!("2026-01-01T00:00:00Z");
    secret["data"] = json!({"A": data});
    secret
}

fn plain(metadata: &Value) -> Value {
    let mut secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"A": "MQ=="}});
    secret["metadata"]["name"] = json!("app");
    secret
}

/// The same under a name that the API server makes up, which begins like `app`.
fn generated(mut secret: Value) -> Value {
    let metadata = secret["metadata"].as_object_mut().expect("metadata");
    metadata.remove("name");
    metadata.insert("generateName".to_owned(), json!("app"));
    secret
}

fn annotated(key: &str, value: &Value) -> Value {
    json!({"metadata": {"annotations": {format!("jasm.codnod.io/{key}"): value}}})
}

fn labelled(value: &Value) -> Value {
    json!({"metadata": {"labels": {MARKER: value}}})
}

fn of_type(kind: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "app"}, "type": kind, "data": data})
}

fn token() -> Value {
    let mut secret = of_type("kubernetes.io/service-account-token", json!({}));
    secret["metadata"]["annotations"] = json!({"kubernetes.io/service-account.name": "default"});
    secret
}

type Shape = (&'static str, Who, Before, Act, bool);

/// What passes, and what does not. `true`: it passes.
fn shapes() -> Vec<Shape> {
    use Act::{Apply, Create, Delete, DeleteAll, Json, Merge, Replace, Strategic, TryCreate, TryMerge, Update};
    use Before::{Immutable, Nothing, Ours, Plain, Tls, Token};
    use Who::{Backup, CertManager, ControllerManager, GarbageCollector, OneReleaser, Releaser, Tenant};
    let helm =
        json!({"labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": {"meta.helm.sh/release-name": "x"}});
    let owner =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "00000000-0000-0000-0000-000000000000"}]);
    let decorated = json!({"metadata": {
        "labels": {"team": "a"}, "annotations": {"a": "b"}, "finalizers": ["example.com/stays"], "ownerReferences": owner,
    }});
    let with = |mut secret: Value, more: Value| {
        merge(&mut secret, &more);
        secret
    };
    vec![
        // What a team does in its own namespace.
        ("create", Tenant, Nothing, Create(plain(&json!({}))), true),
        ("create for Helm", Tenant, Nothing, Create(plain(&helm)), true),
        ("create immutable", Tenant, Nothing, Create(with(plain(&json!({})), json!({"immutable": true}))), true),
        (
            "create TLS",
            Tenant,
            Nothing,
            Create(of_type("kubernetes.io/tls", json!({"tls.crt": "", "tls.key": ""}))),
            true,
        ),
        ("create a token", Tenant, Nothing, Create(token()), true),
        (
            "the label for people",
            Tenant,
            Plain,
            Merge(json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "jasm"}}})),
            true,
        ),
        (
            "an annotation under our prefix that is none of ours",
            Tenant,
            Plain,
            Merge(annotated("secret-sync", &json!("x"))),
            true,
        ),
        ("create as the agent", Tenant, Nothing, Create(agents("MQ==")), false),
        ("create with the marker", Tenant, Nothing, Create(with(plain(&json!({})), labelled(&json!("jasm")))), false),
        (
            "create with another value of it",
            Tenant,
            Nothing,
            Create(with(plain(&json!({})), labelled(&json!("x")))),
            false,
        ),
        (
            "create with a source",
            Tenant,
            Nothing,
            Create(with(plain(&json!({})), annotated("source", &json!("v1:x:y")))),
            false,
        ),
        ("create by apply", Tenant, Nothing, Apply(plain(&json!({}))), true),
        (
            "create by apply with the marker",
            Tenant,
            Nothing,
            Apply(with(plain(&json!({})), labelled(&json!("jasm")))),
            false,
        ),
        (
            "create by apply with a time",
            Tenant,
            Nothing,
            Apply(with(plain(&json!({})), annotated("synced-at", &json!("2030-01-01T00:00:00Z")))),
            false,
        ),
        ("create under a generated name", Tenant, Nothing, Create(generated(plain(&json!({})))), true),
        ("create under a generated name as the agent", Tenant, Nothing, Create(generated(agents("MQ=="))), false),
        ("try to create", Tenant, Nothing, TryCreate(plain(&json!({}))), true),
        ("try to create as the agent", Tenant, Nothing, TryCreate(agents("MQ==")), false),
        ("try to label", Tenant, Plain, TryMerge(labelled(&json!("jasm"))), false),
        ("try to take the marker off", Tenant, Ours, TryMerge(labelled(&Value::Null)), false),
        ("try to edit", Tenant, Ours, TryMerge(json!({"data": {"A": "Mg=="}})), true),
        ("label", Tenant, Plain, Merge(labelled(&json!("jasm"))), false),
        ("label strategically", Tenant, Plain, Strategic(labelled(&json!("jasm"))), false),
        ("annotate with nothing", Tenant, Plain, Merge(annotated("node", &json!(""))), false),
        (
            "annotate by JSON patch",
            Tenant,
            Plain,
            Json(json!([
                {"op": "add", "path": "/metadata/annotations", "value": {"jasm.codnod.io/probe": "true"}},
            ])),
            false,
        ),
        ("update to the agent's", Tenant, Plain, Update(labelled(&json!("jasm"))), false),
        ("apply with the marker", Tenant, Plain, Apply(with(plain(&json!({})), labelled(&json!("jasm")))), false),
        // What a team does to a Secret of the agent's there.
        ("edit the data", Tenant, Ours, Update(json!({"data": {"A": "Mg==", "B": "Mw=="}})), true),
        ("replace by the same", Tenant, Ours, Replace(agents("Mg==")), true),
        ("decorate", Tenant, Ours, Merge(decorated), true),
        ("make it immutable", Tenant, Ours, Merge(json!({"immutable": true})), true),
        ("label an immutable one", Tenant, Immutable, Merge(json!({"metadata": {"labels": {"team": "a"}}})), true),
        ("apply data over it", Tenant, Ours, Apply(plain(&helm)), true),
        (
            "apply the marker that is there",
            Tenant,
            Ours,
            Apply(with(plain(&json!({})), labelled(&json!("jasm")))),
            true,
        ),
        ("delete", Tenant, Ours, Delete, true),
        ("delete an immutable one", Tenant, Immutable, Delete, true),
        ("delete all", Tenant, Ours, DeleteAll, true),
        ("replace by a plain one", Tenant, Ours, Replace(plain(&json!({}))), false),
        ("take the marker off", Tenant, Ours, Merge(labelled(&Value::Null)), false),
        ("take it off an immutable one", Tenant, Immutable, Merge(labelled(&Value::Null)), false),
        ("make it seem fresh", Tenant, Ours, Merge(annotated("synced-through", &json!("2030-01-01T00:00:00Z"))), false),
        ("take the node off", Tenant, Ours, Merge(annotated("node", &Value::Null)), false),
        ("add a workload", Tenant, Ours, Merge(annotated("workload", &json!("apps/Deployment/x"))), false),
        (
            "take it as another source by apply",
            Tenant,
            Ours,
            Apply(with(plain(&json!({})), annotated("source", &json!("v1:z")))),
            false,
        ),
        // Backups.
        ("restore a plain Secret", Backup, Nothing, Create(plain(&helm)), true),
        ("restore one of the agent's", Backup, Nothing, Create(agents("MQ==")), false),
        ("restore it over what is there", Backup, Ours, Replace(agents("Mg==")), true),
        (
            "restore an older state of it",
            Backup,
            Ours,
            Merge(annotated("synced-through", &json!("2025-01-01T00:00:00Z"))),
            false,
        ),
        // Whoever may release.
        ("restore as a releaser", Releaser, Nothing, Create(agents("MQ==")), true),
        ("adopt", Releaser, Plain, Merge(labelled(&json!("jasm"))), true),
        ("release", Releaser, Ours, Merge(labelled(&Value::Null)), true),
        ("release by replacing", Releaser, Ours, Replace(plain(&json!({}))), true),
        ("restore under a generated name", Releaser, Nothing, Create(generated(agents("MQ=="))), true),
        (
            "restore just this one under a generated name",
            OneReleaser,
            Nothing,
            Create(generated(agents("MQ=="))),
            false,
        ),
        ("restore just this one", OneReleaser, Nothing, Create(agents("MQ==")), true),
        ("release just this one", OneReleaser, Ours, Merge(labelled(&Value::Null)), true),
        (
            "adopt just this one by apply",
            OneReleaser,
            Plain,
            Apply(with(plain(&json!({})), labelled(&json!("jasm")))),
            true,
        ),
        // Controllers.
        (
            "issue a certificate",
            CertManager,
            Nothing,
            Create(of_type("kubernetes.io/tls", json!({"tls.crt": "", "tls.key": ""}))),
            true,
        ),
        ("renew it", CertManager, Tls, Update(json!({"data": {"tls.crt": "eA==", "tls.key": "eA=="}})), true),
        (
            "write into one of the agent's",
            CertManager,
            Ours,
            Apply(plain(&json!({"labels": {"controller.cert-manager.io/fao": "true"}}))),
            true,
        ),
        ("fill a token in", ControllerManager, Token, Update(json!({"data": {"token": "eA=="}})), true),
        (
            "add a finalizer",
            GarbageCollector,
            Ours,
            Strategic(json!({"metadata": {"finalizers": ["foregroundDeletion"]}})),
            true,
        ),
    ]
}

/// As a JSON merge patch does it.
fn merge(into: &mut Value, patch: &Value) {
    match (into.as_object_mut(), patch.as_object()) {
        (Some(into), Some(patch)) => {
            for (key, value) in patch {
                match value {
                    Value::Null => drop(into.remove(key)),
                    value => merge(into.entry(key.clone()).or_insert(Value::Null), value),
                }
            }
        }
        _ => *into = patch.clone(),
    }
}

/// A namespace with everybody's rights in it.
struct Stage {
    namespace: TestNamespace,
    admin: kube::Client,
}

impl Stage {
    async fn set(surroundings: &ControlPlane) -> Self {
        let stage = Self { namespace: TestNamespace::create(surroundings).await, admin: surroundings.admin().await };
        let secrets = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["*"]}]);
        let release = |names: Value| {
            json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["*"]},
            {"apiGroups": ["jasm.codnod.io"], "resources": ["secrets"], "verbs": ["release"], "resourceNames": names}])
        };
        stage.bind(Who::Tenant.user(), "admin").await;
        stage.grant(Who::Backup, &secrets).await;
        stage.grant(Who::CertManager, &secrets).await;
        stage.grant(Who::Releaser, &release(json!([]))).await;
        stage.grant(Who::OneReleaser, &release(json!(["app"]))).await;
        for who in [Who::Tenant, Who::Backup, Who::CertManager, Who::Releaser, Who::OneReleaser] {
            stage.until_in_force(who).await;
        }
        stage
    }

    /// A right in all namespaces.
    async fn grant(&self, who: Who, rules: &Value) {
        let name = unique("marker");
        let roles: Api<ClusterRole> = Api::all(self.admin.clone());
        let role = object(json!({"metadata": {"name": name}, "rules": rules}));
        roles.create(&PostParams::default(), &role).await.expect("a role");
        self.bind_everywhere(who.user(), &name).await;
    }

    /// A role in all namespaces.
    async fn bind_everywhere(&self, user: &str, role: &str) {
        let bindings: Api<ClusterRoleBinding> = Api::all(self.admin.clone());
        let binding = object(json!({
            "metadata": {"name": unique("marker")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }));
        bindings.create(&PostParams::default(), &binding).await.expect("a binding");
    }

    /// A role in the namespace.
    async fn bind(&self, user: &str, role: &str) {
        let _: RoleBinding = self
            .namespace
            .add(json!({
                "metadata": {"name": unique("marker")},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            }))
            .await;
    }

    async fn until_in_force(&self, who: Who) {
        eventually(&format!("the rights of {who:?}"), async || match self.send(who, Method::GET, "", "", "").await {
            (200, _) => Ok(()),
            (code, said) => Err(format!("{code} {said}")),
        })
        .await;
    }

    /// A request of somebody for Secrets of the namespace; returns code and body.
    async fn send(&self, who: Who, method: Method, name: &str, kind: &str, body: &str) -> (u16, String) {
        let query = if kind.contains("apply-patch") { "?fieldManager=test&force=true" } else { "" };
        self.send_with(who, method, &format!("{name}{query}"), kind, body).await
    }

    /// The same with a query of choice.
    async fn send_with(&self, who: Who, method: Method, at: &str, kind: &str, body: &str) -> (u16, String) {
        let uri = format!("/api/v1/namespaces/{}/secrets{at}", self.namespace.name());
        let request = Request::builder().method(method).uri(uri).header("Impersonate-User", who.user());
        let request = request.header("Content-Type", kind).body(Body::from(body.as_bytes().to_vec()));
        let reply = self.admin.send(request.expect("a request")).await.expect("the API server answers");
        let code = reply.status().as_u16();
        let body = http_body_util::BodyExt::collect(reply.into_body()).await.expect("a whole body").to_bytes();
        (code, String::from_utf8_lossy(&body).into_owned())
    }

    async fn put_before(&self, before: Before) {
        let secrets = self.namespace.api::<Secret>();
        let _ = secrets.delete("app", &DeleteParams::default()).await;
        let secret = match before {
            Before::Nothing => return,
            Before::Plain => plain(&json!({})),
            Before::Ours => agents("MQ=="),
            Before::Immutable => {
                let mut secret = agents("MQ==");
                secret["immutable"] = json!(true);
                secret
            }
            Before::Tls => of_type("kubernetes.io/tls", json!({"tls.crt": "", "tls.key": ""})),
            Before::Token => token(),
        };
        let _: Secret = self.namespace.add(secret).await;
    }

    async fn act(&self, who: Who, act: &Act) -> (u16, String) {
        const JSON: &str = "application/json";
        match act {
            Act::Create(secret) => self.send(who, Method::POST, "", JSON, &secret.to_string()).await,
            Act::TryCreate(secret) => self.send_with(who, Method::POST, "?dryRun=All", JSON, &secret.to_string()).await,
            Act::Replace(secret) => self.send(who, Method::PUT, "/app", JSON, &secret.to_string()).await,
            Act::Update(change) => {
                let (_, found) = self.send(who, Method::GET, "/app", JSON, "").await;
                let mut secret: Value = serde_json::from_str(&found).expect("a Secret");
                merge(&mut secret, change);
                self.send(who, Method::PUT, "/app", JSON, &secret.to_string()).await
            }
            Act::Merge(patch) => {
                self.send(who, Method::PATCH, "/app", "application/merge-patch+json", &patch.to_string()).await
            }
            Act::TryMerge(patch) => {
                let kind = "application/merge-patch+json";
                self.send_with(who, Method::PATCH, "/app?dryRun=All", kind, &patch.to_string()).await
            }
            Act::Strategic(patch) => {
                self.send(who, Method::PATCH, "/app", "application/strategic-merge-patch+json", &patch.to_string())
                    .await
            }
            Act::Json(patch) => {
                self.send(who, Method::PATCH, "/app", "application/json-patch+json", &patch.to_string()).await
            }
            Act::Apply(secret) => {
                self.send(who, Method::PATCH, "/app", "application/apply-patch+yaml", &secret.to_string()).await
            }
            Act::Delete => self.send(who, Method::DELETE, "/app", JSON, "").await,
            Act::DeleteAll => self.send(who, Method::DELETE, "", JSON, "").await,
        }
    }

    /// Takes finalizers off, so that the next shape finds nothing.
    async fn clear(&self) {
        let bare = json!({"metadata": {"finalizers": null}});
        if self.namespace.secret("app").await.is_some() {
            self.namespace.edit_secret("app", bare).await;
        }
    }
}

#[tokio::test]
async fn each_shape_of_write_passes_or_is_refused_as_it_is_said() {
    let stage = Stage::set(Surroundings::get().await).await;
    let shapes = shapes();
    assert!(shapes.len() >= 30, "{}", shapes.len());
    for (case, who, before, act, passes) in shapes {
        stage.put_before(before).await;
        let was = stage.namespace.secret("app").await;
        let (code, said) = stage.act(who, &act).await;
        if passes {
            assert!((200..300).contains(&code), "case: {case} by {who:?} ({before:?}): {code} {said}");
        } else {
            assert!(code == 403 && said.contains(REFUSED), "case: {case} by {who:?} ({before:?}): {code} {said}");
        }
        if !passes || matches!(act, Act::TryCreate(_) | Act::TryMerge(_)) {
            assert_eq!(stage.namespace.secret("app").await, was, "case: {case} by {who:?} ({before:?})");
        }
        stage.clear().await;
    }
}

/// Each name for itself: a policy that forgets one would let it through.
#[tokio::test]
async fn each_name_that_the_agent_writes_is_neither_set_nor_changed_nor_taken_off() {
    let stage = Stage::set(Surroundings::get().await).await;
    let whole = |mut secret: Value| {
        for name in ANNOTATIONS {
            merge(&mut secret, &annotated(name, &json!("2026-01-01T00:00:00Z")));
        }
        for name in LABELS {
            merge(&mut secret, &json!({"metadata": {"labels": {format!("jasm.codnod.io/{name}"): "jasm"}}}));
        }
        secret
    };
    let names = ANNOTATIONS.iter().map(|name| ("annotations", format!("jasm.codnod.io/{name}")));
    for (kind, name) in names.chain(LABELS.iter().map(|name| ("labels", format!("jasm.codnod.io/{name}")))) {
        for (how, before, value) in [
            ("added", plain(&json!({})), json!("x")),
            ("added empty", plain(&json!({})), json!("")),
            ("changed", whole(agents("MQ==")), json!("x")),
            ("emptied", whole(agents("MQ==")), json!("")),
            ("taken off", whole(agents("MQ==")), Value::Null),
        ] {
            stage.put_before(Before::Nothing).await;
            let was: Secret = stage.namespace.add(before).await;
            let patch = Act::Merge(json!({"metadata": {kind: {&name: value}}}));
            let (code, said) = stage.act(Who::Tenant, &patch).await;
            assert!(code == 403 && said.contains(REFUSED), "{name} {how}: {code} {said}");
            assert_eq!(stage.namespace.wait_for_secret("app").await, was, "{name} {how}");
        }
    }
}

/// A right for one name is none for another.
#[tokio::test]
async fn a_release_of_one_name_is_none_of_another() {
    let stage = Stage::set(Surroundings::get().await).await;
    stage.namespace.add_secret("other", &[("A", "1")]).await;
    let patch = labelled(&json!("jasm")).to_string();
    let (code, said) =
        stage.send(Who::OneReleaser, Method::PATCH, "/other", "application/merge-patch+json", &patch).await;
    assert!(code == 403 && said.contains(REFUSED), "{code} {said}");
}

/// A team can make a service account of the agent's name, and a pod whose token names its node.
#[tokio::test]
async fn a_service_account_that_is_called_like_the_agent_is_not_the_agent() {
    let surroundings = Surroundings::get().await;
    let stage = Stage::set(surroundings).await;
    let namespace = &stage.namespace;
    namespace.service_account(AGENT_ACCOUNT).await;
    let account = format!("system:serviceaccount:{}:{AGENT_ACCOUNT}", namespace.name());
    stage.bind(&account, "admin").await;
    let node = AgentNode::create_in(surroundings, namespace.name()).await;
    // Not its own namespace, which is protected from it.
    let neighbour = TestNamespace::create(surroundings).await;
    let beside = Stage { namespace: neighbour.clone(), admin: surroundings.admin().await };
    beside.bind(&account, "admin").await;
    let client = node.client(surroundings).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), neighbour.name());
    let secret = agents_secret(node.name(), "app");
    let refused = async || match secrets.create(&PostParams::default(), &object(secret.clone())).await {
        Err(kube::Error::Api(status)) if status.message.contains(REFUSED) => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(_) => panic!("it was taken for the agent"),
    };
    eventually("a refusal by the marker policy", refused).await;

    // What is bound to all service accounts of many clusters.
    stage.bind_everywhere(&account, "view").await;
    let pods: Api<Pod> = Api::all(client.clone());
    eventually("the right to list all pods", async || {
        pods.list(&ListParams::default().limit(1)).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(refused().await, Ok(()), "who sees all pods is no agent");

    // The agent's own role, in that namespace alone.
    beside.bind(&account, "jasm-agent").await;
    let events: Api<Event> = Api::namespaced(client, neighbour.name());
    let event = json!({
        "metadata": {"generateName": "like-an-agent-"}, "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal",
        "reason": "Bound", "action": "Bound", "reportingController": "jasm.codnod.io/agent", "reportingInstance": "x",
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": neighbour.name(), "name": "x"},
    });
    eventually("the rights of the agent's role", async || {
        let sent = events.create(&PostParams::default(), &object(event.clone())).await;
        sent.map(drop).map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(refused().await, Ok(()), "who may mark in one namespace is no agent");
}

/// The built-in roles `edit` and `admin` may impersonate the service accounts of their namespace.
#[tokio::test]
async fn a_tenant_who_impersonates_a_service_account_marks_nothing() {
    let surroundings = Surroundings::get().await;
    let stage = Stage::set(surroundings).await;
    let name = stage.namespace.name();
    for account in ["tenant", "worker", AGENT_ACCOUNT] {
        stage.namespace.service_account(account).await;
        stage.bind(&format!("system:serviceaccount:{name}:{account}"), "admin").await;
    }
    let token = surroundings.kubectl(&["create", "token", "tenant", "--namespace", name]).expect("a token");
    let folder = surroundings.folder(&unique("tenant"));
    std::fs::write(folder.join("plain.yaml"), plain(&json!({})).to_string()).expect("a manifest");
    std::fs::write(folder.join("marked.yaml"), agents("MQ==").to_string()).expect("a manifest");
    let folder = folder.display();
    // The administrator's certificate, which would count first, stays out of this.
    let as_account = |account: &str, file: &str| {
        surroundings.bash(&format!(
            "kubectl config view --raw --minify > {folder}/config; export KUBECONFIG={folder}/config\n\
             kubectl config set-credentials tenant --token={} > /dev/null\n\
             kubectl config set-context --current --user=tenant > /dev/null\n\
             kubectl create -n {name} --as=system:serviceaccount:{account} --validate=false --dry-run=server \
             -f {folder}/{file}",
            token.trim()
        ))
    };
    let worker = format!("{name}:worker");
    eventually("the tenant's rights", async || as_account(&worker, "plain.yaml").map(drop)).await;
    for (account, by) in [
        (worker, "jasm-agent-marker"),
        // More than one of our policies does.
        (format!("{name}:{AGENT_ACCOUNT}"), "ValidatingAdmissionPolicy 'jasm-agent-"),
        (format!("{AGENT_NAMESPACE}:{AGENT_ACCOUNT}"), "cannot impersonate"),
    ] {
        let error = as_account(&account, "marked.yaml").expect_err("the agent's mark");
        assert!(error.contains(by), "{account}: {error}");
    }
}

/// `kubectl get secrets -o json | kubectl replace -f -`, as after a change of the encryption at rest.
#[tokio::test]
async fn a_rewrite_of_all_secrets_passes_and_changes_nothing() {
    let surroundings = Surroundings::get().await;
    let stage = Stage::set(surroundings).await;
    let name = stage.namespace.name();
    let _: Secret = stage.namespace.add(agents("MQ==")).await;
    stage.namespace.add_secret("plain", &[("A", "1")]).await;
    let _: Secret = stage
        .namespace
        .add({
            let mut token = token();
            token["metadata"]["name"] = json!("token");
            token
        })
        .await;
    let list = async || {
        let list = stage.namespace.api::<Secret>().list(&Default::default()).await.expect("a list");
        list.items.into_iter().map(|secret| (secret.name_any(), secret.data)).collect::<Vec<_>>()
    };
    let before = list().await;
    let as_backup = format!("--as={}", Who::Backup.user());
    let script = format!("kubectl get secrets -n {name} -o json | kubectl replace {as_backup} -f -");
    let said = surroundings.bash(&script).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(said.lines().filter(|line| line.ends_with("replaced")).count(), 3, "{said}");
    assert_eq!(list().await, before);
}

/// What a team types.
#[tokio::test]
async fn kubectl_of_a_tenant_is_told_whose_the_marker_is() {
    let surroundings = Surroundings::get().await;
    let stage = Stage::set(surroundings).await;
    let namespace = stage.namespace.name();
    let kubectl =
        |command: &str| surroundings.bash(&format!("kubectl --as={} -n {namespace} {command}", Who::Tenant.user()));
    let file = surroundings.folder(&unique("marker")).join("secret.yaml");
    std::fs::write(&file, plain(&json!({})).to_string()).expect("a manifest");
    let file = file.display();
    let _: Secret = stage.namespace.add(agents("MQ==")).await;
    stage.namespace.add_secret("plain", &[("A", "1")]).await;
    for command in [
        format!("replace -f {file}"),
        format!("label secret app {MARKER}-"),
        format!("label secret plain {MARKER}=jasm"),
        "annotate secret app jasm.codnod.io/synced-through-".to_owned(),
        "annotate --overwrite secret app jasm.codnod.io/source=v1:x:z".to_owned(),
    ] {
        let error = kubectl(&command).expect_err(&command);
        assert!(error.contains("jasm-agent-marker") && error.contains("may release secrets.jasm.codnod.io"), "{error}");
    }
    for command in [
        format!("apply -f {file}"),
        format!("apply --server-side --force-conflicts -f {file}"),
        "label secret app team=a".to_owned(),
        "annotate secret app a=b".to_owned(),
        format!("replace --force --grace-period=0 -f {file}"),
    ] {
        kubectl(&command).unwrap_or_else(|error| panic!("{error}"));
    }
    assert_eq!(stage.namespace.wait_for_secret("app").await.labels().get(MARKER), None, "made anew, as a plain one");
}

#[tokio::test]
async fn what_kubernetes_itself_takes_away_goes() {
    let surroundings = Surroundings::get().await;
    let namespace = TestNamespace::create(surroundings).await;
    let owner: ConfigMap = namespace.add(json!({"metadata": {"name": "owner"}})).await;
    let mut owned = agents("MQ==");
    owned["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid()}]);
    let _: Secret = namespace.add(owned).await;
    namespace.api::<ConfigMap>().delete("owner", &DeleteParams::foreground()).await.expect("the owner goes");
    let collected = async || namespace.secret("app").await.map_or(Ok(()), |_| Err("that it is there".to_owned()));
    try_within(COLLECTED, "the garbage collector", collected).await.unwrap_or_else(|message| panic!("{message}"));

    let _: Secret = namespace.add(agents("MQ==")).await;
    let all: Api<Namespace> = Api::all(surroundings.admin().await);
    all.delete(namespace.name(), &DeleteParams::default()).await.expect("the namespace goes");
    let gone = async || match all.get_opt(namespace.name()).await {
        Ok(None) => Ok(()),
        found => Err(format!("{found:?}")),
    };
    try_within(COLLECTED, "the end of the namespace", gone).await.unwrap_or_else(|message| panic!("{message}"));
}
