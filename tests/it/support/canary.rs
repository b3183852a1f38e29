//! Looks for secret values in text, in every form in which they could get there.

use std::fmt::Write as _;

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Shorter values, and shorter pieces of their forms, stand in any long text by chance.
const SHORTEST: usize = 8;

/// Secret values, and what they look like in text.
pub(crate) struct Canary {
    forms: Vec<Form>,
}

/// One value in one form. No `Debug`: a message shall name it, not show it.
struct Form {
    /// Which of the values, from 0.
    value: usize,
    name: String,
    text: String,
    /// Looked for where white space is taken out of the text: lists of numbers are printed with and without.
    packed: bool,
}

impl Canary {
    /// # Panics
    /// When a value is too short to tell it from chance.
    pub(crate) fn new<V: AsRef<[u8]>>(values: impl IntoIterator<Item = V>) -> Self {
        let mut forms = Vec::new();
        for (index, value) in values.into_iter().enumerate() {
            let value = value.as_ref();
            assert!(value.len() >= SHORTEST, "value {index} has less than {SHORTEST} bytes, which may occur by chance");
            forms.extend(forms_of(value).into_iter().map(|(name, text, packed)| Form {
                value: index,
                name,
                text,
                packed,
            }));
        }
        Self { forms }
    }

    /// Where values were found: `value 3 in the form base64`. Empty when the text is clean.
    pub(crate) fn search(&self, text: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(text);
        let packed: String = text.split_whitespace().collect();
        let stands_in =
            |form: &&Form| if form.packed { packed.contains(&form.text) } else { text.contains(&form.text) };
        let found = self.forms.iter().filter(stands_in);
        found.map(|form| format!("value {} in the form {}", form.value, form.name)).collect()
    }

    /// # Panics
    /// When a value stands in the text, with the text's origin and the value's form, never the value.
    pub(crate) fn assert_absent(&self, origin: &str, text: impl AsRef<[u8]>) {
        let found = self.search(text.as_ref());
        assert!(found.is_empty(), "{origin} holds secret values: {}", found.join(", "));
    }
}

/// Name, text and whether white space is ignored, for all forms of a value.
fn forms_of(value: &[u8]) -> Vec<(String, String, bool)> {
    let mut forms = Vec::new();
    for (layer, bytes) in layers(value) {
        // What is written inside another text may be escaped once more or encoded with it.
        forms.push((layer.clone(), String::from_utf8_lossy(&bytes).into_owned(), false));
        forms.extend(encoded(&bytes).map(|(name, text)| (format!("{name} of {layer}"), text, false)));
        forms.extend(numbers(&bytes).map(|(name, text)| (format!("{name} of {layer}"), text, true)));
    }
    // An error message or a log may quote the beginning or the end only.
    let text = String::from_utf8_lossy(value);
    if text.len() >= 4 * SHORTEST {
        let (first, second) = text.split_at(text.floor_char_boundary(text.len() / 2));
        forms.extend(
            [("first half", first), ("second half", second)]
                .map(|(name, half)| (name.to_owned(), half.to_owned(), false)),
        );
    }
    forms.retain(|(_, text, _)| text.len() >= SHORTEST);
    forms.sort_by(|one, other| one.1.cmp(&other.1));
    forms.dedup_by(|one, other| one.1 == other.1 && one.2 == other.2);
    forms
}

/// The value as it is, and as the escaping of a text around it makes it.
fn layers(value: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut layers = vec![
        ("raw".to_owned(), value.to_vec()),
        ("bytes in Rust's form".to_owned(), value.escape_ascii().to_string().into_bytes()),
        // The same but for the apostrophe: what SDKs print of a `Bytes`.
        ("bytes in the form of Bytes".to_owned(), printed(value).into_bytes()),
        ("URL-percent".to_owned(), percent(value, "%20", |byte| format!("%{byte:02X}")).into_bytes()),
        ("URL-percent in lower case".to_owned(), percent(value, "%20", |byte| format!("%{byte:02x}")).into_bytes()),
        ("form-percent".to_owned(), percent(value, "+", |byte| format!("%{byte:02X}")).into_bytes()),
    ];
    if let Ok(text) = std::str::from_utf8(value) {
        let once = json(text);
        layers.push(("text in Rust's form".to_owned(), unquoted(&format!("{text:?}")).into_bytes()));
        layers.push(("JSON escaped twice".to_owned(), json(&once).into_bytes()));
        layers.push(("JSON with ASCII only".to_owned(), ascii(&once, "").into_bytes()));
        layers.push(("JSON as Go writes it".to_owned(), ascii(&once, "<>&\u{2028}\u{2029}").into_bytes()));
        layers.push(("JSON".to_owned(), once.into_bytes()));
    }
    layers
}

fn printed(value: &[u8]) -> String {
    let text = format!("{:?}", Bytes::copy_from_slice(value));
    unquoted(text.strip_prefix('b').unwrap_or(&text))
}

fn json(text: &str) -> String {
    unquoted(&serde_json::to_string(text).expect("a text has a JSON form"))
}

fn unquoted(text: &str) -> String {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text).to_owned()
}

/// Writes characters as `\u....`: these, or all beyond ASCII where none are named.
fn ascii(text: &str, these: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if these.contains(character) || (these.is_empty() && !character.is_ascii()) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(character);
        }
    }
    out
}

fn percent(bytes: &[u8], space: &str, escape: fn(u8) -> String) -> String {
    let one = |byte: &u8| match byte {
        b' ' => space.to_owned(),
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(*byte).to_string(),
        byte => escape(*byte),
    };
    bytes.iter().map(one).collect()
}

/// Base64 in both alphabets and at each of the three places in a group at which the value may begin, and hex.
fn encoded(bytes: &[u8]) -> impl Iterator<Item = (String, String)> {
    let base64 = (0..3).flat_map(|place| {
        let padded: Vec<u8> = std::iter::repeat_n(0, place).chain(bytes.iter().copied()).collect();
        // Only the characters that no byte before or after the value has a part in.
        let own = (place * 8).div_ceil(6)..padded.len() * 8 / 6;
        [("base64", STANDARD_NO_PAD), ("base64url", URL_SAFE_NO_PAD)].map(|(name, alphabet)| {
            let text = alphabet.encode(&padded);
            (format!("{name} at place {place}"), text.get(own.clone()).unwrap_or_default().to_owned())
        })
    });
    let hex = |lower: bool| {
        bytes.iter().map(|byte| if lower { format!("{byte:02x}") } else { format!("{byte:02X}") }).collect::<String>()
    };
    base64.chain([("hex".to_owned(), hex(true)), ("hex in upper case".to_owned(), hex(false))])
}

/// Lists as `{:?}`, `{:x?}` and serde write them, without their brackets and spaces.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = (String, String)> {
    let list = |write: fn(&u8) -> String| bytes.iter().map(write).collect::<Vec<_>>().join(",");
    [
        ("list of numbers".to_owned(), list(|byte| byte.to_string())),
        ("list of hex".to_owned(), list(|byte| format!("{byte:x}"))),
        ("list of two-digit hex".to_owned(), list(|byte| format!("{byte:02x}"))),
    ]
    .into_iter()
}

/// Random values of as many shapes as a store holds, for a JSON secret: no two alike, each long enough for a [`Canary`].
pub(crate) fn random_values(count: usize) -> Vec<String> {
    (0..count).map(random_value).collect()
}

fn random_value(index: usize) -> String {
    let word = |length: usize| std::iter::repeat_with(fastrand::alphanumeric).take(length).collect::<String>();
    let bytes = |length: usize| std::iter::repeat_with(|| fastrand::u8(..)).take(length).collect::<Vec<u8>>();
    match index % 10 {
        0 => word(24),
        1 => format!("{}\"{}\\{}'", word(8), word(8), word(8)),
        2 => format!("{}\n{}\r\n{}\t", word(12), word(12), word(12)),
        3 => format!("pässwörd-{}-密码-🔑-{}", word(8), word(8)),
        4 => format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD_NO_PAD.encode(bytes(48))),
        5 => format!("postgres://{}:{}%2F{}@db.example/app?a=1&b=<2>", word(8), word(10), word(10)),
        6 => format!("{{\"{}\": {{\"key\": \"{}\"}}}}", word(12), word(16)),
        7 => word(4096),
        8 => format!("{}.{}+/=", STANDARD_NO_PAD.encode(bytes(20)), STANDARD_NO_PAD.encode(bytes(20))),
        _ => format!(" {} %s {{}} $({}) ", word(10), word(10)),
    }
}
