//! The `celslm` command.

mod cli;

use celslm::exit::ExitCode;

/// A forward pass allocates and frees megabytes per layer, which the system's allocator hands
/// back to the kernel each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
