//! An upstream's answer on its way to the client: compressed as it passes, whichever way its end is told.
//! Pingora's own filters do not see the end of each HTTP/2 answer; its modules do.

use std::any::Any;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, header};
use pingora_core::modules::http::{HttpModule, HttpModuleBuilder, Module};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::Encoder;

/// What is compressed of one request's answer.
#[derive(Default)]
struct Passing(Option<Encoder>);

/// Makes one for each request.
pub struct PassingBuilder;

/// Compresses the body that is about to come.
pub(in crate::gateway) fn pass_through(session: &mut Session, encoder: Option<Encoder>) {
    if let Some(passing) = session.downstream_modules_ctx.get_mut::<Passing>() {
        passing.0 = encoder;
    }
}

impl Passing {
    fn end(&mut self) -> pingora_core::Result<Option<Bytes>> {
        match self.0.take() {
            Some(mut encoder) => Ok(Some(encoder.encode(&[], true)?)),
            None => Ok(None),
        }
    }
}

#[async_trait]
impl HttpModule for Passing {
    async fn response_header_filter(
        &mut self,
        head: &mut ResponseHeader,
        end: bool,
    ) -> pingora_core::Result<()> {
        if end && self.0.take().is_some() {
            // There is no body, which could not be known before.
            head.remove_header(&header::CONTENT_ENCODING);
        }
        Ok(())
    }

    fn response_body_filter(
        &mut self,
        body: &mut Option<Bytes>,
        end: bool,
    ) -> pingora_core::Result<()> {
        if let Some(encoder) = &mut self.0 {
            let encoded = encoder.encode(&body.take().unwrap_or_default(), end)?;
            *body = Some(encoded).filter(|encoded| !encoded.is_empty());
            if end {
                self.0 = None;
            }
        }
        Ok(())
    }

    fn response_trailer_filter(
        &mut self,
        _trailers: &mut Option<Box<HeaderMap>>,
    ) -> pingora_core::Result<Option<Bytes>> {
        self.end()
    }

    fn response_done_filter(&mut self) -> pingora_core::Result<Option<Bytes>> {
        self.end()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl HttpModuleBuilder for PassingBuilder {
    fn init(&self) -> Module {
        Box::new(Passing::default())
    }
}
