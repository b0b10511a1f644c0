//! Floods of HTTP/2 frames, by hand: no client library sends them.

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
/// `GET https://x/who` (RFC 7541, indexed fields and one literal).
const GET: &[u8] = &[0x82, 0x87, 0x41, 1, b'x', 0x44, 4, b'/', b'w', b'h', b'o'];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Sends the flood until the server ends the connection; whether it did.
async fn flooded(fixture: &Fixture, address: SocketAddr, flood: impl Fn(u32) -> Vec<u8>) -> bool {
    let io = fixture.connect(address, None).await.unwrap();
    let (mut reads, mut writes) = tokio::io::split(io);
    let reading = async { closed(&mut reads).await };
    let writing = async {
        writes.write_all(PREFACE).await.unwrap();
        writes.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        for number in 0..200_000 {
            if writes.write_all(&flood(number)).await.is_err() {
                return;
            }
        }
        std::future::pending().await
    };
    tokio::time::timeout(Duration::from_secs(30), async {
        tokio::select! {
            () = reading => {}
            () = writing => {}
        }
    })
    .await
    .is_ok()
}

/// CVE-2023-44487, and RUSTSEC-2024-0332 with its like.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_124_floods_of_http2_frames_end_their_own_connection_only() {
    let fixture = Fixture::new();
    let address = fixture.https(Arc::new(NoCuts)).await;
    let certificate = fixture.agent_certificate("spiffe://test.example/agent/web-1");
    let mut agent = fixture.connect(address, Some(certificate)).await.unwrap();
    let rapid_reset = |number: u32| {
        let stream = 2 * number + 1;
        let mut both = frame(HEADERS, 0x5, stream, GET);
        both.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        both
    };
    // A header block that never ends.
    let continuation = |number: u32| match number {
        0 => frame(HEADERS, 0x1, 1, GET),
        _ => frame(
            CONTINUATION,
            0,
            1,
            &[&[0, 5][..], b"x-one", &[4], b"more"].concat().repeat(100),
        ),
    };
    let too_large = |number: u32| frame(HEADERS, 0x5, 2 * number + 1, &vec![0x82; 1 << 15]);
    for (name, ended) in [
        ("rapid reset", flooded(&fixture, address, rapid_reset).await),
        (
            "continuation",
            flooded(&fixture, address, continuation).await,
        ),
        (
            "frame too large",
            flooded(&fixture, address, too_large).await,
        ),
    ] {
        assert!(ended, "{name}");
        assert!(within(ask(&mut agent, "/who")).await.ends_with("web-1"));
    }
}
