//! AWS's wire forms: reading requests, and writing the answers that the emulator does not give.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures::{StreamExt as _, stream};
use http::request::Parts;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::Full;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// The key of requests to the Pod Identity endpoint.
pub(crate) const POD_IDENTITY: &str = "PodIdentity";
/// Where that endpoint is.
pub(super) const POD_IDENTITY_PATH: &str = "/v1/credentials";
/// Stands in the text of each refusal: text of the store, which may reach a log but no Event and no label.
pub(crate) const ACCESS_DENIED_TEXT: &str = "because no identity-based policy allows the action";

/// What is wrong with an answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Refused, with AWS's code for it.
    AccessDenied,
    /// Refused because of too many requests.
    Throttling,
    /// The secret is marked for deletion: AWS answers `InvalidRequestException`.
    PendingDeletion,
    /// This status with a body that is no JSON, as a load balancer sends it.
    Status(u16),
    /// The first half of the right answer under the length of the whole; then the connection ends.
    Truncated,
    /// Status 200 with this body.
    Body(String),
}

/// How a request is written, and so its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Secrets Manager: JSON, with the action in a header.
    Json,
    /// STS: a form in, XML out.
    Query,
    /// The Pod Identity endpoint.
    PodIdentity,
}

/// A request as far as a store reads it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) protocol: Protocol,
    pub(super) action: String,
    /// The `SecretId` as sent.
    pub(super) secret: Option<String>,
    /// The access key id that signed it, or the token that came with it.
    pub(super) credential: String,
}

impl Asked {
    pub(super) fn read(head: &Parts, body: &[u8]) -> Self {
        let authorization = header(&head.headers, "authorization");
        if head.uri.path() == POD_IDENTITY_PATH {
            let action = POD_IDENTITY.to_owned();
            return Self { protocol: Protocol::PodIdentity, action, secret: None, credential: authorization };
        }
        let key =
            authorization.split_once("Credential=").and_then(|(_, rest)| rest.split('/').next()).unwrap_or_default();
        let target = header(&head.headers, "x-amz-target");
        if let Some((_, action)) = target.split_once('.') {
            let body: Value = serde_json::from_slice(body).unwrap_or_default();
            let secret = body["SecretId"].as_str().map(ToOwned::to_owned);
            return Self { protocol: Protocol::Json, action: action.to_owned(), secret, credential: key.to_owned() };
        }
        let form = String::from_utf8_lossy(body);
        let field = |name: &str| form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let action = field("Action").unwrap_or("unknown").to_owned();
        let credential = field("WebIdentityToken").unwrap_or(key).to_owned();
        Self { protocol: Protocol::Query, action, secret: None, credential }
    }
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// A request to the emulator, which checks no signature but reads service and region from it.
pub(super) fn request(url: &str, action: &str, body: &Value) -> Request<Full<Bytes>> {
    let scope = "Credential=test/20260101/us-east-1/secretsmanager/aws4_request";
    Request::post(url)
        .header("authorization", format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"))
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amz-target", format!("secretsmanager.{action}"))
        .body(Full::from(body.to_string()))
        .expect("the emulator's URL is one")
}

/// An answer of ours in whole.
pub(super) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    answer
}

/// A JSON answer of Secrets Manager.
pub(super) fn json_answer(status: StatusCode, body: &Value) -> Response {
    answer(status, "application/x-amz-json-1.1", body.to_string())
}

/// A refusal in the form that the request's protocol has for it.
pub(super) fn refusal(protocol: Protocol, code: &str, text: &str) -> Response {
    match protocol {
        Protocol::Json => json_answer(StatusCode::BAD_REQUEST, &json!({"__type": code, "message": text})),
        Protocol::PodIdentity => json_answer(StatusCode::BAD_REQUEST, &json!({"Code": code, "Message": text})),
        Protocol::Query => {
            // STS names the same things without the word at the end.
            let code = code.trim_end_matches("Exception");
            let status = if code == "AccessDenied" { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST };
            let error = format!("<Error><Type>Sender</Type><Code>{code}</Code><Message>{text}</Message></Error>");
            let namespace = "https://sts.amazonaws.com/doc/2011-06-15/";
            answer(
                status,
                "text/xml",
                format!(r#"<ErrorResponse xmlns="{namespace}">{error}<RequestId>0</RequestId></ErrorResponse>"#),
            )
        }
    }
}

/// The answer with this fault; `right` gives the right one, where the fault needs it.
pub(super) async fn spoiled(fault: Fault, asked: &Asked, right: impl Future<Output = Response>) -> Response {
    let refusal = |code: &str, text: &str| refusal(asked.protocol, code, text);
    match fault {
        Fault::AccessDenied => {
            let who = "User: arn:aws:sts::123456789012:assumed-role/test/test is not authorized to perform";
            refusal("AccessDeniedException", &format!("{who}: {} {ACCESS_DENIED_TEXT}", asked.action))
        }
        Fault::Throttling => refusal("ThrottlingException", "Rate exceeded"),
        Fault::PendingDeletion => refusal(
            "InvalidRequestException",
            "You can't perform this operation on the secret because it was marked for deletion.",
        ),
        Fault::Status(status) => {
            let status = StatusCode::from_u16(status).expect("a test names statuses that exist");
            answer(status, "text/html", "<html><body>this is no JSON</body></html>")
        }
        Fault::Truncated => truncated(right.await).await,
        Fault::Body(text) => answer(StatusCode::OK, "application/x-amz-json-1.1", text),
    }
}

/// Keeps the head with the whole length, sends half of the body, then ends the connection.
async fn truncated(whole: Response) -> Response {
    let (mut head, body) = whole.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.expect("an answer that lies in memory can be read");
    head.headers.insert(header::CONTENT_LENGTH, body.len().into());
    let half = body.slice(..body.len() / 2);
    let end = stream::once(async {
        // Says "not yet" once: the server then sends what it has. At an error it would throw that away.
        tokio::task::yield_now().await;
        Err(std::io::Error::other("cut short on purpose"))
    });
    let half = stream::once(async { Ok::<_, Infallible>(half) }).map(|half| half.map_err(|never| match never {}));
    Response::from_parts(head, Body::from_stream(half.chain(end)))
}

/// What the Pod Identity agent answers.
pub(super) fn pod_credentials(access_key: &str, lifetime: Duration) -> Response {
    let body = json!({
        "AccessKeyId": access_key,
        "SecretAccessKey": "test",
        "Token": "test",
        "AccountId": "123456789012",
        "Expiration": after(lifetime),
    });
    answer(StatusCode::OK, "application/json", body.to_string())
}

/// An XML answer of STS with another expiry.
pub(super) fn with_expiry(xml: &str, lifetime: Duration) -> String {
    let (open, close) = ("<Expiration>", "</Expiration>");
    match (xml.split_once(open), xml.split_once(close)) {
        (Some((before, _)), Some((_, behind))) => format!("{before}{open}{}{close}{behind}", after(lifetime)),
        _ => xml.to_owned(),
    }
}

fn after(lifetime: Duration) -> String {
    let lifetime = SignedDuration::try_from(lifetime).expect("a test's lifetimes are short");
    (Timestamp::now() + lifetime).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The answer of a stub to a read of a secret.
pub(super) fn secret_answer(path: &str, value: Option<String>) -> Response {
    let Some(value) = value else {
        let text = "Secrets Manager can't find the specified secret.";
        return refusal(Protocol::Json, "ResourceNotFoundException", text);
    };
    let body = json!({
        "ARN": format!("arn:aws:secretsmanager:us-east-1:123456789012:secret:{path}-AbCdEf"),
        "Name": path,
        "VersionId": "00000000-0000-4000-8000-000000000001",
        "SecretString": value,
        "VersionStages": ["AWSCURRENT"],
        "CreatedDate": 1_767_225_600,
    });
    json_answer(StatusCode::OK, &body)
}

/// The answer of a stub to `GetCallerIdentity`.
pub(super) fn caller_identity() -> Response {
    let who = "<Arn>arn:aws:iam::123456789012:user/stub</Arn><UserId>STUB</UserId><Account>123456789012</Account>";
    let result = format!("<GetCallerIdentityResult>{who}</GetCallerIdentityResult>");
    let namespace = "https://sts.amazonaws.com/doc/2011-06-15/";
    let metadata = "<ResponseMetadata><RequestId>0</RequestId></ResponseMetadata>";
    let body =
        format!(r#"<GetCallerIdentityResponse xmlns="{namespace}">{result}{metadata}</GetCallerIdentityResponse>"#);
    answer(StatusCode::OK, "text/xml", body)
}
