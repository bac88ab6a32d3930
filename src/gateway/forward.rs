//! What is changed of a request on its way to an upstream, and of its answer on the way back.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use pingora_core::{Error, ErrorType, OrErr};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::Ctx;
use super::respond::is_tls;
use crate::route::{Auth, HeaderEdits, Proxy};
use crate::telemetry::access::address_text;
use crate::upstream::Member;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Most fields that `Connection` may name.
const NOMINATIONS_MAX: usize = 32;

/// Meant for this gateway or its connection. (Pingora takes away the others of the kind.)
const OURS: [HeaderName; 2] = [
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("http2-settings"),
];

/// The fields of a request, however they are held.
pub(super) trait Fields {
    fn map(&self) -> &HeaderMap;
    /// In the place of all others of the name.
    fn set(&mut self, name: &HeaderName, value: HeaderValue) -> Result<(), Box<Error>>;
    /// Beside others of the name.
    fn add(&mut self, name: &HeaderName, value: HeaderValue) -> Result<(), Box<Error>>;
    fn take_away(&mut self, name: &HeaderName);
}

impl Fields for RequestHeader {
    fn map(&self) -> &HeaderMap {
        &self.headers
    }

    fn set(&mut self, name: &HeaderName, value: HeaderValue) -> Result<(), Box<Error>> {
        self.insert_header(name.clone(), value)
    }

    fn add(&mut self, name: &HeaderName, value: HeaderValue) -> Result<(), Box<Error>> {
        self.append_header(name.clone(), value).map(|_| ())
    }

    fn take_away(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }
}

impl Fields for HeaderMap {
    fn map(&self) -> &HeaderMap {
        self
    }

    fn set(&mut self, name: &HeaderName, value: HeaderValue) -> Result<(), Box<Error>> {
        self.insert(name, value);
        Ok(())
    }

    fn add(&mut self, name: &HeaderName, value: HeaderValue) -> Result<(), Box<Error>> {
        self.append(name, value);
        Ok(())
    }

    fn take_away(&mut self, name: &HeaderName) {
        self.remove(name);
    }
}

/// Changes the request that Pingora sends.
pub(super) fn edit_request(
    session: &Session,
    upstream: &mut RequestHeader,
    ctx: &Ctx,
    proxy: &Proxy,
    edits: &HeaderEdits,
    member: Option<&Member>,
) -> Result<(), Box<Error>> {
    set_target(upstream, ctx);
    edit_fields(session, upstream, ctx, proxy, edits, member)
}

/// The fields of a request without a body, as an HTTP/1.1 upstream gets them.
pub(super) fn request_fields(
    session: &Session,
    ctx: &Ctx,
    proxy: &Proxy,
    edits: &HeaderEdits,
    member: &Member,
) -> Result<HeaderMap, Box<Error>> {
    let mut fields = HeaderMap::with_capacity(FIELDS_EXPECTED);
    let given = &session.req_header().headers;
    let kept = given.iter().filter(|(name, _)| !is_of_connection(name));
    fields.extend(kept.map(|(name, value)| (name.clone(), value.clone())));
    for name in protect(nominations(given)?)? {
        fields.remove(&name);
    }
    if !fields.contains_key(header::HOST)
        && let Some(authority) = session.req_header().uri.authority()
    {
        let host = HeaderValue::from_str(authority.as_str());
        let host = host.or_err(ErrorType::InvalidHTTPHeader, "the authority");
        fields.insert(header::HOST, host.map_err(Error::into_down)?);
    }
    edit_fields(session, &mut fields, ctx, proxy, edits, Some(member))?;
    // An edit does not decide how the request is framed, and no body follows, whatever was announced.
    fields.remove(header::TRANSFER_ENCODING);
    if let Some(length) = fields.get_mut(header::CONTENT_LENGTH) {
        *length = HeaderValue::from_static("0");
    }
    Ok(fields)
}

/// About as many fields as a request has when it leaves.
const FIELDS_EXPECTED: usize = 24;

/// What is meant for one connection (RFC 9110 section 7.6.1), or for a body that there is not.
fn is_of_connection(name: &HeaderName) -> bool {
    [
        header::CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::EXPECT,
    ]
    .contains(name)
}

/// What `Connection` names. What is not a name is refused, and so are too many: a gateway before this one
/// may read them differently.
fn nominations(fields: &HeaderMap) -> Result<Vec<HeaderName>, Box<Error>> {
    let refused = |why| Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_down());
    let mut names = Vec::new();
    for line in fields.get_all(header::CONNECTION) {
        for token in line.as_bytes().split(|byte| *byte == b',') {
            let token = token.trim_ascii();
            if token.is_empty()
                || token.eq_ignore_ascii_case(b"keep-alive")
                || token.eq_ignore_ascii_case(b"close")
            {
                continue;
            }
            let is_token =
                |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
            match HeaderName::from_bytes(token) {
                Ok(name) if token.iter().all(is_token) => names.push(name),
                Ok(_) | Err(_) => return refused("Connection names something that is no field"),
            }
            if names.len() > NOMINATIONS_MAX {
                return refused("Connection names too many fields");
            }
        }
    }
    Ok(names)
}

/// Some fields a client can't have taken away by naming them.
fn protect(names: Vec<HeaderName>) -> Result<Vec<HeaderName>, Box<Error>> {
    let is_protected = |name: &HeaderName| {
        *name == header::HOST
            || [X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO].contains(name)
    };
    if names.iter().any(is_protected) {
        let why = "Connection names a field that is protected";
        return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_down());
    }
    Ok(names)
}

/// Changes the fields before they are sent: who asks, through whom, and without our credentials.
fn edit_fields(
    session: &Session,
    upstream: &mut impl Fields,
    ctx: &Ctx,
    proxy: &Proxy,
    edits: &HeaderEdits,
    member: Option<&Member>,
) -> Result<(), Box<Error>> {
    let client_host = client_host(session);
    remove_lookalikes(upstream, edits);
    for name in &OURS {
        upstream.take_away(name);
    }
    join_cookies(upstream)?;
    match (member, &client_host) {
        (_, Some(host)) if proxy.upstreams.preserve_host => {
            // Mostly it is there already, as the client wrote it.
            if upstream.map().get(header::HOST) != Some(host) {
                upstream.set(&header::HOST, host.clone())?;
            }
        }
        (Some(member), _) => upstream.set(&header::HOST, member.authority().clone())?,
        (None, _) => {}
    }
    say_who_asks(session, upstream, ctx, proxy, client_host)?;
    upstream.set(&X_REQUEST_ID, value(ctx.request_id.clone())?)?;
    if ctx.route().is_some_and(|r| !matches!(r.auth, Auth::None)) {
        upstream.take_away(&header::AUTHORIZATION);
        upstream.take_away(&X_API_KEY);
    }
    for name in &edits.request_remove {
        upstream.take_away(name);
    }
    for (name, value) in &edits.request_set {
        upstream.set(name, value.clone())?;
    }
    for (name, value) in &edits.request_add {
        upstream.add(name, value.clone())?;
    }
    Ok(())
}

fn value(text: String) -> Result<HeaderValue, Box<Error>> {
    HeaderValue::try_from(text).or_err(ErrorType::InvalidHTTPHeader, "a field of the request")
}

/// The host that the client asked for, as it wrote it.
fn client_host(session: &Session) -> Option<HeaderValue> {
    session.get_header(header::HOST).cloned().or_else(|| {
        let authority = session.req_header().uri.authority()?;
        HeaderValue::from_str(authority.as_str()).ok()
    })
}

/// An origin server is sent the path, not the absolute form (RFC 9112 section 3.2.1), and the
/// rewritten one where there is one.
fn set_target(upstream: &mut RequestHeader, ctx: &Ctx) {
    if let Some(target) = &ctx.proxied.target {
        upstream.set_uri(Uri::from(target.clone()));
    } else if upstream.uri.authority().is_some()
        && let Some(target) = upstream.uri.path_and_query().cloned()
    {
        upstream.set_uri(Uri::from(target));
    }
}

/// To CGI and what follows its naming, `X_Forwarded_For` is `X-Forwarded-For`, and so is
/// `X.Forwarded.For` to some. So such a header is dropped where its name would else pass for one that
/// the gateway vouches for.
fn remove_lookalikes(upstream: &mut impl Fields, edits: &HeaderEdits) {
    let is_ours = |name: &str| {
        name.starts_with("x-forwarded-")
            || matches!(
                name,
                "forwarded"
                    | "x-real-ip"
                    | "x-request-id"
                    | "x-api-key"
                    | "authorization"
                    | "host"
                    | "content-length"
                    | "content-type"
                    | "transfer-encoding"
                    | "connection"
                    | "cookie"
            )
            || edits.request_remove.iter().any(|n| n == name)
            || edits.request_set.iter().any(|(n, _)| n == name)
    };
    let names = upstream.map().keys();
    let lookalikes: Vec<HeaderName> = names
        .filter(|name| {
            // Nearly all names are of letters and hyphens, and read as they are.
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            if name.as_str().bytes().all(is_plain) {
                return false;
            }
            let as_read = name
                .as_str()
                .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
            is_ours(&as_read)
        })
        .cloned()
        .collect();
    for name in lookalikes {
        upstream.take_away(&name);
    }
}

/// Behind a trusted proxy the chain is extended; from anyone else it starts anew, so that a client
/// can't claim an address.
fn say_who_asks(
    session: &Session,
    upstream: &mut impl Fields,
    ctx: &Ctx,
    proxy: &Proxy,
    host: Option<HeaderValue>,
) -> Result<(), Box<Error>> {
    let scheme = if is_tls(session) { "https" } else { "http" };
    if !ctx.peer_trusted {
        remove_claims(upstream);
    }
    let before = |name: &HeaderName| ctx.peer_trusted.then(|| joined(session, name)).flatten();
    let chain = |before: Option<String>, own: String| match before {
        Some(before) => format!("{before}, {own}"),
        None => own,
    };
    match ctx.peer {
        Some(peer) if proxy.forwarded.x => {
            let own = chain(before(&X_FORWARDED_FOR), address_text(peer));
            upstream.set(&X_FORWARDED_FOR, value(own)?)?;
        }
        Some(_) | None => {
            upstream.take_away(&X_FORWARDED_FOR);
        }
    }
    match (ctx.peer, host.as_ref()) {
        (Some(peer), host) if proxy.forwarded.standard => {
            let own = chain(before(&header::FORWARDED), forwarded(peer, scheme, host));
            upstream.set(&header::FORWARDED, value(own)?)?;
        }
        (Some(_) | None, _) => {
            upstream.take_away(&header::FORWARDED);
        }
    }
    if !proxy.forwarded.x {
        upstream.take_away(&X_FORWARDED_PROTO);
        upstream.take_away(&X_FORWARDED_HOST);
        return Ok(());
    }
    // What a trusted proxy says is what the client asked that one for.
    if !upstream.map().contains_key(X_FORWARDED_PROTO) {
        upstream.set(&X_FORWARDED_PROTO, HeaderValue::from_static(scheme))?;
    }
    if let Some(host) = host
        && !upstream.map().contains_key(X_FORWARDED_HOST)
    {
        upstream.set(&X_FORWARDED_HOST, host)?;
    }
    Ok(())
}

/// What upstreams believe about the client, and only a trusted proxy may have said.
fn remove_claims(upstream: &mut impl Fields) {
    let is_claim = |name: &str| name.starts_with("x-forwarded-") || name == "x-real-ip";
    let names = upstream.map().keys();
    let claims: Vec<HeaderName> = names
        .filter(|name| is_claim(name.as_str()))
        .cloned()
        .collect();
    for name in claims {
        upstream.take_away(&name);
    }
}

/// One element of `Forwarded` (RFC 7239 section 4).
fn forwarded(peer: IpAddr, scheme: &str, host: Option<&HeaderValue>) -> String {
    // An IPv6 address stands in brackets and quotes (section 6).
    let mut element = match peer {
        IpAddr::V4(v4) => format!("for={v4};proto={scheme}"),
        IpAddr::V6(v6) => format!("for=\"[{v6}]\";proto={scheme}"),
    };
    // A host that passed the check of the request head has no quote or backslash.
    if let Some(host) = host.and_then(|host| host.to_str().ok())
        && !host.contains(['"', '\\'])
    {
        element.push_str(&format!(";host=\"{host}\""));
    }
    element
}

fn joined(session: &Session, name: &HeaderName) -> Option<String> {
    let lines = session.req_header().headers.get_all(name).iter();
    let lines: Vec<&str> = lines.filter_map(|v| v.to_str().ok()).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

/// HTTP/2 clients may send cookies one by one; HTTP/1 has one field (RFC 9113 section 8.2.3).
fn join_cookies(upstream: &mut impl Fields) -> Result<(), Box<Error>> {
    let mut lines = upstream.map().get_all(header::COOKIE).iter();
    let (Some(_), Some(_)) = (lines.next(), lines.next()) else {
        return Ok(());
    };
    let crumbs = upstream.map().get_all(header::COOKIE).iter();
    let crumbs: Vec<&[u8]> = crumbs.map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        upstream.set(&header::COOKIE, joined)?;
    }
    Ok(())
}

/// Takes away what was meant for the connection between the gateway and the upstream (RFC 9110
/// section 7.6.1). `upgraded`: a 101, whose `Upgrade` is for the client.
pub(super) fn strip_hop_by_hop(response: &mut ResponseHeader, upgraded: bool) {
    if response.headers.contains_key(header::CONNECTION) {
        for name in nominated(&response.headers) {
            response.remove_header(&name);
        }
        if !upgraded {
            response.remove_header(&header::CONNECTION);
        }
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::TE,
    ] {
        response.remove_header(&name);
    }
    if !upgraded {
        response.remove_header(&header::UPGRADE);
    }
}

/// What `Connection` names. Framing is not for it to take away.
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let lines = headers.get_all(header::CONNECTION).iter();
    let tokens = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    tokens
        .map(<[u8]>::trim_ascii)
        .filter(|token| {
            !token.eq_ignore_ascii_case(b"close") && !token.eq_ignore_ascii_case(b"keep-alive")
        })
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| {
            ![
                header::CONTENT_LENGTH,
                header::TRANSFER_ENCODING,
                header::UPGRADE,
                header::CONNECTION,
            ]
            .contains(name)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_elements() {
        let host = HeaderValue::from_static("a.test:8443");
        assert_eq!(
            forwarded("192.0.2.1".parse().unwrap(), "https", Some(&host)),
            "for=192.0.2.1;proto=https;host=\"a.test:8443\""
        );
        assert_eq!(
            forwarded("2001:db8::1".parse().unwrap(), "http", None),
            "for=\"[2001:db8::1]\";proto=http"
        );
    }

    #[test]
    fn what_is_for_one_connection_stays_on_it() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("connection", "close, X-Hop, content-length"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("proxy-authenticate", "Basic"),
            ("upgrade", "h2c"),
            ("content-length", "5"),
            ("x-end", "1"),
        ] {
            response.append_header(name, value).unwrap();
        }
        strip_hop_by_hop(&mut response, false);
        let left: Vec<&str> = response.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["content-length", "x-end"]);

        let mut response = ResponseHeader::build(101, None).unwrap();
        response.append_header("connection", "Upgrade").unwrap();
        response.append_header("upgrade", "websocket").unwrap();
        strip_hop_by_hop(&mut response, true);
        assert_eq!(response.headers.len(), 2);
    }

    #[test]
    fn names_that_pass_for_ours_are_dropped() {
        let edits = HeaderEdits {
            request_set: vec![("x-user".parse().unwrap(), "u".parse().unwrap())],
            ..HeaderEdits::default()
        };
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for name in ["x_forwarded_for", "X_Real-IP", "x_user", "my_own", "x-user"] {
            request.append_header(name.to_owned(), "1").unwrap();
        }
        remove_lookalikes(&mut request, &edits);
        let mut left: Vec<&str> = request.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["my_own", "x-user"]);
    }
}
