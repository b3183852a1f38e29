//! What the tests stand on. Nothing here knows the agent's code: the agent is a program with an environment,
//! an HTTP port and a log; everything else is read from the API server, its audit log and the store in front of it.
//!
//! | module | holds |
//! |---|---|
//! | `control_plane` | one etcd, API server and moto, started and ended together |
//! | `surroundings` | a control plane with the project's own manifests, shared by the tests of a run |
//! | `cluster` | a test's namespace: pods, Secrets, Events |
//! | `node` | a node with an agent pod, and the token that is bound to both |
//! | `agent` | the agent's program: start, ready, log, end |
//! | `api_proxy` | a proxy between one agent and the API server: counts requests, makes trouble |
//! | `front` | what stands in front of each store: counts requests, holds answers, answers with faults |
//! | `store` | AWS as an agent talks to it: a front of the emulator |
//! | `vault` | a real Vault as an agent talks to it, with a front of its own |
//! | `azure` | a double of Azure Key Vault and its login, under their real host names |
//! | `audit` | the API server's audit log |
//! | `canary` | looks for secret values in text, in every form they may take |
//! | `scene` | what most tests begin with: all of the above, ready |
//! | `connect_proxy` | a forward proxy that leads hosts of the internet to loopback |
//! | `tls` | an authority of a test, and servers that it vouches for |
//! | `own_thread` | a server that a test which blocks does not stop |
//! | `leash` | ends a program with the test run, however that ends |
//! | `wait`, `http` | waiting for a condition with a deadline; a plain HTTP client |
//!
//! Messages name objects and keys, never a secret's value.

pub(crate) mod agent;
pub(crate) mod api_proxy;
pub(crate) mod audit;
pub(crate) mod azure;
pub(crate) mod canary;
pub(crate) mod claims;
pub(crate) mod cluster;
pub(crate) mod connect_proxy;
pub(crate) mod control_plane;
pub(crate) mod front;
pub(crate) mod http;
pub(crate) mod leash;
pub(crate) mod node;
pub(crate) mod own_thread;
pub(crate) mod scene;
pub(crate) mod store;
pub(crate) mod surroundings;
pub(crate) mod tls;
pub(crate) mod vault;
pub(crate) mod wait;

/// A name that no other test uses, valid as a Kubernetes name and as a secret's path: `PREFIX-` and eight random characters.
pub(crate) fn unique(prefix: &str) -> String {
    let tail: String = std::iter::repeat_with(fastrand::alphanumeric).take(8).collect();
    format!("{prefix}-{}", tail.to_lowercase())
}

/// An object of the API from its JSON.
pub(crate) fn object<K: serde::de::DeserializeOwned>(json: serde_json::Value) -> K {
    serde_json::from_value(json).expect("the JSON of a support object fits its type")
}

/// A line on the real stderr, at once and also where the test's output is captured: for what takes long.
pub(crate) fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "tests: {text}");
}
