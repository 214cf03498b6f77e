//! `landfall check`: what stands in the way, worst first, with what mends it.

use std::{fmt::Write, path::Path};

use super::{
    FOUND, GOOD, UNKNOWN, environment, give_up,
    page::{painted, wrapped},
};
use crate::{
    check::{Finding, Severity, of_mistakes, online},
    config::Settings,
    fault::{Code, Fault},
};

pub(super) async fn run(path: &Path, json: bool) -> u8 {
    if let Err(error) = std::fs::metadata(path) {
        let message = format!("read {}: {error}", path.display());
        return give_up(json, &Fault::new(Code::ConfigInvalid, message));
    }
    let findings = match Settings::load(path, environment()) {
        Err(mistakes) => of_mistakes(&mistakes),
        Ok(settings) => match online(&settings).await {
            Ok(findings) => findings,
            Err(fault) => return give_up(json, &fault),
        },
    };
    if json {
        match serde_json::to_string_pretty(&findings) {
            Ok(document) => println!("{document}"),
            Err(error) => {
                eprintln!("landfall: write the findings: {error}");
                return UNKNOWN;
            }
        }
    } else {
        print!("{}", page(&findings, super::colour()));
    }
    let bad = findings.iter().any(|finding| finding.severity > Severity::Note);
    if bad { FOUND } else { GOOD }
}

/// Prints the SQL that lets the role do its work, to be piped to `psql` by whoever may.
pub(super) async fn grants(path: &Path, json: bool) -> u8 {
    let settings = match Settings::load(path, environment()) {
        Ok(settings) => settings,
        Err(mistakes) => {
            super::complain(path, &mistakes);
            return UNKNOWN;
        }
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

fn page(findings: &[Finding], colour: bool) -> String {
    let mut page = String::new();
    for finding in findings {
        let severity = painted(finding.severity.as_str(), finding.severity as usize, colour);
        let _ = writeln!(page, "{severity} {}", finding.id);
        wrapped(&finding.evidence, 4).iter().for_each(|line| page.extend([line, "\n"]));
        // Not wrapped: it is there to be copied.
        let mend = finding.mend.iter().flat_map(|mend| mend.lines());
        mend.for_each(|line| page.extend(["    > ", line, "\n"]));
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let _ = writeln!(page, "{errors} error(s), {warnings} warning(s), {} note(s)", count(Severity::Note));
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_what_where_and_what_mends_it() {
        let finding =
            Finding::new("wal-level", Severity::Error, "wal_level is replica").mended_by("ALTER SYSTEM;\nX");
        let expected = "error wal-level\n    wal_level is replica\n    > ALTER SYSTEM;\n    > X\n1 error(s), 0 warning(s), 0 note(s)\n";
        assert_eq!(page(&[finding], false), expected);
    }
}
