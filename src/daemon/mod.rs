//! One daemon per region.

pub mod roads;
