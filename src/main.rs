//! The `landfall` command.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// For the Kafka client and OpenSSL as well, which allocate as we do: on one thread what is freed on another. With
/// glibc's allocator a fifth of the time of every thread on a change's way went there.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Two arenas, where jemalloc would take four for each core: what one thread has freed is there for the others. Where records
/// that hardly unpack are followed by such that unpack far, that is a quarter of the memory (`tests/memory.rs`: 95 to 127 MiB
/// in place of 151). `MALLOC_CONF` in the environment goes before it.
// SAFETY: jemalloc takes the symbol for a pointer to a C string, which the first word of the slice is.
#[allow(unsafe_code)]
#[unsafe(export_name = "malloc_conf")]
static ALLOCATOR_SETTINGS: &[u8] = b"narenas:2\0";

fn main() -> ExitCode {
    landfall::cli::main()
}
