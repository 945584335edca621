//! Connections that are dialed the other way: a worker that nobody can reach offers one, and a follower uses it as if it
//! had dialed itself. Until then both sides only say that they are there.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use mirror_core::escape;

use super::ask::{Ask, Told};
use super::child::{Child, thread};
use super::connection::{LINGER, copy_down, copy_up, follow, last_words, refused};
use super::gate::Seat;
use super::lock;
use crate::link::Message;
use crate::link::conn::{HEARTBEAT, SILENT_MAX};
use crate::link::message as say;
use crate::link::serve::{hostname, now_ns};
use crate::net::keys::Fingerprint;
use crate::net::stream::{Session, TlsReader, TlsWriter};
use crate::net::tls;

/// So long a side may be silent once its connection was taken: the tree's process is being reached.
const REACHED_MAX: Duration = Duration::from_secs(40);

fn speak(writer: &mut TlsWriter, message: impl Into<Message>) -> io::Result<()> {
    let mut bytes = Vec::new();
    let encoded = message.into().encode(&mut bytes);
    encoded.map_err(io::Error::other)?;
    writer.write_all(&bytes)
}

fn heartbeat() -> say::Heartbeat {
    say::Heartbeat {
        time_ns: now_ns(),
        end: None,
    }
}

/// The next message, from a side that is dead if none comes.
fn hear(
    reader: &mut TlsReader,
    body: &mut Vec<u8>,
    is_taken: impl Fn() -> bool,
) -> Result<Message, ()> {
    let begun = Instant::now();
    let mut first = [0];
    // It may be taken while we wait.
    let n = loop {
        let at_most = if is_taken() { REACHED_MAX } else { SILENT_MAX };
        let left = at_most.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(());
        }
        let step = Instant::now() + left.min(HEARTBEAT);
        reader.wait_until(Some(step)).map_err(|_| ())?;
        match reader.read(&mut first) {
            Ok(n) => break n,
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {}
            Err(_) => return Err(()),
        }
    };
    let until = Instant::now() + SILENT_MAX;
    reader.wait_until(Some(until)).map_err(|_| ())?;
    let begin = first.get(..n).unwrap_or_default();
    Message::read(&mut begin.chain(reader), body).map_err(|_| ())
}

/// Keeps what somebody offers until a follower of this host takes it.
pub fn keep(
    child: &Arc<Child>,
    mut session: Session,
    from: SocketAddr,
    seat: Seat,
    until: Instant,
) {
    let id = child.new_id();
    let question = Ask::Offer {
        id,
        key: session.peer.0,
        from: from.to_string(),
    };
    let answers = child.ask(id, &question);
    match answers.recv_deadline(until) {
        Ok((Told::Kept { .. }, _)) => {}
        other => {
            child.answered(id);
            child.say(&Ask::Closed { id });
            return last_words(session, refused(other.ok()));
        }
    }
    drop(seat);
    let (closer, began) = (session.closer(), session.no_deadline());
    let (mut reader, mut writer) = (session.reader, session.writer);
    let taken: Arc<Mutex<Option<UnixStream>>> = Arc::default();
    let (hang_up, hung_up) = bounded::<()>(0);
    let (done, is_done) = bounded::<()>(0);
    let (slot, close) = (taken.clone(), closer.clone());
    let down = move || {
        let follower = loop {
            match answers.recv_timeout(HEARTBEAT) {
                Ok((Told::Take { .. }, Some(end))) => break Some(UnixStream::from(end)),
                Err(RecvTimeoutError::Timeout) if speak(&mut writer, heartbeat()).is_ok() => {}
                _ => break None,
            }
        };
        if let Some(follower) = follower {
            // Known to the other thread before anything is said that would be answered.
            *lock(&slot) = follower.try_clone().ok();
            copy_down(&follower, &mut writer);
            let _ = follower.shutdown(Shutdown::Both);
            let _ = hung_up.recv_timeout(LINGER);
        }
        close();
        drop(done);
    };
    let begun = began.is_ok() && thread("kept", down).is_ok();
    let mut body = Vec::new();
    loop {
        if !begun {
            break;
        }
        let Ok(message) = hear(&mut reader, &mut body, || lock(&taken).is_some()) else {
            break;
        };
        let follower = lock(&taken).as_ref().and_then(|end| end.try_clone().ok());
        match (follower, message) {
            (Some(follower), message) => {
                // The first of all that the follower hears; it knows heartbeats.
                let mut bytes = Vec::new();
                if message.encode(&mut bytes).is_ok()
                    && (&follower).write_all(&bytes).is_ok()
                    && reader.wait_until(None).is_ok()
                {
                    copy_up(&mut reader, &follower);
                }
                break;
            }
            (None, Message::Heartbeat(_)) => {}
            (None, _) => break,
        }
    }
    drop(hang_up);
    child.answered(id);
    if let Some(follower) = lock(&taken).take() {
        let _ = follower.shutdown(Shutdown::Both);
    }
    closer();
    if begun {
        let _ = is_done.recv();
    }
    child.say(&Ask::Closed { id });
}

/// Offers this connection to whoever has the key, and serves the follower that takes it.
pub fn offer(child: &Arc<Child>, socket: TcpStream, id: u64, wanted: [u8; 32]) {
    let wanted = Fingerprint(wanted);
    match wait_for_hello(child, socket, wanted) {
        Ok((session, hello, from)) => {
            child.say(&Ask::Taken { id });
            let until = Instant::now() + Duration::from_millis(child.limits.handshake_ms);
            follow(child, session, hello, from, None, until);
        }
        Err(why) => child.say(&Ask::Ended { id, why }),
    }
}

fn wait_for_hello(
    child: &Arc<Child>,
    socket: TcpStream,
    wanted: Fingerprint,
) -> Result<(Session, say::Hello, SocketAddr), String> {
    let text = |e: io::Error| e.to_string();
    let from = socket.peer_addr().map_err(text)?;
    let until = Instant::now() + Duration::from_millis(child.limits.handshake_ms);
    let (connection, seen) = tls::connect(&child.key, wanted).map_err(|e| e.to_string())?;
    let heard = AtomicBool::new(false);
    let begun = Session::begin(socket, connection, until, &heard);
    let mut session = begun.map_err(|e| match seen.get() {
        Some(shown) if shown != wanted => {
            format!("it shows another key than it must: {shown}, not {wanted}; pair again if that is right")
        }
        _ => format!("it is no service of this kind: {e}"),
    })?;
    let offer = say::Offer {
        program: concat!("mirrord ", env!("CARGO_PKG_VERSION")).into(),
        host: hostname(),
    };
    speak(&mut session.writer, offer).map_err(text)?;
    session.no_deadline().map_err(text)?;
    let mut beats = session.second_writer();
    let (stop, stopped) = bounded::<()>(0);
    let beating = move || {
        while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout)
            && speak(&mut beats, heartbeat()).is_ok()
        {}
    };
    thread("offering", beating).map_err(text)?;
    let mut body = Vec::new();
    let max = child.limits.first_frame_bytes;
    loop {
        let silent = Instant::now() + SILENT_MAX;
        session.reader.wait_until(Some(silent)).map_err(text)?;
        let message = Message::read_up_to(&mut session.reader, &mut body, max);
        match message.map_err(|e| e.to_string())? {
            Message::Heartbeat(_) => {}
            Message::Hello(hello) => {
                drop(stop);
                session.reader.wait_until(None).map_err(text)?;
                return Ok((session, hello, from));
            }
            Message::Refused(no) => return Err(escape(no.reason.as_bytes())),
            other => return Err(format!("it said a message of kind {}", other.kind())),
        }
    }
}
