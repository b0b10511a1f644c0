#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::os::fd::AsRawFd;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::attest::named_by_descriptor;
use crate::attest::testing::{Door, Process};

fn served(door: &Door, script: &str) -> (Process, PeerStream) {
    let (process, stream) = door.python(script);
    (process, taken(stream))
}

fn taken(stream: std::os::unix::net::UnixStream) -> PeerStream {
    stream.set_nonblocking(true).unwrap();
    PeerStream::new(
        UnixStream::from_std(stream).unwrap(),
        bytes::Bytes::new(),
        Mode::Pidfd,
    )
    .unwrap()
}

fn reason(error: &io::Error) -> SpeakerError {
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    *error.get_ref().unwrap().downcast_ref().unwrap()
}

#[tokio::test]
async fn what_the_connected_process_writes_is_read_and_answered() {
    let door = Door::open();
    let script = "s.send(b'ask'); d = s.recv(9); s.send(d + b'!'); s.close()";
    let (process, mut stream) = served(&door, script);
    let mut buffer = [0; 3];
    stream.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"ask");
    stream.write_all(b"answer").await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"answer!");
    assert_eq!(stream.speaker().peer().pid(), process.pid());
    assert_eq!(stream.speaker().refused(), None);
    assert!(stream.speaker().take_descriptor().is_none());
}

/// Attack 3 of the corpus: a connected descriptor handed to another process by `SCM_RIGHTS`.
#[tokio::test]
async fn a_connection_that_was_handed_on_is_refused_for_good() {
    let door = Door::open();
    let script = "
a, b = socket.socketpair()
if os.fork() == 0:
    s.close(); a.close()
    d, fds, _, _ = socket.recv_fds(b, 1, 1)
    t = socket.socket(fileno=fds[0])
    t.send(b'not me')
    wait()
else:
    s.send(b'it is me')
    wait()
    socket.send_fds(a, [b'x'], [s.fileno()])
    wait()";
    let (mut process, mut stream) = served(&door, script);
    let mut buffer = [0; 64];
    let read = stream.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..read], b"it is me");
    process.go_on();
    let error = stream.read(&mut buffer).await.unwrap_err();
    let SpeakerError::Changed {
        connected,
        speaking,
    } = reason(&error)
    else {
        panic!("{error}")
    };
    assert_eq!(connected, process.pid());
    assert!(speaking != connected && speaking != 0);
    assert_eq!(reason(&error).code(), "speaker_changed");
    // Nothing goes out either, and nothing more comes in.
    assert_eq!(
        reason(&stream.write_all(b"secret").await.unwrap_err()),
        reason(&error)
    );
    assert_eq!(
        reason(&stream.read(&mut buffer).await.unwrap_err()),
        reason(&error)
    );
    assert_eq!(stream.speaker().refused(), Some(reason(&error)));
}

#[tokio::test]
async fn bytes_of_two_speakers_are_never_read_together() {
    let door = Door::open();
    // Both are in the queue before anything is read.
    let script = "
s.send(b'mine ')
if os.fork() == 0:
    s.send(b'not mine')
    os._exit(0)
os.wait()
print(1, flush=True)
wait()";
    let (mut process, mut stream) = served(&door, script);
    assert_eq!(process.number(), 1);
    let mut buffer = [0; 64];
    let read = stream.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..read], b"mine ");
    let error = stream.read(&mut buffer).await.unwrap_err();
    assert_eq!(reason(&error).code(), "speaker_changed");
}

#[tokio::test]
async fn one_descriptor_is_kept_and_closed_on_exec() {
    let door = Door::open();
    let script = "
child = os.fork()
if child == 0:
    os.execvp('sleep', ['sleep', '600'])
socket.send_fds(s, [b'run'], [os.pidfd_open(child)])
print(child, flush=True)
wait()
os.kill(child, 9)";
    let (mut process, mut stream) = served(&door, script);
    let mut buffer = [0; 64];
    let read = stream.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..read], b"run");
    let descriptor = stream.speaker().take_descriptor().unwrap();
    assert!(stream.speaker().take_descriptor().is_none());
    let flags = rustix::io::fcntl_getfd(&descriptor).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let named = named_by_descriptor(stream.speaker().peer(), descriptor).unwrap();
    assert_eq!(named.pid(), process.number());
    process.go_on();
    process.reap();
}

#[tokio::test]
async fn more_than_one_descriptor_is_refused_and_none_is_kept() {
    for count in [2, 3, 40] {
        let door = Door::open();
        let script = format!("socket.send_fds(s, [b'run'], [0] * {count}); wait()");
        let (_process, mut stream) = served(&door, &script);
        let error = stream.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(reason(&error), SpeakerError::TooManyDescriptors, "{count}");
        assert!(stream.speaker().take_descriptor().is_none());
    }
    let door = Door::open();
    let script = "
socket.send_fds(s, [b'a'], [0]); wait()
socket.send_fds(s, [b'b'], [0]); wait()";
    let (mut process, mut stream) = served(&door, script);
    assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), 1);
    process.go_on();
    let error = stream.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!(reason(&error), SpeakerError::TooManyDescriptors);
}

#[tokio::test]
async fn an_end_that_came_with_the_last_bytes_is_read_without_another_word() {
    let (mut client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    set_socket_passcred(&server, true).unwrap();
    std::io::Write::write_all(&mut client, b"bye").unwrap();
    drop(client);
    let mut stream = taken(server);
    let mut buffer = [0; 64];
    let limit = std::time::Duration::from_secs(5);
    for expected in [3, 0] {
        let read = tokio::time::timeout(limit, stream.read(&mut buffer)).await;
        assert_eq!(read.unwrap().unwrap(), expected);
    }
}

#[tokio::test]
async fn a_message_without_its_senders_credentials_is_refused() {
    // Written before anybody asked for credentials: the kernel has none to show.
    let (mut client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut client, b"who").unwrap();
    let mut stream = taken(server);
    let error = stream.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!(reason(&error).code(), "speaker_changed");
}

#[tokio::test]
async fn the_listeners_option_holds_from_the_first_byte() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    prepare_listener(&listener).unwrap();
    let mut client = std::os::unix::net::UnixStream::connect(directory.path().join("s")).unwrap();
    // In the queue before it is accepted.
    std::io::Write::write_all(&mut client, b"early").unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = PeerStream::new(stream, bytes::Bytes::new(), Mode::Pidfd).unwrap();
    let mut buffer = [0; 64];
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 5);
    assert!(client.as_raw_fd() >= 0);
}

#[tokio::test]
async fn a_descriptor_that_names_no_process_of_the_speaker_is_refused() {
    use crate::attest::AttestError;
    let door = Door::open();
    let (process, stream) = served(&door, "wait()");
    let speaker = stream.speaker().peer();
    let refused = |descriptor: OwnedFd| named_by_descriptor(speaker, descriptor).unwrap_err();
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    assert!(matches!(refused(file), AttestError::Descriptor(why) if why.contains("no pidfd")));
    // Above the speaker, not below.
    let own = crate::attest::HeldProcess::hold(std::process::id())
        .unwrap()
        .pidfd_clone()
        .unwrap();
    assert!(matches!(refused(own), AttestError::Descriptor(why) if why.contains("neither")));
    let mut sibling = Process::waiting();
    let of_sibling = || sibling.peer().pidfd_clone().unwrap();
    assert!(matches!(refused(of_sibling()), AttestError::Descriptor(_)));
    let dead = of_sibling();
    sibling.0.kill().unwrap();
    sibling.reap();
    assert!(matches!(refused(dead), AttestError::Descriptor(why) if why.contains("ended")));
    assert_eq!(speaker.pid(), process.pid());
}
