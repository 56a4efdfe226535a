//! The generated messages and server traits; `build.rs` makes them from `proto/`.

#![expect(
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::doc_markdown,
    reason = "generated code"
)]

tonic::include_proto!("celslm.v1");
