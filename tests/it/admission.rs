//! What the agent does when the rights and policies that it stands on are taken away, and how an install lives.
//!
//! These break what all other tests share, so that they have a control plane of their own.

use http::StatusCode;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use crate::support::agent::{Agent, AgentBuilder};
use crate::support::audit::all_requests;
use crate::support::cluster::TestNamespace;
use crate::support::control_plane::project;
use crate::support::node::{AGENT_NAMESPACE, AgentNode};
use crate::support::scene::{ALLOW_ALL, later_than};
use crate::support::store::Store;
use crate::support::surroundings::{Surroundings, checks};
use crate::support::unique;
use crate::support::wait::eventually;

/// In one test, since each start of a control plane takes seconds; from the least to the most that is broken.
#[tokio::test]
async fn an_agent_lives_through_the_loss_of_its_rights_and_policies() {
    let surroundings = Surroundings::own().await;
    let store = Store::start(&surroundings).await;
    let builder = AgentBuilder::new(&surroundings, &store).await.policy(ALLOW_ALL);
    let mut agent = builder.spawn();
    agent.ready().await;
    let scene = Broken { surroundings: &surroundings, store: &store, builder: &builder, agent: &agent };

    scene.without_the_cluster_role().await;
    scene.without_the_policy("jasm-agent-shape").await;
    scene.without_the_policy("jasm-agent-node").await;
    scene.without_the_policy("jasm-agent-namespaces").await;
    scene.without_the_ownership_policy_under_a_running_agent().await;
    scene.an_agent_that_starts_without_policies_is_never_ready().await;
    scene.rights_in_chosen_namespaces_alone().await;
    scene.install_update_and_removal().await;

    drop(agent);
}

struct Broken<'a> {
    surroundings: &'a Surroundings,
    store: &'a Store,
    builder: &'a AgentBuilder,
    agent: &'a Agent,
}

impl Broken<'_> {
    async fn namespace(&self) -> TestNamespace {
        TestNamespace::create(self.surroundings).await
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        self.surroundings.kubectl(arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    async fn until_ready(&self, ready: bool) -> String {
        let want = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        eventually(&format!("the agent to answer {want}"), async || {
            let reply = self.agent.get("/readyz").await;
            if reply.status == want { Ok(reply.text()) } else { Err(format!("{} {}", reply.status, self.agent.tail())) }
        })
        .await
    }

    async fn restore(&self) {
        self.kubectl(&["apply", "--kustomize", "rbac"]);
        self.until_ready(true).await;
    }

    /// The agent loses its right to write, and gets it back.
    async fn without_the_cluster_role(&self) {
        let namespace = self.namespace().await;
        let path = self.store.seed("config", r#"{"A":"1"}"#).await;
        self.kubectl(&[
            "patch",
            "clusterrole",
            "jasm-agent",
            "--type=json",
            "--patch",
            r#"[{"op": "replace", "path": "/rules/1/verbs", "value": ["create"]}]"#,
        ]);
        let pod = namespace.pod("web").on(self.builder.node()).asks(&path, "app").create().await;
        let note = namespace.wait_for_event(&pod, "SecretWriteFailed").await.note.unwrap_or_default();
        assert!(note.contains("may not update secrets") && note.contains("ClusterRole jasm-agent"), "{note}");
        self.kubectl(&["apply", "--kustomize", "rbac"]);
        namespace.wait_for_data("app", [("A", "1")]).await;
    }

    /// The check notices at the latest after 10 minutes; a restarted agent at once.
    async fn without_the_policy(&self, policy: &str) {
        self.take_away(policy).await;
        let mut late = self.builder.spawn();
        eventually(&format!("the agent to miss {policy}"), async || {
            let named = late.log().iter().any(|line| line["policy"] == policy && line["level"] == "ERROR");
            if named { Ok(()) } else { Err(late.tail()) }
        })
        .await;
        assert_eq!(late.get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(late.get("/metrics").await.text().contains("jasm_admission_enforced 0"));
        self.kubectl(&["apply", "--kustomize", "rbac"]);
        late.ready().await;
    }

    async fn without_the_ownership_policy_under_a_running_agent(&self) {
        let namespace = self.namespace().await;
        let path = self.store.seed("config", r#"{"A":"new"}"#).await;
        let old = self.store.seed("old", r#"{"A":"old"}"#).await;
        namespace.pod("first").on(self.builder.node()).asks(&old, "own").create().await;
        let own = namespace.wait_for_data("own", [("A", "old")]).await;
        let foreign = namespace.add_secret("foreign", &[("A", "theirs")]).await;
        later_than(&own).await;
        self.take_away("jasm-agent-ownership").await;

        let on_foreign = namespace.pod("on-foreign").on(self.builder.node()).asks(&path, "foreign").create().await;
        let note = namespace.wait_for_event(&on_foreign, "SecretWriteFailed").await.note.unwrap_or_default();
        assert!(note.contains("admission policy jasm-agent-ownership is not in force"), "{note}");
        let on_own = namespace.pod("on-own").on(self.builder.node()).asks(&path, "own").create().await;
        namespace.wait_for_event(&on_own, "SecretWriteFailed").await;
        self.until_ready(false).await;
        let metrics = self.agent.get("/metrics").await.text();
        assert!(metrics.contains("jasm_admission_enforced 0"), "{metrics}");
        assert_eq!(namespace.wait_for_secret("foreign").await, foreign, "not a byte changed");
        assert_eq!(namespace.wait_for_secret("own").await, own, "not a byte changed");

        self.restore().await;
        namespace.wait_for_event(&on_foreign, "SecretConflict").await;
        namespace.wait_for_data("own", [("A", "new")]).await;
        assert_eq!(namespace.wait_for_secret("foreign").await, foreign);
    }

    /// Takes a policy out of force, and waits until the API server lets pass what only that policy refuses.
    async fn take_away(&self, policy: &str) {
        self.kubectl(&["delete", "validatingadmissionpolicybinding", policy]);
        let node = self.builder.node();
        let (_, check) = checks(node.name()).into_iter().find(|(name, _)| *name == policy).expect("a policy");
        let secrets: Api<Secret> = Api::namespaced(node.client(self.surroundings).await, AGENT_NAMESPACE);
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        eventually(&format!("a write that only {policy} refuses to be let through"), async || {
            let sent = secrets.create(&dry_run, &object(check.clone())).await;
            sent.map(|_| ()).map_err(|error| error.to_string())
        })
        .await;
    }

    async fn an_agent_that_starts_without_policies_is_never_ready(&self) {
        for policy in ["jasm-agent-shape", "jasm-agent-node", "jasm-agent-namespaces", "jasm-agent-ownership"] {
            self.take_away(policy).await;
        }
        let namespace = self.namespace().await;
        let builder = AgentBuilder::new(self.surroundings, self.store).await.policy(ALLOW_ALL);
        let late = builder.spawn();
        let path = self.store.seed("config", r#"{"A":"1"}"#).await;
        let pod = namespace.pod("web").on(builder.node()).asks(&path, "app").create().await;
        namespace.wait_for_event(&pod, "SecretWriteFailed").await;
        assert_eq!(late.get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
        let all = all_requests(self.surroundings).await;
        let stored = all.iter().filter(|request| request.node == builder.node().name());
        let stored = stored.filter(|request| request.resource == "secrets" && !request.dry_run).count();
        assert_eq!((stored, self.store.calls(&path)), (0, 0), "nothing is written, nothing is fetched");
        self.kubectl(&["apply", "--kustomize", "rbac"]);
        namespace.wait_for_data("app", [("A", "1")]).await;
    }

    /// As the README says it: bindings in the namespaces that are served and in the agent's own, and pods everywhere.
    async fn rights_in_chosen_namespaces_alone(&self) {
        let (chosen, other) = (self.namespace().await, self.namespace().await);
        self.kubectl(&["delete", "clusterrolebinding", "jasm-agent"]);
        let account = format!("--serviceaccount={AGENT_NAMESPACE}:jasm-agent");
        self.kubectl(&["create", "clusterrole", "jasm-agent-pods", "--verb=list,watch", "--resource=pods"]);
        self.kubectl(&["create", "clusterrolebinding", "jasm-agent-pods", "--clusterrole=jasm-agent-pods", &account]);
        for namespace in [chosen.name(), AGENT_NAMESPACE] {
            let namespace = format!("--namespace={namespace}");
            self.kubectl(&["create", "rolebinding", "jasm-agent", "--clusterrole=jasm-agent", &account, &namespace]);
        }
        let builder = AgentBuilder::new(self.surroundings, self.store).await.policy(ALLOW_ALL);
        let mut agent = builder.spawn();
        agent.ready().await;
        let path = self.store.seed("config", r#"{"A":"1"}"#).await;
        chosen.pod("web").on(builder.node()).asks(&path, "app").create().await;
        chosen.wait_for_data("app", [("A", "1")]).await;
        other.pod("web").on(builder.node()).asks(&path, "app").create().await;
        eventually("the missing right in the log", async || {
            let named =
                agent.log().iter().any(|line| line["action"] == "WriteRbac" && line["namespace"] == other.name());
            if named { Ok(()) } else { Err(agent.tail()) }
        })
        .await;
        assert_eq!(other.secret("app").await, None);
        self.kubectl(&["delete", "clusterrole,clusterrolebinding", "jasm-agent-pods"]);
        self.kubectl(&["apply", "--kustomize", "rbac"]);
    }

    /// `kubectl apply -k daemonset`, an operator's policy, an update, and `kubectl delete -k daemonset`.
    async fn install_update_and_removal(&self) {
        let namespace = self.namespace().await;
        let path = self.store.seed("config", r#"{"A":"1"}"#).await;
        namespace.pod("web").on(self.builder.node()).asks(&path, "app").create().await;
        namespace.wait_for_secret("app").await;

        self.kubectl(&["apply", "--kustomize", "daemonset"]);
        let maps: Api<ConfigMap> = Api::namespaced(self.surroundings.admin().await, "jasm-system");
        let policy = json!({"metadata": {"name": "jasm-policy"}, "data": {"policy.yaml": ALLOW_ALL}});
        let written = maps.create(&PostParams::default(), &object(policy)).await.expect("the operator's policy");
        let again = self.kubectl(&["apply", "--kustomize", "daemonset"]);
        assert!(!again.contains("created"), "nothing is new the second time: {again}");
        let after = maps.get("jasm-policy").await.expect("still there");
        assert_eq!(after, written, "an update leaves the operator's policy alone");

        self.kubectl(&["delete", "--kustomize", "daemonset", "--wait=false"]);
        let kinds = "validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,clusterrolebindings,priorityclasses";
        let left = self.kubectl(&["get", kinds, "--output=name"]);
        assert!(!left.contains("jasm"), "{left}");
        let left = self.kubectl(&["get", "daemonsets,serviceaccounts", "--namespace=jasm-system", "--output=name"]);
        assert!(!left.contains("jasm"), "{left}");
        namespace.wait_for_data("app", [("A", "1")]).await;
    }
}

/// An overlay with `namespace:` is all that a user writes.
#[tokio::test]
async fn an_install_in_another_namespace_works() {
    let surroundings = Surroundings::get().await;
    let namespace = unique("elsewhere");
    let folder = surroundings.folder(&namespace);
    let up = "../".repeat(folder.components().count() - 1);
    let base = format!("{up}{}/daemonset/base", project().display().to_string().trim_start_matches('/'));
    let overlay = format!("namespace: {namespace}\nresources: [{base}]\n");
    std::fs::write(folder.join("kustomization.yaml"), overlay).expect("an overlay");
    let rendered = surroundings.kubectl(&["kustomize", &folder.display().to_string()]).expect("it renders");
    assert!(!rendered.contains("jasm-system"), "every namespace is rewritten");
    // Beside the install that the other tests use: only what lies in the namespace is another's.
    const OWN: [&str; 3] = ["kind: Namespace", "kind: ServiceAccount", "kind: DaemonSet"];
    let own: Vec<&str> =
        rendered.split("---\n").filter(|object| object.lines().any(|line| OWN.contains(&line))).collect();
    let file = folder.join("own.yaml");
    let binding = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: {namespace}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: jasm-agent}}\n\
         subjects: [{{kind: ServiceAccount, name: jasm-agent, namespace: {namespace}}}]\n"
    );
    std::fs::write(&file, format!("{}---\n{binding}", own.join("---\n"))).expect("its objects");
    surroundings.kubectl(&["apply", "--filename", &file.display().to_string()]).expect("it applies");

    let store = Store::start(surroundings).await;
    let node = AgentNode::create_in(surroundings, &namespace).await;
    let builder = AgentBuilder::on(node, surroundings, &store).policy(ALLOW_ALL);
    let mut agent = builder.spawn();
    agent.ready().await;
    let team = TestNamespace::create(surroundings).await;
    let path = store.seed("config", r#"{"A":"1"}"#).await;
    team.pod("web").on(builder.node()).asks(&path, "app").create().await;
    team.wait_for_data("app", [("A", "1")]).await;

    let protected = surroundings.kubectl(&["get", "secrets", "--namespace", &namespace, "--output=name"]);
    assert_eq!(protected.as_deref(), Ok(""), "the checks left nothing in the agent's own namespace");
}

fn object<K: serde::de::DeserializeOwned>(json: Value) -> K {
    serde_json::from_value(json).expect("an object of the API")
}

/// What users are told to take. Nothing is stored; what needs the Prometheus operator's types is rendered alone.
#[tokio::test]
async fn every_overlay_and_component_is_admitted() {
    let surroundings = Surroundings::get().await;
    for overlay in
        ["daemonset", "daemonset/example", "daemonset/overlays/journald", "docs/try-it", "tests/layers/admitted"]
    {
        let said = surroundings
            .kubectl(&["apply", "--dry-run=server", "-k", overlay])
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(said.contains("daemonset.apps/jasm-agent created"), "{overlay}: {said}");
    }
    let rendered =
        surroundings.kubectl(&["kustomize", "tests/layers/rendered"]).unwrap_or_else(|error| panic!("{error}"));
    for kind in ["PodMonitor", "PrometheusRule", "NetworkPolicy", "DaemonSet"] {
        assert!(rendered.contains(&format!("kind: {kind}\n")), "{kind} is not rendered");
    }
}
