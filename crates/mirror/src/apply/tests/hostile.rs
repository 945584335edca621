//! Records that anybody may have made up: whatever they say, nothing outside the copy changes, and what is applied is as the rows say.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::same::Random;
use super::*;
use mirror_core::{At, Change, Content, Kind, Meta, Name, ObjectId, State, Time, Xattr};

/// Files that no record is about: all of them, and when each was last touched.
pub fn canary(dir: &Path) -> Vec<(PathBuf, u64, u32, u64, i64, i64)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(at) = dirs.pop() {
        let meta = at.symlink_metadata().unwrap();
        let kept = (
            at.clone(),
            meta.ino(),
            meta.mode(),
            meta.nlink(),
            meta.ctime(),
            meta.ctime_nsec(),
        );
        found.push(kept);
        if meta.is_dir() {
            dirs.extend(
                std::fs::read_dir(&at)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
    found.sort();
    found
}

struct Maker {
    random: Random,
    target: PathBuf,
    sequence: u64,
}

impl Maker {
    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.random.below(of.len() as u64) as usize].clone()
    }

    fn name(&mut self) -> Name {
        let names: [&[u8]; 9] = [
            b"a",
            b"b",
            b"c",
            b"\x1b[2J",
            b"...",
            b"staging",
            b"0000100000000002.0",
            &[b'n'; 255],
            b"dst.fs_mirror",
        ];
        if self.random.below(3) > 0 {
            let name = format!("n{}", self.random.below(60));
            return Name::new(name.as_bytes()).unwrap();
        }
        Name::new(self.one(&names)).unwrap()
    }

    fn state(&mut self) -> State {
        let root = testkit::is_root();
        let link = std::os::unix::ffi::OsStrExt::as_bytes(self.target.as_os_str());
        let hole = |bytes: u64| {
            let data = vec![(bytes, 0)];
            let digest = Digest(
                *crate::capture::read::hasher(bytes, &data)
                    .finalize()
                    .as_bytes(),
            );
            Kind::File(Content {
                bytes,
                digest,
                data,
                proven: true,
                fuzzy: false,
            })
        };
        let digest = Digest(*blake3::hash(b"").as_bytes());
        let empty = Kind::File(Content {
            bytes: 0,
            digest,
            data: Vec::new(),
            proven: true,
            fuzzy: false,
        });
        let kinds = [
            Kind::Dir,
            Kind::Dir,
            Kind::Dir,
            Kind::Symlink(link.into()),
            Kind::Symlink(b"..".as_slice().into()),
            Kind::Fifo,
            Kind::Socket,
            Kind::Device {
                block: false,
                major: 1,
                minor: 3,
            },
            hole(4096),
            hole(1 << 50),
            empty.clone(),
            empty,
        ];
        let kind = self.one(&kinds);
        // Most can be had.
        let odd = self.random.below(10) == 0;
        let flags = [0, 0, 0, 0x10, 0x20, 0x30];
        let names: [&[u8]; 5] = [
            b"user.x",
            b"trusted.x",
            b"security.capability",
            b"system.posix_acl_access",
            b"evil",
        ];
        let xattrs = match self.random.below(4) {
            0 if odd => vec![Xattr {
                name: self.one(&names).into(),
                value: self.one(&[vec![], vec![7; 50]]).into(),
            }],
            _ => Vec::new(),
        };
        let meta = Meta {
            mode: self.random.below(0o10000) as u16,
            uid: if root {
                self.one(if odd { &[0, u32::MAX] } else { &[0, 7] })
            } else {
                0
            },
            gid: self.one(&[0, 7, u32::MAX - 1]),
            mtime: Time {
                seconds: self.one(&[0, i64::MIN, i64::MAX, 1]),
                nanos: 7,
            },
            xattrs,
            flags: if root { self.one(&flags) } else { 0 },
            project: if odd { u32::MAX } else { 0 },
        };
        State { kind, meta }
    }

    /// Mostly of what is there, sometimes of what is not.
    fn change(&mut self, rows: &[(ObjectId, Vec<At>, bool)]) -> Change {
        let strange = [
            ObjectId::ROOT,
            ObjectId(0),
            ObjectId(u64::MAX),
            ObjectId(ObjectId::ROOT.0 + 3),
        ];
        let odd = self.random.below(12) == 0;
        let dirs: Vec<ObjectId> = rows.iter().filter(|row| row.2).map(|row| row.0).collect();
        let (object, names) = match rows.len() > 1 && !odd {
            true => {
                let (id, names, _) = self.one(&rows[1..]);
                (id, names)
            }
            false => (self.one(&strange), Vec::new()),
        };
        let parent = if odd || dirs.is_empty() {
            self.one(&strange)
        } else {
            self.one(&dirs)
        };
        let at = At {
            parent,
            name: self.name(),
        };
        let had = if names.is_empty() || odd {
            at.clone()
        } else {
            self.one(&names)
        };
        match self.random.below(10) {
            0..4 => {
                let object = if odd {
                    object
                } else {
                    ObjectId(ObjectId::ROOT.0 + self.sequence)
                };
                Change::Create {
                    at,
                    object,
                    state: self.state(),
                }
            }
            4 => Change::Link { at, object },
            5 => Change::Unlink { at: had, object },
            6 | 7 => Change::Move {
                object,
                from: had,
                to: at,
            },
            _ => {
                let state = self.state();
                let content = match state.kind {
                    Kind::File(content) if self.random.below(2) == 0 => Some(content),
                    _ => None,
                };
                Change::Update {
                    object,
                    at: Some(had),
                    meta: Some(state.meta),
                    content,
                }
            }
        }
    }
}

#[test]
fn made_up_records_by_the_thousand_stay_in_the_copy() {
    let seed = std::env::var("HOSTILE_SEED").map_or(1, |seed| seed.parse().unwrap());
    let seconds = std::env::var("HOSTILE_SECONDS").map_or(3, |n| n.parse().unwrap());
    println!("HOSTILE_SEED={seed}");
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("a"), b"canary").unwrap();
    std::fs::create_dir(outside.path().join("b")).unwrap();
    let before = canary(outside.path());
    let mut pair = pair_with(Options {
        flush: Flush::Never,
        ..Options::default()
    });
    let mut maker = Maker {
        random: Random(seed),
        target: outside.path().into(),
        sequence: 1,
    };
    let record = |sequence, change, end| Record {
        position: Position { epoch: 1, sequence },
        time_ns: sequence,
        end,
        who: None,
        change,
        local: None,
        content: None,
    };
    let (tree, claim) = ([7; 16], [1; 16]);
    pair.apply(&[record(
        1,
        Change::Open {
            tree,
            claim,
            parent: None,
        },
        true,
    )]);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut reasons = std::collections::BTreeMap::new();
    let (mut applied, mut refused, mut failed, mut rounds) = (0u64, 0u64, 0u64, 0u64);
    while Instant::now() < until || rounds < 50 {
        rounds += 1;
        let rows: Vec<(ObjectId, Vec<At>, bool)> = {
            let rows = &pair.applier().store().now.rows;
            let row = |(id, row): (&ObjectId, &Object)| {
                (
                    *id,
                    row.names.iter().cloned().collect(),
                    row.state.kind.is_dir(),
                )
            };
            rows.objects().take(200).map(row).collect()
        };
        let many = 1 + maker.random.below(3);
        let mut records = Vec::new();
        for n in 0..many {
            maker.sequence += 1;
            let change = maker.change(&rows);
            let end = n + 1 == many || maker.random.below(2) == 0;
            records.push(record(maker.sequence, change, end));
        }
        let Pair {
            applier, source, ..
        } = &mut pair;
        let applier = applier.as_mut().unwrap();
        match applier.apply(&records, Digest([0; 32]), &source.contents) {
            Ok(outcome) => {
                applied += records.len() as u64;
                failed += outcome.failed.len() as u64;
                for f in &outcome.failed {
                    *reasons
                        .entry(format!("{}: {}", f.step, f.reason))
                        .or_insert(0u64) += 1;
                }
            }
            Err(ApplyError::Records(why)) => {
                refused += 1;
                let why = why.split(", at ").next().unwrap_or_default().to_owned();
                *reasons.entry(why).or_insert(0u64) += 1;
            }
            Err(e) => panic!("round {rounds}: {e}: {e:?}"),
        }
        if rounds.is_multiple_of(40) {
            assert_eq!(canary(outside.path()), before, "round {rounds}");
            // Anew, as after a crash.
            if rounds.is_multiple_of(120) {
                pair.applier().checkpoint().unwrap();
                pair.crash();
                let end = Position {
                    epoch: 1,
                    sequence: maker.sequence,
                };
                pair.applier().log_ends(Some(end));
            }
        }
    }
    assert_eq!(canary(outside.path()), before);
    println!(
        "{rounds} batches, {applied} records applied, {refused} batches refused, {failed} failures listed"
    );
    println!("{reasons:#?}");
    assert!(applied > 50 && refused > 5, "{applied} {refused}");
    // Made again from nothing, and all of it can go.
    let names: Vec<_> = std::fs::read_dir(&pair.dst).unwrap().flatten().collect();
    println!("{} names at the top", names.len());
    drop(pair.applier.take());
    testkit::generate::remove(&pair.dst).unwrap();
}
