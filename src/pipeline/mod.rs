//! The data roads: [`capture`] carries a database's changes into its region's log, [`deliver`] carries
//! another region's log into this region's database.

pub mod capture;
pub mod deliver;
mod setback;
