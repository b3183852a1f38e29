//! A JSON object whose values stay as they stand in the text.
//!
//! `serde_json::Value` would alter numbers (`1.10`, `12345678901234567890123`), and its maps keep the last of two equal
//! keys.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{MappingError, not_an_object};

/// The members of an object by key; no key stands twice.
pub(super) struct Object<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Object<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, MappingError> {
        let members: Members<'a> = serde_json::from_str(text).map_err(|error| explain(text, &error))?;
        let mut object = BTreeMap::new();
        for (key, value) in members.0 {
            if object.insert(key.clone(), value).is_some() {
                return Err(MappingError::DuplicateKey { key });
            }
        }
        Ok(Self(object))
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(key, value)| (key.as_str(), *value))
    }

    /// The value of a key, or, where there is no such key and it begins with `/`, of an RFC 6901 pointer.
    pub(super) fn find(&self, key: &str) -> Result<Option<&'a RawValue>, MappingError> {
        if let Some(value) = self.0.get(key) {
            return Ok(Some(value));
        }
        let Some(pointer) = key.strip_prefix('/') else {
            return Ok(None);
        };
        let mut tokens = pointer.split('/').map(|token| token.replace("~1", "/").replace("~0", "~"));
        let mut found = tokens.next().and_then(|token| self.0.get(&token).copied());
        for token in tokens {
            found = match found {
                Some(value) => step(value, &token)?,
                None => return Ok(None),
            };
        }
        Ok(found)
    }
}

/// One step of a pointer, into an object or an array.
fn step<'a>(value: &'a RawValue, token: &str) -> Result<Option<&'a RawValue>, MappingError> {
    match value.get().as_bytes().first() {
        Some(b'{') => Ok(Object::parse(value.get())?.0.remove(token)),
        Some(b'[') => {
            let all: Vec<&RawValue> =
                serde_json::from_str(value.get()).map_err(|error| explain(value.get(), &error))?;
            Ok(index(token).and_then(|index| all.get(index).copied()))
        }
        _ => Ok(None),
    }
}

/// RFC 6901: digits without a leading zero.
fn index(token: &str) -> Option<usize> {
    let plain = token == "0" || (!token.starts_with('0') && token.bytes().all(|byte| byte.is_ascii_digit()));
    if plain { token.parse().ok() } else { None }
}

/// The bytes of one value.
pub(super) fn to_bytes(value: &RawValue) -> Result<Zeroizing<Vec<u8>>, MappingError> {
    let raw = value.get();
    Ok(match raw.as_bytes().first() {
        Some(b'"') => unescaped(raw).ok_or_else(|| not_an_object("a text in it is not well formed"))?,
        Some(b'n') => Zeroizing::default(),
        _ => Zeroizing::new(raw.as_bytes().to_vec()),
    })
}

/// The text between quotes without its escapes; nothing where a surrogate stands alone. Done here because serde_json
/// keeps a copy of such a text in memory that is not zeroized.
fn unescaped(quoted: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut rest = quoted.strip_prefix('"')?.strip_suffix('"')?;
    // No escape is shorter than what it stands for.
    let mut text = Zeroizing::new(Vec::with_capacity(rest.len()));
    while let Some((plain, escape)) = rest.split_once('\\') {
        text.extend_from_slice(plain.as_bytes());
        let character = match escape.chars().next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let (character, behind) = by_number(&escape[1..])?;
                text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                rest = behind;
                continue;
            }
            same @ ('"' | '\\' | '/') => same,
            _ => return None,
        };
        text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        rest = &escape[1..];
    }
    text.extend_from_slice(rest.as_bytes());
    Some(text)
}

/// The character of `XXXX`, or of `XXXX\uXXXX` for a pair of surrogates, and what follows.
fn by_number(digits: &str) -> Option<(char, &str)> {
    let unit = |digits: &str| u16::from_str_radix(digits.get(..4)?, 16).ok();
    let first = unit(digits)?;
    let (units, behind) = match (0xD800..=0xDBFF).contains(&first) {
        false => (vec![first], &digits[4..]),
        true => {
            let second = digits[4..].strip_prefix("\\u")?;
            (vec![first, unit(second)?], &second[4..])
        }
    };
    Some((char::decode_utf16(units).next()?.ok()?, behind))
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

/// The members of an object in their order.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_literally_before_it_is_a_pointer() {
        let text = r#"{"/a":"literal","a":{"b":[10,{"c":1.10}],"x/y":1,"x~y":2,"":3,"a~1b":4},"0":5}"#;
        let object = Object::parse(text).expect("an object");
        let cases = [
            ("a literal key", "/a", Some("\"literal\"")),
            ("into an object and an array", "/a/b/1/c", Some("1.10")),
            ("a whole array", "/a/b", Some("[10,{\"c\":1.10}]")),
            ("an escaped slash", "/a/x~1y", Some("1")),
            ("an escaped tilde", "/a/x~0y", Some("2")),
            ("escapes are undone once", "/a/a~01b", Some("4")),
            ("the empty key", "/a/", Some("3")),
            ("a number as a key", "/0", Some("5")),
            ("behind the end", "/a/b/2", None),
            ("a leading zero", "/a/b/00", None),
            ("the place after the last", "/a/b/-", None),
            ("a sign", "/a/b/+1", None),
            ("into a number", "/a/b/0/x", None),
            ("nothing there", "/x/y", None),
            ("no pointer", "a/b", None),
        ];
        for (case, key, want) in cases {
            let found = object.find(key).expect(case).map(RawValue::get);
            assert_eq!(found, want, "case: {case}");
        }
    }

    #[test]
    fn a_key_that_stands_twice_on_the_way_is_refused() {
        let object = Object::parse(r#"{"a":{"b":1,"b":2}}"#).expect("an object");
        assert_eq!(object.find("/a/b").err(), Some(MappingError::DuplicateKey { key: "b".into() }));
    }

    proptest::proptest! {
        /// serde_json is the reference, for texts that it wrote and for anything between quotes that is JSON.
        #[test]
        fn texts_are_unescaped_as_serde_json_does_it(
            text in ".{0,40}",
            wild in r#"([a-zé"/ ]|\\[bfnrt"\\/]|\\u[0-9a-fA-F]{4}|\\ud83d\\ude00|\\u[dD][89a-fA-F][0-9]{2}){0,12}"#,
        ) {
            for quoted in [serde_json::to_string(&text).expect("a text"), format!("\"{wild}\"")] {
                let Ok(raw) = serde_json::from_str::<&RawValue>(&quoted) else { continue };
                let want = serde_json::from_str::<String>(raw.get()).ok();
                let got = unescaped(raw.get()).map(|text| String::from_utf8(text.to_vec()).expect("UTF-8"));
                proptest::prop_assert_eq!(got, want, "{}", quoted);
            }
        }

        /// Each value that lies in an object, at any depth, is found by its pointer, and nothing behind it is.
        #[test]
        fn pointers_find_what_they_were_made_for((members, text) in super::super::arbitrary::object_of("[a-z~0-9]{0,3}")) {
            let object = Object::parse(&text).expect("an object");
            for (key, member) in &members {
                let here = format!("/{}", key.replace('~', "~0"));
                let inside = member.pointers().into_iter().map(|(pointer, value)| (format!("{here}{pointer}"), value));
                for (pointer, value) in inside.chain([(here.clone(), member)]) {
                    let found = object.find(&pointer).expect("no key twice").map(RawValue::get);
                    proptest::prop_assert_eq!(found, Some(value.text.as_str()), "pointer {}", pointer);
                    if !value.text.starts_with(['{', '[']) {
                        proptest::prop_assert_eq!(object.find(&format!("{pointer}/0")).expect("none").map(RawValue::get), None);
                    }
                }
            }
        }
    }
}
