//! The Secret or ConfigMap as JSON, written once into memory that is zeroized.

use std::collections::BTreeMap;

use base64::{display::Base64Display, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Serialize, Serializer, ser::Error as _};
use zeroize::Zeroizing;

use super::masters::VALUE;
use crate::{
    mapping::SecretData,
    request::{ObjectKind, SecretType},
    secret_value::SecretPayload,
};

/// The marker: what makes an object ours, for code and admission policies alike.
pub(super) const MARKER: (&str, &str) = ("jasm.codnod.io/managed-by", "jasm");
/// For people and tools that look for the recommended label.
const RECOMMENDED: (&str, &str) = ("app.kubernetes.io/managed-by", "jasm");
/// The longest annotation value that the admission policies read back, in bytes.
const MAX_VALUE_BYTES: usize = 1024;
/// More than everything that is not data.
const ENVELOPE_BYTES: usize = 16 * 1024;

/// An object on its way to the API server.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ObjectBody<'a> {
    api_version: &'static str,
    kind: &'static str,
    /// ConfigMaps have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    metadata: Metadata<'a>,
    #[serde(skip_serializing_if = "Data::is_none")]
    data: Data<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    immutable: Option<bool>,
}

/// What stands under `data`.
enum Data<'a> {
    None,
    /// Key and base64: what the API server asks of a type before any policy sees the object. Never stored.
    Placeholder(&'static [(&'static str, &'static str)]),
    Of(&'a SecretData),
    /// The same for a ConfigMap, which holds texts.
    Texts(&'a SecretData),
    /// One key: a master's value in base64.
    Value(&'a [u8]),
    /// The same as a text.
    Text(&'a [u8]),
    /// Texts that are no secrets.
    Map(&'a BTreeMap<String, String>),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    name: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<&'a str>,
    labels: BTreeMap<&'a str, &'a str>,
    annotations: BTreeMap<&'static str, String>,
}

impl<'a> ObjectBody<'a> {
    /// An object without data, marked as ours; a Secret's type is Opaque.
    pub(super) fn new(kind: ObjectKind, namespace: &'a str, name: &'a str) -> Self {
        Self {
            api_version: "v1",
            kind: kind.as_str(),
            r#type: (kind == ObjectKind::Secret).then(|| SecretType::Opaque.as_str()),
            metadata: Metadata {
                name,
                namespace,
                resource_version: None,
                labels: BTreeMap::from([MARKER, RECOMMENDED]),
                annotations: BTreeMap::new(),
            },
            data: Data::None,
            immutable: None,
        }
    }

    pub(super) fn kind(&self) -> ObjectKind {
        match self.r#type {
            Some(_) => ObjectKind::Secret,
            None => ObjectKind::ConfigMap,
        }
    }

    pub(super) fn label(mut self, key: &'a str, value: &'a str) -> Self {
        self.metadata.labels.insert(key, value);
        self
    }

    /// What it is made from: a source id is printable and bounded by itself, and is compared with what stands there.
    pub(super) fn source(mut self, key: &'static str, source_id: &str) -> Self {
        self.metadata.annotations.insert(key, source_id.to_owned());
        self
    }

    pub(super) fn annotate(mut self, key: &'static str, value: &str) -> Self {
        self.metadata.annotations.insert(key, printable(value));
        self
    }

    /// Of a Secret alone.
    pub(super) fn of_type(mut self, secret_type: SecretType) -> Self {
        self.r#type = self.r#type.map(|_| secret_type.as_str());
        self
    }

    /// The keys without which the API server takes no Secret of this type, for a probe.
    pub(super) fn placeholder(mut self, secret_type: SecretType) -> Self {
        self.data = match secret_type {
            SecretType::Opaque => Data::None,
            SecretType::Tls => Data::Placeholder(&[("tls.crt", ""), ("tls.key", "")]),
            SecretType::DockerConfigJson => Data::Placeholder(&[(".dockerconfigjson", "e30=")]),
            SecretType::BasicAuth => Data::Placeholder(&[("username", "")]),
            SecretType::SshAuth => Data::Placeholder(&[("ssh-privatekey", "eA==")]),
        };
        self.of_type(secret_type)
    }

    pub(super) fn data(mut self, data: &'a SecretData) -> Self {
        self.data = match self.kind() {
            ObjectKind::Secret => Data::Of(data),
            ObjectKind::ConfigMap => Data::Texts(data),
        };
        self
    }

    /// The value of a master.
    pub(super) fn value(mut self, payload: &'a SecretPayload) -> Self {
        self.data = match self.kind() {
            ObjectKind::Secret => Data::Value(payload.expose()),
            ObjectKind::ConfigMap => Data::Text(payload.expose()),
        };
        self
    }

    /// The texts of a record.
    pub(super) fn texts(mut self, texts: &'a BTreeMap<String, String>) -> Self {
        self.data = Data::Map(texts);
        self
    }

    /// For a probe alone: the API server compares data with an immutable Secret only if the request is for one.
    pub(super) fn immutable(mut self) -> Self {
        self.immutable = Some(true);
        self
    }

    /// Only the Secret in exactly this state may be replaced.
    pub(super) fn replacing(mut self, resource_version: Option<&'a str>) -> Self {
        self.metadata.resource_version = resource_version;
        self
    }

    /// How many bytes the JSON takes at most; the limit that memory is reserved for.
    pub(super) fn max_bytes(data: &SecretData) -> usize {
        ENVELOPE_BYTES + data.iter().map(|(key, value)| key.len() + in_base64(value) + 8).sum::<usize>()
    }

    /// The same for a master's value.
    pub(super) fn bytes_of(payload: &SecretPayload) -> usize {
        ENVELOPE_BYTES + in_base64(payload.expose())
    }

    /// The JSON. Its memory is allocated once, so that no copy stays behind, and zeroized in the end.
    pub(super) fn into_bytes(self) -> Bytes {
        let capacity = match self.data {
            Data::Of(data) | Data::Texts(data) => Self::max_bytes(data),
            Data::Value(value) | Data::Text(value) => ENVELOPE_BYTES + in_base64(value),
            Data::None | Data::Placeholder(_) | Data::Map(_) => ENVELOPE_BYTES,
        };
        let mut json = Zeroizing::new(Vec::with_capacity(capacity));
        // Writing texts into memory cannot fail.
        let written = serde_json::to_writer(&mut *json, &self);
        debug_assert!(written.is_ok());
        Bytes::from_owner(json)
    }
}

impl Data<'_> {
    fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_none(),
            Self::Placeholder(pairs) => serializer.collect_map(pairs.iter().copied()),
            // Not through a text of its own, which would stay behind.
            Self::Of(data) => serializer.collect_map(data.iter().map(|(key, value)| (key, InBase64(value)))),
            Self::Value(value) => serializer.collect_map([(VALUE, InBase64(value))]),
            Self::Map(texts) => texts.serialize(serializer),
            Self::Text(value) => {
                serializer.collect_map([(VALUE, std::str::from_utf8(value).map_err(S::Error::custom)?)])
            }
            Self::Texts(data) => {
                let texts: Result<Vec<_>, _> =
                    data.iter().map(|(key, value)| std::str::from_utf8(value).map(|text| (key, text))).collect();
                serializer.collect_map(texts.map_err(S::Error::custom)?)
            }
        }
    }
}

fn in_base64(value: &[u8]) -> usize {
    value.len().div_ceil(3) * 4
}

struct InBase64<'a>(&'a [u8]);

impl Serialize for InBase64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

/// A value as it stands in an annotation, and as the probe gives it back: printable ASCII without blanks, everything else as
/// `%XX`, cut to 1,024 bytes.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_graphic() && byte != b'%';
        if shown.len() + if plain { 1 } else { 3 } > MAX_VALUE_BYTES {
            break;
        }
        if plain {
            shown.push(char::from(byte));
        } else {
            shown.push_str(&format!("%{byte:02X}"));
        }
    }
    shown
}

/// What was made printable; a value that was cut stays cut.
pub(super) fn from_printable(shown: &str) -> String {
    let mut bytes = Vec::with_capacity(shown.len());
    let mut rest = shown.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let escaped = more.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{mapping, request::Template};

    #[test]
    fn the_object_has_our_labels_and_the_data_in_base64() {
        let data = mapping::map(&Template::default(), &SecretPayload::new(br#"{"a":"hunter2","b":""}"#.to_vec(), "v"))
            .expect("data");
        let body = ObjectBody::new(ObjectKind::Secret, "ns", "app")
            .annotate("k", "a b")
            .data(&data)
            .replacing(Some("7"))
            .into_bytes();
        let got: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let want = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {
                "name": "app", "namespace": "ns", "resourceVersion": "7",
                "labels": {"jasm.codnod.io/managed-by": "jasm", "app.kubernetes.io/managed-by": "jasm"},
                "annotations": {"k": "a%20b"},
            },
            "data": {"a": "aHVudGVyMg==", "b": ""},
        });
        assert_eq!(got, want);
        assert!(body.len() <= ObjectBody::max_bytes(&data));
    }

    #[test]
    fn values_are_printable_and_bounded() {
        let cases = [("plain", "plain"), ("a b\n", "a%20b%0A"), ("100%", "100%25"), ("\u{e9}", "%C3%A9")];
        for (text, want) in cases {
            assert_eq!(printable(text), want);
            assert_eq!(from_printable(want), text);
        }
        assert_eq!(printable(&"x".repeat(5000)).len(), MAX_VALUE_BYTES);
        assert_eq!(printable(&" ".repeat(5000)).len(), MAX_VALUE_BYTES - 1, "never half an escape");
    }
}
