//! Contents that are still on their way while all else goes on.

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
    let number = |name, otherwise| std::env::var(name).map_or(otherwise, |n| n.parse().unwrap());
    let first = number("TRAVEL_SEED", 0);
    for seed in first..first + number("TRAVEL_SEEDS", 6) {
        eprintln!("seed {seed}");
        churn(seed);
    }
}

fn churn(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut pair = slow();
    for dir in ["a", "b", "a/c"] {
        pair.mkdir(dir);
    }
    pair.sync();
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
