//! Whatever bytes come: no panic, no memory beyond the limits, and what was said is what is heard.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::link::frame::{self, BODY_BYTES_MAX, FrameError, HEADER_BYTES, Head};
use crate::link::message::{self as say, Message, MessageError};

fn read_all(mut bytes: &[u8]) -> Result<Vec<Message>, MessageError> {
    let mut body = Vec::new();
    let mut messages = Vec::new();
    loop {
        match Message::read(&mut bytes, &mut body) {
            Ok(message) => messages.push(message),
            Err(MessageError::Frame(FrameError::Ended)) if bytes.is_empty() => return Ok(messages),
            Err(error) => return Err(error),
        }
        assert!(body.capacity() <= 2 * BODY_BYTES_MAX);
    }
}

fn at() -> impl Strategy<Value = say::At> {
    (any::<u32>(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(epoch, sequence, head)| say::At {
        epoch,
        sequence,
        head,
    })
}

fn place() -> impl Strategy<Value = say::Place> {
    (any::<u32>(), any::<u64>()).prop_map(|(epoch, sequence)| say::Place { epoch, sequence })
}

fn message() -> impl Strategy<Value = Message> {
    let bytes = || vec(any::<u8>(), 0..300);
    prop_oneof![
        (bytes(), any::<u64>(), vec(".*", 0..3), ".*").prop_map(
            |(tree, timeout_ms, ignore, name)| say::Hello {
                protocol: 1,
                protocol_min: 1,
                features: 7,
                role: "follower".into(),
                program: "p".into(),
                tree,
                timeout_ms,
                ignore,
                detector: String::new(),
                name,
                cross: Vec::new(),
                replica: Vec::new(),
            }
            .into()
        ),
        (any::<[u8; 16]>(), bytes(), proptest::option::of(at())).prop_map(|(tree, path, end)| {
            say::Welcome {
                protocol: 1,
                features: 0,
                program: "w".into(),
                tree,
                path,
                detector: "fanotify".into(),
                why: "so".into(),
                first: None,
                end,
                host: "h".into(),
                chain: vec![vec![1; 16].into()],
            }
            .into()
        }),
        (any::<u8>(), ".*").prop_map(|(cause, reason)| say::Refused { cause, reason }.into()),
        (proptest::option::of(at()), any::<u64>(), any::<bool>()).prop_map(
            |(after, bwlimit, records_only)| {
                say::Follow {
                    after,
                    bwlimit,
                    records_only,
                    listed: false,
                    once: false,
                }
                .into()
            }
        ),
        (any::<bool>(), vec((any::<[u8; 32]>(), bytes()), 0..4)).prop_map(|(kept, blocks)| {
            let blocks = blocks
                .into_iter()
                .map(|(digest, bytes)| say::Block { digest, bytes })
                .collect();
            say::Contents { kept, blocks }.into()
        }),
        (any::<bool>(), bytes()).prop_map(|(whole, bytes)| say::Records { whole, bytes }.into()),
        (
            proptest::option::of(place()),
            any::<Option<u64>>(),
            any::<Option<String>>()
        )
            .prop_map(|(applied, failed, held)| {
                say::Ack {
                    received: None,
                    durable: applied,
                    applied,
                    failed,
                    held,
                }
                .into()
            }),
        (any::<u64>(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(id, object, digest)| {
            say::Request {
                id,
                object,
                digest,
                from: Some(id).filter(|id| id % 2 == 0),
            }
            .into()
        }),
        (any::<u64>(), bytes()).prop_map(|(id, bytes)| say::Piece { id, bytes }.into()),
        (any::<u64>(), any::<u8>(), ".*").prop_map(|(id, end, reason)| say::PieceEnd {
            id,
            end,
            reason
        }
        .into()),
        any::<u64>().prop_map(|id| say::Barrier { id }.into()),
        (any::<u64>(), proptest::option::of(place()), ".*").prop_map(|(id, position, report)| {
            say::BarrierDone {
                id,
                position,
                report,
            }
            .into()
        }),
        ".*".prop_map(|json| say::Report { json }.into()),
        (any::<u64>(), proptest::option::of(at())).prop_map(|(time_ns, end)| say::Heartbeat {
            time_ns,
            end
        }
        .into()),
        any::<u8>().prop_map(|what| say::Order { what }.into()),
        (any::<u64>(), any::<bool>()).prop_map(|(id, repair)| say::Verify { id, repair }.into()),
        ".*".prop_map(|reason| say::Bye { reason }.into()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_said_is_heard(messages in vec(message(), 0..5)) {
        let mut bytes = Vec::new();
        for message in &messages {
            message.encode(&mut bytes).unwrap();
        }
        prop_assert_eq!(read_all(&bytes).unwrap(), messages);
    }

    #[test]
    fn noise_is_an_error(bytes in vec(any::<u8>(), 0..2000)) {
        let _ = read_all(&bytes);
    }

    /// A valid header and checksum around a body of nonsense, and of nearly sense.
    #[test]
    fn bodies_of_nonsense_are_errors(kind in 0u8..30, body in vec(any::<u8>(), 0..400)) {
        let mut bytes = Vec::new();
        frame::put(kind, false, &body, &mut bytes);
        let _ = read_all(&bytes);
    }

    #[test]
    fn a_damaged_message_is_never_heard(
        message in message(),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        // A longer length makes it an end, everything else an error.
        prop_assert!(!matches!(read_all(&bytes), Ok(heard) if !heard.is_empty()));
    }

    #[test]
    fn a_cut_stream_is_an_end(message in message(), at in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        bytes.truncate(at.index(bytes.len()));
        let heard = read_all(&bytes);
        prop_assert!(matches!(
            heard,
            Ok(ref none) if none.is_empty()
        ) || matches!(heard, Err(MessageError::Frame(FrameError::Ended))));
    }

    /// A body that claims enormous lengths inside takes no more memory than it has bytes (times a little).
    #[test]
    fn claimed_lengths_are_not_believed(kind in 1u8..21, major in 2u8..6, claim in any::<u64>()) {
        let mut body = vec![0x9f];
        body.push((major << 5) | 27);
        body.extend_from_slice(&claim.to_be_bytes());
        let mut bytes = Vec::new();
        frame::put(kind, true, &body, &mut bytes);
        prop_assert!(read_all(&bytes).is_err());
    }
}

#[test]
fn unknown_kinds_are_passed_over_unless_they_must_be_understood() {
    let known = Message::from(say::Barrier { id: 3 });
    let mut bytes = Vec::new();
    frame::put(200, false, b"something of later", &mut bytes);
    known.encode(&mut bytes).unwrap();
    assert_eq!(read_all(&bytes).unwrap(), [known]);
    let mut bytes = Vec::new();
    frame::put(200, true, b"", &mut bytes);
    assert!(matches!(read_all(&bytes), Err(MessageError::Unknown(200))));
}

#[test]
fn a_field_of_a_later_version_is_passed_over() {
    // Barrier [id], with two more fields.
    let body = [0x83, 0x07, 0x63, b'n', b'e', b'w', 0x81, 0x01];
    let mut bytes = Vec::new();
    frame::put(12, true, &body, &mut bytes);
    assert_eq!(
        read_all(&bytes).unwrap(),
        [Message::from(say::Barrier { id: 7 })]
    );
}

#[test]
fn a_frame_too_long_is_refused_before_it_is_read() {
    let mut bytes = Vec::new();
    frame::put(14, false, b"x", &mut bytes);
    bytes[8..12].copy_from_slice(&(BODY_BYTES_MAX as u32 + 1).to_le_bytes());
    let mut body = Vec::new();
    let read = frame::read(&mut bytes.as_slice(), &mut body);
    assert!(matches!(read, Err(FrameError::TooLong { .. })), "{read:?}");
    assert_eq!(body.capacity(), 0);
    let long = Message::from(say::Piece {
        id: 1,
        bytes: vec![0; BODY_BYTES_MAX],
    });
    assert!(long.encode(&mut Vec::new()).is_err());
}

#[test]
fn a_later_frame_version_is_named_and_a_shell_that_talks_is_shown() {
    let mut bytes = Vec::new();
    frame::put(12, true, b"", &mut bytes);
    bytes[4] = 9;
    assert!(matches!(
        frame::read(&mut bytes.as_slice(), &mut Vec::new()),
        Err(FrameError::Newer(9))
    ));
    let hello = b"Welcome to Debian\n";
    match frame::read(&mut hello.as_slice(), &mut Vec::new()) {
        Err(FrameError::NoFrame(bytes)) => assert_eq!(bytes, &hello[..HEADER_BYTES]),
        other => panic!("{other:?}"),
    }
}

/// The bytes of each kind are fixed: a change here is a change of the protocol.
#[test]
fn bytes_are_as_documented() {
    let mut bytes = Vec::new();
    Message::from(say::Barrier { id: 5 })
        .encode(&mut bytes)
        .unwrap();
    assert_eq!(&bytes[..12], b"FSMw\x01\x0c\x01\x00\x02\x00\x00\x00");
    assert_eq!(&bytes[16..], [0x81, 0x05]);
    let mut body = Vec::new();
    let head = frame::read(&mut bytes.as_slice(), &mut body).unwrap();
    assert_eq!(
        head,
        Head {
            kind: 12,
            must_understand: true
        }
    );
}
