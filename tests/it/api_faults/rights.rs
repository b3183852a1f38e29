//! The agent loses its rights on Secrets, and gets them back.

use http::StatusCode;

use super::{SOON, behind_proxy, create, secrets, served_within, told};
use crate::support::api_proxy::{Match, Refusal, Trouble};
use crate::support::scene::{Scene, calls};
use crate::support::wait::try_within;

#[tokio::test]
async fn an_agent_without_rights_on_secrets_says_which_and_goes_on_once_it_has_them() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let revoked = proxy.fail(secrets(), Trouble::Refused(Refusal::NoRight));
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretWriteFailed").await;
    let note = event.note.unwrap_or_default();
    assert!(note.contains("may not update secrets") && note.contains("ClusterRole jasm-agent"), "{note}");
    revoked.hit(4).await;
    revoked.heal();

    served_within(SOON, &scene.namespace, "app", &scene.agent).await;

    scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    assert_eq!(told(&scene, &pod).await, (1, 1), "one warning, however often it was tried");
    assert_eq!(scene.calls().await, calls([("update secrets (dry run)", 1), ("create secrets", 1)]));
}

#[tokio::test]
async fn an_agent_that_may_update_and_not_create_names_the_right_that_is_missing() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let revoked = proxy.fail(create(), Trouble::Refused(Refusal::NoRight));
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretWriteFailed").await;
    let note = event.note.unwrap_or_default();
    assert!(note.contains("may not create secrets") && note.contains("ClusterRole jasm-agent"), "{note}");
    revoked.heal();

    served_within(SOON, &scene.namespace, "app", &scene.agent).await;
}

#[tokio::test]
async fn an_agent_that_may_write_nowhere_is_not_ready_and_goes_on_once_it_may() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let revoked = proxy.fail(Match::path("/secrets"), Trouble::Refused(Refusal::NoRight));
    scene.pod("web").asks(&path, "app").create().await;
    ready_is(&scene, StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(scene.agent.get("/readyz").await.text().contains("apply rbac/"), "it says what to do");
    revoked.heal();

    served_within(SOON, &scene.namespace, "app", &scene.agent).await;
    ready_is(&scene, StatusCode::OK).await;
}

#[tokio::test]
async fn an_agent_that_may_not_write_in_one_namespace_stays_ready() {
    let (proxy, scene) = behind_proxy().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let here = format!("/namespaces/{}/secrets", scene.namespace.name());
    let revoked = proxy.fail(Match::path(&here), Trouble::Refused(Refusal::NoRight));
    let pod = scene.pod("web").asks(&path, "app").create().await;
    scene.namespace.wait_for_event(&pod, "SecretWriteFailed").await;
    // Five requests at the start, and five when the agent looked at its rights again.
    let checks = Match::path("/namespaces/jasm-system/secrets");
    try_within(SOON, "a look at the rights", async || match proxy.calls(&checks) {
        10.. => Ok(()),
        count => Err(format!("{count} checks")),
    })
    .await
    .unwrap_or_else(|message| panic!("{message}"));
    assert_eq!(scene.agent.get("/readyz").await.status, StatusCode::OK);
    revoked.heal();
    // The pause may have grown to the longest by now.
    served_within(2 * SOON, &scene.namespace, "app", &scene.agent).await;
}

/// Waits until `/readyz` answers so: the agent looks at its rights at most every 10 s.
async fn ready_is(scene: &Scene, wanted: StatusCode) {
    try_within(SOON, &format!("/readyz to say {wanted}"), async || {
        let found = scene.agent.get("/readyz").await.status;
        if found == wanted { Ok(()) } else { Err(found.to_string()) }
    })
    .await
    .unwrap_or_else(|message| panic!("{message}"));
}
