//! A headless Chromium, to see a page as its readers do.
//!
//! It is told what to do over a pair of pipes, in its own protocol: JSON, each message ended by a zero
//! byte (`--remote-debugging-pipe`). No port is opened, and no driver needs to be installed.
//!
//! HAZARD: it runs without its sandbox, which root may not use: for pages of our own, nothing else.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::home;

/// Chromium starts within a second or two; on a machine that is busy with builds it takes longer.
const PATIENCE: Duration = Duration::from_secs(180);

/// What a reader looks at a page with.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// In CSS pixels.
    pub width: u32,
    /// In CSS pixels.
    pub height: u32,
    /// A phone: its pixels are dense, and a page that is too wide is not scaled.
    pub phone: bool,
    /// The reader asked for dark colours.
    pub dark: bool,
}

/// A browser with one page. Dropped, it is killed.
#[derive(Debug)]
pub struct Browser {
    _process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    session: String,
    last: u64,
    complaints: Vec<String>,
    requests: Vec<String>,
    _scratch: TempDir,
}

impl Browser {
    /// Starts it, with an empty page.
    pub async fn start() -> Result<Browser> {
        let program = home::program("chromium")?;
        let scratch = home::scratch("browser")?;
        let log = std::fs::File::create(scratch.path().join("log")).context("make a log")?;
        // It takes orders from descriptor 3 and answers to 4.
        let mut process = Command::new("sh")
            .args(["-c", "exec 3<&0 4>&1 </dev/null >&2; exec \"$@\"", "sh"])
            .arg(program)
            .args(["--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu"])
            .args([
                "--no-first-run",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--force-color-profile=srgb",
            ])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg(format!("--user-data-dir={}", scratch.path().join("profile").display()))
            .env("HOME", scratch.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("start chromium")?;
        let orders = process.stdin.take().context("chromium's orders")?;
        let answers = BufReader::new(process.stdout.take().context("chromium's answers")?);
        let mut browser = Browser {
            _process: process,
            orders,
            answers,
            session: String::new(),
            last: 0,
            complaints: Vec::new(),
            requests: Vec::new(),
            _scratch: scratch,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" })).await?;
        let target = target["targetId"].clone();
        let attached =
            browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true })).await?;
        browser.session = attached["sessionId"].as_str().context("a session")?.to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({})).await?;
        }
        Ok(browser)
    }

    /// Looks at pages with this screen from here on.
    pub async fn screen(&mut self, screen: Screen) -> Result<()> {
        let metrics = json!({
            "width": screen.width, "height": screen.height, "mobile": screen.phone,
            "deviceScaleFactor": if screen.phone { 2 } else { 1 },
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics).await?;
        let scheme = if screen.dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features).await?;
        Ok(())
    }

    /// Goes to a page; what it draws by itself may come later.
    pub async fn open(&mut self, url: &str) -> Result<()> {
        let answer = self.call("Page.navigate", json!({ "url": url })).await?;
        ensure!(answer["errorText"].is_null(), "open {url}: {}", answer["errorText"]);
        Ok(())
    }

    /// The value of an expression on the page.
    pub async fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let arguments = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", arguments).await?;
        if let Some(exception) = answer.get("exceptionDetails") {
            bail!("{expression}: {exception}");
        }
        Ok(answer["result"]["value"].take())
    }

    /// Waits until an expression is true on the page; one that cannot be evaluated yet is not true. An
    /// error shows the page's text.
    pub async fn until(&mut self, patience: Duration, what: &str, expression: &str) -> Result<()> {
        let deadline = tokio::time::Instant::now() + patience;
        while !matches!(self.evaluate(expression).await, Ok(Value::Bool(true))) {
            if tokio::time::Instant::now() > deadline {
                let text = self.evaluate("document.body.innerText").await?;
                bail!(
                    "{what}: not within {patience:?}; the page says:\n{}",
                    text.as_str().unwrap_or_default()
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Writes what is seen, the whole page, into a PNG.
    pub async fn screenshot(&mut self, file: &Path) -> Result<()> {
        let arguments = json!({ "format": "png", "captureBeyondViewport": true });
        let answer = self.call("Page.captureScreenshot", arguments).await?;
        let image = from_base64(answer["data"].as_str().context("a picture")?)?;
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(file, image).with_context(|| format!("write {}", file.display()))
    }

    /// What the page complained of so far: exceptions, errors on its console, breaches of its policy.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Every address the pages have asked for so far.
    pub fn requests(&self) -> &[String] {
        &self.requests
    }

    async fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.last += 1;
        let mut order = json!({ "id": self.last, "method": method, "params": params });
        if !self.session.is_empty() {
            order["sessionId"] = self.session.clone().into();
        }
        let exchange = async {
            self.orders.write_all(format!("{order}\0").as_bytes()).await?;
            loop {
                let mut message = Vec::new();
                self.answers.read_until(0, &mut message).await?;
                ensure!(message.pop() == Some(0), "chromium has ended");
                let mut message: Value = serde_json::from_slice(&message)?;
                if message["id"] == self.last {
                    ensure!(message["error"].is_null(), "{}", message["error"]);
                    return Ok(message["result"].take());
                }
                note(&message, &mut self.complaints, &mut self.requests);
            }
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await;
        answer.with_context(|| format!("{method}: no answer in {PATIENCE:?}"))?.context(method.to_owned())
    }
}

fn note(event: &Value, complaints: &mut Vec<String>, requests: &mut Vec<String>) {
    let params = &event["params"];
    match event["method"].as_str() {
        Some("Runtime.exceptionThrown") => complaints.push(params["exceptionDetails"].to_string()),
        Some("Runtime.consoleAPICalled") if params["type"] == "error" => {
            complaints.push(params["args"].to_string());
        }
        Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
            complaints.push(params["entry"]["text"].to_string());
        }
        Some("Network.requestWillBeSent") => {
            requests.push(params["request"]["url"].as_str().unwrap_or_default().to_owned());
        }
        _ => (),
    }
}

/// A picture comes as base64.
fn from_base64(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut held, mut bits) = (0u32, 0);
    for sign in text.bytes().filter(|sign| *sign != b'=') {
        let value = match sign {
            b'A'..=b'Z' => sign - b'A',
            b'a'..=b'z' => sign - b'a' + 26,
            b'0'..=b'9' => sign - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => bail!("no base64: {:?}", char::from(sign)),
        };
        held = (held << 6) | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read() {
        assert_eq!(from_base64("aGVsbG8=").unwrap(), b"hello");
        assert_eq!(from_base64("/+8A").unwrap(), [0xff, 0xef, 0]);
        assert!(from_base64("a b").is_err());
    }
}
