//! Contents that are still on their way while all else goes on.

use std::collections::HashSet;

use mirror_core::Digest;
use testkit::rng::Rng;

use super::*;

/// From so many bytes on it is large.
const LARGE: usize = 100;

fn large(n: u8) -> Vec<u8> {
    vec![n; LARGE + usize::from(n)]
}

fn slow() -> Pair {
    let pair = pair();
    *pair.source.contents.travel_from.lock().unwrap() = Some(LARGE as u64);
    pair
}

impl Pair {
    fn position(&self) -> Option<Position> {
        self.records.last().map(|record| record.position)
    }
    /// Nothing fails meanwhile.
    #[track_caller]
    fn go_on(&mut self) {
        let outcome = self.step();
        assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
        assert_eq!(outcome.applied, self.applier().applied());
        assert_eq!(self.applier().store().position(), self.position());
    }
    /// So do contents of this many bytes.
    fn arrive(&mut self, which: impl Fn(&Content) -> bool) {
        let travelling = self.applier().travelling();
        let mut there = self.source.contents.there.lock().unwrap();
        let come = travelling.values().filter(|content| which(content));
        there.extend(come.map(|content| content.digest));
        drop(there);
        let outcome = self.retry();
        assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
        assert!(outcome.healed.is_empty(), "nothing had failed");
    }
    #[track_caller]
    fn all_there(&mut self) {
        for _ in 0..3 {
            self.arrive(|_| true);
        }
        assert!(self.applier().travelling().is_empty());
        assert!(self.applier().failed().is_empty());
        let end = self.position();
        assert_eq!(self.applier().applied(), end);
        self.check();
    }
    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.in_dst(name)).unwrap()
    }
}

#[test]
fn all_else_goes_on_and_applied_waits() {
    let mut pair = slow();
    pair.mkdir("dir");
    pair.write("dir/file", b"old");
    pair.sync();
    let before = pair.position();
    pair.write("dir/file", &large(1));
    pair.write("dir/new", &large(2));
    pair.write("dir/small", b"small");
    pair.go_on();
    assert_eq!(pair.read("dir/file"), b"old");
    assert!(!pair.in_dst("dir/new").exists());
    assert_eq!(pair.read("dir/small"), b"small");
    assert_eq!(pair.applier().applied(), before);
    pair.write("dir/later", b"later");
    pair.write("elsewhere", b"later");
    pair.go_on();
    assert_eq!(pair.read("dir/later"), b"later");
    assert_eq!(pair.applier().applied(), before);
    assert_eq!(pair.applier().travelling().len(), 2);
    // One of them.
    pair.arrive(|content| content.bytes == LARGE as u64 + 2);
    assert_eq!(pair.read("dir/new"), large(2));
    assert_eq!(pair.read("dir/file"), b"old");
    assert_eq!(pair.applier().applied(), before);
    // Known after a crash, before anything is asked for.
    pair.applier().checkpoint().unwrap();
    pair.crash();
    assert_eq!(pair.applier().applied(), before);
    assert!(pair.applier().failed().is_empty() && pair.applier().must_ask());
    pair.all_there();
}

#[test]
fn what_travels_is_renamed_linked_rewritten_and_removed() {
    let mut pair = slow();
    for dir in ["a", "b", "c"] {
        pair.mkdir(dir);
    }
    for name in ["a/known", "a/gone", "a/hit"] {
        pair.write(name, b"old");
    }
    pair.sync();
    pair.write("a/known", &large(1));
    pair.write("a/gone", &large(2));
    pair.write("a/new", &large(3));
    pair.write("a/brief", &large(4));
    pair.go_on();
    pair.mv("a/known", "b/known");
    pair.mv("a/new", "a/hit");
    std::fs::hard_link(pair.src("b/known"), pair.src("c/link")).unwrap();
    pair.rm("a/gone");
    pair.rm("a/brief");
    pair.go_on();
    assert!(!pair.in_dst("a/gone").exists());
    assert_eq!(pair.read("a/hit"), b"old");
    pair.mv("b", "d");
    pair.mkdir("b");
    pair.write("b/known", b"another");
    pair.go_on();
    assert_eq!(pair.read("b/known"), b"another");
    pair.write("d/known", &large(5));
    pair.go_on();
    let digests: Vec<u64> = (pair.applier().travelling().values())
        .map(|content| content.bytes)
        .collect();
    assert_eq!(digests.len(), 2, "the older version is not wanted any more");
    pair.rm("c");
    pair.go_on();
    pair.all_there();
    // And what was all that travelled is removed with its directory: nothing waits for it.
    pair.mkdir("dir/below");
    pair.write("dir/below/file", &large(6));
    pair.go_on();
    assert!(pair.in_dst("dir/below").exists());
    assert_ne!(pair.applier().applied(), pair.position());
    pair.rm("dir");
    pair.go_on();
    pair.check();
    assert_eq!(pair.applier().applied(), pair.position());
}

#[test]
fn what_does_not_come_fails_and_is_passed_and_never_goes_back() {
    let mut pair = slow();
    pair.write("file", b"old");
    pair.sync();
    pair.write("file", &large(1));
    pair.go_on();
    let id = pair.source.id("file");
    let (contents, after) = (&pair.source.contents, pair.position());
    contents.instead.lock().unwrap().insert(id, "not now");
    let outcome = pair.retry();
    assert_eq!(outcome.failed.len(), 1);
    assert_eq!(outcome.applied, after);
    // Asked again it travels again, and stays listed.
    pair.source.contents.instead.lock().unwrap().clear();
    assert!(pair.retry().failed.is_empty());
    assert_eq!(pair.applier().failed().len(), 1);
    assert_eq!(pair.applier().applied(), after);
    assert_eq!(pair.applier().asked_again(), 1);
    let digest = pair.applier().travelling()[&id].digest;
    pair.source.contents.there.lock().unwrap().insert(digest);
    assert_eq!(pair.retry().healed, [id]);
    pair.check();
}

#[test]
fn any_change_while_anything_travels_and_any_crash() {
    each_seed("TRAVEL", 6, churn);
}

/// So many seeds, or those that `NAME_SEED` and `NAME_SEEDS` say.
fn each_seed(name: &str, seeds: u64, run: fn(u64)) {
    let number = |what: &str, otherwise| {
        std::env::var(format!("{name}_{what}")).map_or(otherwise, |n| n.parse().unwrap())
    };
    let first = number("SEED", 0);
    for seed in first..first + number("SEEDS", seeds) {
        eprintln!("seed {seed}");
        run(seed);
    }
}

fn slow_with_dirs() -> Pair {
    let mut pair = slow();
    for dir in ["a", "b", "a/c"] {
        pair.mkdir(dir);
    }
    pair.sync();
    pair
}

fn churn(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut pair = slow_with_dirs();
    let mut marker = 0u8;
    let mut applied = None;
    for _ in 0..60 {
        for _ in 0..rng.below(4) + 1 {
            change(&pair, &mut rng, &mut marker);
        }
        if rng.below(4) > 0 {
            pair.go_on();
        } else {
            // Recorded, and met by another process.
            let records = pair.source.look();
            pair.records.extend(records);
            if rng.below(2) == 0 {
                pair.applier().checkpoint().unwrap();
            }
            pair.crash();
            applied = None;
            let outcome = pair.catch_up();
            assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
        }
        let now = pair.applier().applied();
        assert!(now >= applied, "{applied:?} {now:?}");
        applied = now;
        if rng.below(3) == 0 {
            let odd = rng.below(2);
            pair.arrive(|content| content.bytes % 2 == odd);
        }
    }
    pair.all_there();
}

/// What was written over before it was sent is not to be had any more: a worker that was killed has only what is there now.
#[test]
fn any_change_while_older_versions_are_gone() {
    each_seed("GONE", 20, churn_gone);
}

fn churn_gone(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut pair = slow_with_dirs();
    let mut marker = 0u8;
    for _ in 0..60 {
        for _ in 0..rng.below(6) + 1 {
            change(&pair, &mut rng, &mut marker);
        }
        match rng.below(4) {
            0 => {
                let records = pair.source.look();
                pair.records.extend(records);
                pair.crash();
                pair.catch_up();
            }
            _ => drop(pair.step()),
        }
        if rng.below(2) == 0 {
            pair.only_what_is(&mut rng);
            pair.retry();
        }
    }
    for _ in 0..8 {
        pair.only_what_is(&mut rng);
        pair.retry();
    }
    pair.only_what_is(&mut rng);
    let travelling = pair.applier().travelling();
    let left = travelling.values().map(|content| content.digest);
    pair.source.contents.there.lock().unwrap().extend(left);
    pair.retry();
    pair.retry();
    pair.check();
    assert!(
        pair.applier().failed().is_empty(),
        "{:#?}",
        pair.applier().failed()
    );
    let limbo: Vec<_> = std::fs::read_dir(pair.state.join("staging/limbo"))
        .unwrap()
        .collect();
    assert!(limbo.is_empty(), "{limbo:?}");
    let adopted = std::fs::read_dir(pair.state.join("adopted")).map_or(0, Iterator::count);
    assert_eq!(adopted, 0, "nobody made anything by hand");
}

impl Pair {
    /// Of what travels some arrive, and the rest is gone where it is not in the source any more.
    fn only_what_is(&mut self, rng: &mut Rng) {
        let mut now = HashSet::new();
        let mut dirs = vec![self.src("")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap().is_dir() {
                    true => dirs.push(entry.path()),
                    false => drop(now.insert(std::fs::read(entry.path()).unwrap())),
                }
            }
        }
        let now: HashSet<Digest> = now
            .iter()
            .map(|bytes| Digest(*blake3::hash(bytes).as_bytes()))
            .collect();
        self.source
            .contents
            .gone
            .lock()
            .unwrap()
            .retain(|digest| !now.contains(digest));
        for content in self.applier().travelling().values() {
            if !now.contains(&content.digest) {
                self.source
                    .contents
                    .gone
                    .lock()
                    .unwrap()
                    .insert(content.digest);
            } else if rng.below(2) == 0 {
                self.source
                    .contents
                    .there
                    .lock()
                    .unwrap()
                    .insert(content.digest);
            }
        }
    }
}

fn change(pair: &Pair, rng: &mut Rng, marker: &mut u8) {
    let mut dirs = vec![String::new()];
    let mut files = Vec::new();
    let mut at = 0;
    while at < dirs.len() {
        for entry in std::fs::read_dir(pair.src(&dirs[at])).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = format!("{}{name}", dirs[at]);
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(format!("{path}/")),
                false => files.push(path),
            }
        }
        at += 1;
    }
    let pick = |rng: &mut Rng, from: &[String]| from[rng.below(from.len() as u64) as usize].clone();
    let name = format!(
        "{}{}",
        pick(rng, &dirs),
        b"xyzuvw"[rng.below(6) as usize] as char
    );
    let free = !pair.src(&name).exists();
    *marker = marker.wrapping_add(1);
    let bytes = match rng.below(2) {
        0 => vec![*marker; 5],
        _ => large(*marker),
    };
    let some = (!files.is_empty()).then(|| pick(rng, &files));
    let dir = pick(rng, &dirs);
    match (rng.below(10), some) {
        (0..3, _) if !pair.src(&name).is_dir() => pair.write(&name, &bytes),
        (3, Some(file)) => pair.write(&file, &bytes),
        (4, Some(file)) if !pair.src(&name).is_dir() => pair.mv(&file, &name),
        (5, Some(file)) if free => {
            std::fs::hard_link(pair.src(&file), pair.src(&name)).unwrap();
        }
        (6, Some(file)) => pair.rm(&file),
        (7, _) if free => pair.mkdir(&name),
        (8, _) if free && !dir.is_empty() => {
            // Not into itself.
            let _ = std::fs::rename(pair.src(&dir), pair.src(&name));
        }
        (9, _) if !dir.is_empty() && rng.below(3) == 0 => pair.rm(dir.trim_end_matches('/')),
        _ => {}
    }
}
