//! HashiCorp Vault and OpenBao: KV version 2 and 1.
//!
//! Rights at Vault: `read` on `MOUNT/data/PATH` (KV version 2) or `MOUNT/PATH` (version 1), by a policy of the role that
//! the agent logs in with. Whether a mount is version 1 or 2 is asked once, which needs no policy beyond that.
//!
//! The requests are the agent's own and few: a client library that parses values into numbers, keeps whole answers in its
//! errors and has no bound on what it reads would break three promises of this program.

mod api;
mod session;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use self::{
    api::{Api, Failed, Kv, Read},
    session::{Login, PodRole, Session, Token},
};
use super::{
    ActsAs, Caller, Presence, ProviderError, ProviderName, SecretProvider,
    caller::PerAccount,
    http::{Http, check_address},
    kind::{self, BuildError, Common, Reference, Store, check_characters, check_length, check_segments},
};
use crate::{request::RemoteRef, secret_value::SecretPayload};
use async_trait::async_trait;
use serde::Deserialize;

/// The audience of pods' tokens, where the operator says nothing.
const AUDIENCE: &str = "vault";
/// Few values are larger; Vault itself takes a megabyte.
const USUAL_VALUE_BYTES: usize = 64 * 1024;

pub(super) const STORE: Store = Store {
    kind: "vault",
    prefix: "vault",
    source_kind: "vault",
    may_be_plain: false,
    by_default: false,
    concurrency: 16,
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
    /// As in `https://vault.example.com:8200`.
    address: String,
    /// The mount of the key/value engine.
    #[serde(default = "default_mount")]
    mount: String,
    /// 1 or 2; found out where it is left out.
    kv_version: Option<u8>,
    /// Vault Enterprise's, or OpenBao's.
    namespace: Option<String>,
    /// Certificates to trust beside the system's, PEM.
    ca_file: Option<PathBuf>,
    auth: Auth,
}

/// Exactly one of these.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Auth {
    kubernetes: Option<KubernetesAuth>,
    app_role: Option<AppRole>,
    /// A file with a token that somebody else renews; read at each use.
    token_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct KubernetesAuth {
    role: String,
    /// The mount of the auth method.
    #[serde(default = "kubernetes_mount")]
    mount: String,
    /// The service account's token; read at each login. Best a projected one with an audience of its own.
    token_file: Option<PathBuf>,
    /// With `identity: pod`: the audience of pods' tokens.
    audience: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AppRole {
    role_id: String,
    /// Read at each login.
    secret_id_file: PathBuf,
    /// The mount of the auth method.
    #[serde(default = "app_role_mount")]
    mount: String,
}

fn default_mount() -> String {
    "secret".to_owned()
}

fn kubernetes_mount() -> String {
    "kubernetes".to_owned()
}

fn app_role_mount() -> String {
    "approle".to_owned()
}

fn service_account_token() -> PathBuf {
    "/var/run/secrets/kubernetes.io/serviceaccount/token".into()
}

impl Auth {
    /// For `identity: pod`.
    fn pod_role(self) -> Result<PodRole, String> {
        match self {
            Self { kubernetes: Some(KubernetesAuth { role, mount, token_file: None, audience }), app_role: None, token_file: None } => {
                check_mount(&mount)?;
                Ok(PodRole { role, mount, audience: audience.unwrap_or_else(|| AUDIENCE.to_owned()) })
            }
            _ => Err("`identity: pod` goes with `auth.kubernetes`, without `tokenFile`: pods log in with tokens of their own".to_owned()),
        }
    }

    fn login(self) -> Result<Login, String> {
        match self {
            Self { kubernetes: Some(KubernetesAuth { audience: Some(_), .. }), .. } => {
                Err("`audience` goes with `identity: pod`; the agent's token has the audience of its own volume"
                    .to_owned())
            }
            Self {
                kubernetes: Some(KubernetesAuth { role, mount, token_file, audience: None }),
                app_role: None,
                token_file: None,
            } => {
                check_mount(&mount)?;
                let token_file = token_file.unwrap_or_else(service_account_token);
                Ok(Login::Kubernetes { role, mount, token_file })
            }
            Self { kubernetes: None, app_role: Some(AppRole { role_id, secret_id_file, mount }), token_file: None } => {
                check_mount(&mount)?;
                Ok(Login::AppRole { role_id, mount, secret_id_file })
            }
            Self { kubernetes: None, app_role: None, token_file: Some(file) } => Ok(Login::TokenFile(file)),
            _ => Err("`auth` must have exactly one of `kubernetes`, `appRole` and `tokenFile`".to_owned()),
        }
    }
}

#[async_trait]
impl kind::Settings for Settings {
    async fn build(self: Box<Self>, common: Common) -> Result<Arc<dyn SecretProvider>, BuildError> {
        let Self { address, mount, kv_version, namespace, ca_file, auth } = *self;
        let address =
            check_address(&address, common.allow_insecure).map_err(|problem| format!("`address` {problem}"))?;
        check_mount(&mount)?;
        let kv = match kv_version {
            None => None,
            Some(1) => Some(Kv::One),
            Some(2) => Some(Kv::Two),
            Some(_) => return Err(BuildError::Invalid("`kvVersion` must be 1 or 2".to_owned())),
        };
        let http = match ca_file {
            Some(file) => Http::new(Some(&file))?,
            None => common.http,
        };
        let api = Arc::new(Api::new(http, &address, namespace.as_deref())?);
        let sessions = match common.by_pod {
            true => Sessions::OfPods { api, role: auth.pod_role()?, of_accounts: PerAccount::default() },
            false => Sessions::Own(Arc::new(Session::new(api, auth.login()?))),
        };
        Ok(Arc::new(Vault { name: common.name, mount, kv, found_out: Mutex::default(), sessions }))
    }
}

/// One mount of one Vault.
#[derive(Debug)]
struct Vault {
    name: ProviderName,
    mount: String,
    /// As the operator says.
    kv: Option<Kv>,
    /// As Vault says, where he does not.
    found_out: Mutex<Option<Kv>>,
    sessions: Sessions,
}

/// Who is logged in.
#[derive(Debug)]
enum Sessions {
    /// The agent.
    Own(Arc<Session>),
    /// Each pod's service account.
    OfPods { api: Arc<Api>, role: PodRole, of_accounts: PerAccount<Session> },
}

impl Sessions {
    fn of(&self, caller: &Caller) -> Arc<Session> {
        match (self, caller) {
            (Self::Own(session), _) => Arc::clone(session),
            (Self::OfPods { api, role, of_accounts }, Caller::ServiceAccount(account)) => {
                of_accounts.of(account, |weak| {
                    let (role, subject) = (role.clone(), account.subject());
                    Session::new(Arc::clone(api), Login::Pod { role, account: weak, subject })
                })
            }
            (Self::OfPods { api, role, .. }, Caller::Agent) => {
                let login = Login::Pod { role: role.clone(), account: Weak::new(), subject: "nobody".to_owned() };
                Arc::new(Session::new(Arc::clone(api), login))
            }
        }
    }
}

impl Vault {
    /// Reads with this token, having found out how.
    async fn read(&self, session: &Session, token: &Token, remote: &RemoteRef) -> Result<Read, Failed> {
        let (api, mount, path) = (session.api(), self.mount.as_str(), remote.path.as_str());
        let kv = match self.known() {
            Some(kv) => kv,
            None => {
                let kv = api.kv_version(token.text(), mount, path).await.map_err(|failed| match failed {
                    // A word about the mount, and not about the secret.
                    Failed::NotFound => Failed::Invalid("Vault knows nothing at the mount of the instance"),
                    failed => failed,
                })?;
                *self.found_out() = Some(kv);
                kv
            }
        };
        match (kv, &remote.version) {
            (Kv::One, Some(_)) => {
                Err(Failed::Invalid("the mount is KV version 1, which has no versions; leave out `version`"))
            }
            _ => {
                let read = api.read(token.text(), kv, mount, path, remote.version.as_deref()).await;
                if matches!(read, Err(Failed::NotFound)) {
                    // So it looks, too, when the engine was changed to the other version.
                    *self.found_out() = None;
                }
                read
            }
        }
    }

    fn known(&self) -> Option<Kv> {
        self.kv.or(*self.found_out())
    }

    fn found_out(&self) -> MutexGuard<'_, Option<Kv>> {
        self.found_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_logged_in(&self, session: &Arc<Session>, remote: &RemoteRef) -> Result<Read, Failed> {
        let token = session.token().await?;
        match self.read(session, &token, remote).await {
            // The token may be revoked, or older than the rights that it should have.
            Err(denied @ Failed::Denied(_)) => match session.another_than(&token).await? {
                Some(fresh) => self.read(session, &fresh, remote).await,
                None => Err(denied),
            },
            outcome => outcome,
        }
    }

    fn explain(&self, session: &Session, remote: &RemoteRef, failed: Failed) -> ProviderError {
        let (provider, path) = (self.name.clone(), remote.path.clone());
        match failed {
            Failed::NotFound => ProviderError::NotFound { provider, path },
            Failed::Gone(problem) => {
                ProviderError::Unreadable { provider, path, problem, source: "Vault has its metadata only".into() }
            }
            Failed::Denied(said) => {
                let data = if self.known() == Some(Kv::One) { "" } else { "data/" };
                let action =
                    format!("a policy with: path \"{}/{data}{path}\" {{ capabilities = [\"read\"] }}", self.mount);
                let identity = session.who();
                ProviderError::AccessDenied { provider, path, action: action.into(), identity, source: said.into() }
            }
            Failed::Login(said) => {
                let remedy = session.remedy().into();
                ProviderError::Credentials { provider, remedy, source: said.into() }
            }
            Failed::NoProof { remedy, said } => {
                ProviderError::Credentials { provider, remedy: remedy.into(), source: said.into() }
            }
            Failed::PodGone { problem, said } => ProviderError::PodGone { provider, problem, source: said.into() },
            Failed::Throttled(retry_after) => {
                ProviderError::Throttled { provider, retry_after, source: "a rate limit quota of Vault's".into() }
            }
            Failed::Unavailable(source) => ProviderError::Unavailable { provider, source },
            Failed::Invalid(problem) => ProviderError::Invalid { provider, path, problem, source: None },
        }
    }
}

#[async_trait]
impl SecretProvider for Vault {
    fn name(&self) -> &ProviderName {
        &self.name
    }

    fn usual_payload_bytes(&self) -> usize {
        USUAL_VALUE_BYTES
    }

    fn acts_as(&self) -> ActsAs {
        match self.sessions {
            Sessions::Own(_) => ActsAs::Agent,
            Sessions::OfPods { .. } => ActsAs::Pod,
        }
    }

    fn drop_unused(&self) -> usize {
        match &self.sessions {
            Sessions::Own(_) => 0,
            Sessions::OfPods { of_accounts, .. } => of_accounts.drop_unused(),
        }
    }

    async fn fetch(&self, remote: &RemoteRef, caller: &Caller) -> Result<SecretPayload, ProviderError> {
        let session = self.sessions.of(caller);
        match self.read_logged_in(&session, remote).await {
            Ok(read) => Ok(SecretPayload::new(read.object, read.version)),
            Err(failed) => Err(self.explain(&session, remote, failed)),
        }
    }

    /// By a read of its latest version, of whichever it is asked: one that is deleted still has metadata, from which it can be
    /// restored.
    async fn presence(&self, remote: &RemoteRef) -> Result<Presence, ProviderError> {
        let latest = RemoteRef { version: None, ..remote.clone() };
        let session = self.sessions.of(&Caller::Agent);
        match self.read_logged_in(&session, &latest).await {
            Ok(_) | Err(Failed::Gone(_)) => Ok(Presence::There),
            Err(Failed::NotFound) => Ok(Presence::Absent),
            Err(failed) => Err(self.explain(&session, remote, failed)),
        }
    }

    async fn warm_up(&self) -> Result<String, ProviderError> {
        let remote = RemoteRef { provider: self.name.clone(), path: String::new(), version: None };
        let Sessions::Own(session) = &self.sessions else { return Ok("each pod's service account".to_owned()) };
        let explain = |failed| self.explain(session, &remote, failed);
        let token = session.token().await.map_err(explain)?;
        match session.api().look_up(token.text()).await {
            // Revoked, or without the policy `default`.
            Err(Failed::Denied(_)) => match session.another_than(&token).await.map_err(explain)? {
                Some(fresh) => Ok(session.api().look_up(fresh.text()).await.unwrap_or_else(|_| session.who())),
                None => Ok(session.who()),
            },
            looked_up => looked_up.map_err(explain),
        }
    }

    async fn keep_ready(&self) -> Option<Duration> {
        match &self.sessions {
            Sessions::Own(session) => session.keep().await,
            Sessions::OfPods { .. } => None,
        }
    }
}

/// Paths below the mount: letters, digits and `_.@=+~!-` between slashes, none at either end.
fn check_path(path: &str) -> Result<String, String> {
    check_length(path)?;
    if path.starts_with('/') || path.ends_with('/') {
        return Err("begins or ends with `/`; write it as below the mount, as in prod/app".to_owned());
    }
    check_characters(path, "a path", "/_.@=+~!-")?;
    check_segments(path)?;
    Ok(path.to_owned())
}

fn check_mount(mount: &str) -> Result<(), String> {
    check_path(mount).map(|_| ()).map_err(|problem| format!("`mount` {problem}"))
}

/// The number of a version, from 1.
fn check_version(version: &str) -> Result<(), String> {
    match version.parse::<u32>() {
        Ok(number) if number > 0 && version == number.to_string() => Ok(()),
        _ => Err("must be the number of a version, from 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_below_the_mount() {
        for good in ["app", "prod/app", "a/b/c.d_e-f", "user@host", "a=b+c~d!"] {
            assert_eq!(check_path(good), Ok(good.to_owned()), "{good}");
        }
        for bad in
            ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a?version=1", "a#b", "a%2fb", "a b", "a*", "ä", "a\n"]
        {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn versions_are_numbers() {
        for good in ["1", "42"] {
            assert_eq!(check_version(good), Ok(()), "{good}");
        }
        for bad in ["", "0", "01", "-1", "+1", "latest", "4294967296"] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_way_to_log_in() {
        let login = |text: &str| serde_yaml::from_str::<Auth>(text).expect("an auth").login();
        assert!(
            matches!(login("kubernetes: {role: jasm}"), Ok(Login::Kubernetes { mount, .. }) if mount == "kubernetes")
        );
        assert!(matches!(login("appRole: {roleId: x, secretIdFile: /f}"), Ok(Login::AppRole { .. })));
        assert!(matches!(login("tokenFile: /f"), Ok(Login::TokenFile(_))));
        for bad in ["{}", "{tokenFile: /f, kubernetes: {role: jasm}}", "kubernetes: {role: jasm, mount: a/../b}"] {
            assert!(login(bad).is_err(), "{bad}");
        }
    }
}
