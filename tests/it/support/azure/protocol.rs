//! The right answers of the double, and the words of its refusals.

use std::sync::{Mutex, MutexGuard};

use axum::body::Bytes;
use axum::response::Response;
use http::request::Parts;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};

use super::super::front::{Asked, Protocol, Refusal, answer};
use super::asked::About;
use super::login::Login;
use super::vault::{Vault, is_name};
use super::{MANAGED_IDENTITY, TOKEN, VAULT_DOMAIN, answers};

/// What answers in Azure's place.
#[derive(Debug)]
pub(crate) struct Azure {
    /// The vault's name, the first part of its host's.
    pub(super) name: String,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) vault: Vault,
    pub(super) login: Login,
    /// The vault asks its access policies and not the roles.
    pub(super) access_policies: bool,
    /// What ends the text of the login's errors.
    pub(super) login_text_end: &'static str,
}

impl Protocol for Azure {
    fn read(&self, head: &Parts, body: &[u8]) -> Asked {
        let about = About::read(head, body);
        let credential = match &about {
            About::Secret { token, .. } => {
                let state = self.state();
                token.as_ref().and_then(|token| state.login.client_of(token).ok()).unwrap_or_default().to_owned()
            }
            About::Token { request, .. } | About::Identity { request, .. } => request.field("client_id").to_owned(),
            About::Unknown { .. } => String::new(),
        };
        let subjects = about.secret().map(ToOwned::to_owned).into_iter().collect();
        Asked { action: about.action(), subjects, credential, headers: head.headers.clone() }
    }

    async fn right(&self, _: &Asked, request: Request<Full<Bytes>>) -> Response {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap_or_else(|never| match never {}).to_bytes();
        self.answer(About::read(&head, &body))
    }

    fn refusal(&self, asked: &Asked, refusal: Refusal) -> Response {
        match asked.action.as_str() {
            TOKEN => answers::login_refusal(refusal, self.state().login_text_end),
            MANAGED_IDENTITY => answers::identity_refusal(refusal),
            _ => self.vault_refusal(asked, refusal),
        }
    }
}

impl Azure {
    pub(super) fn new(name: String, login: Login) -> Self {
        let vault = Vault::default();
        Self { name, state: Mutex::new(State { vault, login, access_policies: false, login_text_end: " " }) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the double's state")
    }

    /// The vault's host.
    pub(super) fn host(&self) -> String {
        format!("{}.{VAULT_DOMAIN}", self.name)
    }

    fn answer(&self, about: About) -> Response {
        match about {
            About::Secret { host, .. } if host != self.host() => {
                answer(StatusCode::MISDIRECTED_REQUEST, "text/plain", "the double has no such vault")
            }
            About::Secret { name, version, deleted, api_version, token, .. } => {
                self.secret((&name, version.as_deref(), deleted), api_version, token.as_deref())
            }
            About::Token { tenant, request } => {
                let mut state = self.state();
                match state.login.token(&tenant, &request) {
                    Ok(issued) => answers::token(&issued),
                    Err(refused) => answers::no_token(refused, request.field("client_id"), state.login_text_end),
                }
            }
            About::Identity { metadata: false, .. } => answers::no_identity("Required metadata header not specified"),
            About::Identity { request, .. } => match self.state().login.managed_identity(&request) {
                Some(issued) => answers::identity_token(&issued),
                None => answers::no_identity("Identity not found"),
            },
            About::Unknown { what } => answer(StatusCode::NOT_FOUND, "text/plain", format!("the double has no {what}")),
        }
    }

    fn secret(
        &self,
        (name, version, deleted): (&str, Option<&str>, bool),
        api_version: bool,
        token: Option<&str>,
    ) -> Response {
        if !api_version {
            return answers::bad_parameter("Missing api-version parameter");
        }
        let Some(token) = token else {
            return answers::unauthorized("AKV10000: Request is missing a Bearer or PoP token.");
        };
        let state = self.state();
        if let Err(text) = state.login.client_of(token) {
            return answers::unauthorized(text);
        }
        if !is_name(name) {
            return answers::bad_parameter(&format!("The request URI contains an invalid name: {name}"));
        }
        if deleted {
            return match state.vault.is_recoverable(name) {
                true => answers::deleted(&self.host(), name),
                false => answers::not_found(name, None),
            };
        }
        match state.vault.get(name, version) {
            None => answers::not_found(name, version),
            Some(version) if !version.enabled => answers::disabled(),
            Some(version) => answers::secret(&self.host(), &version),
        }
    }

    fn vault_refusal(&self, asked: &Asked, refusal: Refusal) -> Response {
        let name = asked.subjects.first().map_or("", String::as_str);
        match refusal {
            Refusal::AccessDenied if self.state().access_policies => {
                answers::denied_by_policy(&self.name, &asked.credential)
            }
            Refusal::AccessDenied => answers::denied_by_role(&self.name, &asked.credential, name),
            Refusal::Throttling => answers::throttled(),
            Refusal::PendingDeletion => answers::not_found(name, None),
            Refusal::Unavailable => answers::unavailable(),
        }
    }
}
