//! The agent's token at Vault: how it is got, kept and replaced.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use zeroize::Zeroizing;

use super::api::{Api, Failed, Granted};
use crate::{
    error::chain,
    last_failure::LastFailure,
    service_account::{BoundToken, ServiceAccount, TokenError},
};

/// A token of a login so short ago has the rights that there are: that it is refused is about the path, unless it is
/// revoked. Else each path without a right would cost a login.
const YOUNG: Duration = Duration::from_secs(60);
/// No request begins with a token that ends so soon.
const LAST_MOMENTS: Duration = Duration::from_secs(3);
/// After a renewal or a login in the background that failed, doubled by each further one.
const TRY_AGAIN: Duration = Duration::from_secs(5);
const TRY_AGAIN_SELDOM: Duration = Duration::from_secs(300);
/// How long the refusal of a pod's login is that of all who wait for one. Less than anybody's pause after it.
const SHARED: Duration = Duration::from_millis(500);
/// How often a token that never ends is looked at.
const SELDOM: Duration = Duration::from_secs(3600);

/// How the agent proves who it is.
#[derive(Debug)]
pub(super) enum Login {
    Kubernetes { role: String, mount: String, token_file: PathBuf },
    AppRole { role_id: String, mount: String, secret_id_file: PathBuf },
    TokenFile(PathBuf),
    Pod { role: PodRole, account: Weak<ServiceAccount>, subject: String },
}

/// The role that pods' service accounts log in with.
#[derive(Debug, Clone)]
pub(super) struct PodRole {
    pub(super) role: String,
    pub(super) mount: String,
    pub(super) audience: String,
}

impl Login {
    /// What is had anew for each login.
    async fn proof(&self) -> Result<Proof, Failed> {
        match self {
            Self::Kubernetes { token_file: file, .. }
            | Self::AppRole { secret_id_file: file, .. }
            | Self::TokenFile(file) => read(file).await.map(Proof::Held),
            Self::Pod { role, account, .. } => {
                // Whoever asks has it.
                let gone = || Failed::NoProof { remedy: "the pod is gone".to_owned(), said: "nobody asks".to_owned() };
                let account = account.upgrade().ok_or_else(gone)?;
                Ok(Proof::Pod(account.token(&role.audience).await?, account))
            }
        }
    }
}

/// What a login shows.
enum Proof {
    Held(Zeroizing<String>),
    Pod(BoundToken, Arc<ServiceAccount>),
}

impl Proof {
    fn text(&self) -> &Zeroizing<String> {
        match self {
            Self::Held(text) => text,
            Self::Pod(token, _) => &token.text,
        }
    }

    /// Vault asks the API server, which does not know the token of a pod that is gone.
    async fn lost_its_pod(&self) -> Option<Failed> {
        let Self::Pod(token, account) = self else { return None };
        let (subject, source) = (account.subject(), "it went while Vault was asked".into());
        let lost = account.has_lost_the_pod_of(token).await;
        lost.then(|| TokenError::Gone { subject, source }.into())
    }
}

impl From<TokenError> for Failed {
    fn from(error: TokenError) -> Self {
        let (text, said) = (error.to_string(), chain(&error));
        match error.is_gone() {
            true => Self::PodGone { problem: text, said },
            false => Self::NoProof { remedy: text, said },
        }
    }
}

/// A server, and the agent's token there.
#[derive(Debug)]
pub(super) struct Session {
    api: Arc<Api>,
    login: Login,
    token: Mutex<Option<Token>>,
    /// Held by the one who logs in, on a task of its own: whoever waits for that may go.
    logging_in: tokio::sync::Mutex<Refused>,
    /// Renewals and logins in the background that failed one after the other.
    failures: AtomicU32,
}

/// Proof that was refused: the same is not sent again at once. Five refusals within 15 minutes lock an AppRole for all.
#[derive(Debug, Default)]
struct Refused {
    proof: Zeroizing<String>,
    times: u32,
    again_at: Option<Instant>,
    /// Each proof of a pod's is new, and says the same: those who waited for a login that gave nothing share what it was told, and
    /// what to do about it where that is known.
    of_pod: LastFailure<(Option<String>, String)>,
}

impl Refused {
    /// How long the same proof waits.
    fn pause(&self, login: &Login) -> Duration {
        match (login, self.times) {
            (Login::AppRole { .. }, 2..) => Duration::from_secs(300),
            (Login::AppRole { .. }, _) => Duration::from_secs(10),
            (_, times) => Duration::from_secs(1 << times.min(5)),
        }
    }

    fn stands(&self, proof: &str) -> bool {
        self.proof.as_str() == proof && self.again_at.is_some_and(|again_at| Instant::now() < again_at)
    }

    fn shared(&self) -> Option<Failed> {
        Some(match self.of_pod.within(SHARED)? {
            (Some(remedy), said) => Failed::NoProof { remedy, said },
            (None, said) => Failed::Login(said),
        })
    }

    fn share(&mut self, failed: Option<&Failed>) {
        self.of_pod.note(match failed {
            Some(Failed::NoProof { remedy, said }) => Some((Some(remedy.clone()), said.clone())),
            Some(Failed::Login(said)) => Some((None, said.clone())),
            _ => None,
        });
    }

    fn note(&mut self, proof: &str, login: &Login) {
        self.times = if self.proof.as_str() == proof { self.times + 1 } else { 1 };
        self.proof = Zeroizing::new(proof.to_owned());
        self.again_at = Some(Instant::now() + self.pause(login));
    }
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
    pub(super) fn new(api: Arc<Api>, login: Login) -> Self {
        let (token, logging_in) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { api, login, token, logging_in, failures: AtomicU32::default() }
    }

    pub(super) fn api(&self) -> &Api {
        &self.api
    }

    /// The agent's token; the first one who finds none logs in for all.
    pub(super) async fn token(self: &Arc<Self>) -> Result<Token, Failed> {
        match self.current().filter(|token| token.lives() && !self.is_file()) {
            Some(token) => Ok(token),
            None => self.log_in(None).await,
        }
    }

    /// After `refused` was refused: another token, unless it has nothing to do with the token.
    pub(super) async fn another_than(self: &Arc<Self>, refused: &Token) -> Result<Option<Token>, Failed> {
        if let Some(other) = self.current().filter(|token| token.text != refused.text) {
            return Ok(Some(other));
        }
        if refused.born.elapsed() < YOUNG && !self.is_file() && self.api.look_up(refused.text()).await.is_ok() {
            return Ok(None);
        }
        let fresh = self.log_in(Some(refused.clone())).await?;
        if fresh.text != refused.text {
            return Ok(Some(fresh));
        }
        // The file holds the same one still.
        match self.api.look_up(fresh.text()).await {
            Err(Failed::Denied(said)) => Err(Failed::Login(format!("{said} for the token in its file"))),
            _ => Ok(None),
        }
    }

    /// Renews the token when it is time, or gets another one. Says when to look again.
    pub(super) async fn keep(self: &Arc<Self>) -> Option<Duration> {
        if self.is_file() {
            return None;
        }
        let token = self.current();
        let kept = match &token {
            Some(token) if token.due_in().is_none_or(|due| !due.is_zero()) => {
                return Some(token.due_in().unwrap_or(SELDOM));
            }
            Some(due) if due.renewable && due.lives() => self.renew(due).await,
            _ => None,
        };
        let kept = match kept {
            Some(kept) => Ok(kept),
            None => self.log_in(token).await,
        };
        match kept {
            Ok(token) => {
                self.failures.store(0, Ordering::Relaxed);
                Some(token.due_in().unwrap_or(SELDOM).max(Duration::from_millis(100)))
            }
            Err(failed) => {
                let failures = self.failures.fetch_add(1, Ordering::Relaxed);
                let pause = TRY_AGAIN.saturating_mul(1 << failures.min(6)).min(TRY_AGAIN_SELDOM);
                tracing::warn!(identity = self.who(), ?failed, ?pause, "no new token at Vault; trying again");
                Some(pause.mul_f64(0.5 + 0.5 * fastrand::f64()))
            }
        }
    }

    /// The same token with its time begun anew; nothing where another one is better: at the end of its longest life its
    /// time is no longer what it was. Nobody waits for it: the token is good until it ends.
    async fn renew(&self, token: &Token) -> Option<Token> {
        let renewed = Token { born: token.born, ..Token::granted(self.api.renew(token.text()).await.ok()?) };
        let is_better = renewed.lease >= token.lease;
        let mut held = self.held();
        if is_better && held.as_ref().is_some_and(|held| held.text == renewed.text) {
            *held = Some(renewed.clone());
        }
        is_better.then_some(renewed)
    }

    /// A token other than `unwanted`: somebody else's, if he was faster, or one of a new login. `unwanted` is revoked.
    async fn log_in(self: &Arc<Self>, unwanted: Option<Token>) -> Result<Token, Failed> {
        let session = Arc::clone(self);
        let logged_in = tokio::spawn(async move {
            let mut refused = session.logging_in.lock().await;
            let is_wanted =
                |token: &Token| token.lives() && unwanted.as_ref().is_none_or(|unwanted| unwanted.text != token.text);
            if let Some(token) = session.current().filter(|token| is_wanted(token) && !session.is_file()) {
                return Ok(token);
            }
            let fresh = session.prove(&mut refused).await?;
            *session.held() = Some(fresh.clone());
            if let Some(old) = unwanted.filter(|old| old.text != fresh.text && !session.is_file()) {
                session.api.revoke(old.text()).await;
            }
            Ok(fresh)
        });
        logged_in.await.unwrap_or_else(|error| Err(Failed::Unavailable(error.into())))
    }

    async fn prove(&self, refused: &mut Refused) -> Result<Token, Failed> {
        if !matches!(self.login, Login::Pod { .. }) {
            return self.proven(refused).await;
        }
        if let Some(failed) = refused.shared() {
            return Err(failed);
        }
        let outcome = self.proven(&mut Refused::default()).await;
        refused.share(outcome.as_ref().err());
        outcome
    }

    async fn proven(&self, refused: &mut Refused) -> Result<Token, Failed> {
        let proof = self.login.proof().await?;
        let text = proof.text();
        let (mount, body) = match &self.login {
            Login::TokenFile(_) => return Ok(self.of_file(text.clone())),
            Login::Kubernetes { role, mount, .. } => (mount, [("role", role.as_str()), ("jwt", text)]),
            Login::Pod { role: PodRole { role, mount, .. }, .. } => (mount, [("role", role.as_str()), ("jwt", text)]),
            Login::AppRole { role_id, mount, .. } => (mount, [("role_id", role_id.as_str()), ("secret_id", text)]),
        };
        if refused.stands(text) {
            return Err(Failed::Login("the same proof was refused a moment ago".to_owned()));
        }
        match self.api.log_in(mount, &body).await {
            Ok(granted) => {
                *refused = Refused::default();
                Ok(Token::granted(granted))
            }
            Err(failed @ (Failed::Denied(_) | Failed::Login(_))) => {
                if let Some(gone) = proof.lost_its_pod().await {
                    return Err(gone);
                }
                refused.note(text, &self.login);
                // A refusal at a login is about the proof, not about a path.
                Err(match failed {
                    Failed::Denied(said) => Failed::Login(format!("{said} at a login")),
                    failed => failed,
                })
            }
            Err(failed) => Err(failed),
        }
    }

    /// A file's token is as old as it was first seen.
    fn of_file(&self, text: Zeroizing<String>) -> Token {
        let fresh = Token::granted(Granted { client_token: text, lease_duration: 0, renewable: false });
        self.current().filter(|same| same.text == fresh.text).unwrap_or(fresh)
    }

    fn current(&self) -> Option<Token> {
        self.held().clone()
    }

    fn held(&self) -> MutexGuard<'_, Option<Token>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
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
            Login::Pod { role: PodRole { role, mount, .. }, subject, .. } => {
                format!("role {role} of auth/{mount}, as {subject}")
            }
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
            Login::Pod { role: PodRole { role, mount, audience }, subject, .. } => format!(
                "check at Vault that auth/{mount} has the role {role}, that it is bound to {subject}, and that its audience is {audience}"
            ),
            Login::TokenFile(file) => format!("check that {} holds a token that Vault takes", file.display()),
        }
    }
}

async fn read(file: &Path) -> Result<Zeroizing<String>, Failed> {
    let text = tokio::fs::read_to_string(file).await.map(Zeroizing::new);
    let text = text.map_err(|error| Failed::Login(format!("{}: {error}", file.display())))?;
    match text.trim() {
        "" => Err(Failed::Login(format!("{} is empty", file.display()))),
        text => Ok(Zeroizing::new(text.to_owned())),
    }
}
