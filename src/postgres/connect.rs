//! Connecting to a Postgres server, and what its refusals mean.

use std::{path::PathBuf, time::Duration};

use pgwire_replication::{
    PgWireError, SslMode, TlsConfig,
    tls::rustls::{MaybeTlsStream, maybe_upgrade_to_tls},
};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tokio_postgres::{Client, NoTls, error::SqlState};

use super::{
    grants::connect_to,
    vanished::{Line, Noted, watch_over},
};
use crate::{
    fault::{Code, Fault, Result},
    secret::Secret,
};

/// How long a server may take to accept a connection, handshakes included. A reachable server over
/// the widest area answers in one or two seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a database is, and who we are there.
#[derive(Clone, Debug)]
pub struct Address {
    /// Host name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The role.
    pub user: String,
    /// Its password; empty where none is asked for.
    pub password: Secret,
    /// The file it was read from, and is read from again at each connect: passwords are changed while we run.
    pub password_file: Option<PathBuf>,
    /// The database.
    pub database: String,
    /// How far the server must prove who it is.
    pub tls: TlsMode,
    /// The certificates to trust (PEM), in place of the public ones.
    pub tls_root: Option<PathBuf>,
}

/// How far the server must prove who it is: libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Plain text.
    Disable,
    /// TLS where the server has it.
    Prefer,
    /// TLS, whoever answers.
    Require,
    /// TLS, by a trusted certificate.
    VerifyCa,
    /// TLS, by a trusted certificate for this host. The default.
    VerifyFull,
}

impl Address {
    /// The password as its file has it now; as it was at the start where that cannot be read, or there is none.
    pub(super) async fn current_password(&self) -> Secret {
        let Some(file) = &self.password_file else { return self.password.clone() };
        match tokio::fs::read_to_string(file).await {
            Ok(text) => Secret::of_line(&text),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the password's file cannot be read: the one it held at the start is used");
                self.password.clone()
            }
        }
    }

    /// What the transport library calls our TLS mode.
    pub fn tls_config(&self) -> TlsConfig {
        TlsConfig {
            mode: match self.tls {
                TlsMode::Disable => SslMode::Disable,
                TlsMode::Prefer => SslMode::Prefer,
                TlsMode::Require => SslMode::Require,
                TlsMode::VerifyCa => SslMode::VerifyCa,
                TlsMode::VerifyFull => SslMode::VerifyFull,
            },
            ca_pem_path: self.tls_root.clone(),
            ..TlsConfig::default()
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "postgres://{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

/// A session, and the task that moves its bytes. Dropping it ends both.
pub struct Connection {
    /// To run statements with.
    pub client: Client,
    driver: JoinHandle<()>,
}

impl std::ops::Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Opens a session named `application` with the output settings every value of ours is written
/// under, so that the same value is the same text everywhere.
///
/// # Errors
/// [`Code::DatabaseUnreachable`], [`Code::DatabaseRefused`] or [`Code::PrivilegeMissing`], with the address.
pub async fn connect(address: &Address, application: &str) -> Result<Connection> {
    let place = |fault: Fault| {
        let fault = fault.at(format_args!("connect to {address}"));
        match fault.code() {
            Code::PrivilegeMissing => fault.remedied_by(format!(
                "run there as a superuser: {} it is tried again without a restart",
                connect_to(&address.user, &address.database)
            )),
            _ => fault,
        }
    };
    let session = timeout(CONNECT_TIMEOUT, open(address, application)).await.unwrap_or_else(|_| {
        let seconds = CONNECT_TIMEOUT.as_secs();
        Err(Fault::new(Code::DatabaseUnreachable, format!("no answer within {seconds} s")))
    });
    session.map_err(place)
}

/// The settings a value's text depends on, and what is made of it, pinned the same on both ends (case T17); and that a
/// statement sees what was committed before it.
pub const OUTPUT_SETTINGS: &str = "-c timezone=UTC -c datestyle=ISO,YMD -c intervalstyle=postgres \
     -c extra_float_digits=3 -c bytea_output=hex -c lc_monetary=C -c xmlbinary=base64 -c xmloption=content \
     -c array_nulls=on -c default_transaction_isolation=read\\ committed";

/// What a role or a database may be set to for applications' sake, and what would have a session of ours refuse to write, end
/// while it waits, or read a literal otherwise. How long a statement or a lock may take is for whoever runs it to say.
const UNHINDERED: &str = "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 \
     -c idle_session_timeout=0 -c default_transaction_read_only=off -c standard_conforming_strings=on";

/// The same of what Postgres 17 brought, which an older server does not know.
const UNHINDERED_17: &str = "
    SELECT set_config('transaction_timeout', '0', false) WHERE current_setting('server_version_num')::int4 >= 170000";

/// Has the server ask as we do ([`watch_over`]) whether the other end is there: what a daemon holds whose host is gone (locks,
/// a snapshot, a replication origin) is let go half a minute later, not two hours.
pub(super) const WATCHED: &str =
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=4";

/// Has `=` and `>` be what an index and ORDER BY take them for, whatever schema a type's extension was put in: where an
/// operator is not found by the path, that of a type it can be cast to may be (`text = text` for two `citext`), which is
/// another order, and no index is used for it. Behind the role's own path, which its triggers may need; and only schemas in
/// which nobody makes operators but superusers and the database's owner, since what is found is run as us.
const OPERATORS_FOUND: &str = "
    SELECT set_config('search_path',
                      concat_ws(', ', nullif(current_setting('search_path'), ''),
                                string_agg(DISTINCT quote_ident(n.nspname), ', ')), false)
      FROM pg_opclass c JOIN pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
      JOIN pg_amop a ON a.amopfamily = c.opcfamily JOIN pg_operator o ON o.oid = a.amopopr
      JOIN pg_namespace n ON n.oid = o.oprnamespace
      JOIN pg_database d ON d.datname = current_database() JOIN pg_roles r ON r.oid = n.nspowner
     WHERE n.nspname <> ALL (current_schemas(true)) AND has_schema_privilege(n.oid, 'USAGE')
       AND (r.rolsuper OR r.oid = d.datdba OR r.rolname = 'pg_database_owner')
       AND NOT EXISTS (SELECT FROM aclexplode(n.nspacl) g
                        WHERE g.privilege_type = 'CREATE' AND g.grantee NOT IN (n.nspowner, d.datdba))
    HAVING count(*) > 0";

const SET_UP: &str = "set up a session";

/// Has a session find the operators of extensions that have been made since it was opened.
///
/// # Errors
/// Where the server does not answer.
pub async fn find_operators(client: &Client) -> Result<()> {
    let set = client.batch_execute(OPERATORS_FOUND).await;
    set.map_err(|error| fault_of(&error).at(SET_UP))
}

async fn open(address: &Address, application: &str) -> Result<Connection> {
    let unreachable = |error: std::io::Error| Fault::new(Code::DatabaseUnreachable, error.to_string());
    let (tcp, line) = dial(address).await.map_err(unreachable)?;
    let stream = maybe_upgrade_to_tls(tcp, &address.tls_config(), &address.host).await.map_err(wire_fault)?;
    let mut config = tokio_postgres::Config::new();
    config
        .user(&address.user)
        .dbname(&address.database)
        .application_name(application)
        .options(format!("{OUTPUT_SETTINGS} {UNHINDERED} {WATCHED}"))
        .ssl_mode(tokio_postgres::config::SslMode::Disable);
    let password = address.current_password().await;
    if !password.is_empty() {
        config.password(password.reveal());
    }
    let (client, driver) = match stream {
        MaybeTlsStream::Plain(stream) => drive(&config, stream, line).await?,
        MaybeTlsStream::Tls(stream) => drive(&config, *stream, line).await?,
    };
    let set_up = client.batch_execute(&format!("{UNHINDERED_17}; {OPERATORS_FOUND}")).await;
    set_up.map_err(|error| fault_of(&error).at(SET_UP))?;
    Ok(Connection { client, driver })
}

/// A connection that the kernel watches over, and where it leads.
pub(super) async fn dial(address: &Address) -> std::io::Result<(TcpStream, Line)> {
    let tcp = TcpStream::connect((address.host.as_str(), address.port)).await?;
    tcp.set_nodelay(true)?;
    watch_over(&tcp)?;
    let line = Line::to(tcp.peer_addr()?);
    Ok((tcp, line))
}

async fn drive<S>(config: &tokio_postgres::Config, stream: S, line: Line) -> Result<(Client, JoinHandle<()>)>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let stream = Noted::new(stream, line.clone());
    let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(|error| fault_of(&error))?;
    let driver = async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(%error, "database session ended");
            },
            () = line.until_gone() => (),
        }
    };
    Ok((client, crate::task::spawn("postgres session", driver)))
}

/// Classes of SQLSTATE that no waiting mends: data, limits of the server, and what it takes for a bug or a broken file.
const LASTING: [&str; 3] = ["SQLSTATE 22", "SQLSTATE 54", "SQLSTATE XX"];

/// What an error of the replication transport means.
pub fn wire_fault(error: PgWireError) -> Fault {
    let code = match &error {
        PgWireError::Auth(_) | PgWireError::Tls(_) => Code::DatabaseRefused,
        PgWireError::Server(text) if text.contains("SQLSTATE 28") => Code::DatabaseRefused,
        PgWireError::Server(text) if LASTING.iter().any(|class| text.contains(class)) => {
            Code::ProtocolUnknown
        }
        PgWireError::Protocol(_) | PgWireError::MessageTooLarge { .. } => Code::ProtocolUnknown,
        _ => Code::DatabaseUnreachable,
    };
    Fault::new(code, "replication connection").because(error)
}

/// What an error of the SQL client means where the statement itself is not in question: the server
/// is away, refuses us, lacks a privilege or a resource. Everything else is [`Code::Internal`], for
/// the caller to look at first where a statement may fail for reasons of its own.
pub fn fault_of(error: &tokio_postgres::Error) -> Fault {
    let Some(server) = error.as_db_error() else {
        let text = chain(error);
        let code = if text.contains("password") || text.contains("authentication") {
            Code::DatabaseRefused
        } else {
            Code::DatabaseUnreachable
        };
        return Fault::new(code, text);
    };
    let state = server.code();
    let code = match state.code().get(..2) {
        _ if *state == SqlState::INSUFFICIENT_PRIVILEGE => Code::PrivilegeMissing,
        _ if *state == SqlState::LOCK_NOT_AVAILABLE || *state == SqlState::OBJECT_IN_USE => Code::TargetBusy,
        _ if *state == SqlState::READ_ONLY_SQL_TRANSACTION => Code::TargetBusy,
        // Invalid authorization; database missing.
        Some("28" | "3D") => Code::DatabaseRefused,
        // Serialization failure and deadlock; out of disk, memory or connections; statement or lock
        // cancelled.
        Some("40" | "53" | "57") if !is_shutdown(state) => Code::TargetBusy,
        // Connection exceptions, shutdowns, crashes.
        Some("08" | "57" | "58") => Code::DatabaseUnreachable,
        _ => Code::Internal,
    };
    let mut text = format!("{} (SQLSTATE {})", server.message(), state.code());
    for more in [server.detail(), server.hint(), server.where_()].into_iter().flatten() {
        text.push_str("; ");
        text.push_str(more);
    }
    Fault::new(code, text)
}

fn is_shutdown(state: &SqlState) -> bool {
    [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW].contains(state)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
