//! `execute` targets: the request goes to a guest, the guest's output is the answer.

mod failures;
mod streaming;

use std::borrow::Cow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::{HeaderMap, Method, StatusCode, Version, header};
use pingora_core::{Error, ErrorType};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use serde_json::{Map, json};

use failures::{bad_response, guest_failure, not_run};
use streaming::{Running, stream};

use super::body::BodyLimit;
use super::compress::{self, Encoder};
use super::feed::{self, Feed};
use super::recording::{Execution, status_of};
use super::respond::{Stop, is_tls, write_body};
use super::{Ctx, Gateway, admit, request};
use crate::auth::Principal;
use crate::failure::{Failure, code};
use crate::limits::{self, Compute};
use crate::route::{Execute, HeaderEdits, Limits, ModuleSource};
use crate::sandbox::abi::wagi::{Head, HeadError, HeadParser};
use crate::sandbox::abi::{self, Abi, ArgsAndEnv, AuthType};
use crate::sandbox::{
    Call, End, Files, GuestLimits, Outcome, PipeReader, Prepared, RunError, ShareKey, Stdout, pipe,
};
use crate::usage::Status;

/// Output on its way from a guest to a slow client; a guest that is further ahead waits.
const PIPE_BYTES: usize = 256 * 1024;
/// The codes of failures to run a guest at all.
const NOT_RUN: [&str; 2] = [code::GUESTS_BUSY, code::SHUTTING_DOWN];
/// What of a guest's standard error goes to the log, in bytes.
const STDERR_LOGGED_MAX: usize = 1024;

/// What a route runs.
pub(super) struct Program<'a> {
    pub execute: &'a Execute,
    pub module: Arc<Prepared>,
    pub files: Option<Arc<Files>>,
}

impl Gateway {
    /// Answers by a guest. Whatever comes of it, it is recorded before the answer leaves.
    pub(super) async fn execute(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        limits: &Limits,
        program: Program<'_>,
    ) -> Result<(), Stop> {
        let execution = Execution::of(program.execute, program.module.hash());
        self.begin_execution(ctx, execution)?;
        let answered = Box::pin(self.run(session, ctx, limits, program)).await;
        if let Err(stop) = &answered {
            self.record_stop(ctx, stop)?;
        }
        answered
    }

    async fn run(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        limits: &Limits,
        program: Program<'_>,
    ) -> Result<(), Stop> {
        let Program {
            execute,
            module,
            files,
        } = program;
        let limit = BodyLimit::of_route(&ctx.plan.settings, limits);
        let share = share(ctx);
        let place = self.shared.body_room.place(share);
        let input = if session.as_downstream_mut().is_body_empty() {
            feed::empty(session, limit, place)
        } else {
            // Boxed, as all that few requests wait for: each of them would make room for it, and copy that.
            Box::pin(async {
                tokio::select! {
                    biased;
                    input = feed::open(session, limit, place) => input,
                    () = self.stopped(&ctx.principal, ctx.started) => Err(Failure::stopped().into()),
                }
            })
            .await?
        };
        let (args, env) = args_and_env(session, ctx, execute, input.length)?;
        let guest_limits = guest_limits(ctx, limits);
        self.be_seated(ctx, limits, guest_limits.deadline).await?;
        let feed = input.feed;
        let call = |stdout| Call {
            args,
            env,
            stdin: input.stdin,
            files,
            stdout,
            limits: guest_limits,
            share,
        };
        let principal = ctx.principal.clone();
        let (stdout, reader) = match execute.abi {
            Abi::Command => (Stdout::Collect, None),
            Abi::Wagi => {
                let (writer, reader) = pipe(PIPE_BYTES);
                (Stdout::Pipe(writer), Some(reader))
            }
        };
        // Pinned where they are: to hand on a future copies all that it will ever hold.
        let run = pin!(self.shared.sandbox.run(module, call(stdout)));
        let run = pin!(self.while_allowed(&principal, &execute.module, run));
        let answered = match reader {
            None => self.command(session, ctx, execute, run, feed).await,
            // Boxed, so that a `command` keeps no room for it.
            Some(reader) => Box::pin(self.wagi(session, ctx, run, reader, feed)).await,
        };
        if let Err(Stop::Failure(failure)) = &answered
            && NOT_RUN.contains(&failure.code)
            && let Some(seat) = ctx.seat.take()
        {
            seat.unused();
        }
        // One that is still there is of a guest whose client has left, and which ends with it.
        ctx.seat = None;
        answered
    }

    /// Takes a seat for the guest, where its caller's tier has a limit on guests.
    async fn be_seated(
        &self,
        ctx: &mut Ctx,
        limits: &Limits,
        deadline: Duration,
    ) -> Result<(), Failure> {
        let Principal::Key(key) = &ctx.principal else {
            return Ok(());
        };
        let compute = ctx.plan.tiers.get(key.tier).compute;
        if compute == Compute::default() {
            return Ok(());
        }
        let (user, tier) = (key.user_id, key.tier);
        let limiter = &self.shared.limiter;
        let seat = limiter.seat(user, tier, compute, deadline, limits.on_redis_loss);
        match seat.await {
            Ok(seat) => {
                ctx.seat = Some(seat);
                Ok(())
            }
            Err(reason) => Err(admit::no_seat(ctx, reason)),
        }
    }

    /// A guest, until it ends or whom it runs for, or its module, is stopped.
    async fn while_allowed(
        &self,
        principal: &Principal,
        source: &ModuleSource,
        run: impl Future<Output = Result<Outcome, RunError>>,
    ) -> Result<Outcome, RunError> {
        let run = async {
            match source {
                ModuleSource::Stored(id) => {
                    let run = self.shared.registry.while_running(*id, run);
                    run.await.unwrap_or(Err(RunError::Stopped))
                }
                ModuleSource::File(_) => run.await,
            }
        };
        match principal {
            Principal::Key(key) => {
                let run = self.shared.auth.while_allowed(key, run);
                run.await.unwrap_or(Err(RunError::Stopped))
            }
            Principal::Certificate(_) | Principal::Anonymous => run.await,
        }
    }

    async fn command(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        execute: &Execute,
        mut run: Pin<&mut impl Future<Output = Result<Outcome, RunError>>>,
        mut feed: Feed,
    ) -> Result<(), Stop> {
        let outcome = match (&mut run).now_or_never() {
            // A short guest, which ended on this thread.
            Some(outcome) => outcome.map_err(not_run)?,
            None => {
                Box::pin(async {
                    tokio::select! {
                        biased;
                        outcome = run => outcome.map_err(not_run),
                        stop = feed.pump(session) => Err(stop),
                    }
                })
                .await?
            }
        };
        let received = feed.received_bytes();
        // A slow client's answer holds no room for other requests' bodies.
        drop(feed);
        note(ctx, &outcome);
        self.record_end(ctx, &outcome, Status::from(&outcome.end), received)?;
        match outcome.end {
            End::Exit(0) => {
                let mut head = ResponseHeader::build(StatusCode::OK, Some(12))?;
                head.insert_header(header::CONTENT_TYPE, execute.content_type.clone())?;
                Ok(self
                    .send(session, ctx, head, Bytes::from(outcome.stdout))
                    .await?)
            }
            // A guest that chose to fail says something about its input, and its output goes along.
            End::Exit(code) => {
                let failure = guest_failure(&outcome.end, ctx);
                let mut more = Map::new();
                more.insert("exit_code".into(), json!(code));
                more.insert(
                    "output".into(),
                    json!(String::from_utf8_lossy(&outcome.stdout)),
                );
                Ok(Box::pin(self.send_failure_with(session, ctx, &failure, more)).await?)
            }
            End::Trap(_)
            | End::TimeLimit
            | End::MemoryLimit
            | End::StackLimit
            | End::TableLimit
            | End::OutputLimit
            | End::Cancelled
            | End::HostError(_) => Err(guest_failure(&outcome.end, ctx).into()),
        }
    }

    async fn wagi(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        mut run: Pin<&mut impl Future<Output = Result<Outcome, RunError>>>,
        mut reader: PipeReader,
        mut feed: Feed,
    ) -> Result<(), Stop> {
        let mut ended: Option<Outcome> = None;
        let begun = tokio::select! {
            biased;
            begun = begin(&mut reader, run.as_mut(), &mut ended) => begun?,
            stop = feed.pump(session) => return Err(stop),
        };
        let (head, first) = match begun {
            Begun::Head(head, first) => (head, first),
            Begun::Ended(outcome, problem) => {
                note(ctx, &outcome);
                let (status, stop) = if outcome.end.is_success() {
                    (Status::ExecutionError, bad_response(&problem))
                } else {
                    let failure = guest_failure(&outcome.end, ctx);
                    (Status::from(&outcome.end), failure.into())
                };
                self.record_end(ctx, &outcome, status, feed.received_bytes())?;
                return Err(stop);
            }
        };
        // A short guest has ended by now: its answer then goes out whole, with its length.
        if ended.is_none()
            && let Some(outcome) = (&mut run).now_or_never()
        {
            ended = Some(outcome.map_err(not_run)?);
        }
        // Nothing may follow these heads, not even an empty chunk.
        let bodiless = matches!(
            head.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        ) || session.req_header().method == Method::HEAD;
        let whole = ended.is_some() || bodiless || session.req_header().version == Version::HTTP_10;
        if whole {
            let (body, outcome) = tokio::select! {
                biased;
                drained = drain(first, &mut reader, ended, run.as_mut()) => drained?,
                stop = feed.pump(session) => return Err(stop),
            };
            note(ctx, &outcome);
            let status = Status::from(&outcome.end);
            self.record_end(ctx, &outcome, status, feed.received_bytes())?;
            if !outcome.end.is_success() {
                return Err(guest_failure(&outcome.end, ctx).into());
            }
            let head = response_head(head, ctx)?;
            return Ok(self.send(session, ctx, head, body).await?);
        }
        let mut encoder = self.begin_stream(session, ctx, head).await?;
        let mut guest = Running {
            run: run.as_mut(),
            ended: &mut ended,
        };
        let streamed = stream(
            session,
            &mut reader,
            &mut feed,
            &mut guest,
            encoder.as_mut(),
            first,
        );
        let streamed = streamed.await;
        if let Err(stop) = streamed {
            // The head has left: there is no other way to say that this failed than to break off.
            let recorded = match &ended {
                // The guest has come to its end by itself, so what it used is known.
                Some(outcome) => {
                    note(ctx, outcome);
                    self.record_end(ctx, outcome, status_of(&stop), feed.received_bytes())
                }
                None => self.record_stop(ctx, &stop),
            };
            return Err(broken(ctx, recorded.err().map_or(stop, Stop::from)));
        }
        let outcome = match ended {
            Some(outcome) => outcome,
            None => run
                .await
                .map_err(not_run)
                .map_err(|stop| broken(ctx, stop))?,
        };
        note(ctx, &outcome);
        // The end of the answer, which tells the client that it has all, leaves after the record.
        let status = Status::from(&outcome.end);
        self.record_end(ctx, &outcome, status, feed.received_bytes())
            .map_err(|failure| broken(ctx, failure.into()))?;
        finish_stream(session, &outcome, encoder).await
    }

    /// Sends the head.
    async fn begin_stream(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        head: Head,
    ) -> Result<Option<Encoder>, Stop> {
        let mut head = response_head(head, ctx)?;
        if !head.headers.contains_key(header::CONTENT_LENGTH) {
            head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
        }
        self.finish_head(session, ctx, &mut head)?;
        let encoder = compress::begin(session, ctx, &mut head, None)?;
        session.write_response_header(Box::new(head), false).await?;
        Ok(encoder)
    }
}

/// The caller's limits, tightened by the route's.
fn guest_limits(ctx: &Ctx, route: &Limits) -> GuestLimits {
    let tier = match &ctx.principal {
        Principal::Anonymous | Principal::Certificate(_) => None,
        Principal::Key(key) => Some(key.tier),
    };
    let global = ctx.plan.settings.guest;
    route.guest(ctx.plan.tiers.guest_limits(tier, global))
}

/// A failure in the middle of an answer can't be told any more: it breaks the connection.
fn broken(ctx: &mut Ctx, stop: Stop) -> Stop {
    match stop {
        Stop::Connection(error) => Stop::Connection(error),
        Stop::Failure(failure) => {
            ctx.failure = Some(failure.code);
            Error::explain(
                ErrorType::InternalError,
                format!("in the middle of the answer: {}", failure.message),
            )
            .into()
        }
    }
}

/// Callers wait for their own guests before others', and share the room for their bodies: users for
/// those of all their keys.
pub(super) fn share(ctx: &Ctx) -> ShareKey {
    match &ctx.principal {
        Principal::Anonymous => ShareKey::of(ctx.client.map(limits::subscriber)),
        Principal::Key(key) => ShareKey::of(key.user_id),
        Principal::Certificate(certificate) => ShareKey::of(&certificate.name),
    }
}

/// How a CGI answer begins.
enum Begun {
    /// With its head, and what of the body came along.
    Head(Head, Bytes),
    /// Not at all: the guest ended before its head did, for which the parser has this to say.
    Ended(Outcome, HeadError),
}

/// Waits for the guest's head. `ended` keeps the guest's end if that comes meanwhile.
async fn begin(
    reader: &mut PipeReader,
    mut run: Pin<&mut impl Future<Output = Result<Outcome, RunError>>>,
    ended: &mut Option<Outcome>,
) -> Result<Begun, Stop> {
    let mut parser = HeadParser::default();
    loop {
        tokio::select! {
            biased;
            bytes = reader.read() => match bytes {
                Some(bytes) => match parser.feed(&bytes) {
                    Ok(Some((head, first))) => return Ok(Begun::Head(head, first)),
                    Ok(None) => {}
                    Err(problem) => return Err(bad_response(&problem)),
                },
                // The writer is gone, so the guest has ended or is about to.
                None => {
                    let outcome = match ended.take() {
                        Some(outcome) => outcome,
                        None => run.await.map_err(not_run)?,
                    };
                    return Ok(Begun::Ended(outcome, parser.finish()));
                }
            },
            outcome = &mut run, if ended.is_none() => *ended = Some(outcome.map_err(not_run)?),
        }
    }
}

/// Ends a streamed body: properly, or, when the guest failed midway, by breaking the connection, so
/// that the client can't take the part for the whole (RFC 9112 section 8).
async fn finish_stream(
    session: &mut Session,
    outcome: &Outcome,
    encoder: Option<Encoder>,
) -> Result<(), Stop> {
    if !outcome.end.is_success() {
        return Err(Error::explain(
            ErrorType::InternalError,
            format!(
                "the guest ended with {} in the middle of its answer",
                outcome.end.status()
            ),
        )
        .into());
    }
    if let Some(mut encoder) = encoder {
        write_body(session, encoder.encode(&[], true)?, false).await?;
    }
    session.write_response_body(None, true).await?;
    Ok(())
}

/// Writes what a guest wrote, compressed where the answer is.
async fn write_encoded(
    session: &mut Session,
    bytes: Bytes,
    encoder: Option<&mut Encoder>,
) -> Result<(), Box<Error>> {
    let bytes = match encoder {
        Some(encoder) if !bytes.is_empty() => encoder.encode(&bytes, false)?,
        Some(_) | None => bytes,
    };
    if bytes.is_empty() {
        return Ok(());
    }
    write_body(session, bytes, false).await
}

/// Collects what is left of a guest's output, up to its end.
async fn drain(
    first: Bytes,
    reader: &mut PipeReader,
    ended: Option<Outcome>,
    run: Pin<&mut impl Future<Output = Result<Outcome, RunError>>>,
) -> Result<(Bytes, Outcome), Stop> {
    let mut all = BytesMut::from(&first[..]);
    let reading = async {
        while let Some(bytes) = reader.read().await {
            all.extend_from_slice(&bytes);
        }
    };
    let outcome = match ended {
        Some(outcome) => {
            reading.await;
            outcome
        }
        None => {
            let run = async { run.await.map_err(not_run) };
            // Where it was stopped, nobody waits for what it still writes.
            let (outcome, ()) = tokio::try_join!(run, reading.map(Ok))?;
            outcome
        }
    };
    Ok((all.freeze(), outcome))
}

fn response_head(head: Head, ctx: &Ctx) -> Result<ResponseHeader, Stop> {
    let mut response = ResponseHeader::build(head.status, Some(head.headers.len() + 12))?;
    for (name, value) in head.headers {
        // A whole answer gets its true length; a streamed one has none that we could vouch for.
        if name != header::CONTENT_LENGTH {
            response.append_header(name, value)?;
        }
    }
    tracing::trace!(
        request_id = ctx.request_id,
        status = response.status.as_u16(),
        "CGI head"
    );
    Ok(response)
}

/// What the guest finds when it starts.
fn args_and_env(
    session: &Session,
    ctx: &Ctx,
    execute: &Execute,
    content_length: Option<u64>,
) -> Result<ArgsAndEnv, Stop> {
    let head = session.req_header();
    let host = match execute.abi {
        // It is told nothing of it.
        Abi::Command => Cow::Borrowed(""),
        Abi::Wagi => request::host(head)?,
    };
    let principal = match &ctx.principal {
        Principal::Anonymous => None,
        Principal::Key(key) => Some((AuthType::Bearer, key.user_id.to_string())),
        Principal::Certificate(certificate) => {
            Some((AuthType::Certificate, certificate.name.clone()))
        }
    };
    let server_port = session
        .server_addr()
        .and_then(|a| a.as_inet())
        .map_or(0, |a| a.port());
    let edits = ctx.route_headers().filter(|edits| edits.changes_request());
    let edited = edits.map(|edits| edited(&head.headers, edits));
    let request = abi::Request {
        method: &head.method,
        path: head.uri.path(),
        query: head.uri.query(),
        headers: edited.as_ref().unwrap_or(&head.headers),
        version: head.version,
        server_name: &host,
        server_port,
        https: is_tls(session),
        client: ctx
            .client
            .map(|ip| std::net::SocketAddr::new(ip, ctx.peer_port)),
        route_path: head
            .uri
            .path()
            .get(..ctx.route_path_bytes)
            .unwrap_or_default(),
        params: &ctx.params,
        principal: principal.as_ref().map(|(by, name)| (*by, name.as_str())),
        request_id: &ctx.request_id,
        content_length,
    };
    Ok(execute
        .abi
        .args_and_env(&request, &execute.args, &execute.env))
}

/// The headers as the route has them. (A guest gets none whose name it could take for another's.)
fn edited(headers: &HeaderMap, edits: &HeaderEdits) -> HeaderMap {
    let mut edited = headers.clone();
    for name in &edits.request_remove {
        edited.remove(name);
    }
    for (name, value) in &edits.request_set {
        edited.insert(name.clone(), value.clone());
    }
    for (name, value) in &edits.request_add {
        edited.append(name.clone(), value.clone());
    }
    edited
}

/// Notes a guest's end for the request's log line.
fn note(ctx: &mut Ctx, outcome: &Outcome) {
    ctx.guest = Some((outcome.end.status(), outcome.usage));
    ctx.trace_guest(outcome.end.status(), outcome.usage);
    let seat = ctx.seat.take();
    ctx.cpu_left = seat.and_then(|seat| seat.ended(outcome.usage.cpu));
    if !outcome.stderr.is_empty() {
        let shown = &outcome.stderr[..outcome.stderr.len().min(STDERR_LOGGED_MAX)];
        tracing::info!(
            request_id = ctx.request_id,
            stderr = %String::from_utf8_lossy(shown).escape_debug(),
            "guest"
        );
    }
}
