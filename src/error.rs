//! The umbrella error of a sync: what the pod's owner is told (`Display`), under which reason, and when to try again.

use std::{error::Error, fmt::Write as _, sync::Arc};

use tokio::time::Instant;

use crate::{
    annotations::quoted,
    mapping::MappingError,
    policy::Denied,
    provider::{FetchError, ProviderError, ProviderName},
    request::{ObjectKind, RequestError},
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
    /// A key that the annotation chooses is not in the source.
    SecretKeyMissing,
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
            Self::SecretKeyMissing => "SecretKeyMissing",
            Self::SecretInvalid => "SecretInvalid",
            Self::SecretTooLarge => "SecretTooLarge",
            Self::SecretConflict => "SecretConflict",
            Self::SecretWriteFailed => "SecretWriteFailed",
        }
    }
}

/// When a failed request is tried again. Where no jitter is named, each pause is drawn from its half to its whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Only when the pod, the policy or the configuration changes.
    OnChange,
    /// Nobody answers, which passes: full jitter up to 0.2 s, doubling to 5 s; after two minutes on to 30 s.
    Transient,
    /// Too many requests: full jitter up to 0.2 s, doubling to 30 s.
    Throttled,
    /// A right of the agent's own is missing: from 1 s to 30 s, and when it is found to be back.
    Rights,
    /// Nothing there yet: from 30 s to 10 min.
    Absent,
    /// Refused until somebody grants a right: from 5 to 30 min.
    Denied,
    /// Somebody else holds the name and may let go: exactly 5, 15, 30, 60 s, then every minute.
    Held,
    /// The target is not ours: every 5 min.
    Foreign,
}

impl Retry {
    /// Nobody has to act: it passes by itself.
    pub fn is_trouble(self) -> bool {
        matches!(self, Self::Transient | Self::Throttled)
    }
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
    Provider(#[from] FetchError),
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
    /// Something secret, for which a ConfigMap was asked.
    #[error(
        "{} is a SecureString at the store, and is not written to a ConfigMap: take `kind: ConfigMap` out, and use the Secret",
        quoted(.path)
    )]
    NotPlain {
        /// Where it stands at the store.
        path: String,
    },
    /// It became one kind of object while another was looked for.
    #[error("the type of {} changed at the store; the agent tries again, for a {kind}", quoted(.path))]
    OtherKind {
        /// Where it stands at the store.
        path: String,
        /// What it is now.
        kind: ObjectKind,
    },
    /// The write.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The master.
    #[error(transparent)]
    Master(Arc<TargetError>),
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
                MappingError::KeyMissing { .. } => Reason::SecretKeyMissing,
                _ => Reason::SecretInvalid,
            },
            Self::NotPlain { .. } | Self::OtherKind { .. } => Reason::SecretInvalid,
            Self::Target(error) => error.reason(),
            Self::Master(error) => error.reason(),
            Self::Panicked { .. } => Reason::SecretWriteFailed,
        }
    }

    /// When to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Request(_) | Self::Denied(_) => Retry::OnChange,
            Self::Provider(error) => error.provider_error().retry(),
            // The source has to change first; asking for it is a fetch, so it is asked slowly.
            Self::Mapping { .. } | Self::NotPlain { .. } | Self::Panicked { .. } => Retry::Absent,
            Self::OtherKind { .. } => Retry::Transient,
            Self::Target(error) => error.retry(),
            Self::Master(error) => error.retry(),
        }
    }

    /// When to try again at the earliest and the latest, where that is not for this request alone to say.
    pub fn again_at(&self) -> Option<Instant> {
        match self {
            Self::Provider(error) => error.again_at(),
            _ => None,
        }
    }

    /// Whether a change of the agent's surroundings (policy, admission, rights, a store that is back) ends the wait.
    pub fn ends_with_a_change(&self) -> bool {
        match self {
            Self::Provider(error) => error.again_at().is_some(),
            // What is wrong stands in the annotation, whatever changes around it.
            Self::Request(_) => false,
            _ => matches!(self.retry(), Retry::OnChange | Retry::Rights),
        }
    }

    /// Whether it stands from before: nobody was asked for this attempt.
    pub fn is_remembered(&self) -> bool {
        matches!(self, Self::Provider(error) if error.is_remembered())
    }

    /// What failed, finer than the reason: the `action` of the Event, so that a different failure of the same reason
    /// makes an Event of its own.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Request(_) => "ParseAnnotation",
            Self::Denied(_) => "AdmitRequest",
            Self::Provider(error) => match error.provider_error() {
                ProviderError::NotFound { .. } => "FetchNotFound",
                ProviderError::Unreadable { .. } => "FetchUnreadable",
                ProviderError::AccessDenied { .. } => "FetchAccessDenied",
                ProviderError::Credentials { .. } => "FetchCredentials",
                ProviderError::PodGone { .. } => "FetchPodGone",
                ProviderError::Throttled { .. } => "FetchThrottled",
                ProviderError::Login { .. } => "FetchLogin",
                ProviderError::Unavailable { .. } => "FetchUnavailable",
                ProviderError::Invalid { .. } => "FetchInvalid",
            },
            Self::Mapping { problem, .. } => match problem {
                MappingError::NotAnObject { .. } => "MapNotAnObject",
                MappingError::DuplicateKey { .. } => "MapDuplicateKey",
                MappingError::BadKey { .. } => "MapBadKey",
                MappingError::KeyMissing { .. } => "MapKeyMissing",
                MappingError::Empty => "MapEmpty",
                MappingError::TooLarge { .. } => "MapTooLarge",
                MappingError::WrongForType { .. } => "MapWrongForType",
            },
            Self::NotPlain { .. } => "MapNotPlain",
            Self::OtherKind { .. } => "MapOtherKind",
            Self::Target(error) => error.action(),
            Self::Master(error) => error.action(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{service_account::TokenError, workload::Workload};

    /// A text that only a store or the API server would write.
    const FOREIGN: &str = "text-of-another-program";

    fn answered(error: ProviderError) -> SyncError {
        FetchError::answered(std::sync::Arc::new(error), None).into()
    }

    fn provider_errors() -> Vec<ProviderError> {
        let provider = || ProviderName::for_test("aws");
        let (path, source) = (|| "a/b".to_owned(), || BoxError::from(FOREIGN));
        vec![
            ProviderError::NotFound { provider: provider(), path: path() },
            ProviderError::Unreadable {
                provider: provider(),
                path: path(),
                problem: "deletion scheduled?",
                source: source(),
            },
            ProviderError::AccessDenied {
                provider: provider(),
                path: path(),
                action: "x:Get on it".into(),
                identity: "arn".into(),
                source: source(),
            },
            ProviderError::Credentials { provider: provider(), remedy: "check the role".into(), source: source() },
            ProviderError::of_token(provider(), &TokenError::Gone { subject: "ns:app".to_owned(), source: source() }),
            ProviderError::Throttled { provider: provider(), retry_after: None, source: source() },
            ProviderError::Login { provider: provider(), problem: "x", retry_after: None, source: source() },
            ProviderError::Unavailable { provider: provider(), source: source() },
            ProviderError::Invalid { provider: provider(), path: path(), problem: "p", source: Some(source()) },
        ]
    }

    fn target_errors() -> Vec<TargetError> {
        let (target, source) = (|| "ns/app".to_owned(), || BoxError::from(FOREIGN));
        vec![
            TargetError::NotOurs { target: target() },
            TargetError::HeldByOther { target: target(), holder: Workload::ShortLived },
            TargetError::OtherIdentity { target: target() },
            TargetError::Tie { target: target() },
            TargetError::NewerRelease { target: target() },
            TargetError::Immutable { target: target() },
            TargetError::TypeDiffers { target: target() },
            TargetError::NamespaceClosed { target: target(), said: "this namespace is protected".to_owned() },
            TargetError::Decorated { target: target(), kinds: "labels".to_owned() },
            TargetError::Rbac { verb: "update".into(), resource: "secrets".into() },
            TargetError::Unauthenticated,
            TargetError::OwnPolicy { target: target(), policy: "p".into(), said: "jasm:x".into() },
            TargetError::Forbidden { target: target(), by: "b".into(), source: source() },
            TargetError::Quota { target: target() },
            TargetError::Invalid { target: target(), fields: "f".into() },
            TargetError::Unreadable { target: target() },
            TargetError::Busy { target: target(), code: 503, source: source() },
            TargetError::Unreachable { source: source() },
            TargetError::AdmissionMissing { policy: "p" },
            TargetError::AdmissionUnchecked { source: source() },
            TargetError::WebhookDown { target: target(), webhook: "`w`".into(), source: source() },
            TargetError::LostRace { target: target() },
        ]
    }

    fn mapping_errors() -> Vec<MappingError> {
        let key = || "a".to_owned();
        vec![
            MappingError::NotAnObject { problem: "it is empty".into() },
            MappingError::DuplicateKey { key: key() },
            MappingError::BadKey { key: key() },
            MappingError::KeyMissing { key: key(), near: String::new() },
            MappingError::Empty,
            MappingError::TooLarge { size: 2_000_000 },
            MappingError::WrongForType { secret_type: "kubernetes.io/tls", problem: "check it at the store" },
        ]
    }

    /// Every variant has a text of one line that names what to do, fits an Event, and holds nothing of its source.
    #[test]
    fn every_error_tells_what_failed_and_nothing_that_others_wrote() {
        let providers = provider_errors().into_iter().map(answered);
        let targets = target_errors().into_iter().map(SyncError::from);
        let mut all: Vec<SyncError> = providers.chain(targets).collect();
        all.push(SyncError::Request(
            crate::annotations::invalid("is empty; write provider, path and secretName").into(),
        ));
        all.extend(mapping_errors().into_iter().map(|problem| SyncError::Mapping {
            provider: ProviderName::for_test("aws"),
            path: "a/b".into(),
            problem,
        }));
        all.push(SyncError::Panicked { target: "Secret ns/app".into() });
        for error in &all {
            let text = error.to_string();
            assert!(!text.contains(FOREIGN), "the source is for the log: {text}");
            assert!(text.len() < 900 && !text.contains('\n'), "{text}");
            let remedies = [
                "check",
                "choose",
                "retries",
                "grant",
                "restore",
                "give each",
                "update",
                "delete",
                "has to",
                "ask ",
                "raise",
                "write ",
                "add at least",
                "keep one",
                "split ",
                "store a",
                "the agent's log has",
            ];
            let said = text.split_once(": ").map_or(text.as_str(), |(_, said)| said);
            let remedy = remedies.iter().any(|word| said.contains(word));
            assert!(remedy, "no remedy: {text}");
            assert!(error.action().chars().all(char::is_alphanumeric) && error.action().len() <= 128);
        }
        let mut actions: Vec<_> = all.iter().map(SyncError::action).collect();
        actions.sort_unstable();
        actions.dedup();
        assert_eq!(actions.len(), all.len(), "each failure has an action of its own, by which Events fold");
    }

    #[test]
    fn only_trouble_that_passes_is_retried_fast() {
        for error in provider_errors() {
            assert_eq!(error.retry() == Retry::Transient, error.result() == "unavailable", "{error}");
            let throttled = matches!(error.result(), "credentials" | "pod_gone" | "throttled" | "login");
            assert_eq!(error.retry() == Retry::Throttled, throttled, "{error}");
        }
        let busy = |code| TargetError::Busy { target: "a/b".into(), code, source: FOREIGN.into() }.retry();
        assert_eq!((busy(429), busy(503)), (Retry::Throttled, Retry::Transient));
        for error in target_errors() {
            let conflict = error.reason() == Reason::SecretConflict;
            let fast = matches!(error.retry(), Retry::Transient | Retry::Throttled);
            assert!(!(conflict && fast), "a conflict is not hammered: {error}");
        }
    }

    #[test]
    fn the_chain_says_each_thing_once() {
        let error = ProviderError::Throttled {
            provider: ProviderName::for_test("aws"),
            retry_after: None,
            source: FOREIGN.into(),
        };
        let error = answered(error);
        let want = format!("aws throttles requests; the agent retries with backoff: {FOREIGN}");
        assert_eq!(chain(&error), want);
    }
}
