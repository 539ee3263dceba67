//! What programs are told on the command line.

use std::io;
use std::str::FromStr;

/// Hands pairs of a name and a valid number to `set`, which says whether it knows the name;
/// returns whether to build first, which `--no-build` spares.
///
/// # Errors
///
/// When a number is missing or not valid, or a name is not known.
pub fn read_numbers<N: FromStr>(
    is_valid: impl Fn(&N) -> bool,
    mut set: impl FnMut(&str, N) -> bool,
) -> io::Result<bool> {
    let mut builds = true;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--no-build" {
            builds = false;
            continue;
        }
        let number = arguments.next().and_then(|value| value.parse().ok());
        let number = number
            .filter(&is_valid)
            .ok_or_else(|| io::Error::other(format!("{name} takes a number")))?;
        if !set(&name, number) {
            return Err(io::Error::other(format!("{name}: not known")));
        }
    }
    Ok(builds)
}
