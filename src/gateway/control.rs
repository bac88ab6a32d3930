//! `/api/…`: the control plane, called in process. It runs on its own runtime, so that a slow
//! database never holds a thread that serves connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::{Method, header};
use http_body_util::BodyExt;
use pingora_core::{Error, ErrorType};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use super::body::{self, BodyLimit};
use super::execute::share;
use super::respond::{Stop, write_body};
use super::room::Place;
use super::{Ctx, Gateway};
use crate::api::{BodyError, Caller, GuestRan};
use crate::failure::Failure;

/// Body chunks on their way to a handler: enough to overlap reading and parsing.
const CHUNKS_AHEAD: usize = 4;
/// Longest wait for a handler that was told that its body is over: it only notes how it went.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Answers faster than this are not worth watching the connection for a client that leaves.
const WATCH_AFTER: Duration = Duration::from_millis(50);

/// Bodies up to this size are sent in one piece.
const WHOLE_BYTES_MAX: u64 = 64 * 1024;

type Answer = Result<axum::response::Response, Infallible>;

/// A part of the body, or its end. Nobody may take the part for the whole, so a channel that closes
/// before the end is a body that broke off.
enum Piece {
    Chunk(Result<Bytes, BodyError>),
    End,
}

/// Stops the handler, and with it its guest, when the request is dropped.
struct Running(JoinHandle<Answer>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Gateway {
    pub(super) async fn control_plane(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<(), Stop> {
        self.identify(session, ctx).await?;
        let on_loss = ctx.plan.settings.on_redis_loss;
        self.take_tier_token(ctx, on_loss).await?;
        let settings = &ctx.plan.settings;
        let limit = BodyLimit::new(settings, settings.api_body_bytes_max);
        limit.check_announced(session)?;
        let (chunks, received) = mpsc::channel(CHUNKS_AHEAD);
        let request = request(session, ctx, received)?;
        let router = ctx.plan.control_plane.clone();
        let begun = ctx.clock();
        let place = Arc::new(self.shared.body_room.place(share(ctx)));
        let held = Arc::clone(&place);
        let mut running = Running(self.shared.control.spawn(async move {
            let answer = router.oneshot(request).await;
            // Whoever reads the body may keep all of it up to here.
            drop(held);
            answer
        }));
        let answer = serve(session, &mut running, chunks, limit, &place).await?;
        // A slow client's answer holds no room for other requests' bodies.
        drop(place);
        let Ok(mut response) = answer;
        ctx.trace_part("api", begun, response.status().is_server_error());
        if let Some(GuestRan { status, usage }) = response.extensions_mut().remove() {
            ctx.trace_guest(status, usage);
        }
        self.send_response(session, ctx, response).await
    }

    /// Writes a handler's response: a failure in the common form, anything else as it is.
    async fn send_response(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        mut response: axum::response::Response,
    ) -> Result<(), Stop> {
        if let Some(failure) = response.extensions_mut().remove::<Failure>() {
            if session.req_header().method == Method::OPTIONS
                && let Some(allow) = &failure.allow
            {
                return self.options(session, ctx, &with_options(allow)).await;
            }
            return Err(failure.into());
        }
        let (parts, body) = response.into_parts();
        let mut head = ResponseHeader::build(parts.status, Some(parts.headers.len() + 12))?;
        for (name, value) in &parts.headers {
            head.append_header(name.clone(), value.clone())?;
        }
        if HttpBody::size_hint(&body)
            .exact()
            .is_some_and(|bytes| bytes <= WHOLE_BYTES_MAX)
        {
            let body = axum::body::to_bytes(body, WHOLE_BYTES_MAX as usize).await;
            let body = body.map_err(|error| unreadable(ctx, &error))?;
            return Ok(self.send(session, ctx, head, body).await?);
        }
        self.stream_response(session, ctx, head, body).await
    }

    /// A large body goes out as the handler makes it.
    async fn stream_response(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        mut head: ResponseHeader,
        mut body: Body,
    ) -> Result<(), Stop> {
        match HttpBody::size_hint(&body).exact() {
            Some(bytes) => head.insert_header(header::CONTENT_LENGTH, bytes)?,
            None => head.insert_header(header::TRANSFER_ENCODING, "chunked")?,
        }
        self.finish_head(session, ctx, &mut head)?;
        let silent = session.req_header().method == Method::HEAD;
        session
            .write_response_header(Box::new(head), silent)
            .await?;
        if silent {
            return Ok(());
        }
        while let Some(frame) = body.frame().await {
            // The head is on its way: only a broken stream can still say that something failed.
            let frame = frame.map_err(|error| {
                Error::because(
                    ErrorType::InternalError,
                    "reading a control-plane body",
                    error,
                )
            })?;
            if let Ok(chunk) = frame.into_data()
                && !chunk.is_empty()
            {
                write_body(session, chunk, false).await?;
            }
        }
        Ok(session.write_response_body(None, true).await?)
    }
}

/// The router's list of methods, with the one that is answered here.
fn with_options(allow: &str) -> String {
    if allow.is_empty() {
        Method::OPTIONS.to_string()
    } else {
        format!("{allow},{}", Method::OPTIONS)
    }
}

fn unreadable(ctx: &Ctx, error: &axum::Error) -> Stop {
    tracing::error!(request_id = ctx.request_id, %error, "a control-plane body can't be read");
    Failure::internal().into()
}

fn request(
    session: &Session,
    ctx: &Ctx,
    received: mpsc::Receiver<Piece>,
) -> Result<http::Request<Body>, Failure> {
    let head = session.req_header();
    let target = head
        .uri
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    let mut request = http::Request::builder()
        .method(head.method.clone())
        .uri(target);
    if let Some(headers) = request.headers_mut() {
        headers.extend(head.headers.iter().map(|(k, v)| (k.clone(), v.clone())));
        // The handlers have no use for the credential any more.
        headers.remove(header::AUTHORIZATION);
        headers.remove("x-api-key");
    }
    let mut request = request
        .body(Body::from_stream(whole(received)))
        .map_err(|_| Failure::bad_request("the request target is not a valid path"))?;
    request.extensions_mut().insert(Caller {
        principal: ctx.principal.clone(),
        request_id: ctx.request_id.clone(),
        client: ctx.client,
    });
    Ok(request)
}

/// The body as the handler reads it: all of it, or an error.
fn whole(received: mpsc::Receiver<Piece>) -> impl Stream<Item = Result<Bytes, BodyError>> {
    stream::unfold(Some(received), |received| async move {
        let mut received = received?;
        match received.recv().await {
            Some(Piece::Chunk(Ok(chunk))) => Some((Ok(chunk), Some(received))),
            Some(Piece::Chunk(Err(error))) => Some((Err(error), None)),
            Some(Piece::End) => None,
            None => Some((Err(BodyError::Gone), None)),
        }
    })
}

/// Feeds the handler the body while it runs, and waits for its answer. A handler may answer before
/// it has read everything.
async fn serve(
    session: &mut Session,
    running: &mut Running,
    chunks: mpsc::Sender<Piece>,
    limit: BodyLimit,
    place: &Place,
) -> Result<Answer, Stop> {
    let begun = tokio::time::Instant::now();
    let mut read: u64 = 0;
    let mut chunks = Some(chunks);
    if session.as_downstream_mut().is_body_empty() {
        // There is room: it is the first.
        let _ = chunks.take().map(|chunks| chunks.try_send(Piece::End));
    } else {
        body::invite(session).await?;
    }
    while let Some(sender) = &chunks {
        let deadline = begun + limit.timeout + limit.time_for(read);
        tokio::select! {
            biased;
            answer = &mut running.0 => return joined(answer),
            () = tokio::time::sleep_until(deadline) => {
                end(running, sender, BodyError::TimedOut).await;
                return Err(limit.too_slow().into());
            }
            chunk = feed(session, sender, &mut read, limit, place) => match chunk? {
                Fed::More => {}
                Fed::Refused(why, failure) => {
                    end(running, sender, why).await;
                    return Err(failure.into());
                }
                Fed::Done => chunks = None,
            },
        }
    }
    tokio::select! {
        biased;
        answer = &mut running.0 => joined(answer),
        error = body::gone(session, WATCH_AFTER) => Err(error.into()),
    }
}

/// Tells the handler why there is no more of the body, so that what it notes of the request is that, and not
/// that the client left. What the client learns is not the handler's word.
async fn end(running: &mut Running, sender: &mpsc::Sender<Piece>, why: BodyError) {
    let ends = async {
        // One that reads no more is at its end already.
        let _ = sender.send(Piece::Chunk(Err(why))).await;
        let _ = (&mut running.0).await;
    };
    let _ = tokio::time::timeout(END_TIMEOUT, ends).await;
}

enum Fed {
    More,
    /// All is read, or the handler wants no more.
    Done,
    Refused(BodyError, Failure),
}

async fn feed(
    session: &mut Session,
    sender: &mpsc::Sender<Piece>,
    read: &mut u64,
    limit: BodyLimit,
    place: &Place,
) -> Result<Fed, Stop> {
    // The permit is taken first: once a chunk is read it is not lost when this future is dropped.
    let Ok(permit) = sender.reserve().await else {
        return Ok(Fed::Done);
    };
    let Some(chunk) = body::read_chunk(session).await? else {
        permit.send(Piece::End);
        return Ok(Fed::Done);
    };
    *read += chunk.len() as u64;
    if *read > limit.bytes_max {
        let bytes_max = limit.bytes_max;
        let why = BodyError::TooLarge { bytes_max };
        return Ok(Fed::Refused(why, limit.too_large()));
    }
    if let Err(failure) = place.cover(usize::try_from(*read).unwrap_or(usize::MAX)) {
        return Ok(Fed::Refused(BodyError::NoRoom, failure));
    }
    permit.send(Piece::Chunk(Ok(chunk)));
    Ok(Fed::More)
}

fn joined(answer: Result<Answer, tokio::task::JoinError>) -> Result<Answer, Stop> {
    answer.map_err(|error| {
        tracing::error!(%error, "a control-plane handler failed");
        Failure::internal().into()
    })
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    async fn read(pieces: Vec<Piece>) -> Vec<Result<Bytes, BodyError>> {
        let (sender, received) = mpsc::channel(8);
        for piece in pieces {
            assert!(sender.try_send(piece).is_ok());
        }
        drop(sender);
        whole(received).collect().await
    }

    #[tokio::test]
    async fn only_a_body_that_ended_is_whole() {
        let chunk = || Piece::Chunk(Ok(Bytes::from_static(b"part")));
        let ended = read(vec![chunk(), chunk(), Piece::End]).await;
        assert!(
            ended.len() == 2 && ended.iter().all(Result::is_ok),
            "{ended:?}"
        );
        assert!(read(vec![Piece::End]).await.is_empty());
        for broken in [vec![], vec![chunk()], vec![chunk(), chunk()]] {
            let read = read(broken).await;
            assert!(
                matches!(read.last(), Some(Err(BodyError::Gone))),
                "{read:?}"
            );
        }
        let too_large = Piece::Chunk(Err(BodyError::TooLarge { bytes_max: 7 }));
        let read = read(vec![chunk(), too_large, Piece::End]).await;
        assert!(
            matches!(read[..], [Ok(_), Err(BodyError::TooLarge { .. })]),
            "{read:?}"
        );
    }
}
