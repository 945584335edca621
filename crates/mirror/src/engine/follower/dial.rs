//! Connections are made by a thread that keeps its rights (it starts ssh) and reads nothing that comes over them; whoever talks
//! over one has none ([`crate::engine::confine`]).

use std::io;

use crossbeam_channel::{Sender, bounded};

use super::far::{Far, Peer, Unreached};

type Answer = Result<Peer, Unreached>;

pub struct Dialer {
    ask: Sender<Sender<Answer>>,
}

impl Dialer {
    /// It ends with the dialer.
    pub fn start(far: Far) -> io::Result<Dialer> {
        let (ask, asked) = bounded::<Sender<Answer>>(1);
        std::thread::Builder::new()
            .name("dial".into())
            .spawn(move || {
                for answer in asked {
                    let _ = answer.send(far.connect());
                }
            })?;
        Ok(Dialer { ask })
    }

    pub fn connect(&self) -> Answer {
        let (answer, answered) = bounded(1);
        let broke_off = |()| Unreached::from("the connecting thread broke off".to_owned());
        self.ask.send(answer).map_err(|_| broke_off(()))?;
        answered.recv().unwrap_or_else(|_| Err(broke_off(())))
    }
}
