//! Random secret values pass through success and every failure, at the most verbose log level, and appear nowhere.

mod api;
mod stores;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::events::v1::Event;
use serde_json::{Map, Value, json};

use crate::support::canary::{Canary, random_values};
use crate::support::cluster::TestNamespace;
use crate::support::scene::{ALLOW_ALL, Scene, later_than};
use crate::support::store::Fault;

#[tokio::test]
async fn no_value_appears_in_log_events_or_metrics() {
    let values = random_values(20);
    let key = random_values(1).remove(0);
    let scene = Scene::set_with(|builder| builder.log_level("trace").env("AWS_SECRET_ACCESS_KEY", &key)).await;
    let object: Map<String, Value> =
        values.iter().enumerate().map(|(number, value)| (format!("K{number}"), json!(value))).collect();
    let good = Value::Object(object).to_string();

    success(&scene, &good).await;
    each_fault_of_the_store(&scene, &good).await;
    each_value_that_is_a_secret_or_none(&scene, &values, &good).await;
    let full = each_refusal_of_the_api_server(&scene, &good).await;
    each_request_that_is_refused(&scene, &good).await;

    let token = std::fs::read_to_string(scene.builder.node().folder().join("token")).expect("the agent's token");
    let canary = Canary::new(values.into_iter().chain([key, token.trim().to_owned()]));
    let seen = surfaces(&scene, &[&scene.namespace, &full]).await;
    assert_eq!(found(&canary, &seen), Vec::<String>::new());
    let all: String = seen.into_iter().map(|(_, text)| text).collect();
    for reason in ["SecretSyncSuccess", "SecretTooLarge", "SecretConflict", "SecretInvalid", "SecretWriteFailed"] {
        assert!(all.contains(reason), "the suite went through {reason}");
    }
}

/// What the suites here find when there is something to find.
#[tokio::test]
async fn a_leak_that_is_planted_is_found_where_it_is() {
    let scene = Scene::set_with(|builder| builder.log_level("trace")).await;
    let values = random_values(11);
    let (agents, own) = (&values[0], &values[10]);
    let canary = Canary::new([agents, own]);
    assert_eq!(found(&canary, &surfaces(&scene, &[&scene.namespace]).await), Vec::<String>::new());

    // Through the agent: a path is told to everybody.
    let pod = scene.pod("leak").asks(&format!("no/such/{agents}"), "leak").create().await;
    scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await;
    let through_the_agent = found(&canary, &surfaces(&scene, &[&scene.namespace]).await);
    for origin in ["the agent's log", "the Events"] {
        let told = through_the_agent.iter().any(|one| one.starts_with(origin) && one.contains("value 0"));
        assert!(told, "{origin}: {through_the_agent:?}");
    }
    assert!(!through_the_agent.iter().any(|one| one.starts_with("the agent's metrics") || one.contains("value 1")));

    // In an Event that is not the agent's, in other clothes.
    let _: Event = scene
        .namespace
        .add(json!({
            "metadata": {"name": "planted"}, "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Warning",
            "reason": "Planted", "action": "Plant", "reportingController": "test", "reportingInstance": "test",
            "note": format!("the body was {}", STANDARD.encode(own)),
            "regarding": {"kind": "Pod", "namespace": scene.namespace.name(), "name": "leak"},
        }))
        .await;
    let planted = found(&canary, &surfaces(&scene, &[&scene.namespace]).await);
    assert!(planted.iter().any(|one| one.starts_with("the Events") && one.contains("value 1 in the form base64")));
}

/// Everywhere where an agent says something: log (stdout and stderr), metrics and Events.
async fn surfaces(scene: &Scene, namespaces: &[&TestNamespace]) -> Vec<(String, String)> {
    let mut seen = vec![
        ("the agent's log".to_owned(), scene.agent.text()),
        ("the agent's metrics".to_owned(), scene.agent.get("/metrics").await.text()),
    ];
    for namespace in namespaces {
        let events = serde_json::to_string(&namespace.all_events().await).expect("Events are JSON");
        seen.push((format!("the Events of {}", namespace.name()), events));
    }
    seen
}

/// What stands where, by its number and form. Nothing, in a run that is in order.
fn found(canary: &Canary, seen: &[(String, String)]) -> Vec<String> {
    let in_one = |(origin, text): &(String, String)| {
        canary.search(text.as_bytes()).into_iter().map(|what| format!("{origin}: {what}")).collect::<Vec<_>>()
    };
    seen.iter().flat_map(in_one).collect()
}

async fn success(scene: &Scene, good: &str) {
    let path = scene.store.seed("good", good).await;
    scene.pod("good").asks(&path, "good").create().await;
    let secret = scene.namespace.wait_for_secret("good").await;
    later_than(&secret).await;
    let pod = scene.pod("again").asks(&path, "good").create().await;
    scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
}

async fn each_fault_of_the_store(scene: &Scene, good: &str) {
    let faults = [
        ("denied", Fault::AccessDenied),
        ("throttled", Fault::Throttling),
        ("deleted", Fault::PendingDeletion),
        ("down", Fault::Status(500)),
        ("forbidden", Fault::Status(403)),
        ("truncated", Fault::Truncated),
        ("not-the-api", Fault::Body(good.to_owned())),
        ("not-json", Fault::Body(format!("<html>{good}"))),
    ];
    for (case, fault) in faults {
        let path = scene.store.seed(case, good).await;
        scene.store.fail(&path, fault);
        let pod = scene.pod(case).asks(&path, case).create().await;
        scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await;
        scene.namespace.delete_pod(&pod).await;
    }
}

async fn each_value_that_is_a_secret_or_none(scene: &Scene, values: &[String], good: &str) {
    let (one, two) = (json!(values[0]), json!(values[1]));
    let large = format!(r#"{{"A":{one},"B":"{}"}}"#, "x".repeat(1_100_000));
    let (none, object) = (json!({}), json!({"format": "json"}));
    let typed = |secret_type: &str| json!({"type": format!("kubernetes.io/{secret_type}")});
    let cases = [
        ("text", &object, values.join("\n"), "SecretInvalid"),
        ("json-text", &object, one.to_string(), "SecretInvalid"),
        ("array", &object, format!("[{one},{two}]"), "SecretInvalid"),
        ("cut", &none, good[..good.len() - 3].to_owned(), "SecretInvalid"),
        ("twice", &none, format!(r#"{{"A":{one},"A":{two}}}"#), "SecretInvalid"),
        ("bad-key", &none, format!(r#"{{"A":{one},"B/C":{two}}}"#), "SecretInvalid"),
        ("large", &none, large, "SecretTooLarge"),
        ("missing-key", &json!({"keys": ["AA"]}), good.to_owned(), "SecretKeyMissing"),
        ("pointer", &json!({"keys": {"A": "/A/0/B"}}), format!(r#"{{"A":[{one}]}}"#), "SecretKeyMissing"),
        ("tls", &typed("tls"), format!(r#"{{"tls.crt":{one},"tls.key":{two}}}"#), "SecretInvalid"),
        ("docker", &typed("dockerconfigjson"), format!(r#"{{".dockerconfigjson":{one}}}"#), "SecretInvalid"),
        ("whole", &json!({"format": "raw"}), values.join("\n"), "SecretSyncSuccess"),
        ("nested", &json!({"keys": {"A": "/A/0"}}), format!(r#"{{"A":[{one}]}}"#), "SecretSyncSuccess"),
    ];
    for (case, fields, value, reason) in cases {
        let path = scene.store.seed(case, &value).await;
        let mut request = json!({"provider": "aws-secretsmanager", "path": path, "secretName": case});
        for (field, value) in fields.as_object().expect("fields") {
            request[field] = value.clone();
        }
        let pod = scene.pod(case).request(&request.to_string()).create().await;
        scene.namespace.wait_for_event(&pod, reason).await;
    }
}

/// Returns the namespace whose quota was full.
async fn each_refusal_of_the_api_server(scene: &Scene, good: &str) -> TestNamespace {
    let path = scene.store.seed("conflict", good).await;
    scene.namespace.add_secret("conflict", &[("A", "theirs")]).await;
    let pod = scene.pod("conflict").asks(&path, "conflict").create().await;
    scene.namespace.wait_for_event(&pod, "SecretConflict").await;

    let full = TestNamespace::create(scene.surroundings).await;
    full.limit("count/secrets", 0).await;
    let pod = full.pod("quota").on(scene.builder.node()).asks(&path, "quota").create().await;
    full.wait_for_event(&pod, "SecretWriteFailed").await;

    let going = TestNamespace::create(scene.surroundings).await;
    let gate = scene.store.hold(&path);
    going.pod("gone").on(scene.builder.node()).asks(&path, "gone").create().await;
    gate.held(1).await;
    going.terminate().await;
    gate.release();
    scene
        .wait_for_log("the end of a sync into a namespace that goes", |line| line["outcome"] == "namespace_gone")
        .await;
    full
}

async fn each_request_that_is_refused(scene: &Scene, good: &str) {
    let pod = scene.pod("malformed").request("provider: [").create().await;
    scene.namespace.wait_for_event(&pod, "AnnotationInvalid").await;
    let pod = scene.pod("missing").asks("no/such/secret", "missing").create().await;
    scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await;
    scene.builder.write_policy("rules: []");
    scene
        .wait_for_log("the empty policy", |line| line["message"].as_str().is_some_and(|text| text.contains("no rule")))
        .await;
    let path = scene.store.seed("policy", good).await;
    let pod = scene.pod("policy").asks(&path, "policy").create().await;
    scene.namespace.wait_for_event(&pod, "PolicyDenied").await;
    scene.builder.write_policy(ALLOW_ALL);
}
