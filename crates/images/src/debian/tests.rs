use super::*;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFakeFakeFakeFakeFakeFakeFakeFake me@host";

fn source(uri: &str, release: &str, component: &str) -> Source {
    let text = |text: &str| text.to_owned();
    Source { uri: text(uri), release: text(release), component: text(component) }
}

fn refusal(change: impl FnOnce(&mut Debian)) -> String {
    let mut options = Debian::default();
    change(&mut options);
    options.check().expect_err("refused").to_string()
}

#[test]
fn values_that_no_image_can_have_are_refused_by_name() {
    assert!(Debian::default().check().is_ok());
    assert!(refusal(|o| o.suite = Some("-x".to_owned())).contains("--suite"));
    assert!(refusal(|o| o.size = 1 << 20).contains("--size"));
    assert!(refusal(|o| o.packages = vec!["--help".to_owned()]).contains("--package"));
    for name in ["", "-a", "a_b", "a..b", &"x".repeat(65)] {
        assert!(refusal(|o| name.clone_into(&mut o.hostname)).contains("--hostname"), "{name}");
    }
    let private = "-----BEGIN OPENSSH PRIVATE KEY-----";
    assert!(refusal(|o| o.ssh_keys = vec![private.to_owned()]).contains("--ssh-key"));
    let two_lines = format!("{KEY}\n{KEY}");
    assert!(refusal(|o| o.ssh_keys = vec![two_lines]).contains("--ssh-key"));
    let keys = vec![KEY.to_owned()];
    assert!(Debian { ssh_keys: keys, ..Debian::default() }.check().is_ok());
}

#[test]
fn another_suite_comes_from_the_same_places() {
    let host = [
        source("http://a/debian/", "bookworm", "main"),
        source("http://a/debian/", "bookworm-updates", "main"),
        source("http://a/security/", "bookworm-security", "main"),
        source("http://a/debian/", "experimental", "main"),
    ];
    let (suite, lines) = sources_of(&host, None).expect("sources");
    assert_eq!(suite, "bookworm");
    assert_eq!(lines.len(), 3, "{lines:?}");
    let (suite, lines) = sources_of(&host, Some("trixie")).expect("sources");
    assert_eq!(suite, "trixie");
    assert_eq!(lines[2], "deb http://a/security/ trixie-security main");
    assert!(matches!(sources_of(&[], None), Err(Error::NoPackageSources)));
}

#[test]
fn the_guests_apt_is_told_what_the_hosts_is() {
    let apt = ["Acquire::http::Proxy \"http://127.0.0.1:3142\";".to_owned()];
    let options = Debian { ssh_keys: vec![KEY.to_owned()], ..Debian::default() };
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("ours.tar");
    write_files(&path, &files(&options, &apt)).expect("written");
    let mut found = BTreeMap::new();
    let mut archive = tar::Archive::new(File::open(&path).expect("archive"));
    for entry in archive.entries().expect("entries") {
        let mut entry = entry.expect("entry");
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("text");
        let path = entry.path().expect("path").display().to_string();
        assert_eq!(entry.header().uid().expect("uid"), 0, "{path}");
        found.insert(path, (entry.header().mode().expect("mode"), text));
    }
    let (_, conf) = &found["etc/apt/apt.conf.d/90host"];
    assert_eq!(conf, "Acquire::http::Proxy \"http://10.0.2.2:3142\";\n");
    assert_eq!(found["root/.ssh/authorized_keys"], (0o600, format!("{KEY}\n")));
    assert_eq!(found["etc/hostname"].1, "debian\n");
}

#[test]
fn old_releases_have_resolved_in_systemd() {
    let options = Debian { packages: vec!["hello".to_owned()], ..Debian::default() };
    let old = packages_of("bullseye", &options);
    assert!(!old.iter().any(|name| name == "systemd-resolved"));
    assert_eq!(packages_of("bookworm", &options).len(), old.len() + 1);
    assert_eq!(old.last().map(String::as_str), Some("hello"));
}
