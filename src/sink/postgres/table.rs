//! The target's table for a shape: whether it takes the shape's rows, and how a row is found in it.
//!
//! Looked at on first use and again when a statement fails for a reason that smells of DDL. What
//! does not fit is named with both definitions and the DDL that would make it fit.

use tokio_postgres::Client;

use crate::{
    change::{Column, Identity, Shape},
    fault::{Code, Fault, Result},
    names::{qualified, quoted},
    plan::Locator,
    postgres::{
        fault_of,
        grants::{use_schemas, write_tables},
        tables::base_type,
    },
};

/// What is known of a table at the target, in the terms of one shape.
#[derive(Debug)]
pub(super) struct Table {
    /// Schema and table, quoted.
    pub(super) name: String,
    /// `ONLY ` for a plain table, whose children's rows travel under their own names; nothing for a
    /// partitioned one, which has no rows of its own.
    pub(super) only: &'static str,
    /// Whether it is partitioned.
    pub(super) partitioned: bool,
    /// How a row is found.
    pub(super) locator: Locator,
    columns: Box<[Column]>,
    /// Of each column, whether it holds arrays.
    arrays: Box<[bool]>,
}

/// Types of `pg_catalog` whose values travel in an array of the type itself. Everything else travels
/// as text and is cast, which takes any type there is: arrays of arrays, enums, composites, and
/// those whose arrays are delimited by another sign than a comma.
const DIRECT_TYPES: &[&str] = &[
    "bool",
    "bytea",
    "cidr",
    "date",
    "float4",
    "float8",
    "inet",
    "int2",
    "int4",
    "int8",
    "interval",
    "json",
    "jsonb",
    "macaddr",
    "numeric",
    "oid",
    "text",
    "time",
    "timestamp",
    "timestamptz",
    "timetz",
    "uuid",
    "varchar",
    "xml",
];

/// Types for which being equal is having the same text.
const EXACT_TYPES: &[&str] =
    &["bool", "bytea", "date", "int2", "int4", "int8", "oid", "timestamp", "timestamptz", "uuid"];

impl Table {
    pub(super) fn column_name(&self, at: usize) -> String {
        quoted(&self.columns[at].name)
    }

    /// The array type a column's values travel in.
    pub(super) fn array_type(&self, at: usize) -> String {
        match self.direct(at) {
            Some(name) => format!("{name}[]"),
            None => "text[]".to_owned(),
        }
    }

    /// What a travelled value is cast to, where it travels as text. Never with a modifier: an
    /// explicit cast to `varchar(3)` would cut silently what the assignment refuses.
    pub(super) fn cast(&self, at: usize) -> Option<String> {
        let column = &self.columns[at];
        self.direct(at).is_none().then(|| qualified(&column.type_schema, &column.type_name))
    }

    /// The type a value is cast to that travels as text, as [`Table::cast`] has it.
    pub(super) fn type_name(&self, at: usize) -> String {
        self.direct(at).map_or_else(|| self.cast(at).unwrap_or_default(), str::to_owned)
    }

    pub(super) fn equality_is_exact(&self, at: usize) -> bool {
        self.direct(at).is_some_and(|name| EXACT_TYPES.contains(&name))
    }

    /// The condition that a row of `t` has `given` in this column, as a key has.
    ///
    /// Not by `=` alone where that can be helped: with it the server may as well go through the whole index and look for
    /// each row of ours, and it does where it takes the table for one row. It takes it for that, however many there are
    /// meanwhile, from the moment it is analyzed with none but dead rows (`estimate_rel_size`) to the next. By this, and
    /// with the settings of the session, all it can do with an index is to look up what is given.
    pub(super) fn is_at(&self, at: usize, given: &str) -> String {
        let name = self.column_name(at);
        // An array of arrays is one of their elements.
        if self.arrays[at] {
            format!("t.{name} = {given}")
        } else {
            format!("t.{name} = ANY (ARRAY[{given}])")
        }
    }

    fn direct(&self, at: usize) -> Option<&str> {
        let column = &self.columns[at];
        (&*column.type_schema == "pg_catalog" && DIRECT_TYPES.contains(&&*column.type_name))
            .then_some(&*column.type_name)
    }
}

const TABLE: &str = "
    SELECT c.oid, c.relkind::text, row_security_active(c.oid),
           has_schema_privilege(n.oid, 'USAGE')
           AND (SELECT bool_and(has_table_privilege(c.oid, p))
                  FROM unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE}'::text[]) p),
           ARRAY(SELECT DISTINCT tn.nspname::text
                   FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                   JOIN pg_namespace tn ON tn.oid = t.typnamespace
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                    AND NOT has_schema_privilege(tn.oid, 'USAGE')),
           current_user::text
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')";

const COLUMNS: &str = concat!(
    "
    SELECT a.attname::text, a.attgenerated::text, a.attidentity::text,
           a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND a.attgenerated = '',
           a.atttypmod, base.typmod, bn.nspname::text, bt.typname::text,
           format_type(a.atttypid, a.atttypmod), bt.typcategory = 'A'
      FROM pg_attribute a
",
    base_type!(),
    "
     WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped"
);

/// Unique indexes that tell any two rows apart, at once (a deferrable one does not under
/// `session_replication_role = replica`), the primary key first.
const KEYS: &str = "
    SELECT array_agg(a.attname::text ORDER BY k.at)
      FROM pg_index i
      CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, at)
      LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
     WHERE i.indrelid = $1 AND i.indisunique AND i.indimmediate AND i.indisvalid
       AND i.indpred IS NULL AND i.indexprs IS NULL AND k.at <= i.indnkeyatts
     GROUP BY i.indexrelid, i.indisprimary
    HAVING bool_and(a.attnotnull)
     ORDER BY i.indisprimary DESC, count(*), i.indexrelid";

struct Found {
    name: String,
    generated: String,
    identity: String,
    must_be_given: bool,
    typmods: [i32; 2],
    type_schema: String,
    type_name: String,
    definition: String,
    is_array: bool,
}

/// What keeps a target's table from taking a shape's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Its kind.
    pub kind: ObstacleKind,
    /// What was seen, with both definitions where they differ.
    pub what: String,
    /// The statement that takes it away, for the table's owner or a superuser.
    pub sql: String,
}

/// A kind of obstacle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObstacleKind {
    /// The table does not exist.
    Missing,
    /// The role may not write it.
    Privilege,
    /// Row security hides rows from the role.
    RowSecurity,
    /// A column does not take the source's values.
    Column,
}

impl From<Obstacle> for Fault {
    fn from(obstacle: Obstacle) -> Self {
        let (code, how) = match obstacle.kind {
            ObstacleKind::Missing => {
                (Code::TableDiffers, "create it as it is at the source, it goes on by itself")
            }
            ObstacleKind::Privilege => (Code::PrivilegeMissing, "run at the target as the owner"),
            ObstacleKind::RowSecurity => (Code::PrivilegeMissing, "run at the target as a superuser"),
            ObstacleKind::Column => (Code::TableDiffers, "run at the target, it goes on by itself"),
        };
        Self::new(code, obstacle.what).remedied_by(format!("{how}: {}", obstacle.sql))
    }
}

/// What is found at the target for a shape.
#[derive(Debug)]
pub struct Judgement {
    /// Everything that stands in the way; empty where the table takes the shape's rows.
    pub obstacles: Vec<Obstacle>,
    /// How a row is found; none where there is no table.
    pub locator: Option<Locator>,
    partitioned: bool,
    arrays: Box<[bool]>,
}

/// Looks at the target's table for `shape`.
///
/// # Errors
/// [`Code::TableDiffers`] with both definitions and the DDL; [`Code::PrivilegeMissing`] with the
/// GRANT.
pub(super) async fn inspect(client: &Client, shape: &Shape) -> Result<Table> {
    let mut judgement = judge(client, shape).await?;
    match judgement.locator {
        Some(locator) if judgement.obstacles.is_empty() => Ok(Table {
            name: qualified(&shape.schema, &shape.table),
            only: if judgement.partitioned { "" } else { "ONLY " },
            partitioned: judgement.partitioned,
            locator,
            columns: shape.columns.clone(),
            arrays: judgement.arrays,
        }),
        _ => Err(judgement.obstacles.swap_remove(0).into()),
    }
}

/// Looks at the target's table for `shape`, and says everything that stands in the way.
///
/// # Errors
/// Where the target does not answer.
pub async fn judge(client: &Client, shape: &Shape) -> Result<Judgement> {
    let failed = |error: tokio_postgres::Error| fault_of(&error).at(format_args!("look at table {shape}"));
    let name = qualified(&shape.schema, &shape.table);
    let row = client.query_opt(TABLE, &[&&*shape.schema, &&*shape.table]).await.map_err(failed)?;
    let mut obstacles = Vec::new();
    let mut obstacle = |kind, what, sql| obstacles.push(Obstacle { kind, what, sql });
    let Some(row) = row else {
        let mut columns = Vec::new();
        for column in &shape.columns {
            columns.push(format!("{} {}", quoted(&column.name), type_text(client, column).await?));
        }
        let keys: Vec<String> = shape.key_columns().map(|at| quoted(&shape.columns[at].name)).collect();
        if !keys.is_empty() && shape.identity != Identity::Full {
            columns.push(format!("PRIMARY KEY ({})", keys.join(", ")));
        }
        let sql = format!("CREATE TABLE {name} ({})", columns.join(", "));
        obstacle(ObstacleKind::Missing, format!("table {shape} does not exist at the target"), sql);
        return Ok(Judgement { obstacles, locator: None, partitioned: false, arrays: Box::default() });
    };
    let (oid, kind): (u32, String) = (row.get(0), row.get(1));
    let schemas: Vec<String> = row.get(4);
    if !row.get::<_, bool>(3) || !schemas.is_empty() {
        let mut grants = write_tables(row.get(5), &[(shape.schema.to_string(), shape.table.to_string())]);
        if !schemas.is_empty() {
            grants = format!("{grants} {}", use_schemas(row.get(5), &schemas));
        }
        obstacle(ObstacleKind::Privilege, format!("write to table {shape}"), grants.replace('\n', " "));
    }
    if row.get(2) {
        obstacle(
            ObstacleKind::RowSecurity,
            format!("row security at the target hides rows of {shape} from us"),
            format!("ALTER ROLE {} BYPASSRLS", quoted(row.get(5))),
        );
    }
    let rows = client.query(COLUMNS, &[&oid]).await.map_err(failed)?;
    let found: Vec<Found> = rows
        .iter()
        .map(|row| Found {
            name: row.get(0),
            generated: row.get(1),
            identity: row.get(2),
            must_be_given: row.get(3),
            typmods: [row.get(4), row.get(5)],
            type_schema: row.get(6),
            type_name: row.get(7),
            definition: row.get(8),
            is_array: row.get(9),
        })
        .collect();
    let keys = client.query(KEYS, &[&oid]).await.map_err(failed)?;
    let keys: Vec<Vec<String>> = keys.iter().map(|row| row.get(0)).collect();
    let locator = locator(shape, &keys);
    obstacles.extend(compare(client, shape, &name, &found, &locator).await?);
    let is_array = |column: &Column| found.iter().any(|it| it.is_array && *it.name == *column.name);
    let arrays = shape.columns.iter().map(is_array).collect();
    Ok(Judgement { obstacles, locator: Some(locator), partitioned: kind == "p", arrays })
}

async fn compare(
    client: &Client,
    shape: &Shape,
    name: &str,
    found: &[Found],
    locator: &Locator,
) -> Result<Vec<Obstacle>> {
    let mut obstacles = Vec::new();
    let mut differs = |what: String, ddl: String| {
        obstacles.push(Obstacle {
            kind: ObstacleKind::Column,
            what: format!("table {shape}: {what}"),
            sql: format!("ALTER TABLE {name} {ddl}"),
        });
    };
    for (at, column) in shape.columns.iter().enumerate() {
        let quoted = quoted(&column.name);
        let Some(theirs) = found.iter().find(|theirs| *theirs.name == *column.name) else {
            let wanted = type_text(client, column).await?;
            differs(
                format!("column {} {wanted} does not exist at the target", column.name),
                format!(
                    "ADD COLUMN {quoted} {wanted} /* with the DEFAULT it has at the source, or old rows differ */"
                ),
            );
            continue;
        };
        let same_type = *theirs.type_schema == *column.type_schema
            && *theirs.type_name == *column.type_name
            && theirs.typmods.contains(&column.typmod);
        if !same_type {
            let wanted = type_text(client, column).await?;
            differs(
                format!("column {} is {wanted} at the source and {} here", column.name, theirs.definition),
                format!("ALTER COLUMN {quoted} TYPE {wanted}"),
            );
        }
        if !theirs.generated.is_empty() {
            differs(
                format!("column {} is written at the source and generated here", column.name),
                format!("ALTER COLUMN {quoted} DROP EXPRESSION"),
            );
        }
        let in_key = matches!(locator, Locator::Key(key) if key.contains(&at));
        if theirs.identity == "a" && !in_key && shape.identity != Identity::Nothing {
            differs(
                format!("column {} is GENERATED ALWAYS AS IDENTITY here: no update can set it", column.name),
                format!("ALTER COLUMN {quoted} SET GENERATED BY DEFAULT"),
            );
        }
    }
    let ours = |theirs: &&Found| shape.columns.iter().any(|column| *column.name == *theirs.name);
    for extra in found.iter().filter(|theirs| theirs.must_be_given && !ours(theirs)) {
        differs(
            format!(
                "column {} {} NOT NULL is here, without a default, and not at the source",
                extra.name, extra.definition
            ),
            format!("ALTER COLUMN {} DROP NOT NULL", quoted(&extra.name)),
        );
    }
    Ok(obstacles)
}

/// How rows are found: by the first unique index whose columns are in every old image.
fn locator(shape: &Shape, keys: &[Vec<String>]) -> Locator {
    let available: Vec<usize> = match shape.identity {
        Identity::Nothing => return Locator::Nowhere,
        Identity::Full => (0..shape.columns.len()).collect(),
        Identity::Default | Identity::Index => shape.key_columns().collect(),
    };
    let place = |name: &String| available.iter().copied().find(|&at| *shape.columns[at].name == **name);
    let usable = keys.iter().find_map(|key| key.iter().map(place).collect::<Option<Vec<usize>>>());
    match usable {
        Some(columns) => Locator::Key(columns.into()),
        None if shape.identity == Identity::Full => Locator::WholeRow,
        None if available.is_empty() => Locator::Nowhere,
        None => Locator::Columns(available.into()),
    }
}

/// A column's type as DDL would write it, whatever the path of whoever runs it: ours leads further than theirs.
async fn type_text(client: &Client, column: &Column) -> Result<String> {
    let sql =
        "SELECT CASE WHEN n.nspname IN ('pg_catalog', 'public') OR starts_with(text, schema || '.') THEN text
                           ELSE schema || '.' || text END
                 FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace,
                      format_type(t.oid, $3) text, quote_ident(n.nspname) schema
                WHERE n.nspname = $1 AND t.typname = $2";
    let found = client
        .query_opt(sql, &[&&*column.type_schema, &&*column.type_name, &column.typmod])
        .await
        .map_err(|error| fault_of(&error).at("look up a type"))?;
    Ok(match found {
        Some(row) => row.get(0),
        None => qualified(&column.type_schema, &column.type_name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_what_old_images_hold() {
        let column = |name: &str, key| Column {
            name: name.into(),
            type_schema: "pg_catalog".into(),
            type_name: "int8".into(),
            typmod: -1,
            key,
        };
        let shape = |identity, keys: [bool; 3]| {
            Shape::new(
                "public",
                "t",
                identity,
                [column("a", keys[0]), column("b", keys[1]), column("c", keys[2])],
            )
        };
        let keyed = |keys: &[&[&str]]| -> Vec<Vec<String>> {
            keys.iter().map(|key| key.iter().map(|&name| name.to_owned()).collect()).collect()
        };
        use Identity::{Default, Full, Index, Nothing};
        for (shape, keys, expected) in [
            (shape(Default, [true, true, false]), keyed(&[&["b", "a"]]), Locator::Key([1, 0].into())),
            (shape(Default, [true, true, false]), keyed(&[&["a", "c"], &["b"]]), Locator::Key([1].into())),
            (shape(Index, [true, false, false]), keyed(&[&["c"]]), Locator::Columns([0].into())),
            (shape(Full, [true; 3]), keyed(&[&["c"]]), Locator::Key([2].into())),
            (shape(Full, [true; 3]), keyed(&[]), Locator::WholeRow),
            (shape(Default, [false; 3]), keyed(&[&["a"]]), Locator::Nowhere),
            (shape(Nothing, [false; 3]), keyed(&[&["a"]]), Locator::Nowhere),
        ] {
            assert_eq!(locator(&shape, &keys), expected, "{shape:?}");
        }
    }
}
