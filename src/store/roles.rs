//! The role that gateways have on PostgreSQL, where another one migrates: what it is given, and that
//! nothing else lets it change the schema or the audit.

use sqlx::{Connection, PgConnection};

use super::migrate::MIGRATE_TIMEOUT;
use super::pool::Pool;
use super::{Store, StoreError, within};

/// Most findings that an error tells of.
const FINDINGS_MAX: usize = 8;

/// Why the role of the gateways did not get its rights. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    #[error("only PostgreSQL has roles")]
    NoRoles,
    #[error("there is no such role; make it first: CREATE ROLE {0} LOGIN PASSWORD '…'")]
    NoSuchRole(String),
    /// It could not be kept from anything.
    #[error("it {0}: gateways need a role of their own, which is none of this")]
    TooMighty(&'static str),
    /// What it would have besides, by which way, and the statements that end it.
    #[error("it could still change what it must not. {0}")]
    Excess(String),
    /// What it needs and did not get.
    #[error(
        "it did not get all that it needs ({0}); migrate as the role that owns all tables, or give them \
         to that one: REASSIGN OWNED BY the_other TO the_owner"
    )]
    Lack(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for GrantError {
    fn from(error: sqlx::Error) -> GrantError {
        GrantError::Store(error.into())
    }
}

/// Names as the server quotes them, for statements.
#[derive(sqlx::FromRow)]
struct Names {
    role: String,
    database: String,
}

/// What makes a role one that can't be kept from anything.
#[derive(sqlx::FromRow)]
struct Might {
    is_superuser: bool,
    makes_roles: bool,
    is_owner: bool,
    is_of_the_server: bool,
}

/// A right that the role must not have and has.
#[derive(sqlx::FromRow)]
struct Finding {
    privilege: String,
    object: String,
    /// What it is a member of, and has the right by that.
    holder: Option<String>,
    is_everybodys: bool,
}

const NAMES: &str = "SELECT quote_ident(rolname) AS role, quote_ident(current_database()) AS database \
     FROM pg_roles WHERE rolname = $1";

const MIGHT: &str = "SELECT r.rolsuper OR EXISTS (SELECT FROM pg_roles s WHERE s.rolsuper \
         AND pg_has_role(r.oid, s.oid, 'MEMBER')) AS is_superuser, \
     EXISTS (SELECT FROM pg_roles c WHERE c.rolcreaterole AND pg_has_role(r.oid, c.oid, 'MEMBER')) \
         AS makes_roles, \
     EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace \
             AND pg_has_role(r.oid, c.relowner, 'MEMBER')) \
         OR EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace \
             AND p.proname LIKE 'wasmwiz%' AND pg_has_role(r.oid, p.proowner, 'MEMBER')) \
         OR EXISTS (SELECT FROM pg_database d WHERE d.datname = current_database() \
             AND pg_has_role(r.oid, d.datdba, 'MEMBER')) \
         OR EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = 'public' \
             AND pg_has_role(r.oid, n.nspowner, 'MEMBER')) AS is_owner, \
     EXISTS (SELECT FROM pg_roles g WHERE g.rolname IN \
             ('pg_execute_server_program', 'pg_write_server_files') \
             AND pg_has_role(r.oid, g.oid, 'MEMBER')) AS is_of_the_server \
     FROM pg_roles r WHERE r.rolname = $1";

/// Rights count whoever gave them: to the role itself (others than the owner can), to everybody (PUBLIC), or
/// to whatever it is a member of and could `SET ROLE` to; on all of a table or on a column of it.
const EXCESS: &str = "WITH forbidden (object, privilege) AS (VALUES \
         ('audit', 'UPDATE'), ('audit', 'DELETE'), ('audit', 'TRUNCATE'), ('audit', 'TRIGGER'), \
         ('_sqlx_migrations', 'INSERT'), ('_sqlx_migrations', 'UPDATE'), \
         ('_sqlx_migrations', 'DELETE'), ('_sqlx_migrations', 'TRUNCATE'), \
         ('_sqlx_migrations', 'TRIGGER'), ('SCHEMA public', 'CREATE')), \
     tables AS (SELECT c.oid, c.relname AS object, c.relacl AS acl FROM pg_class c \
         WHERE c.relnamespace = 'public'::regnamespace), \
     acls (object, acl) AS (SELECT object, acl FROM tables \
         UNION ALL SELECT t.object, a.attacl FROM tables t JOIN pg_attribute a ON a.attrelid = t.oid \
         UNION ALL SELECT 'SCHEMA public', nspacl FROM pg_namespace WHERE nspname = 'public'), \
     given AS (SELECT DISTINCT f.object, f.privilege, a.grantee \
         FROM forbidden f JOIN acls USING (object), aclexplode(acls.acl) a \
         WHERE a.privilege_type = f.privilege) \
     SELECT g.privilege, g.object, NULL AS holder, g.grantee = 0 AS is_everybodys \
     FROM given g JOIN pg_roles r ON r.rolname = $1 WHERE g.grantee IN (r.oid, 0) \
     UNION ALL SELECT f.privilege, f.object, quote_ident(m.rolname), FALSE \
     FROM forbidden f, pg_roles r JOIN pg_auth_members am ON am.member = r.oid \
         JOIN pg_roles m ON m.oid = am.roleid \
     WHERE r.rolname = $1 AND NOT EXISTS (SELECT FROM given g WHERE g.object = f.object \
             AND g.privilege = f.privilege AND g.grantee = 0) \
         AND EXISTS (SELECT FROM pg_roles x WHERE pg_has_role(m.oid, x.oid, 'MEMBER') AND CASE \
             WHEN f.object = 'SCHEMA public' THEN has_schema_privilege(x.oid, 'public', 'CREATE') \
             WHEN f.privilege IN ('INSERT', 'UPDATE') \
                 THEN has_any_column_privilege(x.oid, f.object, f.privilege) \
             ELSE has_table_privilege(x.oid, f.object, f.privilege) END) \
     ORDER BY 4, 3, 2, 1";

/// Those that a gateway needs. Others' can be in the schema too, such as an extension's.
const TABLES: [&str; 12] = [
    "_sqlx_migrations",
    "api_keys",
    "audit",
    "key_rotations",
    "module_blobs",
    "module_names",
    "modules",
    "token_families",
    "usage",
    "usage_daily",
    "usage_daily_exact",
    "users",
];

const LACK: &str = "SELECT p.privilege || ' on ' || quote_ident(c.relname) \
     FROM pg_class c, pg_roles r, (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) p (privilege) \
     WHERE r.rolname = $1 AND c.relnamespace = 'public'::regnamespace AND c.relname = ANY($2) \
     AND NOT (c.relname = 'audit' AND p.privilege IN ('UPDATE', 'DELETE')) \
     AND NOT (c.relname = '_sqlx_migrations' AND p.privilege <> 'SELECT') \
     AND NOT has_table_privilege(r.oid, c.oid, p.privilege) ORDER BY 1";

impl Store {
    /// Gives the role of the gateways what they need of the schema, takes away what would let it change
    /// the audit or the schema's versions, and looks whether it has such a right by another way. Only on
    /// PostgreSQL; as the owner of the tables.
    ///
    /// # Errors
    /// When there is no such role, it may do everything anyway, or has more or less afterwards than it
    /// should. Nothing is changed then.
    pub async fn grant_to(&self, role: &str) -> Result<(), GrantError> {
        let Pool::Postgres(postgres) = self.pool() else {
            return Err(GrantError::NoRoles);
        };
        // What is found is not an error of the database, which `within` knows alone.
        let work = async {
            let mut connection = postgres.connection_of_its_own().await?;
            let granted = give(&mut connection, role).await;
            // The transaction has ended either way.
            let _ = connection.close().await;
            Ok(granted)
        };
        within(MIGRATE_TIMEOUT, work).await?
    }
}

async fn give(connection: &mut PgConnection, role: &str) -> Result<(), GrantError> {
    let mut transaction = connection.begin().await?;
    let names: Option<Names> = sqlx::query_as(NAMES)
        .bind(role)
        .fetch_optional(&mut *transaction)
        .await?;
    let Some(names) = names else {
        return Err(GrantError::NoSuchRole(quoted(role)));
    };
    let might: Might = sqlx::query_as(MIGHT)
        .bind(role)
        .fetch_one(&mut *transaction)
        .await?;
    if let Some(why) = might.told() {
        return Err(GrantError::TooMighty(why));
    }
    for statement in grants(&names) {
        // Names are quoted by the server itself.
        let statement = sqlx::AssertSqlSafe(statement);
        let given = sqlx::raw_sql(statement).execute(&mut *transaction).await;
        given.map_err(not_given)?;
    }
    let excess: Vec<Finding> = sqlx::query_as(EXCESS)
        .bind(role)
        .fetch_all(&mut *transaction)
        .await?;
    if !excess.is_empty() {
        let told = several(excess.iter().map(|finding| finding.told(&names.role)));
        return Err(GrantError::Excess(told));
    }
    let lack: Vec<String> = sqlx::query_scalar(LACK)
        .bind(role)
        .bind(TABLES.to_vec())
        .fetch_all(&mut *transaction)
        .await?;
    if !lack.is_empty() {
        return Err(GrantError::Lack(several(lack)));
    }
    Ok(transaction.commit().await?)
}

/// The owner of some tables can't give rights to others.
fn not_given(error: sqlx::Error) -> GrantError {
    const INSUFFICIENT_PRIVILEGE: &str = "42501";
    match error.as_database_error() {
        Some(told) if told.code().as_deref() == Some(INSUFFICIENT_PRIVILEGE) => {
            GrantError::Lack(told.message().to_owned())
        }
        Some(_) | None => error.into(),
    }
}

/// What the role of the gateways may do. The last three take from what those before have given.
fn grants(Names { role, database }: &Names) -> [String; 7] {
    [
        format!("GRANT CONNECT ON DATABASE {database} TO {role}"),
        format!("GRANT USAGE ON SCHEMA public TO {role}"),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"),
        format!("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}"),
        format!("REVOKE UPDATE, DELETE, TRUNCATE, TRIGGER ON audit FROM {role}"),
        format!("REVOKE INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER ON _sqlx_migrations FROM {role}"),
        format!("REVOKE CREATE ON SCHEMA public FROM {role}"),
    ]
}

impl Might {
    fn told(&self) -> Option<&'static str> {
        [
            (
                self.is_superuser,
                "is a superuser, or a member of a role that is",
            ),
            (
                self.is_owner,
                "owns the tables, the schema or the database, or is a member of a role that does",
            ),
            (self.makes_roles, "may make roles (CREATEROLE)"),
            (
                self.is_of_the_server,
                "may write files or run programs on the database's machine",
            ),
        ]
        .into_iter()
        .find_map(|(is_so, why)| is_so.then_some(why))
    }
}

impl Finding {
    /// The right, and the statement that ends it.
    fn told(&self, role: &str) -> String {
        let Finding {
            privilege,
            object,
            holder,
            ..
        } = self;
        match holder {
            Some(holder) => format!(
                "As a member of {holder} it has {privilege} on {object}: REVOKE {holder} FROM {role};"
            ),
            None if self.is_everybodys => format!(
                "Everybody has {privilege} on {object}: REVOKE {privilege} ON {object} FROM PUBLIC;"
            ),
            None => format!(
                "Another role than the owner gave it {privilege} on {object}: as that role, \
                 REVOKE {privilege} ON {object} FROM {role} CASCADE;"
            ),
        }
    }
}

fn several(all: impl IntoIterator<Item = String>) -> String {
    let mut told: Vec<String> = all.into_iter().collect();
    let more = told.len().saturating_sub(FINDINGS_MAX);
    told.truncate(FINDINGS_MAX);
    if more > 0 {
        told.push(format!("And {more} more."));
    }
    told.join(" ")
}

/// A name as PostgreSQL reads it, where the server can't be asked because it has none of that name.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(holder: Option<&str>, is_everybodys: bool) -> Finding {
        Finding {
            privilege: "UPDATE".into(),
            object: "audit".into(),
            holder: holder.map(str::to_owned),
            is_everybodys,
        }
    }

    #[test]
    fn each_way_to_a_right_is_told_with_its_end() {
        let told = |holder, is_everybodys| finding(holder, is_everybodys).told("svc");
        let others = Some("\"the others\"");
        assert!(told(others, false).ends_with(": REVOKE \"the others\" FROM svc;"));
        assert!(told(None, false).contains("REVOKE UPDATE ON audit FROM svc CASCADE;"));
        assert!(told(None, true).ends_with(": REVOKE UPDATE ON audit FROM PUBLIC;"));
    }

    #[test]
    fn findings_are_not_told_without_end() {
        let many = (0..40).map(|n| format!("{n}."));
        assert!(several(many).ends_with("7. And 32 more."));
    }

    #[test]
    fn each_table_of_the_migrations_is_needed() {
        let migrations = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/postgres");
        let mut made = vec!["_sqlx_migrations".to_owned()];
        for file in std::fs::read_dir(migrations).unwrap() {
            let path = file.unwrap().path();
            if path.to_string_lossy().ends_with(".up.sql") {
                let sql = std::fs::read_to_string(path).unwrap();
                let tables = sql
                    .lines()
                    .filter_map(|line| line.strip_prefix("CREATE TABLE "));
                made.extend(tables.map(|rest| rest.split([' ', '(']).next().unwrap().to_owned()));
            }
        }
        made.sort();
        assert_eq!(made, TABLES);
    }

    #[test]
    fn names_can_not_end_their_quotes() {
        assert_eq!(quoted("a\"b; drop"), "\"a\"\"b; drop\"");
    }
}
