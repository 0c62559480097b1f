//! The swarm's certificates: read, believed, renewed.

#[path = "support/swarm_ca.rs"]
mod swarm_ca;

use std::{fs, time::Duration};

use control::certs::{CertError, Credentials, Files, Identity, Reloading, Role, root_store};
use rustls::pki_types::{CertificateDer, UnixTime};
use swarm_ca::{Ca, Spec, manager, replace, worker};

fn load(ca: &Ca, spec: &Spec<'_>) -> Credentials {
    let scratch = tempfile::tempdir().unwrap();
    Credentials::load(&ca.issue(scratch.path(), spec)).unwrap_or_else(|error| panic!("{spec:?}: {error}"))
}

fn chain(ca: &Ca, spec: &Spec<'_>) -> Vec<CertificateDer<'static>> {
    let scratch = tempfile::tempdir().unwrap();
    let text = fs::read(ca.issue(scratch.path(), spec).cert).unwrap();
    pem::parse_many(text).unwrap().into_iter().map(|block| block.into_contents().into()).collect()
}

#[test]
fn who_a_certificate_is_for() {
    let ca = Ca::new();
    let me = load(&ca, &manager("n18dc451cp417dtmz21ng34qj")).me;
    assert_eq!(
        (me.node.as_str(), me.role, me.cluster.as_str()),
        ("n18dc451cp417dtmz21ng34qj", Role::Manager, "cluster1")
    );
    let expected = (UnixTime::now().as_secs() + 90 * 86400) as i64;
    assert!((expected - 60..=expected).contains(&me.expires), "{} {expected}", me.expires);
    assert_eq!(load(&ca, &worker("w")).me.role, Role::Worker);
    for (role, why) in [("client", "OU is"), ("", "OU is")] {
        let der = chain(&ca, &Spec { role, ..worker("w") }).remove(0);
        let error = Identity::of(&der).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    assert!(Identity::of(b"garbage").is_err());
    let nameless = chain(&ca, &worker("")).remove(0);
    assert!(Identity::of(&nameless).unwrap_err().contains("exactly one CN"));
}

#[test]
fn only_the_swarms_own_certificates_are_believed() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let here = load(&ca, &manager("m"));
    let now = UnixTime::now();
    assert_eq!(here.still_trusts(&chain(&ca, &worker("w")), now), Ok(()));
    assert!(here.still_trusts(&chain(&foreign, &worker("w")), now).is_err());
    assert!(here.still_trusts(&[], now).is_err());
    let brief = chain(&ca, &Spec { valid_for: Duration::from_secs(60), ..worker("w") });
    assert_eq!(here.still_trusts(&brief, now), Ok(()));
    let later = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + 61));
    assert!(here.still_trusts(&brief, later).is_err(), "expired");
}

#[test]
fn a_rotation_of_the_root_ca_interrupts_nobody() {
    let (old, new) = (Ca::new(), Ca::new());
    let scratch = tempfile::tempdir().unwrap();
    let now = UnixTime::now();
    let cross = old.cross_sign(&new);
    let renewed = chain(&new, &Spec { intermediates: &cross, ..worker("w") });
    assert_eq!(load(&old, &manager("m")).still_trusts(&renewed, now), Ok(()), "through the cross-signed root");
    assert_eq!(load(&new, &manager("m")).still_trusts(&renewed, now), Ok(()), "directly");

    // Both roots in one file.
    let files = old.issue(scratch.path(), &manager("m"));
    replace(&files.ca, &(old.pem.clone() + &new.pem));
    assert_eq!(root_store(&files.ca).unwrap().len(), 2);
    let both = Credentials::load(&files).unwrap();
    assert_eq!(both.still_trusts(&chain(&old, &worker("w")), now), Ok(()));
    assert_eq!(both.still_trusts(&chain(&new, &worker("w")), now), Ok(()));
    assert!(load(&new, &manager("m")).still_trusts(&chain(&old, &worker("w")), now).is_err(), "after it");
}

#[test]
fn broken_files_are_named() {
    let ca = Ca::new();
    let scratch = tempfile::tempdir().unwrap();
    let files = ca.issue(scratch.path(), &manager("m"));
    let other = ca.issue(&scratch.path().join("other"), &manager("m"));
    let mixed = Files { key: other.key.clone(), ..files.clone() };
    assert!(matches!(Credentials::load(&mixed), Err(CertError::Unusable { .. })), "another certificate's key");
    replace(&other.ca, "nothing");
    let why = Credentials::load(&Files { ca: other.ca, ..files.clone() }).unwrap_err().to_string();
    assert!(why.contains("swarm-root-ca.crt") && why.contains("no certificate"), "{why}");
    let key_as_ca = Files { ca: files.key.clone(), ..files };
    assert!(Credentials::load(&key_as_ca).is_err());
}

#[tokio::test]
async fn renewed_certificates_are_noticed_and_broken_ones_change_nothing() {
    let ca = Ca::new();
    let scratch = tempfile::tempdir().unwrap();
    let files = ca.issue(scratch.path(), &worker("w"));
    let reloading = Reloading::start(files.clone()).unwrap();
    let mut current = reloading.subscribe();
    assert_eq!(current.borrow_and_update().me.role, Role::Worker);

    // Half of a renewal: the key is another one's already.
    let next = ca.issue(&scratch.path().join("next"), &manager("w"));
    replace(&files.key, &fs::read_to_string(&next.key).unwrap());
    let unchanged = tokio::time::timeout(Duration::from_secs(3), current.changed()).await;
    assert!(unchanged.is_err(), "the last good ones stay");
    replace(&files.cert, &fs::read_to_string(&next.cert).unwrap());
    tokio::time::timeout(Duration::from_secs(30), current.changed()).await.expect("noticed").unwrap();
    assert_eq!(current.borrow().me.role, Role::Manager);
}
