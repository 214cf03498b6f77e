//! `landfall check`: what stands in the way, worst first, with what mends it.

use std::{fmt::Write, path::Path};

use super::{FOUND, GOOD, UNKNOWN, environment, give_up, page::painted};
use crate::{
    check::{Finding, Options, Report, Severity, of_mistakes, offline, online},
    config::Settings,
    fault::Fault,
};

/// How far to look.
#[derive(Debug)]
pub(super) struct Look<'a> {
    /// No server is asked.
    pub(super) offline: bool,
    /// Settings of another region to compare with.
    pub(super) against: Option<&'a Path>,
    /// Rows are counted.
    pub(super) deep: bool,
}

pub(super) async fn run(path: &Path, look: Look<'_>, json: bool) -> u8 {
    let loaded = Settings::load(path, environment());
    // What the environment sets is this region's.
    let theirs = || environment().filter(|(name, _)| !name.to_uppercase().starts_with("LANDFALL__"));
    let against = look.against.map(|path| Settings::load(path, theirs())).transpose();
    if let Err(mistakes) = &loaded
        && mistakes.unread
    {
        return give_up(json, &mistakes.clone().into());
    }
    if let Err(mistakes) = &against
        && mistakes.unread
    {
        let next = "give the path of the other region's settings, in a file that can be read, with --against";
        return give_up(json, &Fault::from(mistakes.clone()).remedied_by(next));
    }
    let report = match (loaded, against) {
        (Err(mistakes), _) | (_, Err(mistakes)) => Report { findings: of_mistakes(&mistakes), whole: true },
        (Ok(settings), _) if look.offline => Report { findings: offline(&settings), whole: true },
        (Ok(settings), Ok(against)) => online(&settings, &Options { against, deep: look.deep }).await,
    };
    let findings = &report.findings;
    if json {
        match serde_json::to_string_pretty(findings) {
            Ok(document) => println!("{document}"),
            Err(error) => {
                eprintln!("landfall: write the findings: {error}");
                return UNKNOWN;
            }
        }
    } else {
        print!("{}", page(findings, super::colour()));
    }
    let bad = findings.iter().any(|finding| finding.severity > Severity::Note);
    match (report.whole, bad) {
        (false, _) => UNKNOWN,
        (true, true) => FOUND,
        (true, false) => GOOD,
    }
}

/// Prints the SQL that lets the role do its work, to be piped to `psql` by whoever may.
pub(super) async fn grants(path: &Path, json: bool) -> u8 {
    let settings = match super::settings(path, json) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    let sql = match crate::check::grants(&settings).await {
        Ok(sql) => sql,
        Err(fault) => return give_up(json, &fault),
    };
    if json {
        println!("{}", serde_json::json!({ "sql": sql }));
    } else {
        let (user, database) = (&settings.database.user, &settings.database.database);
        let lacks = if sql.is_empty() { "lacks nothing" } else { "lacks, to be run there as a superuser" };
        println!("-- what the role {user} of database {database} {lacks}");
        sql.iter().for_each(|statement| println!("{statement}"));
    }
    if sql.is_empty() { GOOD } else { FOUND }
}

/// One line each, to be read, searched and cut: severity, id, what was seen, and behind an arrow what
/// mends it, whole, since it is there to be copied.
fn page(findings: &[Finding], colour: bool) -> String {
    let mut page = String::new();
    let width = findings.iter().map(|finding| finding.id.as_str().len()).max().unwrap_or(0);
    for finding in findings {
        let severity = format!("{:<7}", finding.severity.as_str());
        let severity = painted(&severity, finding.severity as usize, colour);
        let _ = write!(page, "{severity} {:<width$}  {}", finding.id.as_str(), one_line(&finding.evidence));
        if let Some(mend) = &finding.mend {
            let _ = write!(page, "  -> {}", one_line(mend));
        }
        page.push('\n');
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let _ = writeln!(page, "{errors} error(s), {warnings} warning(s), {} note(s)", count(Severity::Note));
    if errors + warnings > 0 {
        page.push_str("`landfall explain ID` says what each means.\n");
    }
    page
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Kind;

    #[test]
    fn a_finding_is_a_line_of_what_where_and_what_mends_it() {
        let findings = [
            Finding::new(Kind::WalLevel, Severity::Error, "wal_level is replica")
                .mended_by("ALTER SYSTEM;\nX;"),
            Finding::new(Kind::TableMissing, Severity::Note, "a\n  b"),
        ];
        let expected = "error   wal-level      wal_level is replica  -> ALTER SYSTEM; X;\n\
                        note    table-missing  a b\n\
                        1 error(s), 0 warning(s), 1 note(s)\n\
                        `landfall explain ID` says what each means.\n";
        assert_eq!(page(&findings, false), expected);
    }
}
