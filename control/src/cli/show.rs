//! The commands that ask a running agent and print what it says.
use serde_json::Value;

use super::{FlowArgs, ShowArgs, exit, table_text};
use crate::{
    say::{self, errln, outln},
    status::{
        client::{ask, ask_rows},
        protocol::{FlowFilter, Request},
    },
};

/// Rows that are sorted and aligned together; more come in several such lists.
const PAGE: usize = 10_000;

/// Asks and prints; returns the exit code.
pub(super) fn show(request: &Request, args: &ShowArgs) -> u8 {
    let value = match ask(&args.socket, request) {
        Ok(value) => value,
        Err(error) => {
            errln!("error: {error}");
            return exit::FAILED;
        }
    };
    if args.json {
        outln!("{value:#}");
    } else {
        say::out(format_args!("{}", table_text::render(request, &value)));
    }
    exit::OK
}

/// Asks for connections, and prints them as they come; returns the exit code.
pub(super) fn flows(args: &FlowArgs) -> u8 {
    let filter = FlowFilter {
        service: args.service.clone(),
        client: args.client.map(|net| net.to_string()),
        state: args.state.clone(),
        limit: args.limit,
    };
    let request = Request::Flows(filter);
    let (mut page, mut printed) = (Vec::new(), false);
    let asked = ask_rows(&args.show.socket, &request, |rows| {
        if args.show.json {
            let before = if printed { "," } else { "[" };
            let texts: Vec<_> = rows.iter().map(Value::to_string).collect();
            say::out(format_args!("{before}\n{}", texts.join(",\n")));
            printed |= !rows.is_empty();
        } else {
            page.extend(rows);
            if page.len() >= PAGE {
                print(&request, &mut page);
                printed = true;
            }
        }
        say::can_print()
    });
    match asked {
        Err(error) => {
            if !page.is_empty() {
                print(&request, &mut page);
                printed = true;
            }
            let rest = if printed {
                "; the list above is not whole: --service, --client or --limit make it shorter"
            } else {
                ""
            };
            errln!("error: {error}{rest}");
            return exit::FAILED;
        }
        Ok(_) if args.show.json => outln!("{}", if printed { "\n]" } else { "[]" }),
        Ok(end) => {
            if !page.is_empty() || !printed {
                print(&request, &mut page);
            }
            if end.more && args.limit.is_some() {
                errln!("there are more than {}: --limit", end.rows);
            }
        }
    }
    exit::OK
}

fn print(request: &Request, page: &mut Vec<Value>) {
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    page.sort_by_cached_key(|row| ["kind", "protocol", "client", "address"].map(|key| text(row, key)));
    let rows = Value::Array(std::mem::take(page));
    say::out(format_args!("{}", table_text::render(request, &rows)));
}
