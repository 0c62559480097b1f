//! A manager's control socket: lists and pushes what it is told to.
#![allow(dead_code, reason = "not every test file uses everything")]

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use control::{certs::Files, swarm::Manager};
use hiveway_proto::swarm::{
    control_server::{Control, ControlServer},
    watch_message::Event,
    watch_server::{Watch, WatchServer},
    *,
};
use tokio::{io, net::UnixListener, sync::mpsc, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, transport::Server};

use super::swarm_ca::{Ca, manager};

/// What the swarm is.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) nodes: Vec<Node>,
    pub(crate) networks: Vec<Network>,
    pub(crate) services: Vec<Service>,
    pub(crate) tasks: Vec<Task>,
    /// Lists of all tasks do not fit a message.
    pub(crate) too_many: bool,
    watchers: Vec<mpsc::Sender<Result<WatchMessage, Status>>>,
    /// Times that everything was listed.
    pub(crate) listed: usize,
}

/// Shared by its connections.
#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<Objects>>);

pub(crate) struct FakeManager {
    pub(crate) swarm: Shared,
    directory: tempfile::TempDir,
    serving: Vec<JoinHandle<()>>,
}

impl Shared {
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Objects) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    /// Pushes events, as one transaction.
    pub(crate) fn push(&self, events: Vec<(u32, object::Kind)>) {
        let event = |(action, kind)| Event { action, object: Some(Object { kind: Some(kind) }) };
        let message = WatchMessage { events: events.into_iter().map(event).collect() };
        self.with(|objects| objects.watchers.retain(|watcher| watcher.try_send(Ok(message.clone())).is_ok()));
    }

    /// Ends all streams, as a manager does that is demoted.
    pub(crate) fn end_streams(&self) {
        self.with(|objects| objects.watchers.clear());
    }
}

impl FakeManager {
    pub(crate) fn start() -> Self {
        let mut fake = Self { swarm: Shared::default(), directory: tempfile::tempdir().unwrap(), serving: Vec::new() };
        std::fs::create_dir(fake.path("certificates")).unwrap();
        let ca = Ca::new();
        fake.trust(&ca);
        fake.serve(&ca);
        fake
    }

    /// What `--swarm-dir` names; the control socket is `control.sock` in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the client is to be told.
    pub(crate) fn manager(&self) -> Manager {
        Manager::new(&self.path("control.sock"), self.directory.path())
    }

    /// The root certificate that the client finds.
    pub(crate) fn trust(&self, ca: &Ca) {
        std::fs::write(self.path("certificates/swarm-root-ca.crt"), &ca.pem).unwrap();
    }

    /// Dies as a killed process does: connections break.
    pub(crate) fn die(&mut self) {
        self.serving.drain(..).for_each(|task| task.abort());
        self.swarm.end_streams();
        let _ = std::fs::remove_file(self.path("control.sock"));
    }

    /// Serves with a certificate of `ca`.
    pub(crate) fn serve(&mut self, ca: &Ca) {
        let scratch = tempfile::tempdir().unwrap();
        let config = server_config(&ca.issue(scratch.path(), &manager("m1")));
        let (connections, incoming) = mpsc::channel(8);
        let listening = listen(self.path("control.sock"), config.into(), connections);
        let services = Server::builder()
            .add_service(WatchServer::new(self.swarm.clone()))
            .add_service(ControlServer::new(self.swarm.clone()).max_encoding_message_size(usize::MAX));
        let serving = services.serve_with_incoming(ReceiverStream::new(incoming));
        self.serving.push(tokio::spawn(async move {
            tokio::select! {
                result = serving => result.unwrap(),
                () = listening => {}
            }
        }));
    }
}

/// No certificate is asked for.
fn server_config(files: &Files) -> rustls::ServerConfig {
    let read = |path| pem::parse_many(std::fs::read(path).unwrap()).unwrap().into_iter().map(pem::Pem::into_contents);
    let key = read(&files.key).next().unwrap().try_into().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let chain = read(&files.cert).map(Into::into).collect();
    let mut config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Hands on connections; all break when this is dropped.
async fn listen(
    socket: PathBuf,
    config: Arc<rustls::ServerConfig>,
    connections: mpsc::Sender<io::Result<io::DuplexStream>>,
) {
    let listener = UnixListener::bind(socket).unwrap();
    let mut bridges = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, connections) = (TlsAcceptor::from(config.clone()), connections.clone());
        bridges.spawn(async move {
            let Ok(mut tls) = acceptor.accept(stream).await else { return };
            let (mut ours, theirs) = io::duplex(1 << 16);
            let _ = connections.send(Ok(theirs)).await;
            let _ = io::copy_bidirectional(&mut tls, &mut ours).await;
        });
    }
}

#[tonic::async_trait]
impl Watch for Shared {
    type WatchStream = ReceiverStream<Result<WatchMessage, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let entries = request.into_inner().entries;
        let kinds: Vec<_> = entries.iter().map(|entry| (entry.kind.as_str(), entry.action)).collect();
        assert_eq!(kinds, [("node", 7), ("network", 7), ("service", 7), ("task", 7)]);
        let (sender, receiver) = mpsc::channel(64);
        sender.try_send(Ok(WatchMessage::default())).unwrap();
        self.with(|objects| objects.watchers.push(sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl Control for Shared {
    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        Ok(Response::new(ListNodesResponse { nodes: self.with(|objects| objects.nodes.clone()) }))
    }

    async fn list_networks(&self, _: Request<ListNetworksRequest>) -> Result<Response<ListNetworksResponse>, Status> {
        Ok(Response::new(ListNetworksResponse { networks: self.with(|objects| objects.networks.clone()) }))
    }

    async fn list_services(&self, _: Request<ListServicesRequest>) -> Result<Response<ListServicesResponse>, Status> {
        Ok(Response::new(ListServicesResponse { services: self.with(|objects| objects.services.clone()) }))
    }

    async fn list_tasks(&self, request: Request<ListTasksRequest>) -> Result<Response<ListTasksResponse>, Status> {
        let prefixes = request.into_inner().filters.map(|filters| filters.id_prefixes).unwrap_or_default();
        self.with(|objects| {
            if prefixes.is_empty() && objects.too_many {
                return Err(Status::resource_exhausted("grpc: received message larger than max"));
            }
            objects.listed += usize::from(prefixes.is_empty());
            let wanted =
                |task: &&Task| prefixes.is_empty() || prefixes.iter().any(|prefix| task.id.starts_with(prefix));
            let tasks = objects.tasks.iter().filter(wanted).cloned().collect();
            Ok(Response::new(ListTasksResponse { tasks }))
        })
    }
}

/// Waits for something; longer than any test should take.
pub(crate) async fn soon<T>(what: &str, happens: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(Duration::from_secs(30), happens).await;
    result.unwrap_or_else(|_| panic!("not within 30 s: {what}"))
}
