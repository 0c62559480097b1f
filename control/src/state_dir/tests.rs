use super::*;

#[test]
fn what_was_written_is_read_and_removed() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("state");
    let state = StateDir::open(&path).unwrap();
    assert_eq!(state.gateway_addresses().unwrap(), GatewayAddresses::new());
    let addresses = GatewayAddresses::from([("t1".to_owned(), [172, 18, 0, 2].into())]);
    state.set_gateway_addresses(&addresses).unwrap();
    assert_eq!(StateDir::open(&path).unwrap().gateway_addresses().unwrap(), addresses);
    assert!(state.remove().is_empty());
    assert!(!path.exists());
    assert!(state.remove().is_empty(), "a second time is no error");
}

#[test]
fn a_broken_file_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join(ADDRESSES), "{").unwrap();
    let error = StateDir::open(scratch.path()).unwrap().gateway_addresses().unwrap_err().to_string();
    assert!(error.contains(ADDRESSES), "{error}");
}

/// Lets every call that waits for a disk fail, for this thread.
fn without_a_disk_to_wait_for() {
    let allow = libc::SECCOMP_RET_ALLOW;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EIO as u32;
    let statement = |code: u32, k| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut filter = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for call in [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs, libc::SYS_sync] {
        let is = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32);
        filter.push(libc::sock_filter { jf: 1, ..is });
        filter.push(statement(libc::BPF_RET | libc::BPF_K, refuse));
    }
    filter.push(statement(libc::BPF_RET | libc::BPF_K, allow));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the filter is read during the call only, and concerns this thread alone.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// What rounds write.
#[test]
fn a_round_does_not_wait_for_the_disk_and_an_empty_file_is_none() {
    let scratch = tempfile::tempdir().unwrap();
    let state = StateDir::open(scratch.path()).unwrap();
    let sysctls = SysctlState { reserved_ports: BTreeSet::from([80]), ..SysctlState::default() };
    let addresses = GatewayAddresses::from([("t1".to_owned(), [172, 18, 0, 2].into())]);
    std::thread::scope(|scope| {
        let round = scope.spawn(|| {
            without_a_disk_to_wait_for();
            state.set_sysctls(&sysctls).unwrap();
            state.set_offloads(&BTreeSet::new()).unwrap();
            state.set_gateway_addresses(&addresses).unwrap();
            let synced = private::replace_synced(&scratch.path().join("synced"), b"").unwrap_err();
            assert_eq!(synced.raw_os_error(), Some(libc::EIO), "nothing would have been noticed");
        });
        round.join().unwrap();
    });
    assert_eq!((state.sysctls().unwrap(), state.gateway_addresses().unwrap()), (sysctls, addresses));
    for left in [&b""[..], &[0; 100]] {
        for name in [SYSCTLS, OFFLOADS, ADDRESSES] {
            fs::write(scratch.path().join(name), left).unwrap();
        }
        assert_eq!(state.sysctls().unwrap(), SysctlState::default());
        assert_eq!((state.offloads().unwrap().len(), state.gateway_addresses().unwrap().len()), (0, 0));
    }
}

fn last_table() -> Base {
    let text = "version: 1\nnodes: [{id: n1, hostname: one, address: 192.0.2.1}]\nnetworks: [{id: app, name: app, \
                subnets: [{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]}]\n";
    let model = hiveway_core::table::parse_file(text, Path::new("t.yaml")).unwrap().model;
    let table = hiveway_core::docker_api::Loaded { model, ..Default::default() };
    Base { table: table.into(), origin: crate::source::Origin::Relay, node: Some("n1".into()) }
}

#[test]
fn the_last_table_is_kept_and_forgotten() {
    let scratch = tempfile::tempdir().unwrap();
    let state = StateDir::open(scratch.path()).unwrap();
    assert_eq!(state.last_table(), None);
    let base = last_table();
    state.set_last_table(Some(&base)).unwrap();
    assert_eq!(state.last_table(), Some(base));
    fs::write(scratch.path().join(LAST_TABLE), "relay n1\n\u{1}").unwrap();
    assert_eq!(state.last_table(), None);
    state.set_last_table(None).unwrap();
    state.set_last_table(None).unwrap();
    assert!(!scratch.path().join(LAST_TABLE).exists());
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_second_agent_on_one_directory_is_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("state");
    let first = StateDir::take(&path).unwrap();
    let clone = first.clone();
    drop(first);
    let why = StateDir::take(&path).unwrap_err().to_string();
    let want = format!("is the state directory of another agent (pid {})", std::process::id());
    assert!(why.contains(&want), "{why}");
    drop(clone);
    StateDir::take(&path).unwrap();
    assert!(StateDir::take(&path).unwrap().remove().is_empty());
    assert!(!path.exists(), "the lock goes with the directory");
}

#[test]
fn what_an_earlier_version_has_left_open_is_closed() {
    let scratch = tempfile::tempdir().unwrap();
    let (ours, foreign) = (scratch.path().join("ours"), scratch.path().join("foreign"));
    for path in [&ours, &foreign] {
        fs::create_dir(path).unwrap();
        fs::write(path.join(SYSCTLS), "{}").unwrap();
        set_mode(&path.join(SYSCTLS), 0o644);
        set_mode(path, 0o755);
    }
    fs::write(foreign.join("notes.txt"), "mine").unwrap();
    set_mode(&foreign.join("notes.txt"), 0o644);
    for path in [&ours, &foreign] {
        StateDir::open(path).unwrap().set_offloads(&BTreeSet::new()).unwrap();
        assert_eq!((mode(&path.join(SYSCTLS)), mode(&path.join(OFFLOADS))), (0o600, 0o600));
    }
    assert_eq!((mode(&ours), mode(&foreign), mode(&foreign.join("notes.txt"))), (0o700, 0o755, 0o644));
}

/// Everything below the directory.
fn contents(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(path).unwrap().flatten();
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

#[test]
fn what_others_remove_or_damage_while_an_agent_runs_is_written_again() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("state");
    let before = GatewayAddresses::from([("t1".to_owned(), [172, 18, 0, 2].into())]);
    StateDir::open(&path).unwrap().set_gateway_addresses(&before).unwrap();
    let state = StateDir::take(&path).unwrap();
    let originals = BTreeMap::from([("net.ipv4.ip_forward".to_owned(), "0".to_owned())]);
    let sysctls = SysctlState { originals, ..SysctlState::default() };
    state.set_sysctls(&sysctls).unwrap();
    assert_eq!(state.gateway_addresses().unwrap(), before, "what an earlier agent has left is read once");
    let whole = contents(&path);
    assert_eq!(whole.len(), 3, "{whole:?}");
    let damages: [(&str, &dyn Fn()); 4] = [
        ("a file is gone", &|| fs::remove_file(path.join(SYSCTLS)).unwrap()),
        ("a file is empty", &|| fs::write(path.join(ADDRESSES), "").unwrap()),
        ("the lock is gone", &|| fs::remove_file(path.join(LOCK)).unwrap()),
        ("all is gone", &|| fs::remove_dir_all(&path).unwrap()),
    ];
    for (damage, do_it) in damages {
        do_it();
        assert_eq!((state.sysctls().unwrap(), state.gateway_addresses().unwrap()), (sysctls.clone(), before.clone()));
        state.keep().unwrap();
        assert_eq!(contents(&path), whole, "{damage}");
        assert_eq!(mode(&path), 0o700, "{damage}");
        let second = StateDir::take(&path).unwrap_err();
        assert!(matches!(second, StateError::InUse { .. }), "{damage}: {second}");
    }
}

/// What rounds do not look after.
#[test]
fn the_last_table_is_written_again_when_it_is_looked_after() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("state");
    let state = StateDir::take(&path).unwrap();
    let base = last_table();
    let look = || state.write_last_table(Some(&base), Occasion::Look).unwrap();
    state.set_last_table(Some(&base)).unwrap();
    let (file, whole) = (path.join(LAST_TABLE), contents(&path));
    let untouched = Seen::at(&file);
    look();
    assert_eq!(Seen::at(&file), untouched, "nothing is to be done");
    let damages: [(&str, &dyn Fn()); 4] = [
        ("it is gone", &|| fs::remove_file(&file).unwrap()),
        ("it is empty", &|| fs::write(&file, "").unwrap()),
        ("it is another one", &|| fs::write(&file, vec![b'x'; whole[LAST_TABLE].len()]).unwrap()),
        ("all is gone", &|| fs::remove_dir_all(&path).unwrap()),
    ];
    for (damage, do_it) in damages {
        do_it();
        state.keep().unwrap();
        look();
        assert_eq!(contents(&path), whole, "{damage}");
    }
    state.set_last_table(None).unwrap();
    state.write_last_table(None, Occasion::Look).unwrap();
    assert!(!file.exists());
}

#[test]
fn nothing_is_written_into_a_directory_that_is_another_agents_by_now() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("state");
    let state = StateDir::take(&path).unwrap();
    let sysctls = SysctlState { reserved_ports: BTreeSet::from([80]), ..SysctlState::default() };
    state.set_sysctls(&sysctls).unwrap();
    fs::remove_dir_all(&path).unwrap();
    let thief = StateDir::take(&path).unwrap();
    let base = last_table();
    thief.set_last_table(Some(&base)).unwrap();
    let before = contents(&path);
    let written = || Ok(b"{}".to_vec());
    let attempts: [(&str, Result<(), StateError>); 8] = [
        ("files that are gone", state.keep()),
        ("addresses", state.set_gateway_addresses(&GatewayAddresses::new())),
        ("sysctls", state.set_sysctls(&SysctlState::default())),
        ("offloads", state.set_offloads(&BTreeSet::new())),
        ("the last table", state.set_last_table(Some(&base))),
        ("the last table's end", state.set_last_table(None)),
        ("reports", state.write_behind(RELAY_REPORTS, Occasion::News, written)),
        ("reports that are gone", state.write_behind(RELAY_REPORTS, Occasion::Look, written)),
    ];
    for (what, attempt) in attempts {
        assert!(matches!(attempt, Err(StateError::InUse { .. })), "{what}: {attempt:?}");
    }
    assert!(matches!(&state.remove()[..], [StateError::InUse { .. }]), "all of it is removed");
    assert_eq!(contents(&path), before);
    assert_eq!(state.sysctls().unwrap(), sysctls, "what is not written is not remembered either");
    drop(thief);
    state.keep().unwrap();
    assert_eq!(StateDir::existing(&path).unwrap().sysctls().unwrap(), sysctls);
}

#[test]
fn foreign_files_stay() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("notes.txt"), "mine").unwrap();
    let state = StateDir::open(scratch.path()).unwrap();
    assert!(state.remove().is_empty());
    assert!(scratch.path().join("notes.txt").exists());
}
