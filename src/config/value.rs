//! From one written value to one meant: small pure parsers. Their complaints never repeat what might be a secret.

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use russh::keys::{
    PublicKey,
    ssh_encoding::{Base64Reader, Decode},
};

use super::raw::Value;

/// No duration may be longer: whatever is waited for so long is not waited for.
const LONGEST: Duration = Duration::from_hours(366 * 24);
/// The key types sshd offers that are still safe; DSA is not.
const KEY_TYPES: [&str; 5] =
    ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"];
/// OpenSSH takes no smaller ones.
const LEAST_RSA_BITS: u32 = 1024;
/// Put before a path, it stands for the folder in which systemd hands out credentials (`LoadCredential=`).
pub(super) const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY/";

/// Any text that is not empty and has no control characters.
pub(super) fn text(value: &Value) -> Result<String, String> {
    let (Value::Text(text) | Value::Loose(text)) = value else {
        return Err("must be text in quotes".into());
    };
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err("must not be empty, nor contain control characters".into());
    }
    Ok(text.clone())
}

/// Text that `check` makes something of.
pub(super) fn text_as<T>(check: impl Fn(&str) -> Result<T, String>) -> impl Fn(&Value) -> Result<T, String> {
    move |value| text(value).and_then(|text| check(&text))
}

/// A list of texts. From the environment: as in TOML, or separated by commas.
pub(super) fn list_of<T>(check: impl Fn(&str) -> Result<T, String>) -> impl Fn(&Value) -> Result<Vec<T>, String> {
    move |value| {
        let texts = match value {
            Value::List(list) => list.iter().map(text).collect::<Result<Vec<_>, _>>(),
            Value::Loose(loose) if loose.trim_start().starts_with('[') => loose_list(loose),
            Value::Loose(loose) => {
                Ok(loose.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect())
            }
            _ => Err("must be a list of texts, as [\"...\", \"...\"]".into()),
        };
        let texts = texts?;
        let place = |at: usize| if texts.len() > 1 { format!("entry {}: ", at + 1) } else { String::new() };
        let each = texts.iter().enumerate();
        each.map(|(at, text)| check(text).map_err(|why| format!("{}{why}", place(at)))).collect()
    }
}

fn loose_list(loose: &str) -> Result<Vec<String>, String> {
    #[derive(serde::Deserialize)]
    struct Only {
        list: Vec<String>,
    }
    toml::from_str::<Only>(&format!("list = {loose}"))
        .map(|only| only.list)
        .map_err(|_| "is not a list of texts, as [\"...\", \"...\"]".into())
}

/// A list with something in it.
pub(super) fn at_least_one<T>(
    list: impl Fn(&Value) -> Result<Vec<T>, String>,
) -> impl Fn(&Value) -> Result<Vec<T>, String> {
    move |value| match list(value) {
        Ok(list) if list.is_empty() => Err("must not be empty".into()),
        read => read,
    }
}

/// Anything that was let through by [`text`].
#[expect(clippy::unnecessary_wraps, reason = "one of the checks that may fail")]
pub(super) fn any(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// A truth value.
pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(b) => Ok(*b),
        Value::Loose(text) if text == "true" => Ok(true),
        Value::Loose(text) if text == "false" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

/// A whole number within `range`.
pub(super) fn integer<T: TryFrom<i64>>(range: RangeInclusive<i64>) -> impl Fn(&Value) -> Result<T, String> {
    move |value| {
        let number = match value {
            Value::Integer(n) => Some(*n),
            Value::Loose(text) => text.parse().ok(),
            Value::Other("integer out of range") => Some(i64::MAX),
            _ => None,
        };
        let (low, high) = (range.start(), range.end());
        let number = number.ok_or("must be a whole number")?;
        Some(number)
            .filter(|n| range.contains(n))
            .and_then(|n| T::try_from(n).ok())
            .ok_or_else(|| format!("must be between {low} and {high}"))
    }
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&Value) -> Result<T, String> {
    move |value| {
        let text = text(value)?;
        if let Some((_, meant)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(*meant);
        }
        let all: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let near = super::error::suggestion(&text, words.iter().map(|(word, _)| *word));
        Err(format!("must be {}{near}", all.join(" or ")))
    }
}

/// A duration as people write it, not shorter than `shortest`.
pub(super) fn duration(shortest: Duration) -> impl Fn(&Value) -> Result<Duration, String> {
    move |value| {
        if matches!(value, Value::Integer(_)) {
            return Err("needs quotes and a unit, as \"30s\" or \"5m\"".into());
        }
        let text = text(value)?;
        let duration = humantime::parse_duration(&text)
            .map_err(|error| format!("\"{text}\" is no duration as \"30s\" or \"5m\": {error}"))?;
        if duration < shortest {
            return Err(format!("{} is too short, at least {}", show(duration), show(shortest)));
        }
        if duration > LONGEST {
            return Err(format!("{} is too long, at most 366 days", show(duration)));
        }
        Ok(duration)
    }
}

/// A duration not shorter than `shortest`, or "never".
pub(super) fn duration_or_never(shortest: Duration) -> impl Fn(&Value) -> Result<Option<Duration>, String> {
    move |value| match text(value) {
        Ok(text) if text == "never" => Ok(None),
        _ => duration(shortest)(value).map(Some),
    }
}

/// A duration as people write it.
pub(super) fn show(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// An absolute path on this machine, perhaps of a credential.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    // Not repeated: somebody may have put the secret itself here.
    if text.starts_with('/') || text.starts_with(CREDENTIALS) {
        Ok(PathBuf::from(text))
    } else {
        Err(format!("must be the absolute path of a file (or begin with {CREDENTIALS})"))
    }
}

/// The path of a unix socket, which the kernel limits to 107 bytes (`sun_path`).
pub(super) fn socket_path(text: &str) -> Result<PathBuf, String> {
    if text.len() > 107 {
        return Err(format!("is {} bytes long; a socket's path may have 107", text.len()));
    }
    absolute(text)
}

/// An absolute path without `..`, safe to put into a remote command.
pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    let safe = |c: char| c.is_ascii_alphanumeric() || "/._-+@:,".contains(c);
    if text.starts_with('/') && text.chars().all(safe) && !text.split('/').any(|p| p == "..") {
        Ok(PathBuf::from(text))
    } else {
        Err(format!("\"{text}\" is no absolute path of letters, digits and /._-+@:,"))
    }
}

/// A name of ours: a backend, the server.
pub(super) fn name(text: &str) -> Result<String, String> {
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if text.len() <= 40 && text.starts_with(lower) && text.chars().all(|c| lower(c) || c == '-') {
        Ok(text.to_owned())
    } else {
        Err(format!("\"{text}\" is no name: small letters, digits and dashes, at most 40"))
    }
}

/// A word that goes into a file's name or a remote command: letters, digits, `._-`.
pub(super) fn word(text: &str) -> Result<String, String> {
    let safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.len() <= 64 && text.chars().all(safe) && !text.starts_with(['-', '.']) {
        Ok(text.to_owned())
    } else {
        Err(format!("\"{text}\" must be letters, digits and ._- only, at most 64"))
    }
}

/// A systemd unit. `.service` is added where no type is given, as systemctl does.
pub(super) fn unit(text: &str) -> Result<String, String> {
    let safe = |c: char| c.is_ascii_alphanumeric() || ":_.@-".contains(c);
    if text.len() > 240 || !text.chars().all(safe) || text.starts_with(['-', '.']) {
        return Err(format!("\"{text}\" is no unit name: letters, digits and :_.@- only"));
    }
    match text.rsplit_once('.') {
        Some((_, "service")) => Ok(text.to_owned()),
        Some((_, "socket" | "target" | "timer" | "mount" | "path" | "slice" | "scope")) => {
            Err(format!("\"{text}\" is no service"))
        }
        _ => Ok(format!("{text}.service")),
    }
}

/// A host name or an address.
pub(super) fn host(text: &str) -> Result<String, String> {
    let safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let named = text.len() <= 253 && text.chars().all(safe) && text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if named || text.parse::<std::net::IpAddr>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err(format!("\"{text}\" is no host name or address (a port has its own key)"))
    }
}

/// A plain http URL, perhaps with a path in front of all others; without the slash at its end.
pub(super) fn url(text: &str) -> Result<String, String> {
    if text.starts_with("https://") {
        return Err("https is not built in: backends are reached over the local network; for \
                    others, put a local proxy before them"
            .into());
    }
    let rest = text.strip_prefix("http://").ok_or("must begin with http://")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err("must not contain a user or password; a key belongs into `api_key_file`".into());
    }
    let (host_part, port) = match authority.strip_prefix('[') {
        Some(v6) => v6.split_once(']').ok_or("has a [ without a ]")?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    host(host_part)?;
    let port_is_fine = match port.strip_prefix(':') {
        Some(digits) => digits.parse::<u16>().is_ok_and(|port| port > 0),
        None => port.is_empty(),
    };
    if !port_is_fine {
        return Err(format!("\"{authority}\" has no port between 1 and 65535"));
    }
    if path.contains(['?', '#', ' ', '%', '\\']) {
        return Err("may have a path, but nothing after it".into());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// The path of an HTTP question.
pub(super) fn url_path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && !text.contains([' ', '#', '\\']) {
        Ok(text.to_owned())
    } else {
        Err(format!("\"{text}\" must begin with a slash"))
    }
}

/// Where wake packets go: an address, with port 9 (discard, as by custom) unless given.
pub(super) fn wake_target(text: &str) -> Result<SocketAddr, String> {
    let bare = || text.parse().ok().map(|ip| SocketAddr::new(ip, 9));
    text.parse()
        .ok()
        .or_else(bare)
        .filter(|target: &SocketAddr| target.port() != 0)
        .ok_or_else(|| format!("\"{text}\" is no address, as 192.168.1.255:9"))
}

/// A network interface's name, as Linux allows them.
pub(super) fn interface(text: &str) -> Result<String, String> {
    let safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.len() <= 15 && text.chars().all(safe) && !text.starts_with(['-', '.']) {
        Ok(text.to_owned())
    } else {
        Err(format!("\"{text}\" is no name of a network interface"))
    }
}

/// The hardware address of one network card.
pub(super) fn mac(text: &str) -> Result<[u8; 6], String> {
    let mac = six_bytes(text).ok_or_else(|| format!("\"{text}\" is no hardware address, as 52:54:00:12:34:56"))?;
    if mac == [0; 6] {
        return Err("is all zeros: no network card has it".into());
    }
    if mac[0] & 1 == 1 {
        return Err(format!("\"{text}\" is a multicast or broadcast address; the card's own is wanted"));
    }
    Ok(mac)
}

/// A `SecureOn` password, written like a hardware address.
pub(super) fn secure_on(text: &str) -> Result<[u8; 6], String> {
    six_bytes(text).ok_or_else(|| "must be six bytes, as 01:23:45:67:89:ab".into())
}

fn six_bytes(text: &str) -> Option<[u8; 6]> {
    let separator = text.chars().find(|c| matches!(c, ':' | '-'));
    let digits: String = match separator {
        None => text.to_owned(),
        Some(c) if text.split(c).all(|pair| pair.len() == 2) => text.replace(c, ""),
        Some(_) => return None,
    };
    if digits.len() != 12 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    let number = u64::from_str_radix(&digits, 16).ok()?;
    number.to_be_bytes()[2..].try_into().ok()
}

/// A pinned host key, as `ssh-ed25519 AAAA...`; a comment after it is dropped. Read by the library that will compare it with
/// what the server offers: one that is damaged inside would be refused only when the daemon starts, or match no server.
pub(super) fn host_key(text: &str) -> Result<String, String> {
    let mut words = text.split_whitespace();
    let (kind, blob) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    if !KEY_TYPES.contains(&kind) {
        let hint = if KEY_TYPES.contains(&blob) { "; drop the host name before it" } else { "" };
        return Err(format!("must be a public key of one of the types {}{hint}", KEY_TYPES.join(", ")));
    }
    let whole = format!("{kind} {blob}");
    let refused = |why: &str| Err(format!("is not a whole {kind} key: {why}"));
    match PublicKey::from_openssh(&whole) {
        Ok(key) if key.key_data().rsa().is_some_and(|rsa| rsa.key_size() < LEAST_RSA_BITS) => {
            refused(&format!("its modulus has fewer than {LEAST_RSA_BITS} bits"))
        }
        Ok(_) => Ok(whole),
        Err(error) => match cut_off(kind, blob) {
            Some(field) => refused(&format!("it is cut off, or damaged, in its {field}")),
            None => refused(&error.to_string().replace(char::is_control, "?")),
        },
    }
}

/// The first field of a key that does not end within it.
fn cut_off(kind: &str, blob: &str) -> Option<&'static str> {
    // RFC 4253, section 6.6; RFC 8709, section 4; RFC 5656, section 3.1.
    let fields: &[&str] = match kind {
        "ssh-rsa" => &["type", "exponent", "modulus"],
        "ssh-ed25519" => &["type", "32 bytes"],
        _ => &["type", "curve", "point"],
    };
    let mut reader = Base64Reader::new(blob.as_bytes()).ok()?;
    fields.iter().copied().find(|_| Vec::<u8>::decode(&mut reader).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEpcbeO61TbB8U9d/9fNJbzkdQn+\
        ws4qKhc5Zah45PosjhRk3LywUBpWLdF+At77g3SSNAER9mQYeYXuP+EpyqA=";
    const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC/2kw6UE3IYChySufp/C74KGid9B/diCT16axvUREwci+vOvDq4fPj1TfW9IcXxPbWllHz\
        NSoDZw9UVnmteVb2lhaTskZXOj+vxNyUf1xS3rMEBYJni3pym0JGs/LdsMT4ZpeyazN2hO3/9QAMj7TM2U2e6TDLSamYXkhMOWzqBQ==";

    #[test]
    fn a_mac_is_read_in_every_usual_form() {
        let wanted = Ok([0x52, 0x54, 0, 0x12, 0xab, 1]);
        for text in ["52:54:00:12:ab:01", "52-54-00-12-AB-01", "52540012ab01"] {
            assert_eq!(mac(text), wanted);
        }
    }

    #[test]
    fn a_mac_that_no_card_can_have_is_refused() {
        for text in [
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "52:54:00:12:34",
            "52:54:00:12:34:5g",
            "5254:00:12:34:56",
            "+2540012ab01",
            "",
        ] {
            assert!(mac(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_key_loses_its_comment_and_nothing_else() {
        assert_eq!(host_key(&format!("{ED25519} root@gpu")), Ok(ED25519.into()));
    }

    #[test]
    fn a_host_key_that_is_none_is_refused_without_repeating_it() {
        let private = "-----BEGIN OPENSSH PRIVATE KEY----- b3BlbnNz";
        for text in [
            private,
            "ssh-dss AAAAB3NzaC1kc3MAAACB",
            "ssh-ed25519",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnk",
            "ssh-ed25519 !!!!",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
        ] {
            let refused = host_key(text).unwrap_err();
            assert!(!refused.contains("b3Blb"), "{refused}");
        }
        let scanned = host_key(&format!("gpu {ED25519}")).unwrap_err();
        assert!(scanned.contains("drop the host name"), "{scanned}");
    }

    /// What is left of a key of which only the first bytes came along.
    fn begin_of(key: &str, digits: usize) -> String {
        let (kind, blob) = key.split_once(' ').unwrap();
        format!("{kind} {}", &blob[..digits])
    }

    #[test]
    fn a_host_key_of_each_type_that_is_cut_off_anywhere_is_refused() {
        for key in [ED25519, ECDSA, RSA] {
            assert_eq!(host_key(key), Ok(key.into()));
            let digits = key.split_once(' ').unwrap().1.len();
            for digits in (0..digits).step_by(4) {
                assert!(host_key(&begin_of(key, digits)).is_err(), "{}", begin_of(key, digits));
            }
        }
    }

    #[test]
    fn a_host_key_that_is_damaged_inside_is_refused_with_the_place() {
        for (key, expected) in [
            (begin_of(RSA, 100), "ssh-rsa key: it is cut off, or damaged, in its modulus"),
            (begin_of(RSA, 20), "ssh-rsa key: it is cut off, or damaged, in its exponent"),
            (begin_of(ECDSA, 100), "nistp256 key: it is cut off, or damaged, in its point"),
            (begin_of(ED25519, 24), "ssh-ed25519 key: it is cut off, or damaged, in its 32 bytes"),
            // The length of the exponent, the type in the blob, the curve, the kind of point, what follows the key.
            (RSA.replace("EAAAADAQAB", "EAAAAEAQAB"), "ssh-rsa key"),
            (RSA.replace("NzaC1yc2E", "NzaC1yc2I"), "ssh-rsa key: invalid label"),
            (ECDSA.replace("IbmlzdHAyNTY", "IbmlzdHAyNTc"), "nistp256 key"),
            (ECDSA.replace("BBBEpcbe", "BBB0pcbe"), "nistp256 key"),
            (format!("{ED25519}AAAA"), "ssh-ed25519 key: unexpected trailing data"),
            ("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAACgD0M9JQ5GYFJCc=".into(), "fewer than 1024 bits"),
        ] {
            let refused = host_key(&key).unwrap_err();
            assert!(refused.contains(expected), "{key}: {refused}");
        }
    }

    #[test]
    fn of_several_host_keys_the_one_that_is_damaged_is_named() {
        let keys = Value::List(vec![Value::Text(ED25519.into()), Value::Text(begin_of(RSA, 100))]);
        assert!(list_of(host_key)(&keys).unwrap_err().starts_with("entry 2: is not a whole ssh-rsa key"));
    }

    #[test]
    fn a_url_is_plain_http_to_a_host() {
        assert_eq!(url("http://gpu:8080/"), Ok("http://gpu:8080".into()));
        assert_eq!(url("http://[fd00::2]:80/llm"), Ok("http://[fd00::2]:80/llm".into()));
        for text in [
            "https://gpu:8080",
            "gpu:8080",
            "http://",
            "http://gpu:0",
            "http://gpu:80:80",
            "http://u:p@gpu",
            "http://gpu/?a=b",
            "http://[fd00::2",
        ] {
            assert!(url(text).is_err(), "{text}");
        }
        assert!(!url("http://u:hunter2@gpu").unwrap_err().contains("hunter2"));
    }

    #[test]
    fn a_unit_is_a_service() {
        assert_eq!(unit("vllm"), Ok("vllm.service".into()));
        assert_eq!(unit("llm@a.service"), Ok("llm@a.service".into()));
        for text in ["a b", "-x", "x; reboot", "multi-user.target", "$(x)", "a/b"] {
            assert!(unit(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit_and_have_bounds() {
        let read = |text: &str| duration(Duration::from_secs(1))(&Value::Text(text.into()));
        assert_eq!(read("1m 30s"), Ok(Duration::from_secs(90)));
        for text in ["", "10", "-1s", "10ms", "5 parsecs", "1000years", "99999999999999999999y"] {
            assert!(read(text).is_err(), "{text}");
        }
        assert!(duration(Duration::ZERO)(&Value::Integer(5)).unwrap_err().contains("unit"));
    }

    #[test]
    fn a_list_from_the_environment_is_toml_or_comma_separated() {
        let read = |text: &str| list_of(any)(&Value::Loose(text.into()));
        assert_eq!(read("a, b"), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(read(r#"["a, b"]"#), Ok(vec!["a, b".into()]));
        assert_eq!(read(""), Ok(vec![]));
        assert!(read("[1]").is_err());
    }

    #[test]
    fn wake_targets_have_port_nine_unless_told() {
        assert_eq!(wake_target("10.0.0.255"), Ok("10.0.0.255:9".parse().unwrap()));
        assert_eq!(wake_target("10.0.0.255:7"), Ok("10.0.0.255:7".parse().unwrap()));
        assert!(wake_target("gpu:9").is_err());
    }
}
