//! What lies between reader and etcd: it passes bytes on, counts connections, and can be cut.
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::etcd::own_address;

/// A network of one line; gone when dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    open: watch::Sender<bool>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// In front of `target`, open.
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let address = own_address();
        let listener = TcpListener::bind(address).await.unwrap();
        let (open, is_open) = watch::channel(true);
        let connections = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(run(listener, target, is_open, Arc::clone(&connections)));
        Self {
            address,
            open,
            connections,
            _tasks: tasks,
        }
    }

    /// Ends all connections and lets none in.
    pub(crate) fn cut(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.open.send_replace(true);
    }

    /// How many connections there were so far while it was open.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn run(
    listener: TcpListener,
    target: SocketAddr,
    open: watch::Receiver<bool>,
    connections: Arc<AtomicUsize>,
) {
    let mut pipes = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        if *open.borrow() {
            connections.fetch_add(1, Ordering::Relaxed);
            pipes.spawn(pipe(client, target, open.clone()));
        }
        while pipes.try_join_next().is_some() {}
    }
}

/// Until either side ends, or the line is cut.
async fn pipe(mut client: TcpStream, target: SocketAddr, mut open: watch::Receiver<bool>) {
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    tokio::select! {
        done = tokio::io::copy_bidirectional(&mut client, &mut server) => drop(done),
        cut = open.wait_for(|open| !open) => drop(cut),
    }
}
