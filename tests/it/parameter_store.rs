//! What is Parameter Store's own: names that go out together, its small quota, folders, kinds and versions.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;

use crate::support::front::Fault;
use crate::support::say;
use crate::support::scene::{Scene, annotation};
use crate::support::store::{GET_PARAMETERS, GET_PARAMETERS_BY_PATH};
use crate::support::unique;

const FRESH: &str = "60s";

fn request(path: &str, secret: &str) -> String {
    json!({"provider": "aws-ssm", "path": path, "secretName": secret}).to_string()
}

/// So many parameters, each with a pod that asks for it, all at once; returns the names.
async fn ask_for(scene: &Scene, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|number| format!("web-{number}")).collect();
    let paths: Vec<String> = names.iter().map(|name| unique(&format!("/prod/{name}"))).collect();
    join_all(names.iter().zip(&paths).map(|(name, path)| scene.store.put_parameter(path, name, "SecureString"))).await;
    let pods = names.iter().zip(&paths).map(|(name, path)| scene.pod(name).request(&request(path, name)));
    join_all(pods.map(|pod| pod.create())).await;
    names
}

async fn served(scene: &Scene, names: &[String]) {
    for name in names {
        scene.namespace.wait_for_data(name, [("value", name)]).await;
    }
}

/// Beside other tests, pods may come with pauses, after each of which a call goes out that is not full; without any there are
/// eleven (`batch::tests::those_that_come_one_after_the_other_wait_for_what_is_under_way`).
const CALLS: usize = 15;
/// An answer takes so long, so that some call is under way until all pods have come.
const ANSWER: Duration = Duration::from_millis(400);

/// How many calls there may be, where the pods needed so long to come.
fn allowed(took: Duration) -> usize {
    CALLS + (took.as_millis() / ANSWER.as_millis()) as usize
}

#[tokio::test]
async fn a_hundred_parameters_at_once_are_a_few_calls() {
    let scene = Scene::set_with(|builder| builder.freshness(FRESH)).await;
    scene.store.fail(GET_PARAMETERS, Fault::Slow(ANSWER));
    let started = Instant::now();
    let names = ask_for(&scene, 100).await;
    let came = started.elapsed();
    served(&scene, &names).await;
    let calls = scene.store.calls(GET_PARAMETERS);
    say(&format!("100 parameters at once: {calls} calls"));
    let most = allowed(came);
    assert!(calls <= most, "{calls} calls for pods that came within {came:?}");
}

#[tokio::test]
async fn an_account_that_throttles_is_asked_no_more_than_twice_as_often() {
    let scene = Scene::set_with(|builder| builder.freshness(FRESH)).await;
    scene.store.fail_times(GET_PARAMETERS, 5, Fault::Throttling);
    let started = Instant::now();
    let names = ask_for(&scene, 100).await;
    let came = started.elapsed();
    served(&scene, &names).await;
    let calls = scene.store.calls(GET_PARAMETERS);
    say(&format!("100 parameters at once, of an account that throttles: {calls} calls"));
    assert!(calls <= 2 * allowed(came), "{calls} calls for pods that came within {came:?}");
    let throttled = r#"jasm_provider_requests_total{provider="aws-ssm",result="throttled"}"#;
    scene.wait_for_metric(throttled).await;
    let in_trouble = r#"jasm_provider_in_trouble{provider="aws-ssm"} 0"#;
    scene.wait_for_metric(in_trouble).await;
}

/// One that is denied or malformed spoils the answer for all names of a call.
#[tokio::test]
async fn a_name_that_is_refused_is_no_other_names_failure() {
    let scene = Scene::set_with(|builder| builder.freshness(FRESH)).await;
    let bad = unique("/prod/denied");
    scene.store.put_parameter(&bad, "x", "String").await;
    scene.store.fail(&bad, Fault::AccessDenied);
    let pod = scene.pod("bad").request(&request(&bad, "bad")).create();
    let (pod, names) = tokio::join!(pod, ask_for(&scene, 9));
    served(&scene, &names).await;
    let told = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(told.contains("grant ssm:GetParameters on it"), "{told}");
    for name in &names {
        let events = scene.namespace.all_events().await;
        let failed = events.iter().any(|event| {
            event.regarding.as_ref().and_then(|object| object.name.as_ref()) == Some(name)
                && event.reason.as_deref() == Some("SecretFetchFailed")
        });
        assert!(!failed, "{name} is told of a failure that is not its own");
    }
}

#[tokio::test]
async fn each_kind_of_parameter_is_one_key_unless_that_is_asked_for() {
    let scene = Scene::set().await;
    let cases = [
        ("string", "String", "plain", json!({}), vec![("value", "plain")]),
        ("list", "StringList", "a,b,c", json!({}), vec![("value", "a,b,c")]),
        ("secure", "SecureString", r#"{"A":"1"}"#, json!({}), vec![("value", r#"{"A":"1"}"#)]),
        ("named", "SecureString", "word", json!({"dataKey": "password"}), vec![("password", "word")]),
        ("json", "SecureString", r#"{"A":"1","B":2}"#, json!({"format": "json"}), vec![("A", "1"), ("B", "2")]),
    ];
    for (name, kind, value, more, wanted) in cases {
        let path = unique(&format!("/prod/{name}"));
        scene.store.put_parameter(&path, value, kind).await;
        let mut asked = json!({"provider": "aws-ssm", "path": path, "secretName": name});
        for (field, value) in more.as_object().into_iter().flatten() {
            asked[field] = value.clone();
        }
        scene.pod(name).request(&asked.to_string()).create().await;
        scene.namespace.wait_for_data(name, wanted).await;
    }
}

#[tokio::test]
async fn versions_are_numbers_or_labels_and_names_may_be_arns() {
    let scene = Scene::set().await;
    let path = unique("/prod/versions");
    for value in ["one", "two", "three"] {
        scene.store.put_parameter(&path, value, "String").await;
    }
    scene.store.label_parameter(&path, 2, "stable").await;
    let arn = format!("arn:aws:ssm:us-east-1:123456789012:parameter{path}");
    let cases = [("number", &path, "1", "one"), ("label", &path, "stable", "two"), ("by-arn", &arn, "3", "three")];
    for (name, path, version, wanted) in cases {
        let asked = json!({"provider": "aws-ssm", "path": path, "secretName": name, "version": version});
        scene.pod(name).request(&asked.to_string()).create().await;
        scene.namespace.wait_for_data(name, [("value", wanted)]).await;
    }
}

/// More than one page, and no parameter of a folder below.
#[tokio::test]
async fn a_folder_is_all_parameters_directly_under_it() {
    let scene = Scene::set().await;
    let folder = unique("/prod/folder");
    let keys: Vec<String> = (0..23).map(|number| format!("KEY_{number}")).collect();
    for key in &keys {
        scene.store.put_parameter(&format!("{folder}/{key}"), key, "SecureString").await;
    }
    scene.store.put_parameter(&format!("{folder}/below/KEY"), "not this one", "String").await;
    for (name, path) in [("star", format!("{folder}/*")), ("slash", format!("{folder}/"))] {
        scene.pod(name).request(&request(&path, name)).create().await;
        scene.namespace.wait_for_data(name, keys.iter().map(|key| (key, key))).await;
    }
    let source = scene.namespace.secret("slash").await.expect("written");
    assert_eq!(annotation(&source, "jasm.codnod.io/source"), format!("v1:aws-ssm:{folder}/*"), "one form of the path");
    let before = scene.store.calls(GET_PARAMETERS_BY_PATH);
    assert!(before >= 6, "three pages each: {before}");
}

/// All or nothing: a page that fails leaves the Secret as it is.
#[tokio::test]
async fn a_folder_of_which_a_page_fails_is_written_when_all_pages_are_there() {
    let scene = Scene::set().await;
    let folder = unique("/prod/pages");
    for number in 0..12 {
        scene.store.put_parameter(&format!("{folder}/K{number}"), "old", "String").await;
    }
    scene.store.fail_every(GET_PARAMETERS_BY_PATH, 2, Fault::Unavailable);
    let pod = scene.pod("web").request(&request(&format!("{folder}/*"), "app")).create().await;
    scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await;
    assert!(scene.namespace.secret("app").await.is_none(), "nothing of the first page is written");
    scene.store.heal(GET_PARAMETERS_BY_PATH);
    scene.namespace.wait_for_data("app", (0..12).map(|number| (format!("K{number}"), "old"))).await;
}

#[tokio::test]
async fn policy_sees_a_folder_as_what_it_is() {
    let policy =
        r#"rules: [{namespaces: ["*"], serviceAccounts: ["*"], providers: [aws-ssm], paths: ["/prod/one", "/all/*"]}]"#;
    let scene = Scene::set_with(|builder| builder.policy(policy)).await;
    let pod = scene.pod("denied").request(&request("/prod/*", "denied")).create().await;
    scene.namespace.wait_for_event(&pod, "PolicyDenied").await;
    assert_eq!(scene.store.calls(GET_PARAMETERS_BY_PATH), 0, "a rule for one parameter is none for its folder");
    scene.store.put_parameter("/all/KEY", "1", "String").await;
    scene.pod("granted").request(&request("/all/", "granted")).create().await;
    scene.namespace.wait_for_data("granted", [("KEY", "1")]).await;
}
