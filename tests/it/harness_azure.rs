//! Tests of the double of Azure Key Vault, without an agent.

mod client;
mod way;

use std::time::Duration;

use axum::body::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use self::client::{Client, Trouble, plain};
use crate::support::azure::{
    CHALLENGE, CLIENT, CLIENT_SECRET, GET, IDENTITY_HOST, KeyVault, LOGIN_HOST, MANAGED_IDENTITY, TENANT, TOKEN,
};
use crate::support::front::Fault;
use crate::support::http::Reply;
use crate::support::unique;

/// What the SDK speaks.
const API: &str = "api-version=2025-07-01";
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

// ---- asking as the SDK does ----

async fn send(vault: &KeyVault, request: Request<Full<Bytes>>) -> Result<Reply, Trouble> {
    Client { proxy: vault.proxy(), authority: vault.authority() }.send(request).await
}

/// `path`: as in `db/VERSION`; without a version, the SDK sends `db/`.
async fn read(vault: &KeyVault, token: Option<&str>, path: &str) -> Reply {
    let mut request = Request::get(format!("{}/secrets/{path}?{API}", vault.url()));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let reply = send(vault, request.body(Full::default()).expect("a test's URL is one")).await;
    reply.unwrap_or_else(|error| panic!("no answer about {path}: {error}"))
}

async fn log_in(vault: &KeyVault, tenant: &str, fields: &[(&str, &str)]) -> Reply {
    let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let request = Request::post(format!("https://{LOGIN_HOST}/{tenant}/oauth2/v2.0/token"))
        .header("content-type", "application/x-www-form-urlencoded");
    let reply = send(vault, request.body(Full::from(form)).expect("a test's URL is one")).await;
    reply.unwrap_or_else(|error| panic!("no answer of the login: {error}"))
}

fn by_secret<'a>(client: &'a str, secret: &'a str) -> [(&'static str, &'a str); 4] {
    let (grant, scope) = ("client_credentials", "https://vault.azure.net/.default");
    [("client_id", client), ("client_secret", secret), ("grant_type", grant), ("scope", scope)]
}

/// A token for the application.
async fn token(vault: &KeyVault) -> String {
    text(&body(&log_in(vault, TENANT, &by_secret(CLIENT, CLIENT_SECRET)).await), "access_token")
}

async fn ask_metadata(vault: &KeyVault, header: &str, client: &str) -> Reply {
    let query = "api-version=2019-08-01&resource=https%3A%2F%2Fvault.azure.net";
    let url = format!("http://{IDENTITY_HOST}/metadata/identity/oauth2/token?{query}&client_id={client}");
    let request = Request::get(url).header("host", IDENTITY_HOST).header(header, "true");
    let reply = plain(vault.proxy(), request.body(Full::default()).expect("a test's URL is one")).await;
    reply.unwrap_or_else(|error| panic!("no answer of the metadata: {error}"))
}

fn body(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_default()
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

/// Status, code and inner code of a vault's refusal.
fn refused(reply: &Reply) -> (u16, String, String) {
    let error = &body(reply)["error"];
    (reply.status.as_u16(), text(error, "code"), text(&error["innererror"], "code"))
}

fn refusal(status: u16, code: &str, inner: &str) -> (u16, String, String) {
    (status, code.to_owned(), inner.to_owned())
}

// ---- reads ----

#[tokio::test]
async fn a_vault_says_where_to_get_a_token_and_takes_it_for_each_read() {
    let vault = KeyVault::start();
    let version = vault.put("db", "hunter2");

    let challenged = read(&vault, None, "db/").await;
    assert_eq!(refused(&challenged), refusal(401, "Unauthorized", ""));
    let wanted = format!(r#"Bearer authorization="https://{LOGIN_HOST}/{TENANT}", resource="https://vault.azure.net""#);
    assert_eq!(challenged.headers["www-authenticate"], wanted);

    let login = log_in(&vault, TENANT, &by_secret(CLIENT, CLIENT_SECRET)).await;
    assert_eq!(login.status, StatusCode::OK);
    let login = body(&login);
    assert_eq!((&login["token_type"], &login["expires_in"]), (&json!("Bearer"), &json!(3599)));
    let reply = read(&vault, Some(&text(&login, "access_token")), "db/").await;
    assert_eq!(reply.status, StatusCode::OK);
    let secret = body(&reply);
    assert_eq!((&secret["value"], &secret["attributes"]["enabled"]), (&json!("hunter2"), &json!(true)));
    assert_eq!(secret["id"], format!("{}/secrets/db/{version}", vault.url()));
    assert!(version.len() == 32 && version.bytes().all(|byte| byte.is_ascii_hexdigit()), "{version}");

    assert_eq!([vault.calls(CHALLENGE), vault.calls(TOKEN), vault.calls(GET), vault.calls("db")], [1, 1, 1, 1]);
    assert_eq!(vault.credentials("db"), [CLIENT]);
    assert_eq!((vault.proxy().connections(&vault.host()), vault.proxy().connections(LOGIN_HOST)), (2, 1));
}

#[tokio::test]
async fn a_secret_has_versions_and_its_name_has_no_case() {
    let vault = KeyVault::start();
    let (first, second) = (vault.put("DB-1", "old"), vault.put("db-1", "new"));
    let token = token(&vault).await;
    let cases = [
        ("newest, as the SDK asks", "db-1/".to_owned(), "new"),
        ("newest, as the reference has it", "Db-1".to_owned(), "new"),
        ("by its version", format!("db-1/{second}"), "new"),
        ("an old version", format!("db-1/{first}"), "old"),
    ];
    for (case, path, value) in cases {
        let reply = read(&vault, Some(&token), &path).await;
        assert_eq!(body(&reply)["value"], value, "case: {case}");
        let id = text(&body(&reply), "id");
        assert!(id.starts_with(&format!("{}/secrets/DB-1/", vault.url())), "case: {case}: {id}");
    }
    assert_eq!(vault.asked().into_iter().collect::<Vec<_>>(), ["Db-1", "db-1"], "names as they were sent");
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_as_by_the_real_one() {
    let vault = KeyVault::start();
    let old = vault.put("disabled", "old");
    for name in ["db", "disabled", "deleted"] {
        vault.put(name, "hunter2");
    }
    vault.disable("disabled");
    vault.delete("deleted");
    let token = token(&vault).await;
    let none = "0".repeat(32);
    let cases = [
        ("absent", "nothing/".to_owned(), refusal(404, "SecretNotFound", "")),
        ("absent version", format!("db/{none}"), refusal(404, "SecretNotFound", "")),
        ("deleted", "deleted/".to_owned(), refusal(404, "SecretNotFound", "")),
        ("disabled", "disabled/".to_owned(), refusal(403, "Forbidden", "SecretDisabled")),
        ("no name of a secret", "a.b/".to_owned(), refusal(400, "BadParameter", "")),
    ];
    for (case, path, want) in cases {
        assert_eq!(refused(&read(&vault, Some(&token), &path).await), want, "case: {case}");
    }
    let deleted = text(&body(&read(&vault, Some(&token), "deleted/").await)["error"], "message");
    assert!(deleted.contains("you may be able to recover it"), "{deleted}");

    assert_eq!(body(&read(&vault, Some(&token), &format!("disabled/{old}")).await)["value"], "old");
    vault.recover("deleted");
    assert_eq!(body(&read(&vault, Some(&token), "deleted/").await)["value"], "hunter2");
    vault.delete("deleted");
    vault.put("deleted", "anew");
    assert_eq!(body(&read(&vault, Some(&token), "deleted/").await)["value"], "anew");
}

#[tokio::test]
async fn what_is_no_read_of_this_vault_is_no_read() {
    let vault = KeyVault::start();
    vault.put("db", "hunter2");
    let client = Client { proxy: vault.proxy(), authority: vault.authority() };
    let cases = [
        ("no api-version", format!("{}/secrets/db/", vault.url()), 400),
        ("another operation", format!("{}/secrets?{API}", vault.url()), 404),
        ("another vault", format!("https://other.vault.azure.net/secrets/db/?{API}"), 421),
    ];
    for (case, url, status) in cases {
        let reply = client.get(&url).await.unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(reply.status.as_u16(), status, "case: {case}");
    }
    assert_eq!(vault.calls("db"), 0);
}

// ---- tokens ----

#[tokio::test]
async fn tokens_end_at_their_time_or_when_the_test_says() {
    let vault = KeyVault::start();
    vault.put("db", "hunter2");
    let first = token(&vault).await;
    vault.expire_tokens();
    let second = token(&vault).await;
    vault.set_token_lifetime(Duration::ZERO);
    let short = token(&vault).await;

    for (case, token) in [("expired", first.as_str()), ("of no length", &short), ("never given", "nonsense")] {
        let reply = read(&vault, Some(token), "db/").await;
        assert_eq!(refused(&reply), refusal(401, "Unauthorized", ""), "case: {case}");
        assert!(reply.headers.contains_key("www-authenticate"), "case: {case}");
    }
    assert_eq!(read(&vault, Some(&second), "db/").await.status, StatusCode::OK);
    assert_eq!(vault.credentials("db"), ["", "", "", CLIENT], "whose token it was, while it held");
}

#[tokio::test]
async fn the_login_refuses_who_cannot_prove_itself() {
    let vault = KeyVault::start();
    let right = by_secret(CLIENT, CLIENT_SECRET);
    let with = |name: &'static str, value: &'static str| {
        right.map(|(field, old)| if field == name { (field, value) } else { (field, old) })
    };
    let cases = [
        ("wrong secret", TENANT, with("client_secret", "wrong"), 401, "invalid_client", 7_000_215),
        ("no secret", TENANT, with("client_secret", ""), 401, "invalid_client", 7_000_215),
        ("unknown client", TENANT, with("client_id", "stranger"), 400, "unauthorized_client", 700_016),
        ("unknown tenant", "stranger", right, 400, "invalid_request", 90_002),
        ("another audience", TENANT, with("scope", "https://graph/.default"), 400, "invalid_scope", 70_011),
        ("another grant", TENANT, with("grant_type", "password"), 400, "unsupported_grant_type", 70_003),
    ];
    for (case, tenant, fields, status, error, code) in cases {
        let reply = log_in(&vault, tenant, &fields).await;
        assert_eq!(reply.status.as_u16(), status, "case: {case}");
        assert_eq!((text(&body(&reply), "error").as_str(), &body(&reply)["error_codes"]), (error, &json!([code])));
        let description = text(&body(&reply), "error_description");
        assert!(description.starts_with(&format!("AADSTS{code}: ")), "case: {case}: {description}");
    }

    vault.use_long_login_errors();
    let long = text(&body(&log_in(&vault, "stranger", &right).await), "error_description");
    assert!(long.starts_with("AADSTS90002: Tenant not found.\r\nTrace ID: "), "{long}");

    vault.set_secret("changed");
    assert_eq!(log_in(&vault, TENANT, &right).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(log_in(&vault, TENANT, &with("client_secret", "changed")).await.status, StatusCode::OK);
    assert_eq!(vault.credentials(TOKEN)[..3], [CLIENT, CLIENT, "stranger"]);
}

#[tokio::test]
async fn a_workload_logs_in_with_what_its_token_file_holds_now() {
    let vault = KeyVault::start();
    let file = std::env::temp_dir().join(unique("jasm-it-assertion"));
    let (grant, scope) = ("client_credentials", "https://vault.azure.net/.default");
    let asks = async |assertion: &str| {
        let proof = [("client_assertion", assertion), ("client_assertion_type", ASSERTION_TYPE)];
        let fields = [&proof[..], &[("client_id", CLIENT), ("grant_type", grant), ("scope", scope)]].concat();
        let reply = log_in(&vault, TENANT, &fields).await;
        (reply.status.as_u16(), body(&reply)["error_codes"][0].as_u64())
    };
    let wrong = (401, Some(700_213));

    assert_eq!(asks("one").await, wrong, "nothing is trusted yet");
    vault.trust(&file);
    assert_eq!(asks("").await, wrong, "no file is no assertion");
    for content in ["one", "two"] {
        std::fs::write(&file, format!("{content}\n")).expect("a file can be written");
        assert_eq!(asks(content).await, (200, None));
    }
    assert_eq!(asks("one").await, wrong, "that was the content before");
    std::fs::remove_file(&file).expect("the file is there");
}

#[tokio::test]
async fn a_machine_may_have_an_identity() {
    let vault = KeyVault::start();
    vault.put("db", "hunter2");
    assert_eq!(ask_metadata(&vault, "metadata", "").await.status, StatusCode::BAD_REQUEST, "it has none");
    vault.serve_managed_identity("machine");

    let reply = ask_metadata(&vault, "metadata", "").await;
    assert_eq!(reply.status, StatusCode::OK);
    let answer = body(&reply);
    assert_eq!((text(&answer, "expires_in").as_str(), text(&answer, "token_type").as_str()), ("3599", "Bearer"));
    let end: i64 = text(&answer, "expires_on").parse().expect("seconds as text");
    assert!((3500..3700).contains(&(end - jiff::Timestamp::now().as_second())), "{end}");
    let secret = read(&vault, Some(&text(&answer, "access_token")), "db/").await;
    assert_eq!((secret.status, vault.credentials("db")), (StatusCode::OK, vec!["machine".to_owned()]));

    let cases = [
        ("by its id", "metadata", "machine", 200),
        ("another's id", "metadata", "other", 400),
        ("without the header", "accept", "machine", 400),
    ];
    for (case, header, client, status) in cases {
        assert_eq!(ask_metadata(&vault, header, client).await.status.as_u16(), status, "case: {case}");
    }
    assert_eq!((vault.calls(MANAGED_IDENTITY), vault.proxy().connections(IDENTITY_HOST)), (5, 5));
}

// ---- trouble ----

#[tokio::test]
async fn trouble_is_worded_as_by_the_real_one() {
    let vault = KeyVault::start();
    vault.put("db", "hunter2");
    let token = token(&vault).await;
    let later = Fault::RetryAfter(Duration::from_secs(7));
    let cases = [
        ("denied by the roles", Fault::AccessDenied, refusal(403, "Forbidden", "ForbiddenByRbac")),
        ("too many requests", Fault::Throttling, refusal(429, "Throttled", "")),
        ("too many requests, come back later", later, refusal(429, "Throttled", "")),
        ("marked for deletion", Fault::PendingDeletion, refusal(404, "SecretNotFound", "")),
        ("trouble on its side", Fault::Unavailable, refusal(503, "ServiceUnavailable", "")),
    ];
    for (case, fault, want) in cases {
        vault.fail("db", fault);
        let reply = read(&vault, Some(&token), "db/").await;
        assert_eq!(refused(&reply), want, "case: {case}");
        let pause = reply.headers.get("retry-after").map(|pause| pause.to_str().expect("a number"));
        assert_eq!(pause, case.contains("later").then_some("7"), "case: {case}");
    }

    vault.fail("db", Fault::AccessDenied);
    let reply = read(&vault, Some(&token), "db/").await;
    let message = text(&body(&reply)["error"], "message");
    assert!(message.contains(&format!("\r\nCaller: appid={CLIENT};")), "the real text has many lines: {message}");
    vault.use_access_policies();
    assert_eq!(refused(&read(&vault, Some(&token), "db/").await), refusal(403, "Forbidden", "AccessDenied"));

    vault.heal("db");
    assert_eq!(read(&vault, Some(&token), "db/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_login_and_the_metadata_have_trouble_of_their_own() {
    let vault = KeyVault::start();
    vault.put("db", "hunter2");
    vault.serve_managed_identity("machine");
    let cases = [
        ("denied", Fault::AccessDenied, 400, 400),
        ("gone", Fault::PendingDeletion, 400, 400),
        ("too many requests", Fault::Throttling, 429, 429),
        ("trouble on its side", Fault::Unavailable, 503, 503),
    ];
    for (case, fault, login, metadata) in cases {
        vault.fail_times(TOKEN, 1, fault.clone());
        vault.fail_times(MANAGED_IDENTITY, 1, fault);
        let reply = log_in(&vault, TENANT, &by_secret(CLIENT, CLIENT_SECRET)).await;
        assert_eq!(reply.status.as_u16(), login, "case: {case}");
        assert!(text(&body(&reply), "error_description").starts_with("AADSTS"), "case: {case}");
        let reply = ask_metadata(&vault, "metadata", "").await;
        assert_eq!(reply.status.as_u16(), metadata, "case: {case}");
        assert!(!text(&body(&reply), "error_description").is_empty(), "case: {case}");
    }
    let token = token(&vault).await;
    assert_eq!(read(&vault, Some(&token), "db/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_gate_holds_an_answer_behind_tls_too() {
    let vault = KeyVault::start();
    vault.put("db", "old");
    let token = token(&vault).await;
    let gate = vault.hold("db");
    let (reply, ()) = tokio::join!(read(&vault, Some(&token), "db/"), async {
        gate.held(1).await;
        vault.put("db", "new");
        gate.release();
    });
    assert_eq!(body(&reply)["value"], "old", "it was asked for before the change");
    assert_eq!(body(&read(&vault, Some(&token), "db/").await)["value"], "new");
}

#[tokio::test]
async fn the_environment_leads_to_the_proxy_and_the_authority_and_nowhere_else() {
    let vault = KeyVault::start();
    let environment = vault.environment();
    let value = |name: &str| environment.iter().find(|(own, _)| *own == name).map(|(_, value)| value.as_str());
    assert_eq!((value("HTTPS_PROXY"), value("HTTP_PROXY")), (Some(vault.proxy().url()), Some(vault.proxy().url())));
    assert_eq!(value("NO_PROXY"), Some("127.0.0.1,localhost"));
    let file = std::fs::read_to_string(value("SSL_CERT_FILE").expect("set")).expect("the file is there");
    assert_eq!(file.matches("BEGIN CERTIFICATE").count(), 1);
    assert!(vault.url().starts_with("https://jasm-") && vault.url().ends_with(".vault.azure.net"), "{}", vault.url());
}
