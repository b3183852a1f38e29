//! JSON texts of any shape, each made together with what it means, so that no second parser is needed to tell.

use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    strategy::BoxedStrategy,
};

/// A JSON value as it stands in a text.
#[derive(Debug, Clone)]
pub(super) struct Json {
    /// Without white space around it.
    pub(super) text: String,
    /// What it is as the value of a data key.
    pub(super) bytes: Vec<u8>,
    /// What lies in it.
    inside: Inside,
}

#[derive(Debug, Clone)]
enum Inside {
    Nothing,
    Items(Vec<Json>),
    Members(Vec<(String, Json)>),
}

impl Json {
    /// All values in it, at any depth, by their RFC 6901 pointer from here.
    pub(super) fn pointers(&self) -> Vec<(String, &Json)> {
        let inside: Vec<(String, &Json)> = match &self.inside {
            Inside::Nothing => Vec::new(),
            Inside::Items(items) => items.iter().enumerate().map(|(index, item)| (index.to_string(), item)).collect(),
            Inside::Members(members) => members.iter().map(|(key, value)| (key.clone(), value)).collect(),
        };
        let mut pointers = Vec::new();
        for (token, value) in inside {
            let here = format!("/{}", token.replace('~', "~0").replace('/', "~1"));
            pointers.extend(value.pointers().into_iter().map(|(rest, value)| (format!("{here}{rest}"), value)));
            pointers.push((here, value));
        }
        pointers
    }
}

/// Any value whose keys, at any depth, are any text.
pub(super) fn value() -> impl Strategy<Value = Json> {
    let scalar = prop_oneof![text(), number(), prop_oneof!["true", "false", "null"].prop_map(literal)];
    scalar.prop_recursive(4, 32, 4, |inner| {
        let list = (vec(inner.clone(), 0..4), space()).prop_map(|(items, space)| array(items, &space));
        let map = (vec((any::<String>(), inner), 0..4), space(), any::<u8>())
            .prop_map(|(members, space, style)| object(members, &space, style));
        prop_oneof![list, map]
    })
}

/// An object with such keys, in any order; the first of two that are equal stays.
pub(super) fn object_of(keys: &'static str) -> impl Strategy<Value = (Vec<(String, Json)>, String)> {
    (vec((keys, value()), 1..8), space(), any::<u8>()).prop_map(|(members, space, style)| {
        let members = distinct(members);
        let text = format!("{space}{}{space}", object(members.clone(), &space, style).text);
        (members, text)
    })
}

fn distinct(members: Vec<(String, Json)>) -> Vec<(String, Json)> {
    let mut distinct: Vec<(String, Json)> = Vec::new();
    for (key, value) in members {
        if distinct.iter().all(|(known, _)| *known != key) {
            distinct.push((key, value));
        }
    }
    distinct
}

fn array(items: Vec<Json>, space: &str) -> Json {
    let texts: Vec<String> = items.iter().map(|item| format!("{space}{}{space}", item.text)).collect();
    whole(format!("[{}]", texts.join(",")), Inside::Items(items))
}

fn object(members: Vec<(String, Json)>, space: &str, style: u8) -> Json {
    let members = distinct(members);
    let member = |(key, value): &(String, Json)| {
        let key: String = key.chars().map(|c| escaped(c, style)).collect();
        format!("{space}\"{key}\"{space}:{space}{}{space}", value.text)
    };
    let texts: Vec<String> = members.iter().map(member).collect();
    whole(format!("{{{}}}", texts.join(",")), Inside::Members(members))
}

/// What stays as it stands.
fn whole(text: String, inside: Inside) -> Json {
    Json { bytes: text.clone().into_bytes(), text, inside }
}

fn literal(word: String) -> Json {
    match word.as_str() {
        "null" => Json { bytes: Vec::new(), text: word, inside: Inside::Nothing },
        _ => whole(word, Inside::Nothing),
    }
}

fn number() -> impl Strategy<Value = Json> {
    "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,5})?".prop_map(|text| whole(text, Inside::Nothing))
}

fn text() -> impl Strategy<Value = Json> {
    vec((any::<char>(), any::<u8>()), 0..12).prop_map(|characters| {
        let written: String = characters.iter().map(|(c, style)| escaped(*c, *style)).collect();
        let means: String = characters.iter().map(|(c, _)| *c).collect();
        Json { text: format!("\"{written}\""), bytes: means.into_bytes(), inside: Inside::Nothing }
    })
}

fn space() -> BoxedStrategy<String> {
    prop_oneof![Just(String::new()), "[ \t\r\n]{0,3}"].boxed()
}

/// A character in one of the forms that JSON has for it.
fn escaped(c: char, style: u8) -> String {
    let short = "\"\\/\u{8}\u{c}\n\r\t".find(c).and_then(|at| "\"\\/bfnrt".chars().nth(at));
    let has_to_be = c < ' ' || c == '"' || c == '\\';
    match (short, style % 4) {
        (Some(short), 0) => format!("\\{short}"),
        (_, 1) => units(c, |unit| format!("\\u{unit:04x}")),
        (_, 2) => units(c, |unit| format!("\\u{unit:04X}")),
        _ if has_to_be => units(c, |unit| format!("\\u{unit:04x}")),
        _ => c.to_string(),
    }
}

fn units(c: char, write: fn(u16) -> String) -> String {
    c.encode_utf16(&mut [0; 2]).iter().map(|unit| write(*unit)).collect()
}
