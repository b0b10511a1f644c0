//! The public API of `ephor-proto`, seen from outside.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

#[path = "login/model.rs"]
mod login;

use std::path::Path;

/// The checked-in gRPC code is what the `.proto` file says. To make it anew:
/// `EPHOR_REGENERATE=1 cargo test -p ephor-proto --features grpc generated`.
#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let descriptors = protox::compile(["ephor/v1/ephor.proto"], [root]).unwrap();
    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug([
            "ephor.v1.JoinRequest",
            "ephor.v1.Credential",
            "ephor.v1.Login",
        ])
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();
    let made = std::fs::read_to_string(out.path().join("ephor.v1.rs")).unwrap();
    let kept = root.join("src/grpc/ephor.v1.rs");
    if std::env::var_os("EPHOR_REGENERATE").is_some() {
        std::fs::write(&kept, &made).unwrap();
    }
    let kept = std::fs::read_to_string(kept).unwrap();
    assert!(
        made == kept,
        "proto/src/grpc/ephor.v1.rs is stale; run this test with EPHOR_REGENERATE=1"
    );
}
