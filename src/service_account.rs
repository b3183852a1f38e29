//! The service accounts of the node's pods: as whom stores are asked where they decide for each account themselves.
//!
//! RBAC (`rbac/pod-identity`): `get` on serviceaccounts, and `create` on serviceaccounts/token, which an admission policy confines
//! to tokens that are bound to a pod, for stores alone, for at most ten minutes. That the pod runs on this node is for the agent
//! to see to: no policy can.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount as Account,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, error::Elapsed};
use zeroize::Zeroizing;

use crate::{
    changes::Changes,
    error::BoxError,
    last_failure::LastFailure,
    pod::{PodNamespace, PodView},
};

/// How long a token holds, in seconds: the least that the API server gives.
const TOKEN_SECONDS: i64 = 600;
/// For the API server's answer about an account, which a pod waits for.
const ANSWER: Duration = Duration::from_secs(10);
/// For a token, of whichever pod: less than the SDKs wait for credentials.
const TOKEN_ANSWER: Duration = Duration::from_secs(3);
/// Pods of one account that are remembered to have asked: more than a node has.
const REMEMBERED_PODS: usize = 1024;
/// How many of them are tried for one token.
const TRIES: usize = 4;
/// How the policy jasm-pod-tokens refuses an audience.
const NO_AUDIENCE: &str = "jasm:tokens a token has one audience";
/// The role at AWS.
pub const ROLE_ARN: &str = "eks.amazonaws.com/role-arn";
/// The application or managed identity at Azure.
pub const CLIENT_ID: &str = "azure.workload.identity/client-id";
/// Its tenant, where it is another than the instance's.
pub const TENANT_ID: &str = "azure.workload.identity/tenant-id";

/// A service account whose pods are on this node. What stores gave for it goes with the last of them.
pub struct ServiceAccount {
    namespace: PodNamespace,
    name: String,
    /// What tells it from an earlier one of the same name, and lets it prove who it is; `None` where it is only named.
    proof: Option<Proof>,
}

/// What proves to a store who asks.
struct Proof {
    uid: String,
    annotations: BTreeMap<&'static str, String>,
    /// Those that stand there as what they cannot be.
    malformed: Vec<&'static str>,
    client: Client,
    /// Pods that asked, by name and UID, the last one at the end: tokens are bound to one that is there.
    pods: Mutex<VecDeque<(String, String)>>,
}

impl Proof {
    fn pods(&self) -> MutexGuard<'_, VecDeque<(String, String)>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.subject())
    }
}

/// A token, the pod that it is bound to, and for whom it is.
pub struct BoundToken {
    /// The token. It is sent to a store, and shown nowhere.
    pub text: Zeroizing<String>,
    /// The pod's UID.
    pod: String,
    audience: String,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// RBAC.
    #[error(
        "the agent may not {verb} of {subject}{audience}: an operator has to apply rbac/pod-identity, or bind its ClusterRole in that \
         namespace"
    )]
    NoRight {
        /// What it tried.
        verb: &'static str,
        /// Whose.
        subject: String,
        /// For whom, where it was about a token.
        audience: String,
        /// What the API server said.
        #[source]
        source: BoxError,
    },
    /// The policy of `rbac/pod-identity`.
    #[error(
        "policy jasm-pod-tokens gives no token of {subject} for audience {audience}: an operator can add the audience to that policy \
         (rbac/pod-identity)"
    )]
    NoAudience {
        /// Whose.
        subject: String,
        /// For whom.
        audience: String,
        /// What the API server said.
        #[source]
        source: BoxError,
    },
    /// Another rule of that policy, or somebody else's.
    #[error("admission refuses a token of {subject} for audience {audience}: the agent's log has its words")]
    Refused {
        /// Whose.
        subject: String,
        /// For whom.
        audience: String,
        /// What the API server said.
        #[source]
        source: BoxError,
    },
    /// One of the account's annotations cannot be what it says.
    #[error("annotation {annotation} of service account {subject} is not of the form that it must have: correct it")]
    Malformed {
        /// Whose.
        subject: String,
        /// Which.
        annotation: &'static str,
    },
    /// The pod is gone; another one of the account may be there.
    #[error("the pod that {subject} asks by is not there any more; the agent retries with backoff")]
    Gone {
        /// Whose.
        subject: String,
        /// What the API server said.
        #[source]
        source: BoxError,
    },
    /// The account is gone, or another one has taken its name.
    #[error("{subject} is not there any more, or is another one now; the agent looks again with backoff")]
    AccountGone {
        /// Whose.
        subject: String,
        /// What the API server said.
        #[source]
        source: BoxError,
    },
    /// No answer, or one of another kind.
    #[error("the API server gave nothing about {subject}; the agent retries with backoff")]
    Unanswered {
        /// Whose.
        subject: String,
        /// What it said.
        #[source]
        source: BoxError,
    },
}

impl TokenError {
    /// Whether it is about one pod, or an account that its pods outlive: the next one who asks may have another answer.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. } | Self::AccountGone { .. })
    }
}

impl ServiceAccount {
    /// One that is only named.
    pub(crate) fn named(namespace: PodNamespace, name: &str) -> Arc<Self> {
        Arc::new(Self { namespace, name: name.to_owned(), proof: None })
    }

    /// Whether it can prove who it is.
    pub fn is_proven(&self) -> bool {
        self.proof.is_some()
    }

    /// Its namespace.
    pub fn namespace(&self) -> &PodNamespace {
        &self.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What tells it from an earlier one of the same name; empty where it is only named.
    pub fn uid(&self) -> &str {
        self.proof.as_ref().map(|proof| proof.uid.as_str()).unwrap_or_default()
    }

    /// `system:serviceaccount:NAMESPACE:NAME`, as tokens say.
    pub fn subject(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }

    /// One of [`ROLE_ARN`], [`CLIENT_ID`] and [`TENANT_ID`].
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.proof.as_ref()?.annotations.get(name).map(String::as_str)
    }

    /// Which of these the account has in a form that it cannot have: that is not the same as not having it.
    pub fn malformed(&self, annotations: &[&'static str]) -> Option<&'static str> {
        let malformed = &self.proof.as_ref()?.malformed;
        malformed.iter().copied().find(|name| annotations.contains(name))
    }

    /// All of those, in one text.
    pub fn claims(&self) -> String {
        let claims = self.proof.iter().flat_map(|proof| &proof.annotations);
        let claims = claims.map(|(name, value)| format!("{name}={value}\n"));
        let malformed = self.proof.iter().flat_map(|proof| &proof.malformed).map(|name| format!("{name}!\n"));
        claims.chain(malformed).collect()
    }

    /// Notes that a pod of it asks a store, so that it may be asked by a token that is bound to this pod.
    pub fn asked_by(&self, pod: &PodView) {
        let Some(proof) = &self.proof else { return };
        let pod = (pod.name().to_owned(), pod.uid().to_owned());
        let mut pods = proof.pods();
        pods.retain(|other| *other != pod);
        pods.push_back(pod);
        if pods.len() > REMEMBERED_PODS {
            pods.pop_front();
        }
    }

    /// A pod of it is gone.
    pub fn forget(&self, pod_uid: &str) {
        if let Some(proof) = &self.proof {
            proof.pods().retain(|(_, uid)| uid != pod_uid);
        }
    }

    /// Whether a pod of it has asked that is not known to be gone.
    pub fn has_pods(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| !proof.pods().is_empty())
    }

    /// Whether the pod of a token is gone, so that a store may have refused the token for that. Where the watch
    /// does not say so yet, and another pod of the account asks, the API server is asked.
    pub async fn has_lost_the_pod_of(&self, token: &BoundToken) -> bool {
        let Some(proof) = &self.proof else { return false };
        let (pod, others) = {
            let pods = proof.pods();
            (pods.iter().find(|(_, uid)| *uid == token.pod).cloned(), pods.len() > 1)
        };
        let Some(pod) = pod else { return true };
        if !others {
            return false;
        }
        let again = tokio::time::timeout(TOKEN_ANSWER, self.token_bound_to(proof, &pod, &token.audience)).await;
        let is_gone = matches!(again, Ok(Err(TokenError::Gone { .. })));
        if is_gone {
            self.forget(&pod.1);
        }
        is_gone
    }

    /// A token of it, bound to its pod that asked last, for this audience alone; it holds ten minutes.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn token(&self, audience: &str) -> Result<BoundToken, TokenError> {
        let subject = self.subject();
        let Some(proof) = &self.proof else {
            return Err(TokenError::Gone { subject, source: "it is only named".into() });
        };
        let mut gone = TokenError::Gone { subject: subject.clone(), source: "no pod of it asks".into() };
        let tries = async {
            for _ in 0..TRIES {
                let Some(pod) = proof.pods().back().cloned() else { break };
                match self.token_bound_to(proof, &pod, audience).await {
                    Err(error @ TokenError::Gone { .. }) => {
                        // Another pod of the account may be there.
                        self.forget(&pod.1);
                        gone = error;
                    }
                    Err(error @ TokenError::AccountGone { .. }) => {
                        proof.pods().clear();
                        return Err(error);
                    }
                    outcome => return outcome,
                }
            }
            Err(gone)
        };
        let late = |elapsed: Elapsed| Err(TokenError::Unanswered { subject, source: elapsed.into() });
        tokio::time::timeout(TOKEN_ANSWER, tries).await.unwrap_or_else(late)
    }

    async fn token_bound_to(
        &self,
        proof: &Proof,
        pod: &(String, String),
        audience: &str,
    ) -> Result<BoundToken, TokenError> {
        let (subject, (name, uid)) = (self.subject(), pod.clone());
        let bound = BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(name),
            uid: Some(uid),
        };
        let spec = TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            bound_object_ref: Some(bound),
            expiration_seconds: Some(TOKEN_SECONDS),
        };
        let accounts: Api<Account> = Api::namespaced(proof.client.clone(), self.namespace.as_str());
        let (params, request) = (PostParams::default(), TokenRequest { spec, ..TokenRequest::default() });
        let answered = accounts.create_token_request(&self.name, &params, &request).await;
        let answered = answered.map_err(|error| explain(error, &subject, Some(audience)))?;
        let text = Zeroizing::new(answered.status.map(|status| status.token).unwrap_or_default());
        // The name may have been given to another account since.
        match account_uid(&text) {
            Some(uid) if uid == proof.uid => Ok(BoundToken { text, pod: pod.1.clone(), audience: audience.to_owned() }),
            _ => Err(TokenError::AccountGone { subject, source: "the token is another account's".into() }),
        }
    }
}

/// The UID of the account in a token's claims. They are the API server's own answer to this request, and so need no proof.
fn account_uid(token: &str) -> Option<String> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    Some(claims.get("kubernetes.io")?.get("serviceaccount")?.get("uid")?.as_str()?.to_owned())
}

fn explain(error: kube::Error, subject: &str, audience: Option<&str>) -> TokenError {
    let subject = subject.to_owned();
    let (code, said, about) = match &error {
        kube::Error::Api(status) => {
            let about = status.details.as_ref().map(|details| details.kind.clone()).unwrap_or_default();
            (status.code, status.message.clone(), about)
        }
        _ => (0, String::new(), String::new()),
    };
    // These choose the code.
    let by_admission = said.starts_with("admission webhook") || said.contains("ValidatingAdmissionPolicy '");
    let source: BoxError = error.into();
    match (code, audience) {
        (403, Some(audience)) if said.contains(NO_AUDIENCE) => {
            TokenError::NoAudience { subject, audience: audience.to_owned(), source }
        }
        (403, Some(audience)) if said.contains("cannot create resource") => {
            let audience = format!(" (audience {audience})");
            TokenError::NoRight { verb: "create a token", subject, audience, source }
        }
        (403, None) => {
            TokenError::NoRight { verb: "read the service account", subject, audience: String::new(), source }
        }
        (_, Some(audience)) if code == 403 || by_admission => {
            TokenError::Refused { subject, audience: audience.to_owned(), source }
        }
        // The name may be another pod's, also one of another account.
        (404 | 409, _) if ["pods", "Pod"].contains(&about.as_str()) => TokenError::Gone { subject, source },
        (400, _) if said.contains("cannot bind token") => TokenError::Gone { subject, source },
        (404, _) if ["serviceaccounts", "namespaces"].contains(&about.as_str()) => {
            TokenError::AccountGone { subject, source }
        }
        _ => TokenError::Unanswered { subject, source },
    }
}

/// What stands in an annotation, where it can be what it is to be: whoever may edit the account wrote it.
fn claim(name: &'static str, value: &str) -> Option<String> {
    let is_one = match name {
        ROLE_ARN => {
            value.len() <= 2048
                && value.starts_with("arn:")
                && value.chars().all(|c| c.is_ascii_alphanumeric() || ":/_+=,.@-".contains(c))
        }
        _ => {
            (1..=128).contains(&value.len()) && value.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
        }
    };
    is_one.then(|| value.to_owned())
}

type Slot = Arc<tokio::sync::Mutex<Looked>>;

/// What became of the last look at an account.
#[derive(Default)]
struct Looked {
    found: Option<(Instant, Weak<ServiceAccount>)>,
    /// With the time at which that look began.
    failed: LastFailure<(Instant, Arc<TokenError>)>,
}

/// How long a look that failed answers all who ask.
const FAILURE_STANDS: Duration = Duration::from_secs(1);

/// Looks up accounts, once for all pods that ask together.
pub struct ServiceAccounts {
    client: Client,
    node: String,
    changes: Arc<Changes>,
    /// By namespace, name, and whether it can prove who it is.
    slots: Mutex<HashMap<(PodNamespace, String, bool), Slot>>,
}

impl ServiceAccounts {
    /// For the pods of `node`. That an account is another than before is announced as one of the `changes`.
    pub fn new(client: Client, node: &str, changes: Arc<Changes>) -> Self {
        Self { client, node: node.to_owned(), changes, slots: Mutex::default() }
    }

    /// Whether nobody has seen the account otherwise since.
    pub async fn is_current(&self, account: &Arc<ServiceAccount>) -> bool {
        let slot = self.slot(&account.namespace, &account.name, account.is_proven());
        let known = slot.lock().await;
        known.found.as_ref().and_then(|(_, known)| known.upgrade()).is_some_and(|known| Arc::ptr_eq(&known, account))
    }

    /// The account of a pod by its name alone; the same one for all of its pods. Makes no request.
    pub async fn named(&self, pod: &PodView) -> Arc<ServiceAccount> {
        let namespace = pod.namespace();
        let slot = self.slot(&namespace, &pod.service_account, false);
        let mut known = slot.lock().await;
        if let Some(account) = known.found.as_ref().and_then(|(_, account)| account.upgrade()) {
            return account;
        }
        let account = ServiceAccount::named(namespace, &pod.service_account);
        known.found = Some((Instant::now(), Arc::downgrade(&account)));
        account
    }

    /// The account of a pod that was seen at `seen_at`, as it is no earlier than `since`; the same one for all of its pods, while it
    /// does not change.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn of(
        &self,
        pod: &PodView,
        seen_at: Instant,
        since: Instant,
    ) -> Result<Arc<ServiceAccount>, Arc<TokenError>> {
        let (namespace, name) = (pod.namespace(), pod.service_account.clone());
        let subject = format!("system:serviceaccount:{namespace}:{name}");
        if pod.node() != Some(self.node.as_str()) {
            return Err(Arc::new(TokenError::Gone { subject, source: "the pod is not on this node".into() }));
        }
        let slot = self.slot(&namespace, &name, true);
        let mut known = slot.lock().await;
        let before = known.found.as_ref().and_then(|(at, account)| Some((*at, account.upgrade()?)));
        match before {
            Some((at, account)) if at >= since => Ok(account),
            before => {
                // A pod that came later may be there because it was mended.
                if let Some((_, error)) = known.failed.within(FAILURE_STANDS).filter(|(began, _)| *began >= seen_at) {
                    return Err(error);
                }
                let at = Instant::now();
                let read = self.read(namespace, &name, &subject).await.map_err(Arc::new);
                known.failed.note(read.as_ref().err().map(|error| (at, Arc::clone(error))));
                let read = Arc::new(read?);
                let is_another = before.as_ref().is_some_and(|(_, account)| !is_same(account, &read));
                let account = before.map(|(_, account)| account).filter(|_| !is_another).unwrap_or(read);
                known.found = Some((at, Arc::downgrade(&account)));
                if is_another {
                    // Pods that were refused as what it was.
                    self.changes.announce();
                }
                Ok(account)
            }
        }
    }

    async fn read(&self, namespace: PodNamespace, name: &str, subject: &str) -> Result<ServiceAccount, TokenError> {
        let accounts: Api<Account> = Api::namespaced(self.client.clone(), namespace.as_str());
        let read = tokio::time::timeout(ANSWER, accounts.get_metadata(name)).await;
        let found = match read {
            Ok(found) => found.map_err(|error| explain(error, subject, None))?,
            Err(elapsed) => {
                return Err(TokenError::Unanswered { subject: subject.to_owned(), source: elapsed.into() });
            }
        };
        let text = |key: &str| found.metadata.annotations.as_ref()?.get(key).filter(|text| !text.is_empty());
        let of_ours = |key: &'static str| Some((key, claim(key, text(key)?)?));
        let annotations: BTreeMap<_, _> = [ROLE_ARN, CLIENT_ID, TENANT_ID].into_iter().filter_map(of_ours).collect();
        let is_malformed = |key: &&str| text(key).is_some() && !annotations.contains_key(key);
        let proof = Proof {
            uid: found.metadata.uid.clone().unwrap_or_default(),
            malformed: [ROLE_ARN, CLIENT_ID, TENANT_ID].into_iter().filter(is_malformed).collect(),
            annotations,
            client: self.client.clone(),
            pods: Mutex::default(),
        };
        Ok(ServiceAccount { namespace, name: name.to_owned(), proof: Some(proof) })
    }

    fn slot(&self, namespace: &PodNamespace, name: &str, is_proven: bool) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody asks about, and whose pods are gone.
        slots.retain(|_, slot| {
            let lives = |known: &Looked| {
                let is_used = known.found.as_ref().is_some_and(|(_, account)| account.strong_count() > 0);
                is_used || known.failed.within(FAILURE_STANDS).is_some()
            };
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|known| lives(&known))
        });
        Arc::clone(slots.entry((namespace.clone(), name.to_owned(), is_proven)).or_default())
    }
}

fn is_same(one: &ServiceAccount, other: &ServiceAccount) -> bool {
    (one.uid(), one.claims()) == (other.uid(), other.claims())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_in_a_tokens_claims_is_read_and_nothing_else_is_taken_for_it() {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let token = |claims: &str| format!("x.{}.y", URL_SAFE_NO_PAD.encode(claims));
        let real = token(r#"{"kubernetes.io":{"serviceaccount":{"name":"app","uid":"u-1"}}}"#);
        assert_eq!(account_uid(&real).as_deref(), Some("u-1"));
        for broken in ["", "x", "x.!.y", &token("{}"), &token(r#"{"uid":"u-1"}"#)] {
            assert_eq!(account_uid(broken), None, "{broken}");
        }
    }

    #[test]
    fn what_is_no_role_or_id_is_not_one() {
        let role = "arn:aws-cn:iam::123456789012:role/team-a/app";
        assert_eq!(claim(ROLE_ARN, role).as_deref(), Some(role));
        let id = "c11e47aa-0000-4000-8000-00000000000b";
        assert_eq!((claim(CLIENT_ID, id).as_deref(), claim(TENANT_ID, "example.com").is_some()), (Some(id), true));
        let long = format!("arn:{}", "x".repeat(2048));
        for broken in ["", "app", "arn:aws:iam::1:role/a b", "arn:\n", &long] {
            assert_eq!(claim(ROLE_ARN, broken), None, "{broken:?}");
        }
        for broken in ["", "a b", "a\n", "https://x", &"x".repeat(129)] {
            assert_eq!(claim(CLIENT_ID, broken), None, "{broken:?}");
        }
    }

    /// As the API server (1.37) words them, and those in front of it.
    #[test]
    fn a_pod_is_gone_only_where_the_api_server_itself_says_so() {
        let said = |code: u16, about: &str, message: &str| {
            let status =
                serde_json::json!({"code": code, "message": message, "reason": "", "details": {"kind": about}});
            let status: kube::core::Status = serde_json::from_value(status).expect("a status");
            explain(kube::Error::Api(Box::new(status)), "app", Some("store"))
        };
        let cases = [
            ("gone", said(404, "pods", r#"pods "web" not found"#)),
            ("gone", said(409, "Pod", "the UID in the bound object reference does not match the UID in record")),
            (
                "gone",
                said(
                    400,
                    "",
                    r#"cannot bind token for serviceaccount "app" to pod running with different serviceaccount name."#,
                ),
            ),
            ("account gone", said(404, "serviceaccounts", r#"serviceaccounts "app" not found"#)),
            ("account gone", said(404, "namespaces", r#"namespaces "team-a" not found"#)),
            (
                "refused",
                said(
                    422,
                    "",
                    "serviceaccounts \"app\" is forbidden: ValidatingAdmissionPolicy 'x' with binding 'x' denied request: no",
                ),
            ),
            ("refused", said(404, "", r#"admission webhook "x.example.com" denied the request: pods "web" not found"#)),
            ("refused", said(403, "", "no")),
            (
                "no audience",
                said(
                    403,
                    "",
                    "ValidatingAdmissionPolicy 'jasm-pod-tokens' denied request: jasm:tokens a token has one audience",
                ),
            ),
            ("no right", said(403, "", r#"User "x" cannot create resource "serviceaccounts/token""#)),
            ("unanswered", said(404, "", "404 page not found")),
            ("unanswered", said(422, "", "no")),
            ("unanswered", said(500, "", "no")),
        ];
        for (number, (wanted, error)) in cases.iter().enumerate() {
            let found = match error {
                TokenError::Gone { .. } => "gone",
                TokenError::AccountGone { .. } => "account gone",
                TokenError::Refused { .. } => "refused",
                TokenError::NoAudience { .. } => "no audience",
                TokenError::NoRight { .. } => "no right",
                TokenError::Unanswered { .. } => "unanswered",
                TokenError::Malformed { .. } => "malformed",
            };
            assert_eq!(found, *wanted, "case {number}: {error}");
        }
    }

    #[tokio::test]
    async fn a_pod_of_another_node_has_no_account_here_and_nobody_is_asked() {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, BoxError>("somebody was asked".into())
        });
        let accounts = ServiceAccounts::new(Client::new(service, "jasm-system"), "node-1", Arc::default());
        let pod = |node: &str| -> PodView {
            let pod =
                serde_json::json!({"metadata": {"name": "web", "namespace": "team-a"}, "spec": {"nodeName": node}});
            serde_json::from_value(pod).expect("a pod")
        };
        let error = accounts.of(&pod("node-2"), Instant::now(), Instant::now()).await.expect_err("another node's");
        assert!(
            matches!(&*error, TokenError::Gone { source, .. } if source.to_string().contains("not on this node")),
            "{error}"
        );
        let error = accounts.of(&pod("node-1"), Instant::now(), Instant::now()).await.expect_err("asked");
        assert!(matches!(*error, TokenError::Unanswered { .. }), "{error}");
    }
}
