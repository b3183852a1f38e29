//! Annotation text -> `RawRequest`s: strict YAML, and nothing but YAML. Pure.
//!
//! The text comes from strangers, so it is bounded before it is parsed and parsed under a budget. Anchors, aliases,
//! merge keys, tags and a second document are refused by name; an unknown field is refused with the nearest known one.
//! No error quotes more than a short, escaped field name of the input.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IntoDeserializer, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{
    DuplicateKeyPolicy, Error as YamlError, MergeKeyPolicy, Options,
    granit_parser::{Event, Parser},
};

use crate::request::{Format, KindWish, SecretType};

/// The largest annotation that is looked at, in bytes.
pub const MAX_ANNOTATION_BYTES: usize = 8 * 1024;
/// The most secrets that one annotation can ask for.
pub const MAX_REQUESTS: usize = 16;
/// Four are needed.
const MAX_DEPTH: usize = 8;
/// Every node is a character at least; this is what 16 requests with 50 keys each take.
const MAX_NODES: usize = 2048;
/// The field around a list of requests.
const LIST_FIELD: &str = "secrets";

/// One request as it was written, before any value was checked. `docs/annotation.md` explains each field to users.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RawRequest {
    /// An instance name from the operator's configuration.
    pub provider: String,
    /// Name, path or ARN in the store.
    pub path: String,
    /// The Secret to create, in the pod's namespace; in central mode it may be absent.
    #[serde(default, deserialize_with = "present")]
    pub secret_name: Option<String>,
    /// Which keys of the source become which data keys; all of them where it is absent.
    #[serde(default, deserialize_with = "present")]
    pub keys: Option<RawKeys>,
    /// The store's own term for a version; the current one where it is absent.
    #[serde(default, deserialize_with = "present")]
    pub version: Option<String>,
    /// How the value is read.
    #[serde(default, deserialize_with = "word")]
    pub format: Format,
    /// The one data key of a value that is not taken apart.
    #[serde(default, deserialize_with = "present")]
    pub data_key: Option<String>,
    /// The type of the Secret.
    #[serde(default, deserialize_with = "word")]
    pub r#type: SecretType,
    /// Whether it is a Secret or a ConfigMap.
    #[serde(default, deserialize_with = "word")]
    pub kind: KindWish,
}

/// Pairs of data key and source key, in the order of the text. In a list both are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawKeys(pub Vec<(String, String)>);

/// The form that is not a bare object or list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    secrets: Vec<RawRequest>,
}

/// How requests stand in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Object,
    List,
    Wrapped,
}

/// Why an annotation is not a request. The text is for the pod's owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[error("annotation {}: {problem}", crate::pod::SYNC_ANNOTATION)]
pub struct AnnotationError {
    /// What is wrong, where, and what to write instead.
    pub problem: String,
}

/// Says what is wrong with an annotation.
pub(crate) fn invalid(problem: impl Into<String>) -> AnnotationError {
    AnnotationError { problem: problem.into() }
}

/// Parses an annotation: one object, a list of objects, or an object with such a list under `secrets`.
///
/// # Errors
/// [`AnnotationError`] when the text is anything else, has an unknown field or no request, or more than 16.
pub fn parse(text: &str) -> Result<Vec<RawRequest>, AnnotationError> {
    if text.len() > MAX_ANNOTATION_BYTES {
        return Err(invalid(format!("is too long; at most {MAX_ANNOTATION_BYTES} bytes are allowed")));
    }
    if text.trim().is_empty() {
        return Err(invalid("is empty; write provider, path and secretName"));
    }
    let requests = match form_of(text)? {
        Form::Object => vec![read::<RawRequest>(text)?],
        Form::List => read::<Vec<RawRequest>>(text)?,
        Form::Wrapped => read::<Wrapped>(text)?.secrets,
    };
    match requests.len() {
        0 => Err(invalid("asks for nothing; write provider, path and secretName, or remove it")),
        1..=MAX_REQUESTS => Ok(requests),
        count => Err(invalid(format!("asks for {count} secrets; at most {MAX_REQUESTS} are allowed for a pod"))),
    }
}

fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, AnnotationError> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| explain(&error))
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_aliases: 0,
            max_anchors: 0,
            max_depth: MAX_DEPTH,
            max_documents: 1,
            max_nodes: MAX_NODES,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        // An error with a snippet would quote the input.
        with_snippet: false,
    }
}

/// A field that is written has a value: `version:` alone never means the default.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// One of a closed list of words. Serde itself would take the object `{raw: }` for `raw`, and a missing value for the
/// word `~`.
fn word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::deserialize(String::deserialize(deserializer)?.into_deserializer())
}

impl<'de> Deserialize<'de> for RawKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = RawKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("keys as a map or a list")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawKeys, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(RawKeys(pairs))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawKeys, A::Error> {
                let mut pairs = Vec::new();
                while let Some(key) = list.next_element::<String>()? {
                    pairs.push((key.clone(), key));
                }
                Ok(RawKeys(pairs))
            }
        }
        deserializer.deserialize_any(Keys)
    }
}

/// Finds the form, and refuses what YAML allows and we do not: these change what a text means without being seen, and
/// the deserializer ignores tags.
fn form_of(text: &str) -> Result<Form, AnnotationError> {
    let mut scan = Scan::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let at = error.marker();
            let place = format!("line {}, column {}", at.line(), at.col() + 1);
            invalid(format!("is not YAML ({place}); check quotes, brackets and indentation there"))
        })?;
        scan.see(&event).map_err(|(what, remedy)| {
            let (line, column) = (span.start.line(), span.start.col() + 1);
            invalid(format!("{what} at line {line}, column {column}; {remedy}"))
        })?;
    }
    scan.form.ok_or_else(|| invalid(NOT_A_REQUEST))
}

/// What was seen of a text so far.
#[derive(Default)]
struct Scan {
    documents: usize,
    nodes: usize,
    depth: usize,
    form: Option<Form>,
    /// The next node of the outermost object is a key.
    at_key: bool,
}

impl Scan {
    fn see(&mut self, event: &Event<'_>) -> Result<(), Refusal> {
        match event {
            Event::Alias(_) | Event::UnresolvedAlias(_) => return Err(("has an alias (`*name`)", PLAIN)),
            Event::DocumentStart(..) => self.documents += 1,
            Event::Scalar(text, _, anchor, tag) => {
                refuse_properties(*anchor, tag.is_some())?;
                if self.node() && self.form == Some(Form::Object) && text == LIST_FIELD {
                    self.form = Some(Form::Wrapped);
                }
            }
            Event::SequenceStart(_, anchor, tag) => {
                refuse_properties(*anchor, tag.is_some())?;
                self.open(Form::List);
            }
            Event::MappingStart(_, anchor, tag) => {
                refuse_properties(*anchor, tag.is_some())?;
                self.open(Form::Object);
            }
            Event::SequenceEnd | Event::MappingEnd => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        if self.documents > 1 {
            return Err(("has a second document", "write a list to ask for several secrets"));
        }
        if self.depth > MAX_DEPTH || self.nodes > MAX_NODES {
            return Err(("is nested too deeply or has too many values", PLAIN));
        }
        Ok(())
    }

    /// Notes a node; says whether it is a key of the outermost object, whose keys and values come in turns.
    fn node(&mut self) -> bool {
        self.nodes += 1;
        let is_key = self.depth == 1 && self.at_key;
        self.at_key ^= self.depth == 1;
        is_key
    }

    fn open(&mut self, form: Form) {
        self.node();
        if self.form.is_none() {
            self.form = Some(form);
            self.at_key = true;
        }
        self.depth += 1;
    }
}

const NOT_A_REQUEST: &str = "must be an object with provider, path and secretName, or a list of such objects";

/// What a text has that is refused, and what to do.
type Refusal = (&'static str, &'static str);

const PLAIN: &str = "write plain values";

fn refuse_properties(anchor: usize, tagged: bool) -> Result<(), Refusal> {
    match (anchor, tagged) {
        (0, false) => Ok(()),
        (0, true) => Err(("has a tag (`!name`)", PLAIN)),
        _ => Err(("has an anchor (`&name`)", PLAIN)),
    }
}

/// Turns the deserializer's error into ours: field, place and near miss, never a quoted value.
fn explain(error: &YamlError) -> AnnotationError {
    let place = error.location().map(|at| format!(" (line {}, column {})", at.line(), at.column())).unwrap_or_default();
    let problem = match error.without_snippet() {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            format!(
                "field {} is not known{place}{}; known fields: {}",
                quoted(field),
                did_you_mean(field, expected.iter().copied()),
                expected.join(", ")
            )
        }
        YamlError::SerdeMissingField { field, .. } => format!("field `{field}` is missing"),
        YamlError::DuplicateMappingKey { key, .. } => {
            let field = key.as_ref().map_or_else(|| "a field".to_owned(), |key| format!("field {}", quoted(key)));
            format!("{field} stands twice{place}; keep one")
        }
        YamlError::MergeKeyNotAllowed { .. } => format!("has a merge key (`<<`){place}; write plain values"),
        YamlError::NullIntoString { .. } => format!("has a field without a value{place}; write a text"),
        YamlError::SerdeUnknownVariant { variant, expected, .. } => format!(
            "value {} is not known{place}{}; known values: {}",
            quoted(variant),
            did_you_mean(variant, expected.iter().copied()),
            expected.join(", ")
        ),
        _ => format!(
            "has a value of another type than belongs there{place}; a request is an object, its fields are texts, and \
             `keys` is a map or a list of texts"
        ),
    };
    invalid(problem)
}

/// Longer words are no near misses of anything that people write, and cost work by the product of lengths.
const MAX_WORD: usize = 64;

/// `; did you mean ...` when something known is close to what was written.
pub(crate) fn did_you_mean<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> String {
    let written = written.to_lowercase();
    let length = written.chars().count();
    if length > MAX_WORD {
        return String::new();
    }
    let near = |name: &str| (name.len() / 3).max(1);
    known
        .filter(|name| name.len() <= MAX_WORD)
        .map(|name| (name.to_lowercase(), name))
        // A distance is no less than the difference in length, and takes work by the product of both lengths.
        .filter(|(lower, name)| length.abs_diff(lower.chars().count()) <= near(name))
        .map(|(lower, name)| (strsim::damerau_levenshtein(&written, &lower), name))
        .filter(|(distance, name)| *distance <= near(name))
        .min()
        .map(|(_, name)| format!("; did you mean {}?", quoted(name)))
        .unwrap_or_default()
}

/// A stranger's word as it may stand in a message: short, and with nothing that a terminal would act on.
pub(crate) fn quoted(word: &str) -> String {
    const SHOWN: usize = 64;
    let mut shown: String =
        word.chars().take(SHOWN).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '\u{fffd}' }).collect();
    if word.chars().count() > SHOWN {
        shown.push_str("...");
    }
    format!("`{shown}`")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::{
        collection::{btree_map, vec},
        option, prop_assert, prop_oneof,
        sample::select,
        strategy::Strategy,
        test_runner::TestCaseError,
    };
    use serde_json::{Value, json};

    use super::*;

    const GOOD: &str = "provider: aws-secretsmanager\npath: /prod/codnod/config\nsecretName: app-credentials\n";

    fn good() -> RawRequest {
        RawRequest {
            provider: "aws-secretsmanager".into(),
            path: "/prod/codnod/config".into(),
            secret_name: Some("app-credentials".into()),
            keys: None,
            version: None,
            format: Format::Auto,
            data_key: None,
            r#type: SecretType::Opaque,
            kind: KindWish::Auto,
        }
    }

    #[test]
    fn the_forms_of_one_object() {
        let cases = [
            ("block", GOOD.to_owned()),
            ("flow", "{provider: aws-secretsmanager, path: /prod/codnod/config, secretName: app-credentials}".into()),
            ("JSON", r#"{"provider":"aws-secretsmanager","path":"/prod/codnod/config","secretName":"app-credentials"}"#.into()),
            ("comments, quotes and CRLF", "# ours !important &x *y\r\nprovider: 'aws-secretsmanager'\r\npath: /prod/codnod/config\r\nsecretName: \"app-credentials\"\r\n".into()),
            ("document marker", format!("---\n{GOOD}")),
            ("many comments, which are no values", format!("{}{GOOD}", "#\n".repeat(3000))),
            ("list", format!("- {}", GOOD.replace('\n', "\n  ").trim_end())),
            ("list in an object", format!("secrets:\n- {}", GOOD.replace('\n', "\n  ").trim_end())),
            ("list in JSON", r#"{"secrets":[{"provider":"aws-secretsmanager","path":"/prod/codnod/config","secretName":"app-credentials"}]}"#.into()),
        ];
        for (case, text) in cases {
            assert_eq!(parse(&text), Ok(vec![good()]), "case: {case}");
        }
    }

    #[test]
    fn everything_else_is_refused_and_the_message_says_why() {
        let cases: Vec<(&str, String, &str)> = vec![
            ("nothing", String::new(), "is empty"),
            ("blanks", " \n\t".into(), "is empty"),
            ("oversized", format!("{GOOD}#{}", "x".repeat(MAX_ANNOTATION_BYTES)), "at most 8192"),
            ("scalar", "app-credentials".into(), "must be an object"),
            ("comment", "# nothing\n".into(), "must be an object"),
            ("empty list", "[]".into(), "asks for nothing"),
            ("empty list in an object", "secrets: []".into(), "asks for nothing"),
            ("empty object", "{}".into(), "field `provider` is missing"),
            (
                "17 requests",
                format!("[{}]", format!("{{{}}},", GOOD.trim_end().replace('\n', ", ")).repeat(17)),
                "asks for 17 secrets; at most 16",
            ),
            ("list beside fields", format!("{GOOD}secrets: []\n"), "field `provider` is not known (line 1"),
            (
                "secrets in a request",
                format!("- {}\n  secrets: []\n", GOOD.replace('\n', "\n  ").trim_end()),
                "field `secrets` is not known",
            ),
            ("list of texts", "[a, b]".into(), "another type"),
            ("null version", format!("{GOOD}version:\n"), "without a value (line 4"),
            ("null format", format!("{GOOD}format:\n"), "without a value (line 4"),
            ("null type", format!("{GOOD}type: ~\n"), "without a value (line 4"),
            ("format as an object", format!("{GOOD}format: {{raw: }}\n"), "another type than belongs there (line 4"),
            ("type as an object", format!("{GOOD}type: {{Opaque: }}\n"), "another type than belongs there (line 4"),
            ("null keys", format!("{GOOD}keys: null\n"), "`keys` is a map or a list of texts"),
            ("keys of another type", format!("{GOOD}keys: host\n"), "another type"),
            ("keys in keys", format!("{GOOD}keys: {{a: {{b: c}}}}\n"), "another type"),
            ("a key twice", format!("{GOOD}keys: {{a: b, a: c}}\n"), "`a` stands twice"),
            (
                "format mistyped",
                format!("{GOOD}format: jsn\n"),
                "value `jsn` is not known (line 4, column 1); did you mean `json`?; known values: auto, json, raw",
            ),
            ("format in capitals", format!("{GOOD}format: JSON\n"), "did you mean `json`?"),
            (
                "forbidden type",
                format!("{GOOD}type: kubernetes.io/service-account-token\n"),
                "known values: Opaque, kubernetes.io/tls",
            ),
            ("missing field", "provider: a\nsecretName: b\n".into(), "field `path` is missing"),
            ("near miss", GOOD.replace("secretName", "secretname"), "did you mean `secretName`?"),
            ("unknown field", format!("{GOOD}namespace: kube-system\n"), "field `namespace` is not known (line 4"),
            ("endpoint is not the tenant's", format!("{GOOD}endpoint: http://evil\n"), "field `endpoint` is not known"),
            ("duplicate", format!("{GOOD}path: /other\n"), "`path` stands twice"),
            ("wrong type", GOOD.replace("/prod/codnod/config", "[a, b]"), "another type than belongs there (line 2"),
            ("null", GOOD.replace("/prod/codnod/config", "null"), "without a value (line 2"),
            ("anchor", GOOD.replace("/prod", "&a /prod"), "has an anchor"),
            ("alias", format!("{GOOD}x: *a\n"), "is not YAML"),
            ("resolved alias", "a: &a x\nprovider: *a\n".into(), "has an anchor"),
            ("tag", GOOD.replace("/prod", "!!binary /prod"), "has a tag"),
            ("unknown tag", GOOD.replace("/prod", "!env /prod"), "has a tag"),
            ("merge key", format!("{GOOD}<<: {{a: b}}\n"), "merge key"),
            ("second document", format!("{GOOD}---\n{GOOD}"), "second document at line 4, column 1; write a list"),
            ("unclosed", "{provider: a".into(), "is not YAML (line 1, column 1); check quotes, brackets"),
            ("nested", format!("{}{}", "[".repeat(20), "]".repeat(20)), "nested too deeply"),
            ("nested bomb", "[".repeat(4000), "is not YAML"),
            ("wide bomb", format!("{{{}}}", "a: b,".repeat(1500)), "too many values"),
        ];
        for (case, text, want) in cases {
            let error = parse(&text).expect_err(case).to_string();
            assert!(error.contains(want), "case: {case}: {error:?} lacks {want:?}");
            assert!(error.starts_with("annotation jasm.codnod.io/secret-sync: "), "case: {case}: {error}");
        }
    }

    #[test]
    fn every_field_is_read_as_it_is_written() {
        let text = format!(
            "{GOOD}keys: {{DB_HOST: host, PORT: /db/0/port, yes: on}}\nversion: 007\nformat: auto\ntype: kubernetes.io/tls\n"
        );
        let pairs = [("DB_HOST", "host"), ("PORT", "/db/0/port"), ("yes", "on")];
        let want = RawRequest {
            keys: Some(RawKeys(pairs.map(|(key, source)| (key.to_owned(), source.to_owned())).to_vec())),
            version: Some("007".into()),
            r#type: SecretType::Tls,
            ..good()
        };
        assert_eq!(parse(&text), Ok(vec![want]));
        let list = parse(&format!("{GOOD}keys: [a, 1.10]\nformat: json\n")).expect("a list of keys");
        let same = |key: &str| (key.to_owned(), key.to_owned());
        assert_eq!(list[0].keys, Some(RawKeys(vec![same("a"), same("1.10")])), "numbers are texts as they stand");
        assert_eq!(list[0].format, Format::Json);
        let raw = parse(&format!("{GOOD}format: raw\ndataKey: true\n")).expect("a data key");
        assert_eq!((raw[0].format, raw[0].data_key.as_deref()), (Format::Raw, Some("true")));
    }

    #[test]
    fn the_reference_page_has_every_field_and_every_value() {
        let page = include_str!("../docs/annotation.md");
        for (text, list) in [
            ("x: y", "known fields: "),
            (&format!("{GOOD}type: x"), "known values: "),
            (&format!("{GOOD}format: x"), "known values: "),
        ] {
            let error = parse(text).expect_err("unknown").problem;
            let (_, names) = error.split_once(list).expect("a list");
            for name in names.split(", ") {
                assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/annotation.md");
            }
        }
        for limit in [
            format!("{} KiB", MAX_ANNOTATION_BYTES / 1024),
            format!("up to {MAX_REQUESTS}"),
            format!("at most {}", crate::request::MAX_PATH_BYTES),
        ] {
            assert!(page.contains(&limit), "{limit} is not in docs/annotation.md");
        }
    }

    #[test]
    fn a_message_shows_no_control_characters_and_no_long_words() {
        let error = parse(&format!("{GOOD}\"\\e[31m{}\": x\n", "y".repeat(500))).expect_err("unknown field");
        let text = error.to_string();
        assert!(text.is_ascii() || text.contains('\u{fffd}'), "{text}");
        assert!(!text.contains('\u{1b}') && text.len() < 300, "{text}");
    }

    /// What YAML is made of, and what requests are made of.
    const PIECES: &[&str] = &[
        "provider",
        "path",
        "secretName",
        "keys",
        "version",
        "format",
        "dataKey",
        "type",
        "secrets",
        "a",
        "/prod/db",
        "raw",
        "Opaque",
        "0",
        "1.10",
        "~",
        "null",
        "true",
        ".inf",
        "2026-01-01",
        ": ",
        ":",
        " :",
        ", ",
        ",",
        "- ",
        "-",
        "? ",
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'",
        "\\",
        "\\x41",
        "\\u0000",
        "\\ud83d",
        "\\\n",
        "|",
        ">",
        "|-\n",
        ">2\n",
        "&a ",
        "*a",
        "*a ",
        "!",
        "!!str ",
        "!!binary ",
        "!<x> ",
        "<<: ",
        "---",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "%TAG ! x\n",
        "#",
        " # x\n",
        "@",
        "`",
        " ",
        "  ",
        "    ",
        "\t",
        "\n",
        "\n  ",
        "\n    ",
        "\n- ",
        "\r",
        "\r\n",
        "\u{feff}",
        "\u{85}",
        "\u{2028}",
        "\u{a0}",
        "\u{0}",
        "\u{1b}[31m",
        "\u{202e}",
        "\u{e9}",
        "\u{1f511}",
        "provider: aws-secretsmanager\n",
        "path: /prod/db\n",
        "secretName: app\n",
        "{provider: a, path: b, secretName: c}",
        "keys: {A: a}\n",
        "keys: [A, B]\n",
        "format: raw\n",
    ];

    fn pieces(count: std::ops::Range<usize>) -> impl Strategy<Value = String> {
        vec(select(PIECES), count).prop_map(|pieces| pieces.concat())
    }

    /// As much of a text as is looked at.
    fn cut(mut text: String) -> String {
        text.truncate(text.floor_char_boundary(MAX_ANNOTATION_BYTES));
        text
    }

    /// What holds for any text at all.
    fn check(text: &str) -> Result<(), TestCaseError> {
        match parse(text) {
            Ok(requests) => prop_assert!((1..=MAX_REQUESTS).contains(&requests.len())),
            Err(error) => {
                let said = error.to_string();
                prop_assert!(said.len() < 900, "{}", said);
                prop_assert!(said.chars().all(|c| c == ' ' || c.is_ascii_graphic() || c == '\u{fffd}'), "{}", said);
            }
        }
        Ok(())
    }

    /// Work that grows with the square of a text shows at 8 KiB: nested lists took another parser a second. A debug build
    /// is some ten times slower, and a busy machine makes one run of many slow, but not all.
    fn is_quick(text: &str) -> Result<(), TestCaseError> {
        const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 50 } else { 5 });
        const RUNS: usize = 20;
        let run = |_| {
            let started = Instant::now();
            let _ = parse(text);
            started.elapsed()
        };
        let mut fastest = Duration::MAX;
        let quick = (0..RUNS).map(run).any(|took| {
            fastest = fastest.min(took);
            fastest <= LIMIT
        });
        prop_assert!(quick, "{:?} at the best of {} runs, at most {:?} allowed", fastest, RUNS, LIMIT);
        Ok(())
    }

    fn any_request() -> impl Strategy<Value = RawRequest> {
        let word = || proptest::prelude::any::<String>();
        let types = [
            SecretType::Opaque,
            SecretType::Tls,
            SecretType::DockerConfigJson,
            SecretType::BasicAuth,
            SecretType::SshAuth,
        ];
        let keys = prop_oneof![
            btree_map(word(), word(), 0..4).prop_map(|map| map.into_iter().collect()),
            vec(word(), 0..4).prop_map(|list| list.into_iter().map(|key| (key.clone(), key)).collect()),
        ];
        let optional = (option::of(keys.prop_map(RawKeys)), option::of(word()), option::of(word()));
        let listed = (select(&[Format::Auto, Format::Json, Format::Raw][..]), select(types.to_vec()));
        (word(), word(), word(), optional, listed).prop_map(
            |(provider, path, secret_name, (keys, version, data_key), (format, r#type))| RawRequest {
                provider,
                path,
                secret_name: Some(secret_name),
                keys,
                version,
                format,
                data_key,
                r#type,
                kind: KindWish::Auto,
            },
        )
    }

    /// A request as an object, with a list of keys where that says the same.
    fn rendered(request: &RawRequest) -> Value {
        let RawRequest { provider, path, secret_name, keys, version, format, data_key, r#type, kind: _ } = request;
        let mut object = json!({"provider": provider, "path": path, "secretName": secret_name});
        let keys = keys.as_ref().map(|RawKeys(pairs)| match pairs.iter().all(|(key, source)| key == source) {
            true => pairs.iter().map(|(key, _)| json!(key)).collect(),
            false => Value::Object(pairs.iter().map(|(key, source)| (key.clone(), json!(source))).collect()),
        });
        let format = match format {
            Format::Auto => "auto",
            Format::Json => "json",
            Format::Raw => "raw",
        };
        let optional = [
            ("keys", keys),
            ("version", version.as_ref().map(|version| json!(version))),
            ("dataKey", data_key.as_ref().map(|key| json!(key))),
            ("format", Some(json!(format))),
            ("type", Some(json!(r#type.as_str()))),
        ];
        for (field, value) in optional {
            if let Some(value) = value {
                object[field] = value;
            }
        }
        object
    }

    proptest::proptest! {
        #[test]
        fn no_text_of_any_characters_makes_it_panic(characters in vec(proptest::prelude::any::<char>(), 0..MAX_ANNOTATION_BYTES / 4)) {
            check(&String::from_iter(characters))?;
        }

        #[test]
        fn no_text_that_is_nearly_yaml_makes_it_panic(text in pieces(0..60), count in 1..200_usize) {
            check(&text)?;
            check(&cut(text.repeat(count)))?;
        }

        #[test]
        fn no_text_takes_long(before in pieces(0..4), unit in pieces(1..6), behind in pieces(0..4)) {
            let fits = MAX_ANNOTATION_BYTES / unit.len();
            is_quick(&cut(format!("{before}{}{behind}", unit.repeat(fits))))?;
        }

        #[test]
        fn reads_back_what_was_rendered(requests in vec(any_request(), 1..=3)) {
            let all: Vec<Value> = requests.iter().map(rendered).collect();
            for text in [json!(all).to_string(), json!({"secrets": all}).to_string(), format!("{:#}", json!(all))] {
                proptest::prop_assert_eq!(parse(&text), Ok(requests.clone()), "{}", text);
            }
            for text in [serde_yaml::to_string(&all), serde_yaml::to_string(&json!({"secrets": all}))] {
                let text = text.expect("YAML");
                // What writes it folds lines at these, as YAML 1.1 did.
                if text.contains(['\u{85}', '\u{2028}', '\u{2029}']) {
                    continue;
                }
                proptest::prop_assert_eq!(parse(&text), Ok(requests.clone()), "{}", text);
            }
        }
    }
}
