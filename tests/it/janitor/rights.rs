//! What the janitor's token must not be able to do, each refused by the API server.

use http::{Method, Request};
use k8s_openapi::api::core::v1::Secret;
use kube::client::Body;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::Stage;

#[tokio::test]
async fn the_janitors_token_deletes_replicas_in_a_named_state_and_does_nothing_else() {
    let stage = Stage::set().await;
    let path = stage.replica("replica").await;
    let namespace = &stage.scene.namespace;
    let plain = namespace.add_secret("plain", &[("A", "1")]).await;
    let replica = namespace.wait_for_secret("replica").await;
    let client = stage.scene.surroundings.client(&stage.kubeconfig).await;
    let send = async |method: Method, path: &str, body: Value| {
        let request = Request::builder().method(method).uri(path).header("Content-Type", "application/json");
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let reply = client.send(request.body(Body::from(body)).expect("a request")).await.expect("an answer");
        let code = reply.status().as_u16();
        let body = http_body_util::BodyExt::collect(reply.into_body()).await.expect("a body").to_bytes();
        (code, String::from_utf8_lossy(&body).into_owned())
    };
    let secret = |name: &str| format!("/api/v1/namespaces/{}/secrets/{name}", namespace.name());
    let state = |secret: &Secret| {
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {
            "uid": secret.uid(), "resourceVersion": secret.resource_version(),
        }})
    };
    let with = |mut options: Value, more: (&str, Value)| {
        options[more.0] = more.1;
        options
    };
    stage.replica("held").await;
    namespace.edit_secret("held", json!({"metadata": {"finalizers": ["example.com/stays"]}})).await;
    let held = namespace.wait_for_secret("held").await;
    let uid_alone = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": replica.uid()}});
    let all = format!("/api/v1/namespaces/{}/secrets", namespace.name());
    let master = stage.master(&path).await.expect("a master");
    let record = {
        let maps: Api<k8s_openapi::api::core::v1::ConfigMap> =
            Api::namespaced(stage.scene.surroundings.admin().await, &stage.masters);
        stage.recorded(&["replica", "held"]).await;
        let found = maps.list(&Default::default()).await.expect("records").items;
        found.into_iter().find(|map| map.name_any().starts_with("replicas-")).expect("a record")
    };
    let of_masters = |kind: &str, name: &str| format!("/api/v1/namespaces/{}/{kind}/{name}", stage.masters);
    let record_state = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {
        "uid": record.uid(), "resourceVersion": record.resource_version(),
    }});
    let refused = [
        ("a Secret of others", Method::DELETE, secret("plain"), state(&plain), "jasm:not-a-replica"),
        ("a replica without a state", Method::DELETE, secret("replica"), Value::Null, "jasm:state"),
        ("a replica by its UID alone", Method::DELETE, secret("replica"), uid_alone, "jasm:state"),
        ("one that waits for a finalizer", Method::DELETE, secret("held"), state(&held), "jasm:finalizers"),
        (
            "in the foreground",
            Method::DELETE,
            secret("replica"),
            with(state(&replica), ("propagationPolicy", json!("Foreground"))),
            "jasm:finalizers",
        ),
        (
            "as an orphan",
            Method::DELETE,
            secret("replica"),
            with(state(&replica), ("propagationPolicy", json!("Orphan"))),
            "jasm:finalizers",
        ),
        (
            "as an orphan, in the old words",
            Method::DELETE,
            secret("replica"),
            with(state(&replica), ("orphanDependents", json!(true))),
            "jasm:finalizers",
        ),
        ("watch nodes", Method::GET, "/api/v1/nodes?watch=1".to_owned(), Value::Null, "cannot watch resource"),
        ("delete a node", Method::DELETE, "/api/v1/nodes/any".to_owned(), Value::Null, "cannot delete resource"),
        ("all", Method::DELETE, all.clone(), Value::Null, "cannot deletecollection resource"),
        ("a record", Method::DELETE, of_masters("configmaps", &record.name_any()), record_state, "jasm:not-a-replica"),
        ("read a Secret", Method::GET, secret("plain"), Value::Null, "cannot get resource"),
        ("list Secrets", Method::GET, all.clone(), Value::Null, "cannot list resource"),
        ("list all Secrets", Method::GET, "/api/v1/secrets".to_owned(), Value::Null, "cannot list resource"),
        ("watch Secrets", Method::GET, format!("{all}?watch=1"), Value::Null, "cannot watch resource"),
        (
            "read a master by name",
            Method::GET,
            of_masters("secrets", &master.name_any()),
            Value::Null,
            "cannot get resource",
        ),
        ("write a Secret", Method::POST, all.clone(), json!({"metadata": {"name": "x"}}), "cannot create resource"),
        ("change a Secret", Method::PUT, secret("plain"), json!(plain), "cannot update resource"),
        ("patch a Secret", Method::PATCH, secret("plain"), json!({}), "cannot patch resource"),
        ("read pods", Method::GET, "/api/v1/pods".to_owned(), Value::Null, "cannot list resource"),
        (
            "another lease",
            Method::GET,
            format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases/x", stage.masters),
            Value::Null,
            "cannot get resource",
        ),
        (
            "a lease elsewhere",
            Method::POST,
            format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", namespace.name()),
            json!({"metadata": {"name": "x"}}),
            "cannot create resource",
        ),
        (
            "a token",
            Method::POST,
            "/api/v1/namespaces/jasm-system/serviceaccounts/jasm-agent/token".to_owned(),
            json!({}),
            "cannot create resource",
        ),
        (
            "delete a namespace",
            Method::DELETE,
            format!("/api/v1/namespaces/{}", namespace.name()),
            Value::Null,
            "cannot delete resource",
        ),
        (
            "delete a pod",
            Method::DELETE,
            format!("/api/v1/namespaces/{}/pods/replica", namespace.name()),
            Value::Null,
            "cannot delete resource",
        ),
        (
            "delete the policy",
            Method::DELETE,
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/jasm-janitor".to_owned(),
            Value::Null,
            "cannot delete resource",
        ),
    ];
    for (case, method, path, body, want) in refused {
        let (code, said) = send(method, &path, body).await;
        assert!(code == 403 && said.contains(want), "case: {case}: {code} {said}");
        assert!(!said.contains("MQ=="), "case: {case}: no value comes back");
    }
    let mut look = state(&replica);
    look["dryRun"] = json!(["All"]);
    let (code, said) = send(Method::DELETE, &secret("replica"), look).await;
    assert!(code == 403 && said.contains("jasm:replica uid="), "{code} {said}");
    assert_eq!(namespace.wait_for_secret("replica").await, replica);
    let mut other = replica.clone();
    other.metadata.resource_version = Some("1".to_owned());
    let (code, said) = send(Method::DELETE, &secret("replica"), state(&other)).await;
    assert_eq!(code, 409, "{said}");
    let (code, said) = send(Method::DELETE, &secret("replica"), state(&replica)).await;
    assert_eq!(code, 200, "{said}");
    let (code, said) = send(Method::DELETE, &of_masters("secrets", &master.name_any()), state(&master)).await;
    assert_eq!(code, 200, "{said}");
}
