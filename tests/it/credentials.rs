//! Where the agent's AWS credentials come from, how they are renewed, and what is said when there are none.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::agent::AgentBuilder;
use crate::support::cluster::TestNamespace;
use crate::support::scene::{ALLOW_ALL, Scene};
use crate::support::store::{Fault, POD_IDENTITY, Store};
use crate::support::surroundings::Surroundings;

const ASSUME: &str = "AssumeRoleWithWebIdentity";
/// Each instance has credentials of its own, so that one is enough where they are counted.
const ONE: &str = "providers: [{name: aws-secretsmanager, kind: aws-secretsmanager, allowInsecure: true}]";
/// Shorter than the SDK's own margin, so that each use asks for new ones.
const SHORT: Duration = Duration::from_secs(1);

/// A builder without static credentials, and a token file.
fn with_token(builder: AgentBuilder) -> (AgentBuilder, PathBuf) {
    let file = builder.node().folder().join("aws-token");
    std::fs::write(&file, "token-1").expect("a token file");
    (builder.without_env("AWS_ACCESS_KEY_ID").without_env("AWS_SECRET_ACCESS_KEY"), file)
}

fn irsa(builder: AgentBuilder) -> AgentBuilder {
    let (builder, file) = with_token(builder);
    builder
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", &file.display().to_string())
        .env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/jasm")
        .env("AWS_ROLE_SESSION_NAME", "jasm")
}

#[tokio::test]
async fn irsa_is_used_and_its_token_file_is_read_again() {
    let scene = Scene::set_with_store(|builder, store| {
        store.set_web_identity_lifetime(SHORT);
        irsa(builder)
    })
    .await;
    let first = scene.store.seed("first", r#"{"A":"1"}"#).await;
    let second = scene.store.seed("second", r#"{"A":"2"}"#).await;
    scene.pod("web-1").asks(&first, "one").create().await;
    scene.namespace.wait_for_secret("one").await;
    std::fs::write(scene.builder.node().folder().join("aws-token"), "token-2").expect("a new token");
    scene.pod("web-2").asks(&second, "two").create().await;
    scene.namespace.wait_for_secret("two").await;

    let tokens = scene.store.tokens(ASSUME);
    assert_eq!(tokens.first().map(String::as_str), Some("token-1"));
    assert!(tokens.iter().any(|token| token == "token-2"), "{} tokens", tokens.len());
    let key = scene.store.access_keys(&first);
    assert!(key.iter().all(|key| key != "test" && !key.is_empty()), "the role's credentials sign: {key:?}");
}

#[tokio::test]
async fn one_role_session_serves_the_warm_up_and_every_fetch() {
    let scene = Scene::set_with(|builder| irsa(builder).providers(ONE)).await;
    for name in ["one", "two"] {
        let path = scene.store.seed(name, r#"{"A":"1"}"#).await;
        scene.pod(name).asks(&path, name).create().await;
        scene.namespace.wait_for_secret(name).await;
    }
    // An answer that comes after the two seconds of the warm-up is of no use to it.
    let (identity, assumed) = (scene.store.calls("GetCallerIdentity"), scene.store.calls(ASSUME));
    assert!(
        assumed == 1 && identity == 1 || assumed == 2 && identity <= 1,
        "{assumed} sessions, {identity} identities"
    );
}

#[tokio::test]
async fn a_denied_role_says_what_to_check() {
    let scene = Scene::set_with_store(|builder, store| {
        store.fail(ASSUME, Fault::AccessDenied);
        irsa(builder)
    })
    .await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(note.contains("no valid credentials") && note.contains("trust policy"), "{note}");
    assert_eq!(scene.store.calls(&path), 0, "nothing is asked with other credentials");

    scene.store.heal(ASSUME);
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
}

#[tokio::test]
async fn pod_identity_is_used_and_rotated() {
    let scene = Scene::set_with_store(|builder, store| {
        let (builder, file) = with_token(builder);
        store.serve_pod_identity(&file, "ASIAFIRST", SHORT);
        builder
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &store.pod_identity_url())
            .env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &file.display().to_string())
    })
    .await;
    let first = scene.store.seed("first", r#"{"A":"1"}"#).await;
    let second = scene.store.seed("second", r#"{"A":"2"}"#).await;
    scene.pod("web-1").asks(&first, "one").create().await;
    scene.namespace.wait_for_secret("one").await;
    let file = scene.builder.node().folder().join("aws-token");
    std::fs::write(&file, "token-2").expect("a new token");
    scene.store.serve_pod_identity(&file, "ASIASECOND", SHORT);
    scene.pod("web-2").asks(&second, "two").create().await;
    scene.namespace.wait_for_secret("two").await;

    assert_eq!(scene.store.access_keys(&first), ["ASIAFIRST"]);
    assert_eq!(scene.store.access_keys(&second), ["ASIASECOND"]);
    assert!(scene.store.tokens(POD_IDENTITY).iter().any(|token| token == "token-2"));
}

#[tokio::test]
async fn a_denied_pod_identity_says_what_to_check() {
    let scene = Scene::set_with_store(|builder, store| {
        let (builder, file) = with_token(builder);
        store.fail(POD_IDENTITY, Fault::AccessDenied);
        builder
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &store.pod_identity_url())
            .env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &file.display().to_string())
    })
    .await;
    let pod = scene.pod("web").asks("a/b", "app").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(note.contains("Pod Identity association"), "{note}");
}

#[tokio::test]
async fn without_credentials_the_pod_is_told_and_no_instance_metadata_is_asked() {
    let metadata = TcpListener::bind("127.0.0.1:0").expect("a free port");
    metadata.set_nonblocking(true).expect("a socket can be non-blocking");
    let endpoint = format!("http://{}", metadata.local_addr().expect("a bound socket has an address"));
    let scene =
        Scene::set_with(|builder| with_token(builder).0.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &endpoint)).await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(note.contains("set up IRSA, EKS Pod Identity or static credentials"), "{note}");
    assert_eq!(scene.store.calls(&path), 0);
    let asked = metadata.accept().map(|(_, from)| from);
    assert!(asked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "somebody asked for metadata");
}

#[tokio::test]
async fn expired_credentials_are_renewed_once_and_at_once() {
    let scene = Scene::set_with(|builder| irsa(builder).providers(ONE)).await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.store.fail_times(&path, 1, Fault::Status(401));
    scene.store.wait_for_calls(ASSUME, 1).await;
    let pod = scene.pod("web").asks(&path, "app").create().await;
    scene.namespace.wait_for_data("app", [("A", "1")]).await;
    scene.namespace.wait_for_event(&pod, "SecretSyncSuccess").await;
    assert_eq!(scene.namespace.events(&pod).await.len(), 1, "no failure is told");
    let assumed = scene.store.calls(ASSUME);
    // A third one where the warm-up had no time.
    assert!((2..=3).contains(&assumed), "{assumed}: new credentials are asked for, once");
}

#[tokio::test]
async fn an_identity_that_sts_does_not_tell_reads_unknown() {
    let scene = Scene::set_with_store(|builder, store| {
        store.fail("GetCallerIdentity", Fault::AccessDenied);
        builder
    })
    .await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    scene.store.fail(&path, Fault::AccessDenied);
    let pod = scene.pod("web").asks(&path, "app").create().await;
    let note = scene.namespace.wait_for_event(&pod, "SecretFetchFailed").await.note.unwrap_or_default();
    assert!(note.contains("to unknown"), "{note}");
}

#[tokio::test]
async fn an_sts_that_hangs_gates_neither_readiness_nor_work() {
    let surroundings = Surroundings::get().await;
    let store = Store::start(surroundings).await;
    let _held = store.hold("GetCallerIdentity");
    let builder = AgentBuilder::new(surroundings, &store).await.policy(ALLOW_ALL).providers(ONE);
    let mut agent = builder.spawn();
    agent.ready().await;
    let namespace = TestNamespace::create(surroundings).await;
    let path = store.seed("config", r#"{"A":"1"}"#).await;
    namespace.pod("web").on(builder.node()).asks(&path, "app").create().await;
    namespace.wait_for_data("app", [("A", "1")]).await;
    store.wait_for_calls("GetCallerIdentity", 1).await;
}

#[tokio::test]
async fn an_instance_of_the_operators_file_has_its_own_name_region_and_endpoint() {
    let scene = Scene::set_with_store(|builder, store| {
        let endpoint = store.url().to_owned();
        let file = format!(
            "providers: [{{name: aws-eu, kind: aws-secretsmanager, region: us-east-1, endpoint: '{endpoint}', allowInsecure: true}}]"
        );
        // STS is not at that endpoint: it is left to its own, which nobody answers.
        builder.providers(&file).without_env("AWS_REGION").env("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    })
    .await;
    let path = scene.store.seed("config", r#"{"A":"1"}"#).await;
    let request =
        |provider: &str| serde_json::json!({"provider": provider, "path": path, "secretName": provider}).to_string();
    scene.pod("known").request(&request("aws-eu")).create().await;
    scene.namespace.wait_for_data("aws-eu", [("A", "1")]).await;
    let pod = scene.pod("unknown").request(&request("aws-secretsmanager")).create().await;
    let note = scene.namespace.wait_for_event(&pod, "ProviderUnsupported").await.note.unwrap_or_default();
    assert!(note.contains("configured: aws-eu"), "{note}");
}

#[tokio::test]
async fn instance_metadata_is_asked_where_the_operator_says_so() {
    let metadata = TcpListener::bind("127.0.0.1:0").expect("a free port");
    metadata.set_nonblocking(true).expect("a socket can be non-blocking");
    let endpoint = format!("http://{}", metadata.local_addr().expect("a bound socket has an address"));
    let _scene = Scene::set_with(|builder| {
        let file = "providers: [{name: aws-secretsmanager, kind: aws-secretsmanager, region: us-east-1, imds: true, allowInsecure: true}]";
        with_token(builder).0.providers(file).env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &endpoint)
    })
    .await;
    crate::support::wait::eventually("a question for metadata", async || {
        metadata.accept().map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
}
