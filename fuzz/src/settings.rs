//! Settings: the input is words behind zero bytes; one that begins with `HYPERCACHE_` is
//! a variable, any other an argument.
//!
//! * What is wrong is told in one line that never holds a secret; nor does anything that
//!   is printed of settings that are right.
//! * A variable and its flag mean the same.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use hypercache::settings::{Invocation, Settings, TABLE};

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    let words = bytes.split(|&byte| byte == 0);
    let (mut args, mut env) = (Vec::new(), Vec::new());
    for word in words.take(64).map(|word| OsString::from_vec(word.to_vec())) {
        match split_variable(&word) {
            Some(variable) => env.push(variable),
            None => args.push(word),
        }
    }
    let plain = read(&args, &env);

    // A variable of the table, given as a flag before all others, is the same.
    let (flags, others): (Vec<_>, Vec<_>) = env
        .iter()
        .cloned()
        .partition(|(name, _)| TABLE.iter().any(|setting| name == setting.variable));
    let mut with_flags: Vec<OsString> = Vec::new();
    for (name, value) in flags {
        let setting = TABLE.iter().find(|setting| name == setting.variable);
        let flag = setting.map(|setting| setting.flag()).unwrap_or_default();
        match value.to_str() {
            Some(value) => with_flags.push(format!("{flag}={value}").into()),
            None => with_flags.extend([flag.into(), value]),
        }
    }
    with_flags.extend(args.iter().cloned());
    assert_eq!(read(&with_flags, &others).is_ok(), plain.is_ok());

    // One secret of one setting for each input: all of them take their time.
    let secrets = ["5ECRET", "5ECRET with spaces", "5ECRET\n\u{e9}"];
    let secret = secrets[bytes.len() % secrets.len()];
    let settings: Vec<_> = TABLE.iter().filter(|setting| setting.secret).collect();
    let setting = settings[bytes.len() / secrets.len() % settings.len()];
    env.push((setting.variable.into(), secret.into()));
    tells_no_secret(&read(&args, &env));
    args.push(format!("{}={secret}", setting.flag()).into());
    tells_no_secret(&read(&args, &env));
}

fn split_variable(word: &OsString) -> Option<(OsString, OsString)> {
    let bytes = word.as_bytes();
    let at = bytes.iter().position(|&byte| byte == b'=')?;
    bytes.starts_with(b"HYPERCACHE_").then(|| {
        let part = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        (part(&bytes[..at]), part(&bytes[at + 1..]))
    })
}

/// What would be printed, right or wrong.
fn read(args: &[OsString], env: &[(OsString, OsString)]) -> Result<String, String> {
    match Settings::from(args.iter().cloned(), env.iter().cloned(), "host") {
        Ok(Invocation::Run(settings) | Invocation::CheckConfig(settings)) => {
            Ok(format!("{settings:?}"))
        }
        Ok(Invocation::Help(text) | Invocation::Version(text)) => Ok(text),
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains(char::is_control), "{line:?}");
            Err(line)
        }
    }
}

fn tells_no_secret(printed: &Result<String, String>) {
    let (Ok(text) | Err(text)) = printed;
    assert!(!text.contains("5ECRET"), "{text}");
}
