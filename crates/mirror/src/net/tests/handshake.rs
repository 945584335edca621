//! Two ends of a handshake on one host, and somebody between them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::net::dial::{DialError, dial, dial_key};
use crate::net::keys::{Fingerprint, KeyPair};
use crate::net::stream::{HandshakeError, Session};
use crate::net::tls;
use crate::net::trust::{Address, Known};

const LONG: Duration = Duration::from_secs(30);

fn address(at: SocketAddr) -> Address {
    Address::new(&at.ip().to_string(), Some(at.port()))
}

type Accepted = Result<Session, HandshakeError>;

/// Takes one connection as a door does.
fn serve(key: &KeyPair) -> (SocketAddr, JoinHandle<Accepted>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let config = tls::server(key).unwrap();
    let thread = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let heard = AtomicBool::new(false);
        let connection = tls::accept(&config).unwrap();
        let mut session = Session::begin(socket, connection, Instant::now() + LONG, &heard)?;
        session.no_deadline().unwrap();
        Ok(session)
    });
    (at, thread)
}

fn call(at: SocketAddr, key: &KeyPair, wanted: Fingerprint) -> Result<Session, DialError> {
    dial_key(&address(at), key, wanted, Instant::now() + LONG, LONG)
}

/// What goes from the one who dials to the one who listens (`true`), or back, and where it is in that.
type Tamper = dyn Fn(bool, usize, &mut Vec<u8>) -> bool + Send + Sync;

/// Sits between; ends both when `tamper` says so (`false`).
fn between(to: SocketAddr, tamper: Arc<Tamper>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (near, _) = listener.accept().unwrap();
        let far = TcpStream::connect(to).unwrap();
        let (near2, far2, tamper2) = (
            near.try_clone().unwrap(),
            far.try_clone().unwrap(),
            tamper.clone(),
        );
        std::thread::spawn(move || pass(near2, far2, true, &*tamper2));
        pass(far, near, false, &*tamper);
    });
    at
}

fn pass(mut from: TcpStream, mut to: TcpStream, up: bool, tamper: &Tamper) {
    let mut at = 0;
    let mut buffer = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..n].to_vec();
        let goes_on = tamper(up, at, &mut bytes);
        at += n;
        if to.write_all(&bytes).is_err() {
            break;
        }
        if !goes_on {
            let _ = from.shutdown(Shutdown::Both);
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

fn keys() -> (KeyPair, KeyPair) {
    (KeyPair::make().unwrap(), KeyPair::make().unwrap())
}

/// Both speak at once, more than any buffer holds, and hear what the other said.
fn speak(mut near: Session, far: Session) {
    near.no_deadline().unwrap();
    let sum = |bytes: &[u8]| bytes.iter().map(|&b| u64::from(b)).sum::<u64>();
    let text: Vec<u8> = (0..20u32 << 20).map(|i| (i * 7 + i / 251) as u8).collect();
    let total = sum(&text);
    let text = Arc::new(text);
    let mut threads = Vec::new();
    for (mut reader, mut writer) in [(near.reader, near.writer), (far.reader, far.writer)] {
        let text = text.clone();
        threads.push(std::thread::spawn(move || {
            writer.write_all(&text).unwrap();
            writer.finish();
        }));
        threads.push(std::thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            assert_eq!(sum(&got), total);
        }));
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn both_know_each_other_and_speak_at_once() {
    let (ours, theirs) = keys();
    let (at, served) = serve(&theirs);
    let near = call(at, &ours, theirs.fingerprint()).unwrap();
    let far = served.join().unwrap().unwrap();
    assert_eq!(near.peer, theirs.fingerprint());
    assert_eq!(far.peer, ours.fingerprint());
    assert_eq!(near.exported().unwrap(), far.exported().unwrap());
    speak(near, far);
}

#[test]
fn a_wrong_key_is_named_and_ours_is_not_shown() {
    let (ours, theirs) = keys();
    let other = KeyPair::make().unwrap().fingerprint();
    // The key it must show is another one's; then our own, as by files that were swapped.
    for wanted in [other, ours.fingerprint()] {
        let (at, served) = serve(&theirs);
        let error = call(at, &ours, wanted).err().unwrap();
        assert!(matches!(error, DialError::WrongKey { .. }), "{error}");
        let line = error.to_string();
        for what in [wanted, theirs.fingerprint()] {
            assert!(line.contains(&what.to_string()), "{line}");
        }
        assert!(served.join().unwrap().is_err());
    }
}

#[test]
fn who_shows_no_key_or_speaks_an_older_tls_is_refused() {
    let (_, theirs) = keys();
    let (at, served) = serve(&theirs);
    // The hello of a TLS 1.2 client: version, random, no session, one suite, no compression, no extensions.
    let mut hello = vec![0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
    let mut socket = TcpStream::connect(at).unwrap();
    socket.write_all(&hello).unwrap();
    let mut said = Vec::new();
    let _ = socket.read_to_end(&mut said);
    assert_eq!(said.first(), Some(&0x15), "an alert: {said:?}");
    assert!(matches!(
        served.join().unwrap(),
        Err(HandshakeError::Tls(_))
    ));

    let (at, served) = serve(&theirs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = rustls::RootCertStore::empty();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![tls::ALPN.to_vec()];
    let name = rustls::pki_types::ServerName::try_from("x").unwrap();
    let client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(at).unwrap();
    let heard = AtomicBool::new(false);
    let ours = Session::begin(socket, client.into(), Instant::now() + LONG, &heard);
    assert!(ours.is_err());
    assert!(matches!(
        served.join().unwrap(),
        Err(HandshakeError::Tls(_))
    ));
}

/// Whatever byte is changed on the way: nobody is taken for somebody else, and what is then heard was said.
#[test]
fn a_changed_byte_ends_the_handshake() {
    let (ours, theirs) = keys();
    let mut survived = Vec::new();
    let mut tried = 0;
    for up in [true, false] {
        for place in (0..420usize).step_by(11) {
            tried += 1;
            let (at, served) = serve(&theirs);
            let tamper = move |goes_up: bool, at: usize, bytes: &mut Vec<u8>| {
                if goes_up == up
                    && let Some(byte) = place.checked_sub(at).and_then(|i| bytes.get_mut(i))
                {
                    *byte ^= 0x20;
                }
                true
            };
            let at = between(at, Arc::new(tamper));
            let near = dial_key(
                &address(at),
                &ours,
                theirs.fingerprint(),
                Instant::now() + Duration::from_secs(3),
                LONG,
            );
            // Nothing was said after the handshake: a server that still waits is told so.
            if let Ok(near) = &near {
                assert_eq!(near.peer, theirs.fingerprint());
            }
            let ended = near.is_err();
            drop(near);
            if let Ok(far) = served.join().unwrap() {
                assert_eq!(far.peer, ours.fingerprint());
                survived.push((up, place, ended));
            }
        }
    }
    // Behind the end of what a handshake says nothing is changed.
    assert!(
        survived.len() * 2 < tried,
        "{} of {tried}: {survived:?}",
        survived.len()
    );
    assert!(
        survived.iter().all(|(_, place, _)| *place > 100),
        "{survived:?}"
    );
}

#[test]
fn a_session_that_is_replayed_says_nothing() {
    let (ours, theirs) = keys();
    let (at, served) = serve(&theirs);
    let recorded = Arc::new(std::sync::Mutex::new(Vec::new()));
    let record = recorded.clone();
    let at = between(
        at,
        Arc::new(move |up: bool, _: usize, bytes: &mut Vec<u8>| {
            if up {
                record.lock().unwrap().extend_from_slice(bytes);
            }
            true
        }),
    );
    let mut near = call(at, &ours, theirs.fingerprint()).unwrap();
    near.writer.write_all(b"follow").unwrap();
    near.writer.finish();
    let mut far = served.join().unwrap().unwrap();
    let mut heard = Vec::new();
    far.reader.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"follow");

    let bytes = recorded.lock().unwrap().clone();
    let (at, served) = serve(&theirs);
    let mut socket = TcpStream::connect(at).unwrap();
    socket.write_all(&bytes).unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    assert!(served.join().unwrap().is_err());
}

#[test]
fn what_is_cut_off_is_an_error_and_an_end_is_none() {
    let (ours, theirs) = keys();
    // In the middle of the handshake.
    for place in [0usize, 1, 5, 100, 300] {
        let (at, served) = serve(&theirs);
        let at = between(
            at,
            Arc::new(move |up: bool, at: usize, bytes: &mut Vec<u8>| {
                let goes_on = !up || at + bytes.len() <= place;
                if !goes_on {
                    bytes.truncate(place.saturating_sub(at));
                }
                goes_on
            }),
        );
        // Who dials has said all it has to say before it hears of that.
        if let Ok(mut near) = call(at, &ours, theirs.fingerprint()) {
            assert!(near.reader.read(&mut [0]).is_err(), "{place}");
        }
        assert!(served.join().unwrap().is_err(), "{place}");
    }
    // After it, as if somebody had cut the line.
    let (at, served) = serve(&theirs);
    let cut = Arc::new(AtomicBool::new(false));
    let is_cut = cut.clone();
    let at = between(
        at,
        Arc::new(move |_: bool, _: usize, _: &mut Vec<u8>| {
            !is_cut.load(std::sync::atomic::Ordering::Acquire)
        }),
    );
    let mut near = call(at, &ours, theirs.fingerprint()).unwrap();
    let mut far = served.join().unwrap().unwrap();
    cut.store(true, std::sync::atomic::Ordering::Release);
    near.writer.write_all(b"half of it").unwrap();
    let mut heard = Vec::new();
    let error = far.reader.read_to_end(&mut heard).unwrap_err();
    assert_eq!(heard, b"half of it");
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn who_closes_says_so_even_while_another_thread_waits() {
    let (ours, theirs) = keys();
    let (at, served) = serve(&theirs);
    let mut near = call(at, &ours, theirs.fingerprint()).unwrap();
    near.no_deadline().unwrap();
    let mut far = served.join().unwrap().unwrap();
    let closer = near.closer();
    let mut reader = near.reader;
    let waiting = std::thread::spawn(move || reader.read(&mut [0; 10]));
    // The other side does not read: its writer fills the socket and waits.
    let (closed, mut writer) = (far.closer(), far.writer);
    let full = std::thread::spawn(move || while writer.write_all(&[0; 65536]).is_ok() {});
    assert!(waiting.join().unwrap().is_ok());
    closer();
    let mut rest = Vec::new();
    let ended = far.reader.read_to_end(&mut rest);
    assert!(ended.is_ok() || ended.is_err_and(|e| e.raw_os_error().is_some()));
    closed();
    full.join().unwrap();
    assert!(near.writer.write_all(b"x").is_err());
}

#[test]
fn why_there_is_no_connection_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c");
    let line = |host: &str, port: u16, known: bool| {
        if known {
            let key = Fingerprint([1; 32]);
            Known::set(&config, &Address::new(host, Some(port)), key).unwrap();
        }
        let error = dial(host, Some(port), &config, Duration::from_secs(2))
            .err()
            .unwrap();
        let line = error.to_string();
        assert!(!line.contains('\n'), "{line}");
        line
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = "127.0.0.1";
    let unknown = line(host, port, false);
    assert!(
        unknown.contains("pair first") && unknown.contains("mirrord pair --tree"),
        "{unknown}"
    );
    let mute = line(host, port, true);
    assert!(
        mute.contains("says nothing for 2 s") && mute.contains("firewall"),
        "{mute}"
    );
    let talks = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.write_all(b"SSH-2.0-OpenSSH_9.9\r\n");
            let _ = socket.shutdown(Shutdown::Write);
            let _ = socket.read_to_end(&mut Vec::new());
        }
        drop(listener);
    });
    let strange = line(host, port, true);
    assert!(strange.contains("no service of this kind"), "{strange}");
    talks.join().unwrap();
    let refused = line(host, port, true);
    let what = format!(
        "nothing listens on 127.0.0.1 port {port}, or a firewall refuses it: is `mirrord serve`"
    );
    assert!(refused.starts_with(&what), "{refused}");
    let cut = DialError::Unreachable {
        address: Address::new(host, Some(port)),
        source: std::io::Error::from_raw_os_error(rustix::io::Errno::HOSTUNREACH.raw_os_error()),
    };
    let cut = crate::cli::exit::chain(&cut);
    assert_eq!(cut.matches("No route to host").count(), 1, "{cut}");
    let nowhere = line("no-such-host.invalid", 1, true);
    assert!(
        nowhere.starts_with("there is no host no-such-host.invalid"),
        "{nowhere}"
    );
}
