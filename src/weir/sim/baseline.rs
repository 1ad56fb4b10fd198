//! What others do, on the same link with the same records: raw, whole, without headers, and with perfect acknowledgements.
//!
//! Both are treated generously: what can be worth nothing any more is thrown away rather than sent.

use std::collections::VecDeque;

use weir_logic::ids::PerClass;

use super::arrivals::Arrivals;
use super::gateway::Delivery;
use super::trace::Link;
use super::workload::Workload;

/// Which record goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they came; a full buffer drops the oldest. What a plain store-and-forward bridge does.
    Fifo,
    /// By class, and within a class as they came; a full buffer drops the oldest of the lowest class.
    StaticPriority,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Served {
    /// Records that arrived, all raw.
    pub deliveries: Vec<Delivery>,
    /// Bytes that left.
    pub sent_bytes: u64,
    /// Records dropped by a full buffer or because they could be worth nothing any more.
    pub dropped: u64,
}

/// Serves the records in this order until the end of the run.
pub fn serve(order: Order, link: &Link, workload: &Workload, arrivals: &Arrivals) -> Served {
    let mut queue = Queue {
        order,
        waiting: Default::default(),
        bytes: 0,
        limit: (workload.buffer.as_secs_f64() * link.mean_bytes_per_s()) as u64,
        dropped: 0,
    };
    let mut served = Served::default();
    let (mut now_us, mut next) = (0, 0);
    loop {
        while let Some(arrival) = arrivals.records.get(next).filter(|arrival| arrival.at_us <= now_us) {
            let class = workload.stream[usize::from(arrival.stream)].class().index();
            queue.push(class, next, arrivals);
            next += 1;
        }
        let Some(record) = queue.pop(arrivals) else {
            let Some(arrival) = arrivals.records.get(next) else { break };
            now_us = arrival.at_us;
            continue;
        };
        let arrival = &arrivals.records[record];
        let useful_us = workload.stream[usize::from(arrival.stream)].useful_us();
        if useful_us.is_some_and(|useful_us| now_us + link.delay_us > arrival.at_us + useful_us) {
            queue.dropped += 1;
            continue;
        }
        let Some(left_us) = link.service.time_of_us(link.service.bytes_until(now_us) + f64::from(arrival.bytes)) else { break };
        now_us = left_us;
        served.sent_bytes += u64::from(arrival.bytes);
        if left_us + link.delay_us <= link.end_us() {
            served.deliveries.push(Delivery { record: record as u32, at_us: left_us + link.delay_us, fidelity: 1.0, level: 0 });
        }
    }
    served.dropped = queue.dropped;
    served
}

struct Queue {
    order: Order,
    /// By class; `Fifo` uses the first only.
    waiting: PerClass<VecDeque<usize>>,
    bytes: u64,
    limit: u64,
    dropped: u64,
}

impl Queue {
    fn push(&mut self, class: usize, record: usize, arrivals: &Arrivals) {
        let class = if self.order == Order::Fifo { 0 } else { class };
        self.waiting[class].push_back(record);
        self.bytes += u64::from(arrivals.records[record].bytes);
        while self.bytes > self.limit {
            let Some(lowest) = self.waiting.iter_mut().rev().find(|waiting| !waiting.is_empty()) else { return };
            if let Some(dropped) = lowest.pop_front() {
                self.bytes -= u64::from(arrivals.records[dropped].bytes);
                self.dropped += 1;
            }
        }
    }

    fn pop(&mut self, arrivals: &Arrivals) -> Option<usize> {
        let record = self.waiting.iter_mut().find_map(VecDeque::pop_front)?;
        self.bytes -= u64::from(arrivals.records[record].bytes);
        Some(record)
    }
}
