//! As whom the agent is known at Azure: the SDK's credentials, made when they are needed and made anew when their file
//! changes.

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use azure_core::{
    credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions},
    error::{Error, ErrorKind},
    http::{ClientMethodOptions, ClientOptions},
};
use azure_identity::{
    ClientAssertion, ClientAssertionCredential, ClientAssertionCredentialOptions, ClientSecretCredential,
    ClientSecretCredentialOptions, ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
    WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use tokio::{sync::Mutex, time::timeout};
use zeroize::Zeroizing;

use super::{Auth, ClientSecret, ManagedIdentity, WorkloadIdentity, causes};
use crate::{
    last_failure::LastFailure,
    service_account::{CLIENT_ID, ServiceAccount, TENANT_ID, TokenError},
};

/// The audience of tokens for Azure.
const AUDIENCE: &str = "api://AzureADTokenExchange";

/// How long the node may take to give a token of its own.
const MANAGED: Duration = Duration::from_secs(3);
/// How long a pod's login that failed is the answer to all who ask: those who waited for it. Less than anybody's pause after it.
const FAILURE_STANDS: Duration = Duration::from_millis(500);

/// One way to log in.
#[derive(Debug)]
enum Way {
    Workload { tenant_id: String, client_id: String, token_file: PathBuf },
    Managed(ManagedIdentity),
    ClientSecret(ClientSecret),
    Pod(PodWay),
}

/// By a token of a pod's service account.
#[derive(Debug)]
struct PodWay {
    tenant_id: Option<String>,
    client_id: Option<String>,
    account: Weak<ServiceAccount>,
    subject: String,
    /// An annotation that cannot be what it says.
    malformed: Option<&'static str>,
    /// Held by the one who logs in.
    failed: Mutex<LastFailure<Shared>>,
}

/// A login that gave nothing, for all who waited for it.
#[derive(Debug, Clone)]
struct Shared(Arc<Error>);

impl std::fmt::Display for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no login")
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The SDK's own error, as what it is: `explain` looks for it.
        Some(&*self.0)
    }
}

impl PodWay {
    /// A token of the SDK's, which keeps it; where there is none, those who waited do not log in once more each.
    async fn token(
        &self,
        token: impl Future<Output = azure_core::Result<AccessToken>>,
    ) -> azure_core::Result<AccessToken> {
        let mut failed = self.failed.lock().await;
        if let Some(shared) = failed.within(FAILURE_STANDS) {
            return Err(Error::with_error(ErrorKind::Credential, shared, "the login failed a moment ago"));
        }
        let error = match token.await {
            Ok(token) => {
                failed.note(None);
                return Ok(token);
            }
            Err(error) => error,
        };
        // A pod that is gone is the failure of nobody else.
        if causes(&error).any(|cause| cause.downcast_ref().is_some_and(TokenError::is_gone)) {
            return Err(error);
        }
        let shared = Shared(Arc::new(error));
        failed.note(Some(shared.clone()));
        Err(Error::with_error(ErrorKind::Credential, shared, "no login"))
    }
}

/// The token, had anew for each login.
#[derive(Debug)]
struct PodToken(Weak<ServiceAccount>);

#[async_trait]
impl ClientAssertion for PodToken {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        // Whoever asks has it.
        let gone = || Error::with_message(ErrorKind::Credential, "the pod is gone");
        let token = self.0.upgrade().ok_or_else(gone)?.token(AUDIENCE).await;
        let token =
            token.map_err(|error| Error::with_error(ErrorKind::Credential, error, "no token of the pod's account"))?;
        Ok(token.text.to_string())
    }
}

/// A credential that reads its file again.
#[derive(Debug)]
pub(super) struct Credential {
    way: Way,
    options: ClientOptions,
    made: Mutex<Option<Made>>,
}

/// The SDK's credential, and what its file held.
#[derive(Debug)]
struct Made {
    from: Option<Secret>,
    credential: Arc<dyn TokenCredential>,
}

impl Credential {
    /// # Errors
    /// Not exactly one way, or one that lacks something.
    pub(super) fn new(auth: Auth, options: ClientOptions) -> Result<Self, String> {
        let way = match auth {
            Auth { workload_identity: Some(workload), managed_identity: None, client_secret: None } => {
                complete(workload)?
            }
            Auth { workload_identity: None, managed_identity: Some(managed), client_secret: None } => {
                Way::Managed(managed)
            }
            Auth { workload_identity: None, managed_identity: None, client_secret: Some(secret) } => {
                Way::ClientSecret(secret)
            }
            _ => {
                return Err("`auth` must have exactly one of `workloadIdentity`, `managedIdentity` and `clientSecret`"
                    .to_owned());
            }
        };
        Ok(Self { way, options, made: Mutex::default() })
    }

    /// As whom nothing is read: what can be said before any pod asks.
    pub(super) fn of_nobody(options: ClientOptions) -> Self {
        let (account, subject) = (Weak::new(), "nobody".to_owned());
        let way = Way::Pod(PodWay {
            tenant_id: None,
            client_id: None,
            account,
            subject,
            malformed: None,
            failed: Mutex::default(),
        });
        Self { way, options, made: Mutex::default() }
    }

    /// A pod's service account, which names its application by an annotation.
    pub(super) fn of_pod(
        account: &ServiceAccount,
        weak: Weak<ServiceAccount>,
        tenant_id: Option<&str>,
        options: ClientOptions,
    ) -> Self {
        let way = Way::Pod(PodWay {
            tenant_id: account.annotation(TENANT_ID).or(tenant_id).map(ToOwned::to_owned),
            client_id: account.annotation(CLIENT_ID).map(ToOwned::to_owned),
            account: weak,
            subject: account.subject(),
            malformed: account.malformed(&[CLIENT_ID, TENANT_ID]),
            failed: Mutex::default(),
        });
        Self { way, options, made: Mutex::default() }
    }

    /// The SDK's credential for what the file holds now.
    async fn current(&self) -> azure_core::Result<Arc<dyn TokenCredential>> {
        let text = match self.file() {
            Some(file) => Some(Secret::new(read(file).await?)),
            None => None,
        };
        let mut made = self.made.lock().await;
        if let Some(made) = made.as_ref().filter(|made| made.from == text) {
            return Ok(Arc::clone(&made.credential));
        }
        let credential = self.make(text.clone())?;
        *made = Some(Made { from: text, credential: Arc::clone(&credential) });
        Ok(credential)
    }

    /// The next one who asks logs in.
    pub(super) async fn forget(&self) {
        *self.made.lock().await = None;
    }

    fn file(&self) -> Option<&PathBuf> {
        match &self.way {
            Way::Workload { token_file, .. } => Some(token_file),
            Way::ClientSecret(ClientSecret { secret_file, .. }) => Some(secret_file),
            Way::Managed(_) | Way::Pod(_) => None,
        }
    }

    fn make(&self, text: Option<Secret>) -> azure_core::Result<Arc<dyn TokenCredential>> {
        let client_options = self.options.clone();
        Ok(match &self.way {
            Way::Workload { tenant_id, client_id, token_file } => {
                WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                    credential_options: ClientAssertionCredentialOptions { client_options },
                    client_id: Some(client_id.clone()),
                    tenant_id: Some(tenant_id.clone()),
                    token_file_path: Some(token_file.clone()),
                }))?
            }
            Way::Pod(PodWay { malformed: Some(annotation), subject, .. }) => {
                let error = TokenError::Malformed { subject: subject.clone(), annotation };
                return Err(Error::with_error(ErrorKind::Credential, error, "an annotation is malformed"));
            }
            Way::Pod(PodWay { tenant_id: Some(tenant_id), client_id: Some(client_id), account, .. }) => {
                let (token, options) =
                    (PodToken(Weak::clone(account)), ClientAssertionCredentialOptions { client_options });
                ClientAssertionCredential::new(tenant_id.clone(), client_id.clone(), token, Some(options))?
            }
            Way::Pod(_) => {
                return Err(Error::with_message(ErrorKind::Credential, "the service account names no application"));
            }
            Way::Managed(ManagedIdentity { client_id }) => {
                let user_assigned_id = client_id.clone().map(UserAssignedId::ClientId);
                ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
                    user_assigned_id,
                    client_options,
                }))?
            }
            Way::ClientSecret(ClientSecret { tenant_id, client_id, .. }) => ClientSecretCredential::new(
                tenant_id,
                client_id.clone(),
                text.unwrap_or_else(|| Secret::new("")),
                Some(ClientSecretCredentialOptions { client_options }),
            )?,
        })
    }

    /// The agent, as an operator would look for it.
    pub(super) fn who(&self) -> String {
        match &self.way {
            Way::Workload { client_id, .. } => format!("client {client_id} (workload identity)"),
            Way::Managed(ManagedIdentity { client_id: Some(client_id) }) => {
                format!("client {client_id} (managed identity)")
            }
            Way::Managed(_) => "the managed identity of the node".to_owned(),
            Way::ClientSecret(ClientSecret { client_id, .. }) => format!("client {client_id}"),
            Way::Pod(PodWay { client_id, subject, .. }) => {
                format!("client {} ({subject})", client_id.as_deref().unwrap_or("without a name"))
            }
        }
    }

    /// What to look at when the agent gets no token.
    pub(super) fn remedy(&self) -> String {
        match &self.way {
            Way::Workload { tenant_id, client_id, token_file } => format!(
                "check that {} holds a token, and that client {client_id} in tenant {tenant_id} has a federated credential for \
                 the agent's service account",
                token_file.display()
            ),
            Way::Pod(PodWay { client_id: Some(client_id), tenant_id: Some(tenant_id), subject, .. }) => format!(
                "check that client {client_id} in tenant {tenant_id} has a federated credential for {subject} with audience {AUDIENCE}"
            ),
            Way::Pod(PodWay { client_id: None, subject, .. }) => format!(
                "annotate service account {subject} with {CLIENT_ID}: the application that has a federated credential for it with \
                 audience {AUDIENCE}"
            ),
            Way::Pod(PodWay { subject, .. }) => {
                format!("annotate service account {subject} with {TENANT_ID}, or set `tenantId` in providers.yaml")
            }
            Way::Managed(_) => {
                "check that the node has a managed identity, and that it is reached (169.254.169.254)".to_owned()
            }
            Way::ClientSecret(ClientSecret { tenant_id, client_id, secret_file }) => {
                format!(
                    "check that {} holds a valid secret of client {client_id} in tenant {tenant_id}",
                    secret_file.display()
                )
            }
        }
    }
}

#[async_trait]
impl TokenCredential for Credential {
    async fn get_token(
        &self,
        scopes: &[&str],
        options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        let current = self.current().await?;
        let token = current.get_token(scopes, options);
        match &self.way {
            Way::Pod(pod) => pod.token(token).await,
            // The SDK tries for more than a minute, however the node says no.
            Way::Managed(_) => timeout(MANAGED, token).await.unwrap_or_else(|_| {
                Err(Error::with_message(ErrorKind::Credential, "the node's metadata service gave no token"))
            }),
            _ => token.await,
        }
    }
}

fn complete(workload: WorkloadIdentity) -> Result<Way, String> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let missing =
        |field: &str, variable: &str| format!("`workloadIdentity` has no `{field}`, and {variable} is not set");
    let WorkloadIdentity { tenant_id, client_id, token_file } = workload;
    let variables = ["AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"];
    Ok(Way::Workload {
        tenant_id: tenant_id.or_else(|| env(variables[0])).ok_or_else(|| missing("tenantId", variables[0]))?,
        client_id: client_id.or_else(|| env(variables[1])).ok_or_else(|| missing("clientId", variables[1]))?,
        token_file: token_file
            .or_else(|| env(variables[2]).map(Into::into))
            .ok_or_else(|| missing("tokenFile", variables[2]))?,
    })
}

async fn read(file: &PathBuf) -> azure_core::Result<String> {
    let text = tokio::fs::read_to_string(file).await.map(Zeroizing::new);
    let text = text.map_err(|error| {
        Error::with_error(ErrorKind::Credential, error, format!("{} cannot be read", file.display()))
    })?;
    Ok(text.trim().to_owned())
}
