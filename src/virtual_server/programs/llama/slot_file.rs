//! Slot files, in llama.cpp's layout (little endian): magic, version, number of words of the token record, the record;
//! then the KV state: streams with their cells, and 512 bytes for each token. No model's name, no checksum.

use std::path::Path;

use super::super::text;

const MAGIC: u32 = 0x6767_7371;
/// The version of the build that this one is like.
const VERSION: u32 = 4;
const PACKED: u32 = 0xffff_ffff;
/// Bytes of K and V of one token, in both layers.
const ROW: usize = 512;
const WORDS_PER_ROW: usize = ROW / 8;
/// Between cells and rows: whether V is transposed, layers, types, row sizes.
const SHAPE: [u32; 6] = [0, 2, 1, 128, 1, 128];

/// What a slot holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) tokens: Vec<u8>,
    pub(super) minds: Vec<u64>,
}

/// Why a file cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// The vague 400; the reason is for the log.
    Rejected(&'static str),
    /// Tokens outside the vocabulary, which get a 400 of their own.
    Tokens,
    /// The KV state ends too early: an assertion fails, and the process aborts.
    Truncated,
}

/// For checkers: the tokens in a slot file that is whole; `None` for any other.
#[must_use]
pub fn tokens_of_file(file: &Path) -> Option<u64> {
    let bytes = std::fs::read(file).ok()?;
    let word = |at: usize| bytes.get(at * 4..at * 4 + 4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
    // The number of streams comes after the token record.
    let streams = word(3 + usize::try_from(word(2)?).ok()?)?;
    let contents = read(&bytes, "", u64::MAX - 4, streams).ok()?;
    u64::try_from(contents.tokens.len()).ok()
}

/// The bytes of a file.
pub(super) fn write(contents: &Contents, slot: usize, streams: u32) -> Vec<u8> {
    let n = u32::try_from(contents.tokens.len()).unwrap_or(u32::MAX);
    let mut words = vec![MAGIC, VERSION, n + 4, PACKED, 1, n];
    words.extend(contents.tokens.iter().map(|token| u32::from(*token)));
    words.push(0);
    words.push(streams);
    for stream in 0..streams {
        if u32::try_from(slot).is_ok_and(|slot| slot == stream) || streams == 1 {
            words.push(n);
            words.extend((0..n).flat_map(|position| [position, 1, 0]));
        } else {
            words.push(0);
        }
    }
    if n > 0 {
        words.extend(SHAPE);
    }
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(contents.minds.iter().flat_map(|mind| row(*mind)));
    bytes
}

/// Reads a file into a slot of a server with this model, context and number of streams.
pub(super) fn read(bytes: &[u8], model: &str, n_ctx: u64, streams: u32) -> Result<Contents, Unfit> {
    let mut words = bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
    // In the head the end of the file is an error like others.
    let mut head = || words.next().ok_or(Unfit::Rejected("unexpectedly reached end of file"));
    if head()? != MAGIC {
        return Err(Unfit::Rejected("unknown (magic, version) for sequence state file"));
    }
    if head()? != VERSION {
        return Err(Unfit::Rejected("unknown (magic, version) for sequence state file"));
    }
    let length = head()?;
    if u64::from(length) > n_ctx + 4 {
        return Err(Unfit::Rejected("token count in sequence state file exceeded capacity"));
    }
    let record = (0..length).map(|_| head()).collect::<Result<Vec<_>, _>>()?;
    let [PACKED, 1, n, rest @ .., 0] = record.as_slice() else {
        return Err(Unfit::Rejected("invalid token record"));
    };
    if usize::try_from(*n) != Ok(rest.len()) {
        return Err(Unfit::Rejected("invalid token record"));
    }
    let mut kv = || words.next().ok_or(Unfit::Truncated);
    if kv()? != streams {
        return Err(Unfit::Rejected("n_stream mismatch"));
    }
    let mut cells = 0;
    for _ in 0..streams {
        let in_stream = kv()?;
        if u64::from(in_stream) > n_ctx {
            return Err(Unfit::Rejected("not enough cells in kv cache"));
        }
        for _ in 0..u64::from(in_stream) * 3 {
            kv()?;
        }
        cells += in_stream;
    }
    if cells != *n {
        return Err(Unfit::Rejected("failed to restore kv cache"));
    }
    if *n > 0 && (0..SHAPE.len()).map(|_| kv()).collect::<Result<Vec<_>, _>>()? != SHAPE {
        return Err(Unfit::Rejected("mismatched layer count, type or row size"));
    }
    let begun = 4 * (words_before_rows(*n, streams));
    let rows = bytes.get(begun..begun + rest.len() * ROW).ok_or(Unfit::Truncated)?;
    let tokens = rest.iter().map(|token| u8::try_from(*token)).collect::<Result<Vec<_>, _>>();
    let tokens = tokens.map_err(|_| Unfit::Tokens)?;
    let minds = minds(&tokens, rows, model);
    Ok(Contents { tokens, minds })
}

fn words_before_rows(n: u32, streams: u32) -> usize {
    let n = usize::try_from(n).unwrap_or(usize::MAX);
    let streams = usize::try_from(streams).unwrap_or(usize::MAX);
    3 + n + 4 + 1 + streams + 3 * n + if n > 0 { SHAPE.len() } else { 0 }
}

/// 512 bytes whose words, taken together, are what the model has in mind: no byte of them is without meaning.
fn row(mind: u64) -> Vec<u8> {
    let words = (1..WORDS_PER_ROW as u64).map(|n| (mind ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let last = words.clone().fold(mind, |all, word| all ^ word);
    words.chain([last]).flat_map(u64::to_le_bytes).collect()
}

/// What this model makes of rows that it may not have written itself: where a row is not what would follow from the one
/// before, everything from there on is off.
fn minds(tokens: &[u8], rows: &[u8], model: &str) -> Vec<u64> {
    let mut before = text::seed(model);
    let mut mine = before;
    let mut wrong = 0;
    let mut minds = Vec::with_capacity(tokens.len());
    for (token, row) in tokens.iter().zip(rows.chunks_exact(ROW)) {
        let words = row.chunks_exact(8).map(|w| u64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]));
        let told = words.fold(0, |all, word| all ^ word);
        let off = told ^ text::step(before, *token);
        if off != 0 {
            wrong = text::step(wrong ^ off, *token);
        }
        mine = text::step(mine, *token) ^ wrong;
        before = told;
        minds.push(mine);
    }
    minds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(text: &str, model: &str) -> Contents {
        let mut mind = text::seed(model);
        let tokens = text.as_bytes().to_vec();
        let minds = tokens.iter().map(|token| {
            mind = text::step(mind, *token);
            mind
        });
        Contents { minds: minds.collect(), tokens }
    }

    #[test]
    fn an_empty_slot_takes_36_bytes() {
        assert_eq!(write(&Contents::default(), 0, 1).len(), 36);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let saved = contents("what was said", "m");
        for streams in [1, 4] {
            let bytes = write(&saved, 2, streams);
            assert_eq!(read(&bytes, "m", 4096, streams), Ok(saved.clone()));
            assert_eq!(read(&[bytes, vec![1, 2, 3]].concat(), "m", 4096, streams), Ok(saved.clone()));
        }
    }

    #[test]
    fn another_model_or_a_flipped_byte_is_taken_and_means_something_else() {
        let saved = contents("what was said", "m");
        let mut bytes = write(&saved, 0, 1);
        assert_ne!(read(&bytes, "n", 4096, 1).map(|c| c.minds), Ok(saved.minds.clone()));
        let middle = bytes.len() - 4 * ROW - 7;
        bytes[middle] ^= 1;
        let read = read(&bytes, "m", 4096, 1).expect("no detection");
        assert_eq!(read.minds[..8], saved.minds[..8]);
        assert_ne!(read.minds[12], saved.minds[12]);
    }

    #[test]
    fn no_length_makes_it_panic_and_a_cut_in_the_kv_state_is_told_apart() {
        let bytes = write(&contents("what was said", "m"), 0, 1);
        let head = 4 * (3 + 13 + 4);
        for length in 0..bytes.len() {
            let why = read(&bytes[..length], "m", 4096, 1).expect_err("too short");
            assert_eq!(why == Unfit::Truncated, length >= head, "{length}: {why:?}");
        }
    }
}
