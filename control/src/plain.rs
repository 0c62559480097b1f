//! Names of nodes, services and processes come from others, who may put into them what a terminal obeys, or what looks
//! like a line of ours, and who may make them as long as they like. What is shown to people says them without, and
//! shortened.

use std::{borrow::Cow, fmt::Write as _};

use serde_json::Value;
use tracing_subscriber::fmt::{
    FormatFields,
    format::{Writer, debug_fn},
};

/// What every line of an event but its first begins with.
const GOES_ON: &str = "\n  | ";

/// Characters of a name that are shown to people: names of services have 63 at most, hosts' seldom more.
const LONGEST_NAME: usize = 128;
/// Characters of a whole text that are shown to people, whatever names are in it.
const LONGEST_TEXT: usize = 4096;
/// Characters of a text in JSON, where names are whole.
const LONGEST_ANSWER: usize = 16_384;

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

/// The text with long names in it, and itself, shortened. A name is what stands between spaces and the like, so that
/// lists and paths stay whole.
pub(crate) fn short(text: &str) -> Cow<'_, str> {
    let separates = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '/');
    if text.len() <= LONGEST_NAME || text.split(separates).all(|name| name.len() <= LONGEST_NAME) {
        return cut(text, LONGEST_TEXT);
    }
    let names = text.split_inclusive(separates).map(|name| match name.char_indices().nth(LONGEST_NAME) {
        Some((_, c)) if separates(c) => name.into(),
        Some((end, _)) => {
            let separator = name.chars().next_back().filter(|c| separates(*c));
            Cow::from(format!("{}…{}", &name[..end], separator.map_or_else(String::new, String::from)))
        }
        None => name.into(),
    });
    cut(&names.collect::<String>(), LONGEST_TEXT).into_owned().into()
}

/// What is printed of a text as a line of its own: [`plain`] and [`short`].
pub(crate) fn line(text: &str) -> String {
    plain(&short(text)).into_owned()
}

/// The text without its middle if it has more than `most` characters: what is to be done stands at the end.
fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let count = text.chars().count();
    if count <= most {
        return text.into();
    }
    let at = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
    let (head, tail) = (at(most - most / 4), at(count - most / 4));
    format!("{} […] {}", &text[..head], &text[tail..]).into()
}

/// An answer without texts that have no bound.
pub(crate) fn bounded(answer: Value) -> Value {
    match answer {
        Value::String(text) if text.len() > LONGEST_ANSWER => cut(&text, LONGEST_ANSWER).into(),
        Value::Array(items) => items.into_iter().map(bounded).collect(),
        Value::Object(items) => {
            items.into_iter().map(|(key, item)| (cut(&key, LONGEST_ANSWER).into_owned(), bounded(item))).collect()
        }
        other => other,
    }
}

/// The text's lines [`plain`] and [`short`], those behind the first marked.
pub(crate) fn lines(text: &str) -> String {
    short(text).lines().map(plain).collect::<Vec<_>>().join(GOES_ON)
}

/// An answer with [`plain`] and [`short`] texts only.
pub(crate) fn value(value: &Value) -> Value {
    match value {
        Value::String(text) => plain(&short(text)).into(),
        Value::Array(items) => items.iter().map(self::value).collect(),
        Value::Object(items) => {
            items.iter().map(|(key, item)| (plain(&short(key)).into_owned(), self::value(item))).collect()
        }
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
    fn names_and_texts_of_any_length_are_shown_shortened() {
        let long = |n: usize| "ü".repeat(n);
        assert_eq!(short(&long(LONGEST_NAME)), long(LONGEST_NAME));
        let said = format!("node {} at 192.0.2.1, {}: rename it", long(LONGEST_NAME + 1), long(9_000));
        assert_eq!(short(&said), format!("node {0}… at 192.0.2.1, {0}…", long(LONGEST_NAME)) + " rename it");
        let list = "eth0.1234,".repeat(50);
        assert_eq!(short(&list), list, "a list is no name");
        // What stands at the end, the remedy, is there whatever names do.
        let said = format!("node {}: rename it", "x ".repeat(100_000));
        let shown = short(&said);
        assert!(shown.chars().count() <= LONGEST_TEXT + 5 && shown.ends_with("x : rename it"), "{shown}");
        let answer = serde_json::json!({"a": [long(LONGEST_ANSWER), long(LONGEST_ANSWER + 1)], "b": 1});
        let kept = bounded(answer.clone());
        assert_eq!((&kept["a"][0], &kept["b"]), (&answer["a"][0], &answer["b"]), "whole up to a bound");
        assert_eq!(kept["a"][1].as_str().unwrap().chars().count(), LONGEST_ANSWER + 5);
        assert_eq!(value(&answer)["a"][0].as_str().unwrap().chars().count(), LONGEST_NAME + 1);
        let logged = lines(&format!("node {} is here\n{}", long(9_000), "\n".repeat(9_000)));
        assert!(
            logged.starts_with(&format!("node {}… is here\n  | ", long(LONGEST_NAME)))
                && logged.len() < 6 * LONGEST_TEXT
        );
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
