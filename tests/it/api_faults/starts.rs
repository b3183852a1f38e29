//! An agent that starts while the API server is in trouble. Its pods were there before it, or come meanwhile.

use super::{SOON, everything, served_within};
use crate::support::agent::AgentBuilder;
use crate::support::api_proxy::{ApiProxy, Refusal, Trouble};
use crate::support::cluster::TestNamespace;
use crate::support::scene::ALLOW_ALL;
use crate::support::store::Store;
use crate::support::surroundings::Surroundings;

/// Starts an agent into this trouble, lets it ask so often in vain, and ends the trouble. The watch, the five checks of
/// the admission policies and the question for the version begin together: what comes after 7 requests is asked anew.
async fn starts_into(trouble: Trouble, in_vain: usize) {
    let surroundings = Surroundings::get().await;
    let (proxy, store) = (ApiProxy::start(surroundings), Store::start(surroundings).await);
    let builder = AgentBuilder::new(surroundings, &store).await.policy(ALLOW_ALL).through(&proxy);
    let namespace = TestNamespace::create(surroundings).await;
    let path = store.seed("config", r#"{"A":"1"}"#).await;
    let pod = async |name: &str| namespace.pod(name).on(builder.node()).asks(&path, name).create().await;
    pod("before").await;
    let outage = proxy.fail(everything(), trouble);
    let agent = builder.spawn();
    outage.hit(in_vain).await;
    pod("meanwhile").await;
    outage.heal();

    for name in ["before", "meanwhile"] {
        served_within(SOON, &namespace, name, &agent).await;
    }
}

#[tokio::test]
async fn an_agent_that_starts_while_every_connection_breaks_serves_its_pods_afterwards() {
    starts_into(Trouble::Cut, 14).await;
}

#[tokio::test]
async fn an_agent_that_starts_while_the_api_server_is_unavailable_serves_its_pods_afterwards() {
    starts_into(Trouble::Refused(Refusal::Unavailable), 14).await;
}

#[tokio::test]
async fn an_agent_that_starts_without_any_right_serves_its_pods_once_it_has_them() {
    starts_into(Trouble::Refused(Refusal::NoRight), 14).await;
}

#[tokio::test]
async fn an_agent_that_starts_into_a_black_hole_serves_its_pods_afterwards() {
    starts_into(Trouble::BlackHole, 9).await;
}
