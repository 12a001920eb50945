//! Reading a table key by key. What is asked for is known; what is left over was not meant to be there. Nothing stops at
//! the first fault: a faulty key reads as nothing, and reading goes on.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use super::{
    error::{Fault, Origin, suggestion},
    raw::{Entry, Table, Value},
};

/// Keys and their defaults; `None`: there is none.
pub(super) type Known = BTreeMap<String, Option<String>>;

/// What reading has found out so far.
#[derive(Debug, Default)]
pub(super) struct Reader {
    faults: RefCell<Vec<Fault>>,
    /// Every key asked for, with its default as it would be written in the environment. Backends are all called `*`.
    known: RefCell<Known>,
    /// Every sound key that was asked for: whether it was given (and is no default), and where it or its section stands.
    sound: RefCell<BTreeMap<String, (bool, Origin)>>,
}

/// A table being read.
#[derive(Debug)]
pub(super) struct Section<'a> {
    reader: &'a Reader,
    path: String,
    at: Origin,
    table: Option<&'a Table>,
    asked: RefCell<Vec<String>>,
    anything_asked: Cell<bool>,
}

impl Reader {
    /// Complains that the sound keys `a` and `b` do not go together. Says nothing if one of them is faulty by itself.
    pub(super) fn disagree(&self, a: &str, b: &str, message: impl Into<String>) {
        let sound = self.sound.borrow();
        if let (Some((given, at_a)), Some((_, at_b))) = (sound.get(a), sound.get(b)) {
            self.fault(if *given { at_a } else { at_b }, a, message);
        }
    }

    /// Notes a fault.
    fn fault(&self, at: &Origin, key: &str, message: impl Into<String>) {
        self.faults.borrow_mut().push(Fault { at: at.clone(), key: key.to_owned(), message: message.into() });
    }

    /// The faults, by place, and the keys known with their defaults.
    pub(super) fn finish(self) -> (Vec<Fault>, Known) {
        let mut faults = self.faults.into_inner();
        faults.sort();
        faults.dedup();
        (faults, self.known.into_inner())
    }

    /// Reads the outermost table.
    pub(super) fn root<T>(&self, root: &Entry, read: impl FnOnce(&Section<'_>) -> T) -> T {
        let table = match &root.value {
            Value::Table(table) => Some(table),
            _ => None,
        };
        Section::new(self, String::new(), root.at.clone(), table).read(read)
    }
}

impl<'a> Section<'a> {
    const fn new(reader: &'a Reader, path: String, at: Origin, table: Option<&'a Table>) -> Self {
        Self { reader, path, at, table, asked: RefCell::new(Vec::new()), anything_asked: Cell::new(false) }
    }

    /// Reads, then complains of what nobody asked for.
    fn read<T>(self, read: impl FnOnce(&Self) -> T) -> T {
        let result = read(&self);
        let asked = self.asked.borrow();
        for (key, entry) in self.table.into_iter().flatten() {
            if !self.anything_asked.get() && !asked.contains(key) {
                let near = suggestion(key, asked.iter().map(String::as_str));
                self.reader.fault(&entry.at, &self.full(key), format!("unknown key{near}"));
            }
        }
        result
    }

    /// The section stands in the file or in the environment.
    pub(super) const fn is_given(&self) -> bool {
        self.table.is_some()
    }

    /// The key stands in the file or in the environment.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// Notes a fault of the key `key`, at its place.
    pub(super) fn fault(&self, key: &str, message: impl Into<String>) {
        let at = self.entry(key).map_or(&self.at, |entry| &entry.at);
        self.reader.fault(at, &self.full(key), message);
    }

    /// Complains that two keys of this section do not go together; says nothing if one of them is faulty by itself.
    pub(super) fn disagree(&self, a: &str, b: &str, message: impl Into<String>) {
        self.reader.disagree(&self.full(a), &self.full(b), message);
    }

    /// Reads the table `key`; an absent one is empty.
    pub(super) fn section<T>(&self, key: &str, read: impl FnOnce(&Section<'_>) -> T) -> T {
        self.asked.borrow_mut().push(key.to_owned());
        let (at, table) = match self.entry(key) {
            None => (self.at.clone(), None),
            Some(Entry { at, value: Value::Table(table) }) => (at.clone(), Some(table)),
            Some(entry) => {
                self.fault(key, format!("must be a section, `[{}]`", self.full(key)));
                (entry.at.clone(), None)
            }
        };
        Section::new(self.reader, self.full(key), at, table).read(read)
    }

    /// The keys of this table by their place, all of them counted as asked for: names that people chose.
    pub(super) fn names(&self) -> Vec<String> {
        self.anything_asked.set(true);
        let mut names: Vec<_> = self.table.into_iter().flatten().collect();
        names.sort_by(|(_, a), (_, b)| a.at.cmp(&b.at));
        names.into_iter().map(|(name, _)| name.clone()).collect()
    }

    /// Reads a key that has a default. A faulty one reads as a stand-in: the configuration is refused then anyway.
    pub(super) fn get<T: Default>(&self, key: &str, default: &str, parse: impl Fn(&Value) -> Result<T, String>) -> T {
        self.know(key, Some(default));
        self.read_key(key, &parse, || parse(&Value::Loose(default.to_owned())))
    }

    /// Like [`Self::get`], with a default that is fitted to the values beside it.
    pub(super) fn get_fitted<T: Default>(
        &self,
        key: &str,
        default: &str,
        parse: impl Fn(&Value) -> Result<T, String>,
        fit: impl Fn(T) -> T,
    ) -> T {
        self.know(key, Some(default));
        self.read_key(key, &parse, || parse(&Value::Loose(default.to_owned())).map(&fit))
    }

    /// Reads a key that may be absent.
    pub(super) fn optional<T>(&self, key: &str, parse: impl Fn(&Value) -> Result<T, String>) -> Option<T> {
        self.know(key, None);
        self.read_key(key, &|value| parse(value).map(Some), || Ok(None))
    }

    /// Reads a key that must be there; `example` is shown when it is not.
    pub(super) fn required<T: Default>(
        &self,
        key: &str,
        example: &str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> T {
        self.know(key, None);
        self.read_key(key, &parse, || Err(format!("is missing; write for example `{key} = {example}`")))
    }

    fn read_key<T: Default>(
        &self,
        key: &str,
        parse: &dyn Fn(&Value) -> Result<T, String>,
        absent: impl FnOnce() -> Result<T, String>,
    ) -> T {
        let entry = self.entry(key);
        let read = entry.map_or_else(absent, |entry| parse(&entry.value));
        if read.is_ok() {
            let at = entry.map_or(&self.at, |entry| &entry.at).clone();
            let place = (entry.is_some(), at);
            self.reader.sound.borrow_mut().insert(self.full(key), place);
        }
        read.unwrap_or_else(|message| {
            self.fault(key, message);
            T::default()
        })
    }

    fn know(&self, key: &str, default: Option<&str>) {
        self.asked.borrow_mut().push(key.to_owned());
        let mut path: Vec<_> = self.path.split('.').filter(|s| !s.is_empty()).collect();
        if let ["backends", name, ..] = path.as_mut_slice() {
            *name = "*";
        }
        path.push(key);
        self.reader.known.borrow_mut().insert(path.join("."), default.map(str::to_owned));
    }

    fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.table.and_then(|table| table.get(key))
    }

    /// The key in full.
    pub(super) fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}
