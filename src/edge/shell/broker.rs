//! The shell of connections to brokers: DNS, TCP and TLS. Once made, a connection is served as a client's is: `listen::client`.

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Duration, timeout};
use tokio_rustls::TlsConnector;
use weir_host::tls::{self, Credentials, TlsError, TrustRoots};
use weir_logic::ingest::BrokerIndex;
use weir_logic::mqtt::Secret;

use super::Message;
use super::listen::{self, ListenCounters};
use crate::config::{Broker, BrokerTls, PASSWORD_LEN_MAX};

/// Where a broker is, and how it is reached.
#[derive(Clone)]
pub(crate) struct BrokerTarget {
    pub(crate) name: String,
    pub(crate) class: &'static str,
    address: String,
    server_name: String,
    tls: Option<TlsConnector>,
}

/// Time to resolve a broker's name, connect, and shake hands.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

impl BrokerTarget {
    /// Reads the certificates.
    ///
    /// # Errors
    /// Those that cannot be used.
    pub(crate) fn new(broker: &Broker, class: &'static str) -> Result<Self, TlsError> {
        Ok(BrokerTarget {
            name: broker.name.clone(),
            class,
            address: broker.address.clone(),
            server_name: broker.certificate_name().to_owned(),
            tls: broker.tls.as_ref().map(connector).transpose()?,
        })
    }

    /// Connects, and serves the connection until either side ends it.
    pub(crate) async fn run(
        self: Arc<Self>,
        broker: BrokerIndex,
        generation: u64,
        messages_tx: mpsc::Sender<Message>,
        counters: Arc<ListenCounters>,
    ) {
        let failed = |reason: String| Message::BrokerFailed { broker, generation, reason };
        let stream = match timeout(CONNECT_LIMIT, self.tcp()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(err)) => return drop(messages_tx.send(failed(format!("cannot connect to {}: {err}", self.address))).await),
            Err(_) => {
                let reason = format!("cannot connect to {} within {} s", self.address, CONNECT_LIMIT.as_secs());
                return drop(messages_tx.send(failed(reason)).await);
            }
        };
        let opened = |commands_tx, opened_tx| Message::BrokerOpened { broker, generation, commands_tx, opened_tx };
        let Some(tls) = &self.tls else {
            return listen::client(stream, opened, messages_tx, &counters).await;
        };
        let shaken = match self.server_name.clone().try_into() {
            Ok(name) => timeout(CONNECT_LIMIT, tls.connect(name, stream)).await,
            Err(_) => {
                let reason = format!("`{}` is not a name that a certificate can have", self.server_name);
                return drop(messages_tx.send(failed(reason)).await);
            }
        };
        match shaken {
            Ok(Ok(stream)) => listen::client(stream, opened, messages_tx, &counters).await,
            Ok(Err(err)) => drop(messages_tx.send(failed(format!("TLS with {} failed: {err}", self.address))).await),
            Err(_) => drop(messages_tx.send(failed(format!("TLS with {} took too long", self.address))).await),
        }
    }

    async fn tcp(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

fn connector(config: &BrokerTls) -> Result<TlsConnector, TlsError> {
    let roots = TrustRoots::load(&config.ca)?;
    let pair = config.cert.as_ref().zip(config.key.as_ref());
    let credentials = pair.map(|(cert, key)| Credentials::load(cert, key)).transpose()?;
    Ok(TlsConnector::from(Arc::new(tls::guest_config(credentials.as_ref(), &roots)?)))
}

/// The password of a broker, from its file.
///
/// # Errors
/// A file that cannot be read, or is too long.
pub(crate) fn password(broker: &Broker) -> io::Result<Option<Secret>> {
    let Some(file) = &broker.password_file else { return Ok(None) };
    let mut bytes = std::fs::read(file)?;
    if bytes.len() as u64 > PASSWORD_LEN_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {PASSWORD_LEN_MAX} bytes")));
    }
    // Editors end a file with a line break.
    let len = bytes.trim_ascii_end().len();
    if bytes[len..].iter().all(|byte| matches!(byte, b'\n' | b'\r')) {
        bytes.truncate(len);
    }
    Ok(Some(Secret::new(&bytes)))
}
