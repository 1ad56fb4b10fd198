//! What became of windows that a larger model was to be asked about.

/// Why a window was not sent on; the local answer stands at once then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotSent {
    /// The plan has no pool for the stream; it says why.
    NoPool,
    /// No uplink that the stream may use leads to the pool.
    NoWay,
    /// The pool's breaker is open, or its one trial is under way.
    Breaker,
    /// The pool is busy and asked for time.
    Busy,
    /// The stream's last request is not long enough ago.
    Spacing,
    /// As many requests as may are under way.
    InFlight,
    /// The hour's requests are used.
    HourRequests,
    /// The hour's bytes are used.
    HourBytes,
}

impl NotSent {
    /// All of them.
    pub const ALL: [NotSent; 8] = [
        NotSent::NoPool,
        NotSent::NoWay,
        NotSent::Breaker,
        NotSent::Busy,
        NotSent::Spacing,
        NotSent::InFlight,
        NotSent::HourRequests,
        NotSent::HourBytes,
    ];

    /// The word used in metrics and answers.
    pub const fn name(self) -> &'static str {
        match self {
            NotSent::NoPool => "no_pool",
            NotSent::NoWay => "no_way",
            NotSent::Breaker => "breaker",
            NotSent::Busy => "busy",
            NotSent::Spacing => "spacing",
            NotSent::InFlight => "in_flight",
            NotSent::HourRequests => "hour_requests",
            NotSent::HourBytes => "hour_bytes",
        }
    }
}

/// Counts of a stream since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OffloadCounts {
    /// Requests sent, audits among them.
    pub sent: u64,
    /// Bytes of their windows.
    pub sent_bytes: u64,
    /// Windows that shared another's request, because they were the same.
    pub shared: u64,
    /// Windows that were the same as one answered a moment ago.
    pub known: u64,
    /// Answers in time.
    pub answered: u64,
    /// Answers in time that say another label than the local model.
    pub disagreed: u64,
    /// Answers after the deadline, recorded all the same.
    pub late: u64,
    /// Deadlines that passed without an answer.
    pub overdue: u64,
    /// Requests that the pool refused because it was busy, or could not be in time.
    pub refused_busy: u64,
    /// Requests that the pool does not take, or failed at.
    pub refused: u64,
    /// Requests whose uplink went away.
    pub lost: u64,
    /// Audits sent.
    pub audits_sent: u64,
    /// Audits answered, or known from the same window a moment ago.
    pub audits_answered: u64,
    /// Audits that a limit, a breaker or the want of a pool kept back: what they need is left to windows in doubt.
    pub audits_not_sent: u64,
    /// Audits without an answer: refused, lost, or too late to be of use.
    pub audits_unanswered: u64,
    /// Windows in doubt not sent, by the position of the reason in [`NotSent::ALL`].
    pub not_sent: [u64; 8],
}

impl OffloadCounts {
    /// Every count with its word.
    pub fn by_word(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let not_sent = NotSent::ALL.into_iter().zip(self.not_sent).map(|(reason, count)| (reason.name(), count));
        [
            ("sent", self.sent),
            ("shared", self.shared),
            ("known", self.known),
            ("answered", self.answered),
            ("disagreed", self.disagreed),
            ("late", self.late),
            ("overdue", self.overdue),
            ("refused_busy", self.refused_busy),
            ("refused", self.refused),
            ("lost", self.lost),
            ("audits_sent", self.audits_sent),
            ("audits_answered", self.audits_answered),
            ("audits_not_sent", self.audits_not_sent),
            ("audits_unanswered", self.audits_unanswered),
        ]
        .into_iter()
        .chain(not_sent)
    }
}
