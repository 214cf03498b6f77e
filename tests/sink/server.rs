//! A Postgres server of this test's own, in a directory of its own, ended with the last test that
//! uses it. Everything about how it is started is behind [`server`].

use std::{
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use landfall::{
    postgres::{
        Address, Connection, TlsMode,
        catalog::role_privileges,
        connect,
        grants::{Duties, lacking},
    },
    secret::Secret,
};

const BINARIES: &str = "/usr/lib/postgresql/15/bin";

pub struct Server {
    child: Mutex<Child>,
    port: u16,
    /// What is granted on a parameter belongs to all databases: of two tests that find it missing, one grants it.
    granting: tokio::sync::Mutex<()>,
    _directory: tempfile::TempDir,
}

static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

/// The server all tests of this process share.
pub fn server() -> Arc<Server> {
    let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(server) = shared.upgrade() {
        return server;
    }
    let server = Server::alone();
    *shared = Arc::downgrade(&server);
    server
}

fn command(program: &str) -> Command {
    let mut command = Command::new(PathBuf::from(BINARIES).join(program));
    if let Some((uid, gid)) = unprivileged() {
        command.uid(uid).gid(gid);
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Postgres refuses to run as root.
fn unprivileged() -> Option<(u32, u32)> {
    let id = |flag: &str| {
        let out = Command::new("id").args([flag, "postgres"]).output().ok()?;
        String::from_utf8(out.stdout).ok()?.trim().parse().ok()
    };
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
    if root { Some((id("-u")?, id("-g")?)) } else { None }
}

impl Server {
    /// One for a test that changes its settings.
    pub fn alone() -> Arc<Self> {
        Arc::new(Self::start())
    }

    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        if let Some((uid, gid)) = unprivileged() {
            chown(directory.path(), Some(uid), Some(gid)).expect("chown");
        }
        let data = directory.path().join("data");
        let initdb = command("initdb")
            .args(["-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8", "--no-sync", "-D"])
            .arg(&data)
            .status();
        assert!(initdb.expect("initdb").success());
        let port = testbed::ports::free().expect("a port");
        let child = Self::spawn(&data, directory.path(), port);
        Self {
            child: Mutex::new(child),
            port,
            granting: tokio::sync::Mutex::default(),
            _directory: directory,
        }
    }

    fn spawn(data: &Path, sockets: &Path, port: u16) -> Child {
        let mut postgres = command("postgres");
        postgres.arg("-D").arg(data);
        for setting in [
            format!("port={port}"),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", sockets.display()),
            "fsync=off".to_owned(),
            "wal_level=logical".to_owned(),
            // Each origin ever used keeps one.
            "max_replication_slots=100".to_owned(),
            "track_commit_timestamp=on".to_owned(),
        ] {
            postgres.arg("-c").arg(setting);
        }
        postgres.spawn().expect("postgres starts")
    }

    /// A fresh database, named after the test, in which the sink's role may do what it is told to be granted
    /// and no more: on the tables that the test makes later, too.
    pub async fn database(self: &Arc<Self>, name: &str) -> Database {
        let admin = self.connected("postgres").await;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("create database");
        let address = self.address(name, ROLE);
        let client = connect(&self.address(name, SUPERUSER), "test").await.expect("connect");
        let granting = self.granting.lock().await;
        // The tests share the server, and so the role.
        let _ = admin.batch_execute(&format!("CREATE ROLE {ROLE} LOGIN")).await;
        let poor = connect(&address, "test").await.expect("connect");
        let privileges = role_privileges(&poor).await.expect("ask");
        for lack in lacking(&privileges, Duties { source: false, sink: true }) {
            client.batch_execute(&lack.sql).await.expect(&lack.sql);
        }
        drop(granting);
        let later = format!(
            "ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLES TO {ROLE};
             ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO {ROLE}"
        );
        client.batch_execute(&later).await.expect("grant what is made later");
        Database { server: self.clone(), address, client }
    }

    async fn connected(&self, database: &str) -> Connection {
        // A minute: on a machine that compiles meanwhile, even its first start takes its time.
        for _ in 0..1200 {
            match connect(&self.address(database, SUPERUSER), "test").await {
                Ok(connection) => return connection,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        panic!("the server did not start");
    }

    fn address(&self, database: &str, user: &str) -> Address {
        address(self.port, database, user)
    }
}

/// Where a database of a server on `port` is.
pub fn address(port: u16, database: &str, user: &str) -> Address {
    Address {
        host: "127.0.0.1".to_owned(),
        port,
        user: user.to_owned(),
        password: Secret::new(""),
        password_file: None,
        database: database.to_owned(),
        tls: TlsMode::Disable,
        tls_root: None,
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let child = self.child.get_mut().expect("child");
        // SIGINT is Postgres's fast shutdown: its children end with it.
        let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        let _ = child.wait();
    }
}

/// Whom the sink works as.
pub const ROLE: &str = "landfall";

/// Who makes the tables, and looks from outside.
const SUPERUSER: &str = "postgres";

pub struct Database {
    #[allow(dead_code, reason = "keeps the server running")]
    server: Arc<Server>,
    pub address: Address,
    pub client: Connection,
}
