//! Questions to the graph; each answer is plain data with a table for people.

mod bottleneck;
mod changes;
mod impact;
mod path;
mod show;
mod text;
mod weak;

pub use bottleneck::{Bottleneck, Bottlenecks, CutEdge};
pub use changes::{Changes, EdgeId, StateChange, ValueChange, changes};
pub use impact::{Impact, Target, WorseStream};
pub use path::{Constraints, Hop, Path, Rejected, Route};
pub use weak::{WeakPoint, WeakPoints};
