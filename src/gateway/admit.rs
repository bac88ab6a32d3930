//! Whether a caller may use what it asks for, now: who it is, what it may do, how much it has left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use http::{HeaderMap, StatusCode, header};
use pingora_proxy::Session;

use super::connection::{self, TooMany};
use super::respond::Stop;
use super::{Ctx, Gateway, client_address};
use crate::auth::{AuthError, CertificatePrincipal, KeyPrincipal, Principal, Role, Scope};
use crate::failure::{Failure, code};
use crate::limits::{CertificateKey, NoSeat, OnLoss, Rate, RouteKey, Subject, Unavailable};
use crate::route::{Auth, CertificateRule, Route};
use crate::telemetry::health::Probe;
use crate::telemetry::metrics::metrics;

impl Gateway {
    /// Whether the caller may use the route now.
    pub(super) async fn admit(
        &self,
        session: &Session,
        ctx: &mut Ctx,
        route: &Route,
        route_key: RouteKey,
    ) -> Result<(), Stop> {
        if !route.access.permits(ctx.client) {
            return Err(denied("route").into());
        }
        match &route.auth {
            Auth::None => {}
            Auth::Key => {
                self.identify(session, ctx).await?;
                require_scope(self.require_key(ctx)?.as_ref(), Scope::Execute)?;
            }
            Auth::Role(role) => {
                self.identify(session, ctx).await?;
                let key = self.require_key(ctx)?;
                require_scope(&key, Scope::Execute)?;
                if *role > Role::User {
                    require_scope(&key, Scope::Admin)?;
                }
                if key.role < *role {
                    return Err(Failure::forbidden(
                        "this key's user lacks the role that the route asks for",
                    )
                    .into());
                }
            }
            Auth::Certificate(rule) => ctx.principal = certified(ctx, rule)?,
        }
        let (rate, on_loss) = (route.limits.rate, route.limits.on_redis_loss);
        let subject = match (&ctx.principal, ctx.client) {
            (Principal::Key(key), _) => Some(Subject::RouteUser(route_key, key.user_id)),
            (Principal::Certificate(certificate), _) => {
                let key = CertificateKey::of(&certificate.name);
                Some(Subject::RouteCertificate(route_key, key))
            }
            (Principal::Anonymous, Some(ip)) => Some(Subject::RouteAddress(route_key, ip)),
            (Principal::Anonymous, None) => None,
        };
        if let Some(subject) = subject
            && (rate.per_minute.is_some() || rate.per_day.is_some())
        {
            self.take(ctx, &subject, rate, on_loss).await?;
        }
        self.take_tier_token(ctx, on_loss).await
    }

    fn require_key(&self, ctx: &Ctx) -> Result<Arc<KeyPrincipal>, Failure> {
        match &ctx.principal {
            Principal::Key(key) => Ok(Arc::clone(key)),
            Principal::Anonymous | Principal::Certificate(_) => Err(Failure::unauthorized(
                "an API key is needed: send `Authorization: Bearer ww_…` or `X-API-Key: ww_…`",
            )),
        }
    }

    /// Finds the principal. A key seen before is known in memory; for a new one the database is
    /// asked, on its own runtime.
    pub(super) async fn identify(&self, session: &Session, ctx: &mut Ctx) -> Result<(), Stop> {
        let headers = &session.req_header().headers;
        let begun = ctx.clock();
        let result = match self.shared.auth.authenticate_cached(headers, Utc::now()) {
            Some(result) => result,
            None => {
                self.check_guesses(ctx)?;
                let auth = self.shared.auth.clone();
                let headers = credentials(headers);
                let asked = self
                    .shared
                    .control
                    .spawn(async move { auth.authenticate(&headers).await });
                let result = asked.await.unwrap_or(Err(AuthError::Unavailable));
                // One that is refused from memory tells nobody anything new, and costs nothing.
                if matches!(result, Err(AuthError::Invalid)) {
                    self.note_guess(ctx);
                }
                result
            }
        };
        ctx.trace_part("auth", begun, result.is_err());
        metrics().authentication(match &result {
            Ok(Principal::Anonymous) => "anonymous",
            Ok(Principal::Key(_) | Principal::Certificate(_)) => "ok",
            Err(AuthError::Malformed) => "malformed",
            Err(AuthError::Invalid) => "invalid",
            Err(AuthError::TokenExpired) => "expired",
            Err(AuthError::Unavailable) => "unavailable",
        });
        ctx.principal = result.map_err(|error| match error {
            AuthError::Malformed => Failure::unauthorized(
                "the credential is malformed: send one `Authorization: Bearer ww_…` or `X-API-Key: ww_…`",
            ),
            AuthError::Invalid => {
                Failure::unauthorized("the API key or access token is unknown, revoked or expired")
            }
            AuthError::TokenExpired => Failure::new(
                StatusCode::UNAUTHORIZED,
                code::TOKEN_EXPIRED,
                "the access token has expired: refresh it at /api/auth/token/refresh, without this header",
            ),
            AuthError::Unavailable => Failure::unavailable(
                "authentication_unavailable",
                "the key can't be checked right now; try again shortly",
            ),
        })?;
        Ok(())
    }

    /// Whether the client's address may go on trying keys. One that showed too many bad ones gets no key
    /// looked up in the database; keys that are in memory work from there as ever, because the address
    /// may be that of many.
    fn check_guesses(&self, ctx: &Ctx) -> Result<(), Failure> {
        let Some((subject, rate)) = guesses(ctx) else {
            return Ok(());
        };
        let decision = self.shared.limiter.peek(&subject, rate, Instant::now());
        if decision.allowed {
            return Ok(());
        }
        let retry_after = decision
            .window
            .map_or(Duration::from_secs(1), |w| w.retry_after);
        Err(Failure::rate_limited(
            "too many invalid keys came from this address; wait for the time in Retry-After",
            retry_after,
        ))
    }

    fn note_guess(&self, ctx: &Ctx) {
        if let Some((subject, rate)) = guesses(ctx) {
            self.shared.limiter.take(&subject, rate, Instant::now());
        }
    }

    pub(super) async fn take_tier_token(&self, ctx: &mut Ctx, on_loss: OnLoss) -> Result<(), Stop> {
        let Principal::Key(key) = &ctx.principal else {
            return Ok(());
        };
        let rate = ctx.plan.tiers.get(key.tier).rate;
        // Not per key: keys are free to make, and would each bring a fresh allowance.
        let subject = Subject::User(key.user_id, key.tier);
        self.take(ctx, &subject, rate, on_loss).await
    }

    async fn take(
        &self,
        ctx: &mut Ctx,
        subject: &Subject,
        rate: Rate,
        on_loss: OnLoss,
    ) -> Result<(), Stop> {
        let begun = ctx.clock();
        let decision = self.shared.limiter.acquire(subject, rate, on_loss).await;
        let is_refused = decision.as_ref().is_ok_and(|decision| !decision.allowed);
        ctx.trace_part("limit", begun, decision.is_err() || is_refused);
        let decision = decision.map_err(|Unavailable| {
            metrics().rate_limit(false);
            Failure::limits_unavailable()
        })?;
        metrics().rate_limit(decision.allowed);
        ctx.decision = Some(match ctx.decision {
            Some(before) => before.and(decision),
            None => decision,
        });
        if decision.allowed {
            return Ok(());
        }
        let retry_after = decision
            .window
            .map_or(Duration::from_secs(1), |w| w.retry_after);
        let failure = Failure::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limited",
            "too many requests; wait for the time in Retry-After",
        );
        Err(failure.retry_after(retry_after).into())
    }
}

/// Whether the certificate that the connection began with is still good.
pub(super) fn check_certificate(session: &mut Session, ctx: &Ctx) -> Result<(), Failure> {
    if ctx.certificate.is_ok() {
        return Ok(());
    }
    session.set_keepalive(None);
    metrics().authentication("invalid");
    Err(Failure::new(
        StatusCode::FORBIDDEN,
        code::CERTIFICATE_ENDED,
        "the client certificate of this connection is not good any more; connect again",
    ))
}

/// The caller that its certificate names, if that may come in.
fn certified(ctx: &Ctx, rule: &CertificateRule) -> Result<Principal, Failure> {
    let named = ctx.shown().and_then(|shown| Some((shown, shown.name()?)));
    let Some((certificate, name)) = named else {
        metrics().authentication("anonymous");
        return Err(Failure::new(
            StatusCode::FORBIDDEN,
            code::CERTIFICATE_REQUIRED,
            "a client certificate is needed that has a name",
        ));
    };
    let is_ours = rule.ca.as_deref();
    let is_ours = is_ours.is_none_or(|ca| certificate.is_vouched_for_by(ca));
    if !is_ours || !rule.admits(&certificate.subject, &certificate.names) {
        metrics().authentication("invalid");
        return Err(Failure::forbidden(
            "this client certificate may not be used here",
        ));
    }
    metrics().authentication("ok");
    let name = name.to_owned();
    Ok(Principal::Certificate(Arc::new(CertificatePrincipal {
        name,
    })))
}

/// Whether one more request may be answered now. Who asks for the gateway's health is told as long as
/// it does not ask too often itself: a balancer must not take a gateway that is busy for one that is
/// gone.
pub(super) fn check_at_once(session: &Session, ctx: &mut Ctx) -> Result<(), Failure> {
    let settings = &ctx.plan.settings;
    // What a trusted proxy asks for itself is no client's.
    let client = ctx
        .client
        .filter(|client| !client_address::is_trusted(Some(*client), settings));
    let (place, checked) = connection::count_at_once(session, client, &settings.bounds);
    ctx.at_once = place;
    let is_health = Probe::from_path(session.req_header().uri.path()).is_some();
    let too_many = match checked {
        Ok(()) => return Ok(()),
        // It costs next to nothing, and whoever asks must learn how the gateway is, not how the asker is.
        Err(TooMany::InAll | TooMany::OfClient) if is_health => return Ok(()),
        Err(too_many) => too_many,
    };
    metrics().request_refused(too_many.as_str());
    Err(match too_many {
        TooMany::OfClient => Failure::new(
            StatusCode::TOO_MANY_REQUESTS,
            code::TOO_MANY_AT_ONCE,
            "too many requests of this address are being answered; wait for some of them to end",
        )
        .retry_after(Duration::from_secs(1)),
        TooMany::InAll => Failure::unavailable(
            code::OVERLOADED,
            "too many requests are being answered; try again shortly",
        ),
    })
}

/// Whatever a route's target is, to use it is `execute`: a key that only manages something must not
/// reach what stands behind the gateway.
fn require_scope(key: &KeyPrincipal, scope: Scope) -> Result<(), Failure> {
    if key.scopes.has(scope) {
        Ok(())
    } else {
        Err(Failure::insufficient_scope(scope.as_str()))
    }
}

/// Whose bucket invalid keys draw from.
fn guesses(ctx: &Ctx) -> Option<(Subject, Rate)> {
    let rate = Rate {
        per_minute: Some(ctx.plan.settings.auth_failures_per_minute),
        per_day: None,
    };
    Some((Subject::AuthFailure(ctx.client?), rate))
}

/// Why a guest gets no seat, as its caller reads it; what is known of the CPU time is noted.
pub(super) fn no_seat(ctx: &mut Ctx, reason: NoSeat) -> Failure {
    match reason {
        NoSeat::CpuUsedUp(left) => {
            ctx.cpu_left = Some(left);
            Failure::cpu_quota_exceeded(left.window.map_or(Duration::ZERO, |w| w.retry_after))
        }
        NoSeat::TooManyGuests(guests_max) => Failure::too_many_guests(guests_max),
        NoSeat::Unavailable => Failure::limits_unavailable(),
    }
}

/// A client whose address may not come in. `by` is the list that says so.
pub(super) fn denied(by: &str) -> Failure {
    metrics().address_denied(by);
    Failure::forbidden("this address may not come in")
}

/// Only the headers that authentication looks at.
fn credentials(headers: &HeaderMap) -> HeaderMap {
    let mut picked = HeaderMap::new();
    for name in [
        header::AUTHORIZATION,
        header::HeaderName::from_static("x-api-key"),
    ] {
        for value in headers.get_all(&name) {
            picked.append(name.clone(), value.clone());
        }
    }
    picked
}
