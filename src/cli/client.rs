//! One HTTP request per connection over the agent's unix socket.
use std::{io::ErrorKind, path::PathBuf};

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode, body::Bytes, body::Incoming, header};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, task::JoinSet};

use super::Error;

pub(super) struct Client {
    socket: PathBuf,
}

struct Answer {
    route: &'static str,
    status: StatusCode,
    body: Incoming,
    /// Drives the connection; dropped with the answer, which closes it.
    _connection: JoinSet<()>,
}

/// An answer that goes on, by lines.
pub(super) struct Lines {
    answer: Answer,
    buffer: Vec<u8>,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Succeeds if nobody listens there.
    pub(super) async fn unused(&self) -> Result<(), Error> {
        let path = self.socket.clone();
        match UnixStream::connect(&path).await {
            Ok(_) => Err(Error::Running { path }),
            Err(source) => match source.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => Ok(()),
                _ => Err(Error::Connect { path, source }),
            },
        }
    }

    /// The whole body, whatever the status.
    pub(super) async fn text(&self, route: &'static str) -> Result<(StatusCode, String), Error> {
        self.get(route).await?.text().await
    }

    pub(super) async fn json<T: serde::de::DeserializeOwned>(
        &self,
        route: &'static str,
    ) -> Result<T, Error> {
        self.get(route).await?.json().await
    }

    /// Copies the body to `out`; its end may be missing.
    pub(super) async fn download(
        &self,
        route: &'static str,
        out: &mut impl std::io::Write,
    ) -> Result<(), Error> {
        let mut answer = self.get(route).await?;
        if answer.status != StatusCode::OK {
            return Err(answer.refused().await?);
        }
        while let Some(frame) = answer.body.frame().await {
            let frame = frame.map_err(|source| Error::Request { route, source })?;
            if let Some(bytes) = frame.data_ref() {
                out.write_all(bytes)?;
            }
        }
        Ok(())
    }

    /// An answer that goes on; `query` may be empty.
    pub(super) async fn lines(&self, route: &'static str, query: &str) -> Result<Lines, Error> {
        let mut request = Request::new(Full::default());
        let uri = format!("{route}?{query}");
        *request.uri_mut() = uri.parse().map_err(|source| Error::Query { uri, source })?;
        let answer = self.send(route, request).await?;
        if answer.status != StatusCode::OK {
            return Err(answer.refused().await?);
        }
        Ok(Lines {
            answer,
            buffer: Vec::new(),
        })
    }

    /// Sends `value` and reads the answer.
    pub(super) async fn post<T: serde::Serialize, R: serde::de::DeserializeOwned>(
        &self,
        route: &'static str,
        value: &T,
    ) -> Result<R, Error> {
        let body = serde_json::to_vec(value).map_err(|source| Error::Encode { route, source })?;
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = hyper::Method::POST;
        let json = header::HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, json);
        self.send(route, request).await?.json().await
    }

    async fn get(&self, route: &'static str) -> Result<Answer, Error> {
        self.send(route, Request::new(Full::default())).await
    }

    async fn send(
        &self,
        route: &'static str,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Answer, Error> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| Error::Connect {
                path: self.socket.clone(),
                source,
            })?;
        let failed = |source| Error::Request { route, source };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        let mut tasks = JoinSet::new();
        // An error of the connection comes out of the request or the body too.
        tasks.spawn(async move { drop(connection.await) });
        if request.uri().path() != route {
            *request.uri_mut() = hyper::Uri::from_static(route);
        }
        request
            .headers_mut()
            .insert(header::HOST, header::HeaderValue::from_static("tombolo"));
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status();
        Ok(Answer {
            route,
            status,
            body: response.into_body(),
            _connection: tasks,
        })
    }
}

impl Answer {
    /// Its body, whatever the status.
    async fn text(self) -> Result<(StatusCode, String), Error> {
        let route = self.route;
        let body = self.body.collect().await;
        let body = body.map_err(|source| Error::Request { route, source })?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Ok((self.status, text))
    }

    async fn json<T: serde::de::DeserializeOwned>(self) -> Result<T, Error> {
        if self.status != StatusCode::OK {
            return Err(self.refused().await?);
        }
        let route = self.route;
        let (_, body) = self.text().await?;
        serde_json::from_str(&body).map_err(|source| Error::Decode { route, source })
    }

    /// What the agent said instead of doing it.
    async fn refused(self) -> Result<Error, Error> {
        let route = self.route;
        let (status, body) = self.text().await?;
        // Its own words, unless it knows nothing of the route.
        if !body.is_empty() {
            return Ok(Error::Said(body));
        }
        Ok(Error::Refused {
            route,
            status,
            body,
        })
    }
}

impl Lines {
    /// The next line without its end; `None` once the agent closed the stream.
    pub(super) async fn next(&mut self) -> Result<Option<String>, Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            let Some(frame) = self.answer.body.frame().await else {
                return Ok(None);
            };
            let route = self.answer.route;
            let frame = frame.map_err(|source| Error::Request { route, source })?;
            if let Some(bytes) = frame.data_ref() {
                self.buffer.extend_from_slice(bytes);
            }
        }
    }
}
