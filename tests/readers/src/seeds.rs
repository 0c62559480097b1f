//! What the targets' inputs begin with: the captures and rules that other tests read, and messages made of them.

mod packets;
mod stream;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use control::{
    relay::convert::{encode, encode_paths, encode_report},
    status::protocol::{FlowFilter, Request},
};
use hiveway_core::{
    Model,
    docker_api::{EngineCapture, parse},
    merge::Report,
    path_report::PathReport,
    table::parse_file,
};
use hiveway_proto::relay::{FromAgent, FromManager, Path as PathRow, PathReport as PathMessage, from_manager::Message};
use prost::Message as _;
use serde_json::Value;

use crate::{MAX_LEN, SEPARATOR, Target};

/// Longest seed. Longer ones repeat what shorter ones have, and what is read slowly is read seldom.
const MAX_SEED: usize = MAX_LEN / 2;

/// Keys of the Engine API's objects that [`hiveway_core::docker_api::api`] has.
const KEYS: &[&str] = &[
    "ID",
    "Id",
    "CreatedAt",
    "Description",
    "Hostname",
    "Status",
    "State",
    "Addr",
    "ManagerStatus",
    "Name",
    "Scope",
    "Driver",
    "Ingress",
    "Internal",
    "IPAM",
    "Config",
    "Subnet",
    "Gateway",
    "Options",
    "Spec",
    "Labels",
    "Version",
    "Index",
    "EndpointSpec",
    "Mode",
    "Endpoint",
    "Ports",
    "Protocol",
    "TargetPort",
    "PublishedPort",
    "PublishMode",
    "VirtualIPs",
    "NetworkID",
    "ServiceID",
    "Slot",
    "NodeID",
    "DesiredState",
    "NetworksAttachments",
    "Network",
    "Addresses",
];

/// An `ipset` with an exception, and a list of sets, as `ipset save` prints them.
const IPSETS: [&str; 2] = [
    "create office hash:net family inet hashsize 1024 maxelem 65536 timeout 300 counters comment\n\
     add office 10.0.0.0/8 timeout 299 packets 0 bytes 0 comment \"a b\"\nadd office 10.128.0.0/9 nomatch\n",
    "create l list:set size 8 counters comment\nadd l bad packets 0 bytes 0 comment \"a b\"\nadd l worse\n",
];

/// The inputs that a target begins with, short ones first: at least one, none longer than half of [`MAX_LEN`].
///
/// # Errors
/// When the files that they are made of are missing or do not hold what they should.
pub fn seeds(target: Target) -> Result<Vec<Vec<u8>>> {
    let found = match target {
        Target::Table => tables(),
        Target::Engine => Ok(captures()?.iter().map(Capture::input).collect()),
        Target::Stream => stream::seeds(&captures()?),
        Target::Relay => messages(),
        Target::Certificates => certificates(),
        Target::Firewall => rules(),
        Target::Protocol => requests(),
        Target::Packets => Ok(packets::seeds()),
    };
    let mut found = found.with_context(|| format!("seeds of {target:?}"))?;
    found.retain(|seed| seed.len() <= MAX_SEED);
    found.sort_by_key(Vec::len);
    ensure!(!found.is_empty(), "no seeds of {target:?}");
    Ok(found)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

/// What is in a directory, in the order of names.
fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The answers of one engine, without what Hiveway does not look at.
struct Capture {
    nodes: Value,
    services: Value,
    tasks: Value,
    networks: Value,
}

impl Capture {
    fn input(&self) -> Vec<u8> {
        [&self.nodes, &self.services, &self.tasks, &self.networks]
            .map(|part| part.to_string().into_bytes())
            .join(&SEPARATOR)
    }
}

fn captures() -> Result<Vec<Capture>> {
    let of = |directory: PathBuf| {
        let part = |name: &str| {
            let mut value = serde_json::from_slice(&read(&directory.join(name))?)?;
            strip(&mut value, false);
            anyhow::Ok(value)
        };
        let (nodes, services) = (part("nodes.json")?, part("services.json")?);
        Ok(Capture { nodes, services, tasks: part("tasks.json")?, networks: part("networks.json")? })
    };
    entries(&root().join("tests/fixtures/swarm"))?.into_iter().map(of).collect()
}

/// Removes members that are not in [`KEYS`]; `free`: of an object whose keys are the users' own.
fn strip(value: &mut Value, free: bool) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| strip(item, false)),
        Value::Object(members) => {
            members.retain(|key, _| free || KEYS.contains(&key.as_str()));
            members.iter_mut().for_each(|(key, member)| strip(member, matches!(key.as_str(), "Options" | "Labels")));
        }
        _ => {}
    }
}

fn tables() -> Result<Vec<Vec<u8>>> {
    let files = entries(&root().join("control/core/tests/support"))?;
    let yaml = files.iter().filter(|path| path.extension().is_some_and(|own| own == "yaml"));
    let mut found = yaml.map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    // The examples in the documents.
    for document in ["docs/reference/table.md", "docs/table.md", "README.md"] {
        let Ok(text) = fs::read_to_string(root().join(document)) else { continue };
        let blocks = text.split("```").skip(1).step_by(2);
        let tables = blocks.filter_map(|block| block.strip_prefix("yaml\n").or(block.strip_prefix("json\n")));
        found.extend(tables.map(|table| table.as_bytes().to_vec()));
    }
    Ok(found)
}

fn messages() -> Result<Vec<Vec<u8>>> {
    let table = |model: &Model| FromManager { message: Some(Message::Table(encode(model, &[]))) }.encode_to_vec();
    let mut found = Vec::new();
    for capture in captures()? {
        let [nodes, services, tasks, networks] =
            [&capture.nodes, &capture.services, &capture.tasks, &capture.networks].map(Value::to_string);
        let capture = EngineCapture { nodes: &nodes, services: &services, tasks: &tasks, networks: &networks };
        found.push(table(&parse(&capture)?.model));
    }
    for text in tables()? {
        if let Ok(read) = parse_file(std::str::from_utf8(&text)?, Path::new("table.yaml")) {
            found.push(table(&read.model));
        }
    }
    let report = Report {
        vtep: Some([192, 0, 2, 1].into()),
        unhealthy: ["a".into()].into(),
        dead: ["b".into(), "c".into()].into(),
        unreachable: ["d".into()].into(),
        ..Report::default()
    };
    let row = PathRow {
        to: 0xc000_0202,
        state: 2,
        since_seconds: 60,
        rtt_microseconds: 400,
        lost_per_10000: 12,
        probes: 60,
        mtu: 1500,
        passed: 1500,
        heard: true,
        vxlan_port: 7789,
        ..PathRow::default()
    };
    let paths =
        PathMessage { passing: 1, paths: vec![row], ..encode_paths(&PathReport::default(), Default::default()) };
    let report = hiveway_proto::relay::Report { paths: Some(paths), ..encode_report(&report) };
    let said = FromAgent { protocol: 1, version: "0.1.0".into(), report: Some(report), ..FromAgent::default() };
    found.push(said.encode_to_vec());
    found.push(FromAgent { vtep: 0xc000_0201, want_tables: true, ..FromAgent::default() }.encode_to_vec());
    Ok(found)
}

fn certificates() -> Result<Vec<Vec<u8>>> {
    let of = |path: PathBuf| Ok(pem::parse(read(&path)?)?.into_contents());
    entries(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures"))?.into_iter().map(of).collect()
}

fn rules() -> Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for path in entries(&root().join("control/core/src/firewall/fixtures"))? {
        if path.extension().is_none_or(|own| own != "json") {
            continue;
        }
        // Some hosts have iptables' rules, too.
        let of = |extension| fs::read(path.with_extension(extension)).unwrap_or_default();
        for set in IPSETS {
            let texts = [read(&path)?, of("txt"), of("save"), of("sets"), set.into()];
            found.push(texts.join(&SEPARATOR));
        }
    }
    Ok(found)
}

fn requests() -> Result<Vec<Vec<u8>>> {
    let filter = FlowFilter {
        service: Some("web".into()),
        client: Some("192.0.2.0/24".into()),
        state: Some("established".into()),
        limit: Some(10),
    };
    let requests = [Request::Status, Request::Networks, Request::Flows(FlowFilter::default()), Request::Flows(filter)];
    let mut found = requests.iter().map(serde_json::to_vec).collect::<Result<Vec<_>, _>>()?;
    for answer in [
        r#"{"ok": {"node": "n1"}}"#,
        r#"{"rows": [{"state": "established"}]}"#,
        r#"{"end": {"rows": 1, "more": false}}"#,
    ] {
        found.push(answer.into());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_to_the_end() {
        for text in tables().unwrap() {
            let text = String::from_utf8(text).unwrap();
            parse_file(&text, Path::new("table.yaml")).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
        }
        let engines = seeds(Target::Engine).unwrap();
        assert!(engines.len() >= 10, "{}", engines.len());
        for certificate in certificates().unwrap() {
            control::certs::Identity::of(&certificate).unwrap();
        }
        let message = seeds(Target::Relay).unwrap();
        let full = message.iter().filter(|seed| FromManager::decode(&seed[..]).is_ok()).count();
        assert!(full >= 10, "{full}");
    }
}
