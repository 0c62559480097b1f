//! How a table is written does not matter: format, order of sections, order of fields.

mod support;

use std::path::Path;

use hiveway_core::table::{Table, parse_file};
use proptest::prelude::*;
use serde_json::Value;
use support::{BASE, refused::problems};

const SECTIONS: [&str; 5] = ["version", "nodes", "networks", "services", "tasks"];

fn base() -> Value {
    serde_saphyr::from_str(BASE).expect("YAML")
}

/// As JSON, sections in that order.
fn written(table: &Value, order: &[&str], pretty: bool) -> String {
    let sections: Vec<String> = order
        .iter()
        .map(
            |name| if pretty { format!("{name:?} : {:#}", table[*name]) } else { format!("{name:?}:{}", table[*name]) },
        )
        .collect();
    format!("{{{}}}", sections.join(","))
}

fn parsed(text: &str) -> Table {
    parse_file(text, Path::new("table.json")).unwrap_or_else(|problems| panic!("{problems:?}"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_order_gives_the_same_table(order in Just(SECTIONS.to_vec()).prop_shuffle(), pretty: bool) {
        let yaml = parse_file(BASE, Path::new("table.yaml")).expect("valid");
        prop_assert_eq!(parsed(&written(&base(), &order, pretty)), yaml);
    }

    #[test]
    fn any_order_gives_the_same_problems(order in Just(SECTIONS.to_vec()).prop_shuffle(), pretty: bool) {
        let mut broken = base();
        broken["nodes"][1]["address"] = "x".into();
        broken["networks"][0]["mut"] = 7.into();
        broken["services"][0]["ports"][0]["published_port"] = 70_000.into();
        broken["tasks"][0]["node_id"] = "n7".into();
        broken["tasks"][1]["addresses"]["app"] = "10.9.9.9".into();
        let expected = problems(&serde_json::to_string(&broken).expect("JSON"));
        prop_assert_eq!(expected.len(), 5);
        let found = parse_file(&written(&broken, &order, pretty), Path::new("table.json")).expect_err("broken");
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn sections_that_are_no_lists() {
    let with = |section: &str, value: Value| {
        let mut table = base();
        table[section] = value;
        parse_file(&table.to_string(), Path::new("table.json"))
    };
    for (value, found) in [
        (Value::from(7), "the number 7"),
        (Value::from("x"), "the text \"x\""),
        (Value::from(true), "the boolean true"),
        (serde_json::json!({"id": "n1"}), "an object"),
    ] {
        let problems = with("networks", value).expect_err(found);
        assert_eq!(
            (problems[0].path.as_str(), &*problems[0].message),
            ("networks", &*format!("expected a list, found {found}"))
        );
    }
    let mut nothing = base();
    nothing["tasks"] = Value::Null;
    assert!(parsed(&nothing.to_string()).model.tasks.is_empty(), "`null` is an absent section");
}

#[test]
fn what_is_no_table_at_all() {
    for (text, found) in
        [("7", "the number 7"), ("[1, {\"a\": 2}]", "a list"), ("\"x\"", "the text"), ("null", "nothing")]
    {
        let problems = parse_file(text, Path::new("table.json")).expect_err(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].message.starts_with(&format!("expected an object, found {found}")), "{}", problems[0]);
    }
    for twice in ["\"nodes\": [], \"nodes\": []", "\"x\": 1, \"x\": 2", "\"nodes\": [{\"id\": \"a\", \"id\": \"a\"}]"] {
        let text = format!("{{\"version\": 1, {twice}}}");
        let problems = parse_file(&text, Path::new("table.json")).expect_err(&text);
        assert!(
            problems[0].message.contains("duplicate key") && problems[0].message.contains("line 1"),
            "{}",
            problems[0]
        );
    }
}

/// What repeats is in memory once.
#[test]
fn ids_are_shared() {
    let table = parsed(&base().to_string()).model;
    let same = |a: &str, b: &str| std::ptr::eq(a, b);
    for (id, task) in &table.tasks {
        let service = table.services.get_key_value(task.service.as_deref().expect("of a service")).expect("known").0;
        let node = table.nodes.get_key_value(task.node.as_deref().expect("somewhere")).expect("known").0;
        assert!(
            same(id, &task.id)
                && same(service, task.service.as_deref().unwrap())
                && same(node, task.node.as_deref().unwrap())
        );
        for network in task.addresses.keys() {
            assert!(same(network, table.networks.get_key_value(network).expect("known").0));
        }
        assert!(std::ptr::eq(task.ports.as_ptr(), table.services[service].ports.as_ptr()));
    }
    // And of the version before, what is the same there.
    let mut next = parsed(&base().to_string()).model;
    next.share(&table);
    for (id, task) in &next.tasks {
        let (before, old) = table.tasks.get_key_value(id).expect("the same tasks");
        assert!(same(id, before) && std::sync::Arc::ptr_eq(task, old));
    }
}
