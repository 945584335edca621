//! Pairing: a token that is carried by a person makes two hosts know each other's key.
//!
//! Token, proofs and files: `docs/FORMAT.md`, *Services*. The secret itself is kept nowhere: the side that made the token
//! keeps what a proof is checked with, until it is used, or ten minutes are over.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use mirror_core::escape;
use serde::{Deserialize, Serialize};

use super::Program;
use super::dial::{self, DialError};
use super::files::{self, Held, NetFileError, Secrecy};
use super::keys::{Fingerprint, KeyPair, base32, from_base32, random};
use super::trust::{Address, Known, check_tree};
use crate::engine::status::Stamp;
use crate::link::message::{self as say, Message};
use crate::link::serve::hostname;

/// How long a token is good.
pub const GOOD_FOR: Duration = Duration::from_secs(600);
/// Wrong proofs that end a token.
const WRONG_MAX: u32 = 5;
/// Tokens that are good at once.
const TOKENS_MAX: usize = 100;
/// A clock may be put right by so much, backwards, and tokens stay good.
const SET_BACK_MS: i64 = 60_000;
/// How long it is remembered why a token is good no more.
const REMEMBERED_MS: i64 = 24 * 3600 * 1000;
const PREFIX: &str = "mt1:";
const DIR: &str = "pairing";
const BYTES_MAX: u64 = 64 << 10;
/// All of it, for the side that dials.
const JOIN_MAX: Duration = Duration::from_secs(20);
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What a person carries from one host to the other.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Of the side that listens.
    pub key: Fingerprint,
    secret: [u8; 16],
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token of {}", self.key)
    }
}

impl Token {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.key.0.to_vec();
        bytes.extend(self.secret);
        let check = *blake3::hash(&bytes).as_bytes();
        bytes.extend(check.iter().take(2));
        bytes
    }

    pub fn id(&self) -> [u8; 16] {
        let whole = blake3::derive_key("fs_mirror 2026 pairing token id", &self.secret);
        let mut id = [0; 16];
        id.copy_from_slice(whole.split_at(16).0);
        id
    }

    pub fn proof_key(&self) -> ProofKey {
        let context = "fs_mirror 2026 pairing proof key";
        ProofKey(blake3::derive_key(context, &self.secret))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", base32(&self.bytes()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no whole token: copy all of it, mt1: and 80 letters and digits, as `pair --tree NAME` printed it"
)]
pub struct NoToken;

impl FromStr for Token {
    type Err = NoToken;
    fn from_str(text: &str) -> Result<Token, NoToken> {
        let bytes = text.trim().strip_prefix(PREFIX).and_then(from_base32);
        let bytes = bytes.ok_or(NoToken)?;
        let (key, rest) = bytes.split_at_checked(32).ok_or(NoToken)?;
        let (secret, _) = rest.split_at_checked(16).ok_or(NoToken)?;
        let token = Token {
            key: Fingerprint(key.try_into().map_err(|_| NoToken)?),
            secret: secret.try_into().map_err(|_| NoToken)?,
        };
        (token.bytes() == bytes).then_some(token).ok_or(NoToken)
    }
}

/// Who proves that it knows the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Dialing,
    Listening,
}

/// One connection, as both its ends know it.
#[derive(Debug, Clone, Copy)]
pub struct Between {
    pub exported: [u8; 32],
    pub dialing: Fingerprint,
    pub listening: Fingerprint,
}

/// What proofs are made and checked with.
#[derive(Clone, Serialize, Deserialize)]
pub struct ProofKey([u8; 32]);

impl ProofKey {
    pub fn prove(&self, side: Side, between: &Between) -> [u8; 32] {
        self.hash(side, between).into()
    }

    /// Takes the same time whatever is wrong with it.
    pub fn is_right(&self, side: Side, between: &Between, proof: [u8; 32]) -> bool {
        self.hash(side, between) == blake3::Hash::from_bytes(proof)
    }

    fn hash(&self, side: Side, between: &Between) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(match side {
            Side::Dialing => b"D",
            Side::Listening => b"L",
        });
        hasher.update(&between.exported);
        hasher.update(&between.dialing.0);
        hasher.update(&between.listening.0);
        hasher.finalize()
    }
}

/// A token as the side that made it keeps it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Kept {
    pub proof_key: ProofKey,
    /// What its user may follow; `*`: all.
    pub trees: Vec<String>,
    /// What its user is to be called.
    pub name: Option<String>,
    until_ms: i64,
    wrong: u32,
    ended: Option<Ended>,
}

#[derive(Clone, Serialize, Deserialize)]
enum Ended {
    Used { by: Fingerprint, at_ms: i64 },
    Guessed { at_ms: i64 },
    Withdrawn { at_ms: i64 },
}

/// A token that is good now. The secret is nowhere, so it can't be shown again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Open {
    /// Not secret.
    pub id: String,
    /// What its user may follow; `*`: all; none: it is for a worker that dials.
    pub trees: Vec<String>,
    pub name: Option<String>,
    pub until: Stamp,
}

impl Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Fingerprint, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(transparent)]
    Files(#[from] NetFileError),
    /// One line for the one who came with it.
    #[error("{0}")]
    Refused(String),
}

/// The tokens that were made here.
pub struct Tokens {
    dir: PathBuf,
    program: Program,
}

impl Tokens {
    pub fn new(program: Program, config_dir: &Path) -> Tokens {
        Tokens {
            dir: config_dir.join(DIR),
            program,
        }
    }

    fn name(id: &[u8; 16]) -> String {
        let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex}.json")
    }

    /// A new token for these trees (`*`: all), good for [`GOOD_FOR`] from now.
    pub fn make(
        &self,
        own: Fingerprint,
        trees: &[String],
        name: Option<&str>,
        now_ms: i64,
    ) -> Result<Token, TokenError> {
        for tree in trees.iter().filter(|tree| *tree != "*") {
            check_tree(tree).map_err(TokenError::Refused)?;
        }
        let random = random().map_err(files::io_error("make a token in", &self.dir))?;
        let token = Token {
            key: own,
            secret: random,
        };
        let held = Held::take(&self.dir)?;
        if self.clean(now_ms)? >= TOKENS_MAX {
            return Err(TokenError::Refused(format!(
                "{TOKENS_MAX} tokens are good already: use them, wait until they expire, or take one back: `{0} pair --list`, `{0} pair --withdraw ID`",
                self.program
            )));
        }
        let kept = Kept {
            proof_key: token.proof_key(),
            trees: trees.to_vec(),
            name: name.map(Into::into),
            until_ms: now_ms + GOOD_FOR.as_millis() as i64,
            wrong: 0,
            ended: None,
        };
        self.keep(&held, &token.id(), &kept)?;
        Ok(token)
    }

    /// Those that are good now; the one that ends first comes first.
    pub fn open(&self, now_ms: i64) -> Result<Vec<Open>, NetFileError> {
        let mut open = Vec::new();
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            // None was ever made.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(open),
            Err(e) => return Err(files::io_error("read", &self.dir)(e)),
        };
        for entry in entries {
            let path = entry.map_err(files::io_error("read", &self.dir))?.path();
            let id = path.file_name().and_then(|name| name.to_str());
            let Some(id) = id.and_then(|name| name.strip_suffix(".json")) else {
                continue;
            };
            let kept = self.read(&path)?;
            let good = kept.filter(|kept| kept.ended.is_none() && kept.until_ms >= now_ms);
            open.extend(good.map(|kept| Open {
                id: id.to_owned(),
                trees: kept.trees,
                name: kept.name,
                until: Stamp { ms: kept.until_ms },
            }));
        }
        open.sort_by(|a, b| (a.until.ms, &a.id).cmp(&(b.until.ms, &b.id)));
        Ok(open)
    }

    /// Nobody is to come with this one any more. A beginning of its id is enough.
    pub fn withdraw(&self, id: &str, now_ms: i64) -> Result<Open, TokenError> {
        let held = Held::take(&self.dir)?;
        let mut open = self.open(now_ms)?;
        open.retain(|one| !id.is_empty() && one.id.starts_with(id));
        let program = self.program;
        let shown = escape(id.as_bytes());
        let one = match open.as_slice() {
            [one] => one.clone(),
            [] => {
                let why =
                    format!("no token that is good begins with {shown}: `{program} pair --list`");
                return Err(TokenError::Refused(why));
            }
            more => {
                let why = format!(
                    "{} tokens begin with {shown}: more of it, as `{program} pair --list` shows it",
                    more.len()
                );
                return Err(TokenError::Refused(why));
            }
        };
        let name = format!("{}.json", one.id);
        let Some(mut kept) = self.read(&self.dir.join(&name))? else {
            return Err(TokenError::Refused(format!("{shown} is gone")));
        };
        kept.ended = Some(Ended::Withdrawn { at_ms: now_ms });
        let bytes = serde_json::to_vec(&kept)
            .map_err(|e| files::io_error("write", &self.dir)(io::Error::other(e)))?;
        held.replace(&name, &bytes)?;
        Ok(one)
    }

    /// Forgets what nobody asks for any more. How many are good.
    fn clean(&self, now_ms: i64) -> Result<usize, NetFileError> {
        let failed = || files::io_error("read", &self.dir);
        let mut good = 0;
        for entry in std::fs::read_dir(&self.dir).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            let kept = self.read(&path)?;
            match kept {
                Some(kept) if kept.until_ms.saturating_add(REMEMBERED_MS) >= now_ms => {
                    good += usize::from(kept.ended.is_none() && kept.until_ms >= now_ms);
                }
                // Old, or nothing that we wrote.
                _ => drop(std::fs::remove_file(&path)),
            }
        }
        Ok(good)
    }

    /// `None`: there is none, or none that can be read.
    fn read(&self, path: &Path) -> Result<Option<Kept>, NetFileError> {
        let bytes = files::read(path, Secrecy::Secret, BYTES_MAX)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    fn keep(&self, held: &Held, id: &[u8; 16], kept: &Kept) -> Result<(), NetFileError> {
        let bytes = serde_json::to_vec(kept)
            .map_err(|e| files::io_error("write", &self.dir)(io::Error::other(e)))?;
        held.replace(&Tokens::name(id), &bytes)
    }

    /// The token, if it is good and the proof is right; it is used then, whatever comes after.
    pub fn redeem(
        &self,
        id: &[u8; 16],
        between: &Between,
        proof: [u8; 32],
        now_ms: i64,
    ) -> Result<Kept, TokenError> {
        let again = format!("`{} pair --tree NAME` there makes a new one", self.program);
        let no = |why: String| Err(TokenError::Refused(format!("{why}: {again}")));
        let held = Held::take(&self.dir)?;
        let Some(mut kept) = self.read(&self.dir.join(Tokens::name(id)))? else {
            return no(
                "this token is not known here: it is very old, or of another service".into(),
            );
        };
        let at = |ms: i64| Stamp { ms };
        match &kept.ended {
            Some(Ended::Used { by, at_ms }) => {
                return no(format!(
                    "this token was used already, by {by} at {}",
                    at(*at_ms)
                ));
            }
            Some(Ended::Withdrawn { at_ms }) => {
                return no(format!("this token was withdrawn at {}", at(*at_ms)));
            }
            Some(Ended::Guessed { at_ms }) => {
                let at = at(*at_ms);
                return no(format!(
                    "this token was ended by {WRONG_MAX} wrong proofs, the last at {at}"
                ));
            }
            None => {}
        }
        if now_ms > kept.until_ms {
            return no(format!("this token expired at {}", at(kept.until_ms)));
        }
        let made_ms = kept.until_ms - GOOD_FOR.as_millis() as i64;
        if now_ms < made_ms - SET_BACK_MS {
            return no(format!(
                "this token is of {}, which is still to come: the clock there was set back",
                at(made_ms)
            ));
        }
        let is_right = kept.proof_key.is_right(Side::Dialing, between, proof);
        if is_right {
            kept.ended = Some(Ended::Used {
                by: between.dialing,
                at_ms: now_ms,
            });
        } else {
            kept.wrong += 1;
            if kept.wrong >= WRONG_MAX {
                kept.ended = Some(Ended::Guessed { at_ms: now_ms });
            }
        }
        self.keep(&held, id, &kept)?;
        if is_right {
            return Ok(kept);
        }
        Err(TokenError::Refused(format!(
            "the proof is wrong ({} of {WRONG_MAX} that end a token)",
            kept.wrong
        )))
    }
}

/// What came of it, for the side that dialed.
#[derive(Debug)]
pub struct Paired {
    pub address: Address,
    /// Of the service.
    pub key: Fingerprint,
    /// What the service lets us follow; `*`: all.
    pub trees: Vec<String>,
    /// What it calls us.
    pub name: String,
    /// The key it had to show before, if that was another.
    pub before: Option<Fingerprint>,
}

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Files(#[from] NetFileError),
    #[error(transparent)]
    Dial(DialError),
    #[error(
        "{address} is not who made this token: it shows {shown}, and the token is of {wanted}. Is it the right host, and nobody \
         between?"
    )]
    OtherKey {
        address: Address,
        shown: Fingerprint,
        wanted: Fingerprint,
    },
    #[error("{address}: {why}")]
    Refused { address: Address, why: String },
    #[error("{address} does not know the token's secret: nothing was written down")]
    Impostor { address: Address },
    #[error(
        "pairing with {address} broke off: {why}. Try again; a token that was used makes a new one necessary"
    )]
    Broke { address: Address, why: String },
}

/// Goes to the service with the token, and writes its key down.
pub fn join(
    program: Program,
    config_dir: &Path,
    address: &Address,
    token: &Token,
) -> Result<Paired, JoinError> {
    let key = KeyPair::load_or_make(config_dir)?;
    let until = Instant::now() + JOIN_MAX;
    let mut session =
        dial::dial_key(address, &key, token.key, until, JOIN_MAX).map_err(|e| match e {
            DialError::WrongKey {
                address,
                shown,
                wanted,
            } => JoinError::OtherKey {
                address,
                shown,
                wanted,
            },
            other => JoinError::Dial(other),
        })?;
    let broke = |why: String| JoinError::Broke {
        address: address.clone(),
        why,
    };
    let between = Between {
        exported: session.exported().map_err(|e| broke(e.to_string()))?,
        dialing: key.fingerprint(),
        listening: session.peer,
    };
    let proof_key = token.proof_key();
    let ask = Message::from(say::Pair {
        token: token.id(),
        proof: proof_key.prove(Side::Dialing, &between),
        name: hostname(),
        program: format!("{program} {}", env!("CARGO_PKG_VERSION")),
    });
    let mut bytes = Vec::new();
    ask.encode(&mut bytes).map_err(|e| broke(e.to_string()))?;
    let written = session.writer.write_all(&bytes);
    written.map_err(|e| broke(e.to_string()))?;
    let answer = Message::read_up_to(&mut session.reader, &mut Vec::new(), ANSWER_BYTES_MAX);
    session.closer()();
    let done = match answer.map_err(|e| broke(e.to_string()))? {
        Message::Paired(done) => done,
        Message::Refused(no) => {
            return Err(JoinError::Refused {
                address: address.clone(),
                why: escape(no.reason.as_bytes()),
            });
        }
        other => return Err(broke(format!("it said a message of kind {}", other.kind()))),
    };
    if !proof_key.is_right(Side::Listening, &between, done.proof) {
        return Err(JoinError::Impostor {
            address: address.clone(),
        });
    }
    let before = Known::set(config_dir, address, token.key)?;
    Ok(Paired {
        address: address.clone(),
        key: token.key,
        trees: done.trees,
        name: escape(done.name.as_bytes()),
        before: before.filter(|before| *before != token.key),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between() -> Between {
        Between {
            exported: [1; 32],
            dialing: Fingerprint([2; 32]),
            listening: Fingerprint([3; 32]),
        }
    }

    #[test]
    fn too_many_tokens_can_be_withdrawn() {
        let held = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(Program::Mirrord, &held.path().join("etc"));
        let make = || tokens.make(Fingerprint([3; 32]), &["blog".into()], None, 1000);
        for _ in 0..TOKENS_MAX {
            make().unwrap();
        }
        let why = make().unwrap_err().to_string();
        assert!(
            why.ends_with("`mirrord pair --list`, `mirrord pair --withdraw ID`"),
            "{why}"
        );
        let open = tokens.open(1000).unwrap();
        assert_eq!(open.len(), TOKENS_MAX);
        assert!(tokens.withdraw("", 1000).is_err());
        assert_eq!(tokens.withdraw(&open[7].id, 1000).unwrap(), open[7]);
        assert!(tokens.withdraw(&open[7].id, 1000).is_err());
        make().unwrap();
    }

    #[test]
    fn a_token_is_read_as_it_is_shown_and_a_slip_is_found() {
        let token = Token {
            key: Fingerprint([9; 32]),
            secret: [7; 16],
        };
        let text = token.to_string();
        assert_eq!(text.len(), 84);
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        for at in 4..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'a' { b'b' } else { b'a' };
            let other = String::from_utf8(other).unwrap();
            assert!(other == text || other.parse::<Token>().is_err(), "{at}");
        }
        assert!(text[..83].parse::<Token>().is_err());
        assert!("".parse::<Token>().is_err());
        assert!(!format!("{token:?}").contains(&text[60..]));
    }

    #[test]
    fn a_proof_is_of_one_connection_and_one_side() {
        let key = ProofKey([5; 32]);
        let here = between();
        let proof = key.prove(Side::Dialing, &here);
        assert!(key.is_right(Side::Dialing, &here, proof));
        assert!(!key.is_right(Side::Listening, &here, proof));
        assert!(!ProofKey([6; 32]).is_right(Side::Dialing, &here, proof));
        for there in [
            Between {
                exported: [0; 32],
                ..here
            },
            Between {
                dialing: here.listening,
                ..here
            },
            Between {
                listening: here.dialing,
                ..here
            },
        ] {
            assert!(!key.is_right(Side::Dialing, &there, proof));
        }
    }

    #[test]
    fn a_token_is_good_once_and_not_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(Program::Mirrord, &dir.path().join("c"));
        let own = Fingerprint([3; 32]);
        let make = |now| tokens.make(own, &["blog".into()], None, now).unwrap();
        let redeem = |token: &Token, proof, now| {
            let done = tokens.redeem(&token.id(), &between(), proof, now);
            done.map_err(|e| e.to_string())
        };
        let right = |token: &Token| token.proof_key().prove(Side::Dialing, &between());

        let token = make(1000);
        assert_eq!(redeem(&token, right(&token), 2000).unwrap().trees, ["blog"]);
        let used = redeem(&token, right(&token), 3000).err().unwrap();
        assert!(used.contains("used already, by mk1:"), "{used}");
        assert!(used.contains("mirrord pair --tree"), "{used}");

        let late = make(1000);
        let expired = redeem(&late, right(&late), 601_001).err().unwrap();
        assert!(
            expired.contains("expired at 1970-01-01T00:10:01"),
            "{expired}"
        );
        // A clock that was set back makes no token good for longer.
        let late = make(7_200_000);
        let early = redeem(&late, right(&late), 1000).err().unwrap();
        assert!(early.contains("the clock there was set back"), "{early}");
        assert!(redeem(&late, right(&late), 7_190_000).is_ok());
        let unknown = Token {
            key: own,
            secret: [0; 16],
        };
        let unknown = redeem(&unknown, right(&unknown), 0).err().unwrap();
        assert!(unknown.contains("not known here"), "{unknown}");

        let guessed = make(1000);
        for n in 1..=5 {
            let wrong = redeem(&guessed, [0; 32], 2000).err().unwrap();
            assert!(wrong.contains(&format!("({n} of 5")), "{wrong}");
        }
        let over = redeem(&guessed, right(&guessed), 2000).err().unwrap();
        assert!(over.contains("ended by 5 wrong"), "{over}");

        // The file says nothing that would be a token.
        let file = dir.path().join("c/pairing").join(Tokens::name(&token.id()));
        let text = std::fs::read_to_string(file).unwrap();
        assert!(!text.contains(&base32(&token.secret)));
        // And a day later nothing is kept.
        make(2 * REMEMBERED_MS);
        assert_eq!(tokens.clean(2 * REMEMBERED_MS).unwrap(), 1);
        assert!(tokens.make(own, &["a/b".into()], None, 0).is_err());
    }
}
