//! The caller's side of the control API.

use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use api::{CONSOLE_PROTOCOL, CONSOLE_ROLE, ErrorBody};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use vms::{VmDir, member};

use crate::ControlError;

/// How long an answer may take that needs no waiting: long enough for a host that is busy.
const SOON: Duration = Duration::from_secs(10);

/// A connection to the process of a VM. Its methods wait for the answer.
pub struct Client {
    name: String,
    runtime: Runtime,
    stream: StdStream,
}

/// An attached console.
pub struct ConsoleStream {
    /// Bytes in both directions.
    pub stream: StdStream,
    /// What has come already.
    pub first: Vec<u8>,
    /// Whether what is written goes to the guest.
    pub is_writer: bool,
}

impl Client {
    /// Connects to the process of the VM in `dir`.
    ///
    /// # Errors
    /// [`ControlError::NoAnswer`] when there is none, [`ControlError::Io`].
    pub fn connect(dir: &VmDir) -> Result<Self, ControlError> {
        let name = dir.name().to_owned();
        let stream = StdStream::connect(dir.path(member::SOCKET))
            .and_then(|stream| stream.set_nonblocking(true).map(|()| stream));
        let stream = stream
            .map_err(|e| ControlError::NoAnswer { name: name.clone(), cause: e.to_string() })?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(ControlError::io("use the control socket"))?;
        Ok(Self { name, runtime, stream })
    }

    /// Asks for something that is there.
    ///
    /// # Errors
    /// [`ControlError::Refused`], [`ControlError::NoAnswer`].
    pub fn get<T: DeserializeOwned>(self, path: &str) -> Result<T, ControlError> {
        let name = self.name.clone();
        let body = self.call(Method::GET, path, Vec::new(), Some(SOON))?;
        decode(&name, &body)
    }

    /// Asks for something as text.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn get_text(self, path: &str) -> Result<String, ControlError> {
        let body = self.call(Method::GET, path, Vec::new(), Some(SOON))?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Lets something be done that takes moments.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post(self, path: &str) -> Result<(), ControlError> {
        self.call(Method::POST, path, Vec::new(), Some(SOON)).map(|_| ())
    }

    /// Lets something be done that may take long, and waits for it.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post_and_wait(self, path: &str) -> Result<(), ControlError> {
        self.call(Method::POST, path, Vec::new(), None).map(|_| ())
    }

    /// The same with a body and an answer.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post_json<T: DeserializeOwned>(
        self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ControlError> {
        let name = self.name.clone();
        let encode = |e: serde_json::Error| ControlError::io("encode a request")(e.into());
        let body = serde_json::to_vec(body).map_err(encode)?;
        let answer = self.call(Method::POST, path, body, None)?;
        decode(&name, &answer)
    }

    /// Attaches to the console, with `scroll_back` bytes of the past; `view` only to look.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn console(self, scroll_back: u64, view: bool) -> Result<ConsoleStream, ControlError> {
        let Self { name, runtime, stream } = self;
        let path = format!("{}?scroll_back={scroll_back}&view={view}", api::CONSOLE);
        let attached = runtime.block_on(async {
            tokio::time::timeout(SOON, upgrade(stream, &path)).await.unwrap_or_else(|_| timed_out())
        });
        attached.map_err(|e| ControlError::NoAnswer { name, cause: e.to_string() })
    }

    fn call(
        self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        patience: Option<Duration>,
    ) -> Result<Bytes, ControlError> {
        let Self { name, runtime, stream } = self;
        let exchange = exchange(stream, method, path, body);
        let answer = runtime.block_on(async {
            match patience {
                Some(time) => {
                    tokio::time::timeout(time, exchange).await.unwrap_or_else(|_| timed_out())
                }
                None => exchange.await,
            }
        });
        let (status, body) =
            answer.map_err(|e| ControlError::NoAnswer { name, cause: e.to_string() })?;
        if status.is_success() {
            return Ok(body);
        }
        let text = match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => body.error,
            Err(_) => format!("{status}: {}", String::from_utf8_lossy(&body)),
        };
        Err(ControlError::Refused(text))
    }
}

fn decode<T: DeserializeOwned>(name: &str, body: &[u8]) -> Result<T, ControlError> {
    serde_json::from_slice(body)
        .map_err(|e| ControlError::NoAnswer { name: name.to_owned(), cause: e.to_string() })
}

fn timed_out<T>() -> io::Result<T> {
    Err(io::ErrorKind::TimedOut.into())
}

fn request(method: Method, path: &str) -> hyper::http::request::Builder {
    Request::builder().method(method).uri(path).header(header::HOST, "localhost")
}

type Sender = http1::SendRequest<Full<Bytes>>;

/// Connects hyper to the socket; the connection is driven beside whoever uses it.
async fn open(stream: StdStream) -> io::Result<Sender> {
    let stream = TokioIo::new(UnixStream::from_std(stream)?);
    let (sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        // Whoever waits for an answer hears of a failure.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

async fn exchange(
    stream: StdStream,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> io::Result<(StatusCode, Bytes)> {
    let mut sender = open(stream).await?;
    let request = request(method, path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)?;
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    Ok((status, body))
}

async fn upgrade(stream: StdStream, path: &str) -> io::Result<ConsoleStream> {
    let mut sender = open(stream).await?;
    let request = request(Method::GET, path)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, CONSOLE_PROTOCOL)
        .body(Full::default())
        .map_err(io::Error::other)?;
    let answer: Response<_> = sender.send_request(request).await.map_err(io::Error::other)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(io::Error::other(format!("it answered {}", answer.status())));
    }
    let is_writer = answer.headers().get(CONSOLE_ROLE).is_some_and(|role| role == "writer");
    let upgraded = hyper::upgrade::on(answer).await.map_err(io::Error::other)?;
    let parts = upgraded.downcast::<TokioIo<UnixStream>>();
    let parts = parts.map_err(|_| io::Error::other("the connection is of another kind"))?;
    let stream = parts.io.into_inner().into_std()?;
    stream.set_nonblocking(false)?;
    Ok(ConsoleStream { stream, first: parts.read_buf.to_vec(), is_writer })
}
