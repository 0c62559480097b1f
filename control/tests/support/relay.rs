//! Managers' and workers' agents as far as the relay goes, in one process over loopback.
#![allow(dead_code, reason = "not every test file uses everything")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use control::{
    certs::{Credentials, Files, Reloading},
    relay::{
        PathNews,
        client::{self, Manager, Trust, Views},
        server::{self, Registry, Sessions},
    },
    source::Live,
    state_dir::{RELAY_REPORTS, StateDir},
};
use hiveway_core::{
    Model,
    docker_api::Loaded,
    merge::{LocalView, Report, Reports, merge},
    table,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::swarm_ca::{Ca, Spec, manager, worker};

/// A swarm of three nodes, m a manager, each with a task of service web.
pub(crate) const TABLE: &str = r#"
version: 1
nodes:
  - {id: m, hostname: m, address: 192.0.2.1}
  - {id: w1, hostname: w1, address: 192.0.2.2}
  - {id: w2, hostname: w2, address: 192.0.2.3}
networks:
  - {id: ing, name: ingress, ingress: true, subnets: [{subnet: 10.0.0.0/24, gateway: 10.0.0.1, vni: 4096}]}
  - {id: app, name: app, subnets: [{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]}
services:
  - {id: web, name: web, virtual_ips: {app: 10.0.1.2, ing: 10.0.0.5}, ports: [{target_port: 80, published_port: 8080}],
     labels: {secret: password}}
tasks:
  - {id: t1, service_id: web, node_id: w1, state: running, desired_state: running, addresses: {app: 10.0.1.3, ing: 10.0.0.6}}
  - {id: t2, service_id: web, node_id: w2, state: running, desired_state: running, addresses: {app: 10.0.1.4, ing: 10.0.0.7}}
"#;

pub(crate) fn table() -> Model {
    table::parse_file(TABLE, std::path::Path::new("t.yaml")).unwrap().model
}

pub(crate) fn loaded(model: Model) -> Arc<Loaded> {
    Arc::new(Loaded { model, data_path_port: NonZeroU16::new(4790), ..Loaded::default() })
}

/// A manager's agent.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) files: Files,
    /// The manager's own table, before reports.
    pub(crate) base: watch::Sender<Live>,
    pub(crate) reports: watch::Receiver<Arc<Reports>>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) registry: Arc<Registry>,
    tasks: Vec<JoinHandle<()>>,
    reloading: Option<Reloading>,
}

impl Server {
    pub(crate) async fn start(ca: &Ca, spec: &Spec<'_>, directory: PathBuf) -> Self {
        Self::start_at(ca, spec, directory, "127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(ca: &Ca, spec: &Spec<'_>, directory: PathBuf, at: SocketAddr) -> Self {
        let files = ca.issue(&directory, spec);
        let reloading = Reloading::start(files.clone()).unwrap();
        let (base, mut bases) = watch::channel(Live::current(loaded(table()), "test"));
        let (effective, reports) = watch::channel(Arc::new(Reports::new()));
        let registry = Arc::new(Registry::open(Some(&directory.join(RELAY_REPORTS)), effective));
        registry.keep_in(StateDir::open(&directory).unwrap());
        let (merged, table) = watch::channel(Arc::new(Live::default()));
        let mut news = reports.clone();
        let supervisor = tokio::spawn(async move {
            loop {
                let mut live = bases.borrow_and_update().clone();
                let now = news.borrow_and_update().clone();
                live.table = live.table.map(|table| Arc::new(merge(&table, &LocalView::default(), Some(&now))));
                merged.send_replace(Arc::new(live));
                let changed =
                    tokio::select! { changed = bases.changed() => changed, changed = news.changed() => changed };
                if changed.is_err() {
                    return;
                }
            }
        });
        let sessions = Arc::new(Sessions::default());
        let parts = server::Parts {
            table,
            credentials: reloading.subscribe(),
            registry: registry.clone(),
            sessions: sessions.clone(),
        };
        // The one that was there before may take a moment to go.
        let listener = loop {
            match TcpListener::bind(at).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move { server::serve(listener, parts).await.unwrap() });
        let tasks = vec![supervisor, serving];
        Self { address, files, base, reports, sessions, registry, tasks, reloading: Some(reloading) }
    }

    pub(crate) fn manager(&self) -> Manager {
        Manager { address: self.address.to_string(), node: None }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Model)) {
        self.base.send_modify(|live| {
            let table = live.table.as_mut().expect("a table");
            change(&mut Arc::make_mut(table).model);
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// An agent's client.
pub(crate) struct Client {
    pub(crate) live: watch::Receiver<Arc<Live>>,
    pub(crate) report: watch::Sender<Option<Report>>,
    pub(crate) paths: watch::Sender<Arc<PathNews>>,
    pub(crate) place: watch::Sender<Option<Ipv4Addr>>,
    pub(crate) managers: watch::Sender<Vec<Manager>>,
    pub(crate) views: Arc<Views>,
    pub(crate) files: Files,
    _wanted: watch::Sender<bool>,
    _credentials: watch::Sender<Arc<Credentials>>,
    task: JoinHandle<()>,
}

impl Client {
    pub(crate) fn start(files: Files, managers: Vec<Manager>) -> Self {
        let (_credentials, credentials) = watch::channel(Arc::new(Credentials::load(&files).unwrap()));
        let (managers, listed) = watch::channel(managers);
        let (report, reported) = watch::channel(None);
        let (paths, path_news) = watch::channel(Arc::default());
        let (place, placed) = watch::channel(None);
        let (_wanted, wanted) = watch::channel(true);
        let (relayed, live) = watch::channel(Arc::new(Live::default()));
        let views = Arc::<Views>::default();
        let parts = client::Parts {
            credentials,
            managers: listed,
            trust: watch::Sender::new(Trust::Listed).subscribe(),
            report: reported,
            paths: path_news,
            place: placed,
            wanted,
            relayed,
            views: views.clone(),
        };
        let task = tokio::spawn(client::run(parts));
        Self { live, report, paths, place, managers, views, files, _wanted, _credentials, task }
    }

    pub(crate) fn of(ca: &Ca, directory: PathBuf, node: &str, servers: &[&Server]) -> Self {
        Self::start(ca.issue(&directory, &worker(node)), servers.iter().map(|server| server.manager()).collect())
    }

    /// Waits until what this node knows is as told.
    pub(crate) async fn until(&mut self, what: &str, is: impl Fn(&Live) -> bool) -> Arc<Live> {
        until(&mut self.live, what, |live| is(live)).await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits until the value is as told; returns it.
pub(crate) async fn until<T: Clone + std::fmt::Debug>(
    receiver: &mut watch::Receiver<T>,
    what: &str,
    is: impl Fn(&T) -> bool,
) -> T {
    let found = tokio::time::timeout(Duration::from_secs(20), receiver.wait_for(|value| is(value))).await;
    let found = found.ok().map(|value| value.unwrap().clone());
    found.unwrap_or_else(|| panic!("not within 20 s: {what}; it is {:?}", receiver.borrow()))
}

/// Waits until a condition holds that nobody announces; returns how long it took.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}

/// What a manager is called in most tests.
pub(crate) fn m() -> Spec<'static> {
    manager("m")
}

pub(crate) fn model(live: &Live) -> Option<&Model> {
    Some(&live.table.as_ref()?.model)
}

/// Peers that are not ours.
pub(crate) mod raw {
    use super::*;
    use hyper_util::rt::TokioIo;
    use tokio::net::TcpStream;
    use tokio_rustls::{TlsConnector, client::TlsStream};
    use tonic::transport::{Channel, Endpoint};

    /// A TLS connection with these certificates.
    pub(crate) async fn tls(files: &Files, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let credentials = Credentials::load(files).unwrap();
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(credentials.client.clone()).connect(control::certs::server_name(), stream).await
    }

    /// A gRPC channel on one.
    pub(crate) async fn channel(files: &Files, address: SocketAddr) -> Result<Channel, tonic::transport::Error> {
        let tls = Arc::new(tokio::sync::Mutex::new(Some(TokioIo::new(tls(files, address).await.unwrap()))));
        let connector = tower::service_fn(move |_| {
            let tls = tls.clone();
            async move { tls.lock().await.take().ok_or_else(|| std::io::Error::other("used up")) }
        });
        Endpoint::from_static("http://swarm-manager")
            .initial_stream_window_size(65_535)
            .connect_with_connector(connector)
            .await
    }

    fn builder(files: &Files) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = control::certs::root_store(&files.ca).unwrap();
        rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
    }

    /// TLS with a certificate that `Credentials` might not load.
    pub(crate) fn with_certificate(files: &Files) -> rustls::ClientConfig {
        let blocks = |path| pem::parse_many(std::fs::read(path).unwrap()).unwrap();
        let chain = blocks(&files.cert).into_iter().map(|block| block.into_contents().into()).collect();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(blocks(&files.key).remove(0).into_contents());
        builder(files).with_client_auth_cert(chain, key.into()).unwrap()
    }

    /// TLS without one.
    pub(crate) fn without_certificate(files: &Files) -> rustls::ClientConfig {
        builder(files).with_no_client_auth()
    }

    /// Such a client is refused in the handshake; with TLS 1.3 it learns of it when it reads.
    pub(crate) async fn refused_as(mut config: rustls::ClientConfig, server: &Server) {
        use tokio::io::AsyncReadExt;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(server.address).await.unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(control::certs::server_name(), stream);
        if let Ok(mut tls) = connecting.await {
            // A server that had let it in would send its settings.
            let read = tokio::time::timeout(Duration::from_secs(10), tls.read(&mut [0; 64])).await.expect("an end");
            assert!(!matches!(read, Ok(1..)), "it was let in");
        }
    }
}
