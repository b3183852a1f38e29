//! What happens when: the cases that need more than one fault or one pod, each by its name.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use kube::ResourceExt as _;
use serde_json::json;

use crate::support::agent::AgentBuilder;
use crate::support::cluster::TestNamespace;
use crate::support::scene::{ALLOW_ALL, Scene, calls, later_than};
use crate::support::store::{Fault, GET, Store};
use crate::support::wait::{eventually, try_within};

/// Longer than the first pause before a secret that was absent is asked for again.
const RECHECK: Duration = Duration::from_secs(45);

#[tokio::test]
async fn two_nodes_that_want_one_secret_at_once_make_one_and_tell_both_pods() {
    let scene = Scene::set_with(|builder| builder.freshness("60s")).await;
    let other = AgentBuilder::new(scene.surroundings, &scene.store).await.policy(ALLOW_ALL).freshness("60s");
    let mut second = other.spawn();
    second.ready().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let gate = scene.store.hold(&path);
    let pods = [scene.pod("here").asks(&path, "app"), scene.namespace.pod("there").on(other.node()).asks(&path, "app")];
    let pods = join_all(pods.into_iter().map(|pod| pod.create())).await;
    gate.held(2).await;
    gate.release();
    for pod in &pods {
        scene.namespace.wait_for_event(pod, "SecretSyncSuccess").await;
    }
    let secret = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    assert_eq!(scene.store.calls(&path), 2, "one fetch on each node");
    scene.settle().await;
    let later = scene.namespace.wait_for_secret("app").await;
    assert_eq!(later.resource_version(), secret.resource_version(), "it does not go back and forth");
}

#[tokio::test]
async fn a_secret_that_is_absent_is_asked_for_once_for_all_and_found_at_the_next_check() {
    let scene = Scene::set_with(|builder| builder.freshness("60s")).await;
    let path = crate::support::unique("late");
    let names: Vec<String> = (0..10).map(|number| format!("web-{number}")).collect();
    let pods = join_all(names.iter().map(|name| scene.pod(name).asks(&path, "app").create())).await;
    for pod in &pods {
        scene.namespace.wait_for_event(pod, "SecretFetchFailed").await;
    }
    let seconds: BTreeSet<_> = pods.iter().map(|pod| pod.creation_timestamp().map(|time| time.0.as_second())).collect();
    let before = scene.store.calls(&path);
    assert!(before <= seconds.len(), "{before} calls for ten pods of {} ages that wait", seconds.len());
    scene.store.put(&path, r#"{"A":"1"}"#).await;
    let found = try_within(RECHECK, "the Secret, without a new pod", async || {
        scene.namespace.secret("app").await.ok_or_else(|| "none".to_owned())
    });
    found.await.unwrap_or_else(|message| panic!("{message}"));
    for pod in &pods {
        scene.namespace.wait_for_event(pod, "SecretSyncSuccess").await;
        assert_eq!(scene.namespace.events(pod).await.len(), 2, "one of each");
    }
    assert_eq!(scene.store.calls(&path), before + 1);
}

#[tokio::test]
async fn a_newer_pod_does_not_wait_for_the_next_check_and_neither_does_who_waited() {
    let scene = Scene::set_with(|builder| builder.freshness("1h")).await;
    let path = crate::support::unique("late");
    let pod = scene.pod("early").asks(&path, "early").create().await;
    scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await;
    scene.store.put(&path, r#"{"A":"1"}"#).await;
    let elsewhere = scene.store.seed("clock", r#"{"A":"1"}"#).await;
    scene.pod("clock").asks(&elsewhere, "clock").create().await;
    later_than(&scene.namespace.wait_for_secret("clock").await).await;
    scene.pod("late").asks(&path, "late").create().await;
    scene.namespace.wait_for_data("late", [("A", "1")]).await;
    scene.namespace.wait_for_data("early", [("A", "1")]).await;
}

#[tokio::test]
async fn a_store_in_trouble_is_asked_by_one_at_a_time_and_others_are_not_concerned() {
    let surroundings = crate::support::surroundings::Surroundings::get().await;
    let good = Store::start(surroundings).await;
    let providers = |bad: &Store| {
        let instance = |name: &str, store: &Store| {
            let kind = "aws-secretsmanager";
            json!({"name": name, "kind": kind, "region": "us-east-1", "endpoint": store.url(), "allowInsecure": true})
        };
        json!({"providers": [instance("bad", bad), instance("good", &good)]}).to_string()
    };
    let scene = Scene::set_with_store(|builder, store| builder.providers(&providers(store))).await;
    let request = |provider: &str, path: &str, name: &str| {
        json!({"provider": provider, "path": path, "secretName": name}).to_string()
    };
    let paths = join_all((0..20).map(|_| scene.store.seed("config", r#"{"A":"1"}"#))).await;
    scene.store.fail(GET, Fault::Status(503));
    let names: Vec<String> = (0..paths.len()).map(|number| format!("bad-{number}")).collect();
    let asking = names.iter().zip(&paths).map(|(name, path)| scene.pod(name).request(&request("bad", path, name)));
    let pods = join_all(asking.map(|pod| pod.create())).await;
    for pod in &pods {
        scene.namespace.wait_for_event(pod, "SecretFetchFailed").await;
    }
    assert!(
        scene.agent.get("/metrics").await.text().contains(r#"jasm_provider_in_trouble{provider="bad"} 0"#),
        "one tenant is not the store"
    );
    let elsewhere = TestNamespace::create(scene.surroundings).await;
    elsewhere.pod("bad").on(scene.builder.node()).request(&request("bad", &paths[0], "bad")).create().await;
    scene.wait_for_metric(r#"jasm_provider_in_trouble{provider="bad"} 1"#).await;

    let healthy = good.seed("config", r#"{"B":"2"}"#).await;
    scene.pod("good").request(&request("good", &healthy, "good")).create().await;
    scene.namespace.wait_for_data("good", [("B", "2")]).await;
    assert!(scene.agent.get("/metrics").await.text().contains(r#"jasm_provider_in_trouble{provider="good"} 0"#));

    scene.store.heal(GET);
    for name in &names {
        scene.namespace.wait_for_data(name, [("A", "1")]).await;
    }
    scene.wait_for_metric(r#"jasm_provider_in_trouble{provider="bad"} 0"#).await;
    for pod in &pods {
        scene.namespace.wait_for_event(pod, "SecretSyncSuccess").await;
        assert_eq!(scene.namespace.events(pod).await.len(), 2, "one Event for all failures, one for the success");
    }
}

#[tokio::test]
async fn pods_that_want_one_source_of_a_store_that_is_down_share_its_retries() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.store.fail(&path, Fault::Status(503));
    let names: Vec<String> = (0..30).map(|number| format!("web-{number}")).collect();
    let pods = join_all(names.iter().map(|name| scene.pod(name).asks(&path, name).create())).await;
    for pod in &pods {
        scene.namespace.wait_for_event(pod, "SecretFetchFailed").await;
    }
    let before = scene.store.calls(&path);
    scene.store.wait_for_calls(&path, before + 2).await;
    let lines = scene.agent.log().into_iter().filter(|line| line["outcome"] == "failed").count();
    assert!(lines > scene.store.calls(&path), "{lines} failures were told of fewer requests");
    scene.store.heal(&path);
    for name in &names {
        scene.namespace.wait_for_data(name, [("A", "1")]).await;
    }
}

#[tokio::test]
async fn a_namespace_that_asks_for_much_leaves_room_for_others() {
    let scene = Scene::set().await;
    let paths = join_all((0..60).map(|_| scene.store.seed("greedy", r#"{"A":"1"}"#))).await;
    let gates: Vec<_> = paths.iter().map(|path| scene.store.hold(path)).collect();
    let names: Vec<String> = (0..paths.len()).map(|number| format!("greedy-{number}")).collect();
    join_all(names.iter().zip(&paths).map(|(name, path)| scene.pod(name).asks(path, name).create())).await;
    let held = || gates.iter().map(|gate| gate.count()).sum::<usize>();
    eventually("a fair share of requests to hang", async || match held() {
        16 => Ok(()),
        count => Err(format!("{count} held requests")),
    })
    .await;

    let other = TestNamespace::create(scene.surroundings).await;
    let path = scene.store.seed("other", r#"{"B":"2"}"#).await;
    other.pod("web").on(scene.builder.node()).asks(&path, "app").create().await;
    other.wait_for_data("app", [("B", "2")]).await;
    assert_eq!(held(), 16, "no more than that, also while the other one was served");
}

/// One pod with each trouble that there is, and one that nobody answers: the others do not notice.
#[tokio::test]
async fn nobodys_failure_delays_somebody_else() {
    let scene = Scene::set().await;
    let faults = [
        ("throttled", Fault::Throttling),
        ("down", Fault::Status(500)),
        ("denied", Fault::AccessDenied),
        ("deleted", Fault::PendingDeletion),
        ("truncated", Fault::Truncated),
        ("nonsense", Fault::Body("<html>".to_owned())),
    ];
    for (name, fault) in faults {
        let path = scene.store.seed(name, r#"{"A":"1"}"#).await;
        scene.store.fail(&path, fault);
        scene.pod(name).asks(&path, name).create().await;
    }
    let stuck = scene.store.seed("stuck", r#"{"A":"1"}"#).await;
    let gate = scene.store.hold(&stuck);
    scene.pod("stuck").asks(&stuck, "stuck").create().await;
    scene.pod("absent").asks("no/such", "absent").create().await;
    scene.pod("malformed").request("provider: [").create().await;
    scene.namespace.add_secret("foreign", &[("A", "theirs")]).await;
    let path = scene.store.seed("value", r#"{"A":"1","A":"2"}"#).await;
    scene.pod("foreign").asks(&path, "foreign").create().await;
    scene.pod("value").asks(&path, "value").create().await;
    gate.held(1).await;

    let good = scene.store.seed("good", r#"{"A":"1"}"#).await;
    let names: Vec<String> = (0..100).map(|number| format!("good-{number}")).collect();
    let pods = join_all(names.iter().map(|name| scene.pod(name).asks(&good, name).create())).await;
    assert_eq!(pods.len(), 100);
    for name in &names {
        scene.namespace.wait_for_data(name, [("A", "1")]).await;
    }
    assert_eq!(scene.namespace.secret("stuck").await, None, "and all that while one request hung");
    let failed = scene.agent.log().into_iter().filter(|line| line["outcome"] == "failed");
    let failed = failed.filter(|line| line["pod"].as_str().is_some_and(|pod| pod.starts_with("good-"))).count();
    assert_eq!(failed, 0, "no good pod failed once");
}

#[tokio::test]
async fn a_deleted_secret_comes_back_for_a_pod_that_hangs_and_for_no_other() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let pod = scene.pod("web").asks(&path, "app").create().await;
    scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    let secrets = scene.namespace.api::<k8s_openapi::api::core::v1::Secret>();
    secrets.delete("app", &Default::default()).await.expect("an administrator may delete it");
    let container = |state: serde_json::Value| json!({"containerStatuses": [{"name": "main", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": state}]});
    let before = scene.calls().await;
    let pulling = container(json!({"waiting": {"reason": "ImagePullBackOff"}}));
    scene.namespace.set_status(&pod, pulling).await;
    scene.settle().await;
    assert_eq!(scene.calls().await, before, "a pod that waits for something else costs nothing");

    scene.namespace.set_status(&pod, container(json!({"waiting": {"reason": "CreateContainerConfigError"}}))).await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    assert_eq!(scene.calls().await.get("create secrets"), Some(&2));
}

#[tokio::test]
async fn an_immutable_secret_of_ours_that_holds_the_value_is_no_conflict() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.pod("web-1").asks(&path, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    let marked = scene.namespace.edit_secret("app", json!({"immutable": true})).await;
    later_than(&first).await;

    let pod = scene.pod("web-2").asks(&path, "app").create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    assert!(event.note.as_deref().is_some_and(|note| note.contains("is up to date")), "{event:?}");
    assert_eq!(scene.namespace.wait_for_secret("app").await, marked);
    let took = [("update secrets (dry run)", 3), ("create secrets", 1)];
    assert_eq!(scene.calls().await, calls(took), "probe, fetch, probe with the value");

    // The same value, from somewhere else.
    let other = scene.store.seed("other", r#"{"A":"1"}"#).await;
    let pod = scene.pod("web-3").asks(&other, "app").create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretConflict").await;
    assert!(event.note.as_deref().is_some_and(|note| note.contains("immutable")), "{event:?}");
}

#[tokio::test]
async fn a_secret_that_is_made_immutable_between_probe_and_write_is_looked_at_anew() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.pod("web-1").asks(&path, "app").create().await;
    let first = scene.namespace.wait_for_data("app", [("A", "1")]).await;
    later_than(&first).await;
    let gate = scene.store.hold(&path);
    let pod = scene.pod("web-2").asks(&path, "app").create().await;
    gate.held(1).await;
    scene.wait_for_calls([("update secrets (dry run)", 2), ("create secrets", 1)]).await;
    scene.namespace.edit_secret("app", json!({"immutable": true})).await;
    gate.release();
    let event = scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    assert!(event.note.as_deref().is_some_and(|note| note.contains("is up to date")), "{event:?}");
    assert_eq!(scene.store.calls(&path), 2);
    assert!(scene.agent.get("/metrics").await.text().contains("jasm_panics_total 0"));
}

#[tokio::test]
async fn an_immutable_secret_of_somebody_else_is_left_alone_also_where_the_value_is_the_same() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.namespace.add_secret("app", &[("A", "1")]).await;
    let foreign = scene.namespace.edit_secret("app", json!({"immutable": true})).await;
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let event = scene.namespace.wait_for_event(&pod, "SecretConflict").await;
    assert!(event.note.as_deref().is_some_and(|note| note.contains("is not managed by JASM")), "{event:?}");
    assert_eq!(scene.namespace.wait_for_secret("app").await, foreign);
}

#[tokio::test]
async fn a_pod_that_goes_leaves_its_secret() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let secret = scene.namespace.wait_for_secret("app").await;
    scene.namespace.delete_pod(&pod).await;
    scene.settle().await;
    assert_eq!(scene.namespace.wait_for_secret("app").await, secret);
}

#[tokio::test]
async fn each_retry_is_logged_with_its_number_and_pods_that_fail_alike_have_one_event_each() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.store.fail(&path, Fault::Throttling);
    let names: Vec<String> = (0..10).map(|number| format!("web-{number}")).collect();
    let pods = join_all(names.iter().map(|name| scene.pod(name).asks(&path, name).create())).await;
    scene.wait_for_log("a third attempt", |line| line["attempt"] == 3 && line["retry_in_ms"].is_u64()).await;
    for pod in &pods {
        scene.namespace.wait_for_event(pod, "SecretFetchFailed").await;
        assert_eq!(scene.namespace.events(pod).await.len(), 1, "one, folded, however often it is retried");
    }
}
