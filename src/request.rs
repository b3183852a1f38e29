//! `RawRequest` -> `SecretRequest`: every value checked once, into a type. Pure.

use std::{collections::BTreeMap, fmt, fmt::Write as _};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{
    annotations::{self, AnnotationError, RawKeys, RawRequest, did_you_mean, invalid, quoted},
    names::{MAX_DATA_KEY_BYTES, MAX_NAME_BYTES, is_data_key, is_dns_subdomain},
    provider::{Catalogue, ProviderName},
};

/// The longest path, name or ARN that is sent to a store, in bytes (Secrets Manager's own limit for names).
pub const MAX_PATH_BYTES: usize = 512;
/// The longest key of a source that can be chosen, in bytes.
const MAX_SOURCE_KEY_BYTES: usize = 1024;
/// The longest source id, in bytes: what an annotation that a probe can tell holds (`policy-ownership.yaml`).
const MAX_SOURCE_ID_BYTES: usize = 1024;
/// The data key of a value that is not taken apart, where the annotation names none.
const DEFAULT_DATA_KEY: &str = "value";

/// What a pod asks for: one external secret, and the Kubernetes Secret to put it in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretRequest {
    /// What to fetch.
    pub remote: RemoteRef,
    /// Where to put it (in the pod's own namespace).
    pub secret_name: SecretName,
    /// How the value becomes data.
    pub template: Template,
}

/// One version of one secret in one store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RemoteRef {
    /// The instance that is asked.
    pub provider: ProviderName,
    /// Exactly the string that policy sees and the store gets.
    pub path: String,
    /// The store's own term for a version; `None` is the current one.
    pub version: Option<String>,
}

/// How a value becomes the data of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Template {
    /// Data key to source key; `None` takes all keys. Never empty.
    pub keys: Option<BTreeMap<String, String>>,
    /// How the value is read.
    pub format: Format,
    /// The one data key of a value that is not taken apart.
    pub data_key: String,
    /// The type of the Secret.
    pub secret_type: SecretType,
}

impl Default for Template {
    /// What an annotation means that names none of these fields.
    fn default() -> Self {
        Self {
            keys: None,
            format: Format::default(),
            data_key: DEFAULT_DATA_KEY.to_owned(),
            secret_type: SecretType::default(),
        }
    }
}

/// How a value is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A JSON object is taken apart, anything else becomes one key.
    #[default]
    Auto,
    /// A JSON object, or an error.
    Json,
    /// One key, byte for byte.
    Raw,
}

/// The types of Secrets that are written: those that make the API server or a controller act are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
pub enum SecretType {
    /// Any keys.
    #[default]
    Opaque,
    /// `tls.crt` and `tls.key`.
    #[serde(rename = "kubernetes.io/tls")]
    Tls,
    /// `.dockerconfigjson`, for `imagePullSecrets`.
    #[serde(rename = "kubernetes.io/dockerconfigjson")]
    DockerConfigJson,
    /// `username`, `password` or both.
    #[serde(rename = "kubernetes.io/basic-auth")]
    BasicAuth,
    /// `ssh-privatekey`.
    #[serde(rename = "kubernetes.io/ssh-auth")]
    SshAuth,
}

impl SecretType {
    /// As the API server writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opaque => "Opaque",
            Self::Tls => "kubernetes.io/tls",
            Self::DockerConfigJson => "kubernetes.io/dockerconfigjson",
            Self::BasicAuth => "kubernetes.io/basic-auth",
            Self::SshAuth => "kubernetes.io/ssh-auth",
        }
    }
}

/// A checked name of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretName(String);

impl SecretName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
impl SecretName {
    /// For tables in tests.
    pub fn for_test(name: &str) -> Self {
        Self(name.to_owned())
    }
}

#[cfg(test)]
impl SecretRequest {
    /// A request with everything at its default, for tables in tests.
    pub fn for_test(provider: &str, path: &str, secret_name: &str) -> Self {
        let remote = RemoteRef { provider: ProviderName::for_test(provider), path: path.to_owned(), version: None };
        Self { remote, secret_name: SecretName::for_test(secret_name), template: Template::default() }
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SecretRequest {
    /// The canonical name of what the Secret is made from, as it stands in the annotation `jasm.codnod.io/source`:
    /// `v1:PROVIDER:PATH?version=..&keys=KEY:SOURCE,..&format=..&dataKey=..`, at most 1,024 bytes.
    ///
    /// Fields at their default are left out, so that ids written by older releases stay equal: the golden file
    /// `tests/golden/source_ids.txt` may only grow. Two requests with equal ids get equal data from equal values.
    pub fn source_id(&self) -> String {
        let RemoteRef { provider, path, version } = &self.remote;
        let Template { keys, format, data_key, secret_type: _ } = &self.template;
        let mut fields = Vec::new();
        fields.extend(version.as_ref().map(|version| format!("version={}", escaped(version))));
        fields.extend(keys.as_ref().map(|keys| {
            let pairs = keys.iter().map(|(key, source)| match key == source {
                true => escaped(key),
                false => format!("{}:{}", escaped(key), escaped(source)),
            });
            format!("keys={}", pairs.collect::<Vec<_>>().join(","))
        }));
        match format {
            Format::Auto => {}
            Format::Json => fields.push("format=json".to_owned()),
            Format::Raw => fields.push("format=raw".to_owned()),
        }
        if data_key != DEFAULT_DATA_KEY {
            fields.push(format!("dataKey={}", escaped(data_key)));
        }
        let source = format!("v1:{provider}:{path}");
        match fields.join("&") {
            none if none.is_empty() => source,
            fields if source.len() + 1 + fields.len() <= MAX_SOURCE_ID_BYTES => format!("{source}?{fields}"),
            fields => format!("{source}?sha256={:x}", Sha256::digest(&fields)),
        }
    }
}

/// Everything that could be taken for a delimiter of the source id, or is not printable, as `%XX`.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._/+@!".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing into a text cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// Why a request cannot be served as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RequestError {
    /// The annotation is malformed.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// The annotation names a provider instance that this agent does not have.
    #[error("provider {} is not configured on this agent{}; configured: {known}; an operator can add it to providers.yaml", quoted(.written), .near)]
    ProviderUnsupported {
        /// What the annotation says.
        written: String,
        /// `; did you mean ...`, or nothing.
        near: String,
        /// The names that would work.
        known: String,
    },
}

/// Parses and checks an annotation. Each entry of a list stands for itself: one that cannot be served is no reason not
/// to serve the others.
///
/// # Errors
/// The outer one where the text cannot be read; an inner one for an entry in which something is wrong. Nothing is
/// filled in by guess.
pub fn parse(text: &str, catalogue: &Catalogue) -> Result<Vec<Result<SecretRequest, RequestError>>, AnnotationError> {
    let entries = annotations::parse(text)?;
    let several = entries.len() > 1;
    let mut checked: Vec<Result<SecretRequest, RequestError>> = Vec::with_capacity(entries.len());
    for (index, raw) in entries.into_iter().enumerate() {
        let request = check(raw, catalogue).and_then(|request| {
            let earlier = |other: &Result<SecretRequest, RequestError>| {
                other.as_ref().is_ok_and(|other| other.secret_name == request.secret_name)
            };
            match checked.iter().position(earlier) {
                None => Ok(request),
                Some(other) => Err(invalid(format!(
                    "secretName {} is that of entry {} already; give each source a name of its own",
                    quoted(request.secret_name.as_str()),
                    other + 1
                ))
                .into()),
            }
        });
        checked.push(request.map_err(|error| match error {
            RequestError::Annotation(error) if several => {
                invalid(format!("entry {}: {}", index + 1, error.problem)).into()
            }
            error => error,
        }));
    }
    Ok(checked)
}

fn check(raw: RawRequest, catalogue: &Catalogue) -> Result<SecretRequest, RequestError> {
    let Some((provider, kind)) = catalogue.get(&raw.provider) else {
        return Err(RequestError::ProviderUnsupported {
            near: did_you_mean(&raw.provider, catalogue.names()),
            known: if catalogue.is_empty() {
                "none".to_owned()
            } else {
                catalogue.names().collect::<Vec<_>>().join(", ")
            },
            written: raw.provider,
        });
    };
    let path = kind.check_path(&raw.path).map_err(|problem| invalid(format!("field `path` {problem}")))?;
    if let Some(version) = &raw.version {
        kind.check_version(&path, version).map_err(|problem| invalid(format!("field `version` {problem}")))?;
    }
    let provider = provider.clone();
    let secret_name = check_secret_name(&raw.secret_name)?;
    let template = check_template(&raw)?;
    Ok(SecretRequest { remote: RemoteRef { provider, path, version: raw.version }, secret_name, template })
}

fn check_secret_name(name: &str) -> Result<SecretName, AnnotationError> {
    if is_dns_subdomain(name) {
        return Ok(SecretName(name.to_owned()));
    }
    Err(invalid(format!(
        "field `secretName` {} is not a Secret's name: use lower case letters, digits, `-` and `.`, \
         at most {MAX_NAME_BYTES} characters, beginning and ending with a letter or digit",
        quoted(name)
    )))
}

fn check_template(raw: &RawRequest) -> Result<Template, AnnotationError> {
    let clash = |one: &str, other: &str| {
        Err(invalid(format!("fields `{one}` and `{other}` do not go together; take one of them out")))
    };
    match (raw.format, &raw.keys, &raw.data_key) {
        (Format::Raw, Some(_), _) => return clash("keys", "format: raw"),
        (Format::Json, _, Some(_)) => return clash("dataKey", "format: json"),
        (_, Some(_), Some(_)) => return clash("keys", "dataKey"),
        _ => {}
    }
    if let Some(key) = &raw.data_key {
        check_data_key("dataKey", key)?;
    }
    Ok(Template {
        keys: raw.keys.as_ref().map(check_keys).transpose()?,
        format: raw.format,
        data_key: raw.data_key.clone().unwrap_or_else(|| DEFAULT_DATA_KEY.to_owned()),
        secret_type: raw.r#type,
    })
}

fn check_keys(raw: &RawKeys) -> Result<BTreeMap<String, String>, AnnotationError> {
    let mut keys = BTreeMap::new();
    for (key, source) in &raw.0 {
        check_data_key("keys", key)?;
        if source.is_empty() || source.len() > MAX_SOURCE_KEY_BYTES || source.chars().any(char::is_control) {
            return Err(invalid(format!(
                "field `keys`: the source key of {} must have 1 to {MAX_SOURCE_KEY_BYTES} characters, no control characters",
                quoted(key)
            )));
        }
        if keys.insert(key.clone(), source.clone()).is_some() {
            return Err(invalid(format!("field `keys` has {} twice; keep one", quoted(key))));
        }
    }
    if keys.is_empty() {
        return Err(invalid("field `keys` chooses nothing; name keys, or leave it out to take all"));
    }
    Ok(keys)
}

fn check_data_key(field: &str, key: &str) -> Result<(), AnnotationError> {
    if is_data_key(key) {
        return Ok(());
    }
    let map = if field == "keys" && key.starts_with('/') { "; write `KEY: /pointer`" } else { "" };
    Err(invalid(format!(
        "field `{field}`: {} cannot be a Secret's data key: use letters, digits, `-`, `_` and `.`, at most {MAX_DATA_KEY_BYTES}{map}",
        quoted(key)
    )))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::provider::Kind;

    fn catalogue() -> Catalogue {
        Catalogue::new([(ProviderName::for_test("aws-secretsmanager"), Kind::for_test())])
    }

    /// A request with these fields changed or added.
    fn asking(changes: Value) -> Value {
        let mut request = json!({"provider": "aws-secretsmanager", "path": "/prod/codnod/config", "secretName": "app"});
        for (field, value) in changes.as_object().expect("fields") {
            request[field] = value.clone();
        }
        request
    }

    fn parse_one(changes: Value) -> Result<SecretRequest, RequestError> {
        parse(&asking(changes).to_string(), &catalogue()).expect("an annotation").remove(0)
    }

    #[test]
    fn a_request_names_provider_path_and_secret() {
        let want = SecretRequest::for_test("aws-secretsmanager", "/prod/codnod/config", "app");
        assert_eq!(parse_one(json!({})), Ok(want.clone()));
        let keys = BTreeMap::from([("DB_HOST".to_owned(), "host".to_owned()), ("b".to_owned(), "/b/c".to_owned())]);
        let template = Template { keys: Some(keys), secret_type: SecretType::BasicAuth, ..Template::default() };
        let remote = RemoteRef { version: Some("AWSPREVIOUS".into()), ..want.remote.clone() };
        let all = json!({"keys": {"DB_HOST": "host", "b": "/b/c"}, "version": "AWSPREVIOUS", "type": "kubernetes.io/basic-auth"});
        assert_eq!(parse_one(all), Ok(SecretRequest { remote, template, ..want }));
    }

    #[test]
    fn an_unknown_provider_is_named_with_its_nearest() {
        let error = parse_one(json!({"provider": "aws-secretmanager"})).expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "provider `aws-secretmanager` is not configured on this agent; did you mean `aws-secretsmanager`?; \
             configured: aws-secretsmanager; an operator can add it to providers.yaml"
        );
    }

    #[test]
    fn secret_names_follow_rfc_1123() {
        let long = "a".repeat(254);
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a.", "a/b", "a b", "ä", "a\u{0}", long.as_str()] {
            let error = parse_one(json!({"secretName": bad})).expect_err(bad);
            assert!(error.to_string().contains("field `secretName`"), "{bad:?}: {error}");
        }
        let longest = "a".repeat(253);
        for good in ["a", "0", "a-b.c-d", "app-credentials", longest.as_str()] {
            assert!(parse_one(json!({"secretName": good})).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn what_does_not_fit_together_or_cannot_be_is_refused() {
        let cases = [
            ("keys with raw", json!({"format": "raw", "keys": ["a"]}), "`keys` and `format: raw` do not go together"),
            ("dataKey with json", json!({"format": "json", "dataKey": "a"}), "`dataKey` and `format: json`"),
            ("keys and dataKey", json!({"keys": ["a"], "dataKey": "a"}), "`keys` and `dataKey`"),
            ("no keys in a list", json!({"keys": []}), "`keys` chooses nothing"),
            ("no keys in a map", json!({"keys": {}}), "`keys` chooses nothing"),
            ("a key twice", json!({"keys": ["a", "b", "a"]}), "`keys` has `a` twice"),
            ("a data key with a slash", json!({"keys": {"a/b": "c"}}), "`a/b` cannot be a Secret's data key"),
            ("a pointer in a list", json!({"keys": ["/a/b"]}), "write `KEY: /pointer`"),
            ("an empty source key", json!({"keys": {"a": ""}}), "the source key of `a` must have"),
            ("a long source key", json!({"keys": {"a": "x".repeat(1025)}}), "the source key of `a` must have"),
            ("a control character", json!({"keys": {"a": "b\u{7}"}}), "no control characters"),
            ("dots for a dataKey", json!({"dataKey": ".."}), "field `dataKey`: `..` cannot be"),
            ("a version of no kind", json!({"version": "a b"}), "field `version` must be a staging label"),
            ("a path elsewhere", json!({"path": "../x"}), "field `path` has an empty segment"),
        ];
        for (case, changes, want) in cases {
            let error = parse_one(changes).expect_err(case).to_string();
            assert!(error.contains(want), "case: {case}: {error}");
        }
    }

    #[test]
    fn each_entry_of_a_list_stands_for_itself() {
        let entries = json!([
            asking(json!({"secretName": "one"})),
            asking(json!({"secretName": "B"})),
            asking(json!({"secretName": "two", "path": "x"})),
            asking(json!({"secretName": "one", "path": "y"})),
            asking(json!({"provider": "vault"})),
        ]);
        let checked = parse(&entries.to_string(), &catalogue()).expect("a list");
        let names =
            |ask: &Result<SecretRequest, RequestError>| ask.as_ref().ok().map(|ask| ask.secret_name.to_string());
        let names: Vec<_> = checked.iter().map(names).collect();
        assert_eq!(names, [Some("one".to_owned()), None, Some("two".to_owned()), None, None]);
        let said: Vec<String> = checked.iter().filter_map(|ask| ask.as_ref().err().map(ToString::to_string)).collect();
        for (said, want) in said.iter().zip([
            "entry 2: field `secretName`",
            "entry 4: secretName `one` is that of entry 1",
            "provider `vault`",
        ]) {
            assert!(said.contains(want), "{said} lacks {want}");
        }
    }

    /// Secrets outlive releases: an id that was once written must never be rendered differently.
    #[test]
    fn source_ids_equal_the_golden_file() {
        let vectors = include_str!("../tests/golden/source_ids.txt").lines().filter(|line| !line.starts_with('#'));
        let catalogue = Catalogue::new(
            ["aws-secretsmanager", "aws-eu"].map(|name| (ProviderName::for_test(name), Kind::for_test())),
        );
        for line in vectors {
            let (request, want) = line.split_once(" => ").expect("request => id");
            let parsed = parse(request, &catalogue).expect("an annotation").remove(0);
            assert_eq!(parsed.expect("a request").source_id(), want, "line: {line}");
        }
    }

    #[test]
    fn a_long_source_id_is_cut_by_a_hash_and_stays_its_own() {
        let many = |last: &str| {
            let keys: BTreeMap<String, String> =
                (0..80).map(|n| (format!("KEY_NUMBER_{n}"), format!("{last}{n}"))).collect();
            parse_one(json!({"keys": keys})).expect("a request").source_id()
        };
        let (one, other) = (many("a"), many("b"));
        assert!(
            one.len() <= MAX_SOURCE_ID_BYTES && one.starts_with("v1:aws-secretsmanager:/prod/codnod/config?sha256="),
            "{one}"
        );
        assert_ne!(one, other);
    }

    proptest::proptest! {
        /// What differs in a request that decides about the data differs in the id.
        #[test]
        fn source_ids_are_one_to_one(
            a in proptest::collection::btree_map("[A-Za-z]{1,2}", "[a-c,:&=?% ]{1,4}", 1..4),
            b in proptest::collection::btree_map("[A-Za-z]{1,2}", "[a-c,:&=?% ]{1,4}", 1..4),
        ) {
            let id = |keys: &BTreeMap<String, String>| parse_one(json!({"keys": keys})).expect("a request").source_id();
            proptest::prop_assert_eq!(a == b, id(&a) == id(&b));
        }
    }
}
