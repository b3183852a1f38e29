//! What a pod's owner sees when a Secret cannot be had, and that nothing that was there is lost.

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::support::scene::{ALLOW_ALL, Scene, calls, later_than};
use crate::support::store::{ACCESS_DENIED_TEXT, Fault};

/// The note of the pod's Warning with this reason.
async fn warning(scene: &Scene, pod: &Pod, reason: &str) -> String {
    let event = scene.namespace.wait_for_event(pod, reason).await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    event.note.unwrap_or_default()
}

#[tokio::test]
async fn a_missing_secret_is_named_in_the_log_and_on_the_pod() {
    let scene = Scene::set().await;
    let pod = scene.pod("web").asks("no/such/secret", "app").create().await;
    let note = warning(&scene, &pod, "SecretFetchFailed").await;
    let want = "aws-secretsmanager has no secret `no/such/secret` (or no such version of it): check path and version in the annotation";
    assert_eq!(note, want);
    let line = scene.wait_for_log("a line about it", |line| line["reason"] == "SecretFetchFailed").await;
    for (field, want) in
        [("pod", "web"), ("secret", "app"), ("provider", "aws-secretsmanager"), ("path", "no/such/secret")]
    {
        assert_eq!(line[field], want, "{line}");
    }
    assert_eq!(line["namespace"], scene.namespace.name());
    assert_eq!(line["level"], "WARN");
    assert!(
        line["retry_in_ms"].as_u64().is_some_and(|wait| wait >= 15_000),
        "an absent secret is asked for slowly: {line}"
    );
    assert_eq!(scene.namespace.secret("app").await, None);
}

#[tokio::test]
async fn a_denied_secret_says_which_right_and_which_identity() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.store.fail(&path, Fault::AccessDenied);
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let note = warning(&scene, &pod, "SecretFetchFailed").await;
    for want in ["secretsmanager:GetSecretValue", path.as_str(), "arn:aws:sts::"] {
        assert!(note.contains(want), "{note:?} lacks {want:?}");
    }
    assert!(!note.contains(ACCESS_DENIED_TEXT), "the store's own text is for the log");
    scene
        .wait_for_log("the store's own text", |line| {
            line["error"].as_str().is_some_and(|text| text.contains(ACCESS_DENIED_TEXT))
        })
        .await;
}

#[tokio::test]
async fn a_store_that_is_down_is_asked_again_with_backoff() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.store.fail_times(&path, 3, Fault::Status(503));

    let pod = scene.pod("web").asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;

    let note = warning(&scene, &pod, "SecretFetchFailed").await;
    assert!(note.contains("retries with backoff"), "{note}");
    scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    assert_eq!(scene.store.calls(&path), 4);
    let waits = scene.agent.log().into_iter().filter_map(|line| line["retry_in_ms"].as_u64()).collect::<Vec<_>>();
    assert_eq!(waits.len(), 3, "each retry is logged");
    for (attempt, wait) in waits.into_iter().enumerate() {
        let most = 200 << attempt;
        assert!(wait <= most, "retry {attempt} within {most} ms, by full jitter: {wait}");
    }
    assert_eq!(scene.namespace.events(&pod).await.len(), 2, "one Event for all failures, one for the success");
}

#[tokio::test]
async fn each_trouble_of_the_store_keeps_the_last_good_value() {
    let scene = Scene::set().await;
    let faults = [
        ("throttled", Fault::Throttling, "SecretFetchFailed", "throttles"),
        ("down", Fault::Status(500), "SecretFetchFailed", "did not answer"),
        ("denied", Fault::AccessDenied, "SecretFetchFailed", "denied access"),
        ("deleted", Fault::PendingDeletion, "SecretFetchFailed", "deletion scheduled"),
        ("truncated", Fault::Truncated, "SecretFetchFailed", "did not answer"),
        ("cut-json", Fault::Body(r#"{"Name":"x","SecretStr"#.to_owned()), "SecretFetchFailed", "did not answer"),
        ("not-json", Fault::Body("<html>".to_owned()), "SecretFetchFailed", "cannot be used"),
        ("other-json", Fault::Body(r#"{"Name":1}"#.to_owned()), "SecretFetchFailed", "cannot be used"),
    ];
    for (case, fault, reason, want) in faults {
        let path = scene.store.seed(case, r#"{"A":"good"}"#).await;
        scene.pod(&format!("{case}-1")).asks(&path, case).create().await;
        let good = scene.namespace.wait_for_data(case, [("A", "good")]).await;
        later_than(&good).await;
        scene.store.fail(&path, fault);

        let pod = scene.pod(&format!("{case}-2")).asks(&path, case).create().await;

        let note = warning(&scene, &pod, reason).await;
        assert!(note.contains(want), "case: {case}: {note}");
        assert_eq!(scene.namespace.wait_for_secret(case).await, good, "case: {case}");
    }
}

#[tokio::test]
async fn a_value_that_cannot_become_a_secret_says_why_and_keeps_the_last_good_one() {
    let scene = Scene::set().await;
    let large = json!({"A": "x".repeat(1_100_000)}).to_string();
    let object = json!({"format": "json"});
    let values = [
        ("text", object.clone(), "not json", "SecretInvalid", "not JSON"),
        ("array", object, r#"["a"]"#, "SecretInvalid", "JSON of another type"),
        ("cut", json!({}), r#"{"A":"go"#, "SecretInvalid", "ends too early"),
        ("key", json!({}), r#"{"A/B":"x"}"#, "SecretInvalid", "`A/B` cannot be"),
        ("twice", json!({}), r#"{"A":"x","A":"y"}"#, "SecretInvalid", "`A` twice"),
        ("empty", json!({}), "{}", "SecretInvalid", "empty"),
        ("large", json!({}), large.as_str(), "SecretTooLarge", "at most 1048576"),
        ("missing", json!({"keys": ["A"]}), r#"{"AA":"x"}"#, "SecretKeyMissing", "no key `A`; did you mean `AA`?"),
        ("null", json!({"keys": ["A"]}), r#"{"A":null}"#, "SecretKeyMissing", "it is null there"),
    ];
    for (case, fields, value, reason, want) in values {
        let path = scene.store.seed(case, r#"{"A":"good"}"#).await;
        let mut request = json!({"provider": "aws-secretsmanager", "path": path, "secretName": case});
        for (field, value) in fields.as_object().expect("fields") {
            request[field] = value.clone();
        }
        scene.pod(&format!("{case}-1")).request(&request.to_string()).create().await;
        let good = scene.namespace.wait_for_data(case, [("A", "good")]).await;
        later_than(&good).await;
        scene.store.put(&path, value).await;

        let pod = scene.pod(&format!("{case}-2")).request(&request.to_string()).create().await;

        let note = warning(&scene, &pod, reason).await;
        assert!(note.contains(want) && note.contains(&path), "case: {case}: {note}");
        assert_eq!(scene.namespace.wait_for_secret(case).await, good, "case: {case}");
    }
}

#[tokio::test]
async fn a_malformed_annotation_is_explained_and_an_edit_is_enough() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let request = |field: &str| json!({"provider": "aws-secretsmanager", "path": path, field: "app"}).to_string();
    let pod = scene.pod("web").request(&request("secretname")).create().await;
    let note = warning(&scene, &pod, "AnnotationInvalid").await;
    assert!(note.contains("did you mean `secretName`?"), "{note}");
    assert_eq!((scene.calls().await, scene.store.calls(&path)), (calls([]), 0));

    scene.namespace.annotate(&pod, "jasm.codnod.io/secret-sync", &request("secretName")).await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
}

#[tokio::test]
async fn a_provider_that_is_not_configured_is_named() {
    let scene = Scene::set().await;
    let request = json!({"provider": "vault", "path": "a", "secretName": "app"}).to_string();
    let pod = scene.pod("web").request(&request).create().await;
    let note = warning(&scene, &pod, "ProviderUnsupported").await;
    assert!(
        note.contains("provider `vault` is not configured") && note.contains("configured: aws-secretsmanager"),
        "{note}"
    );
}

#[tokio::test]
async fn a_denied_pod_gets_its_secret_soon_after_the_rule() {
    let scene = Scene::set_with(|builder| builder.policy("rules: []")).await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let note = warning(&scene, &pod, "PolicyDenied").await;
    let rule = format!("paths: [\"{path}\"]");
    assert!(note.contains(scene.namespace.name()) && note.contains(&rule), "{note}");
    assert_eq!((scene.calls().await, scene.store.calls(&path)), (calls([]), 0));
    let before = scene.policy_digest().await;

    // As the Event shows it.
    let (_, shown) = note.split_once("policy.yaml: ").expect("the note shows a rule");
    scene.builder.write_policy(&format!("rules:\n{shown}\n"));
    scene.namespace.wait_for_secret("app").await;
    assert_ne!(scene.policy_digest().await, before, "jasm_policy_info shows which policy is in force");
}

/// Nothing in the text, and no request to anybody, tells what the store has.
#[tokio::test]
async fn a_denial_is_the_same_whether_or_not_the_secret_exists() {
    let scene = Scene::set_with(|builder| builder.policy("rules: []")).await;
    let there = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let absent = format!("{there}-x");
    let mut notes = Vec::new();
    for (name, path) in [("one", &there), ("two", &absent)] {
        let pod = scene.pod(name).asks(path, name).create().await;
        notes.push(warning(&scene, &pod, "PolicyDenied").await.replace(path.as_str(), "PATH"));
    }
    assert_eq!(notes[0], notes[1]);
    assert_eq!((scene.store.total_calls(), scene.calls().await), (0, calls([])));
}

#[tokio::test]
async fn each_sync_is_logged_with_the_rule_that_admitted_it() {
    let rules = |accounts: &str| {
        format!("- {{namespaces: ['*'], serviceAccounts: [{accounts}], providers: ['*'], paths: ['**']}}\n")
    };
    let scene = Scene::set_with(|builder| builder.policy(&format!("rules:\n{}{}", rules("x"), rules("default")))).await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.pod("web").asks(&path, "app").create().await;
    let line = scene.wait_for_log("the sync", |line| line["outcome"] == "created").await;
    assert_eq!((&line["level"], &line["rule"]), (&json!("INFO"), &json!(2)), "{line}");
    assert!(line.get("policy_file").is_none(), "a file that is alone is not named: {line}");
}

#[tokio::test]
async fn a_rule_for_one_service_account_admits_no_other() {
    let rule = r#"rules: [{namespaces: ["*"], serviceAccounts: [web], providers: ["*"], paths: ["**"]}]"#;
    let scene = Scene::set_with(|builder| builder.policy(rule)).await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.namespace.service_account("web").await;
    scene.pod("admitted").service_account("web").asks(&path, "admitted").create().await;
    let denied = scene.pod("denied").asks(&path, "denied").create().await;
    scene.namespace.wait_for_secret("admitted").await;
    let note = warning(&scene, &denied, "PolicyDenied").await;
    assert!(note.contains("service account default"), "{note}");
    assert_eq!(scene.namespace.secret("denied").await, None);
}

#[tokio::test]
async fn a_broken_policy_never_opens_up_and_keeps_the_last_good_one() {
    let scene = Scene::set().await;
    let before = scene.policy_digest().await;
    scene.builder.write_policy("rules: [{namespaces: ['*']}]");
    scene
        .wait_for_log("the broken policy in the log", |line| {
            let place = |text: &str| text.contains("policy.yaml") && text.contains("line 1 column");
            line["level"] == "ERROR" && line["error"].as_str().is_some_and(place)
        })
        .await;
    let metrics = scene.agent.get("/metrics").await.text();
    assert!(metrics.contains("jasm_policy_last_reload_successful 0"), "{metrics}");
    assert_eq!(scene.policy_digest().await, before);
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.pod("web").asks(&path, "app").create().await;
    scene.namespace.wait_for_secret("app").await;

    scene.builder.write_policy(ALLOW_ALL);
    scene.wait_for_metric("jasm_policy_last_reload_successful 1").await;
}

#[tokio::test]
async fn a_full_quota_says_so_and_is_tried_again_slowly() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.namespace.limit("count/secrets", 0).await;
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let note = warning(&scene, &pod, "SecretWriteFailed").await;
    assert!(note.contains("ResourceQuota"), "{note}");
    let line = scene.wait_for_log("a line about it", |line| line["action"] == "WriteQuota").await;
    assert!(line["retry_in_ms"].as_u64().is_some_and(|wait| wait >= 15_000), "{line}");
}

#[tokio::test]
async fn a_namespace_that_goes_is_no_failure() {
    let scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let gate = scene.store.hold(&path);
    scene.pod("web").asks(&path, "app").create().await;
    gate.held(1).await;
    scene.namespace.terminate().await;
    gate.release();
    scene.wait_for_log("its quiet end", |line| line["outcome"] == "namespace_gone").await;
    assert!(!scene.agent.log().iter().any(|line| line["outcome"] == "failed"));
}
