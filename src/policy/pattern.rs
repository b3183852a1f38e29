//! What a rule says of names and of paths. Pure.

use std::fmt;

use serde::Deserialize;

use super::Requester;
use crate::annotations::quoted;

/// An exact name, or a prefix followed by `*`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct NamePattern {
    prefix: String,
    open: bool,
}

/// A path pattern, cut at `/`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct PathPattern(Vec<Segment>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    /// `**`: any number of segments, none included.
    AnyNumber,
    /// `*`: exactly one segment.
    AnyOne,
    /// A text, put together from these.
    Text(Vec<Piece>),
}

/// A part of a segment's text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Namespace,
    ServiceAccount,
}

const NAMESPACE: &str = "{namespace}";
const SERVICE_ACCOUNT: &str = "{serviceAccount}";

impl NamePattern {
    pub(super) fn matches(&self, name: &str) -> bool {
        if self.open { name.starts_with(&self.prefix) } else { name == self.prefix }
    }

    /// Whether it matches each name that the other one matches.
    pub(super) fn covers(&self, other: &Self) -> bool {
        if self.open { other.prefix.starts_with(&self.prefix) } else { self == other }
    }

    /// Whether it is `*`.
    pub(super) fn is_any(&self) -> bool {
        self.open && self.prefix.is_empty()
    }

    /// The name, where it is an exact one.
    pub(super) fn exact(&self) -> Option<&str> {
        (!self.open).then_some(self.prefix.as_str())
    }
}

impl TryFrom<String> for NamePattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let open = text.ends_with('*');
        let prefix = text.strip_suffix('*').unwrap_or(&text);
        if prefix.contains('*') || text.is_empty() {
            return Err(format!("{} is not a name pattern: write an exact name, or a trailing `*`", quoted(&text)));
        }
        Ok(Self { prefix: prefix.to_owned(), open })
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.prefix, if self.open { "*" } else { "" })
    }
}

impl PathPattern {
    /// Matches whole segments, so that `prod/team-a` never covers `prod/team-ab`.
    pub(super) fn matches(&self, path: &str, requester: &Requester) -> bool {
        let segments: Vec<&str> = path.split('/').collect();
        let fits = |pattern: &Segment, segment: &&str| pattern.is_one(segment, requester);
        matches_from(&self.0, &segments, fits)
    }

    /// Whether it certainly matches each path that the other one matches. `false` says nothing.
    pub(super) fn covers(&self, other: &Self) -> bool {
        // The other's segments are read as those of a path: what `*` and `**` take in them, they take in its paths.
        let fits = |pattern: &Segment, segment: &Segment| {
            *segment != Segment::AnyNumber && (*pattern == Segment::AnyOne || pattern == segment)
        };
        matches_from(&self.0, &other.0, fits)
    }

    /// Whether it certainly matches every path.
    pub(super) fn is_any(&self) -> bool {
        self.0.iter().all(|segment| *segment == Segment::AnyNumber)
    }

    /// The one path that it matches, where it has neither `*` nor anything to fill in.
    pub(super) fn exact(&self) -> Option<String> {
        let literal = |segment: &Segment| match segment {
            Segment::Text(pieces) => pieces.iter().all(|piece| matches!(piece, Piece::Literal(_))),
            _ => false,
        };
        self.0.iter().all(literal).then(|| self.to_string())
    }

    /// Whether it has a segment that no store's path has: an empty one behind the first, `.` or `..`.
    pub(super) fn has_impossible_segment(&self) -> bool {
        let mut texts = self.0.iter().enumerate().filter_map(|(index, segment)| match segment {
            Segment::Text(_) => Some((index, segment.to_string())),
            _ => None,
        });
        texts.any(|(index, text)| (text.is_empty() && index > 0) || text == "." || text == "..")
    }
}

/// `**` tries each length once per place: at most patterns x segments steps, since only the latest `**` is ever tried
/// again.
fn matches_from<T>(patterns: &[Segment], segments: &[T], fits: impl Fn(&Segment, &T) -> bool) -> bool {
    let (mut p, mut s) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while s < segments.len() {
        match patterns.get(p) {
            Some(Segment::AnyNumber) => {
                retry = Some((p + 1, s));
                p += 1;
            }
            Some(pattern) if fits(pattern, &segments[s]) => {
                p += 1;
                s += 1;
            }
            _ => match retry {
                Some((after, from)) => {
                    retry = Some((after, from + 1));
                    p = after;
                    s = from + 1;
                }
                None => return false,
            },
        }
    }
    patterns[p..].iter().all(|pattern| *pattern == Segment::AnyNumber)
}

impl Segment {
    fn is_one(&self, segment: &str, requester: &Requester) -> bool {
        let Self::Text(pieces) = self else { return true };
        let rest = pieces.iter().try_fold(segment, |rest, piece| rest.strip_prefix(piece.filled_in(requester)));
        rest == Some("")
    }
}

impl Piece {
    fn filled_in<'a>(&'a self, requester: &'a Requester) -> &'a str {
        match self {
            Self::Literal(text) => text,
            Self::Namespace => requester.namespace.as_str(),
            Self::ServiceAccount => &requester.service_account,
        }
    }
}

impl TryFrom<String> for PathPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty path pattern matches nothing: write `**` for every path".to_owned());
        }
        text.split('/').map(parse_segment).collect::<Result<_, _>>().map(Self)
    }
}

fn parse_segment(text: &str) -> Result<Segment, String> {
    match text {
        "**" => Ok(Segment::AnyNumber),
        "*" => Ok(Segment::AnyOne),
        _ if text.contains('*') => {
            Err(format!("`*` must be a whole segment of a path pattern, not a part of {}", quoted(text)))
        }
        _ => parse_pieces(text).map(Segment::Text),
    }
}

fn parse_pieces(text: &str) -> Result<Vec<Piece>, String> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let (piece, length) = match rest.find(['{', '}']) {
            Some(0) if rest.starts_with(NAMESPACE) => (Piece::Namespace, NAMESPACE.len()),
            Some(0) if rest.starts_with(SERVICE_ACCOUNT) => (Piece::ServiceAccount, SERVICE_ACCOUNT.len()),
            Some(0) => {
                let known = format!("known are {NAMESPACE} and {SERVICE_ACCOUNT}");
                return Err(format!("{} has an unknown placeholder: {known}", quoted(text)));
            }
            end => {
                let length = end.unwrap_or(rest.len());
                (Piece::Literal(rest[..length].to_owned()), length)
            }
        };
        pieces.push(piece);
        rest = &rest[length..];
    }
    Ok(pieces)
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.0.iter().enumerate() {
            write!(f, "{}{segment}", if index > 0 { "/" } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnyNumber => f.write_str("**"),
            Self::AnyOne => f.write_str("*"),
            Self::Text(pieces) => pieces.iter().try_for_each(|piece| f.write_str(piece.written())),
        }
    }
}

impl Piece {
    fn written(&self) -> &str {
        match self {
            Self::Literal(text) => text,
            Self::Namespace => NAMESPACE,
            Self::ServiceAccount => SERVICE_ACCOUNT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> PathPattern {
        PathPattern::try_from(text.to_owned()).expect("a path pattern")
    }

    fn name(text: &str) -> NamePattern {
        NamePattern::try_from(text.to_owned()).expect("a name pattern")
    }

    #[test]
    fn patterns_are_shown_as_they_were_written() {
        for text in ["/prod/{namespace}/**", "a", "/", "**", "/x-{namespace}-{serviceAccount}/*/b"] {
            assert_eq!(path(text).to_string(), text);
        }
        for text in ["*", "team-*", "team-a"] {
            assert_eq!(name(text).to_string(), text);
        }
    }

    #[test]
    fn placeholders_are_whole_and_known() {
        for text in
            ["{pod}", "{namespace", "namespace}", "{Namespace}", "{{namespace}serviceAccount}", "{}", "{{namespace}}"]
        {
            let error = PathPattern::try_from(text.to_owned()).expect_err(text);
            assert!(error.contains("unknown placeholder"), "{text}: {error}");
        }
    }

    #[test]
    fn a_pattern_covers_what_it_certainly_admits_all_of() {
        let names = [
            ("*", "team-*", true),
            ("team-*", "team-a", true),
            ("team-*", "team-*", true),
            ("team-*", "*", false),
            ("team-*", "team", false),
            ("team-a", "team-a", true),
            ("team-a", "team-a*", false),
            ("team-a*", "team-ab", true),
        ];
        for (wide, narrow, want) in names {
            assert_eq!(name(wide).covers(&name(narrow)), want, "{wide} covers {narrow}");
        }
        let paths = [
            ("**", "/prod/*", true),
            ("/prod/**", "/prod/a/**", true),
            ("/prod/**", "/prod", true),
            ("/prod/**", "/product", false),
            ("/prod/*", "/prod/a", true),
            ("/prod/*", "/prod/**", false),
            ("/prod/*", "/prod/{namespace}", true),
            ("/prod/{namespace}", "/prod/*", false),
            ("/prod/{namespace}", "/prod/{serviceAccount}", false),
            ("/prod/team-a", "/prod/{namespace}", false),
            ("/**/db", "/a/**/db", true),
            ("/**/db", "/a/**", false),
            ("**/*", "**", false),
        ];
        for (wide, narrow, want) in paths {
            assert_eq!(path(wide).covers(&path(narrow)), want, "{wide} covers {narrow}");
        }
    }
}
