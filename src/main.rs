//! The thin binary: hands over to the command line.

/// Under many small allocations from many threads it is faster than the system's allocator and
/// gives memory back sooner.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    onrush::cli::run()
}
