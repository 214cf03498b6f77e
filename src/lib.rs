//! Landfall carries committed changes from one region's database to the others.
