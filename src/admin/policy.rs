//! The routes of policies: the only ones that change something, and that in the cluster store.
use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State as Extract},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    State,
    wire::{policy as wire, trace as asked},
};
use crate::{
    limits,
    policy::{
        Query, Question, Side, directory,
        store::{self, BadName, Error, Name, Policies, Status},
    },
    types::{EndpointId, IdentityId, Labels},
};

/// Where this node's policies come from.
#[derive(Clone)]
pub struct Sources {
    /// Those of the cluster store, for the operator.
    pub store: Policies,
    /// What of them is in force on this node.
    pub cluster: watch::Receiver<Arc<Status>>,
    /// The same of this node's files; `None` without `--policy-dir`.
    pub files: Option<watch::Receiver<Arc<directory::Status>>>,
    /// Answers questions about what they make of a connection.
    pub queries: mpsc::Sender<Query>,
    /// How many different selectors they use.
    pub selectors: Arc<AtomicUsize>,
}

const UNKNOWN_SIDE: &str = "no such identity or endpoint is known here; tombolo identity list and \
    tombolo endpoint list show which are";
const NOT_ANSWERED: &str =
    "the agent is stopping, or has not read its policies yet; tombolo status";

type Shared = Extract<Arc<State>>;

pub(super) fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/v1/policies", get(list).post(apply))
        .route("/v1/policies/delete", post(delete))
        .route("/v1/policies/nodes", get(nodes))
        .route("/v1/policy/trace", post(trace))
        .layer(DefaultBodyLimit::max(limits::POLICY_REQUEST_BYTES_MAX))
}

impl Sources {
    /// What is in force.
    pub(super) fn summary(&self) -> wire::Summary {
        let cluster = self.cluster.borrow();
        let of_store = cluster.policies.values();
        let refused = of_store.clone().filter(|policy| policy.error.is_some());
        let mut summary = wire::Summary {
            files: 0,
            cluster: of_store.clone().filter(|policy| policy.in_force).count(),
            refused: refused.count(),
            read_revision: cluster.read,
            applied_revision: cluster.applied,
        };
        if let Some(files) = &self.files {
            let files = files.borrow();
            let of_files = files.files.values();
            summary.files = of_files.clone().map(|file| file.policies.len()).sum();
            summary.refused += of_files.filter(|file| file.error.is_some()).count();
        }
        summary
    }
}

/// A request that was not done, and whose fault that is.
enum Refused {
    Name(BadName),
    Store(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Name(error) => (StatusCode::BAD_REQUEST, error.to_string()),
            Self::Store(error @ Error::Store { .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, chain(&error))
            }
            Self::Store(error) => (StatusCode::UNPROCESSABLE_ENTITY, chain(&error)),
        };
        (status, text).into_response()
    }
}

async fn apply(
    state: Shared,
    Json(request): Json<wire::Apply>,
) -> Result<Json<Vec<wire::Changed>>, Refused> {
    let done = state.policies.store.apply(&named(request.files)).await?;
    Ok(Json(done.into_iter().map(Into::into).collect()))
}

async fn delete(
    state: Shared,
    Json(request): Json<wire::Delete>,
) -> Result<Json<Vec<wire::Changed>>, Refused> {
    let names = request.names.iter().map(|name| name.parse());
    let mut names: Vec<Name> = names.collect::<Result<_, _>>().map_err(Refused::Name)?;
    names.extend(store::names(&named(request.files))?);
    let done = state.policies.store.delete(&names).await?;
    Ok(Json(done.into_iter().map(Into::into).collect()))
}

async fn trace(
    state: Shared,
    Json(asked): Json<asked::Question>,
) -> Result<Json<asked::Trace>, (StatusCode, &'static str)> {
    if asked.protocol == 0 {
        return Err((StatusCode::BAD_REQUEST, "protocol 0 is no protocol"));
    }
    let question = Question {
        source: side(asked.source),
        destination: side(asked.destination),
        protocol: asked.protocol,
        port: asked.port,
    };
    let (answer, answered) = oneshot::channel();
    let query = Query { question, answer };
    let sent = state.policies.queries.send(query).await;
    match (sent, answered.await) {
        (Ok(()), Ok(Some(trace))) => Ok(Json(trace.into())),
        (Ok(()), Ok(None)) => Err((StatusCode::NOT_FOUND, UNKNOWN_SIDE)),
        _ => Err((StatusCode::SERVICE_UNAVAILABLE, NOT_ANSWERED)),
    }
}

fn side(side: asked::Side) -> Side {
    match side {
        asked::Side::Labels(text) => Side::Labels(Arc::new(Labels::parse(&text))),
        asked::Side::Identity(id) => Side::Identity(IdentityId(id)),
        asked::Side::Address(address) => Side::Address(address),
        asked::Side::Endpoint(id) => Side::Endpoint(EndpointId(id)),
    }
}

fn named(files: Vec<wire::File>) -> Vec<(PathBuf, String)> {
    let files = files.into_iter();
    files.map(|file| (file.name, file.text)).collect()
}

async fn nodes(state: Shared) -> Result<Json<wire::Nodes>, Refused> {
    Ok(Json(state.policies.store.nodes().await?))
}

async fn list(state: Shared) -> Result<Json<wire::Listing>, Refused> {
    let stored = state.policies.store.list().await?;
    let nodes = state.policies.store.nodes().await?;
    let here = Arc::clone(&state.policies.cluster.borrow());
    let policy = |stored: store::Stored| {
        let (mut applied, mut behind, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for (node, status) in &nodes {
            let list = if status.refused.contains(&stored.name) {
                &mut refused
            } else if status.applies(&stored.name, stored.revision) {
                &mut applied
            } else {
                &mut behind
            };
            list.push(node.clone());
        }
        let known = here.policies.get(&stored.name);
        wire::Policy {
            error: known.and_then(|known| known.error.clone()),
            name: stored.name,
            revision: stored.revision,
            applied,
            behind,
            refused,
            document: stored.text,
        }
    };
    Ok(Json(wire::Listing {
        cluster: stored.into_iter().map(policy).collect(),
        files: files(&state.policies),
    }))
}

fn files(sources: &Sources) -> Vec<wire::FilePolicies> {
    let Some(files) = &sources.files else {
        return Vec::new();
    };
    let files = files.borrow();
    let file = |(file, status): (&PathBuf, &directory::FileStatus)| wire::FilePolicies {
        file: file.clone(),
        policies: status.policies.clone(),
        error: status.error.clone(),
    };
    files.files.iter().map(file).collect()
}

/// The error with its sources, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
