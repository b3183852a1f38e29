//! `RawRequest` -> `SecretRequest`: every value checked once, into a type. Pure.

use std::{collections::BTreeMap, fmt, fmt::Write as _};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    annotations::{self, AnnotationError, RawKeys, RawRequest, did_you_mean, invalid, quoted},
    config::Mode,
    masters,
    names::{MAX_DATA_KEY_BYTES, MAX_NAME_BYTES, is_data_key, is_dns_subdomain},
    provider::{Catalogue, Identity, Kind, ProviderName},
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
    /// As what it is written.
    pub kind: KindWish,
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

/// As what a value is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
pub enum KindWish {
    /// As a ConfigMap where the store itself calls the value no secret and the agent's mode is central, else as a Secret.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// As a Secret.
    Secret,
    /// As a ConfigMap, or not at all.
    ConfigMap,
}

/// The kinds of objects that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ObjectKind {
    /// For whatever a store holds.
    Secret,
    /// For what the store itself does not call secret.
    ConfigMap,
}

impl ObjectKind {
    /// As it stands in `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }

    /// As it stands in a URL.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::ConfigMap => "configmaps",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A checked name of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretName(String);

impl SecretName {
    /// A name that RFC 1123 allows for a subdomain.
    pub(crate) fn checked(name: String) -> Option<Self> {
        is_dns_subdomain(&name).then_some(Self(name))
    }

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
        let secret_name = SecretName::for_test(secret_name);
        Self { remote, secret_name, template: Template::default(), kind: KindWish::Auto }
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
        self.source_id_as(&Identity::Agent)
    }

    /// The same where the store is asked as somebody else: `as=uid/UID` or `as=name/NAME` comes first. What another identity was
    /// given is another source.
    pub fn source_id_as(&self, identity: &Identity) -> String {
        let version = &self.remote.version;
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
        self.remote.id_with(identity, &fields.join("&"))
    }

    /// Takes in another entry for the same object: other keys of the same source. Says whether the two go together.
    fn merge(&mut self, other: &Self) -> bool {
        let without_keys = |request: &Self| {
            let template = Template { keys: None, ..request.template.clone() };
            Self { template, ..request.clone() }
        };
        if without_keys(self) != without_keys(other) {
            return false;
        }
        let (Some(keys), Some(more)) = (&mut self.template.keys, &other.template.keys) else { return false };
        let agree = more.iter().all(|(key, source)| keys.get(key).is_none_or(|known| known == source));
        if agree {
            keys.extend(more.clone());
        }
        agree
    }
}

impl RemoteRef {
    /// The canonical name of the source alone, whatever becomes of its value: what stands on a master.
    pub fn source_id(&self) -> String {
        let version = self.version.as_ref().map(|version| format!("version={}", escaped(version)));
        self.id_with(&Identity::Agent, &version.unwrap_or_default())
    }

    /// Reads such a name back; `None` where it is none of this catalogue, or not in the form that is written.
    pub fn of_source_id(id: &str, catalogue: &Catalogue) -> Option<Self> {
        let (provider, rest) = id.strip_prefix("v1:")?.split_once(':')?;
        let (path, version) = match rest.split_once('?') {
            Some((path, fields)) => (path, Some(unescaped(fields.strip_prefix("version=")?)?)),
            None => (rest, None),
        };
        let (provider, kind) = catalogue.get(provider)?;
        let remote = Self { provider: provider.clone(), path: kind.check_path(path).ok()?, version };
        Some(remote).filter(|remote| remote.source_id() == id)
    }

    fn id_with(&self, identity: &Identity, fields: &str) -> String {
        let source = format!("v1:{}:{}", self.provider, self.path);
        let identity = identity.in_source_id().map(|identity| format!("as={}", escaped(&identity)));
        // The identity is never cut: whose value it is must be told.
        let start = identity.map_or_else(|| format!("{source}?"), |identity| format!("{source}?{identity}&"));
        if fields.is_empty() {
            start[..start.len() - 1].to_owned()
        } else if start.len() + fields.len() <= MAX_SOURCE_ID_BYTES {
            format!("{start}{fields}")
        } else {
            format!("{start}sha256={:x}", Sha256::digest(fields))
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

/// What was escaped; `None` where it was not.
fn unescaped(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()
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
/// to serve the others. Entries for one object with different keys of one source are one request.
///
/// # Errors
/// The outer one where the text cannot be read; an inner one for an entry in which something is wrong. Nothing is
/// filled in by guess.
pub fn parse(text: &str, catalogue: &Catalogue) -> Result<Vec<Result<SecretRequest, RequestError>>, AnnotationError> {
    let entries = annotations::parse(text)?;
    let several = entries.len() > 1;
    let mut checked: Vec<(usize, Result<SecretRequest, RequestError>)> = Vec::with_capacity(entries.len());
    for (index, raw) in entries.into_iter().enumerate() {
        let number = index + 1;
        let request = check(raw, catalogue).and_then(|request| join(&mut checked, request));
        match request {
            Ok(None) => {}
            Ok(Some(request)) => checked.push((number, Ok(request))),
            Err(RequestError::Annotation(error)) if several => {
                checked.push((number, Err(invalid(format!("entry {number}: {}", error.problem)).into())));
            }
            Err(error) => checked.push((number, Err(error))),
        }
    }
    Ok(checked.into_iter().map(|(_, request)| request).collect())
}

/// Puts an entry into the earlier one for the same object, where there is one; else gives it back.
fn join(
    earlier: &mut [(usize, Result<SecretRequest, RequestError>)],
    request: SecretRequest,
) -> Result<Option<SecretRequest>, RequestError> {
    let with_that_name = earlier.iter_mut().find_map(|(number, other)| match other {
        Ok(other) if other.secret_name == request.secret_name => Some((*number, other)),
        _ => None,
    });
    let Some((number, other)) = with_that_name else { return Ok(Some(request)) };
    match other.merge(&request) {
        true => Ok(None),
        false => Err(invalid(format!(
            "secretName {} is that of entry {number} already; give each source a name of its own (different `keys` of one \
             source may share one)",
            quoted(request.secret_name.as_str())
        ))
        .into()),
    }
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
    let (remote, key) = check_remote(&raw, provider, kind)?;
    let template = check_template(&raw, key)?;
    let mode = catalogue.mode();
    let written_as = check_kind(raw.kind, &template, kind, mode)?;
    let secret_name = match (&raw.secret_name, mode) {
        (Some(name), _) => check_secret_name(name)?,
        (None, Mode::Direct) => return Err(invalid("field `secretName` is missing").into()),
        (None, Mode::Central) => masters::name(kind, &remote, None).ok_or_else(|| {
            invalid("field `secretName` is missing, and what a secret is called that is given by its ARN, the store alone knows")
        })?,
    };
    Ok(SecretRequest { remote, secret_name, template, kind: written_as })
}

/// What to fetch, and the one key of it that the path itself names.
fn check_remote(
    raw: &RawRequest,
    provider: &ProviderName,
    kind: Kind,
) -> Result<(RemoteRef, Option<String>), AnnotationError> {
    let in_path = |problem| invalid(format!("field `path` {problem}"));
    let reference = kind.reference(&raw.path).map_err(in_path)?;
    let path = kind.check_path(&reference.path).map_err(in_path)?;
    let version = match (&raw.version, reference.version) {
        (Some(_), Some(_)) => return Err(invalid("field `version` stands beside a version in `path`; take one out")),
        (written, in_path) => written.clone().or(in_path),
    };
    if let Some(version) = &version {
        kind.check_version(&path, version).map_err(|problem| invalid(format!("field `version` {problem}")))?;
    }
    Ok((RemoteRef { provider: provider.clone(), path, version }, reference.key))
}

/// A ConfigMap is only for what the store itself calls no secret, and only where the agent has the rights to write one.
fn check_kind(wish: KindWish, template: &Template, kind: Kind, mode: Mode) -> Result<KindWish, AnnotationError> {
    let refused = |why: &str| Err(invalid(format!("field `kind`: {why}; write Secret, or leave it out")));
    match (wish, mode) {
        (KindWish::ConfigMap, Mode::Direct) => {
            refused("ConfigMap is for agents in central mode, and this one is in direct mode")
        }
        (KindWish::ConfigMap, _) if !kind.may_be_plain() => {
            refused("ConfigMap is not for this store, which holds nothing but secrets")
        }
        (KindWish::ConfigMap, _) if template.secret_type != SecretType::Opaque => refused("a ConfigMap has no `type`"),
        // With a type it can be nothing else.
        (KindWish::Auto, _) if template.secret_type != SecretType::Opaque => Ok(KindWish::Secret),
        (wish, _) => Ok(wish),
    }
}

fn check_secret_name(name: &str) -> Result<SecretName, AnnotationError> {
    if let Some(name) = SecretName::checked(name.to_owned()) {
        return Ok(name);
    }
    Err(invalid(format!(
        "field `secretName` {} is not a Secret's name: use lower case letters, digits, `-` and `.`, \
         at most {MAX_NAME_BYTES} characters, beginning and ending with a letter or digit",
        quoted(name)
    )))
}

/// `in_path`: the one key that the path names.
fn check_template(raw: &RawRequest, in_path: Option<String>) -> Result<Template, AnnotationError> {
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
    let mut keys = raw.keys.as_ref().map(check_keys).transpose()?;
    let mut data_key = raw.data_key.clone();
    if let Some(source) = in_path {
        if raw.keys.is_some() || raw.format == Format::Raw {
            return Err(invalid("field `path` names a key, so that `keys` and `format: raw` do not go with it"));
        }
        let key = data_key.take().unwrap_or_else(|| source.clone());
        keys = Some(check_keys(&RawKeys(vec![(key, source)]))?);
    }
    Ok(Template {
        keys,
        format: raw.format,
        data_key: data_key.unwrap_or_else(|| DEFAULT_DATA_KEY.to_owned()),
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

    fn catalogue() -> Catalogue {
        Catalogue::new(Mode::Direct, [(ProviderName::for_test("aws-secretsmanager"), Kind::for_test())])
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
        assert_eq!(parse_one(all), Ok(SecretRequest { remote, template, kind: KindWish::Secret, ..want }));
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

    const ARN: &str = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/db-AbCdEf";

    #[test]
    fn an_arn_as_ecs_has_it_names_key_and_version() {
        let path = |more: &str| json!({"path": format!("{ARN}{more}")});
        for (more, key, version) in [
            ("", None, None),
            (":::", None, None),
            (":password::", Some(("password", "password")), None),
            (":password:AWSPREVIOUS:", Some(("password", "password")), Some("AWSPREVIOUS")),
            ("::AWSPREVIOUS:", None, Some("AWSPREVIOUS")),
            (":::a1b2c3d4-5678-90ab-cdef-111122223333", None, Some("uuid/a1b2c3d4-5678-90ab-cdef-111122223333")),
        ] {
            let got = parse_one(path(more)).unwrap_or_else(|error| panic!("{more}: {error}"));
            let keys = key.map(|(key, source)| BTreeMap::from([(key.to_owned(), source.to_owned())]));
            assert_eq!((got.remote.path.as_str(), got.remote.version.as_deref()), (ARN, version), "{more}");
            assert_eq!(got.template.keys, keys, "{more}");
        }
        let renamed = parse_one(json!({"path": format!("{ARN}:password::"), "dataKey": "DB_PASSWORD"})).expect("good");
        let want = BTreeMap::from([("DB_PASSWORD".to_owned(), "password".to_owned())]);
        assert_eq!((renamed.template.keys, renamed.template.data_key.as_str()), (Some(want), DEFAULT_DATA_KEY));
        for (changes, want) in [
            (path(":password"), "write ARN:KEY:STAGE:ID"),
            (path(":a:b:c:d"), "write ARN:KEY:STAGE:ID"),
            (path("::AWSCURRENT:a1b2c3d4-5678-90ab-cdef-111122223333"), "name one of them"),
            (json!({"path": format!("{ARN}:a::"), "keys": ["b"]}), "`path` names a key"),
            (json!({"path": format!("{ARN}:a::"), "format": "raw"}), "`path` names a key"),
            (json!({"path": format!("{ARN}::AWSCURRENT:"), "version": "AWSPREVIOUS"}), "`version` stands beside"),
            (json!({"path": format!("{ARN}:a/b::")}), "cannot be a Secret's data key"),
        ] {
            let error = parse_one(changes.clone()).expect_err("refused").to_string();
            assert!(error.contains(want), "{changes}: {error}");
        }
    }

    #[test]
    fn entries_for_one_secret_with_other_keys_of_one_source_are_one_request() {
        let parsed = |entries: Value| parse(&entries.to_string(), &catalogue()).expect("a list");
        let key = |key: &str| asking(json!({"path": format!("{ARN}:{key}::")}));
        let merged = parsed(json!([key("user"), asking(json!({"secretName": "b"})), key("password"), key("user")]));
        let keys = |ask: &Result<SecretRequest, RequestError>| ask.as_ref().expect("good").template.keys.clone();
        let both = ["password", "user"].map(|key| (key.to_owned(), key.to_owned()));
        assert_eq!((merged.len(), keys(&merged[0])), (2, Some(BTreeMap::from(both))));
        for (case, other) in [
            ("another source", asking(json!({"keys": ["x"]}))),
            ("another version", asking(json!({"path": format!("{ARN}:x:AWSPREVIOUS:")}))),
            ("all keys", asking(json!({"path": ARN}))),
            ("the same data key of another", asking(json!({"path": ARN, "keys": {"user": "other"}}))),
            ("another type", asking(json!({"path": ARN, "keys": ["x"], "type": "kubernetes.io/basic-auth"}))),
        ] {
            let asks = parsed(json!([key("user"), other]));
            let error = asks[1].as_ref().expect_err(case).to_string();
            assert!(error.contains("entry 2: secretName `app` is that of entry 1 already"), "case: {case}: {error}");
            assert!(asks[0].is_ok(), "case: {case}: the first stands");
        }
    }

    #[test]
    fn without_a_name_the_secret_is_called_like_its_master_in_central_mode_alone() {
        let unnamed = |path: &str| json!({"provider": "aws-secretsmanager", "path": path}).to_string();
        let parsed = |mode, path: &str| {
            let catalogue = Catalogue::new(mode, [(ProviderName::for_test("aws-secretsmanager"), Kind::for_test())]);
            parse(&unnamed(path), &catalogue).expect("an annotation").remove(0)
        };
        let name = parsed(Mode::Central, "db").expect("good").secret_name;
        assert_eq!(name.as_str(), "sm-db");
        for (mode, path) in [(Mode::Direct, "db"), (Mode::Central, ARN)] {
            let error = parsed(mode, path).expect_err("refused").to_string();
            assert!(error.contains("field `secretName` is missing"), "{mode:?} {path}: {error}");
        }
    }

    #[test]
    fn a_config_map_is_for_what_is_no_secret_and_for_central_mode() {
        let parsed = |mode, changes: Value| {
            let kinds = [("aws-secretsmanager", Kind::for_test()), ("aws-ssm", Kind::parameters_for_test())];
            let catalogue = Catalogue::new(mode, kinds.map(|(name, kind)| (ProviderName::for_test(name), kind)));
            parse(&asking(changes).to_string(), &catalogue).expect("an annotation").remove(0)
        };
        let of_ssm = |kind: &str| json!({"provider": "aws-ssm", "path": "/a/b", "kind": kind});
        for (kind, want) in [("auto", KindWish::Auto), ("Secret", KindWish::Secret), ("ConfigMap", KindWish::ConfigMap)]
        {
            assert_eq!(parsed(Mode::Central, of_ssm(kind)).expect(kind).kind, want);
        }
        let of_type =
            |kind: &str| json!({"provider": "aws-ssm", "path": "/a/b", "type": "kubernetes.io/ssh-auth", "kind": kind});
        assert_eq!(parsed(Mode::Central, of_type("auto")).expect("good").kind, KindWish::Secret);
        for (mode, changes, want) in [
            (Mode::Direct, of_ssm("ConfigMap"), "this one is in direct mode"),
            (Mode::Central, json!({"kind": "ConfigMap"}), "nothing but secrets"),
            (Mode::Central, of_type("ConfigMap"), "has no `type`"),
        ] {
            let error = parsed(mode, changes.clone()).expect_err("refused").to_string();
            assert!(error.contains("field `kind`") && error.contains(want), "{changes}: {error}");
        }
        for (written, sent) in [("prod/db", "/prod/db"), ("/prod/db", "/prod/db"), ("db", "db")] {
            let got = parsed(Mode::Direct, json!({"provider": "aws-ssm", "path": written}));
            assert_eq!(got.expect(written).remote.path, sent, "with and without a leading slash");
        }
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
            Mode::Direct,
            ["aws-secretsmanager", "aws-eu"].map(|name| (ProviderName::for_test(name), Kind::for_test())),
        );
        for line in vectors {
            let (request, want) = line.split_once(" => ").expect("request => id");
            let parsed = parse(request, &catalogue).expect("an annotation").remove(0);
            assert_eq!(parsed.expect("a request").source_id(), want, "line: {line}");
        }
    }

    #[test]
    fn the_id_of_a_source_is_read_back() {
        for version in [None, Some("AWSPREVIOUS"), Some("a b%c:&")] {
            let remote = RemoteRef {
                provider: ProviderName::for_test("aws-secretsmanager"),
                path: "/prod/db".into(),
                version: version.map(str::to_owned),
            };
            assert_eq!(RemoteRef::of_source_id(&remote.source_id(), &catalogue()), Some(remote));
        }
        for broken in [
            "",
            "v2:aws-secretsmanager:/a",
            "v1:other:/a",
            "v1:aws-secretsmanager",
            "v1:aws-secretsmanager:a//b",
            "v1:aws-secretsmanager:a?keys=b",
            "v1:aws-secretsmanager:a?version=%2",
            "v1:aws-secretsmanager:a?version=%41",
            "v1:aws-secretsmanager:a?sha256=00",
        ] {
            assert_eq!(RemoteRef::of_source_id(broken, &catalogue()), None, "{broken}");
        }
    }

    #[test]
    fn a_source_id_tells_as_whom_the_store_was_asked_also_where_it_is_cut() {
        let of = |name: &str, uid: &str| Identity::ServiceAccount {
            namespace: crate::pod::PodNamespace::for_test("team-a"),
            name: name.to_owned(),
            uid: uid.to_owned(),
            claims: String::new(),
        };
        let plain = parse_one(json!({})).expect("a request");
        let keyed = parse_one(json!({"keys": ["A"]})).expect("a request");
        assert_eq!(plain.source_id_as(&of("app", "u-1")), "v1:aws-secretsmanager:/prod/codnod/config?as=uid/u-1");
        assert_eq!(keyed.source_id_as(&of("app", "")), "v1:aws-secretsmanager:/prod/codnod/config?as=name/app&keys=A");
        assert_eq!(keyed.source_id_as(&Identity::Agent), keyed.source_id());
        let many: BTreeMap<String, String> = (0..80).map(|n| (format!("KEY_NUMBER_{n}"), format!("a{n}"))).collect();
        let long = parse_one(json!({"keys": many})).expect("a request").source_id_as(&of("app", "u-1"));
        assert!(long.starts_with("v1:aws-secretsmanager:/prod/codnod/config?as=uid/u-1&sha256="), "{long}");
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
