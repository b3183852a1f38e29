//! What a request to the double is about.

use http::Method;
use http::request::Parts;

use super::super::front::header;
use super::login::TokenRequest;
use super::{CHALLENGE, GET, IDENTITY_HOST, LOGIN_HOST, MANAGED_IDENTITY, TOKEN};

/// A request as far as the double reads it, by the host it was sent to.
#[derive(Debug)]
pub(super) enum About {
    /// A secret of a vault.
    Secret {
        host: String,
        name: String,
        version: Option<String>,
        /// Among those that were deleted and can be recovered.
        deleted: bool,
        /// Whether the request says which API it speaks.
        api_version: bool,
        /// The bearer token.
        token: Option<String>,
    },
    /// A token of the login.
    Token { tenant: String, request: TokenRequest },
    /// A token for the machine's identity. `metadata`: whether it has the header that a redirect cannot make.
    Identity { metadata: bool, request: TokenRequest },
    /// Nothing that the double knows.
    Unknown { what: String },
}

impl About {
    pub(super) fn read(head: &Parts, body: &[u8]) -> Self {
        // A request through a tunnel has its host in a header, a plain one to a proxy in its first line.
        let host = head.uri.host().unwrap_or_else(|| header(&head.headers, "host"));
        let host = host.split(':').next().unwrap_or_default();
        let path: Vec<_> = head.uri.path().split('/').skip(1).collect();
        let query = || TokenRequest::parse(head.uri.query().unwrap_or_default().as_bytes());
        let unknown = || Self::Unknown { what: format!("{} {host}{}", head.method, head.uri.path()) };
        match (host, &head.method, path.as_slice()) {
            (LOGIN_HOST, &Method::POST, &[tenant, "oauth2", "v2.0", "token"]) => {
                Self::Token { tenant: tenant.to_owned(), request: TokenRequest::parse(body) }
            }
            // Under whatever name: an agent may be led here by its environment.
            (_, &Method::GET, ["metadata", "identity", "oauth2", "token"]) => {
                Self::Identity { metadata: header(&head.headers, "metadata") == "true", request: query() }
            }
            (LOGIN_HOST | IDENTITY_HOST, ..) => unknown(),
            (host, &Method::GET, &[kind @ ("secrets" | "deletedsecrets"), name, ref version @ ..])
                if version.len() < 2 =>
            {
                Self::Secret {
                    host: host.to_owned(),
                    name: name.to_owned(),
                    deleted: kind == "deletedsecrets",
                    version: version.first().filter(|id| !id.is_empty()).map(ToString::to_string),
                    api_version: !query().field("api-version").is_empty(),
                    token: header(&head.headers, "authorization").strip_prefix("Bearer ").map(ToOwned::to_owned),
                }
            }
            _ => unknown(),
        }
    }

    /// Under what it is counted.
    pub(super) fn action(&self) -> String {
        match self {
            Self::Secret { token: None, .. } => CHALLENGE.to_owned(),
            Self::Secret { .. } => GET.to_owned(),
            Self::Token { .. } => TOKEN.to_owned(),
            Self::Identity { .. } => MANAGED_IDENTITY.to_owned(),
            Self::Unknown { what } => what.clone(),
        }
    }

    /// The secret, where the request can be about one: without a token, a vault does not even look.
    pub(super) fn secret(&self) -> Option<&str> {
        match self {
            Self::Secret { name, token: Some(_), .. } => Some(name),
            _ => None,
        }
    }
}
