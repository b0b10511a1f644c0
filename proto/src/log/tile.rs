//! Paths of tiles and the encoding of entry bundles (c2sp.org/tlog-tiles).

/// Hashes or entries in a full tile.
pub const TILE_WIDTH: u16 = 256;

/// Why an entry bundle is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadBundle {
    /// It ends within an entry.
    #[error("the entry bundle ends within entry {0}")]
    Truncated(usize),
    /// It has more than 256 entries.
    #[error("the entry bundle has more than 256 entries")]
    TooMany,
}

/// `tile/L/N[.p/W]`; `width` is 1 to 256, and 256 (or 0) means a full tile.
pub fn tile_path(level: u8, index: u64, width: u16) -> String {
    format!("tile/{level}/{}{}", numbered(index), partial(width))
}

/// `tile/entries/N[.p/W]`; `width` as for [`tile_path`].
pub fn bundle_path(index: u64, width: u16) -> String {
    format!("tile/entries/{}{}", numbered(index), partial(width))
}

/// Three digits to a folder, all but the last with an `x`: 1234067 is `x001/x234/067`.
fn numbered(index: u64) -> String {
    let mut path = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        path = format!("x{:03}/{path}", rest % 1000);
        rest /= 1000;
    }
    path
}

fn partial(width: u16) -> String {
    match width % TILE_WIDTH {
        0 => String::new(),
        width => format!(".p/{width}"),
    }
}

/// Appends one entry: its length in 16 bits, big endian, then its bytes. False, and nothing
/// appended, when it is longer than 65535 bytes.
#[must_use]
pub fn bundle_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> bool {
    let Ok(length) = u16::try_from(entry.len()) else {
        return false;
    };
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    true
}

/// The entries of a bundle, in order.
///
/// # Errors
/// When it ends within an entry or has more than 256.
pub fn split_bundle(bundle: &[u8]) -> Result<Vec<&[u8]>, BadBundle> {
    let mut entries = Vec::new();
    let mut rest = bundle;
    while !rest.is_empty() {
        let short = BadBundle::Truncated(entries.len());
        let (length, after) = rest.split_first_chunk::<2>().ok_or(short)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, after) = after.split_at_checked(length).ok_or(short)?;
        if entries.len() >= usize::from(TILE_WIDTH) {
            return Err(BadBundle::TooMany);
        }
        entries.push(entry);
        rest = after;
    }
    Ok(entries)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_as_in_the_standard() {
        assert_eq!(tile_path(0, 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(tile_path(1, 0, 1), "tile/1/000.p/1");
        assert_eq!(tile_path(63, 999, 255), "tile/63/999.p/255");
        assert_eq!(bundle_path(1000, 256), "tile/entries/x001/000");
        assert_eq!(bundle_path(273, 112), "tile/entries/273.p/112");
        let last = "tile/entries/x018/x446/x744/x073/x709/x551/615";
        assert_eq!(bundle_path(u64::MAX, 0), last);
    }

    #[test]
    fn entries_have_a_length_of_16_bits() {
        let mut bundle = Vec::new();
        assert!(bundle_entry(&mut bundle, b"abc") && bundle_entry(&mut bundle, b""));
        assert_eq!(bundle, b"\x00\x03abc\x00\x00");
        assert!(!bundle_entry(&mut bundle, &vec![0; 65_536]));
        assert_eq!(split_bundle(&bundle), Ok(vec![b"abc".as_slice(), b""]));
        assert_eq!(split_bundle(b"\x00\x03ab"), Err(BadBundle::Truncated(0)));
        assert_eq!(split_bundle(b"\x00\x01a\x00"), Err(BadBundle::Truncated(1)));
        assert_eq!(split_bundle(&[0; 514]), Err(BadBundle::TooMany));
        assert_eq!(split_bundle(&[0; 512]).unwrap().len(), 256);
    }

    proptest! {
        #[test]
        fn bundles_round_trip(entries in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let mut bundle = Vec::new();
            for entry in &entries {
                prop_assert!(bundle_entry(&mut bundle, entry));
            }
            prop_assert_eq!(split_bundle(&bundle).unwrap(), entries);
        }

        #[test]
        fn our_paths_are_those_of_the_library(level in 0u8..5, index in 0u64..10_000_000, width in 1u16..=256) {
            let theirs = tlog_tiles::tile::Tile::new(8, level, index, u32::from(width), false).path();
            // The library writes the Go form, which has the height as a folder of its own.
            prop_assert_eq!(theirs, tile_path(level, index, width).replacen("tile/", "tile/8/", 1));
        }
    }
}
