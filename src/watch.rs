//! The one watch of an agent: the pods of its node.
//!
//! RBAC: `list` and `watch` on pods.

use std::{future::Future, sync::Arc};

use futures::{Stream, StreamExt, future::ready};
use kube::{
    Api, Client,
    runtime::{
        Controller, WatchStreamExt,
        controller::Error as ControllerError,
        reflector,
        watcher::{self, Config, Event, watcher},
    },
};

use crate::{
    error::chain,
    pod::PodView,
    reconcile::{Context, reconcile},
};

/// How long one watch request lasts at most, in seconds: random within this, so that the agents of a cluster do not
/// all begin anew together.
const WATCH_SECONDS: std::ops::RangeInclusive<u32> = 60..=120;

/// Works on the pods of `node` until `shutdown`, then until what is under way has ended.
pub async fn run(
    client: Client,
    node: &str,
    context: Arc<Context>,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let (reader, writer) = reflector::store();
    let observer = Arc::clone(&context);
    let pods = events(Api::all(client), node)
        .default_backoff()
        .inspect(move |event| observe(&observer, event))
        .reflect(writer)
        .applied_objects();
    Controller::for_stream(pods, reader)
        .reconcile_all_on(context.changes.stream())
        .graceful_shutdown_on(shutdown)
        .run(reconcile, |_, error, _| match *error {}, context)
        .for_each(|outcome| {
            log(outcome);
            ready(())
        })
        .await;
}

/// A streaming list (one request for list and watch), or, where the API server refuses that, a list and then a watch.
fn events(api: Api<PodView>, node: &str) -> impl Stream<Item = watcher::Result<Event<PodView>>> + Send + 'static {
    let config = Config::default().fields(&format!("spec.nodeName={node}")).timeout(fastrand::u32(WATCH_SECONDS));
    watcher(api.clone(), config.clone().streaming_lists())
        .take_while(|event| {
            let refused = is_refused(event);
            if refused {
                tracing::info!("this API server has no streaming lists: using list and watch");
            }
            ready(!refused)
        })
        .chain(watcher(api, config.any_semantic()))
}

fn is_refused(event: &watcher::Result<Event<PodView>>) -> bool {
    match event {
        Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) => matches!(status.code, 400 | 422),
        _ => false,
    }
}

/// Takes note of a pod before any work on it begins.
fn observe(context: &Context, event: &watcher::Result<Event<PodView>>) {
    let progress = &context.progress;
    match event {
        Ok(Event::Init) => progress.list_began(),
        Ok(Event::InitApply(pod)) => {
            context.seen.observe(pod.reference_time());
            progress.listed(pod);
        }
        Ok(Event::InitDone) => progress.list_ended(),
        Ok(Event::Apply(pod)) => context.seen.observe(pod.reference_time()),
        Ok(Event::Delete(pod)) => progress.forget(pod.uid()),
        Err(error) => tracing::warn!(error = %chain(error), "the watch on pods failed; it begins anew with backoff"),
    }
}

fn log<T>(outcome: Result<T, ControllerError<std::convert::Infallible, watcher::Error>>) {
    match outcome {
        // Logged where it was seen; a pod that vanished before its turn needs nothing.
        Ok(_) | Err(ControllerError::QueueError(_) | ControllerError::ObjectNotFound(_)) => {}
        Err(error) => tracing::warn!(error = %chain(&error), "the controller reports an error"),
    }
}
