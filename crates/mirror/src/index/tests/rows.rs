//! Packed rows.

use mirror_core::*;
use proptest::prelude::*;

use super::world::object;
use crate::index::row::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn an_object_comes_back(object in object()) {
        let body = &body_encode(&object.state, &object.local)[..];
        let packed = object_encode(&object.names, body);
        prop_assert_eq!(object_decode(&packed), Ok(object.clone()));
        prop_assert_eq!(body_decode(body), Ok((object.state.clone(), object.local)));
        prop_assert_eq!(body_is_dir(body), Ok(object.state.kind.is_dir()));
        let row = entry_inline(ObjectId(1 << 63), body);
        prop_assert_eq!(entry_split(&row), Ok((ObjectId(1 << 63), Some(body))));
        // Nothing shorter is taken for a row.
        for end in 0..packed.len() {
            prop_assert_eq!(object_decode(&packed[..end]), Err(BadRow));
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = object_decode(&bytes);
        let _ = body_decode(&bytes);
        let _ = entry_split(&bytes);
        let _ = entry_key_decode(&bytes);
        let mut whole = vec![OBJECT_WHOLE, 0];
        whole.extend_from_slice(&bytes);
        let _ = object_decode(&whole);
    }
}

/// The rows of a plain file stay small: millions of them are read at a restart.
#[test]
fn a_plain_file_takes_at_most_120_bytes_of_its_directory() {
    let time = |nanos| Time {
        seconds: 1_790_000_000,
        nanos,
    };
    let at = At {
        parent: ObjectId((1 << 44) | 70_000),
        name: Name::new(b"wp-config-sample.php").unwrap(),
    };
    let object = Object {
        state: State {
            kind: Kind::File(Content {
                bytes: 4096,
                digest: Digest([7; 32]),
                data: vec![],
                proven: true,
                fuzzy: false,
            }),
            meta: Meta {
                mode: 0o644,
                uid: 33,
                gid: 33,
                mtime: time(123_456_789),
                ..Meta::default()
            },
        },
        local: Local {
            handle: Some(Handle {
                kind: 1,
                bytes: [0x34, 0x12, 0x0a, 0, 9, 9, 9, 9].into(),
            }),
            ino: 0x000a_1234,
            ctime: time(987_654_321),
            btime: time(987_000_000),
        },
        names: Names::one(at.clone()),
    };
    let body = body_encode(&object.state, &object.local);
    let row = entry_inline(ObjectId((1 << 44) | 70_001), &body);
    let bytes = entry_key_at(&at).len() + row.len();
    assert!(bytes <= 120, "{bytes} bytes");
}
