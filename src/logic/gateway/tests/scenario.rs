//! What a seed stands for.

use super::super::PolicyStart;
use super::client::ClientPlan;
use super::offers::{self, Offered};
use super::rng::Rng;
use crate::ids::{Class, PerClass};
use crate::lanes::{Durability, LanePolicy, LanesLimits, Overflow};
use crate::mqtt::{ConnLimits, RouterLimits};
use crate::offload::{OffloadLimits, OffloadMode, OffloadPolicy};
use crate::payload::{NumberFormat, OpaqueFormat, PayloadFormat};
use crate::policy::{Meter, Policy, StreamFidelity, StreamModel, StreamPolicy, UplinkPolicy, UserPolicy};
use crate::price::PriceLimits;
use crate::uplink::SessionLimits;
use crate::window::{AggregateConfig, AggregateSpec, KeepConfig, KeepRules, Span, ValueRule, WindowConfig, WindowSpec};
use crate::wire::offload::{OffloadAnswer, OffloadRefusal, PoolView, PoolViews, RefusalKind};
use crate::wire::{Body, encode_control};

/// Something that goes wrong, and is mended after so many microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    EdgeCrash,
    EdgeStop,
    CloudCrash,
    CloudStuck,
    CreditsGone,
    LinkDown,
    LinkBreak,
    LinkStall,
    DiskFull,
    DiskFails,
    LoadsFail,
    ClientDrops,
}

/// What a pool does with what it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PoolMood {
    /// It answers in 40 ms.
    Quick,
    /// It answers in two seconds.
    Late,
    /// It never answers.
    Silent,
    /// It has no time for anybody.
    Refusing,
}

impl PoolMood {
    /// When it says something, in microseconds.
    pub(super) fn reply_us(self) -> Option<u64> {
        match self {
            PoolMood::Quick => Some(40_000),
            PoolMood::Refusing => Some(20_000),
            PoolMood::Late => Some(2_000_000),
            PoolMood::Silent => None,
        }
    }

    /// What it says.
    pub(super) fn reply(self) -> Vec<u8> {
        let body = match self {
            PoolMood::Refusing => {
                let kind = RefusalKind::Busy.code();
                Body::OffloadRefusal(OffloadRefusal { kind, reason: "full".to_owned(), retry_after_ms: 50 })
            }
            _ => Body::OffloadAnswer(OffloadAnswer {
                label: "y".to_owned(),
                score: 0.9,
                confidence: 0.9,
                model: "large".to_owned(),
                version: "1".to_owned(),
                ..OffloadAnswer::default()
            }),
        };
        let mut bytes = Vec::new();
        encode_control(body, &mut bytes);
        bytes
    }

    /// What the cloud says of it.
    pub(super) fn view() -> Body {
        let pool = PoolView { name: "pool".to_owned(), task: "task".to_owned(), channels: 1, length: 4, ..PoolView::default() };
        Body::Pools(PoolViews { pools: vec![pool] })
    }
}

#[derive(Debug, Clone)]
pub(super) struct Scenario {
    pub(super) clients: Vec<ClientPlan>,
    pub(super) lanes: PerClass<LanePolicy>,
    pub(super) limits: LanesLimits,
    pub(super) ack_record: bool,
    /// How the verdict stream's windows are sent on, and what the pool does with them.
    pub(super) offload: Option<(OffloadMode, PoolMood)>,
    /// Its model is always sure, and some of its answers are audited.
    pub(super) audits: bool,
    pub(super) inflight_max: u16,
    pub(super) uplinks: usize,
    pub(super) metered: bool,
    pub(super) critical_copies: u8,
    /// One way, without the queue, and how much it varies.
    pub(super) delay_us: u64,
    pub(super) jitter_us: u64,
    pub(super) bytes_per_s: u64,
    pub(super) repeat_percent: u64,
    pub(super) disk_us: (u64, u64),
    pub(super) sink_us: (u64, u64),
    pub(super) credits: PerClass<u64>,
    /// What the box knows of policies when it starts.
    pub(super) offers: PolicyStart,
    /// Policies that the cloud offers, in the order of their offers.
    pub(super) offered: Vec<Offered>,
    /// Start, kind, length.
    pub(super) troubles: Vec<(u64, Trouble, u64)>,
    pub(super) troubles_end_us: u64,
}

impl Scenario {
    /// One well-behaved client of one stream, a good link, and no trouble.
    pub(super) fn calm(durability: Durability, client: ClientPlan) -> Scenario {
        let lane = |share| LanePolicy { durability, cap_bytes: 8 << 20, overflow: Overflow::Thin, ttl_us: None, share };
        Scenario {
            clients: vec![client],
            lanes: [lane(16), lane(8), lane(4), lane(1)],
            limits: LanesLimits { memory_bytes: 8 << 20, block_target_bytes: 64 << 10, early_commit_bytes_per_day: 1 << 30 },
            ack_record: false,
            offload: None,
            audits: false,
            inflight_max: 1024,
            uplinks: 1,
            metered: false,
            critical_copies: 1,
            delay_us: 20_000,
            jitter_us: 5_000,
            bytes_per_s: 4 << 20,
            repeat_percent: 0,
            disk_us: (2_000, 10_000),
            sink_us: (2_000, 20_000),
            credits: [1 << 20; 4],
            offers: PolicyStart::default(),
            offered: Vec::new(),
            troubles: Vec::new(),
            troubles_end_us: 0,
        }
    }

    pub(super) fn random(rng: &mut Rng) -> Scenario {
        use Durability::{Disk, Memory, Through};
        use OffloadMode::{AnswerNow, Wait};
        use PoolMood::{Late, Quick, Refusing, Silent};
        let count = rng.range(1, 4);
        let pace = rng.pick(&[2_000, 10_000, 50_000, 300_000]);
        let messages = if pace > 100_000 { 60 } else { 250 };
        let clients = (0..count).map(|_| ClientPlan {
            v5: rng.percent(50),
            inflight_max: rng.pick(&[1, 4, 20, 60]),
            messages: rng.range(messages / 4, messages),
            gap_us: rng.range(pace / 2, pace * 2),
            len_max: rng.pick(&[10, 200, 200, 3_000]),
            qos0_percent: rng.pick(&[0, 0, 10, 50]),
            only: None,
        });
        let clients = clients.collect();
        let (small_caps, ttls) = (rng.percent(20), rng.percent(10));
        let all_memory = rng.percent(5);
        let overflow = rng.pick(&[Overflow::Thin, Overflow::Evict]);
        let lanes = [0, 1, 2, 3].map(|at| LanePolicy {
            durability: if all_memory { Memory } else { rng.pick(&[Through, Through, Disk, Disk, Memory]) },
            cap_bytes: if small_caps { rng.range(1_000, 10_000) } else { 64 << 20 },
            overflow,
            ttl_us: (ttls && rng.percent(60)).then(|| rng.range(1_000_000, 20_000_000)),
            share: [16, 8, 4, 1][at],
        });
        // A lane that is full holds some blocks.
        let target = rng.pick(if small_caps { &[500, 1_000][..] } else { &[1_000, 4_000, 16_000, 64_000] });
        let limits = LanesLimits {
            memory_bytes: (target as u64 * rng.pick(&[4, 8, 64])).max(6_000),
            block_target_bytes: target,
            early_commit_bytes_per_day: rng.pick(&[0, 1 << 30, 20 << 30]),
        };
        let end_us = rng.range(5, 25) * 1_000_000;
        let mut troubles = Vec::new();
        use Trouble::*;
        for kind in [
            EdgeCrash,
            EdgeStop,
            CloudCrash,
            CloudStuck,
            CreditsGone,
            LinkDown,
            LinkBreak,
            LinkStall,
            DiskFull,
            DiskFails,
            LoadsFail,
            ClientDrops,
        ] {
            if rng.percent(40) {
                for _ in 0..rng.range(1, 4) {
                    let len = rng.pick(&[20_000, 400_000, 2_000_000, 8_000_000]);
                    troubles.push((rng.range(0, end_us), kind, rng.range(len / 2, len * 2)));
                }
            }
        }
        // From draws of their own: without policies a seed stands for what it did before there were any.
        let offered = offers::random(&mut Rng(rng.0 ^ 0x9011_c1e5), end_us);
        let offers = PolicyStart { has_key: !offered.is_empty(), trial_us: 20_000_000, ..PolicyStart::default() };
        let fast = rng.percent(60);
        Scenario {
            clients,
            lanes,
            limits,
            ack_record: rng.percent(50),
            offload: rng.percent(60).then(|| (rng.pick(&[Wait, AnswerNow]), rng.pick(&[Quick, Late, Silent, Refusing]))),
            audits: Rng(rng.0 ^ 0x00a0_d175).percent(30),
            inflight_max: rng.pick(&[60, 100, 1024]),
            uplinks: if rng.percent(30) { rng.range(2, 3) as usize } else { 1 },
            metered: false,
            critical_copies: rng.range(1, 2) as u8,
            delay_us: rng.pick(&[1_000, 20_000, 50_000, 300_000]),
            jitter_us: rng.pick(&[100, 10_000, 100_000]),
            bytes_per_s: if fast { 10 << 20 } else { rng.pick(&[20_000, 100_000, 500_000]) },
            repeat_percent: rng.pick(&[0, 0, 10]),
            disk_us: (1_000, rng.pick(&[5_000, 50_000, 500_000])),
            sink_us: (1_000, rng.pick(&[5_000, 50_000, 500_000])),
            credits: if rng.percent(30) { [rng.range(200, 4_000); 4] } else { [1 << 20; 4] },
            offers,
            offered,
            troubles,
            troubles_end_us: end_us,
        }
    }

    fn uplink(&self, at: usize) -> UplinkPolicy {
        UplinkPolicy {
            meter: self.metered.then_some(Meter { money_per_mb: 0.01, month_bytes: None }),
            carrier: Some(format!("carrier-{at}").into()),
            ..UplinkPolicy::free(&format!("way-{at}"), 10_000_000)
        }
    }

    pub(super) fn policy(&self) -> Policy {
        let number = || PayloadFormat::Number(NumberFormat { rate_hz: None });
        let raw = |class: Class| StreamPolicy {
            name: class.name().into(),
            filters: vec![format!("raw/{}/+", class.name())],
            class,
            fidelity: StreamFidelity::Raw,
            format: PayloadFormat::Opaque(OpaqueFormat {}),
            aggregate: None,
            keep: None,
            model: None,
            ack_record: false,
            zones: Vec::new(),
            value: None,
            offload: None,
            truth: None,
        };
        let mut streams: Vec<_> = Class::ALL.into_iter().map(raw).collect();
        let spec = AggregateSpec::new(&AggregateConfig { every_us: 1_000_000, reorder_max_us: None }, 1);
        streams.push(StreamPolicy {
            name: "agg".into(),
            filters: vec!["agg/+".into()],
            class: Class::Normal,
            fidelity: StreamFidelity::Aggregate,
            format: number(),
            aggregate: Some(spec.expect("a sound spec")),
            ack_record: self.ack_record,
            ..raw(Class::Normal)
        });
        let window = WindowConfig { length: Span::Samples(4), step: None, gap_max_us: None, reorder_max_us: None };
        let window = WindowSpec::new(&window, 1, None).expect("a sound spec");
        streams.push(StreamPolicy {
            name: "verdict".into(),
            filters: vec!["verdict/+".into()],
            class: Class::Critical,
            fidelity: StreamFidelity::Verdict,
            format: number(),
            model: Some(StreamModel { index: 0, name: "m".into(), version: "1".into(), window: window.clone() }),
            ack_record: self.ack_record && self.troubles.is_empty(),
            offload: self.offload.map(|(mode, _)| OffloadPolicy {
                task: "task".into(),
                mode,
                // Confidences are 0.75.
                band: (0.0, if self.audits { 0.5 } else { 0.8 }),
                deadline_us: 300_000,
                spacing_us: 0,
                int16: true,
                audit: if self.audits { 0.25 } else { 0.0 },
                learn: None,
                window,
            }),
            ..raw(Class::Critical)
        });
        let above = ValueRule { above: Some(0.0), ..ValueRule::default() };
        let keep = KeepConfig { samples: vec![above], ..KeepConfig::default() };
        streams.push(StreamPolicy {
            name: "keep".into(),
            filters: vec!["keep/+".into()],
            class: Class::High,
            format: number(),
            keep: Some(KeepRules::new(&keep, 1).expect("sound rules")),
            ..raw(Class::High)
        });
        Policy {
            lanes: self.lanes,
            lanes_limits: self.limits,
            streams,
            users: vec![UserPolicy { name: "".into(), publish: vec!["#".into()] }],
            connections: ConnLimits { inflight_max: self.inflight_max, ..ConnLimits::default() },
            connections_max: 64,
            router: RouterLimits::default(),
            brokers: Vec::new(),
            session: SessionLimits {
                ping_us: 1_000_000,
                silence_us: 5_000_000,
                connect_us: 10_000_000,
                backoff_us: (500_000, 4_000_000),
            },
            uplinks: (0..self.uplinks).map(|at| self.uplink(at)).collect(),
            price: PriceLimits::default(),
            critical_copies: self.critical_copies,
            offload: OffloadLimits::default(),
        }
    }
}
