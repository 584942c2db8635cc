//! Stands before the services: counts each call against its client's limits, and hands the
//! connection's rights on. A call without a connection behind it goes no further.
use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt as _, future::BoxFuture};
use http_body_util::BodyExt as _;
use tonic::{Code, Status, body::Body, codegen::http};
use tower::{Layer, Service};

use super::{
    access::{self, Access},
    clients::{Held, Limits, Quota},
    metrics::{Limit, Metrics},
    refusal,
};

/// What is known of a connection; travels with each of its calls.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) access: Access,
    pub(super) shared: Arc<CallerShared>,
}

/// See [`Caller`].
#[derive(Debug)]
pub(super) struct CallerShared {
    pub(super) name: String,
    /// Of this connection.
    pub(super) streams: Quota<()>,
    /// Of all connections.
    pub(super) requests: Quota<String>,
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
}

impl CallerShared {
    /// Held as long as the call or stream is open.
    fn stream(&self) -> Result<Held<()>, Status> {
        self.streams
            .take(&())
            .ok_or_else(|| self.refuse(Limit::StreamsPerConnection, self.streams.max()))
    }

    /// Held until the call is answered, or the stream is open.
    fn request(&self) -> Result<Held<String>, Status> {
        self.requests
            .take(&self.name)
            .ok_or_else(|| self.refuse(Limit::RequestsPerClient, self.requests.max()))
    }

    /// The first words are etcd's `ErrTooManyRequests`, which clients search for.
    fn refuse(&self, limit: Limit, max: usize) -> Status {
        self.metrics.limit_hit(limit, max, &self.name);
        let what = match limit {
            Limit::StreamsPerConnection => {
                "calls and streams are open on this connection; end some or open another one"
            }
            _ => "calls of this client are in work; retry when some are answered",
        };
        Status::resource_exhausted(format!("etcdserver: too many requests: {max} {what}"))
    }

    /// The library tells by its words only that a message is too long; etcd's own are put in their
    /// place.
    fn too_long(&self, response: &http::Response<Body>) -> Option<Status> {
        let status = Status::from_header_map(response.headers())?;
        let found = status
            .message()
            .strip_prefix("Error, decoded message length too large: found ")?;
        if status.code() != Code::OutOfRange {
            return None;
        }
        let max = self.limits.message_bytes();
        self.metrics.limit_hit(Limit::RequestBytes, max, &self.name);
        let found: String = found.chars().take_while(char::is_ascii_digit).collect();
        Some(Status::resource_exhausted(format!(
            "grpc: received message larger than max ({found} vs. {max})"
        )))
    }
}

/// Puts a [`Guard`] before a service.
#[derive(Debug, Clone, Copy)]
pub(super) struct GuardLayer;

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard(inner)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Guard<S>(S);

type Answer = Result<http::Response<Body>, Infallible>;

impl<S> Service<http::Request<Body>> for Guard<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let Some(caller) = request.extensions_mut().remove::<Caller>() else {
            return refused(&access::permission_denied());
        };
        let Caller { access, shared } = caller;
        let (stream, working) = match (shared.stream(), shared.request()) {
            (Ok(stream), Ok(working)) => (stream, working),
            (Err(status), _) | (_, Err(status)) => return refused(&status),
        };
        shared.metrics.request();
        if let Some(refusal) = access.refusal() {
            return refused(&refusal);
        }
        request.extensions_mut().insert(access);
        let answer = self.0.call(request);
        let answer = async move {
            let response = answer.await?;
            drop(working);
            if let Some(status) = shared.too_long(&response) {
                return Ok(status.into_http());
            }
            if refusal::is_unserved(&response) {
                return Ok(refusal::unserved().into_http());
            }
            // The stream counts as open until its body is sent or dropped.
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _open = &stream;
                    frame
                }))
            }))
        };
        answer.boxed()
    }
}

fn refused(status: &Status) -> BoxFuture<'static, Answer> {
    futures::future::ready(Ok(status.clone().into_http())).boxed()
}
