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
    progress::Listed,
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
        .reflect(writer)
        .inspect(move |event| observe(&observer, event))
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
        Ok(Event::InitDone) => {
            // Pods of a later list are worked on as they arrive, when the store does not have them yet: once more.
            if progress.list_ended() == Listed::Again {
                context.changes.announce();
            }
        }
        Ok(Event::Apply(pod)) => {
            context.seen.observe(pod.reference_time());
            progress.applied(pod);
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::error::BoxError;

    /// An API server without streaming lists: what 1.30 answers, in its own words.
    fn without_streaming_lists(asked: Arc<Mutex<Vec<String>>>) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| {
            let uri = request.uri().to_string();
            asked.lock().expect("no test panicked").push(uri.clone());
            let reply = if uri.contains("sendInitialEvents") {
                let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422, "message": message});
                Some((422, status))
            } else if uri.contains("watch=") {
                None
            } else {
                let pod = json!({"metadata": {"name": "web", "namespace": "a", "uid": "u", "resourceVersion": "7"}});
                Some((
                    200,
                    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": [pod]}),
                ))
            };
            async move {
                match reply {
                    Some((code, body)) => Response::builder()
                        .status(code)
                        .body(Body::from(body.to_string().into_bytes()))
                        .map_err(BoxError::from),
                    None => futures::future::pending().await,
                }
            }
        });
        Client::new(service, "jasm-system")
    }

    #[tokio::test]
    async fn an_api_server_without_streaming_lists_is_listed_and_then_watched() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let api = Api::all(without_streaming_lists(Arc::clone(&asked)));
        let events: Vec<_> =
            events(api, "node-1").take(3).map(|event| event.expect("no error reaches us")).collect().await;
        assert!(matches!(events[0], Event::Init), "{events:?}");
        assert!(matches!(&events[1], Event::InitApply(pod) if pod.name() == "web"), "{events:?}");
        assert!(matches!(events[2], Event::InitDone), "{events:?}");
        let asked = asked.lock().expect("no test panicked");
        assert_eq!(asked.len(), 2, "one refusal, one list: {asked:?}");
        assert!(asked.iter().all(|uri| uri.contains("fieldSelector=spec.nodeName%3Dnode-1")), "{asked:?}");
        let seconds =
            asked[0].split(['?', '&']).find_map(|part| part.strip_prefix("timeoutSeconds=")).map(str::parse::<u32>);
        assert!(matches!(seconds, Some(Ok(60..=120))), "{asked:?}");
    }
}
