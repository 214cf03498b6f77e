//! Proves how a daemon behaves as a service: what it tells the service manager, and that its listener speaks
//! TLS to whoever may be outside. No server runs here: a daemon starts, and says so, without its database.

use std::{
    os::unix::net::UnixDatagram,
    process::{Command, Stdio},
    time::Duration,
};

use testbed::{Authority, Daemon, eventually, http, ports};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(120);

/// A daemon of servers that do not answer.
fn alone(http: &str) -> (testbed::daemon::Builder, std::net::SocketAddr) {
    let (address, nobody) = (ports::loopback(ports::free().unwrap()), ports::free().unwrap());
    let config = format!(
        "region = \"eu-west-1\"\n[database]\nurl = \"postgres://landfall@127.0.0.1:{nobody}/shop?sslmode=disable\"\n\
         [[link]]\nfrom = \"us-east-1\"\nbrokers = [\"127.0.0.1:{nobody}\"]\n[http]\nlisten = \"{address}\"\n{http}"
    );
    (Daemon::builder(LANDFALL, "alone", &config).http(address), address)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_hears_that_it_serves_that_it_turns_and_that_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let hear = |patience: Duration| {
        socket.set_read_timeout(Some(patience)).unwrap();
        let mut word = [0; 256];
        let length = socket.recv(&mut word).ok()?;
        Some(String::from_utf8_lossy(&word[..length]).into_owned())
    };
    let (daemon, address) = alone("");
    let daemon = daemon.env("NOTIFY_SOCKET", path.to_str().unwrap()).env("WATCHDOG_USEC", "1500000");
    let mut daemon = daemon.start().unwrap();
    assert_eq!(hear(PATIENCE).as_deref(), Some("READY=1"), "{}", daemon.log_tail());
    let (status, _) = http::get(address, "/health/shallow").await.unwrap();
    assert_eq!(status, 200, "ready is said when the listener answers");
    for _ in 0..3 {
        assert_eq!(hear(PATIENCE).as_deref(), Some("WATCHDOG=1"), "{}", daemon.log_tail());
    }
    // A process that does not turn says nothing, however long one listens.
    daemon.sigstop().unwrap();
    let quiet = (0..20).any(|_| hear(Duration::from_secs(3)).is_none());
    assert!(quiet, "it is fed though the process stands still");
    daemon.sigcont().unwrap();
    assert_eq!(hear(PATIENCE).as_deref(), Some("WATCHDOG=1"), "{}", daemon.log_tail());
    let (ended, _) = daemon.sigterm(PATIENCE).await.unwrap();
    assert!(ended.success(), "{ended}");
    let words: Vec<String> = std::iter::from_fn(|| hear(Duration::from_millis(100))).collect();
    assert!(words.contains(&"STOPPING=1".to_owned()), "{words:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_a_start_is_written_whatever_the_log_leaves_out() {
    let nowhere = "/nowhere/http.pem";
    for (format, level) in [("text", "off"), ("json", "landfall=off,info"), ("json", "info")] {
        let config = format!(
            "region = \"eu-west-1\"\n[database]\nurl = \"postgres://landfall@127.0.0.1:1/shop\"\n\
             [[link]]\nfrom = \"us-east-1\"\nbrokers = [\"127.0.0.1:1\"]\n[http]\n\
             listen = \"127.0.0.1:0\"\ntls_certificate = \"{nowhere}\"\ntls_key = \"{nowhere}\"\n\
             [log]\nformat = \"{format}\"\nlevel = \"{level}\""
        );
        let mut daemon = Daemon::builder(LANDFALL, "wrong", &config).start().unwrap();
        let ended = daemon.wait_exit(PATIENCE).await;
        assert_eq!(ended.and_then(|status| status.code()), Some(2), "{}", daemon.log_tail());
        let log = daemon.log();
        let fatal: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(fatal.len(), 1, "{log}");
        assert!(fatal[0].contains("LF-CONFIG") && fatal[0].contains(nowhere), "{log}");
        assert_eq!(format == "json", fatal[0].starts_with('{'), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_waited_for_and_a_hangup_ends_nothing() {
    let (builder, address) = alone("");
    let taken = std::net::TcpListener::bind(address).unwrap();
    let mut daemon = builder.start().unwrap();
    let waits = async |daemon: &Daemon, turn| {
        let waits = async || Ok(daemon.log().matches("LF-LISTEN").count() == turn);
        eventually(PATIENCE, "it says that it waits", waits).await.unwrap();
    };
    waits(&daemon, 1).await;
    let (ended, _) = daemon.sigterm(PATIENCE).await.unwrap();
    assert!(ended.success(), "{ended}");
    daemon.start_again().unwrap();
    waits(&daemon, 2).await;
    drop(taken);
    let answers = async || Ok(http::get(address, "/health/shallow").await.is_ok());
    eventually(PATIENCE, "it answers", answers).await.unwrap();
    std::process::Command::new("kill").args(["-HUP", &daemon.pid().unwrap().to_string()]).status().unwrap();
    eventually(PATIENCE, "it says what a hangup does", async || {
        Ok(daemon.log().contains("SIGHUP changes nothing"))
    })
    .await
    .unwrap();
    assert!(answers().await.unwrap());
    let (ended, _) = daemon.sigterm(PATIENCE).await.unwrap();
    assert!(ended.success(), "{ended}");
}

#[test]
fn the_unit_is_sound_and_exposes_little() {
    // The binary is put where a package would put it only on the machine that installs it.
    let unit = std::fs::read_to_string("packaging/landfall.service").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("landfall.service");
    std::fs::write(&path, unit.replace("/usr/bin/landfall", LANDFALL)).unwrap();
    let verified = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let about_it: Vec<&str> = said.lines().filter(|line| line.contains("landfall")).collect();
    assert!(verified.status.success() && about_it.is_empty(), "{said}");
    let mut security = Command::new("systemd-analyze");
    let rated = security.args(["security", "--offline=true", "--threshold=15"]).arg(&path).output().unwrap();
    assert!(rated.status.success(), "{}", String::from_utf8_lossy(&rated.stdout));
}

/// What an HTTP client of another make gets, which trusts this authority and insists on this name.
fn asked(port: u16, authority: &Authority, name: &str) -> String {
    let mut client = Command::new("openssl");
    client.args(["s_client", "-quiet", "-verify_return_error", "-verify_hostname", name]);
    client.args(["-connect", &format!("127.0.0.1:{port}"), "-CAfile"]).arg(authority.ca());
    let client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = client.spawn().unwrap();
    let request = b"GET /health/shallow HTTP/1.0\r\n\r\n";
    // One that was refused may have ended before it is told what to ask.
    let _ = std::io::Write::write_all(client.stdin.as_mut().unwrap(), request);
    let output = client.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_speaks_tls_and_status_knows_its_certificate() {
    let (ours, theirs) = (Authority::new("ours").unwrap(), Authority::new("theirs").unwrap());
    let first = ours.issue("localhost").unwrap();
    let tls = format!(
        "tls_certificate = \"{}\"\ntls_key = \"{}\"\n",
        first.certificate.display(),
        first.key.display()
    );
    let (daemon, address) = alone(&tls);
    let daemon = daemon.start().unwrap();
    let port = address.port();
    let up = eventually(PATIENCE, "it answers a client that checks authority and name", async || {
        Ok(asked(port, &ours, "localhost").ends_with("\r\n\r\nOK\n"))
    });
    up.await.unwrap_or_else(|error| panic!("{error}\n{}", daemon.log_tail()));
    assert_eq!(asked(port, &ours, "elsewhere"), "", "the name is certified");
    assert_eq!(asked(port, &theirs, "localhost"), "", "by nobody else");
    let plain = http::get(address, "/status").await;
    assert!(plain.is_err(), "plain text is not answered: {plain:?}");

    let status = daemon.command(&["status", "--json"]).await.unwrap();
    let page = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(status.status.code(), Some(1), "its database is away: {page}");
    assert!(page.contains("\"region\":\"eu-west-1\""), "{page}");

    // A renewed certificate is shown without a restart, and the old one is no longer taken for it.
    let config = std::fs::read_to_string(daemon.config_path()).unwrap();
    let kept = first.certificate.with_extension("old");
    std::fs::copy(&first.certificate, &kept).unwrap();
    let renewed = ours.issue("localhost").unwrap();
    assert_eq!(renewed.certificate, first.certificate);
    eventually(PATIENCE, "the renewed one is shown", async || {
        Ok(daemon.command(&["status"]).await?.status.code() == Some(1))
    })
    .await
    .unwrap();
    let old = config.replace(&first.certificate.display().to_string(), &kept.display().to_string());
    std::fs::write(daemon.config_path(), old).unwrap();
    let refused = daemon.command(&["status"]).await.unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("another certificate than http.tls_certificate names"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_used_ends_the_start() {
    let authority = Authority::new("ours").unwrap();
    let (one, other) = (authority.issue("localhost").unwrap(), authority.issue("elsewhere").unwrap());
    for (certificate, key, says) in
        [(&one.certificate, &other.key, "http.tls_key: use "), (&one.key, &one.key, "http.tls_certificate: ")]
    {
        let tls =
            format!("tls_certificate = \"{}\"\ntls_key = \"{}\"\n", certificate.display(), key.display());
        let mut daemon = alone(&tls).0.start().unwrap();
        let ended = daemon.wait_exit(PATIENCE).await;
        assert_eq!(ended.and_then(|status| status.code()), Some(2), "{}", daemon.log_tail());
        assert!(daemon.log().contains("LF-CONFIG") && daemon.log().contains(says), "{}", daemon.log_tail());
    }
}
