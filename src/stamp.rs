//! When something was: one unit for every clock there is.

/// Microseconds since the Unix epoch, UTC. Postgres counts from 2000-01-01; the difference is
/// [`Micros::POSTGRES_EPOCH`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Micros(pub i64);

impl Micros {
    /// 2000-01-01T00:00:00Z, where Postgres's own timestamps begin.
    pub const POSTGRES_EPOCH: Self = Self(946_684_800_000_000);

    /// The time a Postgres server sends as "microseconds since 2000-01-01".
    pub fn from_postgres(micros: i64) -> Self {
        Self(micros.saturating_add(Self::POSTGRES_EPOCH.0))
    }

    /// Whole milliseconds, rounded down.
    pub fn millis(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// Seconds from `earlier` to here; negative where the clocks say so.
    pub fn seconds_since(self, earlier: Self) -> f64 {
        (self.0 - earlier.0) as f64 / 1e6
    }
}
