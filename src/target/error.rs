//! Why a Secret was not written, in the words of the pod's owner.

use crate::{
    error::{BoxError, Reason, Retry},
    workload::Workload,
};

/// Why the API server holds no Secret as the pod asked.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// A Secret of that name lacks our marker.
    #[error(
        "{target} exists and is not managed by JASM, so it is left alone: choose another secretName, or delete \
         that Secret"
    )]
    NotOurs {
        /// Kind, namespace and name.
        target: String,
    },
    /// Another workload holds the name with another source.
    #[error(
        "{target} is held by {holder} with another source, and this pod may be running with that data: choose \
         another secretName; the name is free once that workload is gone, or that Secret is deleted"
    )]
    HeldByOther {
        /// Kind, namespace and name.
        target: String,
        /// Who holds it.
        holder: Workload,
    },
    /// It holds what the store gave to another service account.
    #[error(
        "{target} holds what the store gave to another service account (or to an earlier one of the same name), so it is left alone: \
         choose another secretName, or delete that Secret if nobody needs it"
    )]
    OtherIdentity {
        /// Kind, namespace and name.
        target: String,
    },
    /// Two pods of one workload, created in the same second, ask for different sources.
    #[error(
        "{target} was asked for with two sources by pods of one workload in the same second, and the first one \
         stays: give each source a secretName of its own, or restart this pod"
    )]
    Tie {
        /// Kind, namespace and name.
        target: String,
    },
    /// A newer release wrote a source id that this one cannot read.
    #[error("{target} was written by a newer release of JASM and is left alone: update the agent on this node")]
    NewerRelease {
        /// Kind, namespace and name.
        target: String,
    },
    /// The Secret, ours or not, holds something else and cannot be changed any more.
    #[error(
        "{target} is marked immutable and does not hold what this pod asks for: choose another secretName, or \
         delete that Secret if nobody needs it"
    )]
    Immutable {
        /// Kind, namespace and name.
        target: String,
    },
    /// The Secret, ours or not, is of another type, which the API server never changes.
    #[error(
        "{target} exists with another type and is left alone: choose another secretName, or delete that Secret \
         if nobody needs it"
    )]
    TypeDiffers {
        /// Kind, namespace and name.
        target: String,
    },
    /// Others have put something on a Secret of ours, which a write would take away.
    #[error(
        "{target} carries {kinds} of others, which a write would take away, so it stays as it is: remove them, or \
         delete that Secret, and JASM writes it anew"
    )]
    Decorated {
        /// Kind, namespace and name.
        target: String,
        /// Of which kinds.
        kinds: String,
    },
    /// RBAC.
    #[error(
        "the agent may not {verb} {resource} in this namespace: an operator has to apply the ClusterRole jasm-agent and \
         its binding (rbac/)"
    )]
    Rbac {
        /// The missing verb.
        verb: String,
        /// The resource in question.
        resource: String,
    },
    /// RBAC in the masters' namespace.
    #[error(
        "the agent may not {verb} {resource} in namespace {namespace}, where masters are: an operator has to apply the Role \
         jasm-agent-masters and its binding (daemonset/components/central)"
    )]
    MastersRbac {
        /// The missing verb.
        verb: String,
        /// The resource in question.
        resource: String,
        /// Where.
        namespace: String,
    },
    /// No namespace for masters.
    #[error(
        "namespace {namespace}, where masters are, is not there or being deleted: an operator has to apply \
         daemonset/components/central"
    )]
    NoMasters {
        /// Which one.
        namespace: String,
    },
    /// Something stands where a master is to be.
    #[error(
        "{target} is not the master that this source has by its name: an operator has to delete it, and JASM writes it anew"
    )]
    NoMaster {
        /// Kind, namespace and name.
        target: String,
    },
    /// The API server does not accept the agent's token.
    #[error(
        "the API server does not accept the agent's token: check that the agent's ServiceAccount and pod still exist"
    )]
    Unauthenticated,
    /// Our policy for namespaces.
    #[error(
        "{target} is not written, because {said}: an operator decides where the agent may write (docs/admission.md)"
    )]
    NamespaceClosed {
        /// Kind, namespace and name.
        target: String,
        /// What our own manifests say about the namespace.
        said: String,
    },
    /// One of our own policies.
    #[error(
        "JASM's admission policy {policy} refused the write of {target} ({said}): an operator has to apply rbac/ \
         of the agent's own release"
    )]
    OwnPolicy {
        /// Kind, namespace and name.
        target: String,
        /// Which policy.
        policy: String,
        /// Its message, which our own manifests wrote.
        said: String,
    },
    /// Somebody else's policy or webhook.
    #[error("{by} refused the write of {target}: ask the cluster's operators to let the agent write it")]
    Forbidden {
        /// Kind, namespace and name.
        target: String,
        /// Policy or webhook, by name.
        by: String,
        /// What it said.
        #[source]
        source: BoxError,
    },
    /// A webhook of somebody else could not be called.
    #[error("the admission webhook {webhook} did not answer about {target}; the agent retries with backoff")]
    WebhookDown {
        /// Kind, namespace and name.
        target: String,
        /// The webhook's name, quoted.
        webhook: String,
        /// What the API server said.
        #[source]
        source: BoxError,
    },
    /// The namespace may hold no more.
    #[error("the ResourceQuota of the namespace leaves no room for {target}: raise it, or delete what is not needed")]
    Quota {
        /// Kind, namespace and name.
        target: String,
    },
    /// The API server calls the object invalid.
    #[error("the API server calls {target} invalid at {fields}: check the source's keys and the annotation")]
    Invalid {
        /// Kind, namespace and name.
        target: String,
        /// Paths of the fields in question.
        fields: String,
    },
    /// The probe of a Secret of ours gave nothing readable.
    #[error("{target} could not be probed: check that rbac/ is of the agent's own release, or delete the Secret")]
    Unreadable {
        /// Kind, namespace and name.
        target: String,
    },
    /// The API server is overloaded or failing.
    #[error("the API server did not take the write of {target} (HTTP {code}); the agent retries with backoff")]
    Busy {
        /// Kind, namespace and name.
        target: String,
        /// HTTP status.
        code: u16,
        /// What it said.
        #[source]
        source: BoxError,
    },
    /// No answer.
    #[error("the API server did not answer; the agent retries with backoff")]
    Unreachable {
        /// What happened.
        #[source]
        source: BoxError,
    },
    /// One of our policies is missing from the cluster.
    #[error(
        "admission policy {policy} is not in force, and without it the agent writes nothing: an operator has to apply \
         rbac/ (policy and binding)"
    )]
    AdmissionMissing {
        /// Which one.
        policy: &'static str,
    },
    /// Whether our policies are in force could not be found out since the agent started.
    #[error(
        "the agent cannot tell whether its admission policies are in force, and until then writes nothing: an operator has to look \
         at its log, and apply rbac/"
    )]
    AdmissionUnchecked {
        /// What stands in the way.
        #[source]
        source: BoxError,
    },
    /// Others changed the Secret each time that the agent was about to.
    #[error("{target} is being changed by others; the agent retries with backoff")]
    LostRace {
        /// Kind, namespace and name.
        target: String,
    },
}

impl TargetError {
    /// The reason on the Event.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotOurs { .. }
            | Self::HeldByOther { .. }
            | Self::OtherIdentity { .. }
            | Self::Tie { .. }
            | Self::NewerRelease { .. }
            | Self::Immutable { .. }
            | Self::TypeDiffers { .. }
            | Self::NoMaster { .. }
            | Self::Decorated { .. } => Reason::SecretConflict,
            Self::Rbac { .. }
            | Self::MastersRbac { .. }
            | Self::NoMasters { .. }
            | Self::Unauthenticated
            | Self::NamespaceClosed { .. }
            | Self::OwnPolicy { .. }
            | Self::Forbidden { .. }
            | Self::WebhookDown { .. }
            | Self::Quota { .. }
            | Self::Invalid { .. }
            | Self::Unreadable { .. }
            | Self::Busy { .. }
            | Self::Unreachable { .. }
            | Self::AdmissionMissing { .. }
            | Self::AdmissionUnchecked { .. }
            | Self::LostRace { .. } => Reason::SecretWriteFailed,
        }
    }

    /// When to try again.
    pub fn retry(&self) -> Retry {
        match self {
            // A change of policy or admission is looked at at once.
            Self::AdmissionMissing { .. } | Self::AdmissionUnchecked { .. } => Retry::OnChange,
            Self::HeldByOther { .. } | Self::OtherIdentity { .. } => Retry::Held,
            Self::NotOurs { .. }
            | Self::Tie { .. }
            | Self::NewerRelease { .. }
            | Self::Immutable { .. }
            | Self::TypeDiffers { .. }
            | Self::NoMaster { .. }
            | Self::Decorated { .. } => Retry::Foreign,
            Self::NamespaceClosed { .. }
            | Self::OwnPolicy { .. }
            | Self::Forbidden { .. }
            | Self::Invalid { .. }
            | Self::Unreadable { .. } => Retry::Denied,
            Self::Quota { .. } => Retry::Absent,
            Self::Rbac { .. } | Self::MastersRbac { .. } | Self::NoMasters { .. } | Self::Unauthenticated => {
                Retry::Rights
            }
            Self::Busy { code: 429, .. } => Retry::Throttled,
            Self::WebhookDown { .. } | Self::Busy { .. } | Self::Unreachable { .. } | Self::LostRace { .. } => {
                Retry::Transient
            }
        }
    }

    /// What failed, finer than the reason.
    pub fn action(&self) -> &'static str {
        match self {
            Self::NotOurs { .. } => "WriteNotOurs",
            Self::HeldByOther { .. } => "WriteHeldByOther",
            Self::OtherIdentity { .. } => "WriteOtherIdentity",
            Self::Tie { .. } => "WriteTie",
            Self::NewerRelease { .. } => "WriteNewerRelease",
            Self::Immutable { .. } => "WriteImmutable",
            Self::TypeDiffers { .. } => "WriteTypeDiffers",
            Self::Decorated { .. } => "WriteDecorated",
            Self::Rbac { .. } => "WriteRbac",
            Self::MastersRbac { .. } => "MasterRbac",
            Self::NoMasters { .. } => "MasterNamespace",
            Self::NoMaster { .. } => "MasterConflict",
            Self::Unauthenticated => "WriteUnauthenticated",
            Self::NamespaceClosed { .. } => "WriteNamespaceClosed",
            Self::OwnPolicy { .. } => "WriteOwnPolicy",
            Self::Forbidden { .. } => "WriteForbidden",
            Self::WebhookDown { .. } => "WriteWebhookDown",
            Self::Quota { .. } => "WriteQuota",
            Self::Invalid { .. } => "WriteInvalid",
            Self::Unreadable { .. } => "WriteUnreadable",
            Self::Busy { .. } => "WriteBusy",
            Self::Unreachable { .. } => "WriteUnreachable",
            Self::AdmissionMissing { .. } => "WriteAdmissionMissing",
            Self::AdmissionUnchecked { .. } => "WriteAdmissionUnchecked",
            Self::LostRace { .. } => "WriteLostRace",
        }
    }
}
