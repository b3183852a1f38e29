//! Vault.

use std::time::Duration;

use http::Request;
use serde_json::{Value, json};

use super::{body, send};
use crate::support::http::Reply;
use crate::support::node::AgentNode;
use crate::support::store::Fault;
use crate::support::surroundings::Surroundings;
use crate::support::vault::{
    AUDIENCE, KV1, KV2, LOGIN, LOOKUP, MOUNT, PERMISSION_DENIED_TEXT, READ, RENEW, ROLE, Vault,
};

async fn get(vault: &Vault, token: &str, path: &str) -> Reply {
    let request = Request::get(format!("{}/v1/{path}", vault.url())).header("x-vault-token", token);
    send(request.header("x-vault-namespace", "team-a"), &Value::Null).await
}

async fn post(vault: &Vault, token: &str, path: &str, wanted: Value) -> Reply {
    let request = Request::post(format!("{}/v1/{path}", vault.url())).header("x-vault-token", token);
    send(request, &wanted).await
}

async fn read(vault: &Vault, token: &str, path: &str) -> Reply {
    get(vault, token, &format!("{KV2}/data/{path}")).await
}

/// The token of a login, and how long it lives; or the status of its refusal.
async fn login(vault: &Vault, method: &str, wanted: Value) -> Result<(String, u64), u16> {
    let reply = post(vault, "", &format!("auth/{method}/login"), wanted).await;
    let auth = body(&reply)["auth"].take();
    let token = auth["client_token"].as_str().map(ToOwned::to_owned).ok_or(reply.status.as_u16())?;
    assert_eq!((auth["renewable"].as_bool(), &auth["token_policies"]), (Some(true), &json!(["default", ROLE])));
    Ok((token, auth["lease_duration"].as_u64().expect("a lease has a duration")))
}

/// A Vault, and a token with the agent's rights.
async fn started() -> (Vault, String) {
    let vault = Vault::start(Surroundings::get().await).await;
    let token = vault.token(Duration::from_secs(600), &[ROLE]).await;
    (vault, token)
}

#[tokio::test]
async fn a_value_is_read_by_version_until_it_is_deleted_or_destroyed() {
    let (vault, token) = started().await;
    let path = vault.seed("prod/app", json!({"a": "1"})).await;
    assert_eq!(vault.put(&path, json!({"a": "2"})).await, 2);
    let found = async |version: &str| {
        let reply = read(&vault, &token, &format!("{path}{version}")).await;
        let data = body(&reply)["data"].take();
        (reply.status.as_u16(), data["data"].clone(), data["metadata"]["version"].clone())
    };
    assert_eq!(found("").await, (200, json!({"a": "2"}), json!(2)));
    assert_eq!(found("?version=1").await, (200, json!({"a": "1"}), json!(1)));
    assert_eq!(found("?version=9").await, (404, Value::Null, Value::Null));
    vault.delete_version(&path).await;
    assert_eq!(found("").await, (404, Value::Null, json!(2)));
    vault.destroy_version(&path, 1).await;
    let gone = read(&vault, &token, &format!("{path}?version=1")).await;
    let metadata = &body(&gone)["data"]["metadata"];
    assert_eq!((metadata["destroyed"].as_bool(), metadata["deletion_time"].as_str()), (Some(true), Some("")));
    vault.delete(&path).await;
    let missing = read(&vault, &token, &path).await;
    assert_eq!((missing.status.as_u16(), body(&missing)), (404, json!({"errors": []})));

    vault.put_v1(&path, json!({"a": "old"})).await;
    let old = get(&vault, &token, &format!("{KV1}/{path}")).await;
    assert_eq!((old.status.as_u16(), &body(&old)["data"]), (200, &json!({"a": "old"})));
    assert_eq!((vault.calls(&path), vault.calls(READ)), (7, 7));
    assert_eq!(vault.namespaces(&path), ["team-a"; 7]);
    assert_eq!(vault.credentials(&path), vec![token; 7]);
}

#[tokio::test]
async fn what_is_denied_sealed_or_revoked_is_refused() {
    let (vault, token) = started().await;
    let path = vault.seed("app", json!({"a": "1"})).await;
    let status = async || read(&vault, &token, &path).await.status.as_u16();
    vault.deny(&path).await;
    let denied = read(&vault, &token, &path).await;
    assert_eq!(denied.status.as_u16(), 403);
    assert!(denied.text().contains(PERMISSION_DENIED_TEXT), "{}", denied.text());
    vault.allow(&path).await;
    assert_eq!(status().await, 200);
    vault.seal().await;
    let sealed = read(&vault, &token, &path).await;
    assert_eq!((sealed.status.as_u16(), body(&sealed)), (503, json!({"errors": ["Vault is sealed"]})));
    vault.unseal().await;
    assert_eq!(status().await, 200);
    let mount = get(&vault, &token, &format!("sys/internal/ui/mounts/{KV2}/{path}")).await;
    assert_eq!(body(&mount)["data"]["options"]["version"], "2");
    assert_eq!(vault.calls(MOUNT), 1);
    vault.revoke_tokens().await;
    assert_eq!(status().await, 403);
    assert_eq!(vault.put(&path, json!({"a": "2"})).await, 2, "the root token is still good");
}

#[tokio::test]
async fn an_agent_logs_in_with_its_kubernetes_token_and_no_other() {
    let surroundings = Surroundings::get().await;
    let (vault, _) = started().await;
    let node = AgentNode::create(surroundings).await;
    let jwt = async |audience: &str| {
        let file = node.token_file_for(surroundings, audience).await;
        std::fs::read_to_string(file).expect("the token was written")
    };
    let good = jwt(AUDIENCE).await;
    let log_in = async |role: &str, jwt: &str| login(&vault, "kubernetes", json!({"role": role, "jwt": jwt})).await;
    vault.set_token_ttl(Duration::from_secs(90)).await;
    let (token, ttl) = log_in(ROLE, &good).await.expect("the agent's token is good");
    assert_eq!(ttl, 90);
    let path = vault.seed("app", json!({"a": "1"})).await;
    assert_eq!(read(&vault, &token, &path).await.status.as_u16(), 200);
    assert_eq!(log_in(ROLE, &jwt("another").await).await, Err(403), "the wrong audience");
    assert_eq!(log_in("no-such", &good).await, Err(400), "a role that is not there");
    assert_eq!(log_in(ROLE, "not.a.token").await, Err(403), "no token at all");
    assert_eq!(vault.credentials(LOGIN)[0], good);

    assert_eq!(get(&vault, &token, "auth/token/lookup-self").await.status.as_u16(), 200);
    let renewed = post(&vault, &token, "auth/token/renew-self", json!({})).await;
    assert_eq!((renewed.status.as_u16(), &body(&renewed)["auth"]["lease_duration"]), (200, &json!(90)));
    vault.revoke_tokens().await;
    assert_eq!(post(&vault, &token, "auth/token/renew-self", json!({})).await.status.as_u16(), 403);
    assert_eq!((vault.calls(LOGIN), vault.calls(RENEW), vault.calls(LOOKUP)), (4, 2, 1));
}

#[tokio::test]
async fn an_app_role_logs_in_with_its_secret_id() {
    let (vault, _) = started().await;
    let role = vault.approle().await;
    let log_in = async |secret_id: &str| {
        login(&vault, "approle", json!({"role_id": role.role_id, "secret_id": secret_id})).await
    };
    let (token, _) = log_in(&role.secret_id).await.expect("the secret id is good");
    let path = vault.seed("app", json!({"a": "1"})).await;
    assert_eq!(read(&vault, &token, &path).await.status.as_u16(), 200);
    assert_eq!(log_in("wrong").await, Err(400));
    assert_eq!(vault.credentials(LOGIN), [role.secret_id.as_str(), "wrong"]);
}

#[tokio::test]
async fn vault_answers_each_fault_in_its_own_words() {
    let (vault, token) = started().await;
    let path = vault.seed("app", json!({"a": "1"})).await;
    let cases = [
        ("denied", Fault::AccessDenied, 403, PERMISSION_DENIED_TEXT),
        ("too many requests", Fault::Throttling, 429, "rate limit quota exceeded"),
        ("too many requests, come back later", Fault::RetryAfter(Duration::from_secs(7)), 429, "rate limit"),
        ("deleted", Fault::PendingDeletion, 404, "deletion_time"),
        ("trouble on its side", Fault::Unavailable, 503, "Vault is sealed"),
        ("no JSON", Fault::Status(502), 502, "<html>"),
        ("no fault", Fault::Slow(Duration::ZERO), 200, r#""a":"1""#),
    ];
    for (case, fault, status, text) in cases {
        vault.fail(&path, fault);
        let reply = read(&vault, &token, &path).await;
        assert_eq!(reply.status.as_u16(), status, "case: {case}");
        assert!(reply.text().contains(text), "case: {case}: {}", reply.text());
        assert_eq!(reply.headers.contains_key("retry-after"), case.contains("later"), "case: {case}");
    }
    vault.heal(&path);
    let gate = vault.hold(&path);
    let rest = async {
        gate.held(1).await;
        vault.put(&path, json!({"a": "2"})).await;
        gate.release();
    };
    let (held, ()) = futures::join!(read(&vault, &token, &path), rest);
    assert_eq!(body(&held)["data"]["data"]["a"], "1", "the value that was asked for");
}

#[tokio::test]
async fn a_vault_ends_with_its_test() {
    let surroundings = Surroundings::get().await;
    let vault = Vault::start(surroundings).await;
    let file = format!("/proc/{}/comm", vault.pid());
    assert_eq!(std::fs::read_to_string(&file).expect("it runs").trim(), "vault");
    drop(vault);
    assert!(!std::path::Path::new(&file).exists(), "it still runs");
}
