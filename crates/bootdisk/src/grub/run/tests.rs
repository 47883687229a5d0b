use super::*;

/// A machine with one disk that has the files of the tests.
struct Files(BTreeMap<&'static str, String>);

impl Machine for Files {
    fn text(&self, device: &str, path: &str) -> Option<String> {
        (device == "hd0,gpt2").then(|| self.0.get(path).cloned()).flatten()
    }

    fn exists(&self, device: &str, path: &str) -> bool {
        self.text(device, path).is_some()
    }

    fn search(&self, by: SearchBy, what: &str) -> Option<String> {
        match (by, what) {
            (SearchBy::Uuid, "1234-abcd") | (SearchBy::Label, "root") => {
                Some("hd0,gpt2".to_owned())
            }
            (SearchBy::File, path) if self.0.contains_key(path) => Some("hd0,gpt2".to_owned()),
            _ => None,
        }
    }
}

/// What the configuration `text` boots, with an environment block.
fn run_with(text: &str, env: &str) -> Result<Entry, String> {
    let files = [("/boot/grub/grub.cfg", text), ("/boot/grub/grubenv", env)];
    let files = Files(files.map(|(path, text)| (path, text.to_owned())).into());
    default_entry(&files, "hd0,gpt2", "/boot/grub/grub.cfg")
}

fn run(text: &str) -> Entry {
    run_with(text, "").expect("understood")
}

fn path(entry: &Entry) -> &str {
    entry.linux.as_ref().map_or("", |file| file.path.as_str())
}

/// The shape of what grub-mkconfig writes on Debian.
const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="0"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  fi
}
search --no-floppy --fs-uuid --set=root 1234-abcd
terminal_output gfxterm
function gfxmode {
	set gfxpayload="${1}"
}
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple' {
	load_video
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	insmod ext2
	search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt2 1234-abcd
	echo	'Loading Linux 6.1 ...'
	linux	/boot/vmlinuz-6.1 root=UUID=1234 ro  quiet $vt_handoff
	initrd	/boot/initrd.img-6.1
}
submenu 'Advanced options' --id 'advanced' {
	menuentry 'Old' --id 'old' { linux /boot/vmlinuz-5.10 root=UUID=1234 ro single
		initrd /boot/early /boot/initrd.img-5.10
	}
}
"#;

#[test]
fn the_first_entry_of_debians_configuration() {
    let entry = run(DEBIAN);
    assert_eq!(entry.title, "Debian GNU/Linux");
    assert_eq!(path(&entry), "/boot/vmlinuz-6.1");
    assert_eq!(entry.cmdline, "root=UUID=1234 ro quiet");
    assert_eq!(entry.initrds[0].device, "hd0,gpt2");
    assert_eq!(entry.initrds.len(), 1);
}

#[test]
fn a_saved_entry_is_found_in_its_submenu() {
    for default in ["advanced>old", "1>0", "Advanced options>Old", "advanced"] {
        let env = format!("# GRUB Environment Block\nnext_entry={default}\n####");
        let entry = run_with(DEBIAN, &env).expect("understood");
        assert_eq!(path(&entry), "/boot/vmlinuz-5.10", "{default}");
        assert_eq!(entry.initrds.len(), 2);
    }
    let entry = run_with(DEBIAN, "next_entry=gone\n").expect("understood");
    assert_eq!(path(&entry), "/boot/vmlinuz-6.1");
}

#[test]
fn words_are_as_in_a_shell() {
    let entry = run("set a=\"x  y\"; set b=(hd0,gpt1)\n\
                     menuentry \"t \\\"q\\\" $a\" {\nlinux ${b}/k \"$a\" $a 'lit $a' \\\n c\\ d # no\n}");
    assert_eq!(entry.title, "t \"q\" x  y");
    assert_eq!(entry.linux.expect("a kernel").device, "hd0,gpt1");
    assert_eq!(entry.cmdline, "x  y x y lit $a c d");
}

#[test]
fn conditions_choose() {
    let text = "if false; then set k=1; elif ! [ -z \"$k\" ]; then set k=2\n\
                elif [ 1 = 1 -a -f /boot/grub/grubenv ]; then set k=3; else set k=4; fi\n\
                for i in 1 2; do set k=5; done\n\
                if search --label --set=x root; then set y=$x; fi\n\
                menuentry e { linux /$k y=$y }";
    let entry = run(text);
    assert_eq!((path(&entry), entry.cmdline.as_str()), ("/3", "y=hd0,gpt2"));
}

#[test]
fn entries_in_files_are_left_to_others() {
    assert!(run("insmod blscfg\nblscfg\n").has_entry_files);
}

#[test]
fn nonsense_is_refused_and_endless_scripts_end() {
    for (text, reason) in [
        ("menuentry 'a {\n", "line 1"),
        ("if true; then", "no \"fi\""),
        ("x\n}\n", "line 2"),
        ("function f { f; f; }\nf", "in each other"),
        ("source /boot/grub/grub.cfg", "in each other"),
    ] {
        let error = run_with(text, "").expect_err(text);
        assert!(error.contains(reason), "{text:?}: {error}");
    }
    let deep = "if true; then\n".repeat(100);
    assert!(run_with(&deep, "").is_err());
    let long = "set a=0123456789\n".to_owned() + &"set a=\"$a$a\"\n".repeat(60);
    assert!(run_with(&long, "").is_err_and(|error| error.contains("too long")));
}
