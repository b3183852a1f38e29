//! Vault's HTTP API, as far as it is used. No answer is ever quoted.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, request::Builder};
use reqwest::Url;
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::super::http::{Answer, Http, HttpError};
use crate::error::BoxError;

/// The header of the agent's token.
const TOKEN: &str = "X-Vault-Token";

/// One server, in one namespace.
#[derive(Debug)]
pub(super) struct Api {
    http: Http,
    /// Ends in `/v1/`.
    base: String,
    namespace: Option<HeaderValue>,
}

/// The version of the key/value engine at a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kv {
    One,
    Two,
}

/// A secret: the JSON object as the store gave it, and its version.
pub(super) struct Read {
    pub(super) object: Vec<u8>,
    pub(super) version: String,
}

/// A token that was given out.
#[derive(Deserialize)]
pub(super) struct Granted {
    pub(super) client_token: Zeroizing<String>,
    /// Seconds; 0 is for ever.
    pub(super) lease_duration: u64,
    pub(super) renewable: bool,
}

/// Why a request did not give what was asked for. Texts are the agent's own.
#[derive(Debug)]
pub(super) enum Failed {
    NotFound,
    /// There is metadata, and no value.
    Gone(&'static str),
    Denied(&'static str),
    Login(String),
    /// There was nothing to log in with.
    NoProof {
        remedy: String,
        said: String,
    },
    /// The pod that asked is gone.
    PodGone {
        problem: String,
        said: String,
    },
    Throttled(Option<Duration>),
    Unavailable(BoxError),
    Invalid(&'static str),
}

impl From<HttpError> for Failed {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::TooLarge => Self::Invalid("it is larger than 1.5 MiB"),
            error => Self::Unavailable(error.into()),
        }
    }
}

impl Api {
    /// # Errors
    /// A namespace that cannot be sent.
    pub(super) fn new(http: Http, address: &Url, namespace: Option<&str>) -> Result<Self, String> {
        let namespace = namespace.map(HeaderValue::from_str).transpose();
        let namespace = namespace.map_err(|_| "`namespace` has a character that no header can have".to_owned())?;
        Ok(Self { http, base: format!("{}/v1/", address.as_str().trim_end_matches('/')), namespace })
    }

    /// Which version of the engine is at a mount. Whoever may read anything in it may ask that.
    pub(super) async fn kv_version(&self, token: &str, mount: &str, path: &str) -> Result<Kv, Failed> {
        #[derive(Deserialize)]
        struct Reply {
            data: Mount,
        }
        #[derive(Deserialize)]
        struct Mount {
            r#type: String,
            options: Option<Options>,
        }
        #[derive(Deserialize)]
        struct Options {
            version: Option<String>,
        }
        let answer = self.get(token, &format!("sys/internal/ui/mounts/{mount}/{path}")).await?;
        let reply: Reply = parse(&answer)?;
        match (reply.data.r#type.as_str(), reply.data.options.and_then(|options| options.version).as_deref()) {
            ("kv", Some("2")) => Ok(Kv::Two),
            ("kv" | "generic", None | Some("1")) => Ok(Kv::One),
            _ => Err(Failed::Invalid("the mount of the instance is no key/value engine")),
        }
    }

    /// Reads a secret.
    pub(super) async fn read(
        &self,
        token: &str,
        kv: Kv,
        mount: &str,
        path: &str,
        version: Option<&str>,
    ) -> Result<Read, Failed> {
        match kv {
            Kv::One => {
                let answer = self.get(token, &format!("{mount}/{path}")).await?;
                #[derive(Deserialize)]
                struct Reply<'a> {
                    #[serde(borrow)]
                    data: &'a RawValue,
                }
                let reply: Reply = parse(&answer)?;
                Ok(Read { object: reply.data.get().as_bytes().to_vec(), version: String::new() })
            }
            Kv::Two => {
                let query = version.map_or_else(String::new, |version| format!("?version={version}"));
                let answer =
                    self.send(self.request("GET", token, &format!("{mount}/data/{path}{query}")), Bytes::new()).await?;
                second(&answer)
            }
        }
    }

    /// Whose token it is.
    pub(super) async fn look_up(&self, token: &str) -> Result<String, Failed> {
        #[derive(Deserialize)]
        struct Reply {
            data: Token,
        }
        #[derive(Deserialize)]
        struct Token {
            display_name: String,
            policies: Vec<String>,
        }
        let answer = self.get(token, "auth/token/lookup-self").await?;
        let token = parse::<Reply>(&answer)?.data;
        Ok(format!("{} (policies: {})", token.display_name, token.policies.join(", ")))
    }

    /// Logs in; `proof` has the fields that the method wants.
    pub(super) async fn log_in(&self, mount: &str, proof: &[(&str, &str)]) -> Result<Granted, Failed> {
        self.granted(self.request("POST", "", &format!("auth/{mount}/login")), in_json(proof)).await
    }

    /// Makes a token live on.
    pub(super) async fn renew(&self, token: &str) -> Result<Granted, Failed> {
        self.granted(self.request("POST", token, "auth/token/renew-self"), in_json(&[])).await
    }

    /// Ends a token, as far as that goes.
    pub(super) async fn revoke(&self, token: &str) {
        let _ = self.send(self.request("POST", token, "auth/token/revoke-self"), in_json(&[])).await;
    }

    async fn granted(&self, request: Builder, body: Bytes) -> Result<Granted, Failed> {
        #[derive(Deserialize)]
        struct Reply {
            auth: Granted,
        }
        let answer = self.send(request, body).await?;
        match answer.status {
            StatusCode::OK => parse::<Reply>(&answer).map(|reply| reply.auth).map_err(|failed| match failed {
                Failed::Invalid(problem) => Failed::Unavailable(problem.into()),
                failed => failed,
            }),
            // Vault has several statuses for proof that it does not believe.
            status if status.is_client_error() => Err(Failed::Login(format!("HTTP {} at a login", status.as_u16()))),
            status => Err(unexpected(status)),
        }
    }

    async fn get(&self, token: &str, path: &str) -> Result<Answer, Failed> {
        let answer = self.send(self.request("GET", token, path), Bytes::new()).await?;
        match answer.status {
            StatusCode::OK => Ok(answer),
            StatusCode::NOT_FOUND => Err(not_found(&answer.body)),
            status => Err(unexpected(status)),
        }
    }

    fn request(&self, method: &str, token: &str, path: &str) -> Builder {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        request = request.header("X-Vault-Request", "true");
        if !token.is_empty() {
            request = request.header(TOKEN, token);
        }
        // So that no `Debug` of a request shows it.
        if let Some(token) = request.headers_mut().and_then(|headers| headers.get_mut(TOKEN)) {
            token.set_sensitive(true);
        }
        match &self.namespace {
            Some(namespace) => request.header("X-Vault-Namespace", namespace),
            None => request,
        }
    }

    /// An answer that is one: neither a refusal of the whole server nor of the token.
    async fn send(&self, request: Builder, body: Bytes) -> Result<Answer, Failed> {
        let request = request.body(body).map_err(|_| {
            // The path is checked; what is left is a token with a line break or the like.
            Failed::Login("the token has a character that no header can have".to_owned())
        })?;
        let answer = self.http.send(request).await?;
        match answer.status {
            StatusCode::FORBIDDEN => Err(Failed::Denied("HTTP 403")),
            StatusCode::TOO_MANY_REQUESTS => Err(Failed::Throttled(answer.retry_after())),
            // 472 and 473 are standbys, 412 is a replica that is behind; 3xx points to the active one.
            status if status.is_server_error() || status.is_redirection() => Err(unexpected(status)),
            status if [412, 472, 473].contains(&status.as_u16()) => Err(unexpected(status)),
            _ => Ok(answer),
        }
    }
}

/// The answer of KV version 2: for a version without a value the metadata alone, with status 404.
fn second(answer: &Answer) -> Result<Read, Failed> {
    #[derive(Deserialize)]
    struct Reply<'a> {
        #[serde(borrow)]
        data: Option<Data<'a>>,
    }
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(borrow)]
        data: Option<&'a RawValue>,
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        version: u64,
        destroyed: bool,
    }
    let data = match answer.status {
        StatusCode::OK => parse::<Reply>(answer)?.data,
        StatusCode::NOT_FOUND => serde_json::from_slice::<Reply>(&answer.body).ok().and_then(|reply| reply.data),
        status => return Err(unexpected(status)),
    };
    match data {
        None => Err(not_found(&answer.body)),
        Some(Data { data: Some(object), metadata }) => {
            Ok(Read { object: object.get().as_bytes().to_vec(), version: metadata.version.to_string() })
        }
        Some(Data { data: None, metadata: Metadata { destroyed: true, .. } }) => {
            Err(Failed::Gone("the version is destroyed"))
        }
        Some(Data { data: None, .. }) => Err(Failed::Gone("the version is deleted")),
    }
}

/// What a 404 means. Of a secret that is not there Vault has nothing to say but that; with more to say it speaks of the mount.
fn not_found(body: &[u8]) -> Failed {
    #[derive(Deserialize)]
    struct Refusal<'a> {
        #[serde(borrow)]
        errors: Vec<&'a RawValue>,
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { errors }) if errors.is_empty() => Failed::NotFound,
        Ok(_) => Failed::Invalid("Vault knows nothing at the mount of the instance"),
        Err(_) => unexpected(StatusCode::NOT_FOUND),
    }
}

/// What is said of a status that no request of ours has by its form. 400 is also that of an engine that is just being
/// mounted or upgraded, and 404 without JSON that of something in front of Vault.
fn unexpected(status: StatusCode) -> Failed {
    match status.as_u16() {
        400 | 404 | 412 | 472 | 473 | 503 => Failed::Unavailable(format!("HTTP {status}: sealed, or not ready").into()),
        401..=471 => Failed::Invalid("the store calls the request invalid"),
        _ => Failed::Unavailable(format!("HTTP {status}").into()),
    }
}

/// Something between here and Vault answers with pages of its own.
fn is_json(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'{')
}

/// An object of texts, in memory that is allocated once and zeroized in the end.
fn in_json(fields: &[(&str, &str)]) -> Bytes {
    // An escape takes at most six bytes for one; quotes, colon and comma take the rest.
    let most = |(name, value): &(&str, &str)| 6 * (name.len() + value.len()) + 6;
    let mut json = Zeroizing::new(Vec::with_capacity(2 + fields.iter().map(most).sum::<usize>()));
    let object: BTreeMap<_, _> = fields.iter().copied().collect();
    // Writing texts into memory cannot fail.
    let written = serde_json::to_writer(&mut *json, &object);
    debug_assert!(written.is_ok());
    Bytes::from_owner(json)
}

/// An error of the parser could quote a value.
fn parse<'a, T: Deserialize<'a>>(answer: &'a Answer) -> Result<T, Failed> {
    serde_json::from_slice(&answer.body).map_err(|error| match error.is_eof() || !is_json(&answer.body) {
        true => Failed::Unavailable("the answer is no JSON, or ended early".into()),
        false => Failed::Invalid("it is not what the API describes"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_an_object_of_texts_and_the_token_shows_nowhere() {
        assert_eq!(in_json(&[("role", "jasm"), ("jwt", "a\"\u{1}")]), r#"{"jwt":"a\"\u0001","role":"jasm"}"#);
        assert_eq!(in_json(&[]), "{}");
        let url = Url::parse("https://vault").expect("a URL");
        let api = Api::new(Http::new(None).expect("a client"), &url, None).expect("an API");
        let request = api.request("GET", "hunter2", "x").body(()).expect("a request");
        assert_eq!(request.headers()[TOKEN], "hunter2");
        assert!(!format!("{request:?}").contains("hunter2"));
    }
}
