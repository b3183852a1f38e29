//! A *double* of Azure Key Vault, of the login that gives its tokens, and of the metadata of a machine in Azure. No
//! emulator can be had, so this is written from the REST reference, from answers that people quoted, and from what the
//! SDK sends and understands. It shows that the agent and this reading of the API fit; the real one is another test.
//!
//! Agents speak to it under the real host names, through a proxy and an authority that their environment names
//! ([`KeyVault::environment`]). Its keys are a secret's name as the agent sends it (a read with a token, of any
//! version), [`GET`] (all of these), [`CHALLENGE`], [`TOKEN`] and [`MANAGED_IDENTITY`].
//!
//! What it does not have: other operations than the read of a secret, more than one vault, signed tokens, rights of
//! single clients (a denial is a fault), the times between which a secret is meant to be used.

mod answers;
mod asked;
mod login;
mod protocol;
mod vault;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use super::connect_proxy::{ConnectProxy, Routes};
use super::front::Front;
use super::own_thread::Server;
use super::tls::Authority;
use super::unique;
use login::Login;
use protocol::Azure;

/// The action that reads a secret with a token, good or bad.
pub(crate) const GET: &str = "GetSecret";
/// The action that asks for a secret without a token: the answer says where to get one.
pub(crate) const CHALLENGE: &str = "Challenge";
/// The action that gets a token from the login.
pub(crate) const TOKEN: &str = "Token";
/// The action that gets a token from the metadata of the machine.
pub(crate) const MANAGED_IDENTITY: &str = "ManagedIdentity";

/// The tenant.
pub(crate) const TENANT: &str = "5b6f4a2e-0000-4000-8000-00000000000a";
/// The application in it.
pub(crate) const CLIENT: &str = "c11e47aa-0000-4000-8000-00000000000b";
/// That application's secret at first.
pub(crate) const CLIENT_SECRET: &str = "a~client.secret_of-the+double/=&1";

/// Where tokens come from.
pub(crate) const LOGIN_HOST: &str = "login.microsoftonline.com";
/// Where a machine asks for its own identity, without TLS.
pub(crate) const IDENTITY_HOST: &str = "169.254.169.254";
/// What the names of vaults end in.
const VAULT_DOMAIN: &str = "vault.azure.net";

/// A vault of one test. It ends when this is dropped, together with all requests that it still holds.
#[derive(Debug)]
pub(crate) struct KeyVault {
    proxy: ConnectProxy,
    front: Front<Azure>,
    /// The way in for requests without TLS.
    plain: Server,
    authority: Authority,
}

impl Deref for KeyVault {
    type Target = Front<Azure>;

    fn deref(&self) -> &Front<Azure> {
        &self.front
    }
}

impl KeyVault {
    /// A vault with a name that no other has, and nothing in it.
    pub(crate) fn start() -> Self {
        let authority = Authority::new(&[&format!("*.{VAULT_DOMAIN}"), LOGIN_HOST, "127.0.0.1", "localhost"]);
        let azure = Azure::new(unique("jasm"), Login::new(TENANT, CLIENT, CLIENT_SECRET));
        let (front, plain) = Front::start_tls(azure, authority.server());
        let proxy = ConnectProxy::start(Routes {
            tunnels: BTreeMap::from([(Routes::REST.to_owned(), front.address())]),
            plain: BTreeMap::from([(IDENTITY_HOST.to_owned(), plain.address())]),
        });
        Self { proxy, front, plain, authority }
    }

    /// `https://NAME.vault.azure.net`.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.host())
    }

    /// `NAME.vault.azure.net`.
    pub(crate) fn host(&self) -> String {
        self.protocol().host()
    }

    /// What leads a program to the double: variables of its environment. Credentials are not among them.
    pub(crate) fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("HTTPS_PROXY", self.proxy.url().to_owned()),
            // So that a request for the machine's identity ends here too, and never on the machine that tests.
            ("HTTP_PROXY", self.proxy.url().to_owned()),
            ("NO_PROXY", "127.0.0.1,localhost".to_owned()),
            ("SSL_CERT_FILE", self.authority.file().display().to_string()),
        ]
    }

    /// What makes the SDK ask for a machine's identity here, as it does where Azure's App Service sets these.
    pub(crate) fn identity_endpoint(&self) -> [(&'static str, String); 2] {
        let address = self.plain.address();
        let endpoint = format!("http://{address}/metadata/identity/oauth2/token");
        [("IDENTITY_ENDPOINT", endpoint), ("IDENTITY_HEADER", "made-up".to_owned())]
    }

    /// The proxy that all requests come through.
    pub(crate) fn proxy(&self) -> &ConnectProxy {
        &self.proxy
    }

    /// The authority behind the double's certificate.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    // ---- values ----

    /// Sets a secret, as a new version where it exists, and returns the version's id. A secret that was deleted begins
    /// anew, as after a purge.
    pub(crate) fn put(&self, name: &str, value: &str) -> String {
        self.protocol().state().vault.put(name, value)
    }

    /// Disables the newest version of a secret. Older ones stay as they are, and do not step in.
    pub(crate) fn disable(&self, name: &str) {
        self.protocol().state().vault.disable(name);
    }

    /// Deletes a secret with all its versions.
    pub(crate) fn delete(&self, name: &str) {
        self.protocol().state().vault.delete(name);
    }

    /// Ends a secret that was deleted, for good.
    pub(crate) fn purge(&self, name: &str) {
        self.protocol().state().vault.purge(name);
    }

    /// Takes back a deletion.
    pub(crate) fn recover(&self, name: &str) {
        self.protocol().state().vault.recover(name);
    }

    // ---- who may read ----

    /// From now on a denial is worded as that of an access policy, and not as that of the roles.
    pub(crate) fn use_access_policies(&self) {
        self.protocol().state().access_policies = true;
    }

    /// From now on the login's errors have descriptions of several lines, as they had for years. The SDK (1.0) cannot
    /// read these: it says that it expected "a borrowed string", and neither status nor code.
    pub(crate) fn use_long_login_errors(&self) {
        self.protocol().state().login_text_end = "\r\n";
    }

    /// Replaces the application's secret: the old one is wrong from now on, tokens that were given out still hold.
    pub(crate) fn set_secret(&self, secret: &str) {
        self.protocol().state().login.set_secret(secret);
    }

    /// From now on the application may log in with an assertion too: with what this file holds at that time.
    pub(crate) fn trust(&self, token_file: &Path) {
        self.protocol().state().login.trust(token_file.to_owned());
    }

    /// From now on the application may log in with tokens of this service account.
    pub(crate) fn trust_subject(&self, subject: &str) {
        self.protocol().state().login.trust_subject(subject);
    }

    /// From now on the machine has an identity, under this client id.
    pub(crate) fn serve_managed_identity(&self, client: &str) {
        self.protocol().state().login.set_managed_identity(client);
    }

    /// Tokens that are given out from now on hold for this time, in whole seconds. The SDK asks for a new one five
    /// minutes before the end, so at each read where tokens hold no longer than that.
    pub(crate) fn set_token_lifetime(&self, lifetime: Duration) {
        self.protocol().state().login.set_lifetime(lifetime);
    }

    /// Tokens that were given out hold no more, whatever they say of themselves.
    pub(crate) fn expire_tokens(&self) {
        self.protocol().state().login.expire_all();
    }
}
