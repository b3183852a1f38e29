//! Any bytes as the value of a secret, in every format: nothing panics, and what becomes of an object agrees with what
//! another reader of JSON makes of it.

#![no_main]

use std::collections::BTreeMap;

use jasm::{
    mapping::{MAX_SECRET_BYTES, MappingError, map},
    request::{Format, Template},
    secret_value::SecretPayload,
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Data key and key of the source.
const KEYS: [(&str, &str); 5] = [("A", "A"), ("B", "/B"), ("C", "/C/0"), ("D", "/D/a~1b/0"), ("E", "/")];

fuzz_target!(|value: &[u8]| {
    let by = |format, keys| Template { format, keys, ..Template::default() };
    if value.is_empty() {
        return;
    }
    let text = std::str::from_utf8(value).is_ok();
    for payload in
        [text.then(|| SecretPayload::new(value.to_vec(), "v")), Some(SecretPayload::binary(value.to_vec(), "v"))]
    {
        let Some(payload) = payload else { continue };
        let raw =
            map(&by(Format::Raw, None), &payload).map(|data| data.iter().map(|(_, bytes)| bytes == value).collect());
        assert!(raw == Ok(vec![true]) || matches!(raw, Err(MappingError::TooLarge { .. })), "{raw:?}");
        if let Ok(data) = map(&by(Format::Auto, None), &payload) {
            assert!(data.size() <= MAX_SECRET_BYTES && data.iter().count() > 0);
        }
        let object: Option<BTreeMap<String, Value>> = serde_json::from_slice(value).ok();
        if let (Ok(data), Some(object)) = (map(&by(Format::Json, None), &payload), &object) {
            assert_eq!(data.iter().count(), object.len());
            data.iter().for_each(|(key, bytes)| agrees(&object[key], bytes));
        }
        for (key, source) in KEYS {
            let chosen = BTreeMap::from([(key.to_owned(), source.to_owned())]);
            match map(&by(Format::Json, Some(chosen)), &payload) {
                Ok(data) => {
                    // A key that is literally called so comes first; of equal keys on the way the other reader keeps one.
                    let found = object.as_ref().and_then(|object| {
                        object.get(source).or_else(|| {
                            let (first, rest) = source.strip_prefix('/')?.split_once('/').unwrap_or((&source[1..], ""));
                            let rest = if rest.is_empty() { String::new() } else { format!("/{rest}") };
                            object.get(first)?.pointer(&rest)
                        })
                    });
                    if let Some(found) = found {
                        data.iter().for_each(|(_, bytes)| agrees(found, bytes));
                    }
                }
                Err(error) => assert!(error.to_string().len() < 900, "{error}"),
            }
        }
    }
});

/// Numbers aside, which the other reader alters.
fn agrees(value: &Value, bytes: &[u8]) {
    match value {
        Value::Null => assert!(bytes.is_empty()),
        Value::String(text) => assert_eq!(text.as_bytes(), bytes),
        other => assert_eq!(&serde_json::from_slice::<Value>(bytes).expect("what stands there is JSON"), other),
    }
}
