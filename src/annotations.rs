//! Annotation text -> `RawRequest`s: strict YAML, and nothing but YAML. Pure.
//!
//! The text comes from strangers, so it is bounded before it is parsed and parsed under a budget. Anchors, aliases,
//! merge keys, tags and a second document are refused by name; an unknown field is refused with the nearest known one.
//! No error quotes more than a short, escaped field name of the input.

use serde::Deserialize;
use serde_saphyr::{
    DuplicateKeyPolicy, Error as YamlError, MergeKeyPolicy, Options,
    granit_parser::{Event, Parser},
};

/// The largest annotation that is looked at, in bytes.
pub const MAX_ANNOTATION_BYTES: usize = 8 * 1024;
const MAX_DEPTH: usize = 8;
const MAX_NODES: usize = 512;

/// One request as it was written, before any value was checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RawRequest {
    /// An instance name from the operator's configuration.
    pub provider: String,
    /// Name, path or ARN in the store.
    pub path: String,
    /// The Secret to create, in the pod's namespace.
    pub secret_name: String,
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

/// Parses the annotation of a pod.
///
/// # Errors
/// [`AnnotationError`] when the text is not exactly one object of known fields.
pub fn parse(text: &str) -> Result<Vec<RawRequest>, AnnotationError> {
    if text.len() > MAX_ANNOTATION_BYTES {
        return Err(invalid(format!("is {} bytes long; at most {MAX_ANNOTATION_BYTES} are allowed", text.len())));
    }
    if text.trim().is_empty() {
        return Err(invalid("is empty; write provider, path and secretName"));
    }
    refuse_unsafe_yaml(text)?;
    let request = serde_saphyr::from_str_with_options(text, options()).map_err(|error| explain(&error))?;
    Ok(vec![request])
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

/// What YAML allows and we do not: these change what a text means without being seen, and the deserializer ignores
/// tags.
fn refuse_unsafe_yaml(text: &str) -> Result<(), AnnotationError> {
    let (mut documents, mut nodes, mut depth) = (0, 0, 0_usize);
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let at = error.marker();
            invalid(format!("is not YAML (line {}, column {})", at.line(), at.col() + 1))
        })?;
        let (line, column) = (span.start.line(), span.start.col() + 1);
        let refuse = |what: &str| Err(invalid(format!("{what} at line {line}, column {column}; write plain values")));
        nodes += 1;
        match event {
            Event::Alias(_) | Event::UnresolvedAlias(_) => return refuse("has an alias (`*name`)"),
            Event::DocumentStart(..) => documents += 1,
            Event::Scalar(_, _, anchor, tag) => refuse_properties(anchor, tag.is_some()).or_else(refuse)?,
            Event::SequenceStart(_, anchor, tag) | Event::MappingStart(_, anchor, tag) => {
                refuse_properties(anchor, tag.is_some()).or_else(refuse)?;
                depth += 1;
            }
            Event::SequenceEnd | Event::MappingEnd => depth = depth.saturating_sub(1),
            _ => {}
        }
        if documents > 1 {
            return refuse("has a second document");
        }
        if depth > MAX_DEPTH || nodes > MAX_NODES {
            return refuse("is nested too deeply or has too many values");
        }
    }
    Ok(())
}

fn refuse_properties(anchor: usize, tagged: bool) -> Result<(), &'static str> {
    match (anchor, tagged) {
        (0, false) => Ok(()),
        (0, true) => Err("has a tag (`!name`)"),
        _ => Err("has an anchor (`&name`)"),
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
        YamlError::DuplicateMappingKey { key, .. } => match key {
            Some(key) => format!("field {} stands twice{place}; keep one", quoted(key)),
            None => format!("a field stands twice{place}; keep one"),
        },
        YamlError::MergeKeyNotAllowed { .. } => format!("has a merge key (`<<`){place}; write plain values"),
        YamlError::NullIntoString { .. } => format!("has a field without a value{place}; write a text"),
        _ => format!("must be one object with the text fields provider, path and secretName{place}"),
    };
    invalid(problem)
}

/// `; did you mean ...` when something known is close to what was written.
pub(crate) fn did_you_mean<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|name| (strsim::damerau_levenshtein(&written.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min()
        .map(|(_, name)| format!("; did you mean `{name}`?"))
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
    use super::*;

    const GOOD: &str = "provider: aws-secretsmanager\npath: /prod/codnod/config\nsecretName: app-credentials\n";

    fn good() -> RawRequest {
        RawRequest {
            provider: "aws-secretsmanager".into(),
            path: "/prod/codnod/config".into(),
            secret_name: "app-credentials".into(),
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
            ("scalar", "app-credentials".into(), "must be one object"),
            ("list", format!("- {}", GOOD.replace('\n', "\n  ").trim_end()), "must be one object"),
            ("missing field", "provider: a\npath: b\n".into(), "field `secretName` is missing"),
            ("near miss", GOOD.replace("secretName", "secretname"), "did you mean `secretName`?"),
            ("unknown field", format!("{GOOD}namespace: kube-system\n"), "field `namespace` is not known (line 4"),
            ("endpoint is not the tenant's", format!("{GOOD}endpoint: http://evil\n"), "field `endpoint` is not known"),
            ("duplicate", format!("{GOOD}path: /other\n"), "`path` stands twice"),
            ("wrong type", GOOD.replace("/prod/codnod/config", "[a, b]"), "text fields"),
            ("null", GOOD.replace("/prod/codnod/config", "null"), "without a value (line 2"),
            ("anchor", GOOD.replace("/prod", "&a /prod"), "has an anchor"),
            ("alias", format!("{GOOD}x: *a\n"), "is not YAML"),
            ("resolved alias", "a: &a x\nprovider: *a\n".into(), "has an anchor"),
            ("tag", GOOD.replace("/prod", "!!binary /prod"), "has a tag"),
            ("unknown tag", GOOD.replace("/prod", "!env /prod"), "has a tag"),
            ("merge key", format!("{GOOD}<<: {{a: b}}\n"), "merge key"),
            ("second document", format!("{GOOD}---\n{GOOD}"), "second document"),
            ("unclosed", "{provider: a".into(), "is not YAML"),
            ("nested", format!("{}{}", "[".repeat(20), "]".repeat(20)), "nested too deeply"),
            ("nested bomb", "[".repeat(4000), "is not YAML"),
            ("wide bomb", format!("{{{}}}", "a: b, ".repeat(1000)), "too many values"),
        ];
        for (case, text, want) in cases {
            let error = parse(&text).expect_err(case).to_string();
            assert!(error.contains(want), "case: {case}: {error:?} lacks {want:?}");
            assert!(error.starts_with("annotation jasm.codnod.io/secret-sync: "), "case: {case}: {error}");
        }
    }

    #[test]
    fn a_message_shows_no_control_characters_and_no_long_words() {
        let error = parse(&format!("{GOOD}\"\\e[31m{}\": x\n", "y".repeat(500))).expect_err("unknown field");
        let text = error.to_string();
        assert!(text.is_ascii() || text.contains('\u{fffd}'), "{text}");
        assert!(!text.contains('\u{1b}') && text.len() < 300, "{text}");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn reads_back_what_was_rendered(provider in "[a-z][a-z0-9-]{0,20}", path in "[ -~]{1,60}", name in "[a-z][a-z0-9.-]{0,20}") {
            let text = serde_json::json!({"provider": provider, "path": path, "secretName": name}).to_string();
            let want = RawRequest { provider, path, secret_name: name };
            proptest::prop_assert_eq!(parse(&text), Ok(vec![want]));
        }
    }
}
