//! One caller's way to a service: a client with his credentials, and what a refusal means to him.

use std::{
    future::Future,
    sync::{Mutex, OnceLock, PoisonError},
};

use aws_config::SdkConfig;

use super::failure::{Failed, Failure};
use crate::provider::{ProviderError, ProviderName};

/// As whom a service is asked.
#[derive(Debug)]
pub(super) struct Access<C> {
    pub(super) name: ProviderName,
    /// For the service alone; STS has its own.
    pub(super) endpoint: Option<String>,
    pub(super) client: fn(&SdkConfig, Option<&str>) -> C,
    session: Mutex<Session<C>>,
    /// The store's name for the caller.
    identity: OnceLock<String>,
    /// What to look at when there are no credentials, or none that the store takes.
    remedy: String,
}

/// A client and its credentials.
#[derive(Debug, Clone)]
struct Session<C> {
    sdk: SdkConfig,
    client: C,
    /// Counts the sessions, so that credentials are refreshed once however many requests find them expired.
    number: u64,
}

impl<C: Clone> Access<C> {
    /// With the credentials that `sdk` has.
    pub(super) fn new(
        name: ProviderName,
        sdk: SdkConfig,
        endpoint: Option<String>,
        client: fn(&SdkConfig, Option<&str>) -> C,
        remedy: String,
    ) -> Self {
        let session = Mutex::new(Session { client: client(&sdk, endpoint.as_deref()), sdk, number: 0 });
        Self { name, endpoint, client, session, identity: OnceLock::new(), remedy }
    }

    /// The same, known by this name.
    pub(super) fn known_as(self, identity: String) -> Self {
        Self { identity: identity.into(), ..self }
    }

    fn session(&self) -> Session<C> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the SDK is set up with.
    pub(super) fn sdk(&self) -> SdkConfig {
        self.session().sdk
    }

    /// Forgets cached credentials, unless somebody did since `seen`.
    fn refresh_credentials(&self, seen: &Session<C>) -> Session<C> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.number == seen.number {
            let sdk = seen.sdk.to_builder().identity_cache(super::identity_cache()).build();
            let client = (self.client)(&sdk, self.endpoint.as_deref());
            *session = Session { sdk, client, number: seen.number + 1 };
        }
        session.clone()
    }

    /// Asks once, and once more with fresh credentials where the store refuses those that were cached.
    pub(super) async fn ask<T, F>(&self, request: impl Fn(C) -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let session = self.session();
        if session.sdk.credentials_provider().is_none() {
            return Err(Failed::without_credentials());
        }
        match request(session.client.clone()).await {
            Err(Failed { failure: Failure::Refused, .. }) => request(self.refresh_credentials(&session).client).await,
            outcome => outcome,
        }
    }

    /// What a failed call about `path` means; `action` is the right that reads it.
    pub(super) fn explain(&self, path: &str, action: &'static str, failed: Failed) -> ProviderError {
        let (provider, path) = (self.name.clone(), path.to_owned());
        let source = failed.said.into();
        match failed.failure {
            Failure::NotFound => ProviderError::NotFound { provider, path },
            Failure::Unreadable => {
                let problem = "deletion scheduled?";
                ProviderError::Unreadable { provider, path, problem, source }
            }
            denied @ (Failure::Denied | Failure::NotDecrypted) => ProviderError::AccessDenied {
                provider,
                path,
                action: if denied == Failure::Denied {
                    format!("{action} on it")
                } else {
                    "kms:Decrypt on its key".to_owned()
                }
                .into(),
                identity: self.identity.get().cloned().unwrap_or_else(|| "unknown".to_owned()),
                source,
            },
            Failure::Refused | Failure::NoCredentials => {
                let remedy = failed.remedy.unwrap_or_else(|| self.remedy.clone()).into();
                ProviderError::Credentials { provider, remedy, source }
            }
            Failure::PodGone => ProviderError::PodGone { provider, problem: failed.remedy.unwrap_or_default(), source },
            problem @ (Failure::Throttled | Failure::Unavailable) if failed.is_of_an_exchange => {
                let problem = if problem == Failure::Throttled { "asks for patience" } else { "did not answer" };
                ProviderError::Login { provider, problem, retry_after: None, source }
            }
            Failure::Throttled => ProviderError::Throttled { provider, retry_after: None, source },
            Failure::Unavailable => ProviderError::Unavailable { provider, source },
            Failure::Invalid => ProviderError::Invalid {
                provider,
                path,
                problem: "the store calls the request invalid",
                source: Some(source),
            },
        }
    }

    /// Loads credentials and learns who the caller is. `sts:GetCallerIdentity` needs no right.
    pub(super) async fn who(&self) -> Result<String, ProviderError> {
        let asked = async {
            let sdk = self.sdk();
            if sdk.credentials_provider().is_none() {
                return Err(Failed::without_credentials());
            }
            aws_sdk_sts::Client::new(&sdk).get_caller_identity().send().await.map_err(Failed::from)
        };
        let who = asked.await.map_err(|failed| self.explain("", "sts:GetCallerIdentity", failed))?;
        let arn = who.arn.unwrap_or_default();
        if !arn.is_empty() {
            let _ = self.identity.set(arn.clone());
        }
        Ok(arn)
    }
}
