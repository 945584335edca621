//! What a field can hold. Checked alike when writing and when reading, so that what is written can be read.

use super::*;

pub(super) fn time(time: Time) -> Result<(), CodecError> {
    if time.nanos < 1_000_000_000 {
        Ok(())
    } else {
        Err(CodecError::BadValue("nanoseconds"))
    }
}

pub(super) fn exe(bytes: &[u8]) -> Result<(), CodecError> {
    if bytes.len() <= EXE_BYTES_MAX {
        Ok(())
    } else {
        Err(CodecError::TooLarge("path of the executable"))
    }
}

pub(super) fn handle(bytes: &[u8]) -> Result<(), CodecError> {
    if bytes.len() <= HANDLE_BYTES_MAX {
        Ok(())
    } else {
        Err(CodecError::TooLarge("handle"))
    }
}

pub(super) fn target(bytes: &[u8]) -> Result<(), CodecError> {
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(CodecError::BadValue("target of a symbolic link"));
    }
    if bytes.len() <= SYMLINK_BYTES_MAX {
        Ok(())
    } else {
        Err(CodecError::TooLarge("target of a symbolic link"))
    }
}

pub(super) fn meta(meta: &Meta) -> Result<(), CodecError> {
    time(meta.mtime)?;
    if meta.mode > 0o7777 {
        return Err(CodecError::BadValue("mode"));
    }
    let mut bytes = 0;
    let mut last: Option<&[u8]> = None;
    for xattr in &meta.xattrs {
        let name = &*xattr.name;
        if name.is_empty()
            || name.len() > 255
            || name.contains(&0)
            || last.is_some_and(|last| last >= name)
        {
            return Err(CodecError::BadValue(
                "name or order of an extended attribute",
            ));
        }
        if xattr.value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(CodecError::TooLarge("extended attribute"));
        }
        bytes += name.len() + xattr.value.len();
        last = Some(name);
    }
    if bytes <= XATTRS_BYTES_MAX {
        Ok(())
    } else {
        Err(CodecError::TooLarge("extended attributes"))
    }
}

pub(super) fn content(content: &Content) -> Result<(), CodecError> {
    if content.data.len() > DATA_RANGES_MAX {
        return Err(CodecError::TooLarge("number of data ranges"));
    }
    if content.bytes > SIZE_MAX {
        return Err(CodecError::TooLarge("file"));
    }
    let mut end = 0;
    for &(offset, length) in &content.data {
        let ok = offset >= end
            && offset
                .checked_add(length)
                .is_some_and(|end| end <= content.bytes);
        if !ok {
            return Err(CodecError::BadValue("data ranges"));
        }
        end = offset + length;
    }
    Ok(())
}
