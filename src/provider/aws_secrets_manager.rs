//! AWS Secrets Manager, by the official SDK.
//!
//! Rights at AWS: `secretsmanager:GetSecretValue` on the secret, `kms:Decrypt` where it has a key of its own, and
//! nothing else (`sts:GetCallerIdentity` needs no right).

use std::{
    error::Error,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_secretsmanager::{
    Client,
    config::IdentityCache,
    error::{ProvideErrorMetadata, SdkError},
    operation::get_secret_value::{GetSecretValueError, GetSecretValueOutput},
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use serde::Deserialize;

use super::{Identity, ProviderError, ProviderName, SecretProvider, credentials::Source};
use crate::{
    error::{BoxError, chain},
    request::{MAX_PATH_BYTES, RemoteRef},
    secret_value::SecretPayload,
};

/// Secrets Manager's own limit for a value.
const MAX_VALUE_BYTES: usize = 64 * 1024;
/// What marks a version id in an annotation, as External Secrets Operator writes it.
const VERSION_ID: &str = "uuid/";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// For the head of an answer.
const READ_TIMEOUT: Duration = Duration::from_millis(1500);
const OPERATION_TIMEOUT: Duration = Duration::from_secs(4);

/// What the operator's file may say of an instance of this kind.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Settings {
    /// AWS region; default `AWS_REGION`, then `AWS_DEFAULT_REGION`.
    region: Option<String>,
    /// Endpoint URL of Secrets Manager, for a VPC endpoint or an emulator; default `AWS_ENDPOINT_URL`, then AWS's own.
    endpoint: Option<String>,
    /// Use the node's role where nothing else is set up.
    #[serde(default)]
    imds: bool,
}

/// One region of one account.
#[derive(Debug)]
pub(super) struct AwsSecretsManager {
    name: ProviderName,
    source: Option<Source>,
    /// For Secrets Manager alone; STS has its own.
    endpoint: Option<String>,
    session: Mutex<Session>,
    identity: OnceLock<String>,
}

/// Clients that share credentials.
#[derive(Debug, Clone)]
struct Session {
    sdk: SdkConfig,
    client: Client,
    /// Counts the sessions, so that credentials are refreshed once however many requests find them expired.
    number: u64,
}

impl Session {
    /// A session that has asked for no credentials yet.
    fn new(sdk: &SdkConfig, endpoint: Option<&str>, number: u64) -> Self {
        let sdk = sdk.to_builder().identity_cache(IdentityCache::lazy().build()).build();
        let mut config = aws_sdk_secretsmanager::config::Builder::from(&sdk);
        // Else what the SDK's environment says.
        if let Some(endpoint) = endpoint {
            config = config.endpoint_url(endpoint);
        }
        Self { client: Client::from_conf(config.build()), sdk, number }
    }
}

impl AwsSecretsManager {
    /// Builds the client; makes no request.
    ///
    /// # Errors
    /// Says what is missing in the settings and in the environment.
    pub(super) async fn new(name: ProviderName, settings: Settings) -> Result<Self, String> {
        let env = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
        let region = settings
            .region
            .or_else(|| env("AWS_REGION"))
            .or_else(|| env("AWS_DEFAULT_REGION"))
            .ok_or("no region: set `region` in providers.yaml, or AWS_REGION")?;
        let region = Region::new(region);
        let source = Source::pick(|key| env(key).is_some(), settings.imds);
        let loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(region.clone())
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .read_timeout(READ_TIMEOUT)
                    // Not for an attempt: that would be for getting credentials and using them together.
                    .disable_operation_attempt_timeout()
                    .operation_timeout(OPERATION_TIMEOUT)
                    .build(),
            );
        let loader = match source {
            Some(source) => loader.credentials_provider(source.provider(region)),
            None => loader.no_credentials(),
        };
        let session = Session::new(&loader.load().await, settings.endpoint.as_deref(), 0);
        Ok(Self { name, source, endpoint: settings.endpoint, session: Mutex::new(session), identity: OnceLock::new() })
    }

    fn session(&self) -> Session {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets cached credentials, unless somebody did since `seen`.
    fn refresh_credentials(&self, seen: &Session) -> Session {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.number == seen.number {
            *session = Session::new(&seen.sdk, self.endpoint.as_deref(), seen.number + 1);
        }
        session.clone()
    }

    async fn get(&self, client: &Client, remote: &RemoteRef) -> Result<GetSecretValueOutput, ProviderError> {
        let request = client.get_secret_value().secret_id(&remote.path);
        let request = match remote.version.as_deref().map(|version| (version, version.strip_prefix(VERSION_ID))) {
            None => request,
            Some((_, Some(id))) => request.version_id(id),
            Some((stage, None)) => request.version_stage(stage),
        };
        request.send().await.map_err(|error| self.explain(remote, error))
    }

    fn no_credentials(&self, source: BoxError) -> ProviderError {
        ProviderError::Credentials { provider: self.name.clone(), remedy: Source::remedy(self.source), source }
    }

    fn explain(&self, remote: &RemoteRef, error: SdkError<GetSecretValueError, HttpResponse>) -> ProviderError {
        let (provider, path) = (self.name.clone(), remote.path.clone());
        let (failure, source) = read_failure(error);
        match failure {
            Failure::NotFound => ProviderError::NotFound { provider, path },
            Failure::Unreadable => ProviderError::Unreadable { provider, path, source },
            Failure::Denied { action } => ProviderError::AccessDenied {
                provider,
                path,
                action,
                identity: self.identity.get().cloned().unwrap_or_else(|| "unknown".to_owned()),
                source,
            },
            Failure::Credentials => self.no_credentials(source),
            Failure::Throttled => ProviderError::Throttled { provider, source },
            Failure::Unavailable => ProviderError::Unavailable { provider, source },
            Failure::Invalid => ProviderError::Invalid {
                provider,
                path,
                problem: "the store calls the request invalid",
                source: Some(source),
            },
        }
    }
}

#[async_trait]
impl SecretProvider for AwsSecretsManager {
    fn name(&self) -> &ProviderName {
        &self.name
    }

    fn max_payload_bytes(&self) -> usize {
        MAX_VALUE_BYTES
    }

    async fn fetch(&self, remote: &RemoteRef, identity: &Identity) -> Result<SecretPayload, ProviderError> {
        let Identity::Agent = identity;
        if self.source.is_none() {
            return Err(self.no_credentials("the environment names no source of credentials".into()));
        }
        let session = self.session();
        let output = match self.get(&session.client, remote).await {
            Err(ProviderError::Credentials { .. }) => {
                self.get(&self.refresh_credentials(&session).client, remote).await?
            }
            outcome => outcome?,
        };
        let version = output.version_id.unwrap_or_default();
        match (output.secret_string, output.secret_binary) {
            (Some(text), _) => Ok(SecretPayload::new(text.into_bytes(), version)),
            (None, Some(blob)) => Ok(SecretPayload::binary(blob.into_inner(), version)),
            (None, None) => Err(ProviderError::Invalid {
                provider: self.name.clone(),
                path: remote.path.clone(),
                problem: "it holds neither text nor bytes",
                source: None,
            }),
        }
    }

    /// Loads credentials and learns who the agent is, for messages.
    async fn warm_up(&self) {
        let sts = aws_sdk_sts::Client::new(&self.session().sdk);
        match sts.get_caller_identity().send().await {
            Ok(who) => {
                let arn = who.arn.unwrap_or_default();
                tracing::info!(provider = %self.name, identity = %arn, credentials = ?self.source, "provider is ready");
                if !arn.is_empty() {
                    let _ = self.identity.set(arn);
                }
            }
            Err(error) => {
                let remedy = Source::remedy(self.source);
                tracing::warn!(provider = %self.name, error = %chain(&error), remedy, "identity at the provider is unknown");
            }
        }
    }
}

/// What a failed call means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    NotFound,
    Unreadable,
    Denied { action: &'static str },
    Credentials,
    Throttled,
    Unavailable,
    Invalid,
}

/// What Secrets Manager said, for the log: code, status and message, never a body.
#[derive(Debug, thiserror::Error)]
#[error("HTTP {status} {code}: {message}")]
struct StoreSaid {
    status: u16,
    code: String,
    message: String,
}

fn read_failure(error: SdkError<GetSecretValueError, HttpResponse>) -> (Failure, BoxError) {
    match error {
        SdkError::ServiceError(context) if !context.raw().status().is_success() => {
            let said = StoreSaid {
                status: context.raw().status().as_u16(),
                code: context.err().code().unwrap_or_default().to_owned(),
                message: context.err().message().unwrap_or_default().chars().take(300).collect(),
            };
            (classify(&said.code, said.status, &said.message), said.into())
        }
        SdkError::ServiceError(context) => unreadable(context.raw()),
        SdkError::ResponseError(context) => unreadable(context.raw()),
        other if has_credentials_error(&other) => (Failure::Credentials, chain(&other).into()),
        other => (Failure::Unavailable, chain(&other).into()),
    }
}

/// An answer that could not be read. What the SDK says of it could quote it, so that goes no further.
fn unreadable(answer: &HttpResponse) -> (Failure, BoxError) {
    let (failure, message) = match answer.body().bytes() {
        Some(body) if is_complete(body) => (Failure::Invalid, "it is not what the API describes"),
        _ => (Failure::Unavailable, "it ended early"),
    };
    let (code, message) = ("unreadable answer".to_owned(), message.to_owned());
    (failure, StoreSaid { status: answer.status().as_u16(), code, message }.into())
}

/// Whether an answer is all there: JSON of the wrong form, or no JSON at all, rather than the beginning of some.
fn is_complete(body: &[u8]) -> bool {
    let parsed = serde_json::from_slice::<serde::de::IgnoredAny>(body);
    !parsed.is_err_and(|error| error.is_eof())
}

/// By code, and by HTTP status where the body was not JSON and there is no code.
fn classify(code: &str, status: u16, message: &str) -> Failure {
    match code {
        "ResourceNotFoundException" => Failure::NotFound,
        "InvalidRequestException" => Failure::Unreadable,
        "AccessDeniedException" | "AccessDenied" if message.contains("KMS") => {
            Failure::Denied { action: "kms:Decrypt" }
        }
        "AccessDeniedException" | "AccessDenied" => Failure::Denied { action: "secretsmanager:GetSecretValue" },
        "DecryptionFailure" => Failure::Denied { action: "kms:Decrypt" },
        "ExpiredToken"
        | "ExpiredTokenException"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "IncompleteSignature"
        | "SignatureDoesNotMatch"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException" => Failure::Credentials,
        "ThrottlingException" | "Throttling" | "TooManyRequestsException" | "RequestLimitExceeded" | "SlowDown" => {
            Failure::Throttled
        }
        _ => match status {
            429 => Failure::Throttled,
            401 => Failure::Credentials,
            403 => Failure::Denied { action: "secretsmanager:GetSecretValue" },
            408 | 500.. => Failure::Unavailable,
            _ => Failure::Invalid,
        },
    }
}

fn has_credentials_error(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<aws_credential_types::provider::error::CredentialsError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Names and ARNs of Secrets Manager: `[A-Za-z0-9/_+=.@!-]`, by segments, or an ARN of this service.
pub(super) fn check_path(path: &str) -> Result<(), String> {
    const ARN: &str = "begins as an ARN and is none of this store (arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME)";
    if path.is_empty() || path.len() > MAX_PATH_BYTES {
        return Err(format!("must have 1 to {MAX_PATH_BYTES} characters"));
    }
    let name = if path.starts_with("arn:") {
        let parts: Vec<&str> = path.splitn(7, ':').collect();
        let [_, partition, service, region, account, kind, name] = parts[..] else {
            return Err(ARN.to_owned());
        };
        let word = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let account_ok = account.len() == 12 && account.chars().all(|c| c.is_ascii_digit());
        if !partition.starts_with("aws")
            || !word(partition)
            || service != "secretsmanager"
            || !word(region)
            || !account_ok
            || kind != "secret"
        {
            return Err(ARN.to_owned());
        }
        name
    } else {
        path
    };
    check_segments(name)
}

/// A staging label (`AWSPREVIOUS`), or `uuid/` and a version id.
pub(super) fn check_version(version: &str) -> Result<(), String> {
    let bounded = |text: &str, length: std::ops::RangeInclusive<usize>, more: &str| {
        length.contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let valid = match version.strip_prefix(VERSION_ID) {
        Some(id) => bounded(id, 32..=64, "-"),
        None => bounded(version, 1..=256, "/_+=.@!-"),
    };
    if valid {
        return Ok(());
    }
    Err("must be a staging label (AWSCURRENT, AWSPREVIOUS or one of your own), or uuid/ and a version id".to_owned())
}

fn check_segments(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "/_+=.@!-".contains(c);
    if let Some(bad) = name.chars().find(|c| !allowed(*c)) {
        return Err(format!(
            "has the character {}; a secret's name has letters, digits and /_+=.@!-",
            bad.escape_unicode()
        ));
    }
    let mut segments = name.strip_prefix('/').unwrap_or(name).split('/');
    if segments.any(|segment| segment.is_empty() || segment == "." || segment == "..") {
        return Err("has an empty segment, `.` or `..` between its slashes".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_names_or_arns_of_this_service() {
        let longest = "a".repeat(MAX_PATH_BYTES);
        let too_long = "a".repeat(MAX_PATH_BYTES + 1);
        let good = [
            "/prod/codnod/config",
            "prod/db",
            "plain",
            "rds!db-1",
            "a+b=c@d.e_f-g",
            longest.as_str(),
            "arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/db-AbCdEf",
            "arn:aws-cn:secretsmanager:cn-north-1:111122223333:secret:x",
        ];
        for path in good {
            assert_eq!(check_path(path), Ok(()), "path: {path}");
        }
        let bad = [
            "",
            "/",
            "a//b",
            "/a/",
            "a/",
            "../a",
            "a/../b",
            "a/./b",
            "a/..",
            "%2e%2e/a",
            "a?b",
            "a#b",
            "a b",
            "a\nb",
            "a\\b",
            "https://evil/x",
            "ä",
            "a*",
            "a\u{0}b",
            "a\u{202e}b",
            too_long.as_str(),
            "arn:aws:s3:::bucket",
            "arn:aws:ssm:eu-west-1:111122223333:parameter/x",
            "arn:",
            "arn:aws:secretsmanager",
            "arn:aws:secretsmanager:eu-west-1:111122223333:secret:",
            "arn:aws:secretsmanager:eu-west-1:1:secret:x",
            "arn:aws:secretsmanager:eu-west-1:111122223333:secret:a/../b",
            "arn:aws:secretsmanager::111122223333:secret:x",
        ];
        for path in bad {
            assert!(check_path(path).is_err(), "path: {path}");
        }
    }

    #[test]
    fn versions_are_staging_labels_or_ids() {
        let id = "uuid/a1b2c3d4-5678-90ab-cdef-111122223333";
        for good in ["AWSCURRENT", "AWSPREVIOUS", "my/stage_1", id] {
            assert_eq!(check_version(good), Ok(()), "{good}");
        }
        let long = "a".repeat(257);
        for bad in ["", "uuid/", "uuid/1", "a b", "a?b", "a\n", "\u{e9}", long.as_str()] {
            assert!(check_version(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn failures_by_code_and_by_status() {
        let denied = |action| Failure::Denied { action };
        let cases = [
            ("ResourceNotFoundException", 400, "", Failure::NotFound),
            ("ResourceNotFoundException", 404, "", Failure::NotFound),
            ("InvalidRequestException", 400, "marked for deletion", Failure::Unreadable),
            ("AccessDeniedException", 400, "not authorized", denied("secretsmanager:GetSecretValue")),
            ("AccessDeniedException", 400, "Access to KMS is not allowed", denied("kms:Decrypt")),
            ("DecryptionFailure", 400, "", denied("kms:Decrypt")),
            ("", 403, "", denied("secretsmanager:GetSecretValue")),
            ("ExpiredTokenException", 400, "", Failure::Credentials),
            ("UnrecognizedClientException", 400, "", Failure::Credentials),
            ("", 401, "", Failure::Credentials),
            ("ThrottlingException", 400, "", Failure::Throttled),
            ("", 429, "", Failure::Throttled),
            ("InternalServiceError", 500, "", Failure::Unavailable),
            ("", 503, "", Failure::Unavailable),
            ("InvalidParameterException", 400, "", Failure::Invalid),
            ("", 404, "", Failure::Invalid),
        ];
        for (code, status, message, want) in cases {
            assert_eq!(classify(code, status, message), want, "{code} {status} {message}");
        }
    }
}
