//! What a token of a service account claims.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// The claims that doubles of stores look at. A test has a token reviewed by the API server that gave it.
#[derive(Debug)]
pub(crate) struct Claims {
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub(crate) subject: String,
    /// All of them, one behind the other.
    pub(crate) audience: String,
    /// How long it holds from its making.
    pub(crate) seconds: i64,
    pub(crate) is_of_a_pod: bool,
}

/// Nothing where it is no token.
pub(crate) fn claims(token: &str) -> Option<Claims> {
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?).ok()?;
    Some(Claims {
        subject: claims["sub"].as_str()?.to_owned(),
        audience: claims["aud"].as_array()?.iter().map(|one| one.as_str().unwrap_or_default()).collect(),
        seconds: claims["exp"].as_i64()? - claims["iat"].as_i64()?,
        is_of_a_pod: claims["kubernetes.io"]["pod"]["uid"].is_string(),
    })
}
