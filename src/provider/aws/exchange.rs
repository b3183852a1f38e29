//! Credentials of somebody else than the agent: of a role that it takes on, or of a pod's service account. The SDK keeps them
//! until they run out, and asks once for all who wait.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use aws_config::SdkConfig;
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError, future},
};
use aws_sdk_sts::{Client, config::SharedCredentialsProvider, types};
use http::{Request, header};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    super::http::{Http, LOGIN_TIMEOUT},
    failure::{Failed, Failure},
    identity_cache,
};
use crate::{
    last_failure::LastFailure,
    service_account::{ROLE_ARN, ServiceAccount, TokenError},
};

/// The audience of tokens for STS, as EKS and everybody else has it.
pub(super) const STS_AUDIENCE: &str = "sts.amazonaws.com";
/// The audience of tokens for EKS Pod Identity.
pub(super) const EKS_AUDIENCE: &str = "pods.eks.amazonaws.com";
/// Where the agent of EKS Pod Identity listens on each node.
const EKS_ENDPOINT: &str = "http://169.254.170.23/v1/credentials";
/// The longest name of a session.
const SESSION_NAME: usize = 64;
/// How long a failure answers all who ask: those who waited for the same exchange. Less than anybody's pause after it.
const FAILURE_STANDS: Duration = Duration::from_millis(500);

/// A role that the agent takes on.
#[derive(Debug, Clone)]
pub(super) struct Role {
    pub(super) arn: String,
    pub(super) external_id: Option<String>,
    pub(super) tags: Vec<Tag>,
}

/// What a session says of whom it is for: as EKS Pod Identity calls it, so that one policy does for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Tag {
    Namespace,
    ServiceAccount,
}

/// How credentials are got.
#[derive(Debug)]
pub(super) enum Exchange {
    /// With the agent's own.
    Role { sdk: Box<SdkConfig>, role: Role, account: Option<Named> },
    /// With a token of the account's.
    WebIdentity { sts: Client, account: Weak<ServiceAccount> },
    /// The same, at the node's agent of EKS Pod Identity.
    EksPodIdentity { http: Http, endpoint: String, account: Weak<ServiceAccount> },
}

/// An account by its name.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// An exchange that gave nothing: classified here, and carried through the SDK as it is.
#[derive(Debug)]
pub(super) struct Unexchanged(pub(super) Failed);

impl fmt::Display for Unexchanged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.said)
    }
}

impl std::error::Error for Unexchanged {}

impl Unexchanged {
    /// Without credentials, with what to do; `said` for the log.
    fn new(remedy: String, said: impl Into<String>) -> Self {
        Self(Failed { remedy: Some(remedy), ..Failed::new(Failure::NoCredentials, said.into()) })
    }

    /// A refusal of the exchange is about who asks, never about a secret.
    fn of(failed: Failed, remedy: String) -> Self {
        match failed.failure {
            Failure::Throttled | Failure::Unavailable => Self(failed),
            _ => Self::new(remedy, failed.said),
        }
    }
}

impl From<TokenError> for Unexchanged {
    fn from(error: TokenError) -> Self {
        let failure = if error.is_gone() { Failure::PodGone } else { Failure::NoCredentials };
        let remedy = Some(error.to_string());
        Self(Failed { remedy, ..Failed::new(failure, crate::error::chain(&error)) })
    }
}

impl Role {
    /// What to look at when it is not given.
    pub(super) fn remedy(&self) -> String {
        let tagging = if self.tags.is_empty() { "" } else { " and sts:TagSession" };
        let external = if self.external_id.is_some() { ", with the `externalId` of providers.yaml" } else { "" };
        format!(
            "check that role {} exists, and that its trust policy and the agent's own policy allow sts:AssumeRole{tagging}{external}",
            self.arn
        )
    }
}

/// What to look at when a pod's account is given no credentials.
pub(super) fn remedy_of(account: &ServiceAccount, by_eks: bool) -> String {
    let subject = account.subject();
    match (by_eks, account.annotation(ROLE_ARN)) {
        (true, _) => format!(
            "check the EKS Pod Identity association of {subject} (audience {EKS_AUDIENCE}), and that the Pod Identity agent runs on \
             the node"
        ),
        (false, Some(role)) => format!(
            "check that role {role} exists, that its trust policy allows sts:AssumeRoleWithWebIdentity to {subject} with audience \
             {STS_AUDIENCE}, and that the cluster's issuer is an identity provider of that account's IAM"
        ),
        (false, None) => format!(
            "annotate service account {subject} with {ROLE_ARN}: the role whose trust policy allows \
             sts:AssumeRoleWithWebIdentity to it with audience {STS_AUDIENCE}"
        ),
    }
}

/// The address of the node's agent of EKS Pod Identity.
pub(super) fn eks_endpoint() -> String {
    let set = std::env::var("AWS_CONTAINER_CREDENTIALS_FULL_URI").ok().filter(|address| !address.is_empty());
    set.unwrap_or_else(|| EKS_ENDPOINT.to_owned())
}

/// Whether a pod's token may be sent there.
pub(super) fn is_on_the_node(address: &str) -> bool {
    let host = address.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    host.is_some_and(|host| {
        ["127.0.0.1", "localhost", "[::1]", "169.254.170.23", "[fd00:ec2::23]"].contains(&host.as_str())
    })
}

/// The name of a session at AWS, as it stands in CloudTrail.
fn session_name(namespace: &str, name: &str) -> String {
    let mut whole = format!("jasm@{namespace}.{name}");
    // All of it is ASCII.
    whole.truncate(SESSION_NAME);
    whole
}

/// An exchange whose failure is that of all who waited for it: the SDK would make another one for each of them.
#[derive(Debug)]
struct Once {
    exchange: Exchange,
    failed: Mutex<LastFailure<Failed>>,
}

impl Once {
    async fn exchanged(&self) -> Result<Credentials, Unexchanged> {
        if let Some(failed) = self.failed().within(FAILURE_STANDS) {
            return Err(Unexchanged(failed));
        }
        let outcome = tokio::time::timeout(LOGIN_TIMEOUT, self.exchange.exchange()).await;
        let late = |_| Err(Unexchanged(Failed::new(Failure::Unavailable, "no answer in time".to_owned())));
        let outcome = outcome.unwrap_or_else(late);
        // A pod that is gone is the failure of nobody else.
        let failed = outcome.as_ref().err().filter(|Unexchanged(failed)| failed.failure != Failure::PodGone);
        self.failed().note(failed.map(|Unexchanged(failed)| failed.clone()));
        outcome
    }

    fn failed(&self) -> MutexGuard<'_, LastFailure<Failed>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProvideCredentials for Once {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async { self.exchanged().await.map_err(CredentialsError::provider_error) })
    }
}

impl Exchange {
    async fn exchange(&self) -> Result<Credentials, Unexchanged> {
        match self {
            Self::Role { sdk, role, account } => match assume(&Client::new(sdk), role, account.as_ref()).await {
                // The agent's own were kept, and are not taken any more.
                Err(Unexchanged(Failed { failure: Failure::Refused, .. })) => {
                    let fresh = sdk.to_builder().identity_cache(identity_cache()).build();
                    let again = assume(&Client::new(&fresh), role, account.as_ref()).await;
                    again.map_err(|Unexchanged(failed)| Unexchanged::of(failed, role.remedy()))
                }
                outcome => outcome,
            },
            Self::WebIdentity { sts, account } => by_token(sts, &*there(account)?).await,
            Self::EksPodIdentity { http, endpoint, account } => at_eks(http, endpoint, &*there(account)?).await,
        }
    }
}

/// Whoever asks has it; only what nobody asks for is without.
fn there(account: &Weak<ServiceAccount>) -> Result<Arc<ServiceAccount>, Unexchanged> {
    account.upgrade().ok_or_else(|| Unexchanged::new("the pod is gone".to_owned(), "nobody asks"))
}

async fn assume(sts: &Client, role: &Role, account: Option<&Named>) -> Result<Credentials, Unexchanged> {
    let Role { arn, external_id, tags } = role;
    let session = account.map_or_else(|| "jasm".to_owned(), |account| session_name(&account.namespace, &account.name));
    let mut request = sts.assume_role().role_arn(arn).set_external_id(external_id.clone()).role_session_name(session);
    for tag in account.iter().flat_map(|account| tags.iter().map(move |tag| tag.of(account))) {
        request = request.tags(tag.map_err(|error| Unexchanged::new(role.remedy(), error.to_string()))?);
    }
    let answer = request.send().await.map_err(|error| match Failed::from(error) {
        failed if failed.failure == Failure::Refused => Unexchanged(failed),
        failed => Unexchanged::of(failed, role.remedy()),
    })?;
    credentials(answer.credentials, || role.remedy())
}

impl Tag {
    fn of(self, account: &Named) -> Result<types::Tag, aws_sdk_sts::error::BuildError> {
        let (key, value) = match self {
            Self::Namespace => ("kubernetes-namespace", &account.namespace),
            Self::ServiceAccount => ("kubernetes-service-account", &account.name),
        };
        types::Tag::builder().key(key).value(value).build()
    }
}

async fn by_token(sts: &Client, account: &ServiceAccount) -> Result<Credentials, Unexchanged> {
    let remedy = || remedy_of(account, false);
    if let Some(annotation) = account.malformed(&[ROLE_ARN]) {
        return Err(TokenError::Malformed { subject: account.subject(), annotation }.into());
    }
    let Some(role) = account.annotation(ROLE_ARN) else {
        return Err(Unexchanged::new(remedy(), "the service account has no role"));
    };
    let token = account.token(STS_AUDIENCE).await?;
    let session = session_name(account.namespace().as_str(), account.name());
    let request = sts.assume_role_with_web_identity().role_arn(role).role_session_name(session);
    let answer = request.web_identity_token(token.text.as_str()).send().await;
    let answer = answer.map_err(|error| Unexchanged::of(Failed::from(error), remedy()))?;
    credentials(answer.credentials, remedy)
}

fn credentials(found: Option<types::Credentials>, remedy: impl Fn() -> String) -> Result<Credentials, Unexchanged> {
    let found = found.ok_or_else(|| Unexchanged::new(remedy(), "the answer has no credentials"))?;
    let until = SystemTime::try_from(found.expiration).ok();
    Ok(Credentials::new(found.access_key_id, found.secret_access_key, Some(found.session_token), until, "jasm"))
}

/// What the node's agent of EKS Pod Identity answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FromEks {
    access_key_id: String,
    secret_access_key: Zeroizing<String>,
    token: Zeroizing<String>,
    expiration: jiff::Timestamp,
}

/// The SDK reads the token for that endpoint from the environment or a file alone, hence the request here.
async fn at_eks(http: &Http, endpoint: &str, account: &ServiceAccount) -> Result<Credentials, Unexchanged> {
    let remedy = || remedy_of(account, true);
    let token = account.token(EKS_AUDIENCE).await?;
    let unexchanged = |said: &str| Unexchanged::new(remedy(), said);
    let mut token = header::HeaderValue::from_str(&token.text).map_err(|_| unexchanged("the token fits no header"))?;
    token.set_sensitive(true);
    let request = Request::get(endpoint).header(header::AUTHORIZATION, token).body(Vec::new());
    let request = request.map_err(|_| unexchanged("the address is none"))?;
    // It is on the node: one that does not answer does not run there.
    let answer = http.send(request).await.map_err(|error| unexchanged(&crate::error::chain(&error)))?;
    match answer.status.as_u16() {
        200 => {}
        429 => return Err(Unexchanged(Failed::new(Failure::Throttled, "HTTP 429".to_owned()))),
        code @ 500.. => return Err(Unexchanged(Failed::new(Failure::Unavailable, format!("HTTP {code}")))),
        code => return Err(unexchanged(&format!("HTTP {code}"))),
    }
    let found: FromEks =
        serde_json::from_slice(&answer.body).map_err(|_| unexchanged("it is not what the API describes"))?;
    let (secret, token) = (found.secret_access_key.to_string(), Some(found.token.to_string()));
    Ok(Credentials::new(found.access_key_id, secret, token, Some(found.expiration.into()), "jasm"))
}

/// The SDK with other credentials, and a cache of its own for them.
pub(super) fn with(sdk: &SdkConfig, exchange: Exchange) -> SdkConfig {
    let (cache, once) = (identity_cache(), Once { exchange, failed: Mutex::default() });
    sdk.to_builder().credentials_provider(SharedCredentialsProvider::new(once)).identity_cache(cache).build()
}
