//! The order in which restrictions of published ports are written. Needs root.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, lpm_trie::Key};
use dataplane::Dataplane;
use dataplane_common::{
    config::Config,
    service::{AllowPrefix, Backend, PortKey, SetWord, port_flag},
    state::{MapState, SetKey},
};
use support::{attached::options, sandbox::sandbox};
use zerocopy::IntoBytes as _;

const PORT: PortKey = PortKey { proto: 6, _pad: 0, port: 8080u16.to_be_bytes() };
const FRIEND: [u8; 4] = [198, 51, 100, 7];

/// A port with one backend for all, or two for a friend alone.
fn state(restricted: bool) -> MapState {
    let mut state = MapState { config: Config { underlay_mtu: 1500, ..Config::default() }, ..MapState::default() };
    let backends = (0..1 + u8::from(restricted)).map(|i| Backend { tag: [i + 1; 8], ip: [10, 0, 0, i], vtep: [0; 4] });
    state.sets.insert(SetKey::Port { proto: PORT.proto, port: PORT.port }, backends.collect());
    if restricted {
        state.restricted.insert(PORT);
        state.allow.insert((64, AllowPrefix { port: PORT, ip: FRIEND }));
    }
    state
}

/// Looks, while the port is switched to and fro, whether its restricted backends are ever open to all, and whether the
/// friend is ever shut out.
#[test]
fn a_port_is_restricted_before_its_backends_are_published() -> Result<()> {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::open(&options(bpffs))?;
        dataplane.apply(&state(true))?;
        let pin = |map: &str| MapData::from_pin(bpffs.join("hiveway/maps").join(map));
        let ports: HashMap<_, [u8; 4], [u8; 8]> = Map::HashMap(pin("PORTS")?).try_into()?;
        let sets: Array<_, u64> = Map::Array(pin("SETS")?).try_into()?;
        let allow: LpmTrie<_, [u8; 8], u32> = Map::LpmTrie(pin("ALLOW")?).try_into()?;
        let port: [u8; 4] = PORT.as_bytes().try_into()?;
        let mut friend = [0; 8];
        friend.copy_from_slice(AllowPrefix { port: PORT, ip: FRIEND }.as_bytes());

        let over = AtomicBool::new(false);
        let (over, ports, sets, allow) = (&over, &ports, &sets, &allow);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(move || -> Result<(usize, usize)> {
                let (mut secret, mut shut) = (0, 0);
                let id = u32::from_ne_bytes(ports.get(&port, 0)?[..4].try_into()?);
                while !over.load(Ordering::Relaxed) {
                    // What is seen between two readings of one generation was so while that generation was in force.
                    let before = sets.get(&id, 0)?;
                    let open = ports.get(&port, 0)?[4] & port_flag::RESTRICTED == 0;
                    let same = sets.get(&id, 0)? == before;
                    if same && SetWord::unpack(before).count == 2 {
                        ensure!(!open, "the restricted backends are open to all");
                        secret += 1;
                    }
                    let restricted = ports.get(&port, 0)?[4] & port_flag::RESTRICTED != 0;
                    let allowed = allow.get(&Key::new(64, friend), 0).is_ok();
                    let still = ports.get(&port, 0)?[4] & port_flag::RESTRICTED != 0;
                    let now = sets.get(&id, 0)?;
                    if restricted && still && now == before {
                        ensure!(allowed, "the friend is shut out");
                        shut += 1;
                    }
                }
                Ok((secret, shut))
            });
            for round in 0..1000 {
                let changes = dataplane.apply(&state(round % 2 == 1))?;
                ensure!(changes.failures.is_empty(), "{:?}", changes.failures);
                if watcher.is_finished() {
                    break;
                }
            }
            over.store(true, Ordering::Relaxed);
            let (secret, shut) = watcher.join().expect("the watcher does not panic")?;
            ensure!(secret > 0 && shut > 0, "nothing was looked at: {secret}, {shut}");
            Ok(())
        })
    })
}
