//! From one mode to the other, and back: nothing is deleted or emptied on the way.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use serde_json::json;

use super::{MASTERS, master_of, masters_of};
use crate::support::agent::Agent;
use crate::support::cluster::data;
use crate::support::scene::{Scene, annotation, later_than};

const REPLICATED_FROM: &str = "jasm.codnod.io/replicated-from";

/// Starts the scene's agent anew in this mode.
async fn restart(scene: &mut Scene, mode: &str) {
    scene.agent.terminate().await;
    scene.agent = in_mode(scene, mode).await;
}

async fn in_mode(scene: &mut Scene, mode: &str) -> Agent {
    scene.builder.set_env("JASM_MODE", mode);
    let mut agent = scene.builder.spawn();
    agent.ready().await;
    agent
}

fn without_version(secret: &Secret) -> (Option<String>, BTreeMap<String, Vec<u8>>, String) {
    (secret.uid(), data(secret), annotation(secret, "jasm.codnod.io/source").to_owned())
}

#[tokio::test]
async fn secrets_become_replicas_in_place_and_replicas_become_secrets() {
    let mut scene = Scene::central(|builder| builder.env("JASM_MODE", "direct")).await;
    let path = scene.store.seed("moved", r#"{"A":"1","B":"2"}"#).await;
    let keys = json!({"provider": "aws-secretsmanager", "path": path, "secretName": "some", "keys": ["B"]});
    scene.pod("one").asks(&path, "app").create().await;
    scene.pod("some").request(&keys.to_string()).create().await;
    let direct = scene.namespace.wait_for_data("app", [("A", "1"), ("B", "2")]).await;
    let some = scene.namespace.wait_for_data("some", [("B", "2")]).await;
    assert!(direct.labels().get(REPLICATED_FROM).is_none());
    assert!(masters_of::<Secret>(&path).await.is_empty());

    // The pods that are there are enough.
    let fetched = scene.store.calls(&path);
    restart(&mut scene, "central").await;
    let becomes = async |name: &str, from: Option<&str>| {
        crate::support::wait::eventually(&format!("{name} to be from {from:?}"), async || {
            let secret = scene.namespace.wait_for_secret(name).await;
            match secret.labels().get(REPLICATED_FROM).map(String::as_str) == from {
                true => Ok(secret),
                false => Err(format!("{:?}", secret.labels())),
            }
        })
        .await
    };
    let replica = becomes("app", Some(MASTERS)).await;
    let other = becomes("some", Some(MASTERS)).await;
    assert_eq!(without_version(&replica), without_version(&direct), "the same object with the same data");
    assert_eq!(without_version(&other), without_version(&some));
    assert_eq!(
        annotation(&replica, "jasm.codnod.io/source-version"),
        annotation(&direct, "jasm.codnod.io/source-version")
    );
    let master = master_of(&path).await;
    assert_eq!(scene.store.calls(&path), fetched + 1, "one fetch for the master");

    // Back: what is new enough stays, and the next newer pod makes an ordinary Secret of it.
    restart(&mut scene, "direct").await;
    scene.settle().await;
    assert_eq!(scene.namespace.wait_for_secret("app").await, replica);
    later_than(&replica).await;
    scene.pod("two").asks(&path, "app").create().await;
    let back = crate::support::wait::eventually("an ordinary Secret", async || {
        let secret = scene.namespace.wait_for_secret("app").await;
        match secret.labels().get(REPLICATED_FROM) {
            None => Ok(secret),
            Some(from) => Err(from.clone()),
        }
    })
    .await;
    assert_eq!(without_version(&back), without_version(&direct));
    assert_eq!(back.labels().len(), 2);
    assert_eq!(master_of(&path).await, master, "the master is left");
    assert_eq!(scene.namespace.wait_for_secret("some").await, other, "nobody asked for this one anew");
}
