//! Azure Key Vault, by the official SDK.
//!
//! Rights at Azure: the role `Key Vault Secrets User` on the vault (or on single secrets), or, in a vault with access
//! policies, `get` on secrets.

mod credential;
mod transport;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use azure_core::{
    credentials::{TokenCredential, TokenRequestOptions},
    error::{Error, ErrorKind},
    http::{ClientOptions, HttpClient, RawResponse, RetryOptions, StatusCode, Transport, Url},
};
use azure_security_keyvault_secrets::{SecretClient, SecretClientOptions, models::SecretClientGetSecretOptions};
use http::Request;
use serde::Deserialize;
use zeroize::Zeroizing;

use self::{credential::Credential, transport::LoginHttp};
use super::{
    ActsAs, Caller, Presence, ProviderError, ProviderName, SecretProvider,
    caller::PerAccount,
    http::{Http, HttpError, check_address},
    kind::{self, BuildError, Common, Reference, Store},
};
use crate::{
    error::{BoxError, chain},
    request::RemoteRef,
    secret_value::{SecretPayload, wipe},
    service_account::{CLIENT_ID, TokenError},
};

/// Key Vault's own limit for a value.
const MAX_VALUE_BYTES: usize = 25 * 1024;
const RIGHT: &str = "the role Key Vault Secrets User on the vault (or `get` on secrets in its access policies)";

pub(super) const STORE: Store = Store {
    kind: "azure-keyvault",
    prefix: "akv",
    source_kind: "azure-keyvault",
    may_be_plain: false,
    by_default: false,
    concurrency: 8,
    together: 1,
    reference: Reference::whole,
    check_path,
    check_version: |_, version| check_version(version),
    settings: kind::settings::<Settings>,
};

/// What the operator's file may say of an instance of this kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Settings {
    /// As in `https://NAME.vault.azure.net`.
    vault_url: String,
    auth: Auth,
}

/// Exactly one of these.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Auth {
    workload_identity: Option<WorkloadIdentity>,
    managed_identity: Option<ManagedIdentity>,
    client_secret: Option<ClientSecret>,
}

/// What is left out comes from the environment, where Azure's webhook puts it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WorkloadIdentity {
    /// Default `AZURE_TENANT_ID`.
    tenant_id: Option<String>,
    /// Default `AZURE_CLIENT_ID`.
    client_id: Option<String>,
    /// Default `AZURE_FEDERATED_TOKEN_FILE`.
    token_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ManagedIdentity {
    /// Of a user-assigned identity; left out, the node's own.
    client_id: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClientSecret {
    tenant_id: String,
    client_id: String,
    /// Read at each login.
    secret_file: PathBuf,
}

#[async_trait]
impl kind::Settings for Settings {
    async fn build(self: Box<Self>, common: Common) -> Result<Arc<dyn SecretProvider>, BuildError> {
        let url =
            check_address(&self.vault_url, common.allow_insecure).map_err(|problem| format!("`vaultUrl` {problem}"))?;
        let login = login_options(&common.http);
        let (credential, pods) = match common.by_pod {
            false => (Credential::new(self.auth, login)?, None),
            true => {
                let pods = Pods { tenant_id: self.auth.tenant_of_pods()?, of_accounts: PerAccount::default() };
                (Credential::of_nobody(login), Some(pods))
            }
        };
        let own = Arc::new(Access::new(&url, &common.http, credential)?);
        Ok(Arc::new(KeyVault { name: common.name, url, http: common.http, own, pods }))
    }
}

impl Auth {
    /// For `identity: pod`, where the service accounts say the rest.
    fn tenant_of_pods(self) -> Result<Option<String>, String> {
        match self {
            Self {
                workload_identity: Some(WorkloadIdentity { tenant_id, client_id: None, token_file: None }),
                managed_identity: None,
                client_secret: None,
            } => Ok(tenant_id.or_else(|| std::env::var("AZURE_TENANT_ID").ok().filter(|tenant| !tenant.is_empty()))),
            _ => Err(format!(
                "`identity: pod` goes with `auth: {{workloadIdentity: {{tenantId: ...}}}}` alone: service accounts name their \
                 application by the annotation {CLIENT_ID}"
            )),
        }
    }
}

fn login_options(http: &Http) -> ClientOptions {
    client_options(Arc::new(LoginHttp(Arc::new(http.clone()))))
}

fn client(url: &Url, http: &Http, credential: Arc<dyn TokenCredential>) -> Result<SecretClient, String> {
    let options = SecretClientOptions {
        client_options: client_options(Arc::new(http.clone())),
        ..SecretClientOptions::default()
    };
    SecretClient::new(url.as_str(), credential, Some(options)).map_err(|_| "`vaultUrl` cannot be used".to_owned())
}

/// The SDK's pipeline over the agent's own client; retries are the agent's.
fn client_options(http: Arc<dyn HttpClient>) -> ClientOptions {
    ClientOptions { transport: Some(Transport::new(http)), retry: RetryOptions::none(), ..ClientOptions::default() }
}

/// One vault.
struct KeyVault {
    name: ProviderName,
    url: Url,
    http: Http,
    /// The agent's; nobody's, where pods ask as themselves.
    own: Arc<Access>,
    pods: Option<Pods>,
}

/// Pods that ask as their service accounts.
struct Pods {
    tenant_id: Option<String>,
    of_accounts: PerAccount<Arc<Access>>,
}

/// One caller's client, and his credential.
struct Access {
    client: SecretClient,
    credential: Arc<Credential>,
}

impl Access {
    fn new(url: &Url, http: &Http, credential: Credential) -> Result<Self, String> {
        let credential = Arc::new(credential);
        let client = client(url, http, Arc::clone(&credential) as Arc<dyn TokenCredential>)?;
        Ok(Self { client, credential })
    }
}

impl std::fmt::Debug for KeyVault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyVault").field("name", &self.name).field("url", &self.url.as_str()).finish_non_exhaustive()
    }
}

impl KeyVault {
    fn access(&self, caller: &Caller) -> Arc<Access> {
        let (Some(pods), Caller::ServiceAccount(account)) = (&self.pods, caller) else { return Arc::clone(&self.own) };
        let access = pods.of_accounts.of(account, |weak| {
            let login = login_options(&self.http);
            let credential = Credential::of_pod(account, weak, pods.tenant_id.as_deref(), login);
            // The address was good for nobody's.
            Access::new(&self.url, &self.http, credential).map_or_else(|_| Arc::clone(&self.own), Arc::new)
        });
        Arc::clone(&access)
    }

    fn explain(&self, access: &Access, remote: &RemoteRef, error: &Error) -> ProviderError {
        let (provider, path) = (self.name.clone(), remote.path.clone());
        let credentials = |source: BoxError| ProviderError::Credentials {
            provider: self.name.clone(),
            remedy: access.credential.remedy().into(),
            source,
        };
        if let Some(error) = causes(error).find_map(|cause| cause.downcast_ref::<TokenError>()) {
            return ProviderError::of_token(provider, error);
        }
        let Some(refusal) = Refusal::of(error) else {
            return match (nobody_answered(error), error.kind()) {
                (Some(source), _) if is_of_a_login(error) => {
                    ProviderError::Login { provider, problem: "did not answer", retry_after: None, source }
                }
                (Some(source), _) => ProviderError::Unavailable { provider, source },
                (None, ErrorKind::Credential) => credentials("no login was possible".into()),
                (None, kind) => {
                    let problem = "it is not what the API describes";
                    ProviderError::Invalid { provider, path, problem, source: Some(kind.to_string().into()) }
                }
            };
        };
        let source: BoxError = refusal.to_string().into();
        let status = u16::from(refusal.status);
        match (status, refusal.code.as_str()) {
            (429, _) if refusal.at_login => {
                let retry_after = refusal.retry_after;
                ProviderError::Login { provider, problem: "asks for patience", retry_after, source }
            }
            (408 | 500.., _) if refusal.at_login => {
                ProviderError::Login { provider, problem: "did not answer", retry_after: None, source }
            }
            (429, _) => ProviderError::Throttled { provider, retry_after: refusal.retry_after, source },
            (408 | 500.., _) => ProviderError::Unavailable { provider, source },
            _ if refusal.at_login => credentials(source),
            (401, _) => credentials(source),
            (404, "SecretNotFound") => ProviderError::NotFound { provider, path },
            // Of something in front of the vault.
            (404, _) => ProviderError::Unavailable { provider, source },
            (403, "SecretDisabled") => ProviderError::Unreadable { provider, path, problem: "it is disabled", source },
            (403, _) => ProviderError::AccessDenied {
                provider,
                path,
                action: RIGHT.into(),
                identity: access.credential.who(),
                source,
            },
            _ => {
                let problem = "the store calls the request invalid";
                ProviderError::Invalid { provider, path, problem, source: Some(source) }
            }
        }
    }

    /// Whether the vault answers at all: without a token with status 401.
    async fn reach(&self) -> Result<(), ProviderError> {
        let request = Request::get(format!("{}secrets?api-version=7.5", self.url)).body(Vec::new());
        let unavailable = |source: BoxError| ProviderError::Unavailable { provider: self.name.clone(), source };
        let answer = self.http.send(request.map_err(|error| unavailable(error.into()))?).await;
        match answer.map_err(|error| unavailable(error.into()))?.status.as_u16() {
            500.. => Err(unavailable("the vault answers with 5xx".into())),
            _ => Ok(()),
        }
    }
}

/// An answer of Key Vault or of the login that is none; nothing of its text.
struct Refusal {
    status: StatusCode,
    code: String,
    retry_after: Option<Duration>,
    at_login: bool,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = if self.code.is_empty() { "without a code" } else { &self.code };
        let place = if self.at_login { "the login" } else { "the vault" };
        write!(f, "HTTP {} {code} of {place}", u16::from(self.status))
    }
}

/// Where the request itself failed: why.
fn nobody_answered(error: &Error) -> Option<BoxError> {
    let failed = causes(error).find_map(|cause| cause.downcast_ref::<HttpError>())?;
    (!matches!(failed, HttpError::TooLarge)).then(|| chain(failed).into())
}

/// Whether whoever gives out tokens was asked, and not the vault.
fn is_of_a_login(error: &Error) -> bool {
    let causes = causes(error).filter_map(|cause| cause.downcast_ref::<Error>());
    causes.map(Error::kind).any(|kind| matches!(kind, ErrorKind::Credential))
}

fn causes(error: &Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| error.source())
}

fn is_token_refused<T>(outcome: &azure_core::Result<T>) -> bool {
    let refusal = outcome.as_ref().err().and_then(Refusal::of);
    refusal.is_some_and(|refusal| u16::from(refusal.status) == 401 && !refusal.at_login)
}

impl Refusal {
    /// The first answer in an error's causes. One inside an error about credentials came from the login.
    fn of(error: &Error) -> Option<Self> {
        let mut at_login = false;
        for error in causes(error).filter_map(|cause| cause.downcast_ref::<Error>()) {
            match error.kind() {
                ErrorKind::Credential => at_login = true,
                ErrorKind::HttpResponse { status, error_code, raw_response } => {
                    let raw = raw_response.as_deref();
                    let code = raw.and_then(inner_code).or_else(|| error_code.clone()).map(word).unwrap_or_default();
                    return Some(Self { status: *status, code, retry_after: raw.and_then(retry_after), at_login });
                }
                _ => {}
            }
        }
        None
    }
}

/// The most particular code in a body, as in `SecretDisabled`.
fn inner_code(raw: &RawResponse) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        error: Outer,
    }
    #[derive(Deserialize)]
    struct Outer {
        innererror: Option<Inner>,
    }
    #[derive(Deserialize)]
    struct Inner {
        code: String,
    }
    serde_json::from_slice::<Body>(raw.body()).ok()?.error.innererror.map(|inner| inner.code)
}

/// A code is a word; anything else could be a text of the store's.
fn word(code: String) -> String {
    let is_word = code.len() <= 64 && code.chars().all(|c| c.is_ascii_alphanumeric() || "_,".contains(c));
    if is_word { code } else { String::new() }
}

fn retry_after(raw: &RawResponse) -> Option<Duration> {
    let name = azure_core::http::headers::HeaderName::from_static("retry-after");
    let seconds = raw.headers().get_optional_str(&name)?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The part of the answer that is read.
#[derive(Deserialize)]
struct Bundle {
    value: Zeroizing<String>,
    /// Ends in the version.
    id: String,
}

#[async_trait]
impl SecretProvider for KeyVault {
    fn name(&self) -> &ProviderName {
        &self.name
    }

    fn usual_payload_bytes(&self) -> usize {
        MAX_VALUE_BYTES
    }

    fn acts_as(&self) -> ActsAs {
        if self.pods.is_some() { ActsAs::Pod } else { ActsAs::Agent }
    }

    fn drop_unused(&self) -> usize {
        self.pods.as_ref().map_or(0, |pods| pods.of_accounts.drop_unused())
    }

    async fn fetch(&self, remote: &RemoteRef, caller: &Caller) -> Result<SecretPayload, ProviderError> {
        let access = self.access(caller);
        let options = SecretClientGetSecretOptions {
            secret_version: remote.version.clone(),
            ..SecretClientGetSecretOptions::default()
        };
        let mut response = access.client.get_secret(&remote.path, Some(options.clone())).await;
        if is_token_refused(&response) {
            // The SDK keeps a token that was revoked.
            access.credential.forget().await;
            response = access.client.get_secret(&remote.path, Some(options)).await;
        }
        let response = response.map_err(|error| self.explain(&access, remote, &error))?;
        let body = azure_core::Bytes::from(response.into_body());
        let parsed = serde_json::from_slice(&body);
        // The SDK's own copy of the answer.
        wipe(body);
        // An error of the parser could quote the value.
        let bundle: Bundle = parsed.map_err(|error| match error.is_eof() {
            true => ProviderError::Unavailable { provider: self.name.clone(), source: "the answer ended early".into() },
            false => ProviderError::Invalid {
                provider: self.name.clone(),
                path: remote.path.clone(),
                problem: "it is not what the API describes",
                source: None,
            },
        })?;
        let version = bundle.id.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(SecretPayload::new(bundle.value.as_bytes().to_vec(), version))
    }

    /// A vault says the same of what never was and of what was deleted and can be recovered: so it is asked for both.
    async fn presence(&self, remote: &RemoteRef) -> Result<Presence, ProviderError> {
        let latest = RemoteRef { version: None, ..remote.clone() };
        match self.fetch(&latest, &Caller::Agent).await {
            Ok(_) | Err(ProviderError::Unreadable { .. }) => return Ok(Presence::There),
            Err(ProviderError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let deleted = self.own.client.get_deleted_secret(&remote.path, None).await;
        match deleted.map_err(|error| self.explain(&self.own, remote, &error)) {
            Ok(_) => Ok(Presence::There),
            Err(ProviderError::NotFound { .. }) => Ok(Presence::Absent),
            Err(error) => Err(error),
        }
    }

    async fn warm_up(&self) -> Result<String, ProviderError> {
        let remote = RemoteRef { provider: self.name.clone(), path: String::new(), version: None };
        if self.pods.is_some() {
            return Ok("each pod's service account".to_owned());
        }
        let token = self.own.credential.get_token(&[&scope(&self.url)], None::<TokenRequestOptions<'_>>).await;
        token.map_err(|error| self.explain(&self.own, &remote, &error))?;
        Ok(self.own.credential.who())
    }

    async fn validate(&self) -> Result<Option<String>, ProviderError> {
        self.reach().await?;
        self.warm_up().await.map(Some)
    }
}

/// The scope of tokens for a vault: `https://NAME.vault.azure.net` and `https://vault.azure.net/.default`.
fn scope(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let domain = host.split_once('.').map_or(host, |(_, domain)| domain);
    format!("https://{domain}/.default")
}

/// Names of secrets in Key Vault: the SDK puts them into the URL as they are.
fn check_path(path: &str) -> Result<String, String> {
    let valid = (1..=127).contains(&path.len()) && path.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    match valid {
        true => Ok(path.to_owned()),
        false => Err("must be a secret's name in Key Vault: 1 to 127 letters, digits and `-`".to_owned()),
    }
}

/// The id of a version.
fn check_version(version: &str) -> Result<(), String> {
    match version.len() == 32 && version.chars().all(|c| c.is_ascii_alphanumeric()) {
        true => Ok(()),
        false => Err("must be the id of a version: 32 letters and digits".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_names_and_versions_ids() {
        let longest = "a".repeat(127);
        for good in ["app", "App-Config-1", "a", longest.as_str()] {
            assert_eq!(check_path(good), Ok(good.to_owned()), "{good}");
        }
        let too_long = "a".repeat(128);
        for bad in ["", "a/b", "a_b", "a.b", "../x", "a b", "a?x", "ä", too_long.as_str()] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
        assert_eq!(check_version("0123456789abcdef0123456789abcdef"), Ok(()));
        for bad in ["", "1", "../0123456789abcdef0123456789ab", "0123456789abcdef0123456789abcde/"] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_scope_is_the_vaults_domain() {
        let of = |url: &str| scope(&Url::parse(url).expect("a URL"));
        assert_eq!(of("https://mine.vault.azure.net/"), "https://vault.azure.net/.default");
        assert_eq!(of("https://mine.vault.azure.cn"), "https://vault.azure.cn/.default");
    }

    #[test]
    fn a_text_in_the_place_of_a_code_goes_nowhere() {
        assert_eq!(word("SecretNotFound".to_owned()), "SecretNotFound");
        assert_eq!(word("7000215,50034".to_owned()), "7000215,50034");
        assert_eq!(word("the value is hunter2".to_owned()), "");
    }
}
