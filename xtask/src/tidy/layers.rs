//! Dependencies point downwards only.
//!
//! [`LAYERS`] is the one place that says which crate lies where; ARCHITECTURE.md explains it.

use super::{Problem, Repository};
use crate::workspace::Workspace;

/// A layer, its crates, and the layers that these may use.
struct Layer {
    name: &'static str,
    crates: &'static [&'static str],
    may_use: &'static [&'static str],
}

const LAYERS: [Layer; 12] = [
    Layer { name: "definitions", crates: &["x86"], may_use: &[] },
    Layer {
        name: "contracts",
        crates: &["state", "device", "backend", "lapic", "memory", "paging", "engine"],
        may_use: &["definitions", "contracts"],
    },
    // Code that engines share. It knows the instruction set, not the guest.
    Layer { name: "execution", crates: &["hostexec", "direct"], may_use: &["definitions"] },
    // Never parts. The others hand the interpreter what they do not execute.
    Layer {
        name: "engines",
        crates: &["interpreter", "translator", "kvm"],
        may_use: &["definitions", "contracts", "execution", "engines"],
    },
    // What parts plug into.
    Layer { name: "buses", crates: &["pci"], may_use: &["definitions", "contracts"] },
    // Never engines, and never another part.
    Layer {
        name: "parts",
        crates: &["chipset", "boot", "virtio", "storage", "network", "bootdisk", "import"],
        may_use: &["definitions", "contracts", "buses"],
    },
    Layer {
        name: "composition",
        crates: &["machine", "lifecycle", "debug"],
        may_use: &["definitions", "contracts", "engines", "buses", "parts", "composition"],
    },
    // What programs say to each other.
    Layer { name: "interfaces", crates: &["api"], may_use: &[] },
    // What the host's kernel confines a process to. Knows no VM.
    Layer { name: "confinement", crates: &["isolation"], may_use: &[] },
    // What is kept on disk. Knows no VM.
    Layer { name: "stores", crates: &["images", "vms"], may_use: &["interfaces"] },
    Layer {
        name: "surfaces",
        crates: &["control", "ringfence"],
        may_use: &["composition", "interfaces", "confinement", "stores", "surfaces"],
    },
    // Nothing that is shipped uses these.
    Layer {
        name: "checks",
        crates: &["oracle", "ringfence-tests", "workload", "fuzz-bodies", "xtask"],
        may_use: &[
            "definitions",
            "contracts",
            "execution",
            "engines",
            "buses",
            "parts",
            "composition",
            "interfaces",
            "confinement",
            "stores",
            "surfaces",
            "checks",
        ],
    },
];

pub(super) fn check(repository: &Repository) -> Vec<Problem> {
    let mut problems = placement(&repository.workspace);
    problems.extend(directions(&repository.workspace));
    problems.extend(map(repository));
    problems
}

fn layer_of(name: &str) -> Option<&'static Layer> {
    LAYERS.iter().find(|layer| layer.crates.contains(&name))
}

/// Every crate has one layer, and the table names no others.
fn placement(workspace: &Workspace) -> Vec<Problem> {
    let mut problems = Vec::new();
    for package in &workspace.packages {
        if layer_of(&package.name).is_none() {
            problems.push(format!("{} is in no layer: add it to LAYERS", package.name));
        }
    }
    for name in LAYERS.iter().flat_map(|layer| layer.crates) {
        if !workspace.packages.iter().any(|package| package.name == *name) {
            problems.push(format!("{name} is in LAYERS but not in the workspace"));
        }
    }
    problems
}

/// Tests may use the checks besides what their crate may use: the oracle tests engines.
fn directions(workspace: &Workspace) -> Vec<Problem> {
    let mut problems = Vec::new();
    for package in &workspace.packages {
        let Some(from) = layer_of(&package.name) else { continue };
        for dependency in package.dependencies.iter().filter(|d| d.source.is_none()) {
            let Some(to) = layer_of(&dependency.name) else { continue };
            let for_tests = dependency.kind.as_deref() == Some("dev") && to.name == "checks";
            if !from.may_use.contains(&to.name) && !for_tests {
                problems.push(format!(
                    "{} ({}) uses {} ({}): dependencies point downwards only",
                    package.name, from.name, dependency.name, to.name
                ));
            }
        }
    }
    problems
}

/// The map in ARCHITECTURE.md has every crate.
fn map(repository: &Repository) -> Vec<Problem> {
    let Some(map) = repository.file("ARCHITECTURE.md") else {
        return vec!["ARCHITECTURE.md is missing".to_owned()];
    };
    let unmapped = |name: &&&str| !map.text.contains(&format!("`{name}`"));
    let names = LAYERS.iter().flat_map(|layer| layer.crates);
    names
        .filter(unmapped)
        .map(|name| format!("ARCHITECTURE.md does not mention `{name}`"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(dependency: &str, kind: &str) -> Workspace {
        let text = format!(
            r#"{{"packages": [{{"name": "chipset", "manifest_path": "/x/Cargo.toml", "targets": [],
                "dependencies": [{{"name": "{dependency}", "kind": {kind},
                "rename": null, "source": null}}]}}]}}"#
        );
        serde_json::from_str(&text).expect("metadata")
    }

    #[test]
    fn a_part_may_not_use_an_engine() {
        assert!(directions(&workspace("device", "null")).is_empty());
        assert_eq!(directions(&workspace("interpreter", "null")).len(), 1);
        assert_eq!(directions(&workspace("interpreter", "\"dev\"")).len(), 1);
        assert_eq!(directions(&workspace("oracle", "null")).len(), 1);
        assert!(directions(&workspace("oracle", "\"dev\"")).is_empty());
    }

    #[test]
    fn a_layer_only_names_layers_that_stand_before_it() {
        for (index, layer) in LAYERS.iter().enumerate() {
            for used in layer.may_use {
                assert!(
                    LAYERS[..=index].iter().any(|other| other.name == *used),
                    "{} may use {used}, which stands below it in the table",
                    layer.name
                );
            }
        }
    }
}
