//! One price for each byte of uplink, and what a record is worth at it.
//!
//! Think of a ferry with more cars waiting than it takes. Whoever sets the toll right need not choose cars: those for whom
//! the crossing is worth the toll come, and fold their luggage if a smaller car is cheaper. Here the toll is `lambda`, in
//! value per byte; a *level* is how far a record is folded; and [`StreamValue::level`] is what its owner would choose.
//!
//! The toll is computed, not felt for: [`Solver`] takes what is stored, what is expected and what the uplink is forecast to
//! carry, and finds the lowest price at which it fits; what is due sooner may cost more. A second price keeps it honest:
//! never so high that what is already here would last less than a few seconds, or the uplink would idle while the plan saves
//! room for data that does not exist yet. The lower of the two holds. `weir sim`
//! shows what part of a clairvoyant's value that reaches on a link.
//!
//! Levels are chosen along a *concave* ladder: each further byte is worth less than the one before. Then the best level at
//! a price is found step by step, and the demand falls with the price; [`Ladder::new`] refuses any other.

pub use arrivals::{Arrivals, Expected};
pub use ladder::{Ladder, LadderError, Level};
pub use solve::{Capacity, Cohort, Explanation, HORIZONS, Market, Paid, PriceLimits, Prices, Solver, horizon_end_us};
pub use value::{Lateness, StreamValue, Wait};

mod arrivals;
mod ladder;
mod solve;
mod value;
