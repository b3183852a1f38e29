//! The umbrella error of a sync: what the pod's owner is told (`Display`), under which reason, and when to try again.

use std::{error::Error, fmt::Write as _, sync::Arc};

use crate::{
    annotations::quoted,
    mapping::MappingError,
    policy::Denied,
    provider::{ProviderError, ProviderName},
    request::RequestError,
    target::TargetError,
};

/// Any error, as a source.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// Stable, few: these stand on Events and in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The Secret is as the pod asked.
    SecretSyncSuccess,
    /// The annotation is malformed.
    AnnotationInvalid,
    /// The annotation names an instance that is not configured.
    ProviderUnsupported,
    /// No policy rule admits the request.
    PolicyDenied,
    /// The store gave no value.
    SecretFetchFailed,
    /// The value cannot become a Secret.
    SecretInvalid,
    /// The value is larger than a Secret can be.
    SecretTooLarge,
    /// The name belongs to somebody else.
    SecretConflict,
    /// The API server took no write.
    SecretWriteFailed,
}

impl Reason {
    /// As it stands on Events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SecretSyncSuccess => "SecretSyncSuccess",
            Self::AnnotationInvalid => "AnnotationInvalid",
            Self::ProviderUnsupported => "ProviderUnsupported",
            Self::PolicyDenied => "PolicyDenied",
            Self::SecretFetchFailed => "SecretFetchFailed",
            Self::SecretInvalid => "SecretInvalid",
            Self::SecretTooLarge => "SecretTooLarge",
            Self::SecretConflict => "SecretConflict",
            Self::SecretWriteFailed => "SecretWriteFailed",
        }
    }
}

/// When a failed request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Only when the pod, the policy or the configuration changes.
    OnChange,
    /// Trouble that passes: full jitter up to 0.2 s, doubling to 30 s.
    Transient,
    /// Nothing there yet: from 30 s to 10 min.
    Absent,
    /// Refused until somebody grants a right: from 5 to 30 min.
    Denied,
    /// Somebody else holds the name and may let go: 5, 15, 30, 60 s, then every minute.
    Held,
    /// The target is not ours: every 5 min.
    Foreign,
}

/// Why one request of one pod was not served.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The annotation.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The policy.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The store.
    #[error(transparent)]
    Provider(#[from] Arc<ProviderError>),
    /// The value.
    #[error("the value of {} from {provider} cannot be used: {problem}", quoted(.path))]
    Mapping {
        /// The instance that the value came from.
        provider: ProviderName,
        /// Where it stands there.
        path: String,
        /// What is wrong with it.
        problem: MappingError,
    },
    /// The write.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A bug of ours, caught.
    #[error("the agent hit a bug while syncing {target}; other pods are not affected; the agent's log has the place")]
    Panicked {
        /// The Secret that was worked on.
        target: String,
    },
}

impl SyncError {
    /// The reason on the Event and in the metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Request(RequestError::Annotation(_)) => Reason::AnnotationInvalid,
            Self::Request(RequestError::ProviderUnsupported { .. }) => Reason::ProviderUnsupported,
            Self::Denied(_) => Reason::PolicyDenied,
            Self::Provider(_) => Reason::SecretFetchFailed,
            Self::Mapping { problem, .. } => match problem {
                MappingError::TooLarge { .. } => Reason::SecretTooLarge,
                _ => Reason::SecretInvalid,
            },
            Self::Target(error) => error.reason(),
            Self::Panicked { .. } => Reason::SecretWriteFailed,
        }
    }

    /// When to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Request(_) | Self::Denied(_) => Retry::OnChange,
            Self::Provider(error) => error.retry(),
            // The source has to change first; asking for it is a fetch, so it is asked slowly.
            Self::Mapping { .. } | Self::Panicked { .. } => Retry::Absent,
            Self::Target(error) => error.retry(),
        }
    }

    /// What failed, finer than the reason: the `action` of the Event, so that a different failure of the same reason
    /// makes an Event of its own.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Request(_) => "ParseAnnotation",
            Self::Denied(_) => "AdmitRequest",
            Self::Provider(error) => match **error {
                ProviderError::NotFound { .. } => "FetchNotFound",
                ProviderError::Unreadable { .. } => "FetchUnreadable",
                ProviderError::AccessDenied { .. } => "FetchAccessDenied",
                ProviderError::Credentials { .. } => "FetchCredentials",
                ProviderError::Throttled { .. } => "FetchThrottled",
                ProviderError::Unavailable { .. } => "FetchUnavailable",
                ProviderError::Invalid { .. } => "FetchInvalid",
            },
            Self::Mapping { .. } => "MapValue",
            Self::Target(error) => error.action(),
            Self::Panicked { .. } => "Panic",
        }
    }
}

/// The whole chain on one line, for logs only: sources hold text that stores and SDKs wrote.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let shown = source.to_string();
        // Transparent and self-describing layers repeat their source.
        if !text.ends_with(&shown) {
            let _ = write!(text, ": {shown}");
        }
        next = source.source();
    }
    text
}
