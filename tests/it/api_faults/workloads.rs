//! Workloads that cannot be read at first.

use http::StatusCode;
use serde_json::json;

use super::{SOON, behind_proxy, served_within};
use crate::support::api_proxy::{Match, Refusal, Trouble};
use crate::support::scene::Scene;

const HASH: &str = "5d4f6c7b8";
const SYNC: &str = "jasm.codnod.io/secret-sync";

/// A Deployment that asks for `app`, and a pod of it that is on the node.
async fn asked_for_by_its_deployment(scene: &Scene, path: &str) {
    let (deployment, set) = scene.namespace.deployment("web").await;
    let request = json!({"provider": "aws-secretsmanager", "path": path, "secretName": "app"}).to_string();
    scene.namespace.annotate_workload(&deployment, SYNC, &request).await;
    scene.pod("web").owned_by(&set).label("pod-template-hash", HASH).create().await;
}

#[tokio::test]
async fn a_workload_that_the_api_server_does_not_tell_about_is_read_again_and_holds_up_nobody() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let silent = proxy.fail(Match::path("/deployments/"), Trouble::Refused(Refusal::Unavailable));
    asked_for_by_its_deployment(&scene, &path).await;
    silent.hit(2).await;
    scene.pod("other").asks(&path, "other").create().await;
    scene.namespace.wait_for_data("other", [("A", "1")]).await;
    assert_eq!(scene.agent.get("/readyz").await.status, StatusCode::OK);
    silent.heal();
    served_within(SOON, &scene.namespace, "app", &scene.agent).await;
}

/// The pause is a long one; the pod's own annotation ends it.
#[tokio::test]
async fn a_pod_whose_workload_may_not_be_read_is_served_by_its_own_annotation() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let forbidden = proxy.fail(Match::path("/deployments/"), Trouble::Refused(Refusal::NoRight));
    asked_for_by_its_deployment(&scene, &path).await;
    forbidden.hit(1).await;
    let line = scene.wait_for_log("a line about it", |line| line["pod"] == "web" && line["level"] == "WARN").await;
    assert!(line["message"].as_str().is_some_and(|text| text.contains("is not known")), "{line}");
    let pods = scene.namespace.api::<k8s_openapi::api::core::v1::Pod>();
    let pod = pods.get("web").await.expect("the pod");
    let own = json!({"provider": "aws-secretsmanager", "path": path, "secretName": "own"}).to_string();
    scene.namespace.annotate(&pod, SYNC, &own).await;
    scene.namespace.wait_for_data("own", [("A", "1")]).await;
    assert_eq!(scene.namespace.secret("app").await, None);
}
