//! The `landfall` command.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// For the Kafka client and OpenSSL as well, which allocate as we do: on one thread what is freed on another. With
/// glibc's allocator a fifth of the time of every thread on a change's way went there.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    landfall::cli::main()
}
