//! The way between a reader and a site: it delays, freezes, refuses and breaks connections.
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, codegen::http};
use tower::{BoxError, ServiceExt as _, util::BoxCloneSyncService};

use crate::{
    etcd::{Client, Error},
    serve,
    store::Store,
};

/// One source of chance for a whole world. Cheap to clone.
#[derive(Clone)]
pub(super) struct Lots(Arc<Mutex<StdRng>>);

impl Lots {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    pub(super) fn below(&self, end: u64) -> u64 {
        lock(&self.0).random_range(0..end.max(1))
    }

    pub(super) fn index(&self, len: usize) -> usize {
        lock(&self.0).random_range(0..len)
    }

    pub(super) fn fraction(&self) -> f64 {
        lock(&self.0).random()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cheap to clone; clones are the same way.
#[derive(Clone)]
pub(super) struct Way {
    state: Arc<watch::Sender<State>>,
    /// Answers calls in the place of whoever was dialled.
    other: Arc<Mutex<Option<Store>>>,
    lots: Lots,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// Connections made before the last cut are broken.
    cuts: u64,
    refuses: bool,
    frozen: bool,
    /// Longest delay of a message, ms.
    delay: u64,
}

impl Way {
    pub(super) fn new(lots: Lots) -> Self {
        Self {
            state: Arc::new(watch::channel(State::default()).0),
            other: Arc::default(),
            lots,
        }
    }

    /// A way that leads nowhere.
    pub(super) fn refusing() -> Self {
        let way = Self::new(Lots::new(0));
        way.refuse(true);
        way
    }

    pub(super) fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    pub(super) fn refuse(&self, refuses: bool) {
        self.state.send_modify(|state| state.refuses = refuses);
    }

    pub(super) fn freeze(&self, frozen: bool) {
        self.state.send_modify(|state| state.frozen = frozen);
    }

    pub(super) fn slow(&self, delay: u64) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// From now on another store answers, on the connections that there are.
    pub(super) fn divert(&self, other: Option<Store>) {
        *lock(&self.other) = other;
    }

    pub(super) fn heal(&self) {
        self.state.send_modify(|state| {
            *state = State {
                cuts: state.cuts,
                ..State::default()
            };
        });
    }

    /// A message on a connection that was made after `cuts` cuts arrives, late or never.
    async fn pass(&self, cuts: u64) -> Result<(), BoxError> {
        let delay = self.state.borrow().delay;
        if delay > 0 {
            sleep(Duration::from_millis(self.lots.below(delay))).await;
        }
        let mut state = self.state.subscribe();
        let state = state.wait_for(|s| s.cuts != cuts || !s.frozen).await?;
        if state.cuts == cuts {
            Ok(())
        } else {
            Err("connection reset".into())
        }
    }

    async fn is_cut(&self, cuts: u64) {
        let mut state = self.state.subscribe();
        // The sender is `self`'s.
        drop(state.wait_for(|s| s.cuts != cuts).await);
    }

    /// A connection to `store`, as it is when the connection comes about.
    pub(super) async fn dial(self, store: impl Fn() -> Store) -> Result<Client, Error> {
        let refused = |_| Error::Dial {
            address: "site".to_owned(),
            source: io::ErrorKind::ConnectionRefused.into(),
        };
        let cuts = self.state.borrow().cuts;
        self.pass(cuts).await.map_err(refused)?;
        if self.state.borrow().refuses {
            return Err(refused("".into()));
        }
        let inner = serve::in_process(store(), CancellationToken::new());
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let (way, mut inner) = (self.clone(), inner.clone());
            if let Some(other) = lock(&way.other).clone() {
                inner = serve::in_process(other, CancellationToken::new());
            }
            Box::pin(async move {
                way.pass(cuts).await?;
                let response = tokio::select! {
                    biased;
                    () = way.is_cut(cuts) => return Err("connection reset".into()),
                    response = inner.oneshot(request) => response?,
                };
                way.pass(cuts).await?;
                Ok::<_, BoxError>(response.map(|body| way.body(body, cuts)))
            })
        });
        let channel = etcd_client::Channel::Custom(BoxCloneSyncService::new(service));
        Client::in_process(channel).await
    }

    fn body(self, body: Body, cuts: u64) -> Body {
        let frames = stream::unfold(Some((self, body)), move |open| async move {
            let (way, mut body) = open?;
            let frame = tokio::select! {
                biased;
                () = way.is_cut(cuts) => Err("connection reset".into()),
                frame = body.frame() => frame?.map_err(BoxError::from),
            };
            let frame = match frame {
                Ok(frame) => way.pass(cuts).await.map(|()| frame),
                broken => broken,
            };
            let rest = frame.is_ok().then_some((way, body));
            Some((frame, rest))
        });
        Body::new(StreamBody::new(frames))
    }
}
