//! Parameters of SSM, which the emulator keeps beside the secrets.
//!
//! Its answer to `GetParameters` differs from AWS's where a name has a selector, as in `/a/b:3` or `/a/b:label`: it
//! leaves out the field `Selector`, and its order is random, so that nobody could tell two versions of one parameter
//! apart but by their number. The front asks it for each name alone and answers in AWS's form: the bare `Name`, the
//! `Selector` with its colon, in the order of the names. What stays different: a `SecureString` that is read without
//! `WithDecryption` is its value behind `kms:KEY:`; a filter by label in `GetParametersByPath` finds the newest version
//! and not the labelled one; and a full page ends with a `NextToken` also where nothing follows.

use axum::body::Bytes;
use axum::response::Response;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Collected, Full};
use serde_json::{Value, json};

use super::super::front::{Asked, Upstream, passed_on};
use super::{Store, aws, call};

/// The action that reads parameters by their names.
pub(crate) const GET_PARAMETERS: &str = "GetParameters";
/// The action that reads all parameters below a path.
pub(crate) const GET_PARAMETERS_BY_PATH: &str = "GetParametersByPath";
/// The most names that one request may have.
const MOST_NAMES: usize = 10;

impl Store {
    /// Sets a parameter, as a new version where it exists, and returns the version. `kind`: `String`, `StringList` or
    /// `SecureString`. A path has the form `/a/b`.
    pub(crate) async fn put_parameter(&self, path: &str, value: &str, kind: &str) -> u64 {
        let body = json!({"Name": path, "Value": value, "Type": kind, "Overwrite": true});
        let done = self.change_parameter("PutParameter", path, &body).await;
        done["Version"].as_u64().expect("a version is a number")
    }

    /// Gives a version of a parameter a label, and takes it from the version that had it.
    pub(crate) async fn label_parameter(&self, path: &str, version: u64, label: &str) {
        let body = json!({"Name": path, "ParameterVersion": version, "Labels": [label]});
        let done = self.change_parameter("LabelParameterVersion", path, &body).await;
        assert_eq!(done["InvalidLabels"], json!([]), "the emulator did not take the label {label} of {path}");
    }

    /// Removes a parameter with all its versions.
    pub(crate) async fn delete_parameter(&self, path: &str) {
        self.change_parameter("DeleteParameter", path, &json!({"Name": path})).await;
    }

    async fn change_parameter(&self, action: &str, path: &str, body: &Value) -> Value {
        let done = call(self.emulator(), &format!("AmazonSSM.{action}"), body).await;
        done.unwrap_or_else(|code| panic!("the emulator refused {action} of {path}: {code}"))
    }
}

/// AWS's answer to a request for parameters by name.
pub(super) async fn by_name(emulator: &Upstream, asked: &Asked, request: Request<Full<Bytes>>) -> Response {
    if asked.subjects.len() > MOST_NAMES {
        return emulator.ask(request).await.map_or_else(|answer| answer, passed_on);
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
    let mut wanted: Value = serde_json::from_slice(&body).expect("a request with names is JSON");
    let mut names = asked.subjects.clone();
    names.sort();
    let (mut found, mut invalid) = (Vec::new(), Vec::new());
    for name in names {
        wanted["Names"] = json!([name]);
        let reply = match emulator.ask(Request::from_parts(head.clone(), Full::from(wanted.to_string()))).await {
            Ok(reply) if reply.status == StatusCode::OK => reply,
            Ok(reply) => return passed_on(reply),
            Err(answer) => return answer,
        };
        let mut answer: Value = serde_json::from_slice(&reply.body).expect("the emulator answers in JSON");
        match answer["Parameters"].get_mut(0).map(Value::take) {
            Some(parameter) => found.push(with_selector(parameter, &name)),
            None => invalid.push(name),
        }
    }
    aws::json_answer(StatusCode::OK, &json!({"Parameters": found, "InvalidParameters": invalid}))
}

/// An ARN has colons of its own, before the path.
fn with_selector(mut parameter: Value, name: &str) -> Value {
    let path = name.find('/').map_or(name, |at| &name[at..]);
    if let Some(at) = path.find(':') {
        parameter["Selector"] = json!(path[at..]);
    }
    parameter
}
