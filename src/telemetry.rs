//! Log lines and the root of the metrics.
//!
//! Log lines go to stderr. In logfmt the reserved keys are `ts`, `level`, `target` and `msg`, then
//! the event's fields, then those of its spans.
use prometheus::{IntGaugeVec, Opts, Registry};
use tracing_logfmt::EventsFormatter;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::{SubscriberInitExt as _, TryInitError},
};

pub use self::sample::Samples;
use crate::config::LogFormat;

mod sample;

/// Installs the process's subscriber. With `debug` our own debug events are logged, but not those
/// of the HTTP and TLS libraries, which would drown them.
///
/// # Errors
/// If one is installed already.
pub fn init(format: LogFormat, debug: bool) -> Result<(), TryInitError> {
    let filter = EnvFilter::new(if debug { "info,tombolo=debug" } else { "info" });
    let layer = match format {
        LogFormat::Logfmt => logfmt(std::io::stderr).boxed(),
        LogFormat::Json => {
            let json = tracing_subscriber::fmt::layer().json().flatten_event(true);
            json.with_writer(std::io::stderr).boxed()
        }
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .try_init()
}

fn logfmt<S, W>(writer: W) -> impl tracing_subscriber::Layer<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_logfmt::builder()
        .with_span_name(false)
        .with_span_path(false)
        .layer()
        .map_event_format(MsgKey)
        .with_writer(writer)
}

/// tracing-logfmt names the text `message`; operators of this field grep for `msg=`. Without span
/// names, whatever precedes the text holds no blanks, so that its first occurrence is the key.
struct MsgKey(EventsFormatter);

impl<S, N> FormatEvent<S, N> for MsgKey
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let mut line = String::new();
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&line.replacen(" message=", " msg=", 1))
    }
}

/// The time of day, for whoever takes a clock as an argument.
#[must_use]
pub fn wall_clock() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// The same, in UTC.
#[must_use]
pub fn now_utc() -> time::OffsetDateTime {
    wall_clock().into()
}

/// The registry that modules register their metrics in, with what describes the process itself.
///
/// # Errors
/// Never in practice: the names are constants that the tests register.
pub fn registry() -> Result<Registry, prometheus::Error> {
    let registry = Registry::new();
    let help = "Always 1; its label says which version runs. Alert when versions differ for long.";
    let info = IntGaugeVec::new(Opts::new("tombolo_build_info", help), &["version"])?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(info))?;
    Ok(registry)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn logfmt_lines_have_level_and_msg() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let layer = super::logfmt(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _span = tracing::info_span!("peer", clusterName = "cluster2").entered();
            let config = "a message=b";
            tracing::info!(config, "Connection to remote cluster established");
        });
        let line = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let (_, line) = line.split_once(" level=").unwrap();
        assert_eq!(
            line,
            "info target=tombolo::telemetry::tests \
             msg=\"Connection to remote cluster established\" config=\"a message=b\" \
             clusterName=cluster2\n"
        );
    }

    #[test]
    fn registry_says_which_version_runs() {
        let families = super::registry().unwrap().gather();
        assert_eq!(families[0].name(), "tombolo_build_info");
    }
}
