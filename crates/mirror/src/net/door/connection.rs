//! One connection in the door's process: TLS, the first message, the supervisor's word, then bytes both ways.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::ask::{Ask, Told};
use super::child::{Answer, Child, thread};
use super::gate::Seat;
use super::offered;
use crate::link::Message;
use crate::link::message::{self as say, Cause};
use crate::net::stream::{self, Session, TlsReader, TlsWriter};
use crate::net::tls;

/// How long a tree's process may take to be reached. A follower waits 30 s for its welcome.
const OPEN_MAX: Duration = Duration::from_secs(25);
/// How long the other side may take to hear our last words, and to hang up.
pub const LINGER: Duration = Duration::from_secs(2);
const COPY_BYTES: usize = 64 << 10;
const NAME_CHARS_MAX: usize = 200;

/// All of it until the first message by `until`.
pub fn serve(child: &Arc<Child>, socket: TcpStream, from: SocketAddr, seat: Seat, until: Instant) {
    let stranger = |what: String| child.stranger(|| format!("{from} is no follower: {what}"));
    let begun = stream::set_up(&socket)
        .map_err(|e| e.to_string())
        .and_then(|()| tls::accept(&child.tls).map_err(|e| e.to_string()))
        .and_then(|connection| {
            Session::begin(socket, connection, until, &seat.heard).map_err(|e| e.to_string())
        });
    let mut session = match begun {
        Ok(session) => session,
        Err(what) => return stranger(what),
    };
    let mut body = Vec::new();
    let max = child.limits.first_frame_bytes;
    let first = Message::read_up_to(&mut session.reader, &mut body, max);
    drop(body);
    match first {
        Ok(Message::Hello(hello)) => follow(child, session, hello, from, Some(seat), until),
        Ok(Message::Offer(_)) => offered::keep(child, session, from, seat, until),
        Ok(Message::List(_)) => {
            let id = child.new_id();
            let key = session.peer.0;
            let answer = answer(child, id, &Ask::List { id, key }, until);
            let message = match answer {
                Some((Told::Names { trees, .. }, _)) => say::Names { trees }.into(),
                other => refused(other),
            };
            last_words(session, message);
        }
        Ok(Message::Pair(pair)) => {
            let Ok(exported) = session.exported() else {
                return stranger("nothing can be derived from its connection".into());
            };
            let id = child.new_id();
            let question = Ask::Pair {
                id,
                key: session.peer.0,
                from: from.to_string(),
                token: pair.token,
                exported,
                proof: pair.proof,
                name: pair.name.chars().take(NAME_CHARS_MAX).collect(),
            };
            let message = match answer(child, id, &question, until) {
                Some((
                    Told::Paired {
                        proof,
                        trees,
                        name,
                        host,
                        ..
                    },
                    _,
                )) => say::Paired {
                    proof,
                    trees,
                    name,
                    program: concat!("fs_mirror ", env!("CARGO_PKG_VERSION")).into(),
                    host,
                }
                .into(),
                other => refused(other),
            };
            last_words(session, message);
        }
        Ok(other) => {
            let reason = format!("a message of kind {} can't be the first one", other.kind());
            last_words(session, no(Cause::Usage, reason));
        }
        Err(error) => stranger(error.to_string()),
    }
}

fn no(cause: Cause, reason: String) -> Message {
    let cause = cause.code();
    say::Refused { cause, reason }.into()
}

pub fn refused(answer: Option<Answer>) -> Message {
    match answer {
        Some((Told::Refused { cause, reason, .. }, _)) => say::Refused { cause, reason }.into(),
        _ => no(
            Cause::Failed,
            "this host does not answer its own door in time".into(),
        ),
    }
}

/// The one answer to a question.
fn answer(child: &Child, id: u64, question: &Ask, until: Instant) -> Option<Answer> {
    let answers = child.ask(id, question);
    let answer = answers.recv_deadline(until).ok();
    child.answered(id);
    answer
}

/// Says it, and waits a moment for the other side to hang up, so that nothing of it is lost.
pub fn last_words(mut session: Session, message: Message) {
    let mut bytes = Vec::new();
    if message.encode(&mut bytes).is_ok() && session.writer.write_all(&bytes).is_ok() {
        session.writer.finish();
        session.until(Instant::now() + LINGER);
        let _ = io::copy(&mut session.reader, &mut io::sink());
    }
    session.closer()();
}

/// Asks for the tree, and passes on what both say.
pub fn follow(
    child: &Arc<Child>,
    session: Session,
    mut hello: say::Hello,
    from: SocketAddr,
    mut seat: Option<Seat>,
    until: Instant,
) {
    let Ok(tree) = String::from_utf8(std::mem::take(&mut hello.tree)) else {
        let what = "the name of a tree is UTF-8 text";
        return last_words(session, no(Cause::Usage, what.into()));
    };
    let id = child.new_id();
    let question = Ask::Follow {
        id,
        key: session.peer.0,
        tree: tree.clone(),
        from: from.to_string(),
    };
    let answers = child.ask(id, &question);
    let mut until = until;
    let answer = loop {
        match answers.recv_deadline(until) {
            Ok((Told::Wait { .. }, _)) => {
                // It is somebody we know: no stranger takes this place from it.
                seat.take();
                until = Instant::now() + OPEN_MAX;
            }
            Ok(answer) => break Some(answer),
            Err(_) => break None,
        }
    };
    child.answered(id);
    // What came in the last moment.
    let answer = answer.or_else(|| answers.try_recv().ok());
    let (name, tree_end) = match answer {
        Some((Told::Opened { name, .. }, Some(end))) => (name, UnixStream::from(end)),
        other => {
            child.say(&Ask::Closed { id });
            return last_words(session, refused(other));
        }
    };
    let theirs: String = hello.name.chars().take(NAME_CHARS_MAX).collect();
    hello.tree = tree.into_bytes();
    hello.name = format!("{name}: {theirs}");
    pass(session, &tree_end, hello.into());
    child.say(&Ask::Closed { id });
}

/// Until either end closes, or breaks.
fn pass(mut session: Session, tree: &UnixStream, first: Message) {
    let mut bytes = Vec::new();
    let closer = session.closer();
    let began = first.encode(&mut bytes).is_ok()
        && (&*tree).write_all(&bytes).is_ok()
        && session.no_deadline().is_ok();
    let (Ok(down), true) = (tree.try_clone(), began) else {
        return last_words(
            session,
            no(Cause::Failed, "who serves the tree went away".into()),
        );
    };
    let (mut reader, mut writer) = (session.reader, session.writer);
    let (tell, hung_up) = bounded::<()>(0);
    let (done, is_done) = bounded::<()>(0);
    let close = closer.clone();
    let copying = thread("down", move || {
        copy_down(&down, &mut writer);
        let _ = down.shutdown(Shutdown::Both);
        // All is said: the other side hangs up, or is hung up on.
        let _ = hung_up.recv_timeout(LINGER);
        close();
        drop(done);
    });
    if copying.is_ok() {
        copy_up(&mut reader, tree);
        drop(tell);
    }
    let _ = tree.shutdown(Shutdown::Both);
    closer();
    if copying.is_ok() {
        let _ = is_done.recv();
    }
}

pub fn copy_down(mut from: &UnixStream, to: &mut TlsWriter) {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.finish(),
            Ok(n) => {
                if to.write_all(buffer.get(..n).unwrap_or_default()).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

pub fn copy_up(from: &mut TlsReader, mut to: &UnixStream) {
    let mut buffer = vec![0; COPY_BYTES];
    let mut open = true;
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        // Once the tree's end is closed the peer is only waited for.
        open = open && to.write_all(buffer.get(..n).unwrap_or_default()).is_ok();
    }
}
