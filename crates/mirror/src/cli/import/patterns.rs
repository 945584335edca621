//! rsync's rules of what is left out, as the gitignore lines that say the same.
//!
//! Of rsync's rules the first that matches decides, of gitignore lines the last: so the order is turned round. Neither looks
//! below a directory that is left out.

use crate::filter::Filter;

use super::notes::At;

const PATTERN_BYTES_MAX: usize = 4096;

/// What matches is left out, or kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub keep: bool,
    pub pattern: String,
    pub at: At,
}

/// Rules as gitignore lines, for one tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lines {
    pub lines: Vec<String>,
    /// Which could not be said, and why.
    pub refused: Vec<(At, String, String)>,
    /// Of each rule: it has a line here, or was refused.
    pub concerned: Vec<bool>,
}

/// What one rule says in a tree.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// Nothing: it is about names outside of it.
    Elsewhere,
    /// In the order in which gitignore wants them.
    Lines(Vec<String>),
    Refused(String),
}

/// `above` are the names between the place that rsync takes a leading `/` for and the root of the tree: `home` for
/// `/home/` with `--relative`, none without.
pub fn ignore_lines(rules: &[Rule], above: &[&str]) -> Lines {
    let mut out = Lines {
        concerned: vec![false; rules.len()],
        ..Lines::default()
    };
    for (rule, concerned) in rules.iter().zip(&mut out.concerned).rev() {
        let refuse = |why: String| (rule.at.clone(), rule.pattern.clone(), why);
        match meaning(rule, above) {
            Meaning::Elsewhere => continue,
            Meaning::Refused(why) => out.refused.push(refuse(why)),
            Meaning::Lines(lines) => match Filter::new(&lines) {
                Ok(_) => out.lines.extend(lines),
                Err(bad) => out.refused.push(refuse(bad.why)),
            },
        }
        *concerned = true;
    }
    out.refused.reverse();
    out
}

fn meaning(rule: &Rule, above: &[&str]) -> Meaning {
    let refused = |why: &str| Meaning::Refused(why.into());
    let pattern = rule.pattern.as_str();
    if pattern.len() > PATTERN_BYTES_MAX || pattern.contains(['\n', '\0']) {
        return refused("it is too long, or not one line");
    }
    let anchored = pattern.starts_with('/');
    let (body, with_all_below) = match pattern.strip_suffix("/***") {
        Some(body) => (body, true),
        None => (pattern, false),
    };
    let only_dirs = with_all_below || body.ends_with('/');
    let body = body.trim_matches('/');
    let parts: Vec<&str> = body.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return refused("it is about the whole tree");
    }
    if only_dirs && parts.last() == Some(&"**") {
        return refused("** at its end matches files, too; without the slash it says the same");
    }
    let wild = body.contains(['*', '?', '[']);
    let mut said = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        let last = i + 1 == parts.len();
        if *part == "**" && !last && (anchored || i > 0) {
            // rsync wants a name there at least, gitignore does not.
            said.push("*/**".to_owned());
            continue;
        }
        match written(part, wild, rule.keep, last) {
            Ok(part) => said.push(part),
            Err(why) => return refused(why),
        }
    }
    let Some(paths) = (match anchored {
        true => below(&parts, &said, above),
        false => anywhere(&parts, &said, above),
    }) else {
        return refused("it leaves out the whole tree");
    };
    if paths.is_empty() {
        return Meaning::Elsewhere;
    }
    let mut lines = Vec::new();
    for path in paths {
        let sign = if rule.keep { "!" } else { "" };
        let slash = if only_dirs { "/" } else { "" };
        lines.push(kept_blank(format!("{sign}{path}{slash}")));
        if rule.keep && with_all_below {
            let deep = if path.contains('/') { "" } else { "**/" };
            lines.push(format!("!{deep}{path}/**"));
        }
    }
    Meaning::Lines(lines)
}

/// One name of a pattern, as gitignore says it.
fn written(part: &str, wild: bool, keep: bool, last: bool) -> Result<String, &'static str> {
    if part == "." || part == ".." {
        return Err("no name is . or ..");
    }
    if part.contains("[:") {
        return Err("classes of characters ([:...:]) have no counterpart");
    }
    let part = match part {
        "**" => return Ok("**".into()),
        // What is below something left out is left out, too.
        part if part.ends_with("**") && last && !keep => {
            format!("{}*", part.trim_end_matches('*'))
        }
        part if part.starts_with("**") && !part.trim_start_matches('*').contains("**") => {
            return Err(
                "** inside a name matches slashes; here it is a name of its own, as in a/**/b",
            );
        }
        part => part.to_owned(),
    };
    if part.contains("**") {
        return Err("** inside a name matches slashes; here it is a name of its own, as in a/**/b");
    }
    let mut out = String::new();
    for c in part.chars() {
        match c {
            // Without any wildcard a backslash is itself.
            '\\' if !wild => out.push_str("\\\\"),
            '{' | '}' => {
                out.push('\\');
                out.push(c);
            }
            _ => out.push(c),
        }
    }
    Ok(out)
}

/// Of a pattern that begins at the top: the paths it means below `above`. `None`: all of the tree.
fn below(parts: &[&str], said: &[String], above: &[&str]) -> Option<Vec<String>> {
    for (i, name) in above.iter().enumerate() {
        let part = parts.get(i)?;
        if *part == "**" {
            let parts = parts.get(i + 1..).filter(|parts| !parts.is_empty())?;
            let said = said.get(i + 1..).unwrap_or_default();
            return anywhere(parts, said, above.get(i + 1..).unwrap_or_default());
        }
        if !matches_name(part, name) {
            return Some(Vec::new());
        }
    }
    let rest = said.get(above.len()..).unwrap_or_default();
    (!rest.is_empty()).then(|| vec![format!("/{}", rest.join("/"))])
}

/// Of a pattern that may begin anywhere.
fn anywhere(parts: &[&str], said: &[String], above: &[&str]) -> Option<Vec<String>> {
    let (Some(first), Some(last)) = (said.first(), said.last()) else {
        return Some(Vec::new());
    };
    let mut paths = vec![match said.len() {
        1 => protected(last),
        _ if first == "**" => said.join("/"),
        _ => format!("**/{}", said.join("/")),
    }];
    // It may begin above the root and end in the tree.
    for from in 0..above.len() {
        paths.extend(below(parts, said, above.get(from..).unwrap_or_default())?);
    }
    paths.dedup();
    Some(paths)
}

/// A whole line that gitignore would read as something else.
fn protected(name: &str) -> String {
    match name.chars().next() {
        Some('!' | '#') => format!("\\{name}"),
        _ => name.to_owned(),
    }
}

/// A blank at the end of a line would be dropped.
fn kept_blank(line: String) -> String {
    match line.strip_suffix(' ') {
        Some(front) => format!("{front}\\ "),
        None => line,
    }
}

/// Does one name of a pattern match a name?
fn matches_name(part: &str, name: &str) -> bool {
    if !part.contains(['*', '?', '[', '\\']) {
        return part == name;
    }
    Filter::new(&[format!("/{part}")]).is_ok_and(|filter| filter.ignored(name.as_bytes(), true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        let (keep, pattern) = match text.strip_prefix("+ ") {
            Some(pattern) => (true, pattern),
            None => (false, text),
        };
        Rule {
            keep,
            pattern: pattern.into(),
            at: At::default(),
        }
    }

    #[test]
    fn one_rule() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("*.log", &[], &["*.log"]),
            ("*.log", &["home"], &["*.log"]),
            ("cache/", &[], &["cache/"]),
            ("/tmp", &[], &["/tmp"]),
            ("/home/bob/tmp/", &["home"], &["/bob/tmp/"]),
            ("/home/*/tmp", &["home"], &["/*/tmp"]),
            ("/h*e/tmp", &["home"], &["/tmp"]),
            ("/var/tmp", &["home"], &[]),
            ("/**/core", &["home"], &["core"]),
            ("a/b", &[], &["**/a/b"]),
            ("home/bob", &["home"], &["**/home/bob", "/bob"]),
            ("b/c", &["a", "b"], &["**/b/c", "/c"]),
            ("**/x", &[], &["**/x"]),
            ("dir/***", &[], &["dir/"]),
            ("+ dir/***", &[], &["!dir/", "!**/dir/**"]),
            ("+ /dir/***", &[], &["!/dir/", "!/dir/**"]),
            ("+ *.php", &[], &["!*.php"]),
            ("dir/**", &[], &["**/dir/**"]),
            ("foo**", &[], &["foo*"]),
            ("{a,b}", &[], &["\\{a,b\\}"]),
            ("!x", &[], &["\\!x"]),
            ("#x", &[], &["\\#x"]),
            ("a\\b", &[], &["a\\\\b"]),
            ("a\\*b", &[], &["a\\*b"]),
        ];
        for (text, above, want) in table {
            let got = ignore_lines(&[rule(text)], above);
            assert_eq!(got.lines, *want, "{text} below {above:?}");
            assert_eq!(got.refused, [], "{text}");
        }
        let refused: &[(&str, &[&str])] = &[
            ("/", &[]),
            ("/home/", &["home"]),
            ("home", &["home"]),
            ("a**b", &[]),
            ("**.bak", &[]),
            ("[[:alpha:]]", &[]),
            ("a/../b", &[]),
            ("a\nb", &[]),
        ];
        for (text, above) in refused {
            let got = ignore_lines(&[rule(text)], above);
            assert_eq!((got.lines.len(), got.refused.len()), (0, 1), "{text}");
        }
    }

    /// The first rule of rsync's that matches decides; the lines say the same.
    #[test]
    fn the_order_is_turned_round() {
        let rules = ["+ keep.log", "*.log", "/cache/*", "+ *.php", "/x/*"].map(rule);
        let got = ignore_lines(&rules, &[]);
        assert_eq!(
            got.lines,
            ["/x/*", "!*.php", "/cache/*", "*.log", "!keep.log"]
        );
        let filter = Filter::new(&got.lines).unwrap();
        for (path, left_out) in [
            ("a/keep.log", false),
            ("a/b.log", true),
            ("x/y.php", false),
            ("x/y.txt", true),
            ("cache/y.php", true),
            ("other", false),
        ] {
            assert_eq!(filter.ignored(path.as_bytes(), false), left_out, "{path}");
        }
    }

    /// What gitignore takes for something else means itself.
    #[test]
    fn names_with_signs() {
        for name in ["{a,b}", "!x", "#x", "a\\b", "x y", "x ", "a,b", "-x"] {
            let got = ignore_lines(&[rule(name)], &[]);
            let filter = Filter::new(&got.lines).unwrap();
            assert!(filter.ignored(name.as_bytes(), false), "{name}");
            assert!(!filter.ignored(b"a", false), "{name}");
        }
    }

    /// Random rules over a small tree: what rsync itself copies is what the lines keep.
    #[test]
    fn as_rsync_does() {
        use std::fs;
        use std::process::Command;
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let names = ["a", "b", "ab", "a.x", "b.x"];
        let mut files = Vec::new();
        for one in names {
            for two in names {
                let dir = format!("{one}.d/{two}.d");
                fs::create_dir_all(top.join("h/u").join(&dir)).unwrap();
                for file in names {
                    files.push(format!("{dir}/{file}"));
                }
            }
            files.push(format!("{one}.d/{one}"));
            files.push(one.to_owned());
        }
        for file in &files {
            fs::write(top.join("h/u").join(file), "").unwrap();
        }
        let parts = [
            "a", "b", "a.d", "*.d", "*", "?", "**", "[ab]", "a*", "*.x", "h", "u", "b.d",
        ];
        let kept_by_rsync = |rules: &[Rule], relative: bool| {
            let mut rsync = Command::new("rsync");
            rsync.args(["-rn", "--out-format=%n"]);
            let source = match relative {
                true => rsync.arg("-R").arg(format!("{}/./h/u/", top.display())),
                false => rsync.arg(format!("{}/h/u/", top.display())),
            };
            for rule in rules {
                let kind = if rule.keep { "include" } else { "exclude" };
                source.arg(format!("--{kind}={}", rule.pattern));
            }
            let output = source.arg("/nonexistent/").output().ok()?;
            let text = String::from_utf8(output.stdout).unwrap();
            let names = text
                .lines()
                .map(|line| line.strip_prefix("h/u/").unwrap_or(line));
            Some(names.map(str::to_owned).collect::<Vec<_>>())
        };
        if kept_by_rsync(&[], false).is_none() {
            println!("skipped: there is no rsync here");
            return;
        }
        let cases = std::env::var("RSYNC_CASES").map_or(25, |n| n.parse().unwrap());
        let (mut said, mut random) = (0, crate::fuzz::Random::new(1));
        for _ in 0..cases {
            let rules: Vec<Rule> = (0..1 + random.below(4))
                .map(|_| {
                    let names: Vec<_> = (0..1 + random.below(3))
                        .map(|_| parts[random.below(parts.len())])
                        .collect();
                    let keep = ["", "", "+ "][random.below(3)];
                    let begin = ["", "/"][random.below(2)];
                    let end = ["", "", "/", "/***", "/**"][random.below(5)];
                    rule(&format!("{keep}{begin}{}{end}", names.join("/")))
                })
                .collect();
            for above in [&[][..], &["h", "u"]] {
                let lines = ignore_lines(&rules, above);
                if !lines.refused.is_empty() {
                    continue;
                }
                let filter = Filter::new(&lines.lines).unwrap();
                let kept = kept_by_rsync(&rules, !above.is_empty()).unwrap();
                for file in &files {
                    let (ours, its) =
                        (!filter.ignored(file.as_bytes(), false), kept.contains(file));
                    let texts: Vec<_> = rules.iter().map(|r| (r.keep, &r.pattern)).collect();
                    assert_eq!(ours, its, "{file} {texts:?} {above:?} {:?}", lines.lines);
                }
                said += 1;
            }
        }
        assert!(said > cases / 4, "{said}");
    }
}
