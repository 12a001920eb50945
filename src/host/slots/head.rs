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

/// So many words before the tokens of a record that says its own length.
pub(super) const BEFORE_TOKENS: usize = 6;

/// The tokens of a file of which the first words are given, if there are `count` of them and nothing else: what was no text
/// (images) has no token to name it by.
pub(super) fn tokens(words: &[u32], count: usize) -> Option<Vec<u32>> {
    /// Ids are not negative.
    const MOST: u32 = u32::MAX >> 1;
    let [MAGIC, _, length, record @ ..] = words else { return None };
    let length = usize::try_from(*length).ok()?;
    let tokens = match record {
        [PACKED, 1, told, rest @ ..] if usize::try_from(*told) == Ok(count) => {
            // What follows them counts the rest.
            let rest = rest.get(..length.checked_sub(3)?)?;
            let (tokens, others) = rest.split_at_checked(count)?;
            others.iter().all(|others| *others == 0).then_some(tokens)?
        }
        [PACKED, ..] => return None,
        plain => plain.get(..length).filter(|plain| plain.len() == count)?,
    };
    tokens.iter().all(|token| *token <= MOST).then(|| tokens.to_vec())
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

    #[test]
    fn tokens_are_read_from_either_kind_of_record() {
        assert_eq!(tokens(&[MAGIC, 4, 7, PACKED, 1, 3, 11, 12, 13, 0, 1, 3], 3), Some(vec![11, 12, 13]));
        assert_eq!(tokens(&[MAGIC, 4, 6, PACKED, 1, 3, 11, 12, 13, 1], 3), Some(vec![11, 12, 13]));
        assert_eq!(tokens(&[MAGIC, 2, 3, 11, 12, 13, 1], 3), Some(vec![11, 12, 13]));
    }

    #[test]
    fn half_a_record_another_number_and_what_is_no_text_give_no_tokens() {
        let whole = [MAGIC, 4, 7, PACKED, 1, 3, 11, 12, 13, 0];
        assert_eq!(tokens(&whole[..9], 3), None, "cut off");
        assert_eq!(tokens(&whole, 2), None);
        assert_eq!(tokens(&[MAGIC, 4, 7, PACKED, 1, 3, 11, u32::MAX, 13, 0], 3), None, "a part of an image");
        assert_eq!(tokens(&[MAGIC, 4, 7, PACKED, 1, 3, 11, 12, 13, 1], 3), None, "an image follows");
        assert_eq!(tokens(&[MAGIC, 4, 7, PACKED, 2, 3, 11, 12, 13, 0], 3), None, "another layout");
        assert_eq!(tokens(&[], 0), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, size: u64, tokens: u64) {
            let _ = check(&bytes, size, tokens);
        }

        #[test]
        fn no_words_make_it_panic(rest: Vec<u32>, length in 0..9_u32, packed: bool, count in 0..9_usize) {
            let begin = [MAGIC, 4, length, if packed { PACKED } else { 5 }, 1, 3];
            let _ = tokens(&[&begin, rest.as_slice()].concat(), count);
        }
    }
}
