//! Frames told apart by their header, so that some kinds can be held back. The layout is that of `docs/FORMAT.md`, *Frame*.

const MAGIC: &[u8] = b"FSMw";
const HEADER_BYTES: usize = 16;

#[derive(Default)]
pub struct Splitter {
    /// Not a whole frame yet.
    rest: Vec<u8>,
    held: Vec<u8>,
    /// No frames: everything goes on as it comes.
    plain: bool,
}

impl Splitter {
    /// What may go on now that this came.
    pub fn pass(&mut self, came: &[u8], hold: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        if hold.is_empty() {
            out.append(&mut self.held);
        }
        self.rest.extend_from_slice(came);
        while !self.plain && self.rest.len() >= HEADER_BYTES {
            if !self.rest.starts_with(MAGIC) {
                self.plain = true;
                break;
            }
            let kind = self.rest[5];
            let length = [self.rest[8], self.rest[9], self.rest[10], self.rest[11]];
            let length = HEADER_BYTES + u32::from_le_bytes(length) as usize;
            if self.rest.len() < length {
                break;
            }
            let frame = self.rest.drain(..length);
            if hold.contains(&kind) {
                self.held.extend(frame);
            } else {
                out.extend(frame);
            }
        }
        if self.plain {
            out.append(&mut self.rest);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_kinds_come_when_they_may() {
        let frame = |kind: u8, body: &[u8]| {
            let mut frame = MAGIC.to_vec();
            frame.extend([1, kind, 0, 0]);
            frame.extend((body.len() as u32).to_le_bytes());
            frame.extend([0; 4]);
            frame.extend(body);
            frame
        };
        let all = [frame(6, b"one"), frame(9, b"piece"), frame(6, b"two")].concat();
        let mut splitter = Splitter::default();
        let mut out = Vec::new();
        for byte in &all {
            out.extend(splitter.pass(&[*byte], &[9, 10]));
        }
        assert_eq!(out, [frame(6, b"one"), frame(6, b"two")].concat());
        assert_eq!(splitter.pass(&[], &[]), frame(9, b"piece"));
        assert_eq!(
            splitter.pass(b"no frames at all", &[9]),
            b"no frames at all"
        );
    }
}
