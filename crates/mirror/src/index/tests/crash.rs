//! A disk that loses what was not flushed: after a crash at any point the index is as of its last flush.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use redb::StorageBackend;

use super::world::{Model, Op, change, check, op};
use crate::index::header::Header;
use crate::index::store::Store;
use crate::index::{Index, Options};

/// A disk in memory.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    now: Vec<u8>,
    flushed: Vec<u8>,
    /// Since the last flush: the new bytes at an offset, or a new length.
    pending: Vec<Pending>,
    /// So many more writes and flushes succeed.
    left: usize,
}

#[derive(Debug, Clone)]
enum Pending {
    Write(usize, Vec<u8>),
    Length(usize),
}

const SECTOR: usize = 512;

fn apply(disk: &mut Vec<u8>, pending: &Pending) {
    match pending {
        Pending::Length(length) => disk.resize(*length, 0),
        Pending::Write(offset, data) => {
            let end = offset + data.len();
            if disk.len() < end {
                disk.resize(end, 0);
            }
            disk[*offset..end].copy_from_slice(data);
        }
    }
}

impl Disk {
    fn spend(state: &mut State) -> io::Result<()> {
        state.left = state
            .left
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("the power is gone"))?;
        Ok(())
    }
    /// The disk after the power came back: of what wasn't flushed, any sectors may have made it.
    fn after_crash(&self, mut seed: u64, writes: usize) -> Disk {
        let state = self.0.lock().unwrap();
        let mut disk = state.flushed.clone();
        let mut coin = || {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            seed >> 33 & 1 == 1
        };
        for pending in &state.pending {
            match pending {
                Pending::Length(_) if coin() => apply(&mut disk, pending),
                Pending::Length(_) => {}
                Pending::Write(offset, data) => {
                    for (n, sector) in data.chunks(SECTOR).enumerate() {
                        if coin() {
                            let sector = Pending::Write(offset + n * SECTOR, sector.to_vec());
                            apply(&mut disk, &sector);
                        }
                    }
                }
            }
        }
        Disk(Arc::new(Mutex::new(State {
            now: disk.clone(),
            flushed: disk,
            pending: vec![],
            left: writes,
        })))
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let offset = offset as usize;
        let found = state.now.get(offset..offset + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        Disk::spend(&mut state)?;
        let pending = Pending::Length(len as usize);
        apply(&mut state.now, &pending);
        state.pending.push(pending);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        Disk::spend(&mut state)?;
        state.flushed = state.now.clone();
        state.pending.clear();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        Disk::spend(&mut state)?;
        let pending = Pending::Write(offset as usize, data.to_vec());
        apply(&mut state.now, &pending);
        state.pending.push(pending);
        Ok(())
    }
}

fn open(disk: &Disk) -> Index {
    let options = Options {
        cache_bytes: 64 << 10,
        overlay_bytes_max: 3000,
        check: true,
    };
    let path = Path::new("(in memory)");
    let (mut store, header) = Store::open_backend(path, Box::new(disk.clone()), &options).unwrap();
    let header = header.unwrap_or_else(|| {
        let header = Header::default();
        store.write(&Default::default(), &header, true).unwrap();
        header
    });
    Index::with(store, header, false, &options).unwrap().0
}

fn crash_at(ops: &[Op], writes: usize, seed: u64) {
    let disk = Disk::default();
    disk.0.lock().unwrap().left = usize::MAX;
    let mut index = open(&disk);
    disk.0.lock().unwrap().left = writes;
    let mut model = Model::default();
    let mut flushed = Model::default();
    // What a flush that failed may have made durable all the same.
    let mut perhaps = None;
    for op in ops {
        let result = change(&mut index, &mut model, op);
        match (op, result) {
            (Op::Flush, Ok(())) => flushed = model.clone(),
            (Op::Flush, Err(_)) => {
                perhaps = Some(model.clone());
                break;
            }
            (Op::FlushAside(_), Ok(())) => flushed = *model.flushing.take().unwrap(),
            (Op::FlushAside(_), Err(_)) => {
                perhaps = model.flushing.take().map(|model| *model);
                break;
            }
            (_, Ok(())) => {}
            (_, Err(_)) => break,
        }
    }
    let after = disk.after_crash(seed, usize::MAX);
    // What the old process still does is not on the new disk.
    drop(index);
    let index = open(&after);
    match perhaps {
        Some(perhaps) if index.mark() == perhaps.mark => check(&index, &perhaps),
        _ => check(&index, &flushed),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn is_as_of_the_last_flush(
        ops in proptest::collection::vec(op(), 1..100),
        writes in 0..400usize,
        seed in any::<u64>(),
    ) {
        crash_at(&ops, writes, seed);
        crash_at(&ops, writes / 8, seed);
    }
}

/// An index dropped in the middle of a group, after a spill, is as of its last flush too, and says nothing.
#[test]
fn a_drop_writes_nothing() {
    let disk = Disk::default();
    disk.0.lock().unwrap().left = usize::MAX;
    let mut index = open(&disk);
    let mut model = Model::default();
    change(&mut index, &mut model, &Op::Meta(1, Some(vec![1]))).unwrap();
    change(&mut index, &mut model, &Op::Flush).unwrap();
    let flushed = model.clone();
    change(&mut index, &mut model, &Op::Meta(1, Some(vec![2]))).unwrap();
    change(&mut index, &mut model, &Op::Spill).unwrap();
    check(&index, &model);
    drop(index);
    check(&open(&disk), &flushed);
}
