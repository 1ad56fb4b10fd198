//! The cloud's side for one simulated box: the real receiver, and a database that commits what has come.

use weir_logic::block::BlockHeader;
use weir_logic::ids::BlockKey;
use weir_logic::receive::{self, Known, Now, SessionId};
use weir_logic::store::SeqRange;
use weir_logic::wire::{self, Body};

use super::super::transport::Arrived;
use super::{Event, Fact, SINK_US, UNIX_US, World};

impl World<'_> {
    pub(super) fn at_cloud(&mut self, at: usize, arrived: Arrived) {
        let session = SessionId(self.ways[at].connection);
        match arrived {
            Arrived::Control(bytes) => {
                self.ways[at].to_cloud.extend_from_slice(&bytes);
                while let Ok(Some(message)) = wire::take_control(&mut self.ways[at].to_cloud) {
                    match message.body {
                        Some(Body::Digest(digest)) if self.digests.is_some() => {
                            if let Some(digests) = &mut self.digests {
                                digests.push((self.now_us, digest.digest));
                            }
                        }
                        Some(Body::Hello(hello)) => {
                            self.cloud(receive::Input::Hello { session, hello, known: Known::default() });
                        }
                        Some(body) => self.cloud(receive::Input::Control { session, body }),
                        None => {}
                    }
                }
            }
            Arrived::Block(stream, block) => {
                let header = BlockHeader::parse(&block).expect("blocks arrive whole");
                self.cloud(receive::Input::Block { session, stream, header, block });
            }
        }
    }

    pub(super) fn cloud(&mut self, input: receive::Input) {
        let now = Now { mono_us: self.now_us, unix_us: UNIX_US + self.now_us as i64 };
        self.receiver.handle(now, input);
        while let Some(output) = self.receiver.poll() {
            match output {
                receive::Output::Send { session, mut body } => {
                    if let Body::Welcome(welcome) = &mut body {
                        welcome.last_stamp = self.last_stamp;
                    }
                    if let Some(at) = self.ways.iter().position(|way| way.connection == session.0) {
                        self.say(at, body);
                    }
                }
                receive::Output::Store(store) => {
                    self.tell(Fact::Stored(&store));
                    let key = store.header.key;
                    let range = |&(first_seq, last_seq): &(u64, u64)| SeqRange { key: BlockKey { first_seq, ..key }, last_seq };
                    self.jobs.extend(store.takes.iter().map(range));
                    self.commit_soon();
                }
                receive::Output::StoreVoid(void) => {
                    // It may have been told before it was written.
                    self.tell(Fact::GaveUp(&void));
                    self.jobs.push(SeqRange { key: void.key, last_seq: void.last_seq });
                    self.commit_soon();
                }
                receive::Output::Close { .. }
                | receive::Output::EpochOpened { .. }
                | receive::Output::EpochsClosed { .. }
                | receive::Output::Alert(_) => {}
            }
        }
    }

    fn commit_soon(&mut self) {
        if !std::mem::replace(&mut self.sink_due, true) {
            self.push(self.now_us + SINK_US, None, Event::Sink);
        }
    }
}
