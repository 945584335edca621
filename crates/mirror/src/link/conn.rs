//! One connection: messages out from any thread, messages in on one, and a pulse that finds a dead peer.

use std::io::{BufReader, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::bucket::Bucket;
use super::frame::{self, BODY_BYTES_MAX, FrameError};
use super::message::{self as say, Message, MessageError};
use super::packed::{PackedError, Unpacker};
use super::packing::Packing;
use crate::engine::status::LinkStatus;
use crate::sync::lock;

/// The whole handshake, from the start of the program at the far end.
pub const HANDSHAKE_S_MAX: u64 = 30;
/// Each side says something at least this often.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// A peer that says nothing for so long is dead, unless both agreed on another time.
pub const SILENT_MAX: Duration = Duration::from_secs(15);
const SILENT_MIN: Duration = Duration::from_secs(1);
/// How exactly the pulse keeps its times.
const TICK: Duration = Duration::from_millis(100);
const READ_BUFFER_BYTES: usize = 128 << 10;
/// The other side is told of what came so often, when it was so much.
const TOLD_EVERY: Duration = Duration::from_millis(200);
const TOLD_BYTES_MIN: u64 = 64 << 10;
/// For so long after it did, a limit is what holds us back.
const HELD_LATELY: Duration = Duration::from_secs(1);

/// Ends a connection from outside: whoever reads or writes in it comes back with an error. May be called often.
pub type Closer = Arc<dyn Fn() + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(transparent)]
    Message(MessageError),
    #[error("the other side said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    /// It may have said that it is there, but nothing that was to be said.
    #[error("the other side did not come to the point within {} s", .0.as_secs())]
    Late(Duration),
    #[error("the connection was closed")]
    Closed,
    #[error("the other side ended the connection: {0}")]
    Bye(String),
    /// What came is well formed and can't be.
    #[error("the other side breaks the protocol: {0}")]
    Nonsense(String),
}

impl From<PackedError> for LinkError {
    fn from(error: PackedError) -> LinkError {
        match error {
            PackedError::Message(error) => error.into(),
            error => LinkError::Nonsense(error.to_string()),
        }
    }
}

impl From<MessageError> for LinkError {
    fn from(error: MessageError) -> LinkError {
        LinkError::Message(error)
    }
}

/// The silence both sides can bear, from what a peer asks for.
pub fn silence(asked_ms: u64) -> Duration {
    if asked_ms == 0 {
        return SILENT_MAX;
    }
    Duration::from_millis(asked_ms).clamp(SILENT_MIN, Duration::from_secs(3600))
}

/// The sending half. Shared by many threads; a message goes out as one piece.
pub struct Outgoing {
    writer: Mutex<Box<dyn Write + Send>>,
    /// Messages that wait for the writer and go first.
    first: Mutex<usize>,
    let_in: Condvar,
    /// Whoever sends behind these. One at a time, so that no more than one is in their way.
    behind: Mutex<()>,
    closer: Closer,
    closed: AtomicBool,
    pub bucket: Bucket,
    /// Likewise, for several connections together.
    shared: Option<Arc<Bucket>>,
    pub packing: Packing,
    sent: AtomicU64,
    /// Until when a limit lets nobody send.
    rests: Mutex<Option<Instant>>,
}

impl Outgoing {
    pub fn new(writer: impl Write + Send + 'static, closer: Closer) -> Outgoing {
        Outgoing {
            writer: Mutex::new(Box::new(writer)),
            first: Mutex::new(0),
            let_in: Condvar::new(),
            behind: Mutex::new(()),
            closer,
            closed: AtomicBool::new(false),
            bucket: Bucket::default(),
            shared: None,
            packing: Packing::default(),
            sent: AtomicU64::new(0),
            rests: Mutex::default(),
        }
    }

    /// What is bulk counts in this bucket, too.
    pub fn sharing(self, shared: Option<Arc<Bucket>>) -> Outgoing {
        Outgoing { shared, ..self }
    }

    pub fn send(&self, message: impl Into<Message>) -> Result<(), LinkError> {
        self.write(&message.into().encoded()?)
    }

    /// What [`Message::encode`] made, within the bandwidth that was asked for.
    pub fn send_encoded(&self, bytes: &[u8]) -> Result<(), LinkError> {
        let waits = self.take(bytes.len());
        self.write(bytes)?;
        self.rest(&waits)
    }

    /// Likewise, when nobody has anything else to say.
    pub fn send_behind(&self, bytes: &[u8]) -> Result<(), LinkError> {
        let waits = {
            let _one = lock(&self.behind);
            let first = lock(&self.first);
            drop(
                self.let_in
                    .wait_while(first, |first| *first > 0)
                    .unwrap_or_else(PoisonError::into_inner),
            );
            let waits = self.take(bytes.len());
            self.put(bytes)?;
            waits
        };
        self.rest(&waits)
    }

    /// Counts bytes as sent: each limit there is, how often it was changed by then, and how long to wait for it.
    fn take(&self, bytes: usize) -> Vec<(&Bucket, u64, Duration)> {
        let now = Instant::now();
        self.buckets()
            .map(|bucket| (bucket, bucket.changes(), bucket.take(bytes, now)))
            .collect()
    }

    fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        [Some(&self.bucket), self.shared.as_deref()]
            .into_iter()
            .flatten()
    }

    /// Bytes a second that may be sent, if there is a limit.
    pub fn rate(&self) -> Option<u64> {
        self.buckets().filter_map(Bucket::rate).min()
    }

    /// The same, if that is what holds the sending back now, or did a moment ago.
    pub fn held_to(&self) -> Option<u64> {
        let rests = *lock(&self.rests);
        let lately = rests.is_some_and(|until| Instant::now() < until + HELD_LATELY);
        self.rate().filter(|_| lately)
    }

    /// For `status`.
    pub fn told(&self) -> LinkStatus {
        let bytes = self.sent.load(Ordering::Relaxed);
        self.packing.told(bytes, self.rate())
    }

    fn rest(&self, waits: &[(&Bucket, u64, Duration)]) -> Result<(), LinkError> {
        let began = Instant::now();
        let longest = waits.iter().map(|(.., wait)| *wait).max();
        let felt = longest.filter(|wait| !wait.is_zero());
        let rests = |until: Instant| {
            if felt.is_some() {
                *lock(&self.rests) = Some(until);
            }
        };
        rests(began + felt.unwrap_or_default());
        for (bucket, changes, wait) in waits {
            // Another limit makes up for nothing, but holds at once.
            while bucket.changes() == *changes
                && let Some(left) = wait.checked_sub(began.elapsed())
                && !left.is_zero()
            {
                if self.is_closed() {
                    return Err(LinkError::Closed);
                }
                std::thread::sleep(left.min(Duration::from_millis(100)));
            }
        }
        rests(Instant::now());
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> Result<(), LinkError> {
        let count = |more: bool| {
            let mut first = lock(&self.first);
            *first = if more { *first + 1 } else { *first - 1 };
        };
        count(true);
        let done = self.put(bytes);
        count(false);
        self.let_in.notify_all();
        done
    }

    fn put(&self, bytes: &[u8]) -> Result<(), LinkError> {
        let mut writer = lock(&self.writer);
        if self.is_closed() {
            return Err(LinkError::Closed);
        }
        let done = writer.write_all(bytes).and_then(|()| writer.flush());
        drop(writer);
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        done.map_err(|e| {
            self.close();
            LinkError::Message(MessageError::Frame(FrameError::Io(e)))
        })
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        (self.closer)();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// Since when the reader waits for a byte, for the pulse to see.
pub struct Waiting {
    began: Instant,
    /// Milliseconds since `began`, plus one; 0: it does not wait.
    since_ms: AtomicU64,
    /// Silence that both sides bear.
    limit_ms: AtomicU64,
    /// The pulse gave up on the peer.
    silent: AtomicBool,
    /// When the handshake must be over, counted likewise; 0: it is. What comes meanwhile does not matter.
    due_ms: AtomicU64,
    /// For how long it was waited for.
    due_after_ms: AtomicU64,
    late: AtomicBool,
}

impl Waiting {
    fn new() -> Waiting {
        Waiting {
            began: Instant::now(),
            since_ms: AtomicU64::new(0),
            limit_ms: AtomicU64::new(HANDSHAKE_S_MAX * 1000),
            silent: AtomicBool::new(false),
            due_ms: AtomicU64::new(HANDSHAKE_S_MAX * 1000),
            due_after_ms: AtomicU64::new(HANDSHAKE_S_MAX * 1000),
            late: AtomicBool::new(false),
        }
    }
    fn is_late(&self) -> bool {
        let due = self.due_ms.load(Ordering::Acquire);
        due > 0 && self.now_ms() >= due
    }
    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64 + 1
    }
    fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_ms.load(Ordering::Acquire))
    }
    fn waited(&self) -> Duration {
        match self.since_ms.load(Ordering::Acquire) {
            0 => Duration::ZERO,
            since => Duration::from_millis(self.now_ms().saturating_sub(since)),
        }
    }
}

struct Stamped {
    from: Box<dyn Read + Send>,
    waiting: Arc<Waiting>,
    arrived: Arc<Arrived>,
    /// A frame has begun: what is waited for now is on its way.
    midway: bool,
}

/// What came over one connection.
#[derive(Default)]
pub struct Arrived {
    bytes: AtomicU64,
    /// Waited for in the middle of frames.
    waited_us: AtomicU64,
    /// That packing saved.
    saved: AtomicU64,
    /// Something came packed.
    packed: AtomicBool,
}

impl Arrived {
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
    pub fn saved(&self) -> u64 {
        self.saved.load(Ordering::Relaxed)
    }
    /// Whether what carried much last came packed.
    pub fn comes_packed(&self) -> bool {
        self.packed.load(Ordering::Relaxed)
    }
}

impl Read for Stamped {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.waiting
            .since_ms
            .store(self.waiting.now_ms(), Ordering::Release);
        let began = self.midway.then(Instant::now);
        let done = self.from.read(buffer);
        self.waiting.since_ms.store(0, Ordering::Release);
        if let Some(began) = began {
            let us = began.elapsed().as_micros() as u64;
            self.arrived.waited_us.fetch_add(us, Ordering::Relaxed);
        }
        if let Ok(n) = done {
            self.arrived.bytes.fetch_add(n as u64, Ordering::Relaxed);
        }
        done
    }
}

/// The receiving half.
pub struct Incoming {
    reader: BufReader<Stamped>,
    body: Vec<u8>,
    waiting: Arc<Waiting>,
    arrived: Arc<Arrived>,
    /// Both sides have [`say::FEATURE_PACKED`].
    unpacker: Option<Unpacker>,
    told: Told,
}

/// Of what came the other side was told so much, then.
struct Told {
    bytes: u64,
    at: Instant,
}

impl Incoming {
    pub fn new(reader: impl Read + Send + 'static) -> Incoming {
        let waiting = Arc::new(Waiting::new());
        let arrived = Arc::new(Arrived::default());
        let stamped = Stamped {
            from: Box::new(reader),
            waiting: waiting.clone(),
            arrived: arrived.clone(),
            midway: false,
        };
        Incoming {
            reader: BufReader::with_capacity(READ_BUFFER_BYTES, stamped),
            body: Vec::new(),
            waiting,
            arrived,
            unpacker: None,
            told: Told {
                bytes: 0,
                at: Instant::now(),
            },
        }
    }

    /// From here on what comes may be packed.
    pub fn unpacks(&mut self) {
        self.unpacker.get_or_insert_default();
    }

    pub fn arrived(&self) -> Arc<Arrived> {
        self.arrived.clone()
    }

    /// What the other side should hear now of what came, if anything.
    pub fn came(&mut self) -> Option<say::Came> {
        let bytes = self.arrived.bytes();
        let much = bytes.saturating_sub(self.told.bytes) >= TOLD_BYTES_MIN;
        if self.unpacker.is_none() || !much || self.told.at.elapsed() < TOLD_EVERY {
            return None;
        }
        let at = Instant::now();
        self.told = Told { bytes, at };
        let waited_us = self.arrived.waited_us.load(Ordering::Relaxed);
        Some(say::Came { bytes, waited_us })
    }

    /// The next message; blocks. A `Bye` is an error.
    pub fn next_message(&mut self) -> Result<Message, LinkError> {
        loop {
            if let Some(unpacker) = &mut self.unpacker
                && let Some(message) = unpacker.next(&mut self.body)?
            {
                return Ok(message);
            }
            match (self.read_message()?, &mut self.unpacker) {
                (Message::Packed(packed), Some(unpacker)) => {
                    let saved = unpacker.open(&packed)?;
                    self.arrived.saved.fetch_add(saved, Ordering::Relaxed);
                    self.arrived.packed.store(true, Ordering::Relaxed);
                }
                (message, _) => {
                    if say::may_be_packed(message.kind()) {
                        self.arrived.packed.store(false, Ordering::Relaxed);
                    }
                    return Ok(message);
                }
            }
        }
    }

    /// One that came by itself.
    fn read_message(&mut self) -> Result<Message, LinkError> {
        match self.read_any() {
            Ok(Message::Bye(bye)) => Err(LinkError::Bye(escaped(&bye.reason))),
            Ok(message) => Ok(message),
            Err(_) if self.waiting.silent.load(Ordering::Acquire) => {
                Err(LinkError::Silent(self.waiting.limit()))
            }
            Err(_) if self.waiting.late.load(Ordering::Acquire) => {
                let after = self.waiting.due_after_ms.load(Ordering::Acquire);
                Err(LinkError::Late(Duration::from_millis(after)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Likewise; kinds that are unknown and may be passed over are.
    fn read_any(&mut self) -> Result<Message, MessageError> {
        loop {
            let header = frame::read_header(&mut self.reader, BODY_BYTES_MAX)?;
            self.reader.get_mut().midway = true;
            let head = frame::read_body(&mut self.reader, &header, &mut self.body);
            self.reader.get_mut().midway = false;
            if let Some(message) = Message::decode(head?, &self.body)? {
                return Ok(message);
            }
        }
    }
}

/// Words of a peer, fit to be shown.
pub fn escaped(text: &str) -> String {
    mirror_core::escape(super::report::line(text).as_bytes())
}

/// Says `beat()` every so often, and closes the connection when the peer has been silent too long.
pub struct Pulse {
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
    outgoing: Arc<Outgoing>,
    waiting: Arc<Waiting>,
}

impl Pulse {
    /// A peer may be silent for [`HANDSHAKE_S_MAX`] until both agree on something else, and by then the handshake must be
    /// over ([`Pulse::handshake`]). `beat`: `None` leaves one out.
    pub fn start(
        outgoing: &Arc<Outgoing>,
        incoming: &Incoming,
        beat: impl Fn() -> Option<Message> + Send + 'static,
    ) -> std::io::Result<Pulse> {
        let (stop, stopped) = bounded::<()>(0);
        let mut pulse = Pulse {
            stop: Some(stop),
            threads: Vec::new(),
            outgoing: outgoing.clone(),
            waiting: incoming.waiting.clone(),
        };
        let (out, waiting, ended) = (outgoing.clone(), pulse.waiting.clone(), stopped.clone());
        let beats = move || {
            let mut last = Instant::now();
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if last.elapsed() < HEARTBEAT.min(waiting.limit() / 3) {
                    continue;
                }
                last = Instant::now();
                if let Some(message) = beat()
                    && out.send(message).is_err()
                {
                    return;
                }
            }
        };
        let (out, waiting) = (outgoing.clone(), pulse.waiting.clone());
        let watches = move || {
            while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if waiting.waited() >= waiting.limit() {
                    waiting.silent.store(true, Ordering::Release);
                    out.close();
                    return;
                }
                if waiting.is_late() {
                    waiting.late.store(true, Ordering::Release);
                    out.close();
                    return;
                }
            }
        };
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        pulse.threads.push(thread("beat").spawn(beats)?);
        pulse.threads.push(thread("watchdog").spawn(watches)?);
        Ok(pulse)
    }

    /// From now on this much silence is borne.
    pub fn agree(&self, silent_max: Duration) {
        let ms = silent_max.as_millis() as u64;
        self.waiting.limit_ms.store(ms, Ordering::Release);
    }

    /// The handshake may go on for so long from now; `None`: it is over.
    pub fn handshake(&self, at_most: Option<Duration>) {
        let ms = at_most.map_or(0, |at_most| at_most.as_millis() as u64);
        let due = at_most.map_or(0, |_| self.waiting.now_ms().saturating_add(ms));
        self.waiting.due_after_ms.store(ms, Ordering::Release);
        self.waiting.due_ms.store(due, Ordering::Release);
    }
}

impl Drop for Pulse {
    /// Ends the connection too: a beat may be stuck in it.
    fn drop(&mut self) {
        self.stop.take();
        self.outgoing.close();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
