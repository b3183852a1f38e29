//! What the agent does when the rights and policies that it stands on are taken away, and how an install lives.
//!
//! These break what all other tests share, so that they have a control plane of their own.

use http::StatusCode;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use crate::support::agent::{Agent, AgentBuilder};
use crate::support::audit::all_requests;
use crate::support::cluster::TestNamespace;
use crate::support::control_plane::project;
use crate::support::node::{AGENT_NAMESPACE, AgentNode, agents_secret};
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
    scene.without_the_policy("jasm-agent-marker").await;
    scene.without_the_policy_on_tokens().await;
    scene.each_policy_is_what_refuses_its_breach().await;
    scene.without_the_ownership_policy_under_a_running_agent().await;
    scene.an_agent_that_starts_without_policies_is_never_ready().await;
    scene.labelled_namespaces_alone().await;
    scene.rights_in_chosen_namespaces_alone().await;
    scene.install_update_and_removal().await;

    drop(agent);
}

/// In the order in which they are taken away: without the one of ownership an agent would be the last to be told.
const POLICIES: [&str; 5] =
    ["jasm-agent-shape", "jasm-agent-node", "jasm-agent-namespaces", "jasm-agent-marker", "jasm-agent-ownership"];

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
        let node = self.builder.node();
        let secrets: Api<Secret> = Api::namespaced(node.client(self.surroundings).await, namespace.name());
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        eventually("the right to be gone", async || {
            match secrets.replace("none", &dry_run, &object(agents_secret(node.name(), "none"))).await {
                Err(error) if error.to_string().contains("cannot update") => Ok(()),
                outcome => Err(format!("{outcome:?}")),
            }
        })
        .await;
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

    /// Only an agent that asks stores as pods needs it, and has the right that it confines.
    async fn without_the_policy_on_tokens(&self) {
        self.kubectl(&["apply", "--kustomize", "tests/layers/pod-identity"]);
        let providers = r#"{"providers":[{"name":"aws","kind":"aws-secretsmanager","region":"us-east-1","identity":"pod","allowInsecure":true}]}"#;
        let as_pods = AgentBuilder::new(self.surroundings, self.store).await.policy(ALLOW_ALL).providers(providers);
        let accounts: Api<ServiceAccount> =
            Api::namespaced(as_pods.node().client(self.surroundings).await, AGENT_NAMESPACE);
        let spec = json!({"audiences": ["jasm-admission-check"]});
        let request: TokenRequest = object(json!({"metadata": {}, "spec": spec}));
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let asked = async || {
            let asked = accounts.create_token_request("jasm-agent", &dry_run, &request).await;
            asked.map(|_| ()).map_err(|error| error.to_string())
        };
        eventually("a refusal by jasm-pod-tokens", async || match asked().await {
            Err(said) if said.contains("ValidatingAdmissionPolicy 'jasm-pod-tokens'") => Ok(()),
            outcome => Err(format!("{outcome:?}")),
        })
        .await;
        self.kubectl(&["delete", "validatingadmissionpolicybinding", "jasm-pod-tokens"]);
        eventually("a token that only jasm-pod-tokens refuses", asked).await;
        let mut as_itself = self.builder.spawn();
        as_itself.ready().await;
        let mut late = as_pods.spawn();
        eventually("the agent to miss jasm-pod-tokens", async || {
            let named = late.log().iter().any(|line| line["policy"] == "jasm-pod-tokens" && line["level"] == "ERROR");
            if named { Ok(()) } else { Err(late.tail()) }
        })
        .await;
        assert_eq!(late.get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
        self.kubectl(&["apply", "--kustomize", "tests/layers/pod-identity"]);
        late.ready().await;
        for file in ["cluster-role", "policy-tokens"] {
            self.kubectl(&["delete", "--filename", &format!("rbac/pod-identity/{file}.yaml")]);
        }
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
        for policy in POLICIES {
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

    /// What each policy is there for: refused while it is in force, by its name, and stored when it is not.
    async fn each_policy_is_what_refuses_its_breach(&self) {
        let namespace = self.namespace().await;
        self.kubectl(&[
            "create",
            "rolebinding",
            "alice",
            "--clusterrole=admin",
            "--user=alice",
            "-n",
            namespace.name(),
        ]);
        for policy in POLICIES {
            let refused = async || match self.breach(policy, &namespace).await {
                Err(said) if said.contains(&format!("ValidatingAdmissionPolicy '{policy}'")) => Ok(()),
                outcome => Err(format!("{outcome:?}")),
            };
            eventually(&format!("a refusal by {policy}"), refused).await;
            self.kubectl(&["delete", "validatingadmissionpolicybinding", policy]);
            let awaited = format!("the write to be stored without {policy}");
            eventually(&awaited, async || self.breach(policy, &namespace).await).await;
            self.kubectl(&["apply", "--kustomize", "rbac"]);
            eventually(&format!("a refusal by {policy}"), refused).await;
        }
        self.until_ready(true).await;
    }

    /// A write that only this policy refuses. No dry run.
    async fn breach(&self, policy: &str, namespace: &TestNamespace) -> Result<(), String> {
        let node = self.builder.node();
        let name = unique("breach");
        let plain = namespace.add_secret(&name, &[("A", "theirs")]).await;
        let new = unique("new");
        let mut secret = agents_secret(node.name(), &new);
        let mut at = namespace.name();
        match policy {
            "jasm-agent-marker" => {
                let label =
                    ["label", "secret", &name, "jasm.codnod.io/managed-by=jasm", "--as=alice", "-n", namespace.name()];
                return self.surroundings.kubectl(&label).map(|_| ());
            }
            "jasm-agent-ownership" => secret["metadata"]["name"] = json!(name),
            "jasm-agent-shape" => secret["metadata"]["labels"]["argocd.argoproj.io/secret-type"] = json!("cluster"),
            "jasm-agent-node" => secret["metadata"]["annotations"]["jasm.codnod.io/node"] = json!("another"),
            _ => at = "kube-public",
        }
        let secrets: Api<Secret> = Api::namespaced(node.client(self.surroundings).await, at);
        let sent = match policy {
            "jasm-agent-ownership" => secrets.replace(&name, &PostParams::default(), &object(secret)).await,
            _ => secrets.create(&PostParams::default(), &object(secret)).await,
        };
        if sent.is_err() {
            assert_eq!(namespace.wait_for_secret(&name).await, plain, "not a byte changed");
        }
        sent.map(|_| ()).map_err(|error| error.to_string())
    }

    /// The component `labelled-namespaces`.
    async fn labelled_namespaces_alone(&self) {
        let (open, closed) = (self.namespace().await, self.namespace().await);
        self.kubectl(&["label", "namespace", open.name(), "jasm.codnod.io/enabled=true"]);
        self.kubectl(&["label", "namespace", closed.name(), "jasm.codnod.io/enabled=false"]);
        self.kubectl(&["apply", "--kustomize", "tests/layers/labelled-namespaces"]);
        let node = self.builder.node();
        let secrets: Api<Secret> = Api::namespaced(node.client(self.surroundings).await, closed.name());
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        eventually("a refusal for want of a label", async || {
            match secrets.create(&dry_run, &object(agents_secret(node.name(), "app"))).await {
                Err(error) if error.to_string().contains("lacks the label jasm.codnod.io/enabled=true") => Ok(()),
                outcome => Err(format!("{outcome:?}")),
            }
        })
        .await;
        // Labelled, and protected by the patch.
        let protected = TestNamespace::named(self.surroundings, "argocd").await;
        self.kubectl(&["label", "namespace", protected.name(), "jasm.codnod.io/enabled=true"]);
        let secrets: Api<Secret> = Api::namespaced(node.client(self.surroundings).await, protected.name());
        let refused = secrets.create(&dry_run, &object(agents_secret(node.name(), "app"))).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("is protected")));

        let mut agent = self.builder.spawn();
        agent.ready().await;
        let path = self.store.seed("config", r#"{"A":"1"}"#).await;
        let pod = closed.pod("web").on(node).asks(&path, "app").create().await;
        let note = closed.wait_for_event(&pod, "SecretWriteFailed").await.note.unwrap_or_default();
        assert!(
            note.contains("lacks the label jasm.codnod.io/enabled=true") && note.contains("docs/admission.md"),
            "{note}"
        );
        open.pod("web").on(node).asks(&path, "app").create().await;
        open.wait_for_data("app", [("A", "1")]).await;
        assert_eq!(closed.secret("app").await, None);
        assert_eq!(agent.get("/readyz").await.status, StatusCode::OK);
        self.kubectl(&["label", "--overwrite", "namespace", closed.name(), "jasm.codnod.io/enabled=true"]);
        let labelled: Api<Secret> = Api::namespaced(node.client(self.surroundings).await, closed.name());
        eventually("the label to count", async || {
            let sent = labelled.create(&dry_run, &object(agents_secret(node.name(), "app"))).await;
            sent.map(drop).map_err(|error| error.to_string())
        })
        .await;
        closed.pod("next").on(node).asks(&path, "app").create().await;
        closed.wait_for_data("app", [("A", "1")]).await;
        self.kubectl(&["apply", "--kustomize", "rbac"]);
    }

    /// The component `per-namespace`, and `kubectl create rolebinding` for each namespace as its file says.
    async fn rights_in_chosen_namespaces_alone(&self) {
        let (chosen, other) = (self.namespace().await, self.namespace().await);
        self.kubectl(&["apply", "--kustomize", "tests/layers/per-namespace"]);
        self.kubectl(&["delete", "clusterrolebinding", "jasm-agent"]);
        let component =
            std::fs::read_to_string(project().join("daemonset/components/per-namespace/kustomization.yaml"));
        let component = component.expect("the component");
        let command = component.lines().find_map(|line| line.strip_prefix("#   kubectl create rolebinding"));
        let command = command.expect("the command for a namespace").replace("team-a", chosen.name());
        self.surroundings
            .bash(&format!("kubectl create rolebinding{command}"))
            .unwrap_or_else(|error| panic!("{error}"));

        let builder = AgentBuilder::new(self.surroundings, self.store).await.policy(ALLOW_ALL);
        let builder = builder.env("JASM_WORKLOAD_ANNOTATIONS", "false");
        let mut agent = builder.spawn();
        agent.ready().await;
        let path = self.store.seed("config", r#"{"A":"1"}"#).await;
        let pod = chosen.pod("web").on(builder.node()).asks(&path, "app").create().await;
        chosen.wait_for_data("app", [("A", "1")]).await;
        chosen.wait_for_event(&pod, "SecretSyncSuccess").await;
        let refused = other.pod("web").on(builder.node()).asks(&path, "app").create().await;
        let note = other.wait_for_event(&refused, "SecretWriteFailed").await.note.unwrap_or_default();
        assert!(note.contains("may not update secrets in this namespace"), "{note}");
        eventually("the missing right in the log and the metrics", async || {
            let named =
                agent.log().iter().any(|line| line["action"] == "WriteRbac" && line["namespace"] == other.name());
            let metrics = agent.get("/metrics").await.text();
            let counted = metrics.contains(r#"jasm_requests_waiting{reason="SecretWriteFailed"} 1"#);
            if named && counted { Ok(()) } else { Err(format!("{named} {counted} {}", agent.tail())) }
        })
        .await;
        assert_eq!(other.secret("app").await, None);
        assert_eq!(agent.get("/readyz").await.status, StatusCode::OK, "a refusal elsewhere is no unreadiness");
        self.kubectl(&["delete", "clusterrole,clusterrolebinding", "jasm-agent-pods"]);
        self.kubectl(&["delete", "rolebinding", "jasm-agent", "--namespace=jasm-system"]);
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

/// What users are told to take, in a namespace of the level `restricted`. Nothing is stored; what needs the Prometheus
/// operator's types is rendered alone.
#[tokio::test]
async fn every_overlay_and_component_is_admitted_without_a_warning() {
    let surroundings = Surroundings::get().await;
    let restricted = std::fs::read_to_string(project().join("daemonset/base/namespace.yaml")).expect("a namespace");
    let elsewhere = surroundings.folder(&unique("elsewhere")).join("namespace.yaml");
    std::fs::write(&elsewhere, restricted.replace("jasm-system", "elsewhere")).expect("a namespace");
    surroundings.kubectl(&["apply", "--filename", &elsewhere.display().to_string()]).expect("a namespace");
    surroundings
        .kubectl(&["apply", "--filename", "daemonset/components/central/masters/namespace.yaml"])
        .expect("masters'");
    // The component journald gives the level up, and says so: its folder is the node's.
    let cases = [
        ("daemonset", false),
        ("daemonset/example", false),
        ("docs/try-it", false),
        ("tests/layers/pods-only", false),
        ("tests/layers/per-namespace", false),
        ("tests/layers/labelled-namespaces", false),
        ("tests/layers/central", false),
        ("tests/layers/central-bound", false),
        ("tests/layers/central-janitor", false),
        ("tests/layers/central-elsewhere", false),
        ("tests/layers/elsewhere", false),
        ("daemonset/overlays/journald", true),
        ("tests/layers/admitted", true),
    ];
    for (overlay, has_journald) in cases {
        let (said, warnings) = surroundings
            .kubectl_warnings(&["apply", "--dry-run=server", "-k", overlay])
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(said.contains("daemonset.apps/jasm-agent created"), "{overlay}: {said}");
        for policy in POLICIES {
            assert!(said.contains(&format!("/{policy} ")), "{overlay} lacks {policy}: {said}");
        }
        let expected =
            |warning: &String| has_journald && warning.contains("hostPath") && !warning.contains("allowPrivilege");
        let unexpected: Vec<_> = warnings.iter().filter(|warning| !expected(warning)).collect();
        assert!(unexpected.is_empty(), "{overlay}: {unexpected:?}");
        assert_eq!(warnings.len(), usize::from(has_journald), "{overlay}: {warnings:?}");
    }
    let rendered =
        surroundings.kubectl(&["kustomize", "tests/layers/rendered"]).unwrap_or_else(|error| panic!("{error}"));
    for kind in ["PodMonitor", "PrometheusRule", "NetworkPolicy", "DaemonSet"] {
        assert!(rendered.contains(&format!("kind: {kind}\n")), "{kind} is not rendered");
    }
}

fn rendered(surroundings: &Surroundings, layer: &str) -> Vec<Value> {
    let rendered = surroundings.kubectl(&["kustomize", layer]).unwrap_or_else(|error| panic!("{error}"));
    let documents = serde_yaml::Deserializer::from_str(&rendered);
    documents.map(|document| serde::Deserialize::deserialize(document).expect("YAML")).collect()
}

/// The rights on masters stay among them, and are those of accounts that are elsewhere.
#[tokio::test]
async fn central_mode_in_another_namespace_leaves_the_masters_where_they_are() {
    let objects = rendered(Surroundings::get().await, "tests/layers/central-elsewhere");
    let text = |object: &Value, path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut found: Vec<_> = objects
        .iter()
        .filter(|object| !text(object, "/roleRef/kind").is_empty())
        .map(|object| {
            assert_eq!(text(object, "/subjects/0/namespace"), "elsewhere", "{object}");
            (text(object, "/metadata/namespace"), text(object, "/subjects/0/name"), text(object, "/roleRef/name"))
        })
        .collect();
    found.sort();
    let of = |namespace: &str, account: &str, role: &str| (namespace.to_owned(), account.to_owned(), role.to_owned());
    let want = [
        of("", "jasm-agent", "jasm-agent"),
        of("", "jasm-janitor", "jasm-janitor"),
        of("jasm-masters", "jasm-agent", "jasm-agent-masters"),
        of("jasm-masters", "jasm-janitor", "jasm-janitor"),
    ];
    assert_eq!(found, want);
    for name in ["jasm-agent", "jasm-janitor"] {
        let runs = |object: &&Value| matches!(object["kind"].as_str(), Some("DaemonSet" | "Deployment"));
        let program = objects.iter().filter(runs).find(|object| object["metadata"]["name"] == name);
        let program = program.expect("a program");
        let image = text(program, "/spec/template/spec/containers/0/image");
        assert_eq!(text(program, "/metadata/namespace"), "elsewhere", "{name}");
        assert!(image.ends_with(concat!(":", env!("CARGO_PKG_VERSION"))), "{name}: {image}");
    }
}

/// Who is bound to what: the agent's account, where it is installed, and no right to write in all namespaces.
#[tokio::test]
async fn the_component_per_namespace_leaves_no_right_to_write_everywhere() {
    let surroundings = Surroundings::get().await;
    for (layer, namespace, workloads) in
        [("tests/layers/elsewhere", "elsewhere", true), ("tests/layers/per-namespace", "jasm-system", false)]
    {
        let objects = rendered(surroundings, layer);
        let bindings =
            objects.iter().filter(|object| object["kind"].as_str().is_some_and(|kind| kind.ends_with("RoleBinding")));
        let mut found = Vec::new();
        for binding in bindings {
            assert_eq!(
                binding["subjects"],
                json!([{"kind": "ServiceAccount", "name": "jasm-agent", "namespace": namespace}])
            );
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            found.push((
                text(&binding["kind"]),
                text(&binding["roleRef"]["name"]),
                text(&binding["metadata"]["namespace"]),
            ));
        }
        found.sort();
        let of = |kind: &str, role: &str, place: &str| (kind.to_owned(), role.to_owned(), place.to_owned());
        let mut want =
            vec![of("ClusterRoleBinding", "jasm-agent-pods", ""), of("RoleBinding", "jasm-agent", namespace)];
        if workloads {
            want.insert(1, of("ClusterRoleBinding", "jasm-agent-workloads", ""));
        }
        assert_eq!(found, want, "{layer}");
        let roles = objects.iter().filter(|object| object["kind"] == "ClusterRole");
        let reads_workloads = roles.filter(|role| role.to_string().contains("deployments")).count();
        assert_eq!(reads_workloads > 0, workloads, "{layer}");
    }
}
