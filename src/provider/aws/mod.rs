//! What the stores at AWS have in common: an account in a region, as whom it is asked, and what its refusals mean.

mod connector;
mod credentials;
mod failure;
pub(super) mod parameter_store;
pub(super) mod secrets_manager;

use std::{
    future::Future,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_sts::config::IdentityCache;

use self::{
    credentials::Source,
    failure::{Failed, Failure},
};
use super::{
    ProviderError, ProviderName,
    http::{Http, check_address},
    kind::{BuildError, Common},
};
/// For one answer, with the connection to get it: another attempt may do better than to wait.
const READ_TIMEOUT: Duration = Duration::from_secs(4);
/// With the credentials for it.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(9);

/// What both services' entries in the operator's file may say.
#[derive(Debug, Default)]
struct Place {
    region: Option<String>,
    endpoint: Option<String>,
    imds: bool,
}

/// One account in one region, with a client `C` of one service.
#[derive(Debug)]
struct Account<C> {
    name: ProviderName,
    source: Option<Source>,
    /// For the service alone; STS has its own.
    endpoint: Option<String>,
    client: fn(&SdkConfig, Option<&str>) -> C,
    session: Mutex<Session<C>>,
    identity: OnceLock<String>,
}

/// A client and its credentials.
#[derive(Debug, Clone)]
struct Session<C> {
    sdk: SdkConfig,
    client: C,
    /// Counts the sessions, so that credentials are refreshed once however many requests find them expired.
    number: u64,
}

impl<C: Clone> Account<C> {
    /// Builds the client; makes no request. `variable` names the service's endpoint in the SDK's environment.
    async fn new(
        common: &Common,
        place: Place,
        variable: &str,
        client: fn(&SdkConfig, Option<&str>) -> C,
    ) -> Result<Self, BuildError> {
        let env = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
        let region = place.region.or_else(|| env("AWS_REGION")).or_else(|| env("AWS_DEFAULT_REGION"));
        let region = region.ok_or_else(|| {
            BuildError::NotSetUp("no region: set `region` in providers.yaml, or AWS_REGION".to_owned())
        })?;
        let settings = [("endpoint", place.endpoint.clone())];
        let variables = [variable, "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS"].map(|name| (name, env(name)));
        for (setting, address) in settings.iter().chain(&variables) {
            if let Some(address) = address {
                check_address(address, common.allow_insecure).map_err(|problem| format!("{setting} {problem}"))?;
            }
        }
        let region = Region::new(region);
        let source = Source::pick(|key| env(key).is_some(), place.imds);
        let sdk = configured(region, source, &common.http).await?;
        let session = Session { client: client(&sdk, place.endpoint.as_deref()), sdk, number: 0 };
        Ok(Self {
            name: common.name.clone(),
            source,
            endpoint: place.endpoint,
            client,
            session: Mutex::new(session),
            identity: OnceLock::new(),
        })
    }

    fn session(&self) -> Session<C> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets cached credentials, unless somebody did since `seen`.
    fn refresh_credentials(&self, seen: &Session<C>) -> Session<C> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.number == seen.number {
            let sdk = seen.sdk.to_builder().identity_cache(IdentityCache::lazy().build()).build();
            let client = (self.client)(&sdk, self.endpoint.as_deref());
            *session = Session { sdk, client, number: seen.number + 1 };
        }
        session.clone()
    }

    /// Asks once, and once more with fresh credentials where the store refuses those that were cached.
    async fn ask<T, F>(&self, request: impl Fn(C) -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        self.has_source()?;
        let session = self.session();
        match request(session.client.clone()).await {
            Err(Failed { failure: Failure::Refused, .. }) => request(self.refresh_credentials(&session).client).await,
            outcome => outcome,
        }
    }

    fn has_source(&self) -> Result<(), Failed> {
        let said = || "the environment names no source of credentials".to_owned();
        self.source.map(|_| ()).ok_or_else(|| Failed { failure: Failure::NoCredentials, said: said() })
    }

    /// What a failed call about `path` means; `action` is the right that reads it.
    fn explain(&self, path: &str, action: &'static str, failed: Failed) -> ProviderError {
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
                ProviderError::Credentials { provider, remedy: Source::remedy(self.source).into(), source }
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

    /// Whether the service answered, whatever it said but that it does not know the agent.
    fn reached(&self, outcome: Result<(), Failed>) -> Result<(), ProviderError> {
        match outcome {
            Err(failed)
                if matches!(failed.failure, Failure::Refused | Failure::NoCredentials | Failure::Unavailable) =>
            {
                Err(self.explain("", "", failed))
            }
            _ => Ok(()),
        }
    }

    /// Loads credentials and learns who the agent is. `sts:GetCallerIdentity` needs no right.
    async fn who(&self) -> Result<String, ProviderError> {
        let asked = async {
            self.has_source()?;
            let sts = aws_sdk_sts::Client::new(&self.session().sdk);
            sts.get_caller_identity().send().await.map_err(Failed::from)
        };
        let who = asked.await.map_err(|failed| self.explain("", "sts:GetCallerIdentity", failed))?;
        let arn = who.arn.unwrap_or_default();
        if !arn.is_empty() {
            let _ = self.identity.set(arn.clone());
        }
        Ok(arn)
    }
}

async fn configured(region: Region, source: Option<Source>, http: &Http) -> Result<SdkConfig, String> {
    let loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .region(region.clone())
        .http_client(http.clone())
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .read_timeout(READ_TIMEOUT)
                // Not for an attempt: that would be for getting credentials and using them together.
                .disable_operation_attempt_timeout()
                .operation_timeout(OPERATION_TIMEOUT)
                .build(),
        );
    let loader = match source {
        Some(source) => loader.credentials_provider(source.provider(region, http)?),
        None => loader.no_credentials(),
    };
    let sdk = loader.load().await;
    Ok(sdk.to_builder().identity_cache(IdentityCache::lazy().build()).build())
}

/// What both services allow between the slashes of a name is less than what ARNs have before it.
///
/// # Errors
/// The text is no ARN of this service, whose `form` the message shows.
fn name_in_arn<'a>(arn: &'a str, service: &str, kind: &str, form: &str) -> Result<&'a str, String> {
    let not_one = || format!("begins as an ARN and is none of this store ({form})");
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let [_, partition, of, region, account, resource] = parts[..] else { return Err(not_one()) };
    let word = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let account_ok = account.len() == 12 && account.chars().all(|c| c.is_ascii_digit());
    let is_one = partition.starts_with("aws") && word(partition) && of == service && word(region) && account_ok;
    resource.strip_prefix(kind).filter(|_| is_one).ok_or_else(not_one)
}
