//! The control API of a VM's process: HTTP on a Unix socket in the VM's folder.
//!
//! One thread serves all connections. What waits for the VM is done on threads that come and go.
//! Only the owner can connect: the socket and the folder are the owner's alone.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use api::{
    CONSOLE_PROTOCOL, CONSOLE_ROLE, ErrorBody, HopRequest, PauseReport, SnapshotRequest,
    SnapshotResult, VmStatus, VmUsage,
};
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::TokioIo;
use lifecycle::ConsoleInput;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use utoipa::OpenApi;
use vms::{VmDir, member};

use crate::console::Writer;
use crate::{ControlError, Guest, metrics};

/// A guest that takes no input is asked again after this time, then less and less often.
const FIRST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_millis(50);
/// Requests that wait for the VM at once.
const WAITING: usize = 8;

/// The API, for `docs/openapi.json`.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Ringfence VM control",
        description = "What the process of a managed VM serves on its Unix socket.",
        version = "1",
    ),
    paths(
        status,
        pause,
        resume,
        suspend,
        power_button,
        kill,
        snapshot,
        hop,
        stats,
        prometheus,
        console
    ),
    components(schemas(ErrorBody))
)]
struct ApiDoc;

/// The OpenAPI description of the API, as JSON.
pub fn openapi() -> String {
    // It is made of types that encode.
    ApiDoc::openapi().to_pretty_json().unwrap_or_default() + "\n"
}

/// How long callers have at the end of the VM to read what is left for them.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// The server's socket, bound. Whoever connects is answered from [`Server::serve`] on.
pub struct Server {
    listener: std::os::unix::net::UnixListener,
}

/// A server that runs.
pub struct Serving {
    ending: Arc<Notify>,
    ended: Receiver<()>,
}

impl Serving {
    /// Ends the server, once callers have their answers and viewers of the console its last output;
    /// those that are slow are not waited for.
    pub fn finish(self) {
        self.ending.notify_one();
        // An answer that is not taken in time is lost, as if the process had been killed.
        let _ = self.ended.recv_timeout(2 * LAST_WORDS);
    }
}

impl Server {
    /// Binds the socket of the VM in `dir`, whose run lock is held: a socket that is there is a dead
    /// process's.
    ///
    /// # Errors
    /// [`ControlError::Io`].
    pub fn bind(dir: &VmDir) -> Result<Self, ControlError> {
        let path = dir.path(member::SOCKET);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(ControlError::io("remove the old control socket")(e));
            }
            _ => {}
        }
        let bound = std::os::unix::net::UnixListener::bind(&path).and_then(|listener| {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        bound.map(|listener| Self { listener }).map_err(ControlError::io("bind the control socket"))
    }

    /// Starts the thread that serves requests for `guest`, until the process ends.
    ///
    /// # Errors
    /// [`ControlError::Io`].
    pub fn serve(self, guest: Arc<Guest>) -> Result<Serving, ControlError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(WAITING)
            .thread_keep_alive(Duration::from_secs(1))
            .build()
            .map_err(ControlError::io("start the control thread"))?;
        let ending = Arc::new(Notify::new());
        let (done, ended) = channel();
        let asked = Arc::clone(&ending);
        let serve = move || {
            let result = runtime.block_on(serve_until(self.listener, guest, asked));
            runtime.shutdown_background();
            if let Err(error) = result {
                eprintln!("the control API ended: {error}");
            }
            // Nobody waits unless the VM has ended.
            let _ = done.send(());
        };
        let thread = thread::Builder::new().name("control".to_owned()).spawn(serve);
        thread.map_err(ControlError::io("start the control thread"))?;
        Ok(Serving { ending, ended })
    }
}

/// Serves until `ending` is notified, and then what has begun, for a moment.
async fn serve_until(
    listener: std::os::unix::net::UnixListener,
    guest: Arc<Guest>,
    ending: Arc<Notify>,
) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let consoles = Arc::clone(&guest.consoles);
    let asked = Arc::clone(&ending);
    let serve = axum::serve(listener, router(guest));
    let ended = Arc::new(Notify::new());
    let told = Arc::clone(&ended);
    let serve = serve.with_graceful_shutdown(async move {
        asked.notified().await;
        told.notify_one();
    });
    let last_words = async {
        ended.notified().await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        result = serve => result?,
        () = last_words => {}
    }
    let start = Instant::now();
    while Arc::strong_count(&consoles) > 2 && start.elapsed() < LAST_WORDS {
        tokio::time::sleep(FIRST_WAIT).await;
    }
    Ok(())
}

type Shared = State<Arc<Guest>>;

fn router(guest: Arc<Guest>) -> Router {
    Router::new()
        .route(api::VM, get(status))
        .route(api::STATS, get(stats))
        .route(api::METRICS, get(prometheus))
        .route(api::PAUSE, post(pause))
        .route(api::RESUME, post(resume))
        .route(api::SUSPEND, post(suspend))
        .route(api::POWER_BUTTON, post(power_button))
        .route(api::KILL, post(kill))
        .route(api::SNAPSHOTS, post(snapshot))
        .route(api::HOP, post(hop))
        .route(api::CONSOLE, get(console))
        .with_state(guest)
}

/// An error as the caller sees it.
struct Failure(ControlError);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0 {
            ControlError::Refused(_) | ControlError::Disk { .. } => StatusCode::BAD_REQUEST,
            ControlError::Snapshot(_) | ControlError::Vm(_) => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(ErrorBody { error: self.0.to_string() })).into_response()
    }
}

/// Does something that may wait, on a thread of its own.
async fn wait_for<T: Send + 'static>(
    guest: Arc<Guest>,
    act: impl FnOnce(&Guest) -> Result<T, ControlError> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(move || act(&guest)).await;
    done.unwrap_or_else(|e| Err(ControlError::Refused(format!("internal error: {e}"))))
        .map_err(Failure)
}

/// What the VM is and does
#[utoipa::path(get, path = "/v1/vm", responses((status = 200, body = VmStatus)))]
async fn status(State(guest): Shared) -> Json<VmStatus> {
    Json(guest.status())
}

/// Stop the guest where it is
#[utoipa::path(post, path = "/v1/pause",
    responses((status = 204), (status = 409, body = ErrorBody)))]
async fn pause(State(guest): Shared) -> Result<StatusCode, Failure> {
    wait_for(guest, Guest::pause).await.map(|()| StatusCode::NO_CONTENT)
}

/// Let the guest go on
#[utoipa::path(post, path = "/v1/resume",
    responses((status = 204), (status = 409, body = ErrorBody)))]
async fn resume(State(guest): Shared) -> Result<StatusCode, Failure> {
    wait_for(guest, Guest::resume).await.map(|()| StatusCode::NO_CONTENT)
}

/// Write state and memory to disk and end the process
#[utoipa::path(post, path = "/v1/suspend",
    responses((status = 204), (status = 409, body = ErrorBody)))]
async fn suspend(State(guest): Shared) -> Result<StatusCode, Failure> {
    wait_for(guest, Guest::suspend).await.map(|()| StatusCode::NO_CONTENT)
}

/// Press the power button
#[utoipa::path(post, path = "/v1/power-button", responses((status = 204)))]
async fn power_button(State(guest): Shared) -> StatusCode {
    guest.press_power_button();
    StatusCode::NO_CONTENT
}

/// End the VM at once
#[utoipa::path(post, path = "/v1/kill", responses((status = 204)))]
async fn kill(State(guest): Shared) -> StatusCode {
    guest.kill();
    StatusCode::NO_CONTENT
}

/// Take a snapshot
#[utoipa::path(post, path = "/v1/snapshots", request_body = SnapshotRequest,
    responses((status = 200, body = SnapshotResult), (status = 400, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn snapshot(
    State(guest): Shared,
    Json(request): Json<SnapshotRequest>,
) -> Result<Json<SnapshotResult>, Failure> {
    wait_for(guest, move |guest| guest.snapshot(&request)).await.map(Json)
}

/// Let another engine execute the guest
#[utoipa::path(post, path = "/v1/hop", request_body = HopRequest,
    responses((status = 200, body = PauseReport), (status = 400, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn hop(
    State(guest): Shared,
    Json(request): Json<HopRequest>,
) -> Result<Json<PauseReport>, Failure> {
    wait_for(guest, move |guest| guest.hop(&request.engine)).await.map(Json)
}

/// What the VM has used
#[utoipa::path(get, path = "/v1/stats", responses((status = 200, body = VmUsage)))]
async fn stats(State(guest): Shared) -> Result<Json<VmUsage>, Failure> {
    wait_for(guest, Guest::usage).await.map(Json)
}

/// The same in Prometheus' text format
#[utoipa::path(get, path = "/v1/metrics", responses((status = 200, body = String)))]
async fn prometheus(State(guest): Shared) -> Result<Response, Failure> {
    let text = wait_for(guest, |guest| Ok(metrics::text(&guest.usage()?, guest.is_running())));
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((kind, text.await?).into_response())
}

/// How somebody attaches to the console.
#[derive(Deserialize, utoipa::IntoParams)]
struct ConsoleQuery {
    /// Bytes of the past to begin with.
    #[serde(default)]
    scroll_back: u64,
    /// Only look, also where nobody writes.
    #[serde(default)]
    view: bool,
}

/// Attach to the console: the connection becomes a stream of bytes in both directions. One
/// connection at a time is the writer, all others are viewers; the header `ringfence-role` says
/// which
#[utoipa::path(get, path = "/v1/console", params(ConsoleQuery),
    responses((status = 101, description = "`Upgrade: ringfence-console`"),
        (status = 400, body = ErrorBody)))]
async fn console(
    State(guest): Shared,
    Query(query): Query<ConsoleQuery>,
    request: Request,
) -> Response {
    let wanted = request.headers().get(header::UPGRADE).map(|value| value.as_bytes());
    if wanted != Some(CONSOLE_PROTOCOL.as_bytes()) {
        let text = format!("the console needs the header `Upgrade: {CONSOLE_PROTOCOL}`");
        return Failure(ControlError::Refused(text)).into_response();
    }
    let writer = if query.view { None } else { become_writer(&guest).await };
    let role = if writer.is_some() { "writer" } else { "viewer" };
    let position = guest.console.position(query.scroll_back);
    let attached = Arc::clone(&guest.consoles);
    tokio::spawn(async move {
        let _attached = attached;
        // A peer that has gone needs no console.
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            attach(&guest, TokioIo::new(upgraded), position, writer).await;
        }
    });
    let headers = [
        (header::CONNECTION.as_str(), "upgrade"),
        (header::UPGRADE.as_str(), CONSOLE_PROTOCOL),
        (CONSOLE_ROLE, role),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Becomes the writer of the console; one that has just gone may take a moment to be missed.
async fn become_writer(guest: &Guest) -> Option<Writer> {
    for _ in 0..20 {
        if let Some(writer) = guest.console.claim_writer() {
            return Some(writer);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    None
}

/// Passes bytes on until the peer or the console ends.
async fn attach(
    guest: &Guest,
    stream: TokioIo<hyper::upgrade::Upgraded>,
    mut position: u64,
    writer: Option<Writer>,
) {
    let (mut from_peer, mut to_peer) = tokio::io::split(stream);
    let output = async {
        while let Some(bytes) = guest.console.next(&mut position).await {
            if to_peer.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The peer that does not hear of the end has ended before.
        let _ = to_peer.shutdown().await;
    };
    let input = async {
        let guest = guest.console_input();
        let mut buffer = [0; 4096];
        // A viewer's keys are read, so that its end is seen, and dropped. A writer that sends no
        // more still reads.
        while let Ok(count @ 1..) = from_peer.read(&mut buffer).await {
            if writer.is_some() {
                feed(&*guest, &buffer[..count]).await;
            }
        }
        drop(writer);
    };
    tokio::join!(output, input);
}

/// Gives the guest all bytes, as it takes them.
async fn feed(guest: &dyn ConsoleInput, mut bytes: &[u8]) {
    let mut wait = FIRST_WAIT;
    while !bytes.is_empty() {
        match guest.push(bytes) {
            0 => {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            taken => {
                bytes = &bytes[taken..];
                wait = FIRST_WAIT;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_description_is_that_of_the_types() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            fs::write(path, openapi()).unwrap();
        }
        let checked_in = fs::read_to_string(path).unwrap_or_default();
        assert!(
            checked_in == openapi(),
            "docs/openapi.json is stale: run UPDATE_OPENAPI=1 cargo test -p control openapi"
        );
        for path in [api::VM, api::PAUSE, api::SUSPEND, api::SNAPSHOTS, api::HOP, api::CONSOLE] {
            assert!(checked_in.contains(&format!("\"{path}\"")), "{path} is not described");
        }
    }
}
