//! Tests of the support code itself: of what could be wrong without any other test turning red, as a search that never
//! finds, a count that is always right, or a fault that is none.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures::TryStreamExt as _;
use http::{Request, StatusCode};
use http_body_util::Full;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use crate::support::audit::{self, tally};
use crate::support::canary::{Canary, random_values};
use crate::support::cluster::{TestNamespace, differences};
use crate::support::http::{Http, Reply};
use crate::support::node::{AgentNode, agents_secret};
use crate::support::scene::Scene;
use crate::support::store::{ACCESS_DENIED_TEXT, Fault, GET, POD_IDENTITY, Store};
use crate::support::surroundings::Surroundings;
use crate::support::wait::{eventually, try_within};

// ---- canary ----

/// A value in which every escaping changes something.
const VALUE: &str = "s\"e\\c'r\ne\tt <ü&🔑> /%+?=0123456789";

#[test]
fn a_canary_finds_each_form_wherever_it_stands() {
    let canary = Canary::new([VALUE]);
    let bytes = VALUE.as_bytes();
    let json = json!(VALUE).to_string();
    let inside = |before: &str| [before.as_bytes(), bytes, b"tail"].concat();
    let hex = |upper: bool| {
        bytes.iter().map(|b| if upper { format!("{b:02X}") } else { format!("{b:02x}") }).collect::<String>()
    };
    let texts = [
        ("raw", VALUE.to_owned()),
        ("JSON", json.clone()),
        ("JSON in JSON", json!({"line": json}).to_string()),
        ("JSON as Go writes it", json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")),
        ("JSON with ASCII only", json.replace('ü', "\\u00fc").replace('🔑', "\\ud83d\\udd11")),
        ("text in Rust's form", format!("{:?}", Some(VALUE))),
        ("bytes in Rust's form", format!("{:?}", Bytes::from_static(bytes))),
        ("list of numbers", format!("{bytes:?}")),
        ("list of numbers on many lines", format!("{bytes:#?}")),
        ("list of numbers as serde writes it", json!(bytes).to_string()),
        ("list of hex", format!("{bytes:x?}")),
        ("list of two-digit hex", format!("{bytes:02x?}")),
        ("hex", hex(false)),
        ("hex in upper case", hex(true)),
        ("base64", STANDARD.encode(bytes)),
        ("base64 after one byte", STANDARD.encode(inside("a"))),
        ("base64 after two bytes", STANDARD.encode(inside("ab"))),
        ("base64 after three bytes", STANDARD.encode(inside("abc"))),
        ("base64url after one byte", URL_SAFE_NO_PAD.encode(inside("a"))),
        ("base64 of JSON", STANDARD.encode(json!({"key": VALUE}).to_string())),
        ("URL-percent", "s%22e%5Cc%27r%0Ae%09t%20%3C%C3%BC%26%F0%9F%94%91%3E%20%2F%25%2B%3F%3D0123456789".to_owned()),
        ("form-percent", "s%22e%5Cc%27r%0Ae%09t+%3C%C3%BC%26%F0%9F%94%91%3E+%2F%25%2B%3F%3D0123456789".to_owned()),
        ("the first half", VALUE[..VALUE.floor_char_boundary(VALUE.len() / 2)].to_owned()),
    ];
    for (form, text) in texts {
        let text = format!("a line before\n{{\"message\":\"{text} and so on\"}}\n");
        assert!(!canary.search(text.as_bytes()).is_empty(), "not found: {form}");
    }
}

#[test]
fn a_canary_is_quiet_about_other_text_and_never_shows_the_value() {
    let values = random_values(20);
    let canary = Canary::new(&values);
    let others = random_values(200).join("\n");
    assert_eq!(canary.search(others.as_bytes()), Vec::<String>::new());
    for (index, value) in values.iter().enumerate() {
        let found = canary.search(format!("<{value}>").as_bytes());
        assert!(found.contains(&format!("value {index} in the form raw")), "found: {found:?}");
        let others = found.iter().filter(|found| !found.starts_with(&format!("value {index} ")));
        assert_eq!(others.count(), 0, "found: {found:?}");
    }
    let panic = catch_unwind(AssertUnwindSafe(|| canary.assert_absent("the log", &values[0])));
    let message = panic.expect_err("the value stands there").downcast::<String>().expect("the message is a text");
    assert!(message.contains("the log") && message.contains("value 0"), "the message says where and which");
    assert!(!message.contains(&values[0]), "the message shows the value");
}

// ---- store ----

/// Reads a secret as the SDK does, signed with the access key `AKIATEST`.
async fn read(store: &Store, path: &str) -> Result<Reply, String> {
    let request = Request::post(store.url())
        .header(
            "authorization",
            "AWS4-HMAC-SHA256 Credential=AKIATEST/20260101/us-east-1/secretsmanager/aws4_request, Signature=0",
        )
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amz-target", "secretsmanager.GetSecretValue")
        .body(Full::from(json!({"SecretId": path}).to_string()));
    Http::new().send(request.expect("the store's URL is one")).await
}

/// Asks STS with a form.
async fn ask_sts(store: &Store, form: &str) -> Reply {
    let request = Request::post(store.url())
        .header(
            "authorization",
            "AWS4-HMAC-SHA256 Credential=AKIATEST/20260101/us-east-1/sts/aws4_request, Signature=0",
        )
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Full::from(form.to_owned()));
    Http::new().send(request.expect("the store's URL is one")).await.expect("the store answers")
}

fn body(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_default()
}

#[tokio::test]
async fn a_store_answers_each_fault_as_aws_would() {
    let store = Store::stub(Duration::ZERO);
    let path = store.seed("db", "{}").await;
    let cases = [
        ("denied", Fault::AccessDenied, 400, "AccessDeniedException"),
        ("too many requests", Fault::Throttling, 400, "ThrottlingException"),
        ("marked for deletion", Fault::PendingDeletion, 400, "InvalidRequestException"),
        ("trouble on its side", Fault::Unavailable, 500, "InternalServiceError"),
        ("too many requests, come back later", Fault::RetryAfter(Duration::from_secs(7)), 400, "ThrottlingException"),
        ("unavailable, no JSON", Fault::Status(503), 503, ""),
        ("nonsense with a good status", Fault::Body("[1".to_owned()), 200, ""),
    ];
    for (case, fault, status, code) in cases {
        store.fail(&path, fault);
        let reply = read(&store, &path).await.expect("a whole answer");
        assert_eq!(reply.status.as_u16(), status, "case: {case}");
        assert_eq!(body(&reply)["__type"].as_str().unwrap_or_default(), code, "case: {case}");
        let pause = reply.headers.get("retry-after").map(|pause| pause.to_str().expect("a number"));
        assert_eq!(pause, case.contains("later").then_some("7"), "case: {case}");
    }
    store.heal(&path);
    assert_eq!(body(&read(&store, &path).await.expect("a whole answer"))["SecretString"], "{}");
    assert_eq!(store.calls(&path), 8, "spoiled requests count too");
}

#[tokio::test]
async fn a_truncated_answer_begins_well_and_breaks_off() {
    let store = Store::stub(Duration::ZERO);
    let path = store.seed("db", &"x".repeat(1000)).await;
    store.fail(&path, Fault::Truncated);
    let error = read(&store, &path).await.err().expect("an answer that breaks off is an error");
    // The head came through, or this would be an error of the request and not of its body.
    assert!(error.contains("end of file before message length reached"), "{error}");
}

#[tokio::test]
async fn an_answer_may_be_too_large_or_late() {
    let store = Store::stub(Duration::ZERO);
    let path = store.seed("db", "{}").await;
    store.fail(&path, Fault::Oversized);
    let reply = read(&store, &path).await.expect("a whole answer");
    assert!(reply.body.len() > 3 * 1024 * 1024 && body(&reply).is_object(), "{} bytes", reply.body.len());
    assert_eq!(reply.headers.get("content-length"), None, "its length would give it away");
    let pause = Duration::from_millis(50);
    store.fail(&path, Fault::Slow(pause));
    let began = Instant::now();
    assert_eq!(body(&read(&store, &path).await.expect("a whole answer"))["SecretString"], "{}");
    assert!(began.elapsed() >= pause, "the answer came after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_fault_hits_its_key_as_often_as_it_shall() {
    let store = Store::stub(Duration::ZERO);
    let (one, other) = (store.seed("db", "{}").await, store.seed("db", "{}").await);
    let status = async |path: &str| read(&store, path).await.expect("a whole answer").status.as_u16();
    store.fail_times(&one, 2, Fault::Status(500));
    assert_eq!(
        [status(&one).await, status(&other).await, status(&one).await, status(&one).await],
        [500, 200, 500, 200]
    );
    store.fail(GET, Fault::Status(503));
    store.fail(&one, Fault::Status(500));
    assert_eq!([status(&one).await, status(&other).await], [500, 503], "the secret's own fault wins");
    assert_eq!(ask_sts(&store, "Action=GetCallerIdentity&Version=2011-06-15").await.status, StatusCode::OK);
    assert_eq!((store.calls(&one), store.calls(&other), store.total_calls()), (4, 2, 6));
    assert_eq!(store.calls("GetCallerIdentity"), 1);
    assert_eq!(status("no-such").await, 503);
    store.heal(GET);
    let missing = read(&store, "no-such").await.expect("a whole answer");
    assert_eq!((missing.status.as_u16(), body(&missing)["__type"].as_str()), (400, Some("ResourceNotFoundException")));
}

#[tokio::test]
async fn a_gate_holds_the_value_that_was_asked_for() {
    let store = Store::stub(Duration::ZERO);
    let path = store.seed("db", "old").await;
    let gate = store.hold(&path);
    let answer = async { body(&read(&store, &path).await.expect("a whole answer"))["SecretString"].clone() };
    let rest = async {
        gate.held(1).await;
        store.put(&path, "new").await;
        assert_eq!((gate.count(), store.calls(&path)), (1, 1));
        gate.release();
    };
    let (answer, ()) = futures::join!(answer, rest);
    assert_eq!(answer, "old");
    assert_eq!(body(&read(&store, &path).await.expect("a whole answer"))["SecretString"], "new", "nothing is held now");
}

#[tokio::test]
async fn a_stub_answers_after_its_latency_and_all_at_once() {
    let store = Store::stub(Duration::from_secs(1));
    let path = store.seed("db", "{}").await;
    let began = Instant::now();
    futures::future::join_all((0..40).map(|_| read(&store, &path))).await;
    let took = began.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(20)).contains(&took), "40 requests at once took {took:?}");
    assert_eq!(store.calls(&path), 40);
}

#[tokio::test]
async fn a_store_passes_values_of_the_emulator() {
    let store = Store::start(Surroundings::get().await).await;
    let value = async |path: &str| body(&read(&store, path).await.expect("a whole answer"));
    let path = store.seed("/prod/db", r#"{"A": 12345678901234567890123}"#).await;
    let first = value(&path).await;
    assert_eq!(first["SecretString"], r#"{"A": 12345678901234567890123}"#);
    store.put(&path, "{}").await;
    let second = value(&path).await;
    assert_eq!(second["SecretString"], "{}");
    assert_ne!(first["VersionId"], second["VersionId"]);
    store.put_binary(&path, b"\0\xff").await;
    assert_eq!(value(&path).await["SecretBinary"], STANDARD.encode(b"\0\xff"));
    store.delete(&path).await;
    let gone = read(&store, &path).await.expect("a whole answer");
    assert_eq!((gone.status.as_u16(), body(&gone)["__type"].as_str()), (400, Some("ResourceNotFoundException")));
    assert_eq!(store.access_keys(&path), ["AKIATEST"; 4]);
}

#[tokio::test]
async fn a_store_gives_and_counts_credentials() {
    let surroundings = Surroundings::get().await;
    let store = Store::start(surroundings).await;
    let form = "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleSessionName=jasm\
                &RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fjasm&WebIdentityToken=one.token";
    let later = |seconds: i64| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        at.strftime("%Y-%m-%dT%H:").to_string()
    };
    let assumed = ask_sts(&store, form).await;
    assert_eq!(assumed.status, StatusCode::OK);
    store.set_web_identity_lifetime(Duration::from_secs(36_000));
    let text = ask_sts(&store, form).await.text();
    assert!(
        [later(36_000), later(35_990)].iter().any(|at| text.contains(&format!("<Expiration>{at}"))),
        "no such expiry"
    );
    assert_eq!(store.tokens("AssumeRoleWithWebIdentity"), ["one.token", "one.token"]);
    store.fail("AssumeRoleWithWebIdentity", Fault::AccessDenied);
    let denied = ask_sts(&store, form).await;
    assert_eq!(denied.status, StatusCode::FORBIDDEN);
    assert!(denied.text().contains("<Code>AccessDenied</Code>") && denied.text().contains(ACCESS_DENIED_TEXT));

    let token_file = surroundings.folder(&crate::support::unique("pod-identity")).join("token");
    std::fs::write(&token_file, "pod-token\n").expect("the folder is there");
    let credentials = async |token: &str| {
        let request = Request::get(store.pod_identity_url()).header("authorization", token).body(Full::default());
        Http::new().send(request.expect("the store's URL is one")).await.expect("the store answers")
    };
    assert_eq!(credentials("pod-token").await.status, StatusCode::NOT_FOUND, "nothing is served yet");
    store.serve_pod_identity(&token_file, "AKIAONE", Duration::from_secs(60));
    assert_eq!(credentials("another").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(body(&credentials("pod-token").await)["AccessKeyId"], "AKIAONE");
    store.fail(POD_IDENTITY, Fault::AccessDenied);
    assert_eq!(credentials("pod-token").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(store.calls(POD_IDENTITY), 4);
}

// ---- audit ----

#[tokio::test]
async fn the_audit_log_tells_agents_apart_and_counts_each_request_once() {
    let surroundings = Surroundings::get().await;
    let (one, other) = (AgentNode::create(surroundings).await, AgentNode::create(surroundings).await);
    let namespace = TestNamespace::create(surroundings).await;
    let client = one.client(surroundings).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace.name());
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace.name());
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    secrets.create(&dry_run, &marked("dry", one.name())).await.expect("a proper write passes");
    secrets.create(&PostParams::default(), &marked("wet", one.name())).await.expect("a proper write passes");
    // The admin's requests and the other node's are none of this node's.
    namespace.add_secret("admins", &[]).await;
    let theirs: Api<Pod> = Api::namespaced(other.client(surroundings).await, namespace.name());
    theirs.list(&ListParams::default()).await.expect("agents list pods");
    // A watch from its start to its end: two entries.
    let watch = pods.watch(&WatchParams::default().timeout(1), "0").await.expect("agents watch pods");
    watch.try_collect::<Vec<_>>().await.expect("a watch that ends in peace");

    let requests = audit::requests(surroundings, one.name()).await;
    let want = [("create secrets", 1), ("create secrets (dry run)", 1), ("watch pods", 1)];
    assert_eq!(tally(&requests), want.map(|(kind, count)| (kind.to_owned(), count)).into());
    assert!(requests.iter().all(|request| request.namespace == namespace.name() && request.node == one.name()));
    assert_eq!(requests.iter().map(|request| request.code).collect::<Vec<_>>(), [201, 201, 200]);
    assert_eq!(tally(&audit::requests(surroundings, other.name()).await), [("list pods".to_owned(), 1)].into());
    let all = audit::all_requests(surroundings).await;
    assert!(requests.iter().all(|request| all.contains(request)));
}

#[tokio::test]
async fn a_request_beyond_the_shipped_rules_stands_out() {
    let surroundings = Surroundings::get().await;
    let node = AgentNode::create(surroundings).await;
    let namespace = TestNamespace::create(surroundings).await;
    let client = node.client(surroundings).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace.name());
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace.name());
    let pods: Api<Pod> = Api::namespaced(client, namespace.name());
    pods.list(&ListParams::default()).await.expect("agents list pods");
    let rules = audit::shipped_rules();
    assert!(!rules.is_empty(), "rbac/ holds rules");
    assert_eq!(audit::excesses(&audit::requests(surroundings, node.name()).await, &rules), Vec::<String>::new());

    // Refused or not, each of these is one too many.
    let _ = secrets.get("a").await;
    let _ = secrets.list(&ListParams::default()).await;
    let _ = secrets.patch("a", &PatchParams::default(), &Patch::Merge(json!({}))).await;
    let _ = secrets.delete("a", &kube::api::DeleteParams::default()).await;
    let _ = maps.get("a").await;
    let _ = pods.get_status("a").await;
    let excesses = audit::excesses(&audit::requests(surroundings, node.name()).await, &rules);
    let verbs: Vec<_> = excesses.iter().map(|line| line.split(" by ").next().unwrap_or_default()).collect();
    let at = |what: &str, name: &str| format!("{what} {}/{name}", namespace.name());
    let want = [
        at("get secrets", "a"),
        at("list secrets", ""),
        at("patch secrets", "a"),
        at("delete secrets", "a"),
        at("get configmaps", "a"),
        at("get pods/status", "a"),
    ];
    assert_eq!(verbs, want);
}

#[tokio::test]
async fn an_agent_that_asks_for_too_much_fails_its_test() {
    let scene = Scene::set().await;
    let memory = scene.agent.memory();
    assert!((1 << 20..=memory.peak).contains(&memory.resident), "{memory:?}");
    let client = scene.builder.node().client(scene.surroundings).await;
    let secrets: Api<Secret> = Api::namespaced(client, scene.namespace.name());
    secrets.get("foreign").await.expect_err("agents read no Secret");
    let agent = scene.agent;
    let panic = catch_unwind(AssertUnwindSafe(|| drop(agent)));
    let message =
        panic.expect_err("the end of the agent shows it").downcast::<String>().expect("the message is a text");
    assert!(message.contains(&format!("get secrets {}/foreign", scene.namespace.name())), "{message}");
}

/// A Secret as the agent on `node` writes it.
fn marked(name: &str, node: &str) -> Secret {
    serde_json::from_value(agents_secret(node, name)).expect("this is a Secret")
}

// ---- cluster ----

#[tokio::test]
async fn pods_are_bound_with_the_state_they_shall_have() {
    let surroundings = Surroundings::get().await;
    let node = AgentNode::create(surroundings).await;
    let namespace = TestNamespace::create(surroundings).await;
    let (_, set) = namespace.deployment("web").await;
    let pod = namespace.pod("web").on(&node).asks("db", "app").owned_by(&set).create().await;
    let spec = pod.spec.clone().unwrap_or_default();
    assert_eq!(spec.node_name.as_deref(), Some(node.name()));
    assert_eq!(spec.service_account_name.as_deref(), Some("default"));
    assert_eq!(pod.owner_references()[0].kind, "ReplicaSet");

    let done = namespace.pod("done").on(&node).phase("Succeeded").create().await;
    let status = done.status.clone().unwrap_or_default();
    assert_eq!(status.phase.as_deref(), Some("Succeeded"));
    assert!(
        status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "PodScheduled" && condition.status == "True")
    );
    assert_eq!(done.spec.clone().unwrap_or_default().node_name.as_deref(), Some(node.name()));

    let annotated = namespace.annotate(&pod, "note", "1").await;
    assert_eq!(annotated.annotations()["note"], "1");
    assert!(!namespace.remove_annotation(&pod, "note").await.annotations().contains_key("note"));
    namespace.begin_delete_pod(&pod).await;
    let ending = namespace.api::<Pod>().get("web").await.expect("the pod stays");
    assert!(ending.metadata.deletion_timestamp.is_some());
    namespace.delete_pod(&done).await;
    assert!(namespace.api::<Pod>().get_opt("done").await.expect("pods can be read").is_none());
    for kind in ["StatefulSet", "DaemonSet", "Job", "CronJob"] {
        namespace.workload(kind, "other").await;
    }
}

#[tokio::test]
async fn a_wait_for_data_names_keys_and_no_value() {
    let surroundings = Surroundings::get().await;
    let namespace = TestNamespace::create(surroundings).await;
    namespace.add_secret("app", &[("A", "hunter2-a"), ("B", "hunter2-b")]).await;
    namespace.wait_for_data("app", [("A", "hunter2-a"), ("B", "hunter2-b")]).await;
    let want = [("B", "hunter2-c"), ("C", "hunter2-d")].map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()));
    let message = differences(&namespace.data("app").await, &want.into());
    assert_eq!(message, ["B has another value", "C is missing", "A is one too many"]);
}

#[tokio::test]
async fn an_event_is_found_on_its_own_pod_only() {
    let surroundings = Surroundings::get().await;
    let node = AgentNode::create(surroundings).await;
    let namespace = TestNamespace::create(surroundings).await;
    let (pod, other) = (namespace.pod("one").on(&node).create().await, namespace.pod("other").on(&node).create().await);
    let event = |name: &str, note: &str| {
        json!({
            "metadata": {"name": name},
            "eventTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
            "reportingController": "jasm.codnod.io/test", "reportingInstance": "test",
            "action": "Test", "reason": "Tested", "type": "Normal", "note": note,
            "regarding": {"kind": "Pod", "namespace": namespace.name(), "name": "one", "uid": pod.uid()},
        })
    };
    let _: k8s_openapi::api::events::v1::Event = namespace.add(event("first", "the first")).await;
    let _: k8s_openapi::api::events::v1::Event = namespace.add(event("second", "the second")).await;
    assert_eq!(namespace.wait_for_event(&pod, "Tested").await.note.as_deref(), Some("the second"));
    assert_eq!((namespace.events(&pod).await.len(), namespace.events(&other).await.len()), (2, 0));
}

#[tokio::test]
async fn quotas_and_the_end_of_a_namespace_are_in_force_on_return() {
    let surroundings = Surroundings::get().await;
    let node = AgentNode::create(surroundings).await;
    let namespace = TestNamespace::create(surroundings).await;
    let secrets: Api<Secret> = Api::namespaced(node.client(surroundings).await, namespace.name());
    let refusal = async |name: &str| match secrets.create(&PostParams::default(), &marked(name, node.name())).await {
        Err(kube::Error::Api(status)) => status.message.clone(),
        other => panic!("{name}: no refusal but {:?}", other.map(|_| "success")),
    };
    namespace.limit("count/secrets", 0).await;
    // Admission learns of it by a watch of its own.
    eventually("the quota's own refusal", async || match refusal("over-quota").await {
        said if said.contains("exceeded quota") => Ok(()),
        said => Err(said),
    })
    .await;
    namespace.terminate().await;
    let message = refusal("too-late").await;
    assert!(message.contains("is being terminated"), "{message}");
}

// ---- wait ----

#[tokio::test]
async fn a_wait_that_is_over_says_what_it_waited_for_and_what_it_found() {
    let mut tries = 0;
    let wait = try_within(Duration::from_millis(60), "the moon", async || {
        tries += 1;
        Err::<(), _>(format!("cheese {tries}"))
    });
    let message = wait.await.expect_err("there is none");
    assert!(tries > 1 && message == format!("waited 60ms for the moon; found cheese {tries}"), "{message}");
    let stuck = try_within(Duration::from_millis(20), "the moon", async || {
        futures::future::pending::<()>().await;
        Ok::<(), String>(())
    });
    assert!(stuck.await.expect_err("it never comes").contains("the last attempt got no answer"));
}
