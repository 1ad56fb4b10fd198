//! Which connections are two halves of one session: those with one token, one certificate, and one half each.
//!
//! Whichever comes first waits for the other, for a limited time. One that is not wanted where it says it belongs is
//! refused, and takes nothing from the one that waits there: a token that was guessed or repeated breaks no session.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weir_logic::wire::mux::{Half, Opening, Token};

/// Connections that wait for their other halves. There are no more than places for connections.
pub(super) struct Pairs<C> {
    wait_max: Duration,
    waiting: BTreeMap<Token, Waiting<C>>,
}

struct Waiting<C> {
    half: Half,
    certificate: Vec<u8>,
    connection: C,
    due: Instant,
}

/// What becomes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offer<C> {
    /// It waits for the other half.
    Waits,
    /// It was the other half.
    Pair {
        /// For control and `critical`.
        control: C,
        /// For all the rest.
        bulk: C,
    },
    /// It is another's token, or a half that is there already.
    Refused(C),
}

impl<C> Pairs<C> {
    /// Nothing waits yet; what does, does so for `wait_max`.
    pub(super) fn new(wait_max: Duration) -> Self {
        Pairs { wait_max, waiting: BTreeMap::new() }
    }

    /// A connection that has opened.
    pub(super) fn offer(&mut self, now: Instant, opening: Opening, certificate: Vec<u8>, connection: C) -> Offer<C> {
        let Opening { half, token } = opening;
        let Some(other) = self.waiting.remove(&token) else {
            let due = now + self.wait_max;
            self.waiting.insert(token, Waiting { half, certificate, connection, due });
            return Offer::Waits;
        };
        if other.half == half || other.certificate != certificate {
            self.waiting.insert(token, other);
            return Offer::Refused(connection);
        }
        match half {
            Half::Control => Offer::Pair { control: connection, bulk: other.connection },
            Half::Bulk => Offer::Pair { control: other.connection, bulk: connection },
        }
    }

    /// When the first has waited long enough.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.due).min()
    }

    /// Those that have waited long enough.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<C> {
        self.waiting.extract_if(.., |_, waiting| waiting.due <= now).map(|(_, waiting)| waiting.connection).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(10);

    fn opening(half: Half, token: u8) -> Opening {
        Opening { half, token: Token([token; 16]) }
    }

    #[test]
    fn two_halves_of_one_token_and_certificate_are_a_pair_whichever_comes_first() {
        let now = Instant::now();
        let mut pairs = Pairs::new(WAIT);
        let mut offer = |half, token, connection| pairs.offer(now, opening(half, token), b"box".to_vec(), connection);
        assert_eq!(offer(Half::Control, 1, "c1"), Offer::Waits);
        assert_eq!(offer(Half::Bulk, 2, "b2"), Offer::Waits);
        assert_eq!(offer(Half::Bulk, 1, "b1"), Offer::Pair { control: "c1", bulk: "b1" });
        assert_eq!(offer(Half::Control, 2, "c2"), Offer::Pair { control: "c2", bulk: "b2" });
        assert_eq!(pairs.next_due(), None);
    }

    #[test]
    fn another_certificate_or_the_same_half_again_is_refused_and_the_first_still_waits() {
        let now = Instant::now();
        let mut pairs = Pairs::new(WAIT);
        let mut offer = |half, who: &str, connection| pairs.offer(now, opening(half, 1), who.into(), connection);
        assert_eq!(offer(Half::Control, "box-1", 1), Offer::Waits);
        assert_eq!(offer(Half::Bulk, "box-2", 2), Offer::Refused(2));
        assert_eq!(offer(Half::Control, "box-1", 3), Offer::Refused(3));
        assert_eq!(offer(Half::Bulk, "box-1", 4), Offer::Pair { control: 1, bulk: 4 });
    }

    #[test]
    fn who_waits_too_long_is_given_back() {
        let now = Instant::now();
        let mut pairs = Pairs::new(WAIT);
        pairs.offer(now, opening(Half::Bulk, 1), Vec::new(), 1);
        pairs.offer(now + Duration::from_secs(1), opening(Half::Bulk, 2), Vec::new(), 2);
        assert_eq!(pairs.next_due(), Some(now + WAIT));
        assert_eq!(pairs.take_due(now + WAIT - Duration::from_millis(1)), [0; 0]);
        assert_eq!(pairs.take_due(now + WAIT), [1]);
        assert_eq!(pairs.next_due(), Some(now + WAIT + Duration::from_secs(1)));
    }
}
