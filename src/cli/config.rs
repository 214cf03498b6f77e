//! `landfall config show`: the settings in effect, as a file would say them, each with where it comes from.

use std::{fmt::Write, path::Path};

use super::{GOOD, UNKNOWN, complain, environment, give_up};
use crate::config::{Effective, Settings};

pub(super) fn show(path: &Path, json: bool) -> u8 {
    let settings = match Settings::show(path, environment()) {
        Ok(settings) => settings,
        Err(mistakes) if json => return give_up(json, &mistakes.into()),
        Err(mistakes) => {
            complain(path, mistakes);
            return UNKNOWN;
        }
    };
    if json {
        let written = serde_json::to_string_pretty(&settings).expect("texts only");
        println!("{written}");
    } else {
        print!("{}", page(&settings));
    }
    GOOD
}

/// TOML, with what each line comes from as its comment.
fn page(settings: &[Effective]) -> String {
    let mut page = String::new();
    let mut section = "";
    let lines: Vec<(&str, String, &str)> = settings.iter().map(line).collect();
    let width = lines.iter().map(|(_, line, _)| line.chars().count()).filter(|width| *width <= 60).max();
    let width = width.unwrap_or(0);
    for (of, line, from) in &lines {
        if *of != section {
            section = of;
            let title =
                of.split_once('[').map_or_else(|| format!("[{of}]"), |(list, _)| format!("[[{list}]]"));
            let _ = writeln!(page, "\n{title}");
        }
        let _ = writeln!(page, "{line:<width$}  # {from}");
    }
    page
}

/// Section, line and place of a setting. Names of properties, which are in quotes, stay below their section.
fn line(setting: &Effective) -> (&str, String, &str) {
    let end = setting.path.find(".properties.").or_else(|| setting.path.rfind('.'));
    let (section, key) = match end {
        Some(at) => (&setting.path[..at], &setting.path[at + 1..]),
        None => ("", &*setting.path),
    };
    (section, format!("{key} = {}", setting.value), &setting.from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_toml() {
        let row = |path: &str, value: &str| Effective {
            path: path.to_owned(),
            value: value.to_owned(),
            from: "default".to_owned(),
        };
        let page = page(&[
            row("region", "\"a\""),
            row("kafka.retention", "\"1d\""),
            row("kafka.properties.\"sasl.password\"", "\"***\""),
            row("link[0].batch_changes", "2000"),
        ]);
        assert_eq!(
            page,
            "region = \"a\"                        # default\n\
             \n[kafka]\nretention = \"1d\"                    # default\n\
             properties.\"sasl.password\" = \"***\"  # default\n\
             \n[[link]]\nbatch_changes = 2000                # default\n"
        );
    }
}
