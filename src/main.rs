//! The thin binary: hands over to the command line.

/// Under many small allocations from many threads it is faster than the system's allocator and
/// gives memory back sooner.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // The allocator asks for huge pages, of which a few small objects keep a whole one: measured, an
    // idle server then holds 52 MB in place of 23, and is no faster. An error leaves it at that.
    #[cfg(target_os = "linux")]
    let _larger = nix::sys::prctl::set_thp_disable(true);
    onrush::cli::run()
}
