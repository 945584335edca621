//! The applier on real file systems: a source tree changes, a simple look says how, and the copy must equal it.

mod attack;
mod faults;
mod foreign;
mod hostile;
mod order;
mod past;
mod pruning;
mod published;
mod same;
mod source;
mod travel;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use mirror_core::{At, Digest, Handle, MemRows, Name, Object, ObjectId, Position, Record, Rows};

use self::source::Source;
use super::*;

/// Rows in memory that fall back to the last flush when the process "crashes".
#[derive(Clone, Default)]
pub struct Memory {
    now: State,
    durable: Arc<Mutex<State>>,
    log: Option<Arc<Mutex<Vec<Trace>>>>,
}

#[derive(Clone, Default)]
struct State {
    rows: MemRows,
    position: Option<Position>,
    values: BTreeMap<String, Vec<u8>>,
}

impl Memory {
    /// What a new process would find.
    pub fn crashed(&self) -> Memory {
        let now = self.durable.lock().unwrap().clone();
        Memory {
            now,
            ..self.clone()
        }
    }
}

impl Rows for Memory {
    type Error = Infallible;
    fn name(&self, at: &At) -> Result<Option<ObjectId>, Infallible> {
        self.now.rows.name(at)
    }
    fn object(&self, id: ObjectId) -> Result<Option<Object>, Infallible> {
        self.now.rows.object(id)
    }
    fn by_handle(&self, handle: &Handle) -> Result<Option<ObjectId>, Infallible> {
        self.now.rows.by_handle(handle)
    }
    fn children(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, ObjectId)>, Infallible> {
        self.now.rows.children(dir, after, max)
    }
    fn put(&mut self, id: ObjectId, object: Object) -> Result<(), Infallible> {
        self.now.rows.put(id, object)
    }
    fn remove(&mut self, id: ObjectId) -> Result<(), Infallible> {
        self.now.rows.remove(id)
    }
}

impl Store for Memory {
    fn position(&self) -> Option<Position> {
        self.now.position
    }
    fn advance(&mut self, position: Position, _: Digest) {
        self.now.position = Some(position);
    }
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.now.values.get(key).cloned())
    }
    fn set(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), Infallible> {
        match value {
            Some(value) => drop(self.now.values.insert(key.into(), value.into())),
            None => drop(self.now.values.remove(key)),
        }
        Ok(())
    }
    fn flush(&mut self) -> Result<(), Infallible> {
        *self.durable.lock().unwrap() = self.now.clone();
        if let Some(log) = &self.log {
            log.lock().unwrap().push(Trace::FlushRows);
        }
        Ok(())
    }
}

/// A source, a copy, and what is between them.
pub struct Pair {
    pub source: Source,
    pub dst: PathBuf,
    pub state: PathBuf,
    pub applier: Option<Applier<Memory>>,
    pub memory: Memory,
    pub records: Vec<Record>,
    pub options: Options,
    _base: tempfile::TempDir,
}

pub fn pair() -> Pair {
    pair_with(Options::default())
}

pub fn pair_with(options: Options) -> Pair {
    pair_in(&std::env::temp_dir(), options)
}

pub fn pair_in(base: &Path, options: Options) -> Pair {
    let base = tempfile::tempdir_in(base).unwrap();
    let source = Source::new(&base.path().join("src"));
    let (dst, state) = (base.path().join("dst"), base.path().join("dst.fs_mirror"));
    let mut pair = Pair {
        source,
        dst,
        state,
        applier: None,
        memory: Memory::default(),
        records: Vec::new(),
        options,
        _base: base,
    };
    pair.open();
    pair
}

impl Pair {
    pub fn open(&mut self) {
        self.applier = None;
        let opened = Applier::open(
            &self.dst,
            &self.state,
            self.memory.clone(),
            self.options.clone(),
        );
        self.applier = Some(opened.unwrap_or_else(|e| panic!("{e}: {e:?}")));
    }
    pub fn applier(&mut self) -> &mut Applier<Memory> {
        self.applier.as_mut().unwrap()
    }
    pub fn src(&self, name: &str) -> PathBuf {
        self.source.path.join(name)
    }
    pub fn in_dst(&self, name: &str) -> PathBuf {
        self.dst.join(name)
    }
    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.src(name), bytes).unwrap();
    }
    pub fn mkdir(&self, name: &str) {
        std::fs::create_dir_all(self.src(name)).unwrap();
    }
    pub fn mv(&self, from: &str, to: &str) {
        std::fs::rename(self.src(from), self.src(to)).unwrap();
    }
    pub fn rm(&self, name: &str) {
        let path = self.src(name);
        if path.symlink_metadata().unwrap().is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }

    /// Looks, and applies what was found.
    pub fn step(&mut self) -> Outcome {
        let records = self.source.look();
        self.records.extend(records.iter().cloned());
        self.apply(&records)
    }
    pub fn apply(&mut self, records: &[Record]) -> Outcome {
        let applier = self.applier.as_mut().unwrap();
        match applier.apply(records, Digest([0; 32]), &self.source.contents) {
            Ok(outcome) => outcome,
            Err(e) => panic!("{e}: {e:?}"),
        }
    }
    pub fn retry(&mut self) -> Outcome {
        let applier = self.applier.as_mut().unwrap();
        applier
            .retry(&self.source.contents)
            .unwrap_or_else(|e| panic!("{e}: {e:?}"))
    }
    /// The process dies, and another one takes up from what was durable.
    pub fn crash(&mut self) {
        self.memory = self.applier().store().crashed();
        self.open();
        let end = self.records.last().map(|record| record.position);
        self.applier().log_ends(end);
    }
    /// Everything since the rows' position, in one slice.
    pub fn catch_up(&mut self) -> Outcome {
        let position = self.applier().store().position();
        let left: Vec<Record> = self
            .records
            .iter()
            .filter(|r| position.is_none_or(|p| r.position > p))
            .cloned()
            .collect();
        self.apply(&left)
    }

    #[track_caller]
    pub fn check(&mut self) {
        testkit::compare::assert_equal(&self.source.path, &self.dst, &Default::default());
        self.check_index();
    }
    /// The rows say what is there, and nothing is left over.
    #[track_caller]
    pub fn check_index(&mut self) {
        let mut found = Vec::new();
        self.applier()
            .verify(true, &mut |difference| found.push(difference))
            .unwrap();
        let shown: Vec<String> = found
            .iter()
            .map(|d| format!("{:?} {}", d.what, String::from_utf8_lossy(&d.path)))
            .collect();
        assert!(found.is_empty(), "{shown:#?}");
        for dir in ["staging/new", "staging/limbo", "staging/aside"] {
            let left: Vec<_> = std::fs::read_dir(self.state.join(dir)).unwrap().collect();
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
    }
    #[track_caller]
    pub fn sync(&mut self) -> Outcome {
        let outcome = self.step();
        assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
        self.check();
        outcome
    }
}
