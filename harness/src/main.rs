//! The `celslm` command.

mod cli;

use celslm::exit::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
