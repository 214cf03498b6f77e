//! Values of our own that travel to and from the target.

use std::{error::Error as StdError, fmt};

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{Format, FromSql, IsNull, ToSql, Type};

use crate::stamp::Micros;

type Refused = Box<dyn StdError + Sync + Send>;

/// A `timestamptz`, as microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timestamp(pub(super) i64);

impl From<Micros> for Timestamp {
    fn from(time: Micros) -> Self {
        Self(time.0)
    }
}

impl ToSql for Timestamp {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Refused> {
        out.put_i64(self.0.saturating_sub(Micros::POSTGRES_EPOCH.0));
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    tokio_postgres::types::to_sql_checked!();
}

impl<'a> FromSql<'a> for Timestamp {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Refused> {
        Ok(Self(Micros::from_postgres(i64::from_be_bytes(raw.try_into()?)).0))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

/// A value in Postgres's own text, for whatever type the statement has in its place.
#[derive(Clone, Debug)]
pub(super) struct AsText<T = String>(pub(super) T);

impl<T: AsRef<[u8]> + fmt::Debug> ToSql for AsText<T> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Refused> {
        out.put_slice(self.0.as_ref());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}
