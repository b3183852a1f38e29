//! Who may log in, and the tokens that were given out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::super::claims::claims;

/// The audience of tokens of service accounts.
const EXCHANGE: &str = "api://AzureADTokenExchange";
/// The audience of the tokens that a vault takes.
pub(super) const VAULT_RESOURCE: &str = "https://vault.azure.net";

/// One application in one tenant, and perhaps a managed identity.
#[derive(Debug)]
pub(super) struct Login {
    tenant: String,
    client: String,
    secret: String,
    token_file: Option<PathBuf>,
    /// Service accounts that have a federated credential.
    subjects: BTreeSet<String>,
    managed_identity: Option<String>,
    lifetime: Duration,
    tokens: BTreeMap<String, Token>,
}

#[derive(Debug)]
struct Token {
    client: String,
    end: Instant,
}

/// A token, and for how long it holds.
#[derive(Debug)]
pub(super) struct Issued {
    pub(super) token: String,
    pub(super) client: String,
    pub(super) lifetime: Duration,
}

/// Why there is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    UnknownTenant,
    UnknownClient,
    WrongSecret,
    WrongAssertion,
    WrongScope,
    WrongGrant,
}

/// The fields of a form or a query.
#[derive(Debug)]
pub(super) struct TokenRequest {
    fields: BTreeMap<String, String>,
}

impl TokenRequest {
    /// From a query or a form, which are written alike.
    pub(super) fn parse(text: &[u8]) -> Self {
        Self { fields: form_urlencoded::parse(text).into_owned().collect() }
    }

    pub(super) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

/// How a client proves itself with an assertion.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// What tokens of a real tenant live for.
const LIFETIME: Duration = Duration::from_secs(3599);

impl Login {
    pub(super) fn new(tenant: &str, client: &str, secret: &str) -> Self {
        Self {
            tenant: tenant.to_owned(),
            client: client.to_owned(),
            secret: secret.to_owned(),
            token_file: None,
            subjects: BTreeSet::new(),
            managed_identity: None,
            lifetime: LIFETIME,
            tokens: BTreeMap::new(),
        }
    }

    pub(super) fn set_secret(&mut self, secret: &str) {
        secret.clone_into(&mut self.secret);
    }

    pub(super) fn trust(&mut self, token_file: PathBuf) {
        self.token_file = Some(token_file);
    }

    pub(super) fn trust_subject(&mut self, subject: &str) {
        self.subjects.insert(subject.to_owned());
    }

    pub(super) fn set_managed_identity(&mut self, client: &str) {
        self.managed_identity = Some(client.to_owned());
    }

    pub(super) fn set_lifetime(&mut self, lifetime: Duration) {
        self.lifetime = lifetime;
    }

    pub(super) fn expire_all(&mut self) {
        let now = Instant::now();
        self.tokens.values_mut().for_each(|token| token.end = now);
    }

    /// The client that a token which still holds was made for. The error is what a vault says of any other.
    pub(super) fn client_of(&self, token: &str) -> Result<&str, &'static str> {
        match self.tokens.get(token) {
            Some(token) if Instant::now() < token.end => Ok(&token.client),
            Some(_) => Err("[TokenExpired] Error validating token: 'S2S12086'."),
            None => Err("AKV10046: Unable to resolve the key used for signature validation."),
        }
    }

    /// A token for an application, by its secret or by an assertion.
    pub(super) fn token(&mut self, tenant: &str, request: &TokenRequest) -> Result<Issued, Refused> {
        if tenant != self.tenant {
            return Err(Refused::UnknownTenant);
        }
        if request.field("grant_type") != "client_credentials" {
            return Err(Refused::WrongGrant);
        }
        if request.field("client_id") != self.client {
            return Err(Refused::UnknownClient);
        }
        self.prove(request)?;
        if request.field("scope") != format!("{VAULT_RESOURCE}/.default") {
            return Err(Refused::WrongScope);
        }
        Ok(self.issue(self.client.clone()))
    }

    fn prove(&self, request: &TokenRequest) -> Result<(), Refused> {
        if request.field("client_assertion_type") != ASSERTION_TYPE {
            let right = !self.secret.is_empty() && request.field("client_secret") == self.secret;
            return if right { Ok(()) } else { Err(Refused::WrongSecret) };
        }
        let is_of_a_pod = claims(request.field("client_assertion")).is_some_and(|claims| {
            self.subjects.contains(&claims.subject) && claims.audience == EXCHANGE && claims.is_of_a_pod
        });
        if is_of_a_pod {
            return Ok(());
        }
        let wanted = self.token_file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
        match wanted {
            Some(wanted) if wanted.trim() == request.field("client_assertion").trim() => Ok(()),
            _ => Err(Refused::WrongAssertion),
        }
    }

    /// A token for the machine's identity, which a request may name by its client id; nothing where it has none.
    pub(super) fn managed_identity(&mut self, request: &TokenRequest) -> Option<Issued> {
        let client = self.managed_identity.clone()?;
        let right = ["", &client].contains(&request.field("client_id")) && request.field("resource") == VAULT_RESOURCE;
        right.then(|| self.issue(client))
    }

    fn issue(&mut self, client: String) -> Issued {
        let token: String = std::iter::repeat_with(fastrand::alphanumeric).take(40).collect();
        let end = Instant::now() + self.lifetime;
        self.tokens.insert(token.clone(), Token { client: client.clone(), end });
        Issued { token, client, lifetime: self.lifetime }
    }
}
