//! The first words of a slot file, as llama.cpp writes them (little endian u32): magic, version, number of words of the token
//! record, the record. In builds since mid 2026 the record begins with `ffffffff`, 1 and the number of tokens; older ones are
//! a plain list of tokens. There is no model's name and no checksum in it.

/// "qsgg" on disk.
const MAGIC: u32 = 0x6767_7371;
/// A record that says its own length.
const PACKED: u32 = 0xffff_ffff;

/// Checks the head of a file of `file_bytes` bytes that must hold `tokens` tokens. Returns its version.
///
/// # Errors
/// In words, what is wrong with it.
pub fn check(head: &[u8], file_bytes: u64, tokens: u64) -> Result<u32, String> {
    let mut words = head.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
    let mut word = || words.next().ok_or("it is too short to be a slot file");
    let magic = word()?;
    if magic != MAGIC {
        return Err(format!("it begins with {magic:08x}: not a slot file"));
    }
    let version = word()?;
    let length = u64::from(word()?);
    if length == 0 || 12 + 4 * length > file_bytes {
        return Err(format!("its token record of {length} words does not fit its {file_bytes} bytes"));
    }
    if word()? == PACKED {
        word()?;
        let count = u64::from(word()?);
        if count != tokens {
            return Err(format!("it holds {count} tokens instead of {tokens}"));
        }
    } else if length < tokens {
        return Err(format!("it holds {length} tokens instead of {tokens}"));
    }
    Ok(version)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A head as llama.cpp 11434 writes it.
    pub(crate) fn head(tokens: u32) -> Vec<u8> {
        [MAGIC, 4, tokens + 3, PACKED, 1, tokens].iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    #[test]
    fn a_good_head_tells_its_version() {
        assert_eq!(check(&head(909), 480_052, 909), Ok(4));
        assert_eq!(&head(1)[..4], b"qsgg");
    }

    #[test]
    fn an_older_plain_list_of_tokens_is_good_too() {
        let plain: Vec<u8> = [MAGIC, 2, 3, 1, 2, 3].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(check(&plain, 4096, 3), Ok(2));
        assert!(check(&plain, 4096, 4).is_err());
    }

    #[test]
    fn whatever_else_lies_there_is_told() {
        assert!(check(b"", 0, 1).is_err());
        assert!(check(b"GGUF\x03\0\0\0\0\0\0\0aaaa", 999, 1).is_err());
        assert!(check(&head(909)[..16], 480_052, 909).is_err());
        assert!(check(&head(909), 480_052, 908).is_err());
        assert!(check(&head(909), 100, 909).is_err(), "truncated");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, size: u64, tokens: u64) {
            let _ = check(&bytes, size, tokens);
        }
    }
}
