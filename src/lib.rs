//! JASM puts external secrets where pods ask for them by annotation, before the kubelet looks.
//!
//! One agent runs on every node and serves the pods bound to it:
//!
//! ```text
//! watch -> request -> policy -> fresh? -> provider (in_flight) -> mapping -> write -> report
//! ```
//!
//! | module | does | may do IO |
//! |---|---|---|
//! | [`agent`] | wiring, from start to end | starts everything |
//! | [`config`] | flags and environment, checked once | no |
//! | [`process`] | what the process keeps to itself: memory, messages of panics | no |
//! | [`check`] | `jasm-agent check`: the configuration, and what the policy says to requests and manifests | reads files |
//! | [`telemetry`], [`journald`] | log lines on stderr; the same in the node's journal | logs |
//! | [`metrics`], [`probe`] | what is counted; `/livez /readyz /healthz /metrics` | listens |
//! | [`kubernetes`] | the client of the API server | connects |
//! | [`pod`] | `PodView`, the few fields of a Pod that are read | no |
//! | [`watch`] | the one watch on the node's pods | watch |
//! | [`reconcile`] | the steps; read it first | calls the steps |
//! | [`progress`] | what is done and what waits until when | no |
//! | [`annotations`], [`request`] | annotation text to `SecretRequest`s, strict | no |
//! | [`policy`] | who may have what; the only way to an `AdmittedRequest` | no |
//! | [`policy_file`] | the policy on disk, reloaded on change | reads files |
//! | [`workload`], [`workload_annotations`] | the top owner of a pod; what it asks for on the pod's behalf | GET metadata |
//! | [`provider`] | the stores, one adapter each; one fetch per key at a time | stores, providers.yaml |
//! | [`service_account`] | as whom stores are asked that decide for each pod's account themselves | GET metadata, tokens |
//! | [`secret_value`] | a value that is zeroized and never printed | no |
//! | [`mapping`] | value to Secret data | no |
//! | [`masters`] | central mode: one master for each source, and what its copies follow | watch |
//! | [`janitor`] | takes orphaned replicas away: a program of its own, and the one that deletes | deletes, leases |
//! | [`target`] | the write protocol | writes Secrets and ConfigMaps, reads masters |
//! | [`report`] | an outcome as log line, metric and Event | writes Events |
//! | [`error`] | why a sync failed, under which reason, when to try again | no |
//! | [`changes`], [`clock`], [`limits`] | what wakes waiters; the API server's time; bytes held | no |
//! | `delays`, `last_failure`, `names` | pauses between attempts; what several wait for; the grammar of names | no |
//!
//! # Invariants
//!
//! 1. Policy runs per request, before anything is shared. A fetch's key is identity, instance, path and version: a value
//!    is never shared across identities.
//! 2. Only [`target`] and [`report`] write to the API server (and [`janitor`], which no agent runs); only [`provider`] talks to stores; [`request`], [`policy`]
//!    and [`mapping`] touch neither IO, clock nor log.
//! 3. No error, span, Event or label can hold a payload. Text that a store or an SDK wrote lives only in an error's
//!    `source`: it may reach a log line, never an Event or a label. The one exception is the name by which the store knows
//!    the agent, in the text of an access that was denied.
//! 4. An unknown or malformed annotation denies that request and says so on the pod; it never means a default.
//! 5. The Secret's namespace is the pod's, by type: [`pod::PodNamespace`] comes from a pod and from nothing else. Only the
//!    admission check's dry runs go to the agent's own namespace, and masters to the operator's
//!    [`masters::MastersNamespace`].
//! 6. No `DashMap` guard lives across an `.await`; only `provider/in_flight.rs` names it.
//! 7. No mutable globals, no registration by magic: wiring stands in [`agent`] and `provider/registry.rs`.
//! 8. A store's or a policy's trouble never deletes, empties or shrinks a Secret that is there.

pub mod agent;
pub mod annotations;
pub mod changes;
pub mod check;
pub mod clock;
pub mod config;
#[cfg(test)]
mod corpus;
mod delays;
pub mod error;
#[cfg(test)]
mod fake_api;
pub mod janitor;
pub mod journald;
pub mod kubernetes;
mod last_failure;
pub mod limits;
pub mod mapping;
pub mod masters;
pub mod metrics;
mod names;
pub mod pod;
pub mod policy;
pub mod policy_file;
pub mod probe;
pub mod process;
pub mod progress;
pub mod provider;
pub mod reconcile;
pub mod report;
pub mod request;
pub mod secret_value;
pub mod service_account;
pub mod target;
pub mod telemetry;
pub mod watch;
pub mod workload;
pub mod workload_annotations;
