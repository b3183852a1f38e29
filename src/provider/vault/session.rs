//! The agent's token at Vault: how it is got, kept and replaced.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Mutex, time::Instant};
use zeroize::Zeroizing;

use super::api::{Api, Failed, Granted};

/// A token of a login so short ago has the rights that there are: that it is refused is about the path, unless it is
/// revoked. Else each path without a right would cost a login.
const YOUNG: Duration = Duration::from_secs(1);
/// No request begins with a token that ends so soon.
const LAST_MOMENTS: Duration = Duration::from_secs(3);
/// After a login or a renewal that failed.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// How often a token that never ends is looked at.
const SELDOM: Duration = Duration::from_secs(3600);

/// How the agent proves who it is.
#[derive(Debug)]
pub(super) enum Login {
    Kubernetes { role: String, mount: String, token_file: PathBuf },
    AppRole { role_id: String, mount: String, secret_id_file: PathBuf },
    TokenFile(PathBuf),
}

/// A server, and the agent's token there.
#[derive(Debug)]
pub(super) struct Session {
    api: Api,
    login: Login,
    token: Mutex<Option<Token>>,
}

/// A token; clones are the same one.
#[derive(Clone)]
pub(super) struct Token {
    text: Arc<Zeroizing<String>>,
    /// When it was got, by a login.
    born: Instant,
    /// When its time began: then, or at the last renewal.
    since: Instant,
    lease: Option<Duration>,
    renewable: bool,
}

impl Token {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    fn granted(granted: Granted) -> Self {
        let lease = Some(Duration::from_secs(granted.lease_duration)).filter(|lease| !lease.is_zero());
        let (text, now) = (Arc::new(granted.client_token), Instant::now());
        Self { text, born: now, since: now, lease, renewable: granted.renewable }
    }

    fn left(&self) -> Option<Duration> {
        self.lease.map(|lease| lease.saturating_sub(self.since.elapsed()))
    }

    fn lives(&self) -> bool {
        self.left().zip(self.lease).is_none_or(|(left, lease)| left > LAST_MOMENTS.min(lease / 4))
    }

    /// When to renew it: after two thirds of its time.
    fn due_in(&self) -> Option<Duration> {
        self.lease.map(|lease| (lease * 2 / 3).saturating_sub(self.since.elapsed()))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(api: Api, login: Login) -> Self {
        Self { api, login, token: Mutex::default() }
    }

    pub(super) fn api(&self) -> &Api {
        &self.api
    }

    /// The agent's token; the first one who finds none logs in for all.
    pub(super) async fn token(&self) -> Result<Token, Failed> {
        let mut token = self.token.lock().await;
        match token.as_ref().filter(|token| token.lives() && !self.is_file()) {
            Some(token) => Ok(token.clone()),
            None => self.log_in(&mut token).await,
        }
    }

    /// After `refused` was refused: another token, unless there is none or it would be no other.
    pub(super) async fn another_than(&self, refused: &Token) -> Result<Option<Token>, Failed> {
        let mut token = self.token.lock().await;
        if let Some(other) = token.as_ref().filter(|token| token.text != refused.text) {
            return Ok(Some(other.clone()));
        }
        if refused.born.elapsed() < YOUNG && self.api.look_up(refused.text()).await.is_ok() {
            return Ok(None);
        }
        let fresh = self.log_in(&mut token).await?;
        Ok(Some(fresh).filter(|fresh| fresh.text != refused.text))
    }

    /// Renews the token when it is time, or gets another one. Says when to look again.
    pub(super) async fn keep(&self) -> Option<Duration> {
        if self.is_file() {
            return None;
        }
        let mut token = self.token.lock().await;
        let kept = match token.as_ref() {
            Some(token) if token.due_in().is_none_or(|due| !due.is_zero()) => {
                return Some(token.due_in().unwrap_or(SELDOM));
            }
            Some(due) if due.renewable && due.lives() => self.renew(due).await,
            _ => None,
        };
        if kept.is_some() {
            *token = kept;
        } else if let Err(failed) = self.log_in(&mut token).await {
            tracing::warn!(identity = self.who(), ?failed, "no new token at Vault; trying again");
            return Some(TRY_AGAIN);
        }
        token.as_ref().map(|token| token.due_in().unwrap_or(SELDOM).max(Duration::from_millis(100)))
    }

    /// The same token with its time begun anew; nothing where another one is better: at the end of its longest life its
    /// time is no longer what it was.
    async fn renew(&self, token: &Token) -> Option<Token> {
        let renewed = Token { born: token.born, ..Token::granted(self.api.renew(token.text()).await.ok()?) };
        (renewed.lease >= token.lease).then_some(renewed)
    }

    async fn log_in(&self, token: &mut Option<Token>) -> Result<Token, Failed> {
        let granted = match &self.login {
            Login::TokenFile(file) => Granted { client_token: read(file).await?, lease_duration: 0, renewable: false },
            Login::Kubernetes { role, mount, token_file } => {
                let jwt = read(token_file).await?;
                self.api.log_in(mount, &[("role", role), ("jwt", &jwt)]).await.map_err(refused)?
            }
            Login::AppRole { role_id, mount, secret_id_file } => {
                let secret_id = read(secret_id_file).await?;
                let proof = [("role_id", role_id.as_str()), ("secret_id", &secret_id)];
                self.api.log_in(mount, &proof).await.map_err(refused)?
            }
        };
        let mut fresh = Token::granted(granted);
        // A file's token is as old as it was first seen.
        if let Some(same) = token.as_ref().filter(|same| same.text == fresh.text) {
            (fresh.born, fresh.since) = (same.born, same.since);
        }
        *token = Some(fresh.clone());
        Ok(fresh)
    }

    fn is_file(&self) -> bool {
        matches!(self.login, Login::TokenFile(_))
    }

    /// The agent, as an operator of Vault would look for it.
    pub(super) fn who(&self) -> String {
        match &self.login {
            Login::Kubernetes { role, mount, .. } => format!("role {role} of auth/{mount}"),
            Login::AppRole { mount, .. } => format!("the role of its role id at auth/{mount}"),
            Login::TokenFile(file) => format!("the token in {}", file.display()),
        }
    }

    /// What to look at when the agent gets no token.
    pub(super) fn remedy(&self) -> String {
        match &self.login {
            Login::Kubernetes { role, mount, token_file } => format!(
                "check at Vault that auth/{mount} has the role {role}, that this is bound to the agent's service account, and \
                 that its audience is that of the token in {}",
                token_file.display()
            ),
            Login::AppRole { mount, secret_id_file, .. } => format!(
                "check `roleId`, and that the secret id in {} is one of that role at auth/{mount} and not used up",
                secret_id_file.display()
            ),
            Login::TokenFile(file) => format!("check that {} holds a token that Vault takes", file.display()),
        }
    }
}

/// A refusal at a login is about the proof, not about a path.
fn refused(failed: Failed) -> Failed {
    match failed {
        Failed::Denied(said) => Failed::Login(format!("{said} at a login")),
        failed => failed,
    }
}

async fn read(file: &Path) -> Result<Zeroizing<String>, Failed> {
    let text = tokio::fs::read_to_string(file).await.map(Zeroizing::new);
    let text = text.map_err(|error| Failed::Login(format!("{}: {error}", file.display())))?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}
