//! What pods and their owners see when the API server, or the network before it, is in trouble.

mod deaths;
mod events;
mod namespaces;
mod rights;
mod starts;
mod watches;
mod workloads;
mod writes;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::support::agent::Agent;
use crate::support::api_proxy::{ApiProxy, Match};
use crate::support::cluster::TestNamespace;
use crate::support::scene::Scene;
use crate::support::surroundings::Surroundings;
use crate::support::wait::try_within;

/// How soon after the end of the trouble a pod is served, whatever the API server asked for.
const SOON: Duration = Duration::from_secs(30);

/// A scene whose agent goes through a proxy.
async fn behind_proxy() -> (ApiProxy, Scene) {
    let proxy = ApiProxy::start(Surroundings::get().await);
    let scene = Scene::set_with(|builder| builder.through(&proxy)).await;
    (proxy, scene)
}

/// A probe: a dry run that reads metadata.
fn probe() -> Match {
    Match::new("PUT", "/secrets/").dry_run(true)
}

/// A write of a Secret that is new.
fn create() -> Match {
    // Not the admission check's, which never stop.
    Match::new("POST", "/secrets").dry_run(false)
}

/// A write of a Secret that is there.
fn update() -> Match {
    Match::new("PUT", "/secrets/").dry_run(false)
}

/// Whatever is asked about Secrets.
fn secrets() -> Match {
    Match::path("/secrets")
}

/// A new Event.
fn events() -> Match {
    Match::new("POST", "/events")
}

/// Every request of the agent.
fn everything() -> Match {
    Match::path("")
}

/// Waits for a Secret, longer than other tests do; a failure shows the agent's log.
async fn served_within(limit: Duration, namespace: &TestNamespace, name: &str, agent: &Agent) {
    let awaited = format!("the Secret {}/{name}", namespace.name());
    let secret = try_within(limit, &awaited, async || namespace.secret(name).await.ok_or_else(|| agent.tail()));
    secret.await.unwrap_or_else(|message| panic!("{message}"));
}

/// How many Events of each type the pod has: Normal, Warning.
async fn told(scene: &Scene, pod: &Pod) -> (usize, usize) {
    let events = scene.namespace.events(pod).await;
    let of = |type_: &str| events.iter().filter(|event| event.type_.as_deref() == Some(type_)).count();
    (of("Normal"), of("Warning"))
}
