//! Parameters of SSM.

use http::Request;
use serde_json::{Value, json};

use super::{body, send};
use crate::support::http::Reply;
use crate::support::store::{Fault, GET_PARAMETERS, GET_PARAMETERS_BY_PATH, Store};
use crate::support::surroundings::Surroundings;
use crate::support::unique;

async fn ask_ssm(store: &Store, action: &str, wanted: Value) -> Reply {
    let scope = "Credential=AKIATEST/20260101/us-east-1/ssm/aws4_request";
    let request = Request::post(store.url())
        .header("authorization", format!("AWS4-HMAC-SHA256 {scope}, Signature=0"))
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amz-target", format!("AmazonSSM.{action}"));
    send(request, &wanted).await
}

async fn parameters(store: &Store, names: &[&str]) -> Value {
    let reply = ask_ssm(store, GET_PARAMETERS, json!({"Names": names, "WithDecryption": true})).await;
    assert_eq!(reply.status.as_u16(), 200, "{}", reply.text());
    body(&reply)
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

/// Name, selector, version and value of each parameter of an answer.
fn fields(answer: &Value) -> Vec<(&str, &str, u64, &str)> {
    let of = |one| {
        (text(one, "Name"), text(one, "Selector"), one["Version"].as_u64().unwrap_or_default(), text(one, "Value"))
    };
    answer["Parameters"].as_array().expect("a list").iter().map(of).collect()
}

#[tokio::test]
async fn parameters_are_read_by_name_version_and_label() {
    let store = Store::start(Surroundings::get().await).await;
    let path = format!("/{}/db", unique("app"));
    let (first, last, label, none) =
        (format!("{path}:1"), format!("{path}:3"), format!("{path}:good"), format!("{path}:9"));
    for (version, kind) in [(1, "String"), (2, "StringList"), (3, "SecureString")] {
        assert_eq!(store.put_parameter(&path, &format!("value,{version}"), kind).await, version);
    }
    store.label_parameter(&path, 1, "good").await;
    store.label_parameter(&path, 2, "good").await;

    let answer = parameters(&store, &[&path, &none, &label, &last, &first, "/a/none"]).await;
    let path = path.as_str();
    let wanted = [
        (path, "", 3, "value,3"),
        (path, ":1", 1, "value,1"),
        (path, ":3", 3, "value,3"),
        (path, ":good", 2, "value,2"),
    ];
    assert_eq!(fields(&answer), wanted);
    assert_eq!(answer["InvalidParameters"], json!(["/a/none", none]));
    let arn = answer["Parameters"][1]["ARN"].as_str().expect("each parameter has one").to_owned();
    assert!(arn.ends_with(&format!(":parameter{path}")), "{arn}");
    assert_eq!(fields(&parameters(&store, &[&arn]).await), [(path, "", 3, "value,3")]);
    assert_eq!(fields(&parameters(&store, &[&format!("{arn}:1")]).await), [(path, ":1", 1, "value,1")]);

    store.delete_parameter(path).await;
    assert_eq!(parameters(&store, &[path]).await["InvalidParameters"], json!([path]));
    let many: Vec<_> = (0..11).map(|index| format!("/{index}")).collect();
    let refused = ask_ssm(&store, GET_PARAMETERS, json!({"Names": many})).await;
    assert_eq!((refused.status.as_u16(), body(&refused)["__type"].as_str()), (400, Some("ValidationException")));
}

#[tokio::test]
async fn parameters_are_read_below_a_path() {
    let store = Store::start(Surroundings::get().await).await;
    let root = format!("/{}", unique("app"));
    for name in ["a", "b", "c/d"] {
        store.put_parameter(&format!("{root}/{name}"), name, "SecureString").await;
    }
    let page = json!({"Path": root, "Recursive": true, "WithDecryption": true, "MaxResults": 2});
    let first = body(&ask_ssm(&store, GET_PARAMETERS_BY_PATH, page.clone()).await);
    let mut rest = page;
    rest["NextToken"] = first["NextToken"].clone();
    let second = body(&ask_ssm(&store, GET_PARAMETERS_BY_PATH, rest).await);
    let mut values: Vec<_> = [&first, &second].into_iter().flat_map(fields).map(|(_, _, _, value)| value).collect();
    values.sort_unstable();
    assert_eq!((values, &second["NextToken"]), (vec!["a", "b", "c/d"], &Value::Null));
    assert_eq!(store.calls(&root), 2);
}

#[tokio::test]
async fn a_fault_or_a_gate_of_one_parameter_is_met_by_each_request_that_names_it() {
    let store = Store::start(Surroundings::get().await).await;
    let (one, other) = (format!("/{}", unique("one")), format!("/{}", unique("other")));
    let ask = async |names: &[&str]| ask_ssm(&store, GET_PARAMETERS, json!({"Names": names})).await;
    store.put_parameter(&one, "1", "String").await;
    store.put_parameter(&other, "2", "String").await;
    store.fail_times(&other, 1, Fault::Throttling);
    assert_eq!(ask(&[&one]).await.status.as_u16(), 200);
    let both = [one.as_str(), &other];
    let refused = ask(&both).await;
    assert_eq!((refused.status.as_u16(), body(&refused)["__type"].as_str()), (400, Some("ThrottlingException")));
    store.fail_times(&other, 1, Fault::Unavailable);
    let down = ask(&both).await;
    assert_eq!((down.status.as_u16(), body(&down)["__type"].as_str()), (500, Some("InternalServerError")));
    let gate = store.hold(&other);
    let rest = async {
        gate.held(1).await;
        store.put_parameter(&other, "3", "String").await;
        gate.release();
    };
    let (held, ()) = futures::join!(ask(&both), rest);
    assert_eq!(body(&held)["Parameters"][1]["Value"], "2", "the value that was asked for");
    assert_eq!((store.calls(&one), store.calls(&other), store.calls(GET_PARAMETERS)), (4, 3, 4));
    assert_eq!(store.access_keys(&other), ["AKIATEST"; 3]);
}
