//! Chooses kernel modules and describes them to modprobe.
//!
//! A kernel package brings the modules but not the tables that `depmod` makes
//! at installation; [`ModuleSet`] makes those for the modules that are chosen:
//! `modules.dep` and `modules.alias` in the formats of modules.dep(5) and
//! modprobe(8), as far as busybox reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read;

use crate::modinfo::{self, ModInfo, canonical_name};
use crate::{Error, Result};

/// No module is larger than this when unpacked.
const MAX_MODULE: u64 = 128 << 20;

/// A module of the kernel package.
#[derive(Debug)]
struct Module {
    /// Its path below `/lib/modules/RELEASE`, without a compression suffix.
    path: String,
    content: Vec<u8>,
    info: ModInfo,
}

/// The modules of one kernel package, by canonical name.
#[derive(Debug, Default)]
pub(crate) struct ModuleSet {
    modules: BTreeMap<String, Module>,
    builtin: BTreeSet<String>,
}

/// Modules that were chosen, each after those that it needs.
#[derive(Debug)]
pub(crate) struct Selection<'a> {
    set: &'a ModuleSet,
    names: Vec<&'a str>,
}

impl ModuleSet {
    /// Adds the module that the package holds at `path` (below the release's
    /// folder), unpacking it where necessary.
    ///
    /// # Errors
    /// [`Error::Module`] when it cannot be unpacked or is not a module.
    pub(crate) fn add(&mut self, path: &str, packed: Vec<u8>) -> Result<()> {
        let failed = |reason: String| Error::Module { module: path.to_owned(), reason };
        let (path, content) = unpack(path, packed).map_err(failed)?;
        let info = modinfo::read(&content).map_err(failed)?;
        self.modules.insert(module_name(path), Module { path: path.to_owned(), content, info });
        Ok(())
    }

    /// Takes note of what the kernel has built in, from `modules.builtin`.
    pub(crate) fn add_builtin(&mut self, table: &str) {
        self.builtin.extend(table.lines().map(module_name));
    }

    /// Whether the kernel has `name`, as a module or built in.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.modules.contains_key(name) || self.builtin.contains(name)
    }

    /// The modules `wanted`, where they exist as modules, and everything that
    /// they need, in an order in which they can be loaded.
    ///
    /// # Errors
    /// [`Error::Module`] when a dependency is missing or circular.
    pub(crate) fn select<'a>(&'a self, wanted: &[&str]) -> Result<Selection<'a>> {
        let mut selection = Selection { set: self, names: Vec::new() };
        for name in wanted {
            if let Some((name, _)) = self.modules.get_key_value(*name) {
                selection.visit(name, &mut Vec::new())?;
            }
        }
        Ok(selection)
    }
}

impl<'a> Selection<'a> {
    /// Appends `name` after its dependencies; `above` are the modules that are
    /// being visited because they need it.
    fn visit(&mut self, name: &'a str, above: &mut Vec<&'a str>) -> Result<()> {
        if self.names.contains(&name) {
            return Ok(());
        }
        let failed =
            |module: &str, reason: String| Error::Module { module: module.to_owned(), reason };
        if above.contains(&name) {
            return Err(failed(name, format!("it needs itself through {}", above.join(", "))));
        }
        above.push(name);
        for needed in &self.set.modules[name].info.depends {
            match self.set.modules.get_key_value(needed) {
                Some((needed, _)) => self.visit(needed, above)?,
                None if self.set.builtin.contains(needed) => {}
                None => return Err(failed(name, format!("it needs {needed}, which is missing"))),
            }
        }
        above.pop();
        self.names.push(name);
        Ok(())
    }

    /// (path below `/lib/modules/RELEASE`, content) in load order.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + '_ {
        self.modules().map(|module| (module.path.as_str(), module.content.as_slice()))
    }

    /// The text of `modules.dep`: each module with all that it needs, directly
    /// or not, the one to load first at the end of the line.
    pub(crate) fn modules_dep(&self) -> Result<String> {
        let mut text = String::new();
        for (name, module) in self.names.iter().zip(self.modules()) {
            let needed = self.set.select(&[name])?;
            let mut line = format!("{}:", module.path);
            for (path, _) in needed.files().collect::<Vec<_>>().iter().rev().skip(1) {
                let _ = write!(line, " {path}");
            }
            text.push_str(&line);
            text.push('\n');
        }
        Ok(text)
    }

    /// The text of `modules.alias`.
    pub(crate) fn modules_alias(&self) -> String {
        let mut text = String::new();
        for (name, module) in self.names.iter().zip(self.modules()) {
            for alias in &module.info.aliases {
                let _ = writeln!(text, "alias {alias} {name}");
            }
        }
        text
    }

    fn modules(&self) -> impl Iterator<Item = &'a Module> + '_ {
        self.names.iter().map(|name| &self.set.modules[*name])
    }
}

/// `kernel/drivers/net/virtio-net.ko` gives `virtio_net`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical_name(file.strip_suffix(".ko").unwrap_or(file))
}

/// The path without its compression suffix, and the unpacked content.
fn unpack(path: &str, packed: Vec<u8>) -> std::result::Result<(&str, Vec<u8>), String> {
    if path.ends_with(".ko") {
        return Ok((path, packed));
    }
    if let Some(path) = path.strip_suffix(".xz") {
        let mut content = Vec::new();
        lzma_rust2::XzReader::new(packed.as_slice(), true)
            .take(MAX_MODULE + 1)
            .read_to_end(&mut content)
            .map_err(|error| format!("it cannot be unpacked: {error}"))?;
        if content.len() as u64 > MAX_MODULE {
            return Err(format!("it is larger than {} MiB when unpacked", MAX_MODULE >> 20));
        }
        return Ok((path, content));
    }
    Err("its compression is not known (known: none, xz)".to_owned())
}

/// Whether a package's file is a module that [`ModuleSet::add`] may be given.
pub(crate) fn is_module(path: &str) -> bool {
    [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|suffix| path.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modinfo::sample_module;

    fn set(modules: &[(&str, &str)]) -> ModuleSet {
        let mut set = ModuleSet::default();
        for (path, info) in modules {
            set.add(path, sample_module(info)).expect(path);
        }
        set
    }

    fn virtio() -> ModuleSet {
        let mut set = set(&[
            (
                "kernel/net/virtio_net.ko",
                "alias=virtio:d1v*\0depends=virtio-ring,virtio,failover\0",
            ),
            ("kernel/virtio/virtio.ko", "depends=\0"),
            ("kernel/virtio/virtio-ring.ko", "depends=virtio\0"),
            ("kernel/other.ko", "depends=virtio\0"),
        ]);
        set.add_builtin("kernel/net/failover.ko\nkernel/fs/ext4/ext4.ko\n");
        set
    }

    #[test]
    fn dependencies_come_first_and_others_stay_out() {
        let set = virtio();
        let selection = set.select(&["virtio_net", "ext4", "absent"]).expect("selection");
        assert_eq!(selection.names, ["virtio", "virtio_ring", "virtio_net"]);
        assert!(set.has("ext4") && set.has("other") && !set.has("absent"));
    }

    #[test]
    fn tables_have_depmods_format() {
        let set = virtio();
        let selection = set.select(&["virtio_net"]).expect("selection");
        assert_eq!(
            selection.modules_dep().expect("table"),
            "kernel/virtio/virtio.ko:\n\
             kernel/virtio/virtio-ring.ko: kernel/virtio/virtio.ko\n\
             kernel/net/virtio_net.ko: kernel/virtio/virtio-ring.ko kernel/virtio/virtio.ko\n"
        );
        assert_eq!(selection.modules_alias(), "alias virtio:d1v* virtio_net\n");
    }

    #[test]
    fn a_missing_dependency_is_named() {
        let set = set(&[("kernel/a.ko", "depends=b\0")]);
        let text = set.select(&["a"]).expect_err("b is missing").to_string();
        assert!(text.contains("module a") && text.contains("needs b"), "{text}");
    }

    #[test]
    fn a_circle_ends() {
        let set = set(&[
            ("kernel/a.ko", "depends=b\0"),
            ("kernel/b.ko", "depends=c\0"),
            ("kernel/c.ko", "depends=a\0"),
        ]);
        let text = set.select(&["a"]).expect_err("circle").to_string();
        assert!(text.contains("needs itself through a, b, c"), "{text}");
    }

    #[test]
    fn xz_is_unpacked_and_the_unknown_is_named() {
        let plain = sample_module("depends=\0alias=x\0");
        let mut writer = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::default())
            .expect("xz writer");
        std::io::Write::write_all(&mut writer, &plain).expect("xz");
        let packed = writer.finish().expect("xz");
        let mut set = ModuleSet::default();
        set.add("kernel/a.ko.xz", packed.clone()).expect("xz module");
        let selection = set.select(&["a"]).expect("selection");
        assert_eq!(selection.files().collect::<Vec<_>>(), [("kernel/a.ko", plain.as_slice())]);

        let text = set.add("kernel/b.ko.xz", packed[..20].to_vec()).expect_err("cut").to_string();
        assert!(text.contains("kernel/b.ko.xz"), "{text}");
        let text = set.add("kernel/c.ko.zst", plain).expect_err("zstd").to_string();
        assert!(text.contains("compression"), "{text}");
    }
}
