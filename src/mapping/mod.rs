//! Request + payload -> Secret data: keys, formats, types, sizes. Pure; all keys of one version, or nothing.

#[cfg(test)]
mod arbitrary;
mod json;
mod types;

use std::{collections::BTreeMap, fmt};

use zeroize::Zeroizing;

use self::json::Object;
use crate::{
    annotations::{did_you_mean, quoted},
    names::is_data_key,
    request::{Format, Template},
    secret_value::SecretPayload,
};

/// The API server's limit for all keys and values of a Secret together, in bytes.
pub const MAX_SECRET_BYTES: usize = 1024 * 1024;
/// Allocations and places in maps, while a value is taken apart.
const BYTES_OF_A_KEY: usize = 320;

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

    fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key).map(|value| value.as_slice())
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
    /// Not a JSON object, where one is needed.
    #[error(
        "the value is not a JSON object ({problem}); store a JSON object, or write format: raw to take the value as one key"
    )]
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
    #[error("the key {} cannot be a Secret's data key; choose and rename keys with `keys`, or rename it at the source (letters, digits, `-`, `_` and `.`, at most 253)", quoted(.key))]
    BadKey {
        /// The key.
        key: String,
    },
    /// A chosen key that the source lacks.
    #[error("the source has no key {}{near}; check `keys` in the annotation and the secret at the store", quoted(.key))]
    KeyMissing {
        /// The key, or the pointer, of the source.
        key: String,
        /// A hint, or nothing.
        near: String,
    },
    /// Nothing in it.
    #[error("the value is empty; add at least one key at the source")]
    Empty,
    /// More than a Secret can hold.
    #[error(
        "keys and values together are {size} bytes; a Secret holds at most {MAX_SECRET_BYTES}; split the source, or choose fewer `keys`"
    )]
    TooLarge {
        /// Bytes.
        size: usize,
    },
    /// The data is not what the Secret's type promises.
    #[error("the data does not fit type {secret_type}: {problem}")]
    WrongForType {
        /// The type.
        secret_type: &'static str,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
}

/// Makes data of a value.
///
/// Of a JSON object each key (or each chosen key) becomes a data key: strings are unescaped, `null` becomes an empty
/// value, and everything else stands as it is in the source, byte for byte (`1.10` stays `1.10`). Anything else becomes
/// one key, byte for byte, where the template's format allows that.
///
/// # Errors
/// [`MappingError`]; the last good Secret is kept then.
pub fn map(template: &Template, payload: &SecretPayload) -> Result<SecretData, MappingError> {
    let data = match template.format {
        Format::Raw => one_key(template, payload)?,
        Format::Auto if template.keys.is_none() && !begins_as_object(payload) => one_key(template, payload)?,
        Format::Auto | Format::Json => take_apart(template, payload)?,
    };
    if data.0.is_empty() {
        return Err(MappingError::Empty);
    }
    types::check(template.secret_type, &data)?;
    Ok(data)
}

/// What the data of a payload takes in memory at most, in bytes: many small keys take far more than their text, and one
/// key of the source can be chosen many times.
pub fn memory_of(template: &Template, payload: &SecretPayload) -> usize {
    let one_key = match template.format {
        Format::Raw => true,
        Format::Auto => template.keys.is_none() && payload.is_whole(),
        Format::Json => false,
    };
    if one_key {
        return payload.len() + BYTES_OF_A_KEY;
    }
    let colons = || payload.expose().iter().filter(|byte| **byte == b':').count();
    let (keys, copies) = template.keys.as_ref().map_or_else(|| (colons(), 1), |keys| (keys.len(), keys.len()));
    let largest = MAX_SECRET_BYTES.max(payload.len());
    payload.len().saturating_mul(copies).min(largest) + keys * BYTES_OF_A_KEY
}

/// Data that never holds more than a Secret can, however much is put in.
#[derive(Default)]
struct Collected {
    data: BTreeMap<String, Zeroizing<Vec<u8>>>,
    size: usize,
}

impl Collected {
    fn put(&mut self, key: &str, value: Zeroizing<Vec<u8>>) {
        self.size += key.len() + value.len();
        if self.size <= MAX_SECRET_BYTES {
            self.data.insert(key.to_owned(), value);
        }
    }

    fn finish(self) -> Result<SecretData, MappingError> {
        match self.size {
            size if size > MAX_SECRET_BYTES => Err(MappingError::TooLarge { size }),
            _ => Ok(SecretData(self.data)),
        }
    }
}

/// A text that begins as a JSON object has to be one: a value that was cut short at the source must not become one key
/// in place of many.
fn begins_as_object(payload: &SecretPayload) -> bool {
    !payload.is_whole() && payload.expose().trim_ascii_start().first() == Some(&b'{')
}

fn one_key(template: &Template, payload: &SecretPayload) -> Result<SecretData, MappingError> {
    if payload.is_empty() {
        return Err(MappingError::Empty);
    }
    let mut data = Collected::default();
    data.put(&template.data_key, Zeroizing::new(payload.expose().to_vec()));
    data.finish()
}

fn take_apart(template: &Template, payload: &SecretPayload) -> Result<SecretData, MappingError> {
    let text = std::str::from_utf8(payload.expose()).map_err(|_| not_an_object("it is not UTF-8 text"))?;
    let object = Object::parse(text)?;
    let mut data = Collected::default();
    match &template.keys {
        None => {
            for (key, value) in object.members() {
                if !is_data_key(key) {
                    return Err(MappingError::BadKey { key: key.to_owned() });
                }
                data.put(key, json::to_bytes(value)?);
            }
        }
        Some(keys) => {
            for (key, source) in keys {
                let near = match object.find(source)? {
                    // `null` says that there is no value.
                    Some(value) if value.get() == "null" => " (it is null there)".to_owned(),
                    Some(value) => {
                        data.put(key, json::to_bytes(value)?);
                        continue;
                    }
                    None => did_you_mean(source, object.members().map(|(key, _)| key)),
                };
                return Err(MappingError::KeyMissing { key: source.clone(), near });
            }
        }
    }
    data.finish()
}

fn not_an_object(problem: impl Into<String>) -> MappingError {
    MappingError::NotAnObject { problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map_text(text: &str) -> Result<Vec<(String, String)>, MappingError> {
        map_by(&Template { format: Format::Json, ..Template::default() }, text)
    }

    fn map_by(template: &Template, text: &str) -> Result<Vec<(String, String)>, MappingError> {
        shown(map(template, &SecretPayload::new(text.as_bytes().to_vec(), "v")))
    }

    fn shown(data: Result<SecretData, MappingError>) -> Result<Vec<(String, String)>, MappingError> {
        let data = data?;
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
            ("nested and not closed", &"{\"a\":".repeat(100_000), not("it ends too early")),
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
    fn what_is_no_object_becomes_one_key_to_the_byte_or_is_refused() {
        let by = |format, data_key: &str| Template { format, data_key: data_key.into(), ..Template::default() };
        let (auto, raw) = (by(Format::Auto, "value"), by(Format::Raw, "password"));
        let one = |key: &str, value: &str| Ok(vec![(key.to_owned(), value.to_owned())]);
        let cases = [
            ("text", &auto, " hunter2\n", one("value", " hunter2\n")),
            ("JSON text", &auto, r#""a""#, one("value", r#""a""#)),
            ("JSON array", &auto, "[1]", one("value", "[1]")),
            ("number", &auto, "1.10", one("value", "1.10")),
            ("object", &auto, r#" {"a":"b"}"#, one("a", "b")),
            ("cut object", &auto, r#"{"a":"b"#, Err(not_an_object("it ends too early"))),
            ("template", &auto, "{{ x }}", Err(not_an_object("not JSON at line 1, column 2"))),
            ("nothing", &auto, "", Err(MappingError::Empty)),
            ("raw object", &raw, r#"{"a":"b"}"#, one("password", r#"{"a":"b"}"#)),
            ("raw text", &raw, "hunter2", one("password", "hunter2")),
            ("raw nothing", &raw, "", Err(MappingError::Empty)),
        ];
        for (case, template, text, want) in cases {
            assert_eq!(map_by(template, text), want, "case: {case}");
        }
        let binary = |template| shown(map(template, &SecretPayload::whole(br#"{"a":"b"}"#.to_vec(), "v")));
        assert_eq!(binary(&auto), one("value", r#"{"a":"b"}"#), "binary is not looked into");
        assert_eq!(binary(&by(Format::Json, "value")), one("a", "b"), "unless that is asked for");
        let bytes = map(&auto, &SecretPayload::whole(vec![0, 255], "v")).expect("data");
        assert_eq!(bytes.get("value"), Some([0, 255].as_slice()));
    }

    #[test]
    fn chosen_keys_are_renamed_and_have_to_be_there() {
        let text = r#"{"host":"db","port":5432,"a/b":"slash","none":null,"tls":{"crt":"C"}}"#;
        let choose = |pairs: &[(&str, &str)]| {
            let keys = pairs.iter().map(|(key, source)| ((*key).to_owned(), (*source).to_owned())).collect();
            map_by(&Template { keys: Some(keys), ..Template::default() }, text)
        };
        let pairs = |pairs: &[(&str, &str)]| {
            Ok(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>())
        };
        let missing = |key: &str, near: &str| Err(MappingError::KeyMissing { key: key.into(), near: near.into() });
        assert_eq!(choose(&[("DB_HOST", "host"), ("port", "port")]), pairs(&[("DB_HOST", "db"), ("port", "5432")]));
        assert_eq!(
            choose(&[("x", "a/b"), ("y", "a/b")]),
            pairs(&[("x", "slash"), ("y", "slash")]),
            "one source, two keys"
        );
        assert_eq!(choose(&[("tls.crt", "/tls/crt")]), pairs(&[("tls.crt", "C")]));
        assert_eq!(choose(&[("x", "hots"), ("port", "port")]), missing("hots", "; did you mean `host`?"));
        assert_eq!(choose(&[("x", "none")]), missing("none", " (it is null there)"));
        assert_eq!(choose(&[("x", "/tls/key")]), missing("/tls/key", ""));
        let keys = Some([("a".to_owned(), "a".to_owned())].into());
        let chosen = Template { keys, ..Template::default() };
        assert_eq!(map_by(&chosen, "text"), Err(not_an_object("not JSON at line 1, column 2")));
    }

    #[test]
    fn the_limit_counts_keys_and_values() {
        let object = |len: usize| format!(r#"{{"key":"{}"}}"#, "x".repeat(len));
        assert!(map_text(&object(MAX_SECRET_BYTES - 3)).is_ok(), "exactly the limit");
        let size = MAX_SECRET_BYTES + 1;
        assert_eq!(map_text(&object(size - 3)), Err(MappingError::TooLarge { size }), "one more");
    }

    #[test]
    fn one_key_of_the_source_chosen_many_times_takes_no_more_memory_than_a_secret() {
        let keys = (0..1000).map(|number| (format!("k{number}"), "x".to_owned())).collect();
        let template = Template { keys: Some(keys), ..Template::default() };
        let payload = SecretPayload::new(format!(r#"{{"x":"{}"}}"#, "y".repeat(60_000)).into_bytes(), "v");
        assert!(memory_of(&template, &payload) <= MAX_SECRET_BYTES + 1000 * BYTES_OF_A_KEY);
        let size = 1000 * 60_000 + (0..1000).map(|number| format!("k{number}").len()).sum::<usize>();
        assert_eq!(map(&template, &payload).err(), Some(MappingError::TooLarge { size }));
        let mut collected = Collected::default();
        for number in 0..100 {
            collected.put(&number.to_string(), Zeroizing::new(vec![0; MAX_SECRET_BYTES / 10]));
        }
        assert!(collected.data.len() <= 10);
    }

    #[test]
    fn no_message_and_no_debug_holds_a_value() {
        for text in ["hunter2", r#""hunter2""#, r#"{"a":"hunter2"#, r#"{"a":"hunter2","a":"hunter2"}"#] {
            let error = map_text(text).expect_err(text);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        let data = map(&Template::default(), &SecretPayload::new(r#"{"a":"hunter2"}"#.into(), "v")).expect("data");
        assert_eq!(format!("{data:?}"), r#"{"a"}"#);
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_texts_come_back(key in "[a-zA-Z0-9_-]{1,30}", value in "\\PC*") {
            let _ = map_text(&value);
            let text = serde_json::json!({&key: &value}).to_string();
            proptest::prop_assert_eq!(map_text(&text), Ok(vec![(key, value)]));
        }

        /// Whatever white space, order, escapes and forms of numbers it has.
        #[test]
        fn each_value_of_any_object_is_exact_to_the_byte((members, text) in arbitrary::object_of("[a-zA-Z0-9_-]{1,8}")) {
            let want: BTreeMap<String, Vec<u8>> = members.into_iter().map(|(key, value)| (key, value.bytes)).collect();
            let payload = SecretPayload::new(text.clone().into_bytes(), "v");
            for format in [Format::Auto, Format::Json] {
                let data = map(&Template { format, ..Template::default() }, &payload).expect("data");
                let data: BTreeMap<String, Vec<u8>> =
                    data.iter().map(|(key, value)| (key.to_owned(), value.to_vec())).collect();
                proptest::prop_assert_eq!(&data, &want);
            }
            let raw = map(&Template { format: Format::Raw, ..Template::default() }, &payload).expect("data");
            proptest::prop_assert_eq!(raw.get("value"), Some(text.as_bytes()));
        }

        /// Not even one byte of it may be missing.
        #[test]
        fn an_object_that_was_cut_gives_nothing((_, text) in arbitrary::object_of("[a-z]{1,4}"), cut in 0.0..1.0_f64) {
            let whole = text.trim_end();
            let cut = whole.floor_char_boundary((whole.len() as f64 * cut) as usize);
            proptest::prop_assert!(map_text(&whole[..cut]).is_err());
        }
    }
}
