//! The one watch of an agent: the pods of its node.
//!
//! RBAC: `list` and `watch` on pods.

use std::{fmt::Debug, future::Future, sync::Arc};

use futures::{Stream, StreamExt, future::ready, stream};
use kube::{
    Api, Client, Resource,
    runtime::{
        Controller, WatchStreamExt,
        controller::Error as ControllerError,
        reflector,
        watcher::{self, Config, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

use crate::{
    error::chain,
    pod::PodView,
    progress::Listed,
    reconcile::{Context, reconcile},
};

/// How long one watch request lasts at most, in seconds: random within this, so that the agents of a cluster do not
/// all begin anew together.
pub(crate) const WATCH_SECONDS: std::ops::RangeInclusive<u32> = 60..=120;

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

/// The events of one watcher after the other: one whose state the API server has forgotten is given up, since it would
/// ask for that state for ever where it is refused before the stream begins.
fn events(api: Api<PodView>, node: &str) -> impl Stream<Item = watcher::Result<Event<PodView>>> + Send + 'static {
    let config = Config::default().fields(&format!("spec.nodeName={node}")).timeout(fastrand::u32(WATCH_SECONDS));
    stream::repeat(()).flat_map(move |()| until_forgotten(watcher_of(api.clone(), config.clone())))
}

/// Ends after the error that says so, so that the pause after it still counts.
pub(crate) fn until_forgotten<K: Send + 'static>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static {
    events.scan(false, |forgotten, event| {
        let ended = *forgotten;
        *forgotten = is_forgotten(&event);
        ready((!ended).then_some(event))
    })
}

/// A streaming list (one request for list and watch), or, where the API server refuses that, a list and then a watch.
pub(crate) fn watcher_of<K>(
    api: Api<K>,
    config: Config,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
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

fn is_refused<K>(event: &watcher::Result<Event<K>>) -> bool {
    match event {
        Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) => matches!(status.code, 400 | 422),
        _ => false,
    }
}

fn is_forgotten<K>(event: &watcher::Result<Event<K>>) -> bool {
    matches!(event, Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) if status.code == 410)
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
            progress.watch_works();
            // Pods of a later list are worked on as they arrive, when the store does not have them yet: once more.
            if progress.list_ended() == Listed::Again {
                context.changes.announce();
            }
            context.registry.drop_unused();
        }
        Ok(Event::Apply(pod)) => {
            progress.watch_works();
            context.seen.observe(pod.reference_time());
            progress.applied(pod);
        }
        Ok(Event::Delete(pod)) => {
            progress.watch_works();
            progress.forget(pod.uid());
            context.registry.drop_unused();
        }
        Err(error) => {
            progress.watch_failed();
            tracing::warn!(error = %chain(error), "the watch on pods failed; it begins anew with backoff");
        }
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
    use std::{sync::Mutex, time::Duration};

    use bytes::Bytes;
    use http::Request;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;
    use crate::fake_api::{self, Reply, Scene, json_reply, pod_json};

    type Asked = Arc<Mutex<Vec<String>>>;

    /// Notes the request, and says how many there were with it.
    fn note(asked: &Asked, uri: String) -> usize {
        let mut asked = asked.lock().expect("no test panicked");
        asked.push(uri);
        asked.len()
    }

    /// An API server without streaming lists: what 1.30 answers, in its own words.
    async fn without_streaming_lists(asked: Asked, request: Request<Body>) -> Reply {
        let uri = request.uri().to_string();
        note(&asked, uri.clone());
        if uri.contains("sendInitialEvents") {
            let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            let status =
                json!({"kind": "Status", "status": "Failure", "reason": "Invalid", "code": 422, "message": message});
            return json_reply(422, &status);
        }
        if uri.contains("watch=") {
            return futures::future::pending().await;
        }
        let meta = json!({"resourceVersion": "7"});
        json_reply(200, &json!({"kind": "PodList", "apiVersion": "v1", "metadata": meta, "items": [pod_json("web")]}))
    }

    #[tokio::test]
    async fn an_api_server_without_streaming_lists_is_listed_and_then_watched() {
        let asked = Asked::default();
        let service = tower::service_fn({
            let asked = Arc::clone(&asked);
            move |request| without_streaming_lists(Arc::clone(&asked), request)
        });
        let api = Api::all(Client::new(service, "jasm-system"));
        let events = events(api, "node-1").take(3).map(|event| event.expect("no error reaches us"));
        let events: Vec<_> = events.collect().await;
        assert!(matches!(events[0], Event::Init), "{events:?}");
        assert!(matches!(&events[1], Event::InitApply(pod) if pod.name() == "web"), "{events:?}");
        assert!(matches!(events[2], Event::InitDone), "{events:?}");
        let asked = asked.lock().expect("no test panicked");
        assert_eq!(asked.len(), 2, "one refusal, one list: {asked:?}");
        assert!(asked.iter().all(|uri| uri.contains("fieldSelector=spec.nodeName%3Dnode-1")), "{asked:?}");
        let seconds = asked[0].split(['?', '&']).find_map(|part| part.strip_prefix("timeoutSeconds="));
        assert!(seconds.is_some_and(|seconds| matches!(seconds.parse(), Ok(60..=120))), "{asked:?}");
    }

    fn event(kind: &str, object: &Value) -> String {
        format!("{}\n", json!({"type": kind, "object": object}))
    }

    fn list_ends() -> String {
        let meta = json!({"resourceVersion": "7", "annotations": {"k8s.io/initial-events-end": "true"}});
        event("BOOKMARK", &json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta}))
    }

    /// Sends the parts with a pause before each; the connection then ends, or stays.
    fn stream_of(parts: Vec<String>, stays: bool) -> Reply {
        let sent = stream::iter(parts).then(|part| async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(Frame::data(Bytes::from(part)))
        });
        let rest = if stays { stream::pending().boxed() } else { stream::empty().boxed() };
        fake_api::reply(200, StreamBody::new(sent.chain(rest)))
    }

    /// A list with one pod, a watch that is too old to be resumed, and a list with one pod more, in parts.
    async fn that_forgets(asked: Asked, request: Request<Body>) -> Reply {
        if request.uri().path() != "/api/v1/pods" {
            return fake_api::secrets(request).await;
        }
        let (first, second) = (event("ADDED", &pod_json("first")), event("ADDED", &pod_json("second")));
        let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old"});
        match note(&asked, request.uri().to_string()) {
            1 => stream_of(vec![first, list_ends()], false),
            2 => stream_of(vec![event("ERROR", &gone)], false),
            _ => stream_of(vec![second, first, list_ends()], true),
        }
    }

    /// A pod of a second list is seen before the store has it; it must not be lost.
    #[tokio::test(start_paused = true)]
    async fn a_pod_that_comes_with_a_later_list_is_served() {
        let asked = Asked::default();
        let service = tower::service_fn({
            let asked = Arc::clone(&asked);
            move |request| that_forgets(Arc::clone(&asked), request)
        });
        let client = Client::new(service, "jasm-system");
        let scene = Scene::new(client.clone()).await;
        let admission = scene.context.targets.admission();
        let both_served = async {
            let want = r#"jasm_syncs_total{provider="aws",result="fresh",reason="SecretSyncSuccess"} 2"#;
            while !scene.metrics.render().contains(want) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let work = run(client, "node-1", Arc::clone(&scene.context), futures::future::pending());
        tokio::select! {
            outcome = tokio::time::timeout(Duration::from_secs(60), both_served) => {
                assert!(outcome.is_ok(), "{}", scene.metrics.render());
            }
            () = work => unreachable!("it runs until it is stopped"),
            () = admission.watch() => unreachable!("it never ends"),
        }
        assert_eq!(asked.lock().expect("no test panicked").len(), 3, "list, resumed watch, list");
    }
}
