//! Who a client is: its password or certificate against the configured users, on a thread of its own.
//!
//! One argon2id check takes tens of milliseconds and 19 MiB, so they run one after the other, and a password that was right
//! once in this process is recognised by a keyed digest from then on: a thousand sensors that reconnect do not wait for
//! each other for a minute.

use std::collections::HashMap;
use std::io;

use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use weir_logic::ingest::ConnId;
use weir_logic::mqtt::{AuthRefusal, UserIndex};

use super::Message;
use crate::config::{User, verify};

/// What a client showed.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) conn: ConnId,
    pub(crate) listener: usize,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Vec<u8>>,
    pub(crate) certificate: Option<Vec<u8>>,
}

/// Who is let in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Users {
    /// The index is the `UserIndex`.
    pub(crate) users: Vec<User>,
    /// The user that anonymous clients are, by listener.
    pub(crate) anonymous: Vec<Option<UserIndex>>,
}

/// Clients that may wait for a check; more are told to try again later.
const QUEUE_LEN: usize = 1_024;

/// Starts the thread; it ends when the returned sender is dropped.
///
/// # Errors
/// If the system has no thread or no random bytes left.
pub(crate) fn spawn(users: Users, messages_tx: mpsc::Sender<Message>) -> io::Result<mpsc::Sender<Credentials>> {
    let (credentials_tx, mut credentials_rx) = mpsc::channel::<Credentials>(QUEUE_LEN);
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    let mut desk = Desk { users, key, known: HashMap::new() };
    std::thread::Builder::new().name("auth".to_owned()).spawn(move || {
        while let Some(credentials) = credentials_rx.blocking_recv() {
            let result = desk.check(&credentials);
            if messages_tx.blocking_send(Message::Authenticated { conn: credentials.conn, result }).is_err() {
                return;
            }
        }
    })?;
    Ok(credentials_tx)
}

struct Desk {
    users: Users,
    key: [u8; 32],
    /// Digests of passwords that were right, one a user.
    known: HashMap<UserIndex, [u8; 32]>,
}

impl Desk {
    fn check(&mut self, credentials: &Credentials) -> Result<UserIndex, AuthRefusal> {
        if let Some(name) = &credentials.username {
            let position = self.users.users.iter().position(|user| user.name == *name && user.password_hash.is_some());
            let (Some(position), Some(password)) = (position, &credentials.password) else {
                return Err(AuthRefusal::BadCredentials);
            };
            return self.check_password(UserIndex(position as u16), password);
        }
        if let Some(certificate) = &credentials.certificate {
            let name = weir_host::tls::subject_name(certificate);
            let is_user = |user: &User| name.is_some() && user.certificate_cn == name;
            if let Some(position) = self.users.users.iter().position(is_user) {
                return Ok(UserIndex(position as u16));
            }
        }
        self.users.anonymous.get(credentials.listener).copied().flatten().ok_or(AuthRefusal::NotAuthorised)
    }

    fn check_password(&mut self, user: UserIndex, password: &[u8]) -> Result<UserIndex, AuthRefusal> {
        let mut digest = Sha256::new();
        digest.update(self.key);
        digest.update(user.0.to_le_bytes());
        digest.update(password);
        let digest: [u8; 32] = digest.finalize().into();
        // The key is secret, so that the time this comparison takes says nothing about the password.
        if self.known.get(&user) == Some(&digest) {
            return Ok(user);
        }
        if !verify(self.users.users[usize::from(user.0)].password_hash.as_ref(), password) {
            return Err(AuthRefusal::BadCredentials);
        }
        self.known.insert(user, digest);
        Ok(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::hash_password;

    fn desk() -> Desk {
        let user = |name: &str, password_hash| User { name: name.to_owned(), password_hash, ..User::default() };
        let hash = hash_password(b"secret").expect("hashing works");
        let users = Users { users: vec![user("", None), user("pump", Some(hash))], anonymous: vec![None, Some(UserIndex(0))] };
        Desk { users, key: [7; 32], known: HashMap::new() }
    }

    fn credentials(listener: usize, username: Option<&str>, password: Option<&str>) -> Credentials {
        Credentials {
            conn: ConnId(1),
            listener,
            username: username.map(str::to_owned),
            password: password.map(|p| p.as_bytes().to_vec()),
            certificate: None,
        }
    }

    #[test]
    fn a_password_is_checked_once_and_recognised_after_that() {
        let mut desk = desk();
        assert_eq!(desk.check(&credentials(0, Some("pump"), Some("wrong"))), Err(AuthRefusal::BadCredentials));
        assert!(desk.known.is_empty());
        assert_eq!(desk.check(&credentials(0, Some("pump"), Some("secret"))), Ok(UserIndex(1)));
        assert_eq!(desk.known.len(), 1);
        assert_eq!(desk.check(&credentials(0, Some("pump"), Some("secret"))), Ok(UserIndex(1)));
        assert_eq!(desk.check(&credentials(0, Some("pump"), Some("wrong"))), Err(AuthRefusal::BadCredentials));
        assert_eq!(desk.check(&credentials(0, Some("pump"), None)), Err(AuthRefusal::BadCredentials));
        assert_eq!(desk.check(&credentials(0, Some("nobody"), Some("secret"))), Err(AuthRefusal::BadCredentials));
    }

    #[test]
    fn anonymous_clients_are_let_in_only_where_allowed() {
        let mut desk = desk();
        assert_eq!(desk.check(&credentials(0, None, None)), Err(AuthRefusal::NotAuthorised));
        assert_eq!(desk.check(&credentials(1, None, None)), Ok(UserIndex(0)));
        // A name without a password hash cannot be claimed.
        assert_eq!(desk.check(&credentials(1, Some(""), Some(""))), Err(AuthRefusal::BadCredentials));
    }
}
