//! Access to Vault with the root token, past the front: what it asks is not counted.

use axum::body::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use serde_json::Value;

use super::super::http::Http;

#[derive(Debug)]
pub(super) struct Admin {
    url: String,
    token: String,
    http: Http,
}

impl Admin {
    pub(super) fn new(url: &str, token: &str) -> Self {
        Self { url: url.to_owned(), token: token.to_owned(), http: Http::new() }
    }

    /// Writes to a path, as in `sys/mounts/secret`, and returns the answer.
    pub(super) async fn post(&self, path: &str, body: Value) -> Value {
        let done = self.send(Method::POST, path, body.to_string()).await;
        done.unwrap_or_else(|error| panic!("Vault refused to write {path}: {error}"))
    }

    pub(super) async fn get(&self, path: &str) -> Value {
        self.try_get(path).await.unwrap_or_else(|error| panic!("Vault refused to read {path}: {error}"))
    }

    /// The error is Vault's own.
    pub(super) async fn try_get(&self, path: &str) -> Result<Value, String> {
        self.send(Method::GET, path, String::new()).await
    }

    pub(super) async fn delete(&self, path: &str) {
        let done = self.send(Method::DELETE, path, String::new()).await;
        done.unwrap_or_else(|error| panic!("Vault refused to delete {path}: {error}"));
    }

    async fn send(&self, method: Method, path: &str, body: String) -> Result<Value, String> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}/v1/{path}", self.url))
            .header("x-vault-token", &self.token)
            .body(Full::<Bytes>::from(body))
            .map_err(|error| format!("{path} is no path: {error}"))?;
        let reply = self.http.send(request).await?;
        let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        if reply.status.is_success() { Ok(answer) } else { Err(format!("{} {}", reply.status, answer["errors"])) }
    }
}
