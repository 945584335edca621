//! Names and headers of content segments.

pub const DIR: &str = "content";
pub const HEADER_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"FSM.CON\n";
const VERSION: u32 = 1;

/// Why bytes are no header of this segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadHeader {
    Damaged(&'static str),
    Newer(u32),
}

pub fn name(number: u64) -> String {
    format!("{DIR}/{number:016x}.content")
}

/// The number of a segment by its name in the directory.
pub fn number(name: &str) -> Option<u64> {
    let digits = name
        .strip_suffix(".content")
        .filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

pub fn header(number: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    let crc = checksum(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

pub fn check(bytes: &[u8; HEADER_BYTES], number: u64) -> Result<(), BadHeader> {
    if bytes[..8] != MAGIC {
        return Err(BadHeader::Damaged("no content segment begins here"));
    }
    if bytes[12..16] != checksum(bytes).to_le_bytes() {
        return Err(BadHeader::Damaged("the checksum of the header is wrong"));
    }
    let mut version = [0; 4];
    version.copy_from_slice(&bytes[8..12]);
    match u32::from_le_bytes(version) {
        VERSION => {}
        newer if newer > VERSION => return Err(BadHeader::Newer(newer)),
        _ => return Err(BadHeader::Damaged("there is no such version")),
    }
    if bytes[16..24] != number.to_le_bytes() {
        return Err(BadHeader::Damaged("the header names another segment"));
    }
    Ok(())
}

fn checksum(bytes: &[u8; HEADER_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}
