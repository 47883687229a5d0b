//! Reads the paragraphs in which `apt-cache show` describes packages
//! (Debian Policy, chapter 5: control files and their fields).

/// What is needed to know about one package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Control {
    /// The package's name.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The size of the `.deb` file in bytes.
    pub size: u64,
    /// For each dependency the name of its first alternative, `Pre-Depends`
    /// and `Depends` together.
    pub depends: Vec<String>,
}

/// Reads every paragraph of `text` that names a package and a version.
pub(crate) fn parse(text: &str) -> Vec<Control> {
    text.split("\n\n").filter_map(paragraph).collect()
}

fn paragraph(text: &str) -> Option<Control> {
    let field = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let mut depends = Vec::new();
    for name in ["Pre-Depends", "Depends"] {
        depends.extend(field(name).unwrap_or_default().split(',').filter_map(first_alternative));
    }
    Some(Control {
        package: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        size: field("Size").and_then(|size| size.parse().ok()).unwrap_or(0),
        depends,
    })
}

/// `"a:any (>= 1) | b"` gives `"a"`.
fn first_alternative(dependency: &str) -> Option<String> {
    let name = dependency.trim().split([' ', '(', '|', ':']).next()?;
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_apt_cache_shows() {
        let text = "Package: linux-image-cloud-amd64\nSource: linux-signed-amd64 (6.1+2)\n\
                    Version: 6.1.1-2\nPre-Depends: dpkg (>= 1.2)\n\
                    Depends: linux-image-6.1.0-9-cloud-amd64 (= 6.1.1-2), a:any | b, c\n\
                    Description: Linux\n continued: line\nSize: 1504\n\n\
                    Package: busybox-static\nVersion: 1:1.35\nSize: 9\n\n";
        let controls = parse(text);
        assert_eq!(controls.len(), 2);
        assert_eq!(controls[0].package, "linux-image-cloud-amd64");
        assert_eq!(controls[0].version, "6.1.1-2");
        assert_eq!(controls[0].size, 1504);
        assert_eq!(
            controls[0].depends,
            ["dpkg", "linux-image-6.1.0-9-cloud-amd64", "a", "c"].map(String::from)
        );
        assert_eq!(controls[1].version, "1:1.35");
        assert!(controls[1].depends.is_empty());
    }

    #[test]
    fn leaves_out_what_is_not_a_package() {
        assert!(parse("").is_empty());
        assert!(parse("N: nothing\n\nPackage: x\n\n").is_empty());
    }
}
