//! The Azure SDK's requests go by way of the agent's own client.

use std::sync::Arc;

use async_trait::async_trait;
use azure_core::{
    error::{Error, ErrorKind},
    http::{
        AsyncRawResponse, Body, HttpClient, Request,
        headers::{HeaderName, HeaderValue, Headers},
    },
};

use super::super::http::{Http, HttpError, LOGIN_TIMEOUT};

/// The way to a login. Its refusals are passed on as status and codes alone: the SDK cannot read texts with line breaks,
/// which Azure's have, and takes a load balancer's page for wrong credentials.
#[derive(Debug)]
pub(super) struct LoginHttp(pub(super) Arc<Http>);

#[async_trait]
impl HttpClient for LoginHttp {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        #[derive(Default, serde::Deserialize)]
        struct Refused {
            #[serde(default)]
            error_codes: Vec<i32>,
        }
        let answer = async { self.0.execute_request(request).await?.try_into_raw_response().await };
        let late = |_| Err(Error::new(ErrorKind::Io, HttpError::Timeout));
        let answer = tokio::time::timeout(LOGIN_TIMEOUT, answer).await.unwrap_or_else(late)?;
        let (status, headers, body) = answer.deconstruct();
        if status.is_success() {
            return Ok(AsyncRawResponse::from_bytes(status, headers, azure_core::Bytes::from(body)));
        }
        let refused: Refused = serde_json::from_slice(&body).unwrap_or_default();
        let body = serde_json::json!({"error_codes": refused.error_codes, "error_description": "refused"});
        Ok(AsyncRawResponse::from_bytes(status, headers, body.to_string()))
    }
}

#[async_trait]
impl HttpClient for Http {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let mut sent = http::Request::builder().method(request.method().as_str()).uri(request.url().as_str());
        for (name, value) in request.headers().iter() {
            sent = sent.header(name.as_str(), value.as_str());
        }
        let Body::Bytes(body) = request.body() else {
            return Err(Error::with_message(ErrorKind::Other, "a body that is a stream"));
        };
        let sent = sent.body(body.clone()).map_err(|error| Error::new(ErrorKind::Other, error))?;
        let mut answer = self.send(sent).await.map_err(|error| match error {
            HttpError::Connect(_) => Error::new(ErrorKind::Connection, error),
            HttpError::TooLarge => Error::new(ErrorKind::DataConversion, error),
            error => Error::new(ErrorKind::Io, error),
        })?;
        let mut headers = Headers::new();
        for (name, value) in &answer.headers {
            if let Ok(value) = value.to_str() {
                headers.insert(HeaderName::from(name.as_str().to_owned()), HeaderValue::from(value.to_owned()));
            }
        }
        Ok(AsyncRawResponse::from_bytes(answer.status.as_u16().into(), headers, answer.take_body()))
    }
}
