//! From a model to its converted form and back.
//!
//! [`decide()`] says what happens to each weight and why; [`splice::build`] makes the converted model as a
//! [`Rope`] over the original's bytes; [`restore()`] undoes it.

pub mod base;
mod carried;
pub mod constness;
mod costly;
pub mod decide;
pub mod depths;
pub mod fold;
mod names;
mod nodes;
pub mod normalise;
pub mod ops;
pub mod recipe;
pub mod restore;
pub mod rope;
pub mod rules;
pub mod splice;

pub use base::{BaseBlob, PlanBase};
pub use carried::Carried;
pub use decide::{Compression, Decision, Use, UseKind, decide};
pub use depths::DepthBytes;
pub use recipe::{BlobFile, Constant, Recipe, RecipeBlob};
pub use restore::{Outcome, Restored, restore};
pub use rope::Rope;
pub use rules::Rules;
pub use splice::{Form, Placement, Plan, build};
