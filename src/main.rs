//! The thin binary: hands over to the command line.
fn main() {}
