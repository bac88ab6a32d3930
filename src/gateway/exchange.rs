//! Proxying of requests without a body to HTTP/1.1 upstreams, which is most of all proxying: straight from
//! the connection's own task, with the rules of `proxy` for what is tried, judged and told. Pingora's way,
//! which has tasks and channels for both directions at once, is for all others.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, Version, header};
use pingora_core::protocols::http::HttpTask;
use pingora_core::{Error, ErrorType};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use tokio::time::{Instant, timeout_at};

use super::{Ctx, Gateway, body, forward, proxy, trace};
use crate::failure::code;
use crate::route::{HeaderEdits, Proxy};
use crate::upstream::http1::{Connection, Piece};
use crate::upstream::{Group, Member, Protocol};

/// An upstream that answers within this time does not have its client watched.
const PATIENCE: Duration = Duration::from_millis(20);

/// Most informational answers before the one that counts.
const INFORMATIONAL_MAX: u32 = 16;

/// What a request is proxied by.
pub(super) struct Of<'p> {
    pub group: &'p Group,
    pub proxy: &'p Proxy,
    pub edits: &'p HeaderEdits,
}

/// Whether a request is one of those.
pub(super) fn carries(proxy: &Proxy, ctx: &Ctx) -> bool {
    proxy.upstreams.protocol == Protocol::Http1
        && !ctx.proxied.websocket
        && ctx.proxied.body_ended()
}

impl Gateway {
    /// Passes the request on and its answer back, until the key that it came with is stopped.
    pub(super) async fn exchange(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        of: Of<'_>,
    ) -> Result<(), Box<Error>> {
        let (principal, started) = (ctx.principal.clone(), ctx.started);
        tokio::select! {
            biased;
            // First, so that it is also seen where neither side ever waits for the other.
            () = self.stopped(&principal, started) => {}
            done = self.tries(session, ctx, &of) => return done,
        }
        if ctx.proxied.answers {
            // Where what was being written is to be gone on with is not known.
            ctx.failure = Some(code::STOPPED);
            let why = "the key or its user was stopped";
            return Err(Error::explain(ErrorType::ConnectionClosed, why).into_down());
        }
        Err(proxy::refuse_stopped(ctx))
    }

    /// As many tries as it may have.
    async fn tries(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        of: &Of<'_>,
    ) -> Result<(), Box<Error>> {
        loop {
            match self.attempt(session, ctx, of).await {
                Err(error) if error.retry() => {
                    tracing::debug!(request_id = ctx.request_id, %error, "another upstream is tried");
                }
                done => return done,
            }
        }
    }

    async fn attempt(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        of: &Of<'_>,
    ) -> Result<(), Box<Error>> {
        if let Some(trace) = &mut ctx.trace {
            trace.begin_upstream();
        }
        let address = self.choose(of.group, session, ctx).await?;
        let lease = ctx.proxied.lease();
        let Some(member) = lease.and_then(|lease| of.group.member(lease)) else {
            return Err(proxy::not_of_group());
        };
        let settings = of.group.settings();
        // What is wrong with the request costs no connection.
        let mut fields = forward::request_fields(session, ctx, of.proxy, of.edits, member)?;
        trace::say_upstream(&mut fields, ctx);
        let mut connection = match Connection::reuse(member, address, std::time::Instant::now()) {
            Some(connection) => connection,
            None => {
                let opening = open(session, member, address, settings.connect_timeout);
                match Box::pin(opening).await {
                    Ok(connection) => connection,
                    Err(Unopened::Left(error)) => return Err(error),
                    Err(Unopened::Failed(mut error)) => {
                        error.as_up();
                        self.not_connected(Some(address), ctx, &mut error);
                        return Err(error);
                    }
                }
            }
        };
        match self.pass(session, ctx, of, &fields, &mut connection).await {
            Ok(()) => {
                let most = ctx.plan.settings.bounds.upstream_idle_per_thread;
                connection.release(settings.keepalive_timeout, most);
                Ok(())
            }
            Err(mut error) => {
                self.broke_off(session, ctx, &mut error, connection.reused());
                Err(error)
            }
        }
    }

    async fn pass(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        of: &Of<'_>,
        fields: &HeaderMap,
        connection: &mut Connection,
    ) -> Result<(), Box<Error>> {
        let settings = of.group.settings();
        self.send_head(session, ctx, connection, fields, settings.write_timeout)
            .await?;
        let mut head = read_head(session, connection, settings.read_timeout).await?;
        self.judge(session, &mut head, ctx)?;
        let mut piece = connection.piece()?;
        frame(&mut head, &piece)?;
        self.finish_passed(session, ctx, &mut head)?;
        ctx.proxied.answers = true;
        let mut ended = piece == Piece::End;
        let mut tasks = Vec::with_capacity(2);
        tasks.push(HttpTask::Header(Box::new(head), ended));
        while !ended {
            match piece {
                Piece::Data(data) => {
                    // The end is told with the last bytes, where it has come with them.
                    piece = connection.piece()?;
                    ended = piece == Piece::End;
                    tasks.push(HttpTask::Body(Some(data), ended));
                }
                Piece::More => {
                    if !tasks.is_empty() {
                        write(session, std::mem::take(&mut tasks)).await?;
                    }
                    if fill(session, connection, settings.read_timeout).await? == 0 {
                        connection.closed()?;
                    }
                    piece = connection.piece()?;
                }
                Piece::End => {
                    ended = true;
                    tasks.push(HttpTask::Body(None, true));
                }
            }
        }
        write(session, tasks).await
    }

    async fn send_head(
        &self,
        session: &Session,
        ctx: &Ctx,
        connection: &mut Connection,
        fields: &HeaderMap,
        timeout: Duration,
    ) -> Result<(), Box<Error>> {
        let head = session.req_header();
        let target = match (&ctx.proxied.target, head.uri.authority()) {
            (Some(target), _) => target.as_str().as_bytes(),
            // An origin server is sent the path, not the absolute form (RFC 9112 section 3.2.1).
            (None, Some(_)) => match head.uri.path_and_query() {
                Some(target) => target.as_str().as_bytes(),
                None => b"/",
            },
            (None, None) => head.raw_path(),
        };
        connection.send(&head.method, target, fields, timeout).await
    }
}

/// Why there is no connection.
enum Unopened {
    /// The upstream can't be connected to.
    Failed(Box<Error>),
    /// Nobody waits for it any more.
    Left(Box<Error>),
}

/// Connects, as long as the client waits.
async fn open(
    session: &mut Session,
    member: &Member,
    address: std::net::SocketAddr,
    timeout: Duration,
) -> Result<Connection, Unopened> {
    tokio::select! {
        biased;
        opened = Connection::open(member, address, timeout) => opened.map_err(Unopened::Failed),
        error = body::left(session) => Err(Unopened::Left(error.into_down())),
    }
}

/// The head of the answer. Informational ones before it go to the client.
async fn read_head(
    session: &mut Session,
    connection: &mut Connection,
    timeout: Duration,
) -> Result<ResponseHeader, Box<Error>> {
    let method: Method = session.req_header().method.clone();
    let mut informational = 0;
    loop {
        let Some(mut head) = connection.head(&method)? else {
            if fill(session, connection, timeout).await? == 0 {
                connection.closed()?;
            }
            continue;
        };
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::explain(
                ErrorType::InvalidHTTPHeader,
                "the upstream switches protocols unasked",
            )
            .into_up());
        }
        if !head.status.is_informational() {
            return Ok(head);
        }
        informational += 1;
        if informational > INFORMATIONAL_MAX {
            return Err(Error::explain(
                ErrorType::InvalidHTTPHeader,
                "the upstream does not get beyond informational answers",
            )
            .into_up());
        }
        if session.req_header().version == Version::HTTP_10 {
            // It knows none of them (RFC 9110 section 15.2).
            continue;
        }
        forward::strip_hop_by_hop(&mut head, false);
        // They have no content, whatever is said of it.
        head.remove_header(&header::CONTENT_LENGTH);
        head.remove_header(&header::TRANSFER_ENCODING);
        write(session, vec![HttpTask::Header(Box::new(head), false)]).await?;
    }
}

/// Reads more of the answer, as long as the client waits for it and no silence is too long.
async fn fill(
    session: &mut Session,
    connection: &mut Connection,
    silence_max: Duration,
) -> Result<usize, Box<Error>> {
    let begun = Instant::now();
    if let Ok(read) = timeout_at(begun + PATIENCE.min(silence_max), connection.fill()).await {
        return read;
    }
    Box::pin(fill_watching(session, connection, begun + silence_max)).await
}

async fn fill_watching(
    session: &mut Session,
    connection: &mut Connection,
    due: Instant,
) -> Result<usize, Box<Error>> {
    tokio::select! {
        biased;
        read = timeout_at(due, connection.fill()) => read.unwrap_or_else(|_| {
            let why = "the upstream was silent for too long";
            Err(Error::explain(ErrorType::ReadTimedout, why).into_up())
        }),
        error = body::left(session) => Err(error.into_down()),
    }
}

/// Says in the head how the client is told where the body ends, if there is one.
fn frame(head: &mut ResponseHeader, first: &Piece) -> Result<(), Box<Error>> {
    head.set_version(Version::HTTP_11);
    if *first != Piece::End
        && !head.headers.contains_key(header::CONTENT_LENGTH)
        && !head.headers.contains_key(header::TRANSFER_ENCODING)
    {
        head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    Ok(())
}

async fn write(session: &mut Session, tasks: Vec<HttpTask>) -> Result<(), Box<Error>> {
    match session.write_response_tasks(tasks).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.into_down()),
    }
}
