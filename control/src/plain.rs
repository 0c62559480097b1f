//! Names of nodes, services and processes come from others, who may put into them what a terminal obeys, or what
//! looks like a line of ours. What is shown to people says them without.

use std::{borrow::Cow, fmt::Write as _};

use serde_json::Value;
use tracing_subscriber::fmt::{
    FormatFields,
    format::{Writer, debug_fn},
};

/// What every line of an event but its first begins with.
const GOES_ON: &str = "\n  | ";

/// Whether a terminal, or whatever else shows text, does something else with it than to show it: control characters,
/// and those that change lines or the direction of what follows.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with `?` for each such character.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if text.contains(is_obeyed) { text.replace(is_obeyed, "?").into() } else { text.into() }
}

/// The text's lines [`plain`], those behind the first marked.
pub(crate) fn lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join(GOES_ON)
}

/// An answer with [`plain`] texts only.
pub(crate) fn value(value: &Value) -> Value {
    match value {
        Value::String(text) => plain(text).into(),
        Value::Array(items) => items.iter().map(self::value).collect(),
        Value::Object(items) => items.iter().map(|(key, item)| (plain(key).into_owned(), self::value(item))).collect(),
        other => other.clone(),
    }
}

/// What an event of the log says, so that no text in it can be taken for another event.
pub(crate) fn fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    debug_fn(|writer: &mut Writer<'_>, field, value| {
        let mut said = String::new();
        match field.name() {
            "message" => write!(said, "{value:?}")?,
            // Of what came through the crate `log`.
            name if name.starts_with("log.") => return Ok(()),
            name => write!(said, " {name}={value:?}")?,
        }
        write!(writer, "{}", lines(&said))
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    const NAME: &str = "\u{1b}]0;x\u{7}\nHost is\r\u{9b}2J fine\u{202e}\u{2066}ü";

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_text_in_the_log_is_a_line_of_its_own() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .fmt_fields(fields())
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(port = 80, "node {NAME} is here");
            tracing::warn!("two\nlines");
        });
        let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let want = " INFO node ?]0;x?\n  | Host is??2J fine??ü is here port=80\n WARN two\n  | lines\n";
        assert_eq!(said, want);
    }
}
