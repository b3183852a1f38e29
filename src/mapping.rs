//! Payload -> Secret data: keys, sizes, formats. Pure; all keys of one version, or nothing.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::{annotations::quoted, secret_value::SecretPayload};

/// The API server's limit for all keys and values of a Secret together, in bytes.
pub const MAX_SECRET_BYTES: usize = 1024 * 1024;
const MAX_KEY_BYTES: usize = 253;
/// Two allocations and a place in the map.
const BYTES_OF_A_KEY: usize = 160;

/// The data of a Secret, ready to be written. Values are zeroized when dropped.
pub struct SecretData(BTreeMap<String, Zeroizing<Vec<u8>>>);

impl SecretData {
    /// Keys and values in the order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_slice()))
    }

    /// Bytes of all keys and values.
    pub fn size(&self) -> usize {
        self.iter().map(|(key, value)| key.len() + value.len()).sum()
    }
}

impl fmt::Debug for SecretData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Why a payload cannot become a Secret. No message holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// Not a JSON object.
    #[error("the value is not a JSON object ({problem}); store a JSON object with one key for each data key")]
    NotAnObject {
        /// What it is instead.
        problem: String,
    },
    /// The same key twice: stores and parsers differ in which one counts.
    #[error("the JSON object has the key {} twice; keep one", quoted(.key))]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A key that a Secret cannot have.
    #[error("the key {} cannot be a Secret's data key; use letters, digits, `-`, `_` and `.`, at most 253", quoted(.key))]
    BadKey {
        /// The key.
        key: String,
    },
    /// An object without keys.
    #[error("the JSON object is empty; add at least one key at the source")]
    Empty,
    /// More than a Secret can hold.
    #[error("keys and values together are {size} bytes; a Secret holds at most {MAX_SECRET_BYTES}; split the source")]
    TooLarge {
        /// Bytes.
        size: usize,
    },
}

/// Maps a JSON object: each top-level key becomes a data key.
///
/// Strings are unescaped, `null` becomes an empty value, and everything else stands as it is in the source, byte for
/// byte (`1.10` stays `1.10`).
///
/// # Errors
/// [`MappingError`]; the last good Secret is kept then.
pub fn map(payload: &SecretPayload) -> Result<SecretData, MappingError> {
    let text = std::str::from_utf8(payload.expose()).map_err(|_| not_an_object("it is not UTF-8 text"))?;
    let object: RawObject<'_> = serde_json::from_str(text).map_err(|error| explain(text, &error))?;
    let mut data = BTreeMap::new();
    for (key, value) in object.0 {
        if !is_data_key(&key) {
            return Err(MappingError::BadKey { key });
        }
        let value = to_bytes(value)?;
        if data.insert(key.clone(), value).is_some() {
            return Err(MappingError::DuplicateKey { key });
        }
    }
    let data = SecretData(data);
    match data.size() {
        0 => Err(MappingError::Empty),
        size if size > MAX_SECRET_BYTES => Err(MappingError::TooLarge { size }),
        _ => Ok(data),
    }
}

/// What the data of a payload takes in memory at most, in bytes: many small keys take far more than their text.
pub fn memory_of(payload: &SecretPayload) -> usize {
    let keys = payload.expose().iter().filter(|byte| **byte == b':').count();
    payload.len() + keys * BYTES_OF_A_KEY
}

fn to_bytes(value: &RawValue) -> Result<Zeroizing<Vec<u8>>, MappingError> {
    let raw = value.get();
    let bytes = match raw.as_bytes().first() {
        Some(b'"') => serde_json::from_str::<String>(raw)
            .map_err(|_| not_an_object("a text in it is not well formed"))?
            .into_bytes(),
        Some(b'n') => Vec::new(),
        _ => raw.as_bytes().to_vec(),
    };
    Ok(Zeroizing::new(bytes))
}

fn is_data_key(key: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    // `.` and `..`, and keys that begin with `..`, would leave the volume's folder; the API server refuses them.
    (1..=MAX_KEY_BYTES).contains(&key.len()) && key.chars().all(allowed) && key != "." && !key.starts_with("..")
}

fn not_an_object(problem: impl Into<String>) -> MappingError {
    MappingError::NotAnObject { problem: problem.into() }
}

/// serde_json's own text may quote the value ("invalid type: string \"hunter2\""), so only its place is used.
fn explain(text: &str, error: &serde_json::Error) -> MappingError {
    use serde_json::error::Category;
    match error.classify() {
        _ if text.trim().is_empty() => not_an_object("it is empty"),
        Category::Eof => not_an_object("it ends too early"),
        Category::Data => not_an_object("it is JSON of another type"),
        _ => not_an_object(format!("not JSON at line {}, column {}", error.line(), error.column())),
    }
}

/// The members of an object in their order, values as they stand in the text.
struct RawObject<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for RawObject<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = RawObject<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(RawObject(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map_text(text: &str) -> Result<Vec<(String, String)>, MappingError> {
        let data = map(&SecretPayload::new(text.as_bytes().to_vec(), "v"))?;
        Ok(data.iter().map(|(key, value)| (key.to_owned(), String::from_utf8_lossy(value).into_owned())).collect())
    }

    #[test]
    fn each_key_keeps_its_value_to_the_byte() {
        let cases = [
            ("text", r#"{"a":"b"}"#, "b"),
            ("escapes", r#"{"a":"x\n\"\u00e9\ud83d\ude00"}"#, "x\n\"\u{e9}\u{1f600}"),
            ("big number", r#"{"a":12345678901234567890123}"#, "12345678901234567890123"),
            ("trailing zero", r#"{"a":1.10}"#, "1.10"),
            ("exponent", r#"{"a":1e3}"#, "1e3"),
            ("boolean", r#"{"a":true}"#, "true"),
            ("null", r#"{"a":null}"#, ""),
            ("object", r#"{"a":{"x" : [1, 2]}}"#, r#"{"x" : [1, 2]}"#),
            ("array", r#"{"a":[ "q",1 ]}"#, r#"[ "q",1 ]"#),
            ("empty text", r#"{"a":""}"#, ""),
            ("white space around", " \n{ \"a\" : \"b\" }\n", "b"),
        ];
        for (case, text, want) in cases {
            assert_eq!(map_text(text), Ok(vec![("a".into(), want.into())]), "case: {case}");
        }
    }

    #[test]
    fn all_keys_or_none() {
        let bad_key = |key: &str| MappingError::BadKey { key: key.into() };
        let not = |problem: &str| not_an_object(problem);
        let cases = [
            ("plain text", "hunter2", not("not JSON at line 1, column 1")),
            ("array", "[1]", not("it is JSON of another type")),
            ("text", r#""hunter2""#, not("it is JSON of another type")),
            ("truncated", r#"{"a":"hun"#, not("it ends too early")),
            ("trailing text", r#"{"a":"b"}x"#, not("not JSON at line 1, column 10")),
            ("empty", "", not("it is empty")),
            ("empty object", "{}", MappingError::Empty),
            ("twice", r#"{"a":"1","b":"2","a":"3"}"#, MappingError::DuplicateKey { key: "a".into() }),
            ("twice by escape", r#"{"a":"1","\u0061":"3"}"#, MappingError::DuplicateKey { key: "a".into() }),
            ("slash", r#"{"ok":"1","a/b":"2"}"#, bad_key("a/b")),
            ("empty key", r#"{"":"2"}"#, bad_key("")),
            ("dots", r#"{"..":"2"}"#, bad_key("..")),
            ("dots first", r#"{"..data":"2"}"#, bad_key("..data")),
            ("lone surrogate", r#"{"a":"\ud800"}"#, not("a text in it is not well formed")),
        ];
        for (case, text, want) in cases {
            assert_eq!(map_text(text), Err(want), "case: {case}");
        }
    }

    #[test]
    fn the_limit_counts_keys_and_values() {
        let object = |len: usize| format!(r#"{{"key":"{}"}}"#, "x".repeat(len));
        assert!(map_text(&object(MAX_SECRET_BYTES - 3)).is_ok(), "exactly the limit");
        let size = MAX_SECRET_BYTES + 1;
        assert_eq!(map_text(&object(size - 3)), Err(MappingError::TooLarge { size }), "one more");
    }

    #[test]
    fn no_message_and_no_debug_holds_a_value() {
        for text in ["hunter2", r#""hunter2""#, r#"{"a":"hunter2"#, r#"{"a":"hunter2","a":"hunter2"}"#] {
            let error = map(&SecretPayload::new(text.into(), "v")).expect_err(text);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        let data = map(&SecretPayload::new(r#"{"a":"hunter2"}"#.into(), "v")).expect("data");
        assert_eq!(format!("{data:?}"), r#"{"a"}"#);
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_texts_come_back(key in "[a-zA-Z0-9_-]{1,30}", value in "\\PC*") {
            let _ = map_text(&value);
            let text = serde_json::json!({&key: &value}).to_string();
            proptest::prop_assert_eq!(map_text(&text), Ok(vec![(key, value)]));
        }
    }
}
