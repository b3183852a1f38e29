//! What belongs to one service account never reaches another, and is had once for all pods of it.

use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;

use super::{account, at_vault, by_pods, exchanges, next_second, requests, role, subject, uid};
use crate::support::scene::{Scene, annotation};
use crate::support::store::{Fault, GET_PARAMETERS, WEB_IDENTITY};
use crate::support::vault::{PODS, Vault};
use crate::support::wait::eventually;

const TOKENS: &str = "create serviceaccounts/token";

#[tokio::test]
async fn fifty_pods_of_three_accounts_are_three_exchanges_and_each_fetch_is_its_accounts() {
    let scene = by_pods().await;
    let names = ["one", "two", "three"];
    for name in names {
        account(&scene, name).await;
    }
    let path = scene.store.seed("shared", r#"{"A":"1"}"#).await;
    let pods = (0..50).map(|number| {
        let name = format!("web-{number}");
        let (scene, path) = (&scene, &path);
        async move {
            scene.pod(&name).service_account(names[number % 3]).asks(path, &name).create().await;
            scene.namespace.wait_for_data(&name, [("A", "1")]).await;
        }
    });
    join_all(pods).await;
    assert_eq!((exchanges(&scene.store), requests(&scene, TOKENS).await), (3, 3));
    let mut holders = scene.store.holders(&path);
    holders.sort();
    holders.dedup();
    let mut wanted = names.map(|name| role(&format!("{}-{name}", scene.namespace.name())));
    wanted.sort();
    assert_eq!(holders, wanted, "each account asked in its own role, and nobody else did");
    let secret = scene.namespace.wait_for_secret("web-0").await;
    let source = format!("v1:aws-secretsmanager:{path}?as=uid/{}", uid(&scene, "one").await);
    assert_eq!(annotation(&secret, "jasm.codnod.io/source"), source);
}

/// Pairs of pods, of two accounts for which the same path has different values.
const PAIRS: usize = 500;
/// Pairs that are under way together.
const AT_ONCE: usize = 50;

#[tokio::test]
async fn a_thousand_fetches_of_two_accounts_for_one_path_never_cross() {
    let scene = by_pods().await;
    let path = scene.store.seed("one-path", r#"{"A":"nobody's"}"#).await;
    for name in ["left", "right"] {
        let role = account(&scene, name).await;
        scene.store.put_for(&role, &path, &json!({"A": name}).to_string());
    }
    for batch in 0..PAIRS / AT_ONCE {
        let pair = async |number: usize| {
            // In both orders.
            let mut sides = ["left", "right"];
            sides.rotate_left(number % 2);
            let one = |side: &'static str| {
                let (name, path, scene) = (format!("{side}-{batch}-{number}"), &path, &scene);
                async move {
                    scene.pod(&name).service_account(side).asks(path, &name).create().await;
                    scene.namespace.wait_for_data(&name, [("A", side)]).await;
                }
            };
            tokio::join!(one(sides[0]), one(sides[1]));
        };
        join_all((0..AT_ONCE).map(pair)).await;
    }
    assert_eq!(exchanges(&scene.store), 2);
}

#[tokio::test]
async fn what_another_account_was_given_is_no_fresh_secret_but_a_conflict() {
    let scene = by_pods().await;
    let path = scene.store.seed("path", r#"{"A":"nobody's"}"#).await;
    for name in ["first", "second"] {
        let role = account(&scene, name).await;
        scene.store.put_for(&role, &path, &json!({"A": name}).to_string());
    }
    scene.pod("first").service_account("first").asks(&path, "app").create().await;
    let before = scene.namespace.wait_for_data("app", [("A", "first")]).await;
    crate::support::scene::later_than(&before).await;
    let pod = scene.pod("second").service_account("second").asks(&path, "app").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretConflict").await.note.unwrap_or_default();
    assert!(note.contains("another service account") && note.contains("choose another secretName"), "{note}");
    assert_eq!(scene.namespace.wait_for_secret("app").await, before);
    // An account that takes the name of one that is gone is another one.
    let accounts: Api<ServiceAccount> = scene.namespace.api();
    accounts.delete("first", &DeleteParams::default()).await.expect("deleted");
    scene.namespace.service_account("first").await;
    account(&scene, "first").await;
    let pod = scene.pod("first-again").service_account("first").asks(&path, "app").create().await;
    scene.namespace.wait_for_event(&pod, "SecretConflict").await;
    assert_eq!(scene.namespace.wait_for_secret("app").await, before);
}

/// Of two bare pods the older one: it would otherwise be told that it follows the newer one, and mount what that was given.
#[tokio::test]
async fn an_older_pod_is_told_too_that_the_secret_is_another_accounts() {
    let scene = by_pods().await;
    let path = scene.store.seed("path", r#"{"A":"nobody's"}"#).await;
    let mut roles = Vec::new();
    for name in ["older", "newer"] {
        let role = account(&scene, name).await;
        scene.store.put_for(&role, &path, &json!({"A": name}).to_string());
        roles.push(role);
    }
    scene.store.distrust(&roles[0]);
    let older = scene.pod("older").service_account("older").asks(&path, "app").create().await;
    scene.namespace.wait_for_event(&older, "SecretFetchFailed").await;
    next_second().await;
    scene.pod("newer").service_account("newer").asks(&path, "app").create().await;
    let held = scene.namespace.wait_for_data("app", [("A", "newer")]).await;
    scene.store.trust(&roles[0], &subject(&scene, "older"));
    let note = scene.namespace.wait_for_event(&older, "SecretConflict").await.note.unwrap_or_default();
    assert!(note.contains("another service account"), "{note}");
    assert_eq!(scene.namespace.wait_for_secret("app").await, held);
}

/// The operator turns pods' identities on where agents had served as themselves: running pods are no conflict with themselves.
#[tokio::test]
async fn secrets_that_the_agent_fetched_as_itself_are_taken_over_by_their_pods_accounts() {
    let scene = Scene::pod_identity(|builder, _| builder).await;
    let path = scene.store.seed("path", r#"{"A":"the agent's"}"#).await;
    let role = account(&scene, "app").await;
    scene.store.put_for(&role, &path, r#"{"A":"the account's"}"#);
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        pods.push(scene.pod(name).service_account("app").asks(&path, "app").create().await);
        scene.namespace.wait_for_data("app", [("A", "the agent's")]).await;
        next_second().await;
    }
    let Scene { surroundings: _, namespace, builder, mut agent, store } = scene;
    agent.terminate().await;
    drop(agent);
    let mut agent = super::instance(builder, json!({"identity": "pod"})).spawn();
    agent.ready().await;
    let secret = namespace.wait_for_data("app", [("A", "the account's")]).await;
    assert!(annotation(&secret, "jasm.codnod.io/source").contains("?as=uid/"));
    for pod in &pods {
        let told = namespace.events(pod).await;
        assert!(told.iter().all(|event| event.reason.as_deref() == Some("SecretSyncSuccess")), "{told:?}");
    }
    drop(store);
}

#[tokio::test]
async fn credentials_that_run_out_in_the_middle_of_a_burst_are_had_again_and_nobody_fails() {
    let scene = by_pods().await;
    account(&scene, "app").await;
    // The SDK asks again five to ten seconds before the end.
    scene.store.set_lifetime(Duration::from_secs(13));
    let path = scene.store.seed("burst", r#"{"A":"1"}"#).await;
    let (mut pods, started) = (Vec::new(), Instant::now());
    for number in 0..70 {
        let name = format!("web-{number}");
        pods.push(scene.pod(&name).service_account("app").asks(&path, &name).create().await);
        tokio::time::sleep(Duration::from_millis(200)).await;
        if number == 20 {
            // Not by time, but by the store's word.
            scene.store.fail_times(&path, 1, Fault::Status(401));
        }
    }
    for number in 0..70 {
        scene.namespace.wait_for_data(&format!("web-{number}"), [("A", "1")]).await;
    }
    for pod in &pods {
        let reasons: Vec<_> =
            scene.namespace.wait_for_events(pod, 1).await.into_iter().map(|event| event.reason).collect();
        assert_eq!(reasons, [Some("SecretSyncSuccess".to_owned())]);
    }
    let (exchanges, took) = (exchanges(&scene.store), started.elapsed());
    // Whole seconds are what the answer has: a second is lost.
    let most = 3 + took.as_secs() as usize / 2;
    assert!(
        (3..=most).contains(&exchanges),
        "{exchanges} exchanges in {took:?} for 70 pods, of credentials that are used for 2 to 8 s and one of which was refused"
    );
}

#[tokio::test]
async fn credentials_go_with_the_last_pod_of_their_account() {
    let scene = by_pods().await;
    account(&scene, "app").await;
    let path = scene.store.seed("path", r#"{"A":"1"}"#).await;
    let ask = async |name: &str| {
        let pod = scene.pod(name).service_account("app").asks(&path, name).create().await;
        scene.namespace.wait_for_secret(name).await;
        pod
    };
    let (first, second) = (ask("first").await, ask("second").await);
    scene.namespace.delete_pod(&first).await;
    let third = ask("third").await;
    assert_eq!(exchanges(&scene.store), 1, "a pod of it was there all the time");
    scene.namespace.delete_pod(&second).await;
    scene.namespace.delete_pod(&third).await;
    // Whatever comes after that was seen after it.
    account(&scene, "other").await;
    scene.pod("other").service_account("other").asks(&path, "other").create().await;
    scene.namespace.wait_for_secret("other").await;
    assert_eq!(exchanges(&scene.store), 2);
    scene.wait_for_metric("jasm_service_accounts 1").await;
    ask("fourth").await;
    assert_eq!(exchanges(&scene.store), 3, "nothing was left of it");
    scene.wait_for_metric("jasm_service_accounts 2").await;
    // One that was there when its last pod went, as a fetch under way has it.
    let gate = scene.store.hold(&path);
    let held = scene.pod("held").service_account("app").asks(&path, "held").create().await;
    gate.held(1).await;
    for name in ["fourth", "other"] {
        let pods: Api<k8s_openapi::api::core::v1::Pod> = scene.namespace.api();
        let pod = pods.get(name).await.expect("a pod");
        scene.namespace.delete_pod(&pod).await;
    }
    scene.namespace.delete_pod(&held).await;
    gate.release();
    scene.wait_for_metric("jasm_service_accounts 0").await;
}

#[tokio::test]
async fn a_role_that_is_taken_away_and_given_back_is_told_and_used_again() {
    let scene = by_pods().await;
    let role = account(&scene, "app").await;
    let path = scene.store.seed("path", r#"{"A":"1"}"#).await;
    scene.store.distrust(&role);
    let pod = scene.pod("web").service_account("app").asks(&path, "app").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    for want in [role.as_str(), "sts.amazonaws.com", &subject(&scene, "app"), "sts:AssumeRoleWithWebIdentity"] {
        assert!(note.contains(want), "{want}: {note}");
    }
    assert_eq!(scene.store.calls(&path), 0, "nothing is asked as anybody else");
    scene.store.trust(&role, &subject(&scene, "app"));
    scene.namespace.wait_for_data("app", [("A", "1")]).await;

    // The right to the secret, and not the role.
    scene.store.fail(&path, Fault::AccessDenied);
    let pod = scene.pod("web-2").service_account("app").asks(&path, "app-2").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(note.contains("grant secretsmanager:GetSecretValue on it to") && note.contains(&role), "{note}");
    scene.store.heal(&path);
    next_second().await;
    scene.pod("web-3").service_account("app").asks(&path, "app-3").create().await;
    scene.namespace.wait_for_data("app-2", [("A", "1")]).await;
}

/// Tokens are bound to a pod of the account that is there.
#[tokio::test]
async fn while_pods_of_an_account_come_and_go_the_others_are_served_and_told_nothing_else() {
    let scene = by_pods().await;
    account(&scene, "app").await;
    // So that each fetch is an exchange.
    scene.store.set_lifetime(Duration::from_secs(1));
    let path = scene.store.seed("path", r#"{"A":"1"}"#).await;
    for number in 0..10 {
        let name = format!("stays-{number}");
        let passing =
            scene.pod(&format!("passes-{number}")).service_account("app").asks(&path, &format!("passes-{number}"));
        let (stays, passes) =
            tokio::join!(scene.pod(&name).service_account("app").asks(&path, &name).create(), passing.create());
        scene.namespace.delete_pod(&passes).await;
        scene.namespace.wait_for_data(&name, [("A", "1")]).await;
        let told: Vec<_> =
            scene.namespace.wait_for_events(&stays, 1).await.into_iter().map(|event| event.reason).collect();
        assert_eq!(told, [Some("SecretSyncSuccess".to_owned())]);
    }
}

#[tokio::test]
async fn a_role_that_is_changed_is_that_of_the_pods_that_come_after() {
    let scene = by_pods().await;
    account(&scene, "app").await;
    let path = scene.store.seed("path", r#"{"A":"nobody's"}"#).await;
    let before = role(&format!("{}-app", scene.namespace.name()));
    let after = role(&format!("{}-after", scene.namespace.name()));
    scene.store.trust(&after, &subject(&scene, "app"));
    for (holder, value) in [(&before, "before"), (&after, "after")] {
        scene.store.put_for(holder, &path, &json!({"A": value}).to_string());
    }
    scene.pod("one").service_account("app").asks(&path, "one").create().await;
    scene.namespace.wait_for_data("one", [("A", "before")]).await;
    super::annotate(&scene, "app", json!({super::ROLE_ARN: after})).await;
    scene.pod("two").service_account("app").asks(&path, "two").create().await;
    scene.namespace.wait_for_data("two", [("A", "after")]).await;
}

/// Of the two, the pod that was refused would wait for minutes: what it was refused as, it is not any more.
#[tokio::test]
async fn a_pod_that_was_refused_in_one_role_asks_in_the_next_once_anybody_saw_that() {
    let scene = by_pods().await;
    let before = account(&scene, "app").await;
    let path = scene.store.seed("path", r#"{"A":"nobody's"}"#).await;
    let after = role(&format!("{}-after", scene.namespace.name()));
    scene.store.trust(&after, &subject(&scene, "app"));
    scene.store.put_for(&after, &path, r#"{"A":"after"}"#);
    scene.store.fail(&path, Fault::AccessDenied);
    let refused = scene.pod("one").service_account("app").asks(&path, "one").create().await;
    let note = scene.namespace.wait_for_event(&refused, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(note.contains(&before), "{note}");
    scene.store.heal(&path);
    super::annotate(&scene, "app", json!({super::ROLE_ARN: after})).await;
    scene.pod("two").service_account("app").asks(&path, "two").create().await;
    scene.namespace.wait_for_data("two", [("A", "after")]).await;
    scene.namespace.wait_for_data("one", [("A", "after")]).await;
}

/// That a role is written wrongly is another thing than that there is none.
#[tokio::test]
async fn an_annotation_that_is_no_role_is_told_as_that() {
    let scene = by_pods().await;
    let path = scene.store.seed("path", r#"{"A":"1"}"#).await;
    account(&scene, "app").await;
    super::annotate(&scene, "app", json!({super::ROLE_ARN: "role/app"})).await;
    let pod = scene.pod("web").service_account("app").asks(&path, "app").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(note.contains(super::ROLE_ARN) && note.contains("correct it") && !note.contains("role/app"), "{note}");
    assert_eq!(exchanges(&scene.store), 0);
}

/// Names of parameters go out together, but never those of two accounts.
#[tokio::test]
async fn parameters_of_two_accounts_are_asked_for_by_each_alone() {
    let scene = crate::support::scene::Scene::pod_identity(|builder, store| {
        store.trust("unused", "unused");
        let ssm = json!({"name": "aws-ssm", "kind": "aws-ssm", "region": "us-east-1", "allowInsecure": true, "identity": "pod"});
        super::instance(builder, json!({"identity": "pod"})).providers(&json!({"providers": [ssm]}).to_string())
    })
    .await;
    let sides = ["left", "right"];
    for side in sides {
        account(&scene, side).await;
    }
    scene.store.fail(GET_PARAMETERS, Fault::Slow(Duration::from_millis(200)));
    let asks = (0..40).map(|number| {
        let (scene, side) = (&scene, sides[number % 2]);
        async move {
            let (name, path) = (format!("{side}-{number}"), crate::support::unique(&format!("/{side}/p")));
            scene.store.put_parameter(&path, &name, "SecureString").await;
            let request = json!({"provider": "aws-ssm", "path": path, "secretName": name}).to_string();
            scene.pod(&name).service_account(side).request(&request).create().await;
            scene.namespace.wait_for_data(&name, [("value", name.as_str())]).await;
            let wanted = role(&format!("{}-{side}", scene.namespace.name()));
            assert_eq!(scene.store.holders(&path), [wanted]);
        }
    });
    join_all(asks).await;
    let calls = scene.store.calls(GET_PARAMETERS);
    assert!(calls < 40, "{calls} calls for 40 names: they go out together");
}

/// Each account logs in for itself, and its token is nobody else's.
#[tokio::test]
async fn two_accounts_have_each_a_token_of_their_own_at_vault() {
    let surroundings = crate::support::surroundings::Surroundings::pod_identity().await;
    let vault = Vault::start(surroundings).await;
    let scene = at_vault(&vault, json!({"role": PODS})).await;
    let path = vault.seed("prod/shared", json!({"A": "1"})).await;
    for name in ["left", "right"] {
        scene.namespace.service_account(name).await;
    }
    let asks = (0..20).map(|number| {
        let (scene, side, path) = (&scene, ["left", "right"][number % 2], &path);
        async move {
            let name = format!("{side}-{number}");
            let request = json!({"provider": "vault", "path": path, "secretName": name}).to_string();
            scene.pod(&name).service_account(side).request(&request).create().await;
            scene.namespace.wait_for_data(&name, [("A", "1")]).await;
        }
    });
    join_all(asks).await;
    let tokens: std::collections::BTreeSet<String> = vault.credentials(&path).into_iter().collect();
    assert_eq!(tokens.len(), 2, "one login for each account");
}

#[tokio::test]
async fn a_token_service_that_throttles_is_waited_for_as_any_store() {
    let scene = by_pods().await;
    account(&scene, "app").await;
    let path = scene.store.seed("path", r#"{"A":"1"}"#).await;
    scene.store.fail_times(WEB_IDENTITY, 3, Fault::Throttling);
    let pods = (0..20).map(|number| {
        let (name, scene, path) = (format!("web-{number}"), &scene, &path);
        async move {
            scene.pod(&name).service_account("app").asks(path, &name).create().await;
            scene.namespace.wait_for_data(&name, [("A", "1")]).await;
        }
    });
    join_all(pods).await;
    let exchanges = exchanges(&scene.store);
    assert!(exchanges <= 4, "{exchanges} exchanges for 3 that were throttled");
    eventually("an exchange that gave nothing among the metrics", async || {
        let metrics = scene.agent.get("/metrics").await.text();
        let wanted = r#"jasm_provider_requests_total{provider="aws-secretsmanager",result="login"}"#;
        if metrics.contains(wanted) { Ok(()) } else { Err(metrics) }
    })
    .await;
}
