//! `weir sim`: what would a policy have done on this link, and what could any policy have done?
//!
//! A run is a [`trace::Link`] whose whole life is known, records drawn from a [`workload::Workload`], and a
//! policy that sees both only as they happen. What it delivers is worth something by the workload's value
//! model; [`bound`] says how much anybody could have had. All of it comes from one seed.
//!
//! The end is pinned: arrivals and link both run to the end of the run, and only what has arrived by then
//! counts, for policies and bound alike.

pub mod arrivals;
pub mod baseline;
pub mod bound;
pub mod budget;
pub mod case;
pub mod command;
pub mod federation;
pub mod fleet;
pub mod gateway;
mod machine;
pub mod own;
mod random;
pub mod report;
mod site;
pub mod trace;
pub mod transport;
pub mod workload;
