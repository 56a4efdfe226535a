//! Compiles the proto with protox, so that no `protoc` binary is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    const PROTO: &str = "proto/celslm/v1/celslm.proto";
    println!("cargo::rerun-if-changed={PROTO}");
    let files = protox::compile([PROTO], ["proto"])?;
    tonic_prost_build::configure()
        // The client is written by hand: it counts bytes per call, which needs a codec per call.
        .build_client(false)
        .build_transport(false)
        .codec_path("crate::codec::WireCodec")
        // A payload is a slice of the receive buffer, not a copy of it.
        .bytes(".celslm.v1.Chunk.payload")
        .compile_fds(files)?;
    Ok(())
}
