//! Sections of a Markdown page between comment markers.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// The page with the section `name` replaced by `content`, all else as it was.
///
/// # Errors
/// The page has no such section, or its markers are not one pair in order.
pub fn replace(page: &str, name: &str, content: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- bench:{name} -->"), format!("<!-- /bench:{name} -->"));
    for marker in [&begin, &end] {
        match page.matches(marker.as_str()).count() {
            1 => {}
            n => bail!(
                "expected the line `{marker}` once, found it {n} times: put it where the section belongs"
            ),
        }
    }
    let (before, rest) = page.split_once(&begin).context("counted above")?;
    let Some((_, after)) = rest.split_once(&end) else {
        bail!("`{end}` comes before `{begin}`: exchange them");
    };
    if content.contains("<!-- bench:") || content.contains("<!-- /bench:") {
        bail!("the text of section {name} holds a marker itself");
    }
    Ok(format!("{before}{begin}\n{}\n{end}{after}", content.trim()))
}

/// As [`replace`], on a file, which is written whole or not at all.
pub fn replace_in_file(path: &Path, name: &str, content: &str) -> Result<()> {
    let page = std::fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
    let page = replace(&page, name, content).with_context(|| path.display().to_string())?;
    let partial = path.with_extension("md.part");
    std::fs::write(&partial, page).with_context(|| format!("could not write {}", partial.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("could not replace {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::parts::PARTS;
    use super::*;

    const PAGE: &str = "# Title\n\n<!-- bench:a -->\nold a\n<!-- /bench:a -->\n\nbetween\n\n\
                        <!-- bench:b -->\nold b\n<!-- /bench:b -->\nend\n";

    #[test]
    fn only_the_section_named_changes() {
        let page = replace(PAGE, "b", "\nnew b\nwith two lines\n\n").expect("valid page");
        assert_eq!(page, PAGE.replace("old b", "new b\nwith two lines"));
        assert_eq!(replace(&page, "b", "old b").expect("valid page"), PAGE);
    }

    #[test]
    fn markers_must_be_one_pair_in_order() {
        let missing = replace(PAGE, "c", "x").expect_err("no such section").to_string();
        assert!(missing.contains("bench:c") && missing.contains("0 times"), "{missing}");
        let twice = replace(&format!("{PAGE}{PAGE}"), "a", "x").expect_err("two sections").to_string();
        assert!(twice.contains("2 times"), "{twice}");
        let swapped = "<!-- /bench:a -->\n<!-- bench:a -->";
        assert!(replace(swapped, "a", "x").expect_err("out of order").to_string().contains("before"));
        assert!(replace(PAGE, "a", "<!-- bench:b -->").is_err());
    }

    #[test]
    fn the_page_has_a_section_for_each_part() {
        let pages = [
            ("benchmarks.md", include_str!("../../../docs/benchmarks.md")),
            ("fidelity.md", include_str!("../../../docs/fidelity.md")),
        ];
        for part in PARTS {
            let (_, page) = pages.iter().find(|(name, _)| *name == part.page).expect("a page");
            let replaced = replace(page, part.name, "new").expect("a section");
            let marker = format!("<!-- bench:{} -->\nnew\n<!-- /bench:{} -->", part.name, part.name);
            assert!(replaced.contains(&marker), "{}", part.name);
        }
    }
}
