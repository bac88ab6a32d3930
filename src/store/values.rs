//! Our types as columns: the same value in either database's closest type.

use chrono::{DateTime, SubsecRound, Utc};
use sqlx::database::Database;
use sqlx::decode::Decode;
use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::{Postgres, Sqlite, Type};

use super::StoreError;
use super::audit::ActorKind;
use super::usage::Status;
use crate::account::{Role, Scopes, Tier};
use crate::sandbox::ModuleHash;

/// A time, to the microsecond: `TIMESTAMPTZ` in PostgreSQL, microseconds since 1970 in SQLite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(DateTime<Utc>);

impl Stamp {
    pub(super) fn now() -> Stamp {
        Stamp::from(Utc::now())
    }
}

impl From<DateTime<Utc>> for Stamp {
    fn from(time: DateTime<Utc>) -> Stamp {
        Stamp(time.trunc_subsecs(6))
    }
}

impl From<Stamp> for DateTime<Utc> {
    fn from(stamp: Stamp) -> DateTime<Utc> {
        stamp.0
    }
}

impl Type<Postgres> for Stamp {
    fn type_info() -> <Postgres as Database>::TypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for Stamp {
    fn encode_by_ref(
        &self,
        buf: &mut <Postgres as Database>::ArgumentBuffer,
    ) -> Result<IsNull, BoxDynError> {
        Encode::<Postgres>::encode_by_ref(&self.0, buf)
    }
}

impl Decode<'_, Postgres> for Stamp {
    fn decode(value: <Postgres as Database>::ValueRef<'_>) -> Result<Stamp, BoxDynError> {
        <DateTime<Utc> as Decode<Postgres>>::decode(value).map(Stamp)
    }
}

impl Type<Sqlite> for Stamp {
    fn type_info() -> <Sqlite as Database>::TypeInfo {
        <i64 as Type<Sqlite>>::type_info()
    }

    fn compatible(ty: &<Sqlite as Database>::TypeInfo) -> bool {
        <i64 as Type<Sqlite>>::compatible(ty)
    }
}

impl Encode<'_, Sqlite> for Stamp {
    fn encode_by_ref(
        &self,
        buf: &mut <Sqlite as Database>::ArgumentBuffer,
    ) -> Result<IsNull, BoxDynError> {
        Encode::<Sqlite>::encode(self.0.timestamp_micros(), buf)
    }
}

impl Decode<'_, Sqlite> for Stamp {
    fn decode(value: <Sqlite as Database>::ValueRef<'_>) -> Result<Stamp, BoxDynError> {
        let micros = <i64 as Decode<Sqlite>>::decode(value)?;
        let time = DateTime::from_timestamp_micros(micros);
        time.map(Stamp)
            .ok_or_else(|| format!("{micros} µs is no time").into())
    }
}

/// A closed set as the text that the `CHECK` of its column lists.
macro_rules! closed_set {
    ($type:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        impl<DB: Database> Type<DB> for $type
        where
            str: Type<DB>,
        {
            fn type_info() -> DB::TypeInfo {
                <str as Type<DB>>::type_info()
            }

            fn compatible(ty: &DB::TypeInfo) -> bool {
                <str as Type<DB>>::compatible(ty)
            }
        }

        impl<'q, DB: Database> Encode<'q, DB> for $type
        where
            &'q str: Encode<'q, DB>,
        {
            fn encode_by_ref(&self, buf: &mut DB::ArgumentBuffer) -> Result<IsNull, BoxDynError> {
                let text = match self {
                    $($type::$variant => $text,)+
                };
                <&'q str as Encode<'q, DB>>::encode(text, buf)
            }
        }

        impl<'r, DB: Database> Decode<'r, DB> for $type
        where
            &'r str: Decode<'r, DB>,
        {
            fn decode(value: DB::ValueRef<'r>) -> Result<$type, BoxDynError> {
                match <&'r str as Decode<'r, DB>>::decode(value)? {
                    $($text => Ok($type::$variant),)+
                    other => Err(format!("{other:?} is no {}", stringify!($type)).into()),
                }
            }
        }
    };
}

closed_set!(Role { User = "user", Support = "support", Admin = "admin" });
closed_set!(ActorKind { User = "user", Operator = "operator", System = "system" });
closed_set!(Tier { Free = "free", Basic = "basic", Pro = "pro", Enterprise = "enterprise" });

closed_set!(Status {
    Success = "success",
    ExecutionError = "execution_error",
    TimeLimitExceeded = "time_limit_exceeded",
    MemoryLimitExceeded = "memory_limit_exceeded",
    StackLimitExceeded = "stack_limit_exceeded",
    TableLimitExceeded = "table_limit_exceeded",
    OutputLimitExceeded = "output_limit_exceeded",
    ValidationError = "validation_error",
    Rejected = "rejected",
    Cancelled = "cancelled",
});

/// The sum of their numbers: `SMALLINT` in PostgreSQL, an integer in SQLite.
impl Type<Postgres> for Scopes {
    fn type_info() -> <Postgres as Database>::TypeInfo {
        <i16 as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for Scopes {
    fn encode_by_ref(
        &self,
        buf: &mut <Postgres as Database>::ArgumentBuffer,
    ) -> Result<IsNull, BoxDynError> {
        Encode::<Postgres>::encode(i16::from(self.bits()), buf)
    }
}

impl Decode<'_, Postgres> for Scopes {
    fn decode(value: <Postgres as Database>::ValueRef<'_>) -> Result<Scopes, BoxDynError> {
        scopes(<i16 as Decode<Postgres>>::decode(value)?.into())
    }
}

impl Type<Sqlite> for Scopes {
    fn type_info() -> <Sqlite as Database>::TypeInfo {
        <i64 as Type<Sqlite>>::type_info()
    }

    fn compatible(ty: &<Sqlite as Database>::TypeInfo) -> bool {
        <i64 as Type<Sqlite>>::compatible(ty)
    }
}

impl Encode<'_, Sqlite> for Scopes {
    fn encode_by_ref(
        &self,
        buf: &mut <Sqlite as Database>::ArgumentBuffer,
    ) -> Result<IsNull, BoxDynError> {
        Encode::<Sqlite>::encode(i64::from(self.bits()), buf)
    }
}

impl Decode<'_, Sqlite> for Scopes {
    fn decode(value: <Sqlite as Database>::ValueRef<'_>) -> Result<Scopes, BoxDynError> {
        scopes(<i64 as Decode<Sqlite>>::decode(value)?)
    }
}

fn scopes(number: i64) -> Result<Scopes, BoxDynError> {
    let known = u8::try_from(number).ok().and_then(Scopes::from_bits);
    known.ok_or_else(|| format!("{number} is no set of scopes").into())
}

impl<DB: Database> Type<DB> for ModuleHash
where
    Vec<u8>: Type<DB>,
{
    fn type_info() -> DB::TypeInfo {
        <Vec<u8> as Type<DB>>::type_info()
    }

    fn compatible(ty: &DB::TypeInfo) -> bool {
        <Vec<u8> as Type<DB>>::compatible(ty)
    }
}

impl<'q, DB: Database> Encode<'q, DB> for ModuleHash
where
    Vec<u8>: Encode<'q, DB>,
{
    fn encode_by_ref(&self, buf: &mut DB::ArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<DB>::encode(self.0.to_vec(), buf)
    }
}

impl<'r, DB: Database> Decode<'r, DB> for ModuleHash
where
    &'r [u8]: Decode<'r, DB>,
{
    fn decode(value: DB::ValueRef<'r>) -> Result<ModuleHash, BoxDynError> {
        Ok(ModuleHash(
            <&'r [u8] as Decode<'r, DB>>::decode(value)?.try_into()?,
        ))
    }
}

/// A count or size as a column holds it.
pub(super) fn signed(value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::Invalid("a number is too large"))
}

/// What a column of text may hold, in bytes. PostgreSQL can't store NUL, so neither database does.
pub(super) fn check_text(
    text: &str,
    bytes: std::ops::RangeInclusive<usize>,
    otherwise: &'static str,
) -> Result<(), StoreError> {
    if bytes.contains(&text.len()) && !text.contains('\0') {
        Ok(())
    } else {
        Err(StoreError::Invalid(otherwise))
    }
}
