//! Executes GRUB's scripts, up to the kernel.

use std::collections::BTreeMap;

use super::script::{Part, Statement, Word, parse};
use super::{Entry, FileName, Machine, SearchBy};

/// How many statements a configuration executes at most: Debian's executes some hundred.
const MAX_STEPS: usize = 100_000;

/// How many scripts, functions and menus can be in each other.
const MAX_DEPTH: usize = 16;

/// The longest value of a variable, and the longest word, in bytes.
const MAX_TEXT: usize = 64 << 10;

/// What the default entry of the configuration `path` on `device` boots.
///
/// # Errors
/// What is wrong with the configuration, with the line where known.
pub fn default_entry(machine: &dyn Machine, device: &str, path: &str) -> Result<Entry, String> {
    let mut run = Run::new(machine);
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    run.set("root", device.to_owned());
    run.set("prefix", format!("({device}){folder}"));
    // What a PC with BIOS has.
    run.set("grub_platform", "pc".to_owned());
    run.set("grub_cpu", "i386".to_owned());
    run.script(&FileName { device: device.to_owned(), path: path.to_owned() })?;
    let wanted = run.get("default").to_owned();
    let mut wanted = wanted.split('>');
    let mut choice = choose(&run.menu, wanted.next().unwrap_or_default());
    let mut entry = Entry::default();
    while let Some(item) = choice.cloned() {
        entry.title = item.title.clone();
        run.menu.clear();
        run.entry = Entry::default();
        run.call(&item.body, "menu entry")?;
        if !item.is_submenu {
            break;
        }
        choice = choose(&run.menu, wanted.next().unwrap_or_default());
    }
    let title = entry.title;
    Ok(Entry { title, variables: run.variables, ..run.entry })
}

/// An entry of a menu.
#[derive(Clone, Debug)]
struct Item {
    title: String,
    id: Option<String>,
    is_submenu: bool,
    body: Vec<Statement>,
}

/// The entry that is told by number, identity or title; the first one if there is no such.
fn choose<'a>(menu: &'a [Item], wanted: &str) -> Option<&'a Item> {
    let by_name = || menu.iter().find(|i| i.id.as_deref() == Some(wanted) || i.title == wanted);
    let number = wanted.parse::<usize>().ok();
    number.and_then(|number| menu.get(number)).or_else(by_name).or(menu.first())
}

struct Run<'a> {
    machine: &'a dyn Machine,
    variables: BTreeMap<String, String>,
    functions: BTreeMap<String, Vec<Statement>>,
    menu: Vec<Item>,
    entry: Entry,
    steps: usize,
    depth: usize,
}

impl<'a> Run<'a> {
    fn new(machine: &'a dyn Machine) -> Self {
        Self {
            machine,
            variables: BTreeMap::new(),
            functions: BTreeMap::new(),
            menu: Vec::new(),
            entry: Entry::default(),
            steps: 0,
            depth: 0,
        }
    }

    fn get(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    fn set(&mut self, name: &str, value: String) {
        if value.len() <= MAX_TEXT
            && (self.variables.len() < 1000 || self.variables.contains_key(name))
        {
            self.variables.insert(name.to_owned(), value);
        }
    }

    fn script(&mut self, file: &FileName) -> Result<bool, String> {
        let Some(text) = self.machine.text(&file.device, &file.path) else { return Ok(false) };
        let statements = parse(&text).map_err(|error| format!("{}: {error}", file.path))?;
        self.call(&statements, &file.path)
    }

    /// Executes a body one level deeper.
    fn call(&mut self, body: &[Statement], what: &str) -> Result<bool, String> {
        if self.depth == MAX_DEPTH {
            return Err(format!("{what}: too many scripts in each other"));
        }
        self.depth += 1;
        let success = self.statements(body);
        self.depth -= 1;
        success
    }

    /// Executes statements; returns whether the last one succeeded.
    fn statements(&mut self, statements: &[Statement]) -> Result<bool, String> {
        let mut success = true;
        for statement in statements {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err("it does not come to an end".to_owned());
            }
            success = match statement {
                Statement::If(branches) => self.branch(branches)?,
                Statement::Function(name, body) => {
                    self.functions.insert(name.clone(), body.clone());
                    true
                }
                Statement::Command(words, block) => {
                    let words = self.expand(words)?;
                    self.command(&words, block.as_deref())?
                }
            };
        }
        Ok(success)
    }

    fn branch(&mut self, branches: &[(Vec<Statement>, Vec<Statement>)]) -> Result<bool, String> {
        for (condition, body) in branches {
            if self.statements(condition)? {
                return self.statements(body);
            }
        }
        Ok(true)
    }

    fn expand(&self, words: &[Word]) -> Result<Vec<String>, String> {
        let mut expanded = Vec::new();
        for Word(parts) in words {
            let mut current: Option<String> = None;
            for part in parts {
                match part {
                    Part::Text(text) => current.get_or_insert_default().push_str(text),
                    Part::Variable { name, quoted: true } => {
                        current.get_or_insert_default().push_str(self.get(name));
                    }
                    Part::Variable { name, quoted: false } => {
                        for (index, text) in self.get(name).split_whitespace().enumerate() {
                            if index > 0 {
                                expanded.extend(current.take());
                            }
                            current.get_or_insert_default().push_str(text);
                        }
                    }
                }
                if current.as_ref().is_some_and(|text| text.len() > MAX_TEXT) {
                    return Err("a word is too long".to_owned());
                }
            }
            expanded.extend(current);
        }
        Ok(expanded)
    }

    /// Executes a command; returns whether it succeeded.
    fn command(&mut self, words: &[String], block: Option<&[Statement]>) -> Result<bool, String> {
        let Some((name, args)) = words.split_first() else { return Ok(true) };
        match name.as_str() {
            "menuentry" | "submenu" => self.add_item(name == "submenu", args, block),
            "set" => {
                if let Some((name, value)) = args.first().and_then(|arg| arg.split_once('=')) {
                    self.set(name, value.to_owned());
                }
            }
            "unset" => args.iter().for_each(|name| drop(self.variables.remove(name))),
            "search" => return Ok(self.search(args)),
            "search.fs_uuid" | "search.fs_label" | "search.file" => {
                return Ok(self.short_search(name, args));
            }
            "load_env" => self.load_env(args),
            "[" => return Ok(self.test(args.strip_suffix(&["]".to_owned()]).unwrap_or(args))),
            "test" => return Ok(self.test(args)),
            "!" => return Ok(!self.command(args, block)?),
            "false" => return Ok(false),
            "source" | "." | "configfile" => {
                let Some(file) = args.first().map(|path| self.file(path)) else { return Ok(false) };
                return self.script(&file);
            }
            "linux" | "linux16" | "linuxefi" => {
                self.entry.linux = args.first().map(|path| self.file(path));
                self.entry.cmdline = args.get(1..).unwrap_or_default().join(" ");
            }
            "initrd" | "initrd16" | "initrdefi" => {
                self.entry.initrds = args.iter().map(|path| self.file(path)).collect();
            }
            "blscfg" => self.entry.has_entry_files = true,
            _ => {
                if let Some(body) = self.functions.get(name).cloned() {
                    return self.call(&body, name);
                }
                // `name=value` sets a variable, too. Everything else is about screens and keys.
                if let Some((name, value)) = name.split_once('=') {
                    self.set(name, value.to_owned());
                }
            }
        }
        Ok(true)
    }

    fn add_item(&mut self, is_submenu: bool, args: &[String], block: Option<&[Statement]>) {
        let options = [("--id", true), ("--class", true), ("--users", true), ("--hotkey", true)];
        let (mut title, mut id) = (None, None);
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let (option, value) = match arg.split_once('=') {
                Some((option, value)) if arg.starts_with("--") => (option, Some(value.to_owned())),
                _ => (arg.as_str(), None),
            };
            // Debian writes `$menuentry_id_option 'id'`, with the variable set to `--id` by GRUB.
            if options.iter().any(|(known, _)| *known == option) {
                let value = value.or_else(|| args.next().cloned());
                if option == "--id" {
                    id = value;
                }
            } else if !option.starts_with("--") && title.is_none() {
                title = Some(arg.clone());
            }
        }
        let item = Item {
            title: title.unwrap_or_default(),
            id,
            is_submenu,
            body: block.unwrap_or_default().to_vec(),
        };
        self.menu.push(item);
    }

    /// A path with its device: `(hd0,gpt1)/boot/vmlinuz`, or one on `$root`.
    fn file(&self, path: &str) -> FileName {
        let with_device = path.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        let (device, path) = with_device.unwrap_or((self.get("root"), path));
        FileName { device: device.to_owned(), path: path.to_owned() }
    }

    fn search(&mut self, args: &[String]) -> bool {
        let mut by = SearchBy::File;
        let mut variable = "root".to_owned();
        let mut what = None;
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--fs-uuid" | "-u" => by = SearchBy::Uuid,
                "--label" | "--fs-label" | "-l" => by = SearchBy::Label,
                "--file" | "-f" => by = SearchBy::File,
                "--set" | "-s" => {}
                "--hint" => drop(args.next()),
                arg => match arg.strip_prefix("--set=") {
                    Some(name) => name.clone_into(&mut variable),
                    None if arg.starts_with("--") => {}
                    None => what = Some(arg.to_owned()),
                },
            }
        }
        self.found(by, what.as_deref(), &variable)
    }

    /// `search.fs_uuid UUID VARIABLE`.
    fn short_search(&mut self, name: &str, args: &[String]) -> bool {
        let by = match name {
            "search.fs_uuid" => SearchBy::Uuid,
            "search.fs_label" => SearchBy::Label,
            _ => SearchBy::File,
        };
        let variable = args.get(1).map_or("root", String::as_str);
        self.found(by, args.first().map(String::as_str), variable)
    }

    fn found(&mut self, by: SearchBy, what: Option<&str>, variable: &str) -> bool {
        let device = what.and_then(|what| self.machine.search(by, what));
        match device {
            Some(device) => {
                self.set(variable, device);
                true
            }
            None => false,
        }
    }

    /// Takes the variables of an environment block (GRUB manual, "The GRUB environment block").
    fn load_env(&mut self, args: &[String]) {
        let named = args.iter().position(|arg| matches!(arg.as_str(), "--file" | "-f"));
        let path = match named.and_then(|at| args.get(at + 1)) {
            Some(path) => path.clone(),
            None => format!("{}/grubenv", self.get("prefix")),
        };
        let file = self.file(&path);
        let text = self.machine.text(&file.device, &file.path).unwrap_or_default();
        for line in text.lines().filter(|line| !line.starts_with('#')).take(100) {
            if let Some((name, value)) = line.split_once('=') {
                self.set(name, value.to_owned());
            }
        }
    }

    /// `test` (GRUB manual, "test"), as far as configurations use it.
    fn test(&self, args: &[String]) -> bool {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.test_words(&args)
    }

    fn test_words(&self, args: &[&str]) -> bool {
        if let Some(at) = args.iter().position(|arg| *arg == "-o") {
            return self.test_words(&args[..at]) || self.test_words(&args[at + 1..]);
        }
        if let Some(at) = args.iter().position(|arg| *arg == "-a") {
            return self.test_words(&args[..at]) && self.test_words(&args[at + 1..]);
        }
        let is_there = |path: &str| {
            let file = self.file(path);
            self.machine.exists(&file.device, &file.path)
        };
        match args {
            ["!", rest @ ..] => !self.test_words(rest),
            ["-z", text] => text.is_empty(),
            ["-n", text] | [text] => !text.is_empty(),
            ["-e" | "-f" | "-d" | "-s", path] => is_there(path),
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
