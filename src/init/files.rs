//! The files: settings, SQL and password of each side.

use postgres_protocol::password::scram_sha_256;
use rand::{Rng, distr::Alphanumeric};

use super::{Side, Wishes, look::Seen};
use crate::{
    check::is_here,
    config::{Settings, database_url},
    fault::{Code, Fault, Result},
    names::{literal, quoted},
    postgres::Address,
    scope::Scope,
};

/// Letters and digits: 142 bits, and nothing that any shell or url would read as more than itself.
const PASSWORD_SIGNS: usize = 24;

/// A file to write.
pub(super) struct Text {
    pub(super) name: String,
    pub(super) text: String,
    pub(super) secret: bool,
}

/// Settings, SQL and password of both sides.
pub(super) fn texts(wishes: &Wishes, seen: &Seen, brokers: usize) -> Result<Vec<Text>> {
    let [from, to] = &seen.addresses;
    let first = password();
    // One server has one role: what both sides set must be the same.
    let same = (&from.host, from.port) == (&to.host, to.port);
    let second = if same { first.clone() } else { password() };
    let passwords = [first, second];
    let settings = [sending_text(wishes, &seen.scope, from, brokers), taking_text(wishes, from, to)];
    let mut texts = Vec::new();
    for (at, side) in [&wishes.from, &wishes.to].into_iter().enumerate() {
        let address = &seen.addresses[at];
        load(&settings[at])?;
        let (known, password) = match (address.user == wishes.role, address.password.reveal()) {
            (true, given) => (true, given.to_owned()),
            (false, _) => (false, passwords[at].clone()),
        };
        let name = |ending: &str| format!("{}.{ending}", side.region);
        let sql = sql(side, address, &wishes.role, (!known).then_some(&*password), &seen.sql[at]);
        texts.push(Text { name: name("toml"), text: settings[at].clone(), secret: false });
        texts.push(Text { name: name("sql"), text: sql, secret: false });
        // A role that is let in without a password still needs the file its settings name.
        let password = if password.is_empty() { "none\n".to_owned() } else { format!("{password}\n") };
        texts.push(Text { name: name("password"), text: password, secret: true });
    }
    Ok(texts)
}

fn password() -> String {
    rand::rng().sample_iter(Alphanumeric).take(PASSWORD_SIGNS).map(char::from).collect()
}

/// The settings of the region that sends.
pub(super) fn sending(wishes: &Wishes, scope: &Scope, address: &Address, brokers: usize) -> Result<Settings> {
    load(&sending_text(wishes, scope, address, brokers))
}

/// The settings of the region that takes.
pub(super) fn taking(wishes: &Wishes, address: &Address) -> Result<Settings> {
    load(&taking_text(wishes, address, address))
}

fn load(text: &str) -> Result<Settings> {
    Settings::from_parts(text, [], &|_| Ok("unread".to_owned())).map_err(|mistakes| {
        Fault::new(Code::Internal, format!("the settings laid out here are none: {mistakes}"))
    })
}

fn sending_text(wishes: &Wishes, scope: &Scope, address: &Address, brokers: usize) -> String {
    let copies = brokers.clamp(1, 3);
    let tables: Vec<String> = scope.0.iter().map(|pattern| toml(pattern.as_str())).collect();
    format!(
        "{}\n[kafka]\nbrokers = {}\n# {brokers} broker(s) answered. With three or more, keep each record three times.\n\
         replication_factor = {copies}\nmin_insync_replicas = {}\n\n[source]\ntables = [{}]\n\n\
         [http]\nlisten = \"127.0.0.1:9187\"\n",
        head(wishes, &wishes.from, address),
        list(&wishes.brokers),
        copies.min(2),
        tables.join(", "),
    )
}

fn taking_text(wishes: &Wishes, from: &Address, to: &Address) -> String {
    // Two daemons on one machine cannot listen on one port.
    let port = if is_here(&from.host) && is_here(&to.host) { 9188 } else { 9187 };
    format!(
        "{}\n[[link]]\nfrom = {}\nbrokers = {}\n\n[http]\nlisten = \"127.0.0.1:{port}\"\n",
        head(wishes, &wishes.to, to),
        toml(wishes.from.region.as_str()),
        list(&wishes.brokers),
    )
}

fn head(wishes: &Wishes, side: &Side, address: &Address) -> String {
    let address = Address { user: wishes.role.clone(), ..address.clone() };
    let file = wishes.directory.join(format!("{}.password", side.region));
    let file = std::path::absolute(&file).unwrap_or(file);
    format!(
        "# Written by `landfall init`; docs/configuration.md says what else there is.\nregion = {}\n\n\
         [database]\nurl = {}\npassword_file = {}\n",
        toml(side.region.as_str()),
        toml(&database_url(&address)),
        toml(&file.display().to_string()),
    )
}

fn sql(side: &Side, address: &Address, role: &str, password: Option<&str>, grants: &[String]) -> String {
    let database = &address.database;
    let mut sql = format!(
        "-- What region {} needs in the database {database}, to be run there as a superuser.\n\
         -- Read it first: Landfall runs none of it by itself.\n",
        side.region
    );
    if let Some(password) = password {
        let (name, proof) = (quoted(role), literal(&scram_sha_256(password.as_bytes())));
        let begin = format!(
            "DO $$ BEGIN CREATE ROLE {name}; EXCEPTION WHEN duplicate_object THEN NULL; END $$;\n\
             -- The password itself is in {}.password. Replaces the one the role may have.\n\
             ALTER ROLE {name} LOGIN PASSWORD {proof};\n",
            side.region
        );
        sql.push_str(&begin);
    }
    grants.iter().for_each(|statement| sql.extend([statement, "\n"]));
    sql
}

/// A basic TOML string: JSON's escapes are a subset of TOML's.
fn toml(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn list(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| toml(text)).collect();
    format!("[{}]", texts.join(", "))
}
