//! AWS's wire forms: reading requests, and writing the answers that the emulator does not give.

use std::time::Duration;

use axum::body::Bytes;
use axum::response::Response;
use http::request::Parts;
use http::{Request, StatusCode};
use http_body_util::Full;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::front::{Asked, Refusal, answer, header};
use super::parameters::{GET_PARAMETERS, GET_PARAMETERS_BY_PATH};
use super::{DESCRIBE, GET};

/// The key of requests to the Pod Identity endpoint.
pub(crate) const POD_IDENTITY: &str = "PodIdentity";
/// Where that endpoint is.
pub(super) const POD_IDENTITY_PATH: &str = "/v1/credentials";
/// The header that names the action.
const TARGET: &str = "x-amz-target";
/// What stands before the actions of SSM in it.
const SSM: &str = "AmazonSSM.";
/// Stands in the text of each refusal: text of the store, which may reach a log but no Event and no label.
pub(crate) const ACCESS_DENIED_TEXT: &str = "because no identity-based policy allows the action";

/// How a request is written, and so its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Secrets Manager and SSM: JSON, with the action in a header.
    Json,
    /// STS: a form in, XML out.
    Query,
    /// The Pod Identity endpoint.
    PodIdentity,
}

impl Form {
    pub(super) fn of(asked: &Asked) -> Self {
        match asked.action.as_str() {
            POD_IDENTITY => Self::PodIdentity,
            _ if header(&asked.headers, TARGET).is_empty() => Self::Query,
            _ => Self::Json,
        }
    }
}

/// What a request is about. Only reads have subjects: the `SecretId`, the `Names` or the `Path`. The credential is the
/// access key id that signed it, or the token that came with it.
pub(super) fn read(head: &Parts, body: &[u8]) -> Asked {
    let authorization = header(&head.headers, "authorization");
    let key = authorization.split_once("Credential=").and_then(|(_, rest)| rest.split('/').next()).unwrap_or_default();
    let asked = |action: &str, subjects: Vec<String>, credential: &str| Asked {
        action: action.to_owned(),
        subjects,
        credential: credential.to_owned(),
        headers: head.headers.clone(),
    };
    if head.uri.path() == POD_IDENTITY_PATH {
        return asked(POD_IDENTITY, Vec::new(), authorization);
    }
    if let Some((_, action)) = header(&head.headers, TARGET).split_once('.') {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        return asked(action, subjects(action, &body), key);
    }
    let form = String::from_utf8_lossy(body);
    let field = |name: &str| form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    asked(field("Action").unwrap_or("unknown"), Vec::new(), field("WebIdentityToken").unwrap_or(key))
}

/// The secrets that a request reads, as sent.
fn subjects(action: &str, body: &Value) -> Vec<String> {
    let named = match action {
        GET | DESCRIBE => &body["SecretId"],
        GET_PARAMETERS => &body["Names"],
        GET_PARAMETERS_BY_PATH => &body["Path"],
        _ => &Value::Null,
    };
    let several = named.as_array().map_or(std::slice::from_ref(named), Vec::as_slice);
    several.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect()
}

/// A request to the emulator, which checks no signature but reads service and region from it.
/// `target`: as in `secretsmanager.GetSecretValue` or `AmazonSSM.PutParameter`.
pub(super) fn request(url: &str, target: &str, body: &Value) -> Request<Full<Bytes>> {
    let service = if target.starts_with(SSM) { "ssm" } else { "secretsmanager" };
    let scope = format!("Credential=test/20260101/us-east-1/{service}/aws4_request");
    Request::post(url)
        .header("authorization", format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"))
        .header("content-type", "application/x-amz-json-1.1")
        .header(TARGET, target)
        .body(Full::from(body.to_string()))
        .expect("the emulator's URL is one")
}

/// A JSON answer.
pub(super) fn json_answer(status: StatusCode, body: &Value) -> Response {
    answer(status, "application/x-amz-json-1.1", body.to_string())
}

/// A refusal in the form of its request.
pub(super) fn refused(asked: &Asked, code: &str, text: &str) -> Response {
    let status = if code.starts_with("Internal") { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::BAD_REQUEST };
    match Form::of(asked) {
        Form::Json => json_answer(status, &json!({"__type": code, "message": text})),
        Form::PodIdentity => json_answer(status, &json!({"Code": code, "Message": text})),
        Form::Query => {
            // STS names the same things without the word at the end.
            let code = code.trim_end_matches("Exception");
            let status = if code == "AccessDenied" { StatusCode::FORBIDDEN } else { status };
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

/// AWS's own words for a refusal.
pub(super) fn refusal(asked: &Asked, refusal: Refusal) -> Response {
    match refusal {
        Refusal::AccessDenied => {
            let who = "User: arn:aws:sts::123456789012:assumed-role/test/test is not authorized to perform";
            refused(asked, "AccessDeniedException", &format!("{who}: {} {ACCESS_DENIED_TEXT}", asked.action))
        }
        Refusal::Throttling => refused(asked, "ThrottlingException", "Rate exceeded"),
        Refusal::PendingDeletion => refused(
            asked,
            "InvalidRequestException",
            "You can't perform this operation on the secret because it was marked for deletion.",
        ),
        Refusal::Unavailable => {
            let of_ssm = header(&asked.headers, TARGET).starts_with(SSM);
            let code = if of_ssm { "InternalServerError" } else { "InternalServiceError" };
            refused(asked, code, "An error occurred on the server side.")
        }
    }
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

/// The answer of STS to either action.
pub(super) fn sts_credentials(action: &str, access_key: &str, lifetime: Duration) -> Response {
    let credentials = format!(
        "<Credentials><AccessKeyId>{access_key}</AccessKeyId><SecretAccessKey>test</SecretAccessKey>\
         <SessionToken>test</SessionToken><Expiration>{}</Expiration></Credentials>",
        after(lifetime)
    );
    let namespace = "https://sts.amazonaws.com/doc/2011-06-15/";
    let result = format!("<{action}Result>{credentials}</{action}Result>");
    let metadata = "<ResponseMetadata><RequestId>0</RequestId></ResponseMetadata>";
    let body = format!(r#"<{action}Response xmlns="{namespace}">{result}{metadata}</{action}Response>"#);
    answer(StatusCode::OK, "text/xml", body)
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
        let error = json!({"__type": "ResourceNotFoundException", "message": text});
        return json_answer(StatusCode::BAD_REQUEST, &error);
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
