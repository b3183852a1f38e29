//! A proxy in front of the API server that one agent goes through, and that makes trouble where a test asks for it.
//!
//! The agent speaks plain HTTP to it. What is not in trouble goes on over TLS as it came, the agent's own token with
//! it, and comes back as it was sent, a watch piece by piece.

mod refusal;
mod rule;
mod server;
mod watches;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use super::control_plane::ControlPlane;
use super::node::AgentNode;
use super::own_thread::Server;
use super::unique;
use super::wait::{DEADLINE, eventually};
pub(crate) use refusal::Refusal;
use rule::{Asked, Rule};
pub(crate) use rule::{Match, Trouble};
use watches::{Flow, Watches};

/// A proxy of one test. It ends when this is dropped, with all connections and all that it still holds.
#[derive(Debug)]
pub(crate) struct ApiProxy {
    shared: Arc<Shared>,
    server: Server,
}

/// What the test and the server's thread both touch.
#[derive(Debug, Default)]
struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    asked: Vec<Asked>,
    rules: Vec<Arc<Rule>>,
    watches: Watches,
}

impl ApiProxy {
    /// A proxy in front of this control plane's API server, which makes no trouble yet.
    pub(crate) fn start(control_plane: &ControlPlane) -> Self {
        let shared = Arc::new(Shared::default());
        let (served, kubeconfig) = (Arc::clone(&shared), without_credentials(control_plane));
        let server = Server::start(move |listener| server::serve(listener, served, kubeconfig));
        Self { shared, server }
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> &str {
        self.server.url()
    }

    /// Writes a kubeconfig of the node's agent that differs from [`AgentNode::kubeconfig`] in the address alone.
    pub(crate) fn kubeconfig(&self, node: &AgentNode) -> PathBuf {
        let (direct, file) = (node.kubeconfig(), node.folder().join("kubeconfig-through-proxy"));
        let text = std::fs::read(direct).unwrap_or_else(|error| panic!("cannot read {}: {error}", direct.display()));
        let mut config: Value = serde_json::from_slice(&text).expect("an agent's kubeconfig is JSON");
        config["clusters"][0]["cluster"] = json!({"server": self.url()});
        std::fs::write(&file, config.to_string())
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
        file
    }

    // ---- trouble ----

    /// Makes trouble for such requests until the answer is dropped. Of several that fit, the newest takes effect.
    pub(crate) fn fail(&self, matches: Match, trouble: Trouble) -> Outage<'_> {
        let rule = Arc::new(Rule::new(matches, trouble));
        self.state().rules.push(Arc::clone(&rule));
        Outage { proxy: self, rule }
    }

    /// Ends the connections of all watches that are open.
    pub(crate) async fn cut_watches(&self) {
        self.turn_watches(Flow::Cut).await;
    }

    /// From now on nothing comes out of the watches that are open; their connections stay.
    pub(crate) async fn silence_watches(&self) {
        self.turn_watches(Flow::Silent).await;
    }

    /// Waits for an open watch first: without one there would be no trouble at all.
    async fn turn_watches(&self, flow: Flow) {
        eventually("an open watch", async || match self.state().watches.turn(flow) {
            0 => Err("none".to_owned()),
            _ => Ok(()),
        })
        .await;
    }

    // ---- what was asked ----

    /// How many such requests have arrived, whatever became of them. `after` and `times` do not count here.
    pub(crate) fn calls(&self, matches: &Match) -> usize {
        self.state().asked.iter().filter(|asked| matches.fits(asked)).count()
    }

    /// Waits until at least `wanted` such requests have arrived.
    pub(crate) async fn wait_for_calls(&self, matches: &Match, wanted: usize) {
        eventually(&format!("{wanted} requests like {matches:?}"), async || match self.calls(matches) {
            enough if enough >= wanted => Ok(()),
            found => Err(format!("{found}; all that was asked: {:#?}", self.state().asked)),
        })
        .await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the proxy's state")
    }

    /// Counts a request; returns what shall befall it.
    fn note(&self, asked: &Asked) -> Option<Arc<Rule>> {
        let mut state = self.state();
        state.asked.push(asked.clone());
        // What a newer rule takes, an older one does not see.
        state.rules.iter().rev().find(|rule| rule.is_due(asked)).map(Arc::clone)
    }
}

/// Trouble that lasts from [`ApiProxy::fail`] to [`Outage::heal`], or until it is dropped.
#[must_use = "trouble ends when this is dropped"]
#[derive(Debug)]
pub(crate) struct Outage<'a> {
    proxy: &'a ApiProxy,
    rule: Arc<Rule>,
}

impl Outage<'_> {
    /// How many requests it has befallen so far. One whose answer is held or lost counts from when that is complete.
    pub(crate) fn count(&self) -> usize {
        *self.rule.hits.borrow()
    }

    /// Waits until it has befallen so many.
    pub(crate) async fn hit(&self, wanted: usize) {
        let mut hits = self.rule.hits.subscribe();
        if tokio::time::timeout(DEADLINE, hits.wait_for(|hits| *hits >= wanted)).await.is_err() {
            panic!("waited {DEADLINE:?} for {wanted} requests to meet {:?}; found {}", self.rule, self.count());
        }
    }

    /// Lets everything that waits go on, and makes no more trouble.
    pub(crate) fn heal(self) {}
}

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        self.rule.healed.send_replace(true);
        self.proxy.state().rules.retain(|rule| !Arc::ptr_eq(rule, &self.rule));
    }
}

/// A kubeconfig for the proxy's own way to the API server, which is nobody's: each request brings its token.
fn without_credentials(control_plane: &ControlPlane) -> PathBuf {
    let file = control_plane.folder(&unique("proxy")).join("kubeconfig");
    let content = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "proxy",
        "contexts": [{"name": "proxy", "context": {"cluster": "test", "user": "nobody"}}],
        "clusters": [{"name": "test", "cluster": {
            "server": control_plane.api_server(),
            "certificate-authority": control_plane.ca_file(),
        }}],
        "users": [{"name": "nobody", "user": {}}],
    });
    std::fs::write(&file, content.to_string())
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
    file
}
