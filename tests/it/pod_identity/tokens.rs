//! What the right to tokens is worth to a thief of the agent's token, and what a store is shown.

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec, TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::{account, by_pods, subject};
use crate::support::node::AgentNode;
use crate::support::store::WEB_IDENTITY;
use crate::support::wait::eventually;

/// Asks for a token with the agent's own; code and text of the answer.
async fn ask(client: &kube::Client, namespace: &str, account: &str, spec: Value) -> (u16, String) {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(kube::client::Body::from(body.to_string().into_bytes())).expect("a request");
    let reply = client.send(request).await.expect("an answer");
    let code = reply.status().as_u16();
    let body = http_body_util::BodyExt::collect(reply.into_body()).await.expect("a body").to_bytes();
    (code, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn the_agents_token_gets_tokens_for_stores_alone_bound_to_a_pod_and_for_ten_minutes() {
    let scene = by_pods().await;
    account(&scene, "app").await;
    let pod = scene.pod("web").service_account("app").create().await;
    // Of another node than the pod's: that no policy can tell.
    let client = AgentNode::create(scene.surroundings).await.client(scene.surroundings).await;
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": pod.uid()});
    let good = json!({"audiences": ["sts.amazonaws.com"], "expirationSeconds": 600, "boundObjectRef": bound});
    let with = |field: &str, value: Value| {
        let mut spec = good.clone();
        spec[field] = value;
        spec
    };
    let own = scene.namespace.name();
    let policy = "ValidatingAdmissionPolicy 'jasm-pod-tokens'";
    // The policy is as old as the right.
    eventually("the policy in force", async || {
        let (code, said) = ask(&client, own, "app", with("audiences", json!(["x"]))).await;
        if code == 403 && said.contains(policy) { Ok(()) } else { Err(said) }
    })
    .await;
    // Of the agent's account, and of no pod.
    let unbound = unbound_client(&scene).await;
    let (code, said) = ask(&unbound, own, "app", good.clone()).await;
    assert!(code == 403 && said.contains("the agent's token is not bound to a pod on a node"), "{code} {said}");
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "name": "x", "uid": "x"});
    for (case, namespace, account, spec, want) in [
        (
            "for the API server",
            own,
            "app",
            with("audiences", json!(["https://kubernetes.default.svc.cluster.local"])),
            policy,
        ),
        ("for whom it may concern", own, "app", with("audiences", json!([])), policy),
        ("for a store and more", own, "app", with("audiences", json!(["vault", "x"])), policy),
        ("for two stores", own, "app", with("audiences", json!(["vault", "sts.amazonaws.com"])), policy),
        ("bound to nothing", own, "app", with("boundObjectRef", Value::Null), policy),
        ("bound to a Secret", own, "app", with("boundObjectRef", secret), policy),
        (
            "bound to a name",
            own,
            "app",
            with("boundObjectRef", json!({"apiVersion": "v1", "kind": "Pod", "name": "web"})),
            policy,
        ),
        ("for an hour", own, "app", with("expirationSeconds", json!(3600)), policy),
        ("for as long as is usual", own, "app", with("expirationSeconds", Value::Null), policy),
        ("of the cluster's own accounts", "kube-system", "default", good.clone(), policy),
        ("of its own", "jasm-system", "jasm-agent", good.clone(), policy),
        ("of an account that the pod does not have", own, "default", good.clone(), "cannot bind token"),
        ("of an account that is not there", own, "nobody", good.clone(), r#""kind":"serviceaccounts""#),
        (
            "for a pod that is not there",
            own,
            "app",
            with("boundObjectRef", json!({"apiVersion": "v1", "kind": "Pod", "name": "gone", "uid": "x"})),
            r#""kind":"pods""#,
        ),
        (
            "for another pod of that name",
            own,
            "app",
            with("boundObjectRef", json!({"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "x"})),
            r#""kind":"Pod""#,
        ),
    ] {
        let (code, said) = ask(&client, namespace, account, spec).await;
        assert!((400..500).contains(&code) && said.contains(want), "case: {case}: {code} {said}");
        assert!(!said.contains("eyJ"), "case: {case}: no token comes back");
    }
    let (code, said) = ask(&client, own, "app", good.clone()).await;
    assert!(code == 201 && said.contains("eyJ"), "{code}");
    for (what, path) in
        [("list", "/api/v1/serviceaccounts".to_owned()), ("list", format!("/api/v1/namespaces/{own}/serviceaccounts"))]
    {
        let request = http::Request::get(path).body(kube::client::Body::empty()).expect("a request");
        assert_eq!(client.send(request).await.expect("an answer").status().as_u16(), 403, "{what}");
    }
}

/// A client with a token of the agent's account that is bound to nothing.
async fn unbound_client(scene: &crate::support::scene::Scene) -> kube::Client {
    let accounts: Api<ServiceAccount> = Api::namespaced(scene.surroundings.admin().await, "jasm-system");
    let request = TokenRequest {
        spec: TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() },
        ..TokenRequest::default()
    };
    let reply = accounts.create_token_request("jasm-agent", &PostParams::default(), &request).await.expect("a token");
    let folder = scene.surroundings.folder(&crate::support::unique("unbound"));
    let (file, token_file) = (folder.join("kubeconfig"), folder.join("token"));
    std::fs::write(&token_file, reply.status.expect("a token").token).expect("written");
    let of_node = std::fs::read_to_string(scene.builder.node().kubeconfig()).expect("a kubeconfig");
    let mut config: Value = serde_json::from_str(&of_node).expect("JSON");
    config["users"][0]["user"]["tokenFile"] = json!(token_file);
    std::fs::write(&file, config.to_string()).expect("written");
    scene.surroundings.client(&file).await
}

#[tokio::test]
async fn a_store_is_shown_a_token_of_the_pods_account_that_the_api_server_knows_and_does_not_take_itself() {
    let scene = by_pods().await;
    account(&scene, "app").await;
    let path = scene.store.seed("path", r#"{"A":"1"}"#).await;
    scene.pod("web").service_account("app").asks(&path, "app").create().await;
    scene.namespace.wait_for_secret("app").await;
    let token = scene.store.tokens(WEB_IDENTITY).remove(0);
    let reviews: Api<TokenReview> = Api::all(scene.surroundings.admin().await);
    let review = async |audiences: Option<Vec<String>>| {
        let spec = TokenReviewSpec { token: Some(token.clone()), audiences };
        let review = TokenReview { spec, ..TokenReview::default() };
        reviews.create(&PostParams::default(), &review).await.expect("a review").status.expect("an answer")
    };
    let shown = review(Some(vec!["sts.amazonaws.com".to_owned()])).await;
    let user = shown.user.expect("it is known");
    assert_eq!((shown.authenticated, user.username), (Some(true), Some(subject(&scene, "app"))));
    let extra = user.extra.expect("what it is bound to");
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], ["web"]);
    assert_ne!(review(None).await.authenticated, Some(true), "the API server itself does not take it");
    assert!(!scene.agent.text().contains(&token), "no log has it");
}
