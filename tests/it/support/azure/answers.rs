//! What a vault, the login and the metadata of a machine answer, word for word where the words are known.

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::front::{Refusal, answer};
use super::login::{Issued, Refused, VAULT_RESOURCE};
use super::vault::Version;
use super::{CLIENT, LOGIN_HOST, TENANT};

/// A version of a secret.
pub(super) fn secret(host: &str, version: &Version) -> Response {
    let attributes = json!({
        "enabled": version.enabled,
        "created": version.created,
        "updated": version.updated,
        "recoveryLevel": "Recoverable+Purgeable",
        "recoverableDays": 90,
    });
    let id = format!("https://{host}/secrets/{}/{}", version.name, version.id);
    json_answer(StatusCode::OK, &json!({"value": version.value, "id": id, "attributes": attributes}))
}

/// A secret that was deleted and can be recovered: without its value.
pub(super) fn deleted(host: &str, name: &str) -> Response {
    let id = format!("https://{host}/secrets/{name}");
    let recovery = format!("https://{host}/deletedsecrets/{name}");
    json_answer(StatusCode::OK, &json!({"recoveryId": recovery, "id": id, "attributes": {"enabled": true}}))
}

/// The real one says the same of what never was, of what was deleted, and of a version that is not.
pub(super) fn not_found(name: &str, version: Option<&str>) -> Response {
    let what = version.map_or_else(|| name.to_owned(), |version| format!("{name}/{version}"));
    let text = format!(
        "A secret with (name/id) {what} was not found in this key vault. If you recently deleted this secret you may \
         be able to recover it using the correct recovery command. For help resolving this issue, please see \
         https://go.microsoft.com/fwlink/?linkid=2125182"
    );
    refusal(StatusCode::NOT_FOUND, "SecretNotFound", &text, None)
}

/// The version is disabled.
pub(super) fn disabled() -> Response {
    let text = "Operation get is not allowed on a disabled secret.";
    refusal(StatusCode::FORBIDDEN, "Forbidden", text, Some("SecretDisabled"))
}

/// No access policy of the vault lets this client read.
pub(super) fn denied_by_policy(vault: &str, client: &str) -> Response {
    let text = format!(
        "The user, group or application '{}' does not have secrets get permission on key vault \
         '{vault};location=westeurope'. For help resolving this issue, please see \
         https://go.microsoft.com/fwlink/?linkid=2125287",
        caller(client)
    );
    refusal(StatusCode::FORBIDDEN, "Forbidden", &text, Some("AccessDenied"))
}

/// No role of this client lets it read. The text has many lines, as the real one has.
pub(super) fn denied_by_role(vault: &str, client: &str, name: &str) -> Response {
    let text = format!(
        "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role \
         definitions were changed recently, please observe propagation time.\r\nCaller: {}\r\nAction: \
         'Microsoft.KeyVault/vaults/secrets/getSecret/action'\r\nResource: \
         '/subscriptions/{TENANT}/resourcegroups/test/providers/microsoft.keyvault/vaults/{vault}/secrets/{name}'\r\n\
         Assignment: (not found)\r\nDenyAssignmentId: null\r\nDecisionReason: 'DeniedWithNoValidRBAC' \r\n\
         Vault: {vault};location=westeurope\r\n",
        caller(client)
    );
    refusal(StatusCode::FORBIDDEN, "Forbidden", &text, Some("ForbiddenByRbac"))
}

fn caller(client: &str) -> String {
    format!("appid={client};oid={client};iss=https://sts.windows.net/{TENANT}/")
}

/// Too many requests. The real one does not say how long to wait.
pub(super) fn throttled() -> Response {
    let text =
        "Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached";
    refusal(StatusCode::TOO_MANY_REQUESTS, "Throttled", text, None)
}

/// Trouble on the vault's side.
pub(super) fn unavailable() -> Response {
    refusal(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "The service is temporarily unavailable.", None)
}

/// A request without a token, or with one that does not hold: says where to get one.
pub(super) fn unauthorized(text: &str) -> Response {
    let mut answer = refusal(StatusCode::UNAUTHORIZED, "Unauthorized", text, None);
    let challenge = format!(r#"Bearer authorization="https://{LOGIN_HOST}/{TENANT}", resource="{VAULT_RESOURCE}""#);
    let challenge = HeaderValue::try_from(challenge).expect("a challenge is ASCII");
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    answer
}

/// A request that the vault does not understand.
pub(super) fn bad_parameter(text: &str) -> Response {
    refusal(StatusCode::BAD_REQUEST, "BadParameter", text, None)
}

/// A refusal of a vault.
fn refusal(status: StatusCode, code: &str, text: &str, inner: Option<&str>) -> Response {
    let mut error = json!({"code": code, "message": text});
    if let Some(inner) = inner {
        error["innererror"] = json!({"code": inner});
    }
    json_answer(status, &json!({"error": error}))
}

/// A token of the login.
pub(super) fn token(issued: &Issued) -> Response {
    let seconds = issued.lifetime.as_secs();
    let body = json!({
        "token_type": "Bearer",
        "expires_in": seconds,
        "ext_expires_in": seconds,
        "access_token": issued.token,
    });
    json_answer(StatusCode::OK, &body)
}

/// Why the login gave no token. `end`: see [`login_error`].
pub(super) fn no_token(refused: Refused, client: &str, end: &str) -> Response {
    let (status, error, code, text) = match refused {
        Refused::UnknownTenant => (400, "invalid_request", 90_002, "Tenant not found.".to_owned()),
        Refused::UnknownClient => {
            let text = format!("Application with identifier '{client}' was not found in the directory 'Test'.");
            (400, "unauthorized_client", 700_016, text)
        }
        Refused::WrongSecret => {
            let text = format!(
                "Invalid client secret provided. Ensure the secret being sent in the request is the client secret \
                 value, not the client secret ID, for a secret added to app '{client}'."
            );
            (401, "invalid_client", 7_000_215, text)
        }
        Refused::WrongAssertion => {
            let text = "No matching federated identity record found for presented assertion subject.".to_owned();
            (401, "invalid_client", 700_213, text)
        }
        Refused::WrongScope => (400, "invalid_scope", 70_011, "The provided value for scope is not valid.".to_owned()),
        Refused::WrongGrant => {
            (400, "unsupported_grant_type", 70_003, "The app requested an unsupported grant type.".to_owned())
        }
    };
    login_error(status, error, code, &text, end)
}

/// The same where a fault asks for it.
pub(super) fn login_refusal(refusal: Refusal, end: &str) -> Response {
    let (status, error, code, text) = match refusal {
        Refusal::AccessDenied => (400, "unauthorized_client", 7_000_112, "Application is disabled."),
        Refusal::PendingDeletion => return no_token(Refused::UnknownClient, CLIENT, end),
        Refusal::Throttling => (429, "temporarily_unavailable", 90_055, "Too many requests."),
        Refusal::Unavailable => (503, "temporarily_unavailable", 90_033, "A transient error has occurred."),
    };
    login_error(status, error, code, text, end)
}

/// An error of the login, whose description has the trace behind the text. `end`: what is between the two, a space or,
/// as for years before, the end of a line.
fn login_error(status: u16, error: &str, code: u32, text: &str, end: &str) -> Response {
    let trace = "Trace ID: 00000000-0000-0000-0000-000000000000";
    let body = json!({
        "error": error,
        "error_description": format!("AADSTS{code}: {text}{end}{trace}"),
        "error_codes": [code],
        "error_uri": format!("https://{LOGIN_HOST}/error?code={code}"),
    });
    json_answer(StatusCode::from_u16(status).expect("a status that exists"), &body)
}

/// A token for a machine's identity: all numbers are text here.
pub(super) fn identity_token(issued: &Issued) -> Response {
    let lifetime = SignedDuration::try_from(issued.lifetime).expect("a test's lifetimes are short");
    let body = json!({
        "access_token": issued.token,
        "client_id": issued.client,
        "expires_in": issued.lifetime.as_secs().to_string(),
        "expires_on": (Timestamp::now() + lifetime).as_second().to_string(),
        "not_before": Timestamp::now().as_second().to_string(),
        "resource": VAULT_RESOURCE,
        "token_type": "Bearer",
    });
    json_answer(StatusCode::OK, &body)
}

/// Why the machine's metadata gave no token.
pub(super) fn no_identity(text: &str) -> Response {
    identity_error(StatusCode::BAD_REQUEST, text)
}

/// The same where a fault asks for it.
pub(super) fn identity_refusal(refusal: Refusal) -> Response {
    match refusal {
        Refusal::AccessDenied | Refusal::PendingDeletion => no_identity("Identity not found"),
        Refusal::Throttling => identity_error(StatusCode::TOO_MANY_REQUESTS, "Too many requests"),
        Refusal::Unavailable => identity_error(StatusCode::SERVICE_UNAVAILABLE, "The service is unavailable"),
    }
}

fn identity_error(status: StatusCode, text: &str) -> Response {
    json_answer(status, &json!({"error": "invalid_request", "error_description": text}))
}

/// An answer in JSON.
fn json_answer(status: StatusCode, body: &Value) -> Response {
    answer(status, "application/json; charset=utf-8", body.to_string())
}
