//! An authority that signs certificates, as a company has one for its own hosts.
//!
//! Made by the `openssl` command, so that neither end of a connection under
//! test is the witness of its own certificates.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::home;

/// What every certificate here is made with: a curve that is quick to draw a
/// key on, and a life of two days.
const MADE: &[&str] =
    &["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];

/// An authority of its own, gone with its files on drop.
#[derive(Debug)]
pub struct Authority {
    scratch: TempDir,
}

/// A certificate and its key, each a file of PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key, unencrypted.
    pub key: PathBuf,
}

impl Authority {
    /// Draws a key and signs itself.
    pub fn new(name: &str) -> Result<Authority> {
        let scratch = home::scratch(&format!("authority-{name}"))?;
        let authority = Authority { scratch };
        let subject = format!("/CN={name}");
        let mut openssl = Command::new("openssl");
        openssl.args(MADE).args(["-subj", &subject, "-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
        run(openssl.arg("-keyout").arg(authority.file("ca.key")).arg("-out").arg(authority.ca()))?;
        Ok(authority)
    }

    /// Its own certificate: what a client trusts.
    pub fn ca(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// Signs a server's certificate for this host and no other.
    pub fn issue(&self, host: &str) -> Result<Certificate> {
        let issued = Certificate {
            certificate: self.file(&format!("{host}.pem")),
            key: self.file(&format!("{host}.key")),
        };
        let kind = if host.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
        let mut openssl = Command::new("openssl");
        openssl.args(MADE).args(["-subj", &format!("/CN={host}")]);
        openssl.args(["-addext", &format!("subjectAltName={kind}:{host}")]);
        openssl.args(["-addext", "basicConstraints=critical,CA:false"]);
        openssl.arg("-CA").arg(self.ca()).arg("-CAkey").arg(self.file("ca.key"));
        run(openssl.arg("-keyout").arg(&issued.key).arg("-out").arg(&issued.certificate))?;
        Ok(issued)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}

impl Certificate {
    /// Key and certificate in one file, as a broker takes them.
    pub fn together(&self, into: &Path) -> Result<()> {
        let mut text = std::fs::read_to_string(&self.key).context("read a key")?;
        text.push_str(&std::fs::read_to_string(&self.certificate).context("read a certificate")?);
        std::fs::write(into, text).context("write a key store")
    }
}

/// The key a password is stretched to (PBKDF2, SHA-512): what a server keeps
/// of it for SCRAM.
pub(crate) fn stretched(password: &str, salt: &[u8], iterations: i32) -> Result<Vec<u8>> {
    let salt: String = salt.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut openssl = Command::new("openssl");
    openssl.args(["kdf", "-binary", "-keylen", "64", "-kdfopt", "digest:SHA512"]);
    for option in [format!("pass:{password}"), format!("hexsalt:{salt}"), format!("iter:{iterations}")] {
        openssl.arg("-kdfopt").arg(option);
    }
    let key = run(openssl.arg("PBKDF2"))?;
    ensure!(key.len() == 64, "a key of {} bytes", key.len());
    Ok(key)
}

fn run(openssl: &mut Command) -> Result<Vec<u8>> {
    let output = openssl.output().context("run openssl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{openssl:?} ended with {}: {said}", output.status);
    Ok(output.stdout)
}
