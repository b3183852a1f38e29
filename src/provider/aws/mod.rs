//! What the stores at AWS have in common: an account in a region, as whom it is asked, and what its refusals mean.

mod access;
mod connector;
mod credentials;
mod exchange;
mod failure;
pub(super) mod parameter_store;
pub(super) mod secrets_manager;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_sts::config::IdentityCache;
use aws_smithy_runtime_api::client::identity::SharedIdentityCache;

use self::{
    access::Access,
    credentials::Source,
    exchange::{Exchange, Named, Role, Tag},
    failure::{Failed, Failure},
};
use super::{
    ActsAs, Caller, ProviderError,
    caller::PerAccount,
    http::{Http, check_address},
    kind::{BuildError, Common},
};
use crate::service_account::{ROLE_ARN, ServiceAccount};

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
    role_arn: Option<String>,
    external_id: Option<String>,
    session_tags: Vec<Tag>,
    eks_pod_identity: bool,
}

impl Place {
    fn acts(&self, by_pod: bool) -> Result<Acts, String> {
        let role = self.role_arn.clone().map(|arn| Role {
            arn,
            external_id: self.external_id.clone(),
            tags: self.session_tags.clone(),
        });
        let has_more = self.external_id.is_some() || !self.session_tags.is_empty();
        match (by_pod, role) {
            (true, Some(_)) => Err(format!(
                "`roleArn` is not for `identity: pod`: each service account names its role by the annotation {ROLE_ARN}"
            )),
            (true, None) if self.imds => {
                Err("`imds` is not for `identity: pod`: the node's role is nobody's".to_owned())
            }
            (_, None) if has_more => Err("`externalId` and `sessionTags` go with `roleArn`".to_owned()),
            (false, _) if self.eks_pod_identity => Err("`eksPodIdentity` goes with `identity: pod`".to_owned()),
            (true, None) if self.eks_pod_identity => Ok(Acts::For(Account::EksPodIdentity)),
            (true, None) => Ok(Acts::For(Account::WebIdentity)),
            (false, None) => Ok(Acts::Agent(None)),
            (false, Some(role)) if role.tags.is_empty() => Ok(Acts::Agent(Some(role))),
            (false, Some(role)) => Ok(Acts::For(Account::Named(role))),
        }
    }
}

/// As whom an account is asked.
#[derive(Debug)]
enum Acts {
    /// With the agent's own credentials, or in a role that it takes on.
    Agent(Option<Role>),
    /// For a service account.
    For(Account),
}

/// In which role a service is asked for a service account.
#[derive(Debug)]
enum Account {
    /// In one that the agent takes on, saying for whom.
    Named(Role),
    /// In the one that the service account names.
    WebIdentity,
    /// In the one that EKS knows for it.
    EksPodIdentity,
}

/// One account at AWS in one region, with a client `C` of one service.
#[derive(Debug)]
struct Service<C> {
    acts: Acts,
    own: Arc<Access<C>>,
    of_accounts: PerAccount<Access<C>>,
    /// Without a proxy, for what is on the node.
    direct: Http,
    /// Where EKS Pod Identity listens.
    eks: String,
}

impl<C: Clone> Service<C> {
    /// Builds the client; makes no request. `variable` names the service's endpoint in the SDK's environment.
    async fn new(
        common: &Common,
        place: Place,
        variable: &str,
        client: fn(&SdkConfig, Option<&str>) -> C,
    ) -> Result<Self, BuildError> {
        let env = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
        let region = place.region.clone().or_else(|| env("AWS_REGION")).or_else(|| env("AWS_DEFAULT_REGION"));
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
        let acts = place.acts(common.by_pod)?;
        let region = Region::new(region);
        let source = Source::pick(|key| env(key).is_some(), place.imds).filter(|_| !common.by_pod);
        let mut sdk = configured(region, source, &common.http).await?;
        let mut remedy = Source::remedy(source).to_owned();
        if let Acts::Agent(Some(role)) = &acts {
            sdk =
                exchange::with(&sdk, Exchange::Role { sdk: Box::new(sdk.clone()), role: role.clone(), account: None });
            remedy = role.remedy();
        }
        let eks = exchange::eks_endpoint();
        if matches!(acts, Acts::For(Account::EksPodIdentity)) && !exchange::is_on_the_node(&eks) {
            let problem = "is not on the node, where the agent of EKS Pod Identity listens";
            return Err(format!("AWS_CONTAINER_CREDENTIALS_FULL_URI {eks:?} {problem}").into());
        }
        let own = Arc::new(Access::new(common.name.clone(), sdk, place.endpoint, client, remedy));
        Ok(Self { acts, own, of_accounts: PerAccount::default(), direct: Http::direct()?, eks })
    }

    fn acts_as(&self) -> ActsAs {
        match self.acts {
            Acts::Agent(_) => ActsAs::Agent,
            Acts::For(Account::Named(_)) => ActsAs::Named,
            Acts::For(Account::WebIdentity | Account::EksPodIdentity) => ActsAs::Pod,
        }
    }

    /// A caller's way to the service.
    fn access(&self, caller: &Caller) -> Arc<Access<C>> {
        match (&self.acts, caller) {
            (Acts::For(by), Caller::ServiceAccount(account)) => {
                self.of_accounts.of(account, |weak| self.access_of(by, account, weak))
            }
            _ => Arc::clone(&self.own),
        }
    }

    fn access_of(&self, by: &Account, account: &ServiceAccount, weak: Weak<ServiceAccount>) -> Access<C> {
        let (sdk, subject) = (self.own.sdk(), account.subject());
        let (exchange, identity, remedy) = match by {
            Account::Named(role) => {
                let named = Named { namespace: account.namespace().to_string(), name: account.name().to_owned() };
                let exchange = Exchange::Role { sdk: Box::new(sdk.clone()), role: role.clone(), account: Some(named) };
                (exchange, format!("{} (for {subject})", role.arn), role.remedy())
            }
            Account::WebIdentity => {
                let identity = account.annotation(ROLE_ARN).unwrap_or("no role");
                let exchange = Exchange::WebIdentity { sts: aws_sdk_sts::Client::new(&sdk), account: weak };
                (exchange, format!("{identity} ({subject})"), exchange::remedy_of(account, false))
            }
            Account::EksPodIdentity => {
                let (http, endpoint) = (self.direct.clone(), self.eks.clone());
                let exchange = Exchange::EksPodIdentity { http, endpoint, account: weak };
                (exchange, format!("the EKS Pod Identity role of {subject}"), exchange::remedy_of(account, true))
            }
        };
        let sdk = exchange::with(&sdk, exchange);
        Access::new(self.own.name.clone(), sdk, self.own.endpoint.clone(), self.own.client, remedy).known_as(identity)
    }

    /// Gets the agent's own credentials ready, where it has any.
    async fn warm_up(&self) -> Result<String, ProviderError> {
        match self.acts_as() {
            // Where it takes on roles, its own credentials serve for that.
            ActsAs::Agent | ActsAs::Named => self.own.who().await,
            ActsAs::Pod => Ok("each pod's service account".to_owned()),
        }
    }

    /// Whether the service answered, whatever it said but that it does not know the agent.
    fn reached(&self, outcome: Result<(), Failed>) -> Result<(), ProviderError> {
        match outcome {
            Err(failed)
                if failed.is_of_an_exchange
                    || matches!(failed.failure, Failure::Refused | Failure::NoCredentials | Failure::Unavailable) =>
            {
                Err(self.own.explain("", "", failed))
            }
            _ => Ok(()),
        }
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
    Ok(sdk.to_builder().identity_cache(identity_cache()).build())
}

/// Whoever gets credentials has a time of his own; in this one another one may have been waited for before.
fn identity_cache() -> SharedIdentityCache {
    IdentityCache::lazy().load_timeout(OPERATION_TIMEOUT).build()
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
