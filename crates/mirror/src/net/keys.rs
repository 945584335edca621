//! This host's key, and how keys are shown and compared.
//!
//! A key is of Ed25519. The file `key` is its private half in PKCS8 (DER, RFC 8410), made on first use. A key is named by its
//! [`Fingerprint`]; nothing else of it is ever compared.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_eddsa_type;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::SigningKey;

use super::files::{self, Held, NetFileError, Secrecy};

const KEY: &str = "key";
const KEY_BYTES_MAX: u64 = 4096;
/// What stands before the 32 secret bytes in PKCS8, version 1.
const PKCS8_HEAD: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// What stands before the 32 public bytes in a SubjectPublicKeyInfo.
const SPKI_HEAD: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
const SPKI_BYTES: usize = SPKI_HEAD.len() + 32;

/// Names a key: `mk1:` and the base32 of blake3 of its SubjectPublicKeyInfo, always 56 characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

const PREFIX: &str = "mk1:";
const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

impl Fingerprint {
    /// `None`: this is no public key of Ed25519.
    pub fn of_spki(spki: &[u8]) -> Option<Fingerprint> {
        let fits = spki.len() == SPKI_BYTES && spki.starts_with(&SPKI_HEAD);
        fits.then(|| Fingerprint(blake3::hash(spki).into()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        f.write_str(&base32(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a key is mk1: and 52 letters and digits, as `key show` prints it")]
pub struct NoFingerprint;

impl FromStr for Fingerprint {
    type Err = NoFingerprint;
    fn from_str(text: &str) -> Result<Fingerprint, NoFingerprint> {
        let digits = text.strip_prefix(PREFIX).ok_or(NoFingerprint)?;
        let bytes = from_base32(digits).ok_or(NoFingerprint)?;
        Ok(Fingerprint(bytes.try_into().map_err(|_| NoFingerprint)?))
    }
}

/// RFC 4648 without padding, in small letters.
pub fn base32(bytes: &[u8]) -> String {
    let mut out = String::new();
    let (mut bits, mut count) = (0u32, 0);
    let mut digit = |bits: u32| {
        if let Some(&digit) = DIGITS.get((bits & 31) as usize) {
            out.push(digit.into());
        }
    };
    for &byte in bytes {
        bits = bits << 8 | u32::from(byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            digit(bits >> count);
        }
    }
    if count > 0 {
        digit(bits << (5 - count));
    }
    out
}

/// `None`: not what [`base32`] writes.
pub fn from_base32(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.bytes() {
        let digit = DIGITS.iter().position(|&digit| digit == byte)?;
        bits = bits << 5 | u32::try_from(digit).ok()?;
        count += 5;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    (base32(&out) == text).then_some(out)
}

/// A private key. What is shown of it is its fingerprint.
#[derive(Clone)]
pub struct KeyPair {
    /// PKCS8.
    secret: Arc<[u8]>,
    signer: Arc<dyn SigningKey>,
    spki: Arc<[u8]>,
    fingerprint: Fingerprint,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.fingerprint)
    }
}

impl KeyPair {
    /// `None`: these bytes are no key.
    pub fn from_pkcs8(bytes: &[u8]) -> Option<KeyPair> {
        let signer = any_eddsa_type(&PrivatePkcs8KeyDer::from(bytes)).ok()?;
        let spki: Arc<[u8]> = signer.public_key()?.as_ref().into();
        let fingerprint = Fingerprint::of_spki(&spki)?;
        Some(KeyPair {
            secret: bytes.into(),
            signer,
            spki,
            fingerprint,
        })
    }

    /// A new key, of the kernel's randomness.
    pub fn make() -> std::io::Result<KeyPair> {
        let mut bytes = PKCS8_HEAD.to_vec();
        bytes.extend_from_slice(&random::<32>()?);
        KeyPair::from_pkcs8(&bytes).ok_or_else(|| std::io::Error::other("a new key can't be used"))
    }

    /// The key in this directory; the first time it is made, and the directory with it.
    pub fn load_or_make(config_dir: &Path) -> Result<KeyPair, NetFileError> {
        if let Some(key) = KeyPair::load(config_dir)? {
            return Ok(key);
        }
        let held = Held::take(config_dir)?;
        // Another one may have made it before we held the directory.
        if let Some(key) = KeyPair::load(config_dir)? {
            return Ok(key);
        }
        let key = KeyPair::make().map_err(files::io_error("make", &config_dir.join(KEY)))?;
        held.replace(KEY, &key.secret)?;
        Ok(key)
    }

    fn load(config_dir: &Path) -> Result<Option<KeyPair>, NetFileError> {
        let path = config_dir.join(KEY);
        let Some(bytes) = files::read(&path, Secrecy::Secret, KEY_BYTES_MAX)? else {
            return Ok(None);
        };
        match KeyPair::from_pkcs8(&bytes) {
            Some(key) => Ok(Some(key)),
            None => Err(NetFileError::NoKey(path)),
        }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }
    pub fn signer(&self) -> Arc<dyn SigningKey> {
        self.signer.clone()
    }
}

/// Bytes nobody can guess.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0u8; N];
    let mut from = std::fs::File::open("/dev/urandom")?;
    std::io::Read::read_exact(&mut from, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn base32_is_that_of_the_rfc_and_strict() {
        for (plain, text) in [
            (&b""[..], ""),
            (b"f", "my"),
            (b"fo", "mzxq"),
            (b"foo", "mzxw6"),
            (b"foob", "mzxw6yq"),
            (b"fooba", "mzxw6ytb"),
            (b"foobar", "mzxw6ytboi"),
        ] {
            assert_eq!(base32(plain), text);
            assert_eq!(from_base32(text).as_deref(), Some(plain));
        }
        for bad in ["MY", "mz", "m", "my======", "m1", "my "] {
            assert_eq!(from_base32(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_fingerprint_is_read_as_it_is_shown() {
        for byte in [0u8, 1, 0x80, 0xff] {
            let print = Fingerprint([byte; 32]);
            let text = print.to_string();
            assert_eq!(text.len(), 56);
            assert_eq!(text.parse(), Ok(print));
            assert!(text.to_uppercase().parse::<Fingerprint>().is_err());
            assert!(text[..55].parse::<Fingerprint>().is_err());
            assert!(format!("{text}a").parse::<Fingerprint>().is_err());
        }
        assert_eq!(Fingerprint::of_spki(&[0; 44]), None);
    }

    #[test]
    fn a_key_is_made_once_and_for_us_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("a/b");
        let key = KeyPair::load_or_make(&config).unwrap();
        let again = KeyPair::load_or_make(&config).unwrap();
        assert_eq!(key.fingerprint(), again.fingerprint());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&config), 0o700);
        assert_eq!(mode(&config.join(KEY)), 0o600);
        assert!(!format!("{key:?}").contains("secret"));
        let other = KeyPair::load_or_make(&dir.path().join("c")).unwrap();
        assert_ne!(key.fingerprint(), other.fingerprint());
    }

    #[test]
    fn a_key_others_can_reach_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("c");
        KeyPair::load_or_make(&config).unwrap();
        let key = config.join(KEY);
        let says = |what: &str| {
            let error = KeyPair::load_or_make(&config).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        says("chmod 600");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&key, config.join("elsewhere")).unwrap();
        symlink("elsewhere", &key).unwrap();
        says("symbolic link");
        fs::remove_file(&key).unwrap();
        fs::write(&key, b"x").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        says("not a private key");
        fs::remove_file(&key).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o777)).unwrap();
        says("written by others");
    }

    #[test]
    fn two_that_make_it_at_once_have_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("c");
        let keys: Vec<Fingerprint> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| KeyPair::load_or_make(&config).unwrap().fingerprint()))
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    }
}
