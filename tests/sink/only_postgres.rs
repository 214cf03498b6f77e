//! What only a real Postgres can show.
