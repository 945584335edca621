//! Frames packed into one: together, for what shrinks little by itself shrinks much among its like.
//!
//! Who unpacks makes room for what was said and for no more, whatever came.

use super::frame::{self, BODY_BYTES_MAX, FrameError};
use super::message::{self as say, Message, MessageError};

/// Of the frames in one [`say::Packed`], as they are.
pub const RAW_BYTES_MAX: usize = BODY_BYTES_MAX;
/// Less than this is not worth a try.
const RAW_BYTES_MIN: usize = 512;
/// Level 3 makes 7 % less of scripts, and takes nearly twice the time.
const LEVEL: i32 = 1;
/// Packing must save more than a tenth.
const SAVES_PERCENT_MIN: usize = 10;
/// Whether more than this shrinks is tried with samples first.
const SAMPLED_FROM: usize = 64 << 10;
const SAMPLES: usize = 8;
const SAMPLE_BYTES: usize = 4 << 10;
/// Of pieces that belong together so many are passed over at most after one that did not shrink.
const PASSED_OVER_MAX: u32 = 16;

/// Packs; keeps its working memory.
#[derive(Default)]
pub struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    raw: Vec<u8>,
}

impl Packer {
    /// One frame in the place of these, if that is worth it.
    pub fn pack(&mut self, frames: &[&[u8]]) -> Option<Vec<u8>> {
        let bytes: usize = frames.iter().map(|frame| frame.len()).sum();
        if !(RAW_BYTES_MIN..=RAW_BYTES_MAX).contains(&bytes) {
            return None;
        }
        // Without memory for it nothing is packed.
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => none.insert(zstd::bulk::Compressor::new(LEVEL).ok()?),
        };
        self.raw.clear();
        for frame in frames {
            self.raw.extend_from_slice(frame);
        }
        if bytes > SAMPLED_FROM && !shrinks(zstd, &self.raw) {
            return None;
        }
        let packed = zstd.compress(&self.raw).ok()?;
        if !pays(bytes, packed.len()) {
            return None;
        }
        let message = Message::from(say::Packed {
            raw: bytes as u64,
            bytes: packed,
        });
        let mut frame = Vec::new();
        message.encode(&mut frame).ok()?;
        Some(frame)
    }
}

fn pays(raw: usize, packed: usize) -> bool {
    packed < raw - raw * SAVES_PERCENT_MIN / 100
}

/// Whether any of some samples does.
fn shrinks(zstd: &mut zstd::bulk::Compressor<'_>, raw: &[u8]) -> bool {
    let step = raw.len() / SAMPLES;
    let starts = (0..SAMPLES).map(|n| n * step + step / 2);
    let samples = starts.filter_map(|start| raw.get(start..start + SAMPLE_BYTES));
    samples.into_iter().any(|sample| {
        zstd.compress(sample)
            .is_ok_and(|packed| pays(sample.len(), packed.len()))
    })
}

/// Pieces of one content: what does not shrink is not tried again and again.
#[derive(Default)]
pub struct Tries {
    shrank: bool,
    in_vain: u32,
    pass_over: u32,
}

impl Tries {
    /// Whether the next one is worth a try.
    pub fn worth(&mut self) -> bool {
        let tries = self.pass_over == 0;
        self.pass_over = self.pass_over.saturating_sub(1);
        tries
    }

    /// The last one that was tried did.
    pub fn shrank(&self) -> bool {
        self.shrank
    }

    pub fn tried(&mut self, shrank: bool) {
        self.shrank = shrank;
        if shrank {
            self.in_vain = 0;
        } else {
            self.pass_over = (1 << self.in_vain.min(5)).min(PASSED_OVER_MAX);
            self.in_vain = self.in_vain.saturating_add(1);
        }
    }
}

/// Why something packed is refused.
#[derive(Debug, thiserror::Error)]
pub enum PackedError {
    #[error("packed frames of {0} bytes came, and {RAW_BYTES_MAX} is the limit")]
    TooLong(u64),
    #[error("packed frames came that do not unpack to what was said")]
    Damaged,
    #[error("packed frames came that are no whole frames")]
    Cut,
    #[error("a message of kind {0} came packed, which none may be")]
    Kind(u8),
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// Unpacks, and says what was in it message by message.
#[derive(Default)]
pub struct Unpacker {
    zstd: zstd::bulk::Decompressor<'static>,
    raw: Vec<u8>,
    /// Up to here it was said.
    at: usize,
}

impl Unpacker {
    /// Before this all that was in the last one was said. Bytes that packing saved.
    pub fn open(&mut self, packed: &say::Packed) -> Result<u64, PackedError> {
        let raw = usize::try_from(packed.raw).unwrap_or(usize::MAX);
        if raw > RAW_BYTES_MAX {
            return Err(PackedError::TooLong(packed.raw));
        }
        // The room is what bounds it: nothing is written beyond, and a window is not kept beside it.
        self.raw = Vec::with_capacity(raw);
        self.at = 0;
        let done = self.zstd.decompress_to_buffer(&packed.bytes, &mut self.raw);
        if !matches!(done, Ok(n) if n == raw) || self.raw.len() != raw {
            self.raw = Vec::new();
            return Err(PackedError::Damaged);
        }
        Ok(raw.saturating_sub(packed.bytes.len()) as u64)
    }

    #[cfg(test)]
    pub fn room(&self) -> usize {
        self.raw.capacity()
    }

    /// `None`: that was all.
    pub fn next(&mut self, body: &mut Vec<u8>) -> Result<Option<Message>, PackedError> {
        loop {
            let mut rest = self.raw.get(self.at..).unwrap_or_default();
            if rest.is_empty() {
                if self.at > 0 {
                    // Rarely wanted, and large.
                    self.raw = Vec::new();
                    self.at = 0;
                }
                return Ok(None);
            }
            let before = rest.len();
            let head = match frame::read(&mut rest, body) {
                Ok(head) => head,
                Err(FrameError::Ended | FrameError::NoFrame(_)) => return Err(PackedError::Cut),
                Err(error) => return Err(MessageError::Frame(error).into()),
            };
            self.at += before - rest.len();
            if !say::may_be_packed(head.kind) {
                return Err(PackedError::Kind(head.kind));
            }
            if let Some(message) = Message::decode(head, body)? {
                return Ok(Some(message));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(bytes: Vec<u8>) -> Vec<u8> {
        let mut frame = Vec::new();
        let message = Message::from(say::Records { whole: true, bytes });
        message.encode(&mut frame).unwrap();
        frame
    }

    fn text(n: usize) -> Vec<u8> {
        let line = |n: usize| format!("    $this->value[{n}] = get_option({});\n", n % 7);
        (0..n).flat_map(|n| line(n).into_bytes()).collect()
    }

    fn noise(n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn opened(frame: &[u8]) -> Result<Vec<Message>, PackedError> {
        let mut body = Vec::new();
        let mut from = frame;
        let Message::Packed(packed) = Message::read(&mut from, &mut body).unwrap() else {
            panic!("it is packed");
        };
        let mut unpacker = Unpacker::default();
        unpacker.open(&packed)?;
        let mut all = Vec::new();
        while let Some(message) = unpacker.next(&mut body)? {
            all.push(message);
        }
        assert!(unpacker.raw.capacity() == 0);
        Ok(all)
    }

    #[test]
    fn what_went_in_comes_out_in_order() {
        let frames: Vec<Vec<u8>> = (1..40).map(|n| records(text(n * 20))).collect();
        let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let packed = Packer::default().pack(&slices).unwrap();
        assert!(packed.len() < frames.concat().len() / 3);
        let came = opened(&packed).unwrap();
        let mut again = Vec::new();
        for message in &came {
            message.encode(&mut again).unwrap();
        }
        assert_eq!((came.len(), again), (39, frames.concat()));
    }

    #[test]
    fn what_does_not_shrink_stays_as_it_is() {
        let mut packer = Packer::default();
        for bytes in [noise(300 << 10), noise(20 << 10), b"small".to_vec()] {
            assert_eq!(packer.pack(&[&records(bytes)]), None);
        }
        // The largest frame there is has no place in another one.
        assert_eq!(packer.pack(&[&records(vec![7; BODY_BYTES_MAX - 10])]), None);
        // Text among pictures is found.
        let [noise, text] = [noise(700 << 10), text(6000)].map(records);
        let packed = packer.pack(&[&noise, &text]).unwrap();
        assert!(packed.len() + 100_000 < noise.len() + text.len());
        let mut tries = Tries::default();
        let tried = (0..1000).filter(|_| {
            let tries_now = tries.worth();
            if tries_now {
                tries.tried(false);
            }
            tries_now
        });
        assert!((60..70).contains(&tried.count()));
        tries.tried(true);
        tries.pass_over = 0;
        assert!(tries.worth() && tries.worth());
    }

    #[test]
    fn no_bomb_gets_more_room_than_it_may() {
        let zeros = vec![0u8; 64 << 20];
        let bomb = zstd::bulk::compress(&zeros, 3).unwrap();
        let mut unpacker = Unpacker::default();
        for raw in [0, 1000, RAW_BYTES_MAX as u64] {
            let bytes = bomb.clone();
            let refused = unpacker.open(&say::Packed { raw, bytes });
            assert!(matches!(refused, Err(PackedError::Damaged)), "{raw}");
            assert_eq!(unpacker.raw.capacity(), 0);
        }
        for raw in [RAW_BYTES_MAX as u64 + 1, u64::MAX] {
            let bytes = bomb.clone();
            let refused = unpacker.open(&say::Packed { raw, bytes });
            assert!(matches!(refused, Err(PackedError::TooLong(n)) if n == raw));
        }
        // A window of gigabytes is asked for and not given; less than was said is refused, too.
        let wide = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa0, 0x01, 0x00, 0x00];
        for bytes in [wide.to_vec(), Vec::new(), b"no zstd".to_vec()] {
            let refused = unpacker.open(&say::Packed { raw: 100, bytes });
            assert!(matches!(refused, Err(PackedError::Damaged)));
        }
    }

    #[test]
    fn only_whole_frames_that_carry_much_may_be_packed() {
        let packed = |raw: &[u8]| {
            let message = Message::from(say::Packed {
                raw: raw.len() as u64,
                bytes: zstd::bulk::compress(raw, 1).unwrap(),
            });
            let mut frame = Vec::new();
            message.encode(&mut frame).unwrap();
            frame
        };
        let whole = records(text(50));
        assert_eq!(opened(&packed(&whole)).unwrap().len(), 1);
        let mut flipped = whole.clone();
        flipped[100] ^= 1;
        for (wrong, why) in [
            (packed(&whole), "kind 30"),
            (whole[..whole.len() - 1].to_vec(), "no whole frames"),
            ([whole.as_slice(), b"FS"].concat(), "no whole frames"),
            (b"something else".to_vec(), "no whole frames"),
            (flipped, "damaged"),
        ] {
            let refused = opened(&packed(&wrong)).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
        let mut bye = Vec::new();
        let reason = "bye".to_owned();
        Message::from(say::Bye { reason }).encode(&mut bye).unwrap();
        assert!(matches!(opened(&packed(&bye)), Err(PackedError::Kind(20))));
    }
}
