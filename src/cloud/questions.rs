//! Questions that wait for a gateway's answer: a few for each, and bounded in all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use weir_logic::receive::SessionId;
use weir_logic::wire::{ANSWER_LEN_MAX, GivenAnswer};

use crate::asked::ANSWER_WAIT;

/// Questions that may wait for one gateway, and for all of them.
const PER_GATEWAY_MAX: usize = 4;
const ALL_MAX: usize = 64;

type Waiter = oneshot::Sender<Result<String, String>>;

#[derive(Debug)]
struct Waiting {
    session: SessionId,
    gateway: Arc<str>,
    since: Instant,
    answer_tx: Waiter,
}

/// Those that wait, by their number.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    waiting: BTreeMap<u32, Waiting>,
    last: u32,
}

impl Questions {
    /// Notes a question that is about to be asked on a session; its number, or the way back if there are too many.
    pub(crate) fn add(&mut self, session: SessionId, gateway: &Arc<str>, answer_tx: Waiter) -> Result<u32, Waiter> {
        let of_gateway = self.waiting.values().filter(|waiting| waiting.gateway == *gateway).count();
        if of_gateway >= PER_GATEWAY_MAX || self.waiting.len() >= ALL_MAX {
            return Err(answer_tx);
        }
        self.last = self.last.wrapping_add(1);
        let waiting = Waiting { session, gateway: gateway.clone(), since: Instant::now(), answer_tx };
        self.waiting.insert(self.last, waiting);
        Ok(self.last)
    }

    /// An answer came; one that nobody waits for any more, or that another session gives, is dropped.
    pub(crate) fn answered(&mut self, session: SessionId, answer: GivenAnswer) {
        if self.waiting.get(&answer.id).is_none_or(|waiting| waiting.session != session) {
            return;
        }
        let Some(waiting) = self.waiting.remove(&answer.id) else { return };
        let said = match String::from_utf8(answer.json.into()) {
            _ if !answer.error.is_empty() => Err(answer.error),
            Ok(json) if json.len() <= ANSWER_LEN_MAX => Ok(json),
            Ok(_) | Err(_) => Err("its answer is too long, or not text".to_owned()),
        };
        let _ = waiting.answer_tx.send(said);
    }

    /// A session ended: who waits for it hears so at once.
    pub(crate) fn session_ended(&mut self, session: SessionId) {
        self.waiting.retain(|_, waiting| waiting.session != session);
    }

    /// Drops those that were not answered in time, and says how many.
    pub(crate) fn expire(&mut self, now: Instant) -> u64 {
        let before = self.waiting.len();
        self.waiting.retain(|_, waiting| now.saturating_duration_since(waiting.since) < ANSWER_WAIT);
        (before - self.waiting.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: u32, text: &str) -> GivenAnswer {
        GivenAnswer { id, json: text.as_bytes().to_vec().into(), error: String::new() }
    }

    #[test]
    fn an_answer_reaches_who_asked_and_only_from_the_session_that_was_asked() {
        let (mut questions, gateway) = (Questions::default(), Arc::from("box-1"));
        let (answer_tx, mut answer_rx) = oneshot::channel();
        let id = questions.add(SessionId(7), &gateway, answer_tx).expect("the first");
        questions.answered(SessionId(8), answer(id, "forged"));
        assert!(answer_rx.try_recv().is_err());
        questions.answered(SessionId(7), answer(id, "{}"));
        assert_eq!(answer_rx.try_recv(), Ok(Ok("{}".to_owned())));
        questions.answered(SessionId(7), answer(id, "again"));
        let (answer_tx, mut answer_rx) = oneshot::channel();
        let id = questions.add(SessionId(7), &gateway, answer_tx).expect("room");
        questions.answered(SessionId(7), answer(id, &"x".repeat(ANSWER_LEN_MAX + 1)));
        assert!(matches!(answer_rx.try_recv(), Ok(Err(_))));
    }

    #[test]
    fn few_wait_for_one_gateway_and_not_for_ever() {
        let mut questions = Questions::default();
        let mut ask = |gateway: &str, session| {
            let (answer_tx, answer_rx) = oneshot::channel();
            (questions.add(SessionId(session), &gateway.into(), answer_tx).is_ok(), answer_rx)
        };
        let taken: Vec<_> = (0..PER_GATEWAY_MAX + 1).map(|_| ask("box-1", 1)).collect();
        assert_eq!(taken.iter().filter(|(is_taken, _)| *is_taken).count(), PER_GATEWAY_MAX);
        let others: Vec<_> = (0..ALL_MAX).map(|at| ask(&format!("other-{at}"), 2)).collect();
        assert_eq!(others.iter().filter(|(is_taken, _)| *is_taken).count(), ALL_MAX - PER_GATEWAY_MAX);
        questions.session_ended(SessionId(2));
        assert_eq!(questions.expire(Instant::now()), 0);
        assert_eq!(questions.expire(Instant::now() + ANSWER_WAIT), PER_GATEWAY_MAX as u64);
        assert!(questions.waiting.is_empty());
    }
}
