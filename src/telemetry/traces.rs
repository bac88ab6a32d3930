//! Traces: what a request spent its time on, told to an OpenTelemetry collector (OTLP over HTTP).
//!
//! A request notes its spans in memory of its own, and hands them over as a whole when it has ended: to
//! a queue, bounded in bytes, which a thread of its own reads. Nothing on the path of a request waits for the
//! collector; what finds the queue full is dropped, and counted.

mod context;
mod export;
mod room;
mod span;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender};
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::trace::{SpanId, TraceFlags};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

use super::metrics::metrics;
use super::sample;
use context::Parent;
use room::{Place, Room};

pub use context::{TRACEPARENT, TRACESTATE};
pub use export::TracesError;
pub use span::{Answer, Trace, guest_attributes, upstream_attributes};

/// Settings of traces.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where the collector takes them: an `http` or `https` URL.
    pub endpoint: String,
    /// The only authorities believed, in PEM; `None` is the system's.
    pub ca: Option<PathBuf>,
    /// What else the collector is sent, such as credentials.
    pub headers: HeaderMap,
    /// The name under which the collector shows this service.
    pub service: String,
    /// Of the traces that begin here, the share that is told: 0 to 1.
    pub sample: f64,
    /// Whose `traceparent` is gone on with.
    pub parents: Parents,
    /// Memory of the traces that wait for the collector, those on their way to it included.
    pub queue_bytes_max: usize,
    /// Longest wait for the collector's answer.
    pub timeout: Duration,
}

/// Whose `traceparent` is believed: who says that a request belongs to a trace also says whether it is told.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Parents {
    /// The trusted proxies'; a trace of anybody else begins here.
    Trusted,
    /// Everybody's, for a gateway that only clients of one's own reach.
    All,
    /// Nobody's.
    None,
}

/// Begins and takes traces; nothing where they are off.
pub struct Tracer(Option<Running>);

struct Running {
    sample: f64,
    parents: Parents,
    ids: RandomIdGenerator,
    room: Arc<Room>,
    queue: Sender<Message>,
}

/// What the thread is sent.
enum Message {
    Ended(Box<(Trace, Answer)>, Place),
    /// Send what there is, and say so.
    Stop(SyncSender<()>),
}

impl Tracer {
    /// Starts the thread that sends; without settings there is none, and no trace ever begins.
    ///
    /// # Errors
    /// The endpoint or the authorities can't be used, or the system has no thread to give.
    pub fn start(settings: Option<&Settings>) -> Result<Tracer, TracesError> {
        let Some(settings) = settings else {
            return Ok(Tracer(None));
        };
        Ok(Tracer(Some(Running {
            sample: settings.sample,
            parents: settings.parents,
            ids: RandomIdGenerator::default(),
            room: Room::new(settings.queue_bytes_max),
            queue: export::start(settings)?,
        })))
    }

    /// The trace of a request with these headers; `None` where traces are off.
    #[inline]
    pub fn begin(&self, headers: &HeaderMap, is_trusted: bool) -> Option<Box<Trace>> {
        let running = self.0.as_ref()?;
        Some(running.begin(headers, is_trusted))
    }

    /// Takes the trace of a request that has ended.
    pub fn end(&self, trace: Trace, answer: impl FnOnce() -> Answer) {
        let Some(running) = self.0.as_ref().filter(|_| trace.is_sampled()) else {
            return;
        };
        let answer = answer();
        let spans = trace.spans_count() as u64;
        let is_sent = running
            .room
            .take(trace.bytes(&answer))
            .map(|place| Message::Ended(Box::new((trace, answer)), place))
            // The thread ends with the process only.
            .is_some_and(|message| running.queue.send(message).is_ok());
        if !is_sent {
            metrics().trace_spans("dropped", spans);
        }
    }

    /// Sends what waits, for at most this long.
    pub fn finish(&self, longest: Duration) {
        let Some(running) = &self.0 else {
            return;
        };
        let (done, is_done) = std::sync::mpsc::sync_channel(1);
        // Where much waits the collector is behind, and would not have it in time.
        if !running.room.is_crowded() && running.queue.send(Message::Stop(done)).is_ok() {
            let _ = is_done.recv_timeout(longest);
        }
    }
}

impl Running {
    fn begin(&self, headers: &HeaderMap, is_trusted: bool) -> Box<Trace> {
        let is_believed = match self.parents {
            Parents::Trusted => is_trusted,
            Parents::All => true,
            Parents::None => false,
        };
        let parent = is_believed.then(|| Parent::read(headers)).flatten();
        let span = self.ids.new_span_id();
        Box::new(match parent {
            Some(parent) => Trace::new(
                parent.trace,
                span,
                parent.span,
                parent.is_sampled,
                parent.state,
            ),
            None => {
                let trace = self.ids.new_trace_id();
                let is_sampled = is_in_share(trace.to_bytes(), self.sample);
                Trace::new(trace, span, SpanId::INVALID, is_sampled, None)
            }
        })
    }
}

/// Whether a trace is in the share that is told. All that decide by the same share take the same traces.
fn is_in_share(trace: [u8; 16], share: f64) -> bool {
    let [.., a, b, c, d, e, f, g, h] = trace;
    sample::is_in(share, u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

/// The flags of a `traceparent`.
fn flags(is_sampled: bool) -> TraceFlags {
    if is_sampled {
        TraceFlags::SAMPLED
    } else {
        TraceFlags::NOT_SAMPLED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 64 << 10;

    fn tracer(sample: f64, parents: Parents) -> (Tracer, std::sync::mpsc::Receiver<Message>) {
        let (queue, received) = std::sync::mpsc::channel();
        let running = Running {
            sample,
            parents,
            ids: RandomIdGenerator::default(),
            room: Room::new(ROOM),
            queue,
        };
        (Tracer(Some(running)), received)
    }

    fn from_outside() -> HeaderMap {
        let mut headers = HeaderMap::new();
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        headers.insert("traceparent", parent.parse().unwrap());
        headers
    }

    fn answer() -> Answer {
        Answer::default()
    }

    #[test]
    fn without_settings_nothing_begins() {
        let tracer = Tracer::start(None).unwrap();
        assert!(tracer.begin(&from_outside(), true).is_none());
        tracer.finish(Duration::from_secs(60));
    }

    #[test]
    fn a_parent_is_believed_by_whom_it_comes_from() {
        for (parents, is_trusted, is_believed) in [
            (Parents::Trusted, true, true),
            (Parents::Trusted, false, false),
            (Parents::All, false, true),
            (Parents::None, true, false),
        ] {
            let (tracer, _received) = tracer(0.0, parents);
            let trace = tracer.begin(&from_outside(), is_trusted).unwrap();
            let goes_on = trace
                .traceparent()
                .starts_with("00-0af7651916cd43dd8448eb211c80319c-");
            assert_eq!(goes_on, is_believed, "{parents:?} {is_trusted}");
            // With a share of none, only a parent that is told is told on.
            assert_eq!(trace.is_sampled(), is_believed);
            assert!(!trace.traceparent().contains("b7ad6b7169203331"));
        }
    }

    #[test]
    fn the_share_is_kept() {
        for (share, range) in [(0.0, 0..=0), (1.0, 10_000..=10_000), (0.25, 2_200..=2_800)] {
            let (tracer, _received) = tracer(share, Parents::None);
            let begun = (0..10_000).filter_map(|_| tracer.begin(&HeaderMap::new(), false));
            let told = begun.filter(|trace| trace.is_sampled()).count();
            assert!(range.contains(&told), "{share}: {told}");
        }
        assert!(is_in_share([0xff; 16], 1.0) && !is_in_share([0; 16], 0.0));
    }

    #[test]
    fn a_collector_that_is_behind_costs_spans_and_no_memory() {
        let (tracer, received) = tracer(1.0, Parents::None);
        let row = r#"wasmwiz_trace_spans_total{result="dropped"} "#;
        let dropped = || {
            let page = metrics().render().unwrap();
            let count = page.lines().find_map(|line| line.strip_prefix(row));
            count.map_or(0.0, |count| count.parse().unwrap())
        };
        let before: f64 = dropped();
        // A long path takes more of the room than a short one.
        let mut ended = [0; 2];
        for (at, path) in ["", &"x".repeat(1024)].iter().enumerate() {
            while dropped() == before + at as f64 {
                let trace = tracer.begin(&HeaderMap::new(), false).unwrap();
                let path = (*path).to_owned();
                tracer.end(*trace, || Answer { path, ..answer() });
                ended[at] += 1;
            }
            // To stop does not wait where there is no room.
            tracer.finish(Duration::from_secs(60));
            assert_eq!(received.try_iter().count(), ended[at] - 1);
        }
        let [short, long] = ended;
        assert!(long < short && (20..200).contains(&short), "{ended:?}");
    }
}
