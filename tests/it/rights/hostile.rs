//! Requests that nobody thought of: put together at random from all that the API server reads, always the same ones.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use http::{Method, Request};
use kube::client::Body;
use serde_json::{Value, json};

use super::{Treasure, valid};
use crate::support::canary::Canary;

/// Of each kind of Secret.
const REQUESTS: usize = 200;
const SEED: u64 = 7;

/// All that a Secret has, and what it does not.
const PLACES: [&str; 28] = [
    "/kind",
    "/apiVersion",
    "/type",
    "/immutable",
    "/data",
    "/data/A",
    "/data/C",
    "/stringData",
    "/stringData/A",
    "/metadata",
    "/metadata/name",
    "/metadata/namespace",
    "/metadata/generateName",
    "/metadata/uid",
    "/metadata/resourceVersion",
    "/metadata/generation",
    "/metadata/selfLink",
    "/metadata/creationTimestamp",
    "/metadata/deletionTimestamp",
    "/metadata/deletionGracePeriodSeconds",
    "/metadata/labels",
    "/metadata/labels/x",
    "/metadata/annotations",
    "/metadata/annotations/x",
    "/metadata/finalizers",
    "/metadata/ownerReferences",
    "/metadata/managedFields",
    "/unknown",
];

const KINDS: [&str; 12] = [
    "application/json",
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/cbor",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/apply-patch+cbor",
    "text/html",
    "",
];

const QUERIES: [&str; 9] = [
    "dryRun=All",
    "dryRun=some",
    "fieldValidation=Strict",
    "fieldValidation=Warn",
    "fieldValidation=Ignore",
    "fieldValidation=x",
    "pretty=true",
    "force=true",
    "fieldManager=x",
];

#[derive(Debug, Clone)]
struct Hostile {
    method: Method,
    /// Below the namespace's Secrets, with the query.
    at: String,
    content_type: &'static str,
    accept: &'static str,
    body: String,
}

fn one_of<T: Clone>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())].clone()
}

fn wrong(rng: &mut Rng) -> Value {
    let values = [
        Value::Null,
        json!(true),
        json!(7),
        json!(-1.5),
        json!(1e300),
        json!(""),
        json!("x"),
        json!("eA=="),
        json!("not base64"),
        json!("2026-01-01T00:00:00Z"),
        json!([]),
        json!([1, "x"]),
        json!([null]),
        json!({}),
        json!({"a": {"b": "c"}}),
        json!({"A": 1}),
        json!({"A/B": "eA=="}),
        json!([{"manager": "x", "fieldsV1": "x"}]),
        json!("\u{0}\u{fffd}"),
        json!("x".repeat(2000)),
        json!([[[[[[]]]]]]),
        json!("kubernetes.io/tls"),
        json!("kube-system"),
    ];
    one_of(rng, &values)
}

/// A Secret with one to three fields replaced or gone.
fn spoiled(rng: &mut Rng, valid: &Value) -> Value {
    let mut body = valid.clone();
    for _ in 0..rng.usize(1..=3) {
        let place = one_of(rng, &PLACES);
        let (parent, key) = place.rsplit_once('/').expect("a place has a slash");
        let parent = if parent.is_empty() { Some(&mut body) } else { body.pointer_mut(parent) };
        let Some(parent) = parent.and_then(Value::as_object_mut) else { continue };
        if rng.u8(..5) == 0 {
            parent.remove(key);
        } else {
            parent.insert(key.to_owned(), wrong(rng));
        }
    }
    body
}

fn json_patch(rng: &mut Rng) -> Value {
    let steps = (0..rng.usize(1..=3)).map(|_| {
        let op = one_of(rng, &["add", "replace", "remove", "test", "copy", "move", "x"]);
        json!({"op": op, "path": one_of(rng, &PLACES), "from": one_of(rng, &PLACES), "value": wrong(rng)})
    });
    steps.collect()
}

fn text(rng: &mut Rng, valid: &Value) -> String {
    let whole = match rng.u8(..4) {
        0 => json_patch(rng),
        _ => spoiled(rng, valid),
    }
    .to_string();
    match rng.u8(..12) {
        0 => one_of(rng, &["", "{", "null", "[]", "\"x\"", "k8s\u{0}\u{a}", "a: [", "\u{d9}\u{d9}\u{f7}", "- op: add"])
            .to_owned(),
        1 => whole[..whole.floor_char_boundary(rng.usize(..whole.len()))].to_owned(),
        _ => whole,
    }
}

fn hostile(rng: &mut Rng, name: &str, valid: &Value) -> Hostile {
    let method = one_of(rng, &[Method::PUT, Method::PUT, Method::PUT, Method::POST, Method::POST, Method::PATCH]);
    let other = match rng.u8(..8) {
        0 => "/absent".to_owned(),
        1 => String::new(),
        2 => format!("/{name}/{}", one_of(rng, &["status", "scale", "finalizers", "token", "x"])),
        _ => format!("/{name}"),
    };
    let at = if method == Method::POST && rng.u8(..4) > 0 { String::new() } else { other };
    let query: BTreeSet<_> = (0..rng.usize(..4)).map(|_| one_of(rng, &QUERIES)).collect();
    let query = query.into_iter().collect::<Vec<_>>().join("&");
    let content_type = if rng.bool() { "application/json" } else { one_of(rng, &KINDS) };
    let accept =
        one_of(rng, &["application/json", "application/yaml", "*/*", "application/json;as=Table;g=meta.k8s.io;v=v1"]);
    Hostile { method, at: format!("{at}?{query}"), content_type, accept, body: text(rng, valid) }
}

/// Status, and headers and body as one text.
async fn send(client: &kube::Client, namespace: &str, hostile: &Hostile) -> (u16, Vec<u8>) {
    let uri = format!("/api/v1/namespaces/{namespace}/secrets{}", hostile.at);
    let request = Request::builder().method(hostile.method.clone()).uri(uri);
    let request = request.header("Content-Type", hostile.content_type).header("Accept", hostile.accept);
    let request = request.body(Body::from(hostile.body.as_bytes().to_vec())).expect("a request");
    let reply = client.send(request).await.expect("the API server answers");
    let status = reply.status().as_u16();
    let mut text = format!("{:?}\n", reply.headers()).into_bytes();
    text.extend(http_body_util::BodyExt::collect(reply.into_body()).await.expect("a whole body").to_bytes());
    (status, text)
}

#[tokio::test]
async fn no_generated_request_with_the_agents_token_gives_back_a_stored_value() {
    let treasure = Treasure::hide().await;
    let namespace = treasure.scene.namespace.name();
    let stored = treasure.scene.namespace.wait_for_secret("managed").await;
    let mut rng = Rng::with_seed(SEED);
    let mut codes: BTreeMap<(String, u16), usize> = BTreeMap::new();
    for name in ["managed", "foreign"] {
        let valid = valid(&treasure.node, &treasure.scene.namespace, name);
        for number in 0..REQUESTS {
            let hostile = hostile(&mut rng, name, &valid);
            let (status, reply) = send(&treasure.thief, namespace, &hostile).await;
            treasure
                .canary
                .assert_absent(&format!("the reply {status} to {number} of seed {SEED}: {hostile:?}"), reply);
            *codes.entry((hostile.method.to_string(), status)).or_default() += 1;
            // The agent's own kind of write: put back what the next ones shall not give away.
            if status < 400 && treasure.scene.namespace.secret("managed").await.as_ref() != Some(&stored) {
                treasure.scene.namespace.edit_secret("managed", json!({"data": stored.data})).await;
            }
        }
    }
    let count = |wanted: &dyn Fn(&str, u16) -> bool| {
        codes.iter().filter(|((method, code), _)| wanted(method, *code)).map(|(_, count)| count).sum::<usize>()
    };
    assert!(count(&|_, _| true) >= 300, "{codes:?}");
    for code in [400, 403, 405, 409, 415, 422] {
        assert!(count(&|_, found| found == code) > 0, "no {code}: {codes:?}");
    }
    assert!(count(&|method, _| method == "PUT") >= 100 && count(&|method, _| method == "POST") >= 50, "{codes:?}");
    assert_eq!(count(&|method, code| method == "PATCH" && code < 400), 0, "{codes:?}");
    the_search_finds_what_an_administrator_is_told(&treasure).await;
}

/// The same requests, by somebody who may patch.
async fn the_search_finds_what_an_administrator_is_told(treasure: &Treasure) {
    let admin = treasure.scene.surroundings.admin().await;
    let namespace = treasure.scene.namespace.name();
    for name in ["managed", "foreign"] {
        let malformed = Hostile {
            method: Method::PATCH,
            at: format!("/{name}"),
            content_type: "application/json-patch+json",
            accept: "application/json",
            body: r#"[{"op": "add", "path": "/immutable", "value": "x"}]"#.to_owned(),
        };
        let (status, reply) = send(&admin, namespace, &malformed).await;
        assert_eq!(status, 422);
        assert!(!treasure.canary.search(&reply).is_empty(), "{name}: the search finds base64 in an error");
        let data = treasure.scene.namespace.data(name).await;
        assert!(
            !treasure.canary.search(&data["A"]).is_empty(),
            "{name} still holds its value, and the search finds it raw"
        );
    }
    let header = format!("{:?}", http::HeaderValue::from_static("planted-in-a-header"));
    assert!(
        !Canary::new(["planted-in-a-header"]).search(header.as_bytes()).is_empty(),
        "headers are searched as they come"
    );
}
