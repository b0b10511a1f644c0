//! The bits of one list, who changes them and how they are packed. Nothing here signs or publishes.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use ephor_proto::time::UnixMillis;

use super::{Built, LIST_BITS, ListError};
use crate::limits;

/// Of one list, not packed.
pub(super) const LIST_BYTES: usize = (LIST_BITS / 8) as usize;

/// One list: its bits, and what was last made of them.
pub(super) struct List {
    pub(super) number: u32,
    /// Guards the bits; held for a few instructions only.
    pub(super) bits: Mutex<Bits>,
    /// Held while a list is compressed and signed, so that waiters share one build.
    pub(super) building: tokio::sync::Mutex<()>,
    pub(super) current: ArcSwapOption<Built>,
}

/// Which places are taken, and which of them are revoked.
pub(super) struct Bits {
    pub(super) revoked: Vec<u8>,
    pub(super) used: Vec<u8>,
    pub(super) used_count: u32,
    pub(super) version: u64,
}

impl List {
    pub(super) fn new(number: u32) -> Self {
        let bits = Bits {
            revoked: vec![0; LIST_BYTES],
            used: vec![0; LIST_BYTES],
            used_count: 0,
            version: 0,
        };
        Self {
            number,
            bits: Mutex::new(bits),
            building: tokio::sync::Mutex::new(()),
            current: ArcSwapOption::empty(),
        }
    }

    /// A list of an earlier epoch.
    pub(super) fn void(number: u32) -> Self {
        let list = Self::new(number);
        list.change(|bits| bits.revoked.fill(0xff));
        list
    }

    pub(super) fn change<T>(&self, act: impl FnOnce(&mut Bits) -> T) -> T {
        act(&mut self.bits.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn snapshot(&self) -> (u64, Vec<u8>) {
        self.change(|bits| (bits.version, bits.revoked.clone()))
    }

    /// A random free index, or none when the list is half full: beyond that, guessing
    /// a free one takes long and neighbours become linkable.
    pub(super) fn reserve(&self) -> Result<Option<u32>, ListError> {
        for _ in 0..limits::STATUS_INDEX_TRIES {
            let index = u32::from_le_bytes(ephor_crypto::random::bytes::<4>()?) % LIST_BITS;
            let taken = self.change(|bits| {
                if bits.used_count >= LIST_BITS / 2 {
                    return None;
                }
                Some(bits.mark_used(index))
            });
            match taken {
                None => return Ok(None),
                Some(true) => return Ok(Some(index)),
                Some(false) => {}
            }
        }
        Ok(None)
    }

    pub(super) fn fresh(&self, now: UnixMillis, kid: &str) -> Option<Arc<Built>> {
        let built = self.current.load_full()?;
        let version = self.change(|bits| bits.version);
        (built.version == version && built.is_good(now, kid)).then_some(built)
    }
}

impl Bits {
    /// False when it was in use already.
    pub(super) fn mark_used(&mut self, index: u32) -> bool {
        let fresh = write_bit(&mut self.used, index, true);
        self.used_count += u32::from(fresh);
        fresh
    }

    pub(super) fn set(&mut self, index: u32) {
        self.mark_used(index);
        if write_bit(&mut self.revoked, index, true) {
            self.version += 1;
        }
    }

    pub(super) fn clear(&mut self, index: u32) {
        if write_bit(&mut self.used, index, false) {
            self.used_count -= 1;
        }
        if write_bit(&mut self.revoked, index, false) {
            self.version += 1;
        }
    }
}

/// Index `i` is bit `i % 8`, least significant first, of byte `i / 8`.
pub(super) fn bit(bytes: &[u8], index: u32) -> Option<bool> {
    bytes
        .get(index as usize / 8)
        .map(|byte| (byte >> (index % 8)) & 1 == 1)
}

/// True when the bit changed.
pub(super) fn write_bit(bytes: &mut [u8], index: u32, value: bool) -> bool {
    let Some(byte) = bytes.get_mut(index as usize / 8) else {
        return false;
    };
    let before = *byte;
    if value {
        *byte |= 1 << (index % 8);
    } else {
        *byte &= !(1 << (index % 8));
    }
    *byte != before
}

pub(super) fn deflate(bits: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bits)?;
    encoder.finish()
}

pub(super) fn inflate(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut bits = Vec::with_capacity(LIST_BYTES);
    flate2::read::ZlibDecoder::new(packed)
        .take(LIST_BYTES as u64 + 1)
        .read_to_end(&mut bits)?;
    Ok(bits)
}
