//! The program as its operator meets it: flags, probes, signals.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use http::StatusCode;
use serde_json::json;

use crate::check::Files;
use crate::support::agent::{AgentBuilder, program};
use crate::support::own_thread::Server;
use crate::support::scene::Scene;
use crate::support::store::Store;
use crate::support::surroundings::Surroundings;

pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the program to its end with nothing but this environment.
pub(crate) fn run(arguments: &[&str], env: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(program());
    let output = command.args(arguments).env_clear().envs(env.iter().copied()).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

#[test]
fn a_wrong_flag_ends_with_2_and_names_flag_variable_and_what_is_allowed() {
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], [&'a str; 3]);
    let cases: &[Case<'_>] = &[
        (&[], &[], ["--node-name", "NODE_NAME", "is needed"]),
        (&["--freshness", "soon"], &[("NODE_NAME", "n")], ["--freshness", "JASM_FRESHNESS", "0s to 24h"]),
        (&[], &[("NODE_NAME", "n"), ("JASM_FRESHNESS", "soon")], ["--freshness", "JASM_FRESHNESS", "0s to 24h"]),
        (&[], &[("NODE_NAME", "n"), ("JASM_LISTEN", "8080")], ["--listen", "JASM_LISTEN", "port"]),
        (&[], &[("NODE_NAME", "n"), ("JASM_LOG_FORMAT", "xml")], ["--log-format", "JASM_LOG_FORMAT", "json and text"]),
        (&[], &[("NODE_NAME", "n"), ("JASM_LOG_LEVEL", "loud")], ["--log-level", "JASM_LOG_LEVEL", "trace"]),
        (&[], &[("NODE_NAME", "n"), ("JASM_JOURNALD", "on")], ["--journald", "JASM_JOURNALD", "true and false"]),
        (&["--no-such-flag"], &[("NODE_NAME", "n")], ["--no-such-flag", "unexpected", "--help"]),
    ];
    for (arguments, env, wanted) in cases {
        let ended = run(arguments, env);
        assert_eq!(ended.code, Some(2), "{arguments:?} {env:?}: {}", ended.stderr);
        for want in wanted {
            assert!(ended.stderr.contains(want), "{arguments:?} {env:?}: {:?} lacks {want:?}", ended.stderr);
        }
    }
}

#[test]
fn no_access_to_kubernetes_says_what_to_set() {
    let ended = run(&["--node-name", "n"], &[("AWS_REGION", "eu-west-1"), ("KUBECONFIG", "/nonexistent/kubeconfig")]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("KUBECONFIG"), "{}", ended.stderr);
}

#[test]
fn an_old_api_server_ends_the_start_and_is_named() {
    let version = json!({
        "major": "1", "minor": "29", "gitVersion": "v1.29.4", "gitCommit": "", "gitTreeState": "", "buildDate": "",
        "goVersion": "", "compiler": "", "platform": "",
    });
    let answer = version.to_string();
    let server = Server::start(async |listener| {
        let routes = Router::new().route("/version", get(async || ([("Content-Type", "application/json")], answer)));
        let _ = axum::serve(listener, routes).await;
    });
    let files = Files::new();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "old", "users": [{"name": "agent", "user": {}}],
        "contexts": [{"name": "old", "context": {"cluster": "old", "user": "agent"}}],
        "clusters": [{"name": "old", "cluster": {"server": server.url()}}],
    });
    let kubeconfig = files.write("kubeconfig", &kubeconfig.to_string());
    let env = [("AWS_REGION", "eu-west-1"), ("JASM_LISTEN", "127.0.0.1:0"), ("KUBECONFIG", kubeconfig.as_str())];
    let ended = run(&["--node-name", "n"], &env);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("Kubernetes v1.29.4, and the agent needs 1.30 or newer"), "{}", ended.stderr);
}

#[tokio::test]
async fn probes_answer_and_unknown_paths_and_methods_are_refused() {
    let scene = Scene::set().await;
    for path in ["/livez", "/readyz", "/healthz"] {
        let reply = scene.agent.get(path).await;
        assert_eq!((reply.status, reply.text().as_str()), (StatusCode::OK, "ok\n"), "{path}");
    }
    let metrics = scene.agent.get("/metrics").await.text();
    for want in ["jasm_build_info{version=", "jasm_admission_enforced 1", "jasm_policy_info{sha256=", "# EOF"] {
        assert!(metrics.contains(want), "{want} is not in {metrics}");
    }
    assert_eq!(scene.agent.get("/nowhere").await.status, StatusCode::NOT_FOUND);
    let mut socket = connect(&scene);
    socket.write_all(b"DELETE /livez HTTP/1.0\r\n\r\n").expect("sent");
    let mut reply = String::new();
    socket.read_to_string(&mut reply).expect("answered");
    assert!(reply.starts_with("HTTP/1.0 405"), "{reply}");
}

#[tokio::test]
async fn hostile_requests_are_let_go_and_the_probes_answer_meanwhile() {
    let scene = Scene::set().await;
    let before = scene.agent.memory().resident;
    let heads = [
        "GET /livez HTTP/1.1\r\nHost:".to_owned(),
        "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\n".to_owned(),
        "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 200000000000000\r\n\r\n".to_owned(),
        "POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n".to_owned(),
        "x".repeat(1_000_000),
        format!("GET /livez HTTP/1.1\r\n{}", "a: b\r\n".repeat(10_000)),
    ];
    let mut open = Vec::new();
    for head in &heads {
        for _ in 0..10 {
            let mut socket = connect(&scene);
            // The agent may have hung up before all of it was sent.
            let _ = socket.write_all(head.as_bytes());
            open.push(socket);
        }
    }
    assert_eq!(scene.agent.get("/livez").await.status, StatusCode::OK);
    for mut socket in open {
        // An answer or the end of the connection: not the 10 s of this socket's timeout.
        let mut rest = Vec::new();
        let ended = socket.read_to_end(&mut rest);
        let timed_out = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!timed_out, "a connection is still open");
    }
    assert_eq!(scene.agent.get("/livez").await.status, StatusCode::OK, "and after that");
    let grown = scene.agent.memory().resident.saturating_sub(before);
    assert!(grown < 10_000_000, "{grown} bytes more than before");
}

fn connect(scene: &Scene) -> TcpStream {
    let address = scene.agent.url().trim_start_matches("http://");
    let socket = TcpStream::connect(address).expect("the agent listens");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
    socket
}

#[tokio::test]
async fn sigterm_finishes_what_is_under_way_and_ends_with_0() {
    let mut scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let gate = scene.store.hold(&path);
    scene.pod("web").asks(&path, "app").create().await;
    gate.held(1).await;

    scene.agent.signal("TERM");
    scene
        .wait_for_log("that it is stopping", |line| {
            line["message"].as_str().is_some_and(|text| text.starts_with("stopping"))
        })
        .await;
    gate.release();

    assert_eq!(scene.agent.ended().await.code(), Some(0));
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    assert!(!scene.namespace.all_events().await.is_empty(), "the Event was sent too");
}

#[tokio::test]
async fn sigterm_does_not_wait_for_a_store_that_hangs() {
    let mut scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let gate = scene.store.hold(&path);
    scene.pod("web").asks(&path, "app").create().await;
    gate.held(1).await;
    let started = Instant::now();
    assert_eq!(scene.agent.terminate().await.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(18), "it took {:?}", started.elapsed());
}

#[tokio::test]
async fn a_killed_agent_does_the_rest_when_it_is_back() {
    let mut scene = Scene::set().await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let gate = scene.store.hold(&path);
    scene.pod("web").asks(&path, "app").create().await;
    gate.held(1).await;
    scene.agent.kill();
    gate.release();

    let mut again = scene.builder.spawn();
    again.ready().await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
}

#[tokio::test]
async fn a_refusal_in_one_namespace_never_makes_the_agent_unready() {
    let surroundings = Surroundings::get().await;
    let store = Store::start(surroundings).await;
    let builder = AgentBuilder::new(surroundings, &store).await.policy("rules: []");
    let namespace = crate::support::cluster::TestNamespace::create(surroundings).await;
    namespace.pod("denied").on(builder.node()).asks("a/b", "app").create().await;
    namespace.pod("malformed").on(builder.node()).request("nonsense").create().await;
    let mut agent = builder.spawn();
    agent.ready().await;
    let metrics = agent.get("/metrics").await.text();
    for want in
        [r#"jasm_requests_waiting{reason="PolicyDenied"} 1"#, r#"jasm_requests_waiting{reason="AnnotationInvalid"} 1"#]
    {
        assert!(metrics.contains(want), "{want} is not in {metrics}");
    }
    assert_eq!(agent.get("/readyz").await.status, StatusCode::OK);
}
