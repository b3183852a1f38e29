//! The cluster that `KUBECONFIG` names, with the agent installed by kubectl.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use super::PATIENCE;
use crate::support::control_plane::client;
use crate::support::wait::try_within;
use crate::support::{object, unique};

/// Where the agent is.
pub(super) const SYSTEM: &str = "jasm-system";
/// The overlay that most tests install.
pub(super) const OVERLAY: &str = "tests/e2e/install";

/// The node that the tests look at, once all is prepared.
static PREPARED: OnceLock<String> = OnceLock::new();

/// The cluster, with the agent ready.
pub(super) struct Cluster {
    pub(super) client: Client,
    node: &'static str,
}

/// A namespace of one test; it goes when this is dropped.
pub(super) struct OwnNamespace {
    name: String,
    pub(super) client: Client,
}

impl Cluster {
    /// The cluster with the store, the node's shell and the agent of [`OVERLAY`], ready.
    pub(super) async fn installed() -> Self {
        let cluster = Self::prepared().await;
        install(OVERLAY);
        cluster
    }

    /// The same, whatever is installed or not.
    pub(super) async fn prepared() -> Self {
        let node = PREPARED.get_or_init(prepare);
        let kubeconfig = std::env::var_os("KUBECONFIG").expect("KUBECONFIG names a cluster: make e2e sets it");
        let client = client(Path::new(&kubeconfig)).await;
        let client = client.unwrap_or_else(|error| panic!("no client for KUBECONFIG: {error}"));
        let cluster = Self { client, node };
        cluster.reset_store().await;
        cluster
    }

    /// A namespace with a name that the policy admits.
    pub(super) async fn namespace(&self) -> OwnNamespace {
        let namespace = OwnNamespace { name: unique("e2e"), client: self.client.clone() };
        let all: Api<Namespace> = Api::all(self.client.clone());
        // By the label, tests/e2e.sh finds those of a test that was cut off.
        let labels = json!({"jasm.codnod.io/e2e": "test"});
        let new = object(json!({"metadata": {"name": namespace.name, "labels": labels}}));
        all.create(&PostParams::default(), &new).await.unwrap_or_else(|error| panic!("no namespace: {error}"));
        kubectl(&["wait", "-n", &namespace.name, "--for=create", "--timeout=30s", "serviceaccount/default"]);
        namespace
    }

    /// The name of the node that the tests look at.
    pub(super) fn node(&self) -> &str {
        self.node
    }

    /// The agent's pod on the node of the tests that is ready; there is one after a roll-out.
    pub(super) async fn agent(&self) -> Pod {
        try_within(PATIENCE, "a ready agent", async || {
            let agents = self.agents().await;
            let here = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(self.node());
            let ready = agents.into_iter().find(|pod| here(pod) && is_ready(pod));
            ready.ok_or_else(|| "none".to_owned())
        })
        .await
        .unwrap_or_else(|message| panic!("{message}"))
    }

    /// All pods of the agent that are not on their way out.
    pub(super) async fn agents(&self) -> Vec<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM);
        let chosen = ListParams::default().labels("app.kubernetes.io/component=agent");
        let list = pods.list(&chosen).await.unwrap_or_else(|error| panic!("no list of agents: {error}"));
        list.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
    }
}

/// Whether the kubelet says that the pod is ready.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// How often the agent's container was started again.
pub(super) fn restarts(agent: &Pod) -> i32 {
    let statuses = agent.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.and_then(|all| all.first()).map_or(0, |one| one.restart_count)
}

/// Applies an overlay as a user would, and waits for the agents; returns what kubectl warned of.
pub(super) fn install(overlay: &str) -> String {
    let mut apply = Command::new("kubectl");
    apply.args(["apply", "-k", overlay]);
    let (_, warnings) = run(apply, "").unwrap_or_else(|message| panic!("kubectl apply -k {overlay}: {message}"));
    roll_out();
    warnings
}

/// Waits until each node has a ready agent of the newest revision.
pub(super) fn roll_out() {
    kubectl(&["rollout", "status", "-n", SYSTEM, "daemonset/jasm-agent", "--timeout=120s"]);
}

/// What every test needs, once in a run; the name of the node.
fn prepare() -> String {
    let allowed = std::env::var_os("JASM_E2E").is_some();
    assert!(allowed, "these tests replace what is installed on the cluster of KUBECONFIG: run them by make e2e");
    // Both: the node that the tests look at, and where their pods go.
    let nodes = kubectl(&["get", "nodes", "-o", "name"]);
    let node = nodes.lines().next_back().expect("a cluster has a node").trim_start_matches("node/").to_owned();
    kubectl(&["label", "--overwrite", "node", &node, "jasm.codnod.io/e2e=here"]);
    kubectl(&["apply", "-f", "docs/try-it/emulator.yaml", "-f", "tests/e2e/surroundings.yaml"]);
    kubectl(&["rollout", "status", "-n", "emulator", "deployment/aws", "--timeout=300s"]);
    kubectl(&["rollout", "status", "-n", "jasm-e2e", "deployment/store", "--timeout=300s"]);
    kubectl(&["wait", "-n", "jasm-e2e", "--for=condition=Ready", "--timeout=120s", "pod/node"]);
    node
}

/// kubectl in the project's folder; its stdout.
///
/// # Panics
/// With kubectl's own message.
pub(super) fn kubectl(arguments: &[&str]) -> String {
    try_kubectl(arguments, "").unwrap_or_else(|message| panic!("{message}"))
}

/// The same with a stdin, and with an error in place of a panic.
pub(super) fn try_kubectl(arguments: &[&str], stdin: &str) -> Result<String, String> {
    let mut command = Command::new("kubectl");
    command.args(arguments);
    run(command, stdin).map(|(said, _)| said).map_err(|message| format!("kubectl {}: {message}", arguments.join(" ")))
}

/// Runs a command in the project's folder to its end; its stdout and stderr, or an error with its stderr.
pub(super) fn run(mut command: Command, stdin: &str) -> Result<(String, String), String> {
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = || -> std::io::Result<_> {
        let mut child = command.spawn()?;
        child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(stdin.as_bytes()))?;
        child.wait_with_output()
    };
    // The watches of a test go on meanwhile.
    let output = tokio::task::block_in_place(ran).map_err(|error| format!("cannot be run: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok((text(&output.stdout), text(&output.stderr))),
        false => Err(format!("{}: {}", output.status, text(&output.stderr).trim())),
    }
}

impl OwnNamespace {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The path of a source that the policy admits pods of this namespace to.
    pub(super) fn path(&self, name: &str) -> String {
        format!("/e2e/{}/{name}", self.name)
    }

    /// Objects of one type in it.
    pub(super) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Creates an object in it.
    pub(super) async fn create<K>(&self, json: serde_json::Value)
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + std::fmt::Debug,
        K: serde::Serialize + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        let new: K = object(json);
        let name = new.name_any();
        let created = self.api::<K>().create(&PostParams::default(), &new).await;
        created.unwrap_or_else(|error| panic!("{name} was not created: {error}"));
    }

    /// Removes all pods at once, and waits until they are gone.
    pub(super) async fn clear(&self) {
        let pods = self.api::<Pod>();
        let all = ListParams::default();
        pods.delete_collection(&DeleteParams::default().grace_period(0), &all)
            .await
            .unwrap_or_else(|error| panic!("pods stay: {error}"));
        try_within(PATIENCE, "the end of all pods", async || {
            let left = pods.list_metadata(&all).await.map_err(|error| error.to_string())?.items.len();
            if left == 0 { Ok(()) } else { Err(format!("{left} pods")) }
        })
        .await
        .unwrap_or_else(|message| panic!("{message}"));
    }
}

impl Drop for OwnNamespace {
    fn drop(&mut self) {
        let arguments = ["delete", "namespace", &self.name, "--wait=false"];
        let _ = Command::new("kubectl").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
