//! What can go wrong at a store, classified once for retries, Events and metrics.

use std::{borrow::Cow, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    annotations::quoted,
    error::{BoxError, Retry, chain},
    provider::ProviderName,
    service_account::TokenError,
};

/// Why a fetch gave no value. The text names object and remedy; what the store or its SDK said is only in the source.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// No such secret or version.
    #[error("{provider} has no secret {} (or no such version of it): check path and version in the annotation", quoted(.path))]
    NotFound {
        /// The instance that was asked.
        provider: ProviderName,
        /// What was asked for.
        path: String,
    },
    /// The secret is scheduled for deletion, or in another state in which it cannot be read.
    #[error("{provider} cannot give out {} in its present state ({problem}): restore it, or ask for another", quoted(.path))]
    Unreadable {
        /// The instance that was asked.
        provider: ProviderName,
        /// What was asked for.
        path: String,
        /// The state.
        problem: &'static str,
        /// What the store said.
        #[source]
        source: BoxError,
    },
    /// The store knows the caller and says no.
    #[error("{provider} denied access to {}: grant {action} to {}", quoted(.path), shown(.identity))]
    AccessDenied {
        /// The instance that was asked.
        provider: ProviderName,
        /// What was asked for.
        path: String,
        /// The right to grant, in the store's terms.
        action: Cow<'static, str>,
        /// Who asked, in the store's terms; `unknown` where the store did not say.
        identity: String,
        /// What the store said.
        #[source]
        source: BoxError,
    },
    /// No credentials, or such that the store refuses.
    #[error("{provider} got no valid credentials: {remedy}")]
    Credentials {
        /// The instance that was asked.
        provider: ProviderName,
        /// What to do.
        remedy: Cow<'static, str>,
        /// What the store or the SDK said.
        #[source]
        source: BoxError,
    },
    /// The pod by whose token the store is asked is gone, or its service account is. Another pod of the account may be there.
    #[error("{provider} was not asked: {problem}")]
    PodGone {
        /// The instance that was to be asked.
        provider: ProviderName,
        /// Whose pod.
        problem: String,
        /// What the API server said.
        #[source]
        source: BoxError,
    },
    /// The store asks for patience.
    #[error("{provider} throttles requests; the agent retries with backoff")]
    Throttled {
        /// The instance that was asked.
        provider: ProviderName,
        /// How long the store wants to be left alone, where it says so.
        retry_after: Option<Duration>,
        /// What the store said.
        #[source]
        source: BoxError,
    },
    /// Whoever gives out credentials for this caller (STS, EKS Pod Identity, Entra ID) gave none now. The store itself was not asked.
    #[error("{provider} was not asked: whoever gives out credentials for it {problem}; the agent retries with backoff")]
    Login {
        /// The instance that was to be asked.
        provider: ProviderName,
        /// What it did.
        problem: &'static str,
        /// How long it wants to be left alone, where it says so.
        retry_after: Option<Duration>,
        /// What it said.
        #[source]
        source: BoxError,
    },
    /// No answer, or a server error.
    #[error("{provider} did not answer; the agent retries with backoff")]
    Unavailable {
        /// The instance that was asked.
        provider: ProviderName,
        /// What happened.
        #[source]
        source: BoxError,
    },
    /// An answer that makes no sense for a request that is well formed.
    #[error("{provider} gave an answer for {} that cannot be used: {problem}; check the secret at the store (the agent's log may have more)", quoted(.path))]
    Invalid {
        /// The instance that was asked.
        provider: ProviderName,
        /// What was asked for.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
        /// What the store said, where it said something.
        #[source]
        source: Option<BoxError>,
    },
}

/// The store's name for the agent, as far as a name goes.
fn shown(identity: &str) -> String {
    identity.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(200).collect()
}

impl ProviderError {
    /// The service account of a pod proves nothing.
    pub(crate) fn of_token(provider: ProviderName, error: &TokenError) -> Self {
        let source = chain(error).into();
        match error.is_gone() {
            true => Self::PodGone { provider, problem: error.to_string(), source },
            false => Self::Credentials { provider, remedy: error.to_string().into(), source },
        }
    }

    /// Whether another pod of the same account may have more success.
    pub(super) fn is_of_a_pod_that_is_gone(&self) -> bool {
        matches!(self, Self::PodGone { .. })
    }

    /// When to ask again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::NotFound { .. } | Self::Unreadable { .. } => Retry::Absent,
            Self::AccessDenied { .. } | Self::Invalid { .. } => Retry::Denied,
            Self::Credentials { .. } | Self::PodGone { .. } | Self::Throttled { .. } | Self::Login { .. } => {
                Retry::Throttled
            }
            Self::Unavailable { .. } => Retry::Transient,
        }
    }

    /// The label of `jasm_provider_requests_total{result}`.
    pub fn result(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Unreadable { .. } => "unreadable",
            Self::AccessDenied { .. } => "access_denied",
            Self::Credentials { .. } => "credentials",
            Self::PodGone { .. } => "pod_gone",
            Self::Throttled { .. } => "throttled",
            Self::Login { .. } => "login",
            Self::Unavailable { .. } => "unavailable",
            Self::Invalid { .. } => "invalid",
        }
    }
}

/// A fetch that gave no value, as everybody sees it who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{error}")]
pub struct FetchError {
    #[source]
    error: Arc<ProviderError>,
    /// When the source may be asked again, where that is the same for all who wait.
    again_at: Option<Instant>,
    /// The store was not asked for this one.
    remembered: bool,
}

impl FetchError {
    /// What the store answered just now; `again_at` where that is the same for all.
    pub(crate) fn answered(error: Arc<ProviderError>, again_at: Option<Instant>) -> Self {
        Self { error, again_at, remembered: false }
    }

    /// What it answered before: it is not to be asked again yet.
    pub(super) fn waits(error: Arc<ProviderError>, again_at: Instant) -> Self {
        Self { error, again_at: Some(again_at), remembered: true }
    }

    /// What is wrong.
    pub fn provider_error(&self) -> &ProviderError {
        &self.error
    }

    /// When to ask again, where that is not for the asking pod alone to say. An end of the trouble before that is
    /// announced.
    pub fn again_at(&self) -> Option<Instant> {
        self.again_at
    }

    /// Whether it stands from before, without a request to the store.
    pub fn is_remembered(&self) -> bool {
        self.remembered
    }
}
