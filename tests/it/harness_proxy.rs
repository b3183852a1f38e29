//! Tests of the proxy in front of the API server: of what could be wrong without any other test turning red, as trouble
//! that is none, words that no API server says, or a request that is changed on its way.

use std::time::Duration;

use futures::{Stream, StreamExt as _, poll};
use http::{HeaderMap, Request};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{PostParams, WatchEvent, WatchParams};
use kube::client::Body;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::support::api_proxy::{ApiProxy, Match, Refusal, Trouble};
use crate::support::audit::{requests, tally};
use crate::support::cluster::TestNamespace;
use crate::support::node::{AgentNode, agents_secret};
use crate::support::scene::calls;
use crate::support::surroundings::Surroundings;
use crate::support::unique;
use crate::support::wait::{DEADLINE, eventually};

/// An agent's identity with two ways to the API server.
struct Ways {
    surroundings: &'static Surroundings,
    node: AgentNode,
    namespace: TestNamespace,
    direct: Client,
    proxied: Client,
    proxy: ApiProxy,
}

/// An answer of whatever status, whole.
struct Reply {
    code: u16,
    headers: HeaderMap,
    text: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{:?} is not JSON: {error}", self.text))
    }
}

impl Ways {
    async fn open() -> Self {
        let surroundings = Surroundings::get().await;
        let node = AgentNode::create(surroundings).await;
        let namespace = TestNamespace::create(surroundings).await;
        let proxy = ApiProxy::start(surroundings);
        let direct = node.client(surroundings).await;
        let proxied = surroundings.client(&proxy.kubeconfig(&node)).await;
        Self { surroundings, node, namespace, direct, proxied, proxy }
    }

    fn secrets(&self) -> String {
        format!("/api/v1/namespaces/{}/secrets", self.namespace.name())
    }

    fn secret(&self, name: &str) -> Value {
        agents_secret(self.node.name(), name)
    }

    async fn create(&self, name: &str) -> Result<Reply, String> {
        send(&self.proxied, "POST", &self.secrets(), self.secret(name)).await
    }

    /// Secrets that the agent's identity has created in the namespace, as the API server counts them.
    async fn created(&self) -> usize {
        let all = requests(self.surroundings, self.node.name()).await;
        tally(all.iter().filter(|request| request.code == 201)).remove("create secrets").unwrap_or_default()
    }
}

/// Sends one request and reads the whole answer.
async fn send(client: &Client, method: &str, uri: &str, body: Value) -> Result<Reply, String> {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string().into_bytes()) };
    let request = Request::builder().method(method).uri(uri).header("content-type", "application/json").body(body);
    let sent = client.send(request.expect("the parts of a request")).await.map_err(|error| error.to_string())?;
    let (head, body) = sent.into_parts();
    let body = body.collect_bytes().await.map_err(|error| error.to_string())?;
    Ok(Reply { code: head.status.as_u16(), headers: head.headers, text: String::from_utf8_lossy(&body).into_owned() })
}

/// What comes next out of a watch.
async fn next(watch: &mut (impl Stream<Item = kube::Result<WatchEvent<Pod>>> + Unpin)) -> Option<kube::Result<String>> {
    let event = tokio::time::timeout(DEADLINE, watch.next()).await.expect("something comes out of the watch")?;
    Some(event.map(|event| match event {
        WatchEvent::Added(pod) => pod.metadata.name.unwrap_or_default(),
        other => format!("{other:?}"),
    }))
}

#[tokio::test]
async fn what_is_in_no_trouble_goes_on_as_it_came_and_is_counted() {
    let ways = Ways::open().await;
    for (method, path) in [("GET", "/version"), ("GET", "/api/v1/pods?limit=1"), ("DELETE", "/api/v1/nodes/none")] {
        let [direct, proxied] = [&ways.direct, &ways.proxied].map(|client| send(client, method, path, Value::Null));
        let (direct, proxied) = (direct.await.expect("an answer"), proxied.await.expect("an answer"));
        assert_eq!(
            (direct.code, direct.headers.get("content-type")),
            (proxied.code, proxied.headers.get("content-type"))
        );
        let [direct, proxied] = [direct, proxied].map(|reply| {
            let mut json = reply.json();
            // A list has the version of its moment.
            json["metadata"] = Value::Null;
            json
        });
        assert_eq!(direct, proxied, "{method} {path}");
    }
    let dry = format!("{}?dryRun=All", ways.secrets());
    let reply = send(&ways.proxied, "POST", &dry, ways.secret("dry")).await.expect("an answer");
    assert_eq!(reply.code, 201, "{}", reply.text);
    assert_eq!(ways.create("wet").await.expect("an answer").code, 201);

    let all = requests(ways.surroundings, ways.node.name()).await;
    let written = tally(all.iter().filter(|request| request.resource == "secrets"));
    assert_eq!(
        written,
        calls([("create secrets", 1), ("create secrets (dry run)", 1)]),
        "the agent's token, unchanged"
    );
    let posts = Match::new("POST", "/secrets");
    let counts =
        [posts.clone(), posts.clone().dry_run(true), posts.clone().dry_run(false), Match::new("PUT", "/secrets")];
    assert_eq!(counts.map(|matches| ways.proxy.calls(&matches)), [2, 1, 1, 0]);
    ways.proxy.wait_for_calls(&Match::path(ways.namespace.name()), 2).await;
}

#[tokio::test]
async fn each_trouble_is_what_it_says() {
    let ways = Ways::open().await;
    let posts = || Match::new("POST", "/secrets");

    let outage = ways.proxy.fail(posts(), Trouble::Cut);
    ways.create("cut").await.err().expect("the connection ends");
    assert_eq!((ways.created().await, outage.count()), (0, 1));
    outage.heal();

    let outage = ways.proxy.fail(posts(), Trouble::LostReply);
    ways.create("lost").await.err().expect("the connection ends");
    assert_eq!((ways.created().await, outage.count()), (1, 1));
    outage.heal();

    let outage = ways.proxy.fail(posts(), Trouble::BlackHole);
    let mut held = Box::pin(ways.create("hole"));
    assert!(poll!(&mut held).is_pending());
    tokio::select! { _ = &mut held => panic!("an answer out of a black hole"), () = outage.hit(1) => {} }
    assert_eq!(ways.created().await, 1, "the API server has not heard of it");
    outage.heal();
    assert_eq!(held.await.expect("an answer").code, 201);

    let outage = ways.proxy.fail(posts(), Trouble::HeldReply);
    let mut held = Box::pin(ways.create("held"));
    tokio::select! { _ = &mut held => panic!("an answer that is held"), () = outage.hit(1) => {} }
    assert_eq!(ways.created().await, 3, "it is done");
    outage.heal();
    assert_eq!(held.await.expect("an answer").code, 201);

    let outage = ways.proxy.fail(posts(), Trouble::Delay(Duration::from_millis(200)));
    let began = tokio::time::Instant::now();
    assert_eq!(ways.create("late").await.expect("an answer").code, 201);
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    drop(outage);
    assert_eq!(ways.created().await, 4);
}

#[tokio::test]
async fn trouble_befalls_the_requests_it_is_for_in_their_turn() {
    let ways = Ways::open().await;
    let code =
        async |method: &str, path: &str| send(&ways.proxied, method, path, Value::Null).await.expect("an answer").code;
    let pods = "/api/v1/pods?limit=1";
    let second_and_third =
        ways.proxy.fail(Match::new("GET", "/pods").after(1).times(2), Trouble::Refused(Refusal::Unavailable));
    let codes =
        [code("GET", pods).await, code("GET", pods).await, code("GET", "/version").await, code("GET", pods).await];
    assert_eq!(codes, [200, 503, 200, 503]);
    assert_eq!((code("GET", pods).await, second_and_third.count()), (200, 2));

    let all = ways.proxy.fail(Match::path(""), Trouble::Refused(Refusal::Unavailable));
    let newer = ways.proxy.fail(Match::path("/pods"), Trouble::Refused(Refusal::Overloaded { retry_after: 7 }));
    assert_eq!([code("GET", pods).await, code("GET", "/version").await], [429, 503], "the newest takes effect");
    newer.heal();
    assert_eq!((code("GET", pods).await, all.count()), (503, 2), "what the newest took, the other has not seen");
    drop(all);
    assert_eq!(code("GET", pods).await, 200, "nothing is left of it");

    let watches = ways.proxy.fail(Match::resumed_watch(), Trouble::Refused(Refusal::Unavailable));
    assert_eq!(code("GET", "/api/v1/pods?watch=true&resourceVersion=0&timeoutSeconds=1").await, 503);
    let initial = "/api/v1/pods?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    assert_eq!((code("GET", initial).await, code("GET", pods).await, watches.count()), (200, 200, 1));
}

#[tokio::test]
async fn refusals_are_in_the_api_servers_own_words() {
    let ways = Ways::open().await;
    let secrets = ways.secrets();
    ways.create("app").await.expect("an answer");
    let mut stale = ways.secret("app");
    stale["metadata"]["resourceVersion"] = json!("1");
    let elsewhere = "/api/v1/namespaces/no-such-namespace/secrets".to_owned();
    let events = format!("/apis/events.k8s.io/v1/namespaces/{}/events", ways.namespace.name());
    let cases = [
        (Refusal::NoRight, "DELETE", format!("{secrets}/app"), Value::Null),
        (Refusal::NoRight, "POST", secrets.replace("secrets", "configmaps"), json!({"metadata": {"name": "a"}})),
        (Refusal::NoRight, "GET", events.clone(), Value::Null),
        (Refusal::NoRight, "PUT", format!("{events}/a"), json!({"metadata": {"name": "a"}})),
        (Refusal::NoRight, "GET", "/api/v1/nodes".to_owned(), Value::Null),
        (Refusal::NoNamespace, "POST", elsewhere, ways.secret("app")),
        (Refusal::AlreadyExists, "POST", secrets.clone(), ways.secret("app")),
        (Refusal::Conflict, "PUT", format!("{secrets}/app"), stale),
    ];
    for (refusal, method, path, body) in cases {
        let real = send(&ways.direct, method, &path, body.clone()).await.expect("an answer");
        let outage = ways.proxy.fail(Match::path(""), Trouble::Refused(refusal));
        let ours = send(&ways.proxied, method, &path, body).await.expect("an answer");
        assert_eq!((ours.code, ours.json()), (real.code, real.json()), "{refusal:?}: {method} {path}");
        assert_eq!(ours.headers.get("content-type"), real.headers.get("content-type"), "{refusal:?}");
        outage.heal();
    }
    // Nobody can make an API server busy to order: what its source says.
    let cases = [
        (Refusal::Overloaded { retry_after: 1 }, 429, "Too many requests, please try again later.\n", Some("1")),
        (Refusal::Initializing { retry_after: 3600 }, 429, r#""reason":"TooManyRequests""#, Some("3600")),
        (Refusal::Unavailable, 503, r#""reason":"ServiceUnavailable""#, None),
    ];
    for (refusal, code, text, retry_after) in cases {
        let _outage = ways.proxy.fail(Match::path(""), Trouble::Refused(refusal));
        let reply = send(&ways.proxied, "GET", "/api/v1/pods", Value::Null).await.expect("an answer");
        let said = reply.headers.get("retry-after").and_then(|value| value.to_str().ok());
        assert_eq!((reply.code, said), (code, retry_after));
        assert!(reply.text.contains(text), "{}", reply.text);
    }
}

#[tokio::test]
async fn a_state_that_is_gone_is_told_as_the_api_server_does() {
    let ways = Ways::open().await;
    let real = send(&ways.surroundings.admin().await, "GET", &long_gone(&ways).await, Value::Null).await;
    let real = real.expect("an answer");
    let watch = "/api/v1/pods?watch=true&resourceVersion=1";
    let in_stream = ways.proxy.fail(Match::watch(), Trouble::ExpiredInStream);
    let ours = send(&ways.proxied, "GET", watch, Value::Null).await.expect("an answer");
    in_stream.heal();
    // It names two versions, which no two API servers have in common.
    let no_digits = |reply: &Reply| {
        let mut json = reply.json();
        let message = json["object"]["message"].as_str().unwrap_or_default();
        json["object"]["message"] = message.split(|c: char| c.is_ascii_digit()).collect::<String>().into();
        json
    };
    assert_eq!((ours.code, no_digits(&ours)), (real.code, no_digits(&real)));

    let _as_an_answer = ways.proxy.fail(Match::watch(), Trouble::Refused(Refusal::Expired));
    let refused = send(&ways.proxied, "GET", watch, Value::Null).await.expect("an answer");
    assert_eq!((refused.code, refused.json()), (410, ours.json()["object"].clone()));
}

/// A watch that the API server has no history for: of a resource that is younger than the version to go on from.
async fn long_gone(ways: &Ways) -> String {
    let plural = unique("things");
    let group = format!("{plural}.test.jasm.codnod.io");
    let name = format!("{plural}.{group}");
    let schema = json!({"openAPIV3Schema": {"type": "object"}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": group,
            "scope": "Cluster",
            "names": {"plural": plural, "singular": plural, "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}],
        },
    });
    let admin = ways.surroundings.admin().await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let made = send(&admin, "POST", definitions, definition).await.expect("an answer");
    assert_eq!(made.code, 201, "{}", made.text);
    let things = format!("/apis/{group}/v1/{plural}");
    eventually("the new resource", async || match send(&admin, "GET", &things, Value::Null).await?.code {
        200 => Ok(()),
        code => Err(code.to_string()),
    })
    .await;
    format!("{things}?watch=true&resourceVersion=1&timeoutSeconds=10")
}

#[tokio::test]
async fn a_watch_comes_through_piece_by_piece_until_it_is_silenced_or_cut() {
    let ways = Ways::open().await;
    let pods: Api<Pod> = Api::namespaced(ways.proxied.clone(), ways.namespace.name());
    let watch =
        async || pods.watch(&WatchParams::default().disable_bookmarks(), "0").await.expect("agents watch pods").boxed();
    let mut silenced = watch().await;
    ways.namespace.pod("first").create().await;
    assert_eq!(next(&mut silenced).await.expect("an event").expect("a pod"), "first", "while the watch goes on");

    ways.proxy.silence_watches().await;
    let mut open = watch().await;
    assert_eq!(next(&mut open).await.expect("an event").expect("a pod"), "first");
    ways.namespace.pod("second").create().await;
    assert_eq!(next(&mut open).await.expect("an event").expect("a pod"), "second", "a new one is not silent");
    let quiet = tokio::time::timeout(Duration::from_millis(300), silenced.next()).await;
    assert!(quiet.is_err(), "out of a silent watch came {quiet:?}");

    ways.proxy.cut_watches().await;
    for watch in [&mut silenced, &mut open] {
        let after = next(watch).await;
        assert!(!matches!(after, Some(Ok(_))), "out of a cut watch came {after:?}");
    }
    let uri = format!("/api/v1/namespaces/{}/pods?watch=true&resourceVersion=0", ways.namespace.name());
    let whole = send(&ways.proxied, "GET", &uri, Value::Null);
    let (whole, ()) = futures::join!(whole, ways.proxy.cut_watches());
    assert!(whole.is_err(), "it ends as a connection does that breaks, not as an answer");
    let secrets: Api<Secret> = Api::namespaced(ways.proxied.clone(), ways.namespace.name());
    let secret = serde_json::from_value(ways.secret("later")).expect("a Secret");
    secrets.create(&PostParams::default(), &secret).await.expect("other requests are not concerned");
}
