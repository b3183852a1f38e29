//! What a thief of the agent's token tries: everything that the API server has to refuse, each with the reason that it
//! gives, and what is left to him. The token is that of an agent as it is installed, bound to a pod and its node.

mod attempts;
mod thief;

use http::{Method, Request};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::support::node::{AGENT_NAMESPACE, AgentNode, agents_secret};
use crate::support::surroundings::Surroundings;
use crate::support::wait::eventually;
use thief::{Attempt, Thief, Want, attempt};

#[tokio::test]
async fn the_api_server_refuses_each_of_these_and_says_why() {
    let thief = Thief::with_a_token().await;
    let attempts = attempts::all(&thief);
    assert!(attempts.len() >= 40, "{} attempts", attempts.len());
    let mut wrong = Vec::new();
    for attempt in &attempts {
        if let Err(problem) = thief.fails_at(attempt).await {
            wrong.push(format!("{}: {problem}", attempt.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), attempts.len());
    thief.assert_nothing_is_changed().await;
}

#[tokio::test]
async fn what_is_allowed_is_found_to_be_no_refusal() {
    let thief = Thief::with_a_token().await;
    for mut allowed in still_possible(&thief) {
        allowed.want = Want::Rbac("get", "secrets");
        let found = thief.fails_at(&allowed).await;
        assert!(found.as_ref().is_err_and(|found| found.starts_with("accepted")), "{}: {found:?}", allowed.name);
    }
    // Refused, and for another reason than the list says.
    let other = attempt("a read", Method::GET, thief.secret("managed"), Value::Null, Want::Rbac("list", "secrets"));
    let found = thief.fails_at(&other).await;
    assert!(found.as_ref().is_err_and(|found| found.contains("cannot get resource")), "{found:?}");
}

#[tokio::test]
async fn a_thief_can_still_do_this() {
    let thief = Thief::with_a_token().await;
    for allowed in still_possible(&thief) {
        let outcome = thief.fails_at(&allowed).await;
        assert_eq!(outcome, Ok(()), "{}", allowed.name);
    }
    let overwritten = thief.namespace.wait_for_secret("managed").await;
    let annotations = overwritten.metadata.annotations.unwrap_or_default();
    assert_eq!(annotations["jasm.codnod.io/node"], thief.node.name(), "whoever overwrites leaves his node's name");
}

#[tokio::test]
async fn a_token_ends_with_its_pod() {
    let surroundings = Surroundings::get().await;
    let node = AgentNode::create(surroundings).await;
    let pods: Api<Pod> = Api::namespaced(surroundings.admin().await, AGENT_NAMESPACE);
    let name = format!("jasm-agent-{}", node.name());
    pods.delete(&name, &DeleteParams::default().grace_period(0)).await.expect("an administrator may");
    let thief = node.client(surroundings).await;
    eventually("the token to be refused", async || {
        match thief.request_text(Request::get("/version").body(Vec::new()).expect("a request")).await {
            Err(kube::Error::Api(status)) if status.code == 401 => Ok(()),
            Err(error) => Err(format!("another refusal: {error}")),
            Ok(_) => Err("that it still holds".to_owned()),
        }
    })
    .await;
}

/// The rights of the agent itself. What `docs/security.md` says of a stolen token is this list.
fn still_possible(thief: &Thief) -> Vec<Attempt> {
    let overwriting = agents_secret(thief.node.name(), "managed");
    let event = json!({
        "metadata": {"generateName": "stolen-"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal", "reason": "Stolen", "action": "Stolen",
        "reportingController": "jasm.codnod.io/agent", "reportingInstance": "x",
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": thief.namespace.name(), "name": "victim"},
    });
    let of = |resource: &str| thief.path("", resource);
    let myself = |kind: &str| (format!("/apis/authorization.k8s.io/v1/{}s", kind.to_lowercase()), kind.to_owned());
    let (access, access_kind) = myself("SelfSubjectAccessReview");
    let (rules, rules_kind) = myself("SelfSubjectRulesReview");
    let access_of =
        json!({"kind": access_kind, "spec": {"resourceAttributes": {"verb": "get", "resource": "secrets"}}});
    let rules_of = json!({"kind": rules_kind, "spec": {"namespace": thief.namespace.name()}});
    let rows = [
        (
            "write a new Secret of the agent's form",
            Method::POST,
            of("secrets"),
            agents_secret(thief.node.name(), "new"),
        ),
        ("overwrite a Secret of the agent's", Method::PUT, of("secrets/managed"), overwriting),
        ("read a workload by its name", Method::GET, thief.path("apps/v1", "deployments/app"), Value::Null),
        ("list all pods of the cluster", Method::GET, "/api/v1/pods?limit=1".to_owned(), Value::Null),
        ("write an Event about any pod", Method::POST, thief.path("events.k8s.io/v1", "events"), event),
        ("ask what it may do (one right)", Method::POST, access, access_of),
        ("ask what it may do (all rights)", Method::POST, rules, rules_of),
        ("ask for the version", Method::GET, "/version".to_owned(), Value::Null),
    ];
    rows.map(|(name, method, path, body)| attempt(name, method, path, body, Want::Done)).into()
}
