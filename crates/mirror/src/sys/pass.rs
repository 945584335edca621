//! Messages with descriptors between two processes of ours, over a pair of sockets that keeps their bounds.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use super::{Errno, Result};

/// Descriptors in one message.
pub const DESCRIPTORS_MAX: usize = 64;

pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// One message; the other side gets descriptors of its own for these.
pub fn send(to: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::TOOBIG);
        }
        match sendmsg(
            &to,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => {}
            done => return done.map(|_| ()),
        }
    }
}

/// The next message; blocks. None comes any more: no bytes.
pub fn receive(from: impl AsFd, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(buffer)];
        let got = match recvmsg(&from, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => continue,
            got => got?,
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if got
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(Errno::MSGSIZE);
        }
        return Ok((got.bytes, fds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_travel_with_their_message() {
        let (near, far) = pair().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        send(&near, b"first", &[]).unwrap();
        send(&near, b"second", &[theirs.as_fd()]).unwrap();
        drop(theirs);
        let mut buffer = [0; 16];
        let (n, fds) = receive(&far, &mut buffer).unwrap();
        assert_eq!((&buffer[..n], fds.len()), (&b"first"[..], 0));
        let (n, fds) = receive(&far, &mut buffer).unwrap();
        assert_eq!((&buffer[..n], fds.len()), (&b"second"[..], 1));
        let mut theirs = UnixStream::from(fds.into_iter().next().unwrap());
        ours.write_all(b"x").unwrap();
        let mut byte = [0];
        theirs.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        send(&near, &[0; 17], &[]).unwrap();
        assert_eq!(receive(&far, &mut buffer).unwrap_err(), Errno::MSGSIZE);
        drop(near);
        assert_eq!(receive(&far, &mut buffer).unwrap().0, 0);
    }
}
