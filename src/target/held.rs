//! What a Secret says of itself, and what follows from it. Pure.

use std::{cmp::Ordering, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::reply::Stored;
use crate::{clock::ApiClock, masters::MastersNamespace, workload::Workload};

/// How far the API server's clock may be ahead of what is known of it: its times and the time since both lose a fraction.
const CLOCK_ERROR: SignedDuration = SignedDuration::from_secs(2);
/// The source ids that this release can read.
const KNOWN_SOURCE: &str = "v1:";

/// The metadata of a Secret of ours, as a probe told it. An empty or unreadable value counts as absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) stored: Stored,
    pub(super) source: String,
    pub(super) synced_through: Option<Timestamp>,
    pub(super) spec_since: Option<Timestamp>,
    pub(super) workload: Option<Workload>,
    pub(super) version: String,
    /// The namespace of the master that it is a copy of.
    pub(super) replicated_from: String,
    /// Kinds of things that others have put on it, as in `labels, finalizers`. While there are any, it is not overwritten.
    pub(super) others: String,
}

impl Held {
    /// Which value it holds, where that can be told.
    pub(super) fn known(&self) -> Option<Known> {
        Some(Known { version: self.version.clone(), through: self.synced_through? })
    }

    /// Reads the message of the policy `jasm-agent-ownership`: `rv=.. uid=.. source=.. through=.. since=.. workload=.. version=.. from=.. others=..`.
    /// `None` where there is no resourceVersion, without which nothing can be changed safely.
    pub(super) fn parse(message: &str) -> Option<Self> {
        let field = |name: &str| {
            let pairs = message.split(' ').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next().unwrap_or_default()
        };
        let resource_version = Some(field("rv")).filter(|rv| !rv.is_empty())?.to_owned();
        Some(Self {
            stored: Stored { uid: field("uid").to_owned(), resource_version },
            source: field("source").to_owned(),
            synced_through: field("through").parse().ok(),
            spec_since: field("since").parse().ok(),
            workload: Workload::parse(field("workload")),
            version: field("version").to_owned(),
            replicated_from: field("from").to_owned(),
            others: kinds(field("others")),
        })
    }

    /// The same with times that lie ahead of the API server's clock taken out: those are not ours.
    pub(super) fn believed(mut self, clock: &ApiClock) -> Self {
        self.synced_through = clock.believe(self.synced_through);
        self.spec_since = clock.believe(self.spec_since);
        self
    }
}

/// The kinds of things of others that the policy names, for people: `labels, finalizers`.
pub(super) fn kinds(list: &str) -> String {
    const KNOWN: [&str; 4] = ["labels", "annotations", "finalizers", "ownerReferences"];
    list.split(',').filter(|kind| KNOWN.contains(kind)).collect::<Vec<_>>().join(", ")
}

/// What one pod wants of a Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) source: String,
    pub(super) asked: Asked,
    pub(super) workload: Workload,
    /// Where it is to be a copy of a master.
    pub(super) copy: Option<CopyOf>,
}

/// The master that a Secret is to be a copy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOf {
    /// Where it stands.
    pub namespace: MastersNamespace,
    /// The kind of its store, as it stands in a label.
    pub source_kind: &'static str,
    /// What the watch on masters last told of it.
    pub known: Option<Known>,
    /// There is none: somebody took it away, and what is made from it may be taken away, too.
    pub has_no_master: bool,
}

/// Which value something holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The store's id of the version, as it stands in an annotation.
    pub version: String,
    /// The newest pod that was seen before the store was asked.
    pub through: Timestamp,
}

impl Known {
    /// Whether `master` has another value that is no older.
    pub fn is_behind(&self, master: &Self) -> bool {
        self.version != master.version && master.through >= self.through
    }
}

impl Wish {
    /// Whether what is there is a copy that its master has left behind, or no copy of it at all.
    fn is_left_behind(&self, held: &Held) -> bool {
        let Some(copy) = &self.copy else { return false };
        held.replicated_from != copy.namespace.as_str()
            || copy.has_no_master
            || copy.known.as_ref().is_some_and(|master| held.known().is_none_or(|held| held.is_behind(master)))
    }

    /// Whether a copy with this value needs nothing.
    pub(super) fn is_met_by(&self, known: &Known, freshness: Duration) -> bool {
        let master = self.copy.as_ref().and_then(|copy| copy.known.as_ref());
        let has_no_master = self.copy.as_ref().is_some_and(|copy| copy.has_no_master);
        is_new_enough(known.through, self, freshness)
            && !has_no_master
            && !master.is_some_and(|master| known.is_behind(master))
    }
}

/// When a pod asked for what it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The value must not be older.
    pub reference: Timestamp,
    /// The place of the request among others for the same Secret.
    pub since: Timestamp,
    /// It does not change what the pods of its workload were given.
    pub gives_way: bool,
}

impl Asked {
    /// By the pod's creation and scheduling, or by its edit. The time of an edit is known with an error: for the
    /// value the earliest counts, for the place the latest.
    pub fn by(reference: Timestamp, edited_at: Option<Timestamp>) -> Self {
        match edited_at {
            None => Self { reference, since: reference, gives_way: false },
            Some(at) => {
                let since = (at + CLOCK_ERROR).max(reference);
                Self { reference: at.max(reference), since, gives_way: false }
            }
        }
    }
}

/// What to do about a Secret that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// It holds what the pod asks for, new enough.
    Fresh,
    /// The same source, but a value that may be older than the pod.
    Refresh,
    /// Another source, and the name is this pod's to take.
    TakeOver,
    /// A newer pod of the same workload asked for another source.
    Superseded,
    /// A pod of the same workload, of the same second, asked for another source.
    Tie,
    /// Another workload's name, as far as names tell.
    OtherWorkload(Workload),
    /// It holds what the store gave to another identity, of which a pod may be there.
    OtherIdentity,
    /// A source id from the future.
    NewerRelease,
}

/// Decides by the rules of the write protocol (README: "Two pods, one Secret name").
pub(super) fn decide(held: &Held, wish: &Wish, freshness: Duration) -> Decision {
    if held.source == wish.source {
        let is_new = held.synced_through.is_some_and(|through| is_new_enough(through, wish, freshness));
        let is_fresh = is_new && !wish.is_left_behind(held);
        return if is_fresh { Decision::Fresh } else { Decision::Refresh };
    }
    if !held.source.is_empty() && !held.source.starts_with(KNOWN_SOURCE) {
        return Decision::NewerRelease;
    }
    match &held.workload {
        Some(holder) if *holder != wish.workload => Decision::OtherWorkload(holder.clone()),
        Some(_) => by_age(held, wish),
        None => Decision::TakeOver,
    }
}

/// Whether what is there was given to another identity.
pub(super) fn is_of_another_identity(held: &Held, wish: &Wish) -> bool {
    let (theirs, ours) = (identity(&held.source), identity(&wish.source));
    theirs.is_some() && ours.is_some() && theirs != ours
}

/// What becomes of a decision between pods of one workload where what is there was given to another identity: it stands only if they
/// are that, by more than their names. Of bare pods and Jobs nobody knows who reads it, and pods of a workload that is gone may
/// outlive it.
pub(super) fn across_identities(decision: Decision, held: &Held, wish: &Wish) -> Decision {
    match wish.workload != Workload::ShortLived && held.workload.as_ref() == Some(&wish.workload) {
        true => decision,
        false => Decision::OtherIdentity,
    }
}

/// As whom a source was asked, where that was not the agent.
fn identity(source: &str) -> Option<&str> {
    let (_, fields) = source.split_once('?')?;
    fields.split('&').find_map(|field| field.strip_prefix("as="))
}

/// Whether two sources differ in who asks, and in nothing else.
pub(super) fn differ_in_identity(one: &str, other: &str) -> bool {
    let parts = |source: &str| -> Vec<String> {
        let fields = source.split(['?', '&']).filter(|field| !field.starts_with("as="));
        fields.map(str::to_owned).collect()
    };
    one != other && parts(one) == parts(other)
}

/// Between pods of one workload the newest spec wins, and a tie stays.
pub(super) fn by_age(held: &Held, wish: &Wish) -> Decision {
    let Some(since) = held.spec_since else { return Decision::TakeOver };
    // The operator changed whether the agent asks for itself: no spec is older for that.
    if differ_in_identity(&held.source, &wish.source) && !is_of_another_identity(held, wish) {
        return Decision::TakeOver;
    }
    if wish.asked.gives_way && wish.workload != Workload::ShortLived {
        return Decision::Superseded;
    }
    match wish.asked.since.cmp(&since) {
        Ordering::Greater => Decision::TakeOver,
        Ordering::Equal => Decision::Tie,
        Ordering::Less => Decision::Superseded,
    }
}

/// Bare pods and Jobs hold a name until something newer asks for it: whether any of them still lives, nobody can tell.
pub(super) fn from_short_lived(held: &Held, wish: &Wish) -> Decision {
    match by_age(held, wish) {
        Decision::TakeOver => Decision::TakeOver,
        _ => Decision::OtherWorkload(Workload::ShortLived),
    }
}

/// Whether a value that was fetched then is new enough.
pub(super) fn is_new_enough(through: Timestamp, wish: &Wish, freshness: Duration) -> bool {
    through.checked_add(freshness).is_ok_and(|until| until >= wish.asked.reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn deployment(name: &str) -> Workload {
        Workload::parse(&format!("apps/Deployment/{name}")).expect("a workload")
    }

    fn held() -> Held {
        Held {
            stored: Stored { uid: String::new(), resource_version: "7".into() },
            source: "v1:aws:/a".into(),
            synced_through: Some(second(100)),
            spec_since: Some(second(90)),
            workload: Some(deployment("web")),
            version: "v".into(),
            replicated_from: String::new(),
            others: String::new(),
        }
    }

    fn wish() -> Wish {
        Wish {
            source: "v1:aws:/a".into(),
            asked: Asked::by(second(100), None),
            workload: deployment("web"),
            copy: None,
        }
    }

    #[test]
    fn a_probe_message_is_read_field_by_field() {
        let text = "rv=7 source=v1:aws:/a?b=c through=1970-01-01T00:01:40Z since=1970-01-01T00:01:30Z workload=apps/Deployment/web version=v";
        assert_eq!(Held::parse(text), Some(Held { source: "v1:aws:/a?b=c".into(), ..held() }));
        let decorated =
            Held::parse(&format!("{text} others=,labels,ownerReferences,x")).expect("with a resourceVersion");
        assert_eq!(decorated.others, "labels, ownerReferences");
        let bare = Held::parse("rv=7 source= through=x since= workload= version=").expect("with a resourceVersion");
        assert_eq!((bare.synced_through, bare.spec_since, bare.workload), (None, None, None));
        for broken in ["", "rv=", "source=v1:x", "nonsense"] {
            assert_eq!(Held::parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_time_ahead_of_the_api_server_is_not_ours() {
        let clock = ApiClock::default();
        clock.observe("Thu, 01 Jan 1970 00:01:30 GMT");
        let believed = held().believed(&clock);
        assert_eq!((believed.synced_through, believed.spec_since), (None, Some(second(90))));
    }

    #[test]
    fn what_one_identity_was_given_is_taken_over_within_a_workload_only() {
        for (case, theirs, ours, workload, stays) in [
            ("same", "v1:a:b?as=uid/1", "v1:a:b?as=uid/1&keys=A", None, false),
            ("another's, of a bare pod", "v1:a:b?as=uid/1", "v1:a:b?as=uid/2", Some(Workload::ShortLived), true),
            ("another's, of nobody", "v1:a:b?version=1&as=uid/1", "v1:a:c?as=uid/2", None, true),
            ("another's, of one workload", "v1:a:b?as=uid/1", "v1:a:b?as=uid/2", Some(deployment("web")), false),
            (
                "another's, of another workload, there or gone",
                "v1:a:b?as=uid/1",
                "v1:a:b?as=uid/2",
                Some(deployment("x")),
                true,
            ),
            ("the agent's before", "v1:a:b", "v1:a:b?as=uid/2", None, false),
            ("the agent's now", "v1:a:b?as=uid/1", "v1:a:b", None, false),
        ] {
            let held = Held { source: theirs.into(), workload, ..held() };
            let wish = Wish { source: ours.into(), ..wish() };
            for decision in [Decision::TakeOver, Decision::Superseded, Decision::Tie] {
                let kept = across_identities(decision.clone(), &held, &wish);
                let want = if stays { Decision::OtherIdentity } else { decision.clone() };
                let got = if is_of_another_identity(&held, &wish) { kept } else { decision };
                assert_eq!(got, want, "case: {case}");
            }
        }
    }

    #[test]
    fn no_spec_is_older_since_somebody_else_asks_the_store() {
        use Decision::{Superseded, TakeOver, Tie};
        for (theirs, ours, at, want) in [
            ("v1:a:b", "v1:a:b?as=uid/2", 90, TakeOver),
            ("v1:a:b?keys=A", "v1:a:b?as=uid/2&keys=A", 80, TakeOver),
            ("v1:a:b?as=uid/1", "v1:a:b", 80, TakeOver),
            ("v1:a:b?as=uid/1", "v1:a:b?as=uid/2", 90, Tie),
            ("v1:a:b?as=uid/1", "v1:a:b?as=uid/2", 80, Superseded),
            ("v1:a:c", "v1:a:b?as=uid/2", 90, Tie),
            ("v1:a:b", "v1:a:b?keys=A&as=uid/2", 80, Superseded),
        ] {
            let held = Held { source: theirs.into(), ..held() };
            let wish = Wish { source: ours.into(), asked: Asked::by(second(at), None), ..wish() };
            assert_eq!(by_age(&held, &wish), want, "{theirs} and {ours} at {at}");
        }
    }

    #[test]
    fn what_follows_from_what_is_there() {
        type Change = fn(&mut Held, &mut Wish);
        let cases: &[(&str, Change, Decision)] = &[
            ("same source, same second", |_, _| {}, Decision::Fresh),
            ("same source, newer pod", |_, wish| wish.asked = Asked::by(second(101), None), Decision::Refresh),
            ("same source, other workload", |held, _| held.workload = Some(deployment("x")), Decision::Fresh),
            ("never synced", |held, _| held.synced_through = None, Decision::Refresh),
            (
                "newer pod, same workload, other source",
                |held, wish| {
                    held.source = "v1:aws:/b".into();
                    wish.asked = Asked::by(second(91), None);
                },
                Decision::TakeOver,
            ),
            (
                "same second, same workload, other source",
                |held, wish| {
                    held.source = "v1:aws:/b".into();
                    wish.asked = Asked::by(second(90), None);
                },
                Decision::Tie,
            ),
            (
                "older pod, same workload, other source",
                |held, wish| {
                    held.source = "v1:aws:/b".into();
                    wish.asked = Asked::by(second(89), None);
                },
                Decision::Superseded,
            ),
            (
                "other workload, other source",
                |held, _| {
                    held.source = "v1:aws:/b".into();
                    held.workload = Some(deployment("x"));
                },
                Decision::OtherWorkload(deployment("x")),
            ),
            (
                "no holder, other source",
                |held, _| {
                    held.source = "v1:aws:/b".into();
                    held.workload = None;
                },
                Decision::TakeOver,
            ),
            (
                "no source at all",
                |held, _| {
                    held.source = String::new();
                    held.spec_since = None;
                },
                Decision::TakeOver,
            ),
            ("newer release", |held, _| held.source = "v2:aws:/a".into(), Decision::NewerRelease),
        ];
        for (case, change, want) in cases {
            let (mut held, mut wish) = (held(), wish());
            change(&mut held, &mut wish);
            assert_eq!(decide(&held, &wish, Duration::ZERO), *want, "case: {case}");
        }
    }

    #[test]
    fn an_edit_takes_the_place_of_what_came_in_the_same_second() {
        let mut held = held();
        held.source = "v1:aws:/b".into();
        held.spec_since = Some(second(100));
        for (at, want) in [(99, Decision::TakeOver), (98, Decision::Tie)] {
            let wish = Wish { asked: Asked::by(second(50), Some(second(at))), ..wish() };
            assert_eq!(decide(&held, &wish, Duration::ZERO), want, "edited at {at}");
        }
    }

    #[test]
    fn a_running_pod_does_not_bring_an_edit_of_its_workload_but_jobs_stay_a_tie() {
        let mut held = held();
        held.source = "v1:aws:/b".into();
        for (since, want) in [(91, Decision::Superseded), (90, Decision::Superseded)] {
            let asked = Asked { gives_way: true, ..Asked::by(second(since), None) };
            assert_eq!(decide(&held, &Wish { asked, ..wish() }, Duration::ZERO), want, "{since}");
            held.workload = Some(Workload::ShortLived);
            let jobs = Wish { asked, workload: Workload::ShortLived, ..wish() };
            assert_ne!(decide(&held, &jobs, Duration::ZERO), Decision::Superseded, "{since}");
            held.workload = Some(deployment("web"));
        }
    }

    #[test]
    fn bare_pods_give_way_to_what_is_newer_and_to_nothing_else() {
        let mut held = held();
        held.workload = Some(Workload::ShortLived);
        for (since, want) in [(91, Decision::TakeOver), (90, Decision::OtherWorkload(Workload::ShortLived))] {
            let wish = Wish { asked: Asked::by(second(since), None), ..wish() };
            assert_eq!(from_short_lived(&held, &wish), want, "{since}");
        }
    }

    #[test]
    fn freshness_lets_a_value_be_older_than_the_pod() {
        let wish = Wish { asked: Asked::by(second(160), None), ..wish() };
        assert_eq!(decide(&held(), &wish, Duration::from_secs(60)), Decision::Fresh);
        assert_eq!(decide(&held(), &wish, Duration::from_secs(59)), Decision::Refresh);
        assert_eq!(decide(&held(), &wish, Duration::MAX), Decision::Refresh, "no overflow");
    }
}
