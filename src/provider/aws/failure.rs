//! What an AWS service's refusal means, by its code, and by HTTP status where the body was not JSON and there is none.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use super::{super::http::HttpError, exchange::Unexchanged};
use crate::error::chain;

/// What a failed call means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    NotFound,
    Unreadable,
    Denied,
    NotDecrypted,
    /// The store does not take the credentials.
    Refused,
    /// There are none.
    NoCredentials,
    /// There are none, since the pod that asked is gone.
    PodGone,
    Throttled,
    Unavailable,
    Invalid,
}

impl Failure {
    /// Whether a refusal of several names may be about one of them alone.
    pub(super) fn may_be_about_one(self) -> bool {
        !matches!(self, Self::Refused | Self::NoCredentials | Self::PodGone | Self::Throttled | Self::Unavailable)
    }
}

/// A failed call, and what was said about it, for the log: code, status and message, never a body.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) failure: Failure,
    pub(super) said: String,
    /// What to do about it, where that is known better than by who asks.
    pub(super) remedy: Option<String>,
    /// Whether it was not this service, but whoever gives out credentials for it.
    pub(super) is_of_an_exchange: bool,
}

impl Failed {
    pub(super) fn new(failure: Failure, said: String) -> Self {
        Self { failure, said, remedy: None, is_of_an_exchange: false }
    }

    /// Nobody was asked.
    pub(super) fn without_credentials() -> Self {
        Self::new(Failure::NoCredentials, "the environment names no source of credentials".to_owned())
    }
}

impl<E: ProvideErrorMetadata + Error + Send + Sync + 'static> From<SdkError<E, HttpResponse>> for Failed {
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        if let Some(Unexchanged(failed)) = causes(&error).find_map(|cause| cause.downcast_ref()) {
            return Self { is_of_an_exchange: true, ..failed.clone() };
        }
        match error {
            SdkError::ServiceError(context) if !context.raw().status().is_success() => {
                let status = context.raw().status().as_u16();
                let code = context.err().code().unwrap_or_default();
                let message: String = context.err().message().unwrap_or_default().chars().take(300).collect();
                Self::new(classify(code, status, &message), format!("HTTP {status} {code}: {message}"))
            }
            // A refusal in no form of the service's, as of a load balancer.
            SdkError::ResponseError(context) if !context.raw().status().is_success() => {
                let status = context.raw().status().as_u16();
                Self::new(classify("", status, ""), format!("HTTP {status}"))
            }
            SdkError::ServiceError(context) => unreadable(context.raw()),
            SdkError::ResponseError(context) => unreadable(context.raw()),
            other if is_too_large(&other) => Self::new(Failure::Invalid, chain(&other)),
            // Also where nobody answered who gives out credentials.
            other if is_about_credentials(&other) && !nobody_answered(&other) => {
                Self::new(Failure::NoCredentials, chain(&other))
            }
            other => Self::new(Failure::Unavailable, chain(&other)),
        }
    }
}

/// An answer that could not be read. What the SDK says of it could quote it, so that goes no further.
fn unreadable(answer: &HttpResponse) -> Failed {
    let (failure, message) = match answer.body().bytes() {
        Some(body) if is_complete(body) => (Failure::Invalid, "it is not what the API describes"),
        _ => (Failure::Unavailable, "it ended early"),
    };
    Failed::new(failure, format!("HTTP {} unreadable answer: {message}", answer.status().as_u16()))
}

/// Whether an answer is all there: JSON of the wrong form, or no JSON at all, rather than the beginning of some.
fn is_complete(body: &[u8]) -> bool {
    let parsed = serde_json::from_slice::<serde::de::IgnoredAny>(body);
    !parsed.is_err_and(|error| error.is_eof())
}

fn classify(code: &str, status: u16, message: &str) -> Failure {
    match code {
        "ResourceNotFoundException" | "ParameterNotFound" | "ParameterVersionNotFound" => Failure::NotFound,
        "InvalidRequestException" => Failure::Unreadable,
        "AccessDeniedException" | "AccessDenied"
            if message.contains("Access to KMS") || message.contains("kms:Decrypt") =>
        {
            Failure::NotDecrypted
        }
        "AccessDeniedException" | "AccessDenied" => Failure::Denied,
        "DecryptionFailure" | "InvalidKeyId" => Failure::NotDecrypted,
        "ExpiredToken"
        | "ExpiredTokenException"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "IncompleteSignature"
        | "SignatureDoesNotMatch"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException" => Failure::Refused,
        "ThrottlingException" | "Throttling" | "TooManyRequestsException" | "RequestLimitExceeded" | "SlowDown" => {
            Failure::Throttled
        }
        _ => match status {
            429 => Failure::Throttled,
            401 => Failure::Refused,
            403 => Failure::Denied,
            408 | 500.. => Failure::Unavailable,
            _ => Failure::Invalid,
        },
    }
}

fn is_too_large(error: &(dyn Error + 'static)) -> bool {
    causes(error).filter_map(|cause| cause.downcast_ref()).any(|cause| matches!(cause, HttpError::TooLarge))
}

fn nobody_answered(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<HttpError>() || cause.is::<tokio::time::error::Elapsed>())
}

fn is_about_credentials(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<CredentialsError>())
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_by_code_and_by_status() {
        let cases = [
            ("ResourceNotFoundException", 400, "", Failure::NotFound),
            ("ResourceNotFoundException", 404, "", Failure::NotFound),
            ("ParameterNotFound", 400, "", Failure::NotFound),
            ("InvalidRequestException", 400, "marked for deletion", Failure::Unreadable),
            ("AccessDeniedException", 400, "not authorized", Failure::Denied),
            ("AccessDeniedException", 400, "Access to KMS is not allowed", Failure::NotDecrypted),
            ("AccessDeniedException", 400, "not authorized to perform: kms:Decrypt", Failure::NotDecrypted),
            ("DecryptionFailure", 400, "", Failure::NotDecrypted),
            ("", 403, "", Failure::Denied),
            ("ExpiredTokenException", 400, "", Failure::Refused),
            ("UnrecognizedClientException", 400, "", Failure::Refused),
            ("", 401, "", Failure::Refused),
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
